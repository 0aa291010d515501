"""One update of everything that planning for reward needs: world model, reward, termination, values
and policy.

The encoder and the dynamics learn from the joint-embedding objective as in `gjwm.training.train`.
Reward, termination and values are learned along the open-loop rollout of a window, the very latents
that a planner will judge, by temporal differences where they look beyond it; the policy ascends the
values (TD-MPC2, Hansen et al., 2024, with a Gaussian latent in place of its simplices)."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gjwm._core import draws
from gjwm._core.types import Batch
from gjwm.models.world_model import WorldModel
from gjwm.objectives import EpisodeObjective, JointEmbeddingObjective
from gjwm.objectives.losses import weighted_sum
from gjwm.rl.actor_critic import Policy, QEnsemble
from gjwm.rl.augment import random_shift
from gjwm.rl.settings import LearnerSettings


def lambda_returns(
    r: Tensor, value: Tensor, going: Tensor, *, discount: float, lam: float
) -> Tensor:
    """G_t = r_t + g c_t ((1 - lam) V_{t+1} + lam G_{t+1}), with G_T = V_T beyond the window (Sutton
    & Barto, 2018, eq. 12.18).

    lam = 0 is the one-step target, lam = 1 the n-step return to the window's end.

    Args:
        r: rewards (..., T).
        value: V of the state after each step (..., T).
        going: c (..., T), 0 where the step ended in a terminal state, else 1.

    Returns:
        (..., T).
    """
    target, targets = value[..., -1], []
    for t in reversed(range(r.shape[-1])):
        target = r[..., t] + discount * going[..., t] * ((1 - lam) * value[..., t] + lam * target)
        targets.append(target)
    return torch.stack(targets[::-1], -1)


class RewardLearner:
    """A world model with the head "reward", and what else it has of "value" with "policy" and
    "termination", as it learns.

    Args:
        model: see there; its heads "value" and "policy" are a `QEnsemble` and a `Policy`. Without
            these two nothing is known of what comes after a plan's horizon; without "termination"
            no episode is thought to end.
        objective: of the encoder and the predicted mean.
        settings: see there.

    `weights` says how much each term counts in the loss; `latents` (B, T+1, D) are those that the
    last update encoded.

    Raises:
        ValueError: when the model lacks a reward head, has one of value and policy without the
            other, or when settings or objective ask for what the model cannot do.
    """

    def __init__(
        self,
        model: WorldModel,
        objective: JointEmbeddingObjective,
        settings: LearnerSettings = LearnerSettings(),  # noqa: B008 (frozen)
    ):
        if "reward" not in model.heads or ("value" in model.heads) != ("policy" in model.heads):
            raise ValueError(
                "learning from reward needs a model with a reward head, and with value and policy "
                f"both or neither; it has {', '.join(model.heads) or 'none'}."
            )
        self._acts = "policy" in model.heads
        if (settings.clone or settings.expansion) and not self._acts:
            raise ValueError(
                f"clone={settings.clone} and expansion={settings.expansion} are for a policy and "
                "its values, which this model lacks: use 0."
            )
        shape = getattr(model.encoder, "observation_shape", None)
        if settings.shift and shape is not None and len(shape) != 3:
            raise ValueError(
                f"learner.shift={settings.shift} moves pictures, and observations here have the "
                f"shape {tuple(shape)}: use 0."
            )
        if isinstance(objective, EpisodeObjective):
            raise ValueError(
                "law='within' and slow latents compare two windows of one episode, which the "
                "windows of acting need not hold: learn from reward with objective.law=marginal "
                "and objective.slow_dim=0."
            )
        self.model, self.objective = model, objective.to(model.device)
        self.settings = settings
        self.latents = torch.zeros(0)
        self.weights = {
            "objective": 1.0,
            "nll": 1.0,  # of the spread alone: no other term reaches it
            "reward": settings.reward_weight,
            "value": settings.value_weight,
            "termination": settings.termination_weight,
        }
        # Empty modules where there are none: they have no weights, and nothing of them is called.
        self.value: QEnsemble | nn.Module = model.heads["value"] if self._acts else nn.Identity()
        self.policy: Policy | nn.Module = model.heads["policy"] if self._acts else nn.Identity()
        self.slow = copy.deepcopy(self.value).requires_grad_(False)
        encoder, values = list(model.encoder.parameters()), list(self.value.parameters())
        self._policy_parameters = list(self.policy.parameters())
        known = {id(p) for p in (*encoder, *values, *self._policy_parameters)}
        rest = [p for part in (model, objective) for p in part.parameters() if id(p) not in known]
        self._parameters = [*encoder, *values, *rest]
        groups = [
            {"params": encoder, "lr": settings.encoder_rate * settings.lr},
            {"params": values, "lr": settings.value_lr},
            {"params": rest},
        ]
        groups = [group for group in groups if group["params"]]
        self._optimizers = {"optimizer": torch.optim.Adam(groups, lr=settings.lr, fused=True)}
        if self._acts:
            self._optimizers["policy_optimizer"] = torch.optim.Adam(
                self._policy_parameters, lr=settings.policy_lr, fused=True
            )
        for group in self._rates():
            group["initial_lr"] = group["lr"]
        # of the values from 5% to 95% of states: a running average
        self.spread = torch.ones((), device=model.device)
        self._tails = torch.tensor([0.05, 0.95], device=model.device)
        self._read, self._ascend = self._read_window, self._ascend_values
        if settings.compile:
            self._read = torch.compile(self._read, dynamic=False)
            self._ascend = torch.compile(self._ascend, dynamic=False)

    def update(self, batch: Batch, generator: Generator | None = None) -> dict[str, Tensor]:
        """One gradient step on windows (B, T) -> detached scalars. The model must be in training
        mode.

        Args:
            generator: of the policy's actions and the objective's slices.

        Raises:
            FloatingPointError: when a loss or its gradient is NaN or infinite; what it trains has
                then not changed.
        """
        for name, given in (("observations", batch.o), ("actions", batch.a), ("rewards", batch.r)):
            # before they enter running statistics
            if given.is_floating_point() and not given.isfinite().all():
                raise FloatingPointError(
                    f"the windows hold NaN or infinite {name}; look for them in the data."
                )
        o = batch.o
        if self.settings.shift:
            o = random_shift(o, self.settings.shift, generator)
        z = self.model.encode(o)
        self.latents = z.detach()
        noise = (
            draws.normal(
                (self.settings.expansion + 1, *batch.a.shape), generator, device=batch.a.device
            )
            if self._acts
            else None
        )
        z_hat, errors = self._read(z, batch.a, batch.r, batch.terminated.float(), noise)
        # One latent of each window: what the discrepancy compares is then all but independent.
        objective = self.objective(z_hat, z[:, 1:], z[:, :1], generator=generator)
        terms = {"objective": objective["loss"], **errors}
        loss = weighted_sum(terms, {name: self.weights[name] for name in terms})
        self._optimizers["optimizer"].zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, self.settings.clip)
        if not (loss + norm).isfinite():
            raise FloatingPointError(
                f"the loss became {loss.item()} and its gradient {norm.item()}; lower the learning "
                "rate or look for NaN in the observations and rewards."
            )
        self._optimizers["optimizer"].step()
        scalars = {**objective, **errors, "loss": loss, "grad_norm": norm}
        if self._acts:
            scalars |= self._update_policy(
                torch.cat([z[:, :1], z_hat[0]], 1).detach(), batch.a, generator
            )
        return {name: value.detach() for name, value in scalars.items()}

    def _update_policy(
        self, z: Tensor, a: Tensor, generator: Generator | None
    ) -> dict[str, Tensor]:
        """A step of policy and slow values on latents (B, T+1, D), of which the first T did `a`."""
        noise = draws.normal((a.shape[0], a.shape[1] + 1, a.shape[2]), generator, device=a.device)
        self.value.requires_grad_(False)
        ascent, q, entropy = self._ascend(z, a, noise, self.spread)
        self._optimizers["policy_optimizer"].zero_grad(set_to_none=True)
        ascent.backward()
        self.value.requires_grad_(True)
        norm = nn.utils.clip_grad_norm_(self._policy_parameters, self.settings.clip)
        if not (ascent + norm).isfinite():
            raise FloatingPointError(
                f"the policy's loss became {ascent.item()} and its gradient {norm.item()}; lower "
                f"the learning rates."
            )
        self._optimizers["policy_optimizer"].step()
        with torch.no_grad():
            low, high = torch.quantile(q.flatten(), self._tails)
            self.spread.lerp_((high - low).clamp(min=1.0), 0.01)
            slow, value = list(self.slow.parameters()), list(self.value.parameters())
            torch._foreach_lerp_(slow, value, self.settings.target_rate)
        return {"q": q.mean(), "entropy": entropy}

    def _rates(self) -> list[dict[str, Any]]:
        return [
            group for optimizer in self._optimizers.values() for group in optimizer.param_groups
        ]

    def scale_rates(self, share: float) -> None:
        """Learn at this share of the learning rates that were set."""
        for group in self._rates():
            group["lr"] = share * group["initial_lr"]

    def _read_window(
        self, z: Tensor, a: Tensor, r: Tensor, terminated: Tensor, noise: Tensor | None
    ):
        """Predictions (2, B, T, D); errors of the spread ("nll") and of heads in the open loop."""
        model, settings = self.model, self.settings
        z_hat = model.dynamics.training_means(z, a)
        if z_hat.dim() != 4:
            raise ValueError(
                f"{type(model.dynamics).__name__} predicts several means; use one whose mean is "
                f"one latent."
            )
        # where each step of the window starts from
        path = torch.cat([z[:, :1], z_hat[0, :, :-1]], 1)
        weight = settings.rho ** torch.arange(a.shape[1], device=z.device)
        weight = weight / weight.sum()

        def weighted(error: Tensor) -> Tensor:
            return (error.flatten(0, -2).mean(0) * weight).sum()

        errors = {"nll": model.dynamics.nll(z[:, :-1], a, z[:, 1:])}
        reward = model.heads["reward"](path, a)
        errors["reward"] = weighted(F.smooth_l1_loss(reward, r, reduction="none"))
        if noise is not None:
            with torch.no_grad():
                value, going = self._values(z[:, 1:], noise), 1 - terminated
                target = lambda_returns(
                    r, value, going, discount=settings.discount, lam=settings.lam
                )
            errors["value"] = weighted(self.value.errors(path, a, target))
        if "termination" in model.heads:
            logit = model.heads["termination"].logit(path, a)
            errors["termination"] = weighted(
                F.binary_cross_entropy_with_logits(logit, terminated, reduction="none")
            )
        return z_hat, errors

    def _values(self, z: Tensor, noise: Tensor) -> Tensor:
        """What the policy earns from latents (..., D): by the model, then by the slow values."""
        heads, earned, weight = self.model.heads, 0.0, 1.0
        for step in noise[:-1]:
            a = self.policy.squash(z, step)[0]
            earned = earned + weight * heads["reward"](z, a)
            weight = weight * self.settings.discount
            if "termination" in heads:
                weight = weight * (1 - heads["termination"](z, a))
            z = self.model.dynamics.mean(z, a)
        return earned + weight * self.slow(z, self.policy.squash(z, noise[-1])[0]).amin(0)

    def _ascend_values(self, z: Tensor, taken: Tensor, noise: Tensor, spread: Tensor):
        """The policy's loss on latents (B, T+1, D), of which T acted; values and entropy."""
        a, log_density = self.policy.squash(z, noise)
        q = self.value(z, a).mean(0)
        loss = (self.settings.entropy * log_density - q / spread).mean()
        if self.settings.clone:
            loss = loss + self.settings.clone * (a[:, :-1] - taken).square().mean()
        return loss, q.detach(), -log_density.detach().mean()

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "objective": self.objective, "slow": self.slow}
        return {**parts, **self._optimizers}

    def state_dict(self) -> dict[str, Any]:
        """All that learning goes on from: weights, slow values, optimisers."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        return {**states, "spread": self.spread}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.spread.copy_(state["spread"])
