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
from gjwm.models.dynamics import StaticLatents
from gjwm.models.world_model import WorldModel
from gjwm.objectives import EpisodeObjective, JointEmbeddingObjective
from gjwm.rl.actor_critic import Policy, QEnsemble


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
    target, found = value[..., -1], []
    for t in reversed(range(r.shape[-1])):
        target = r[..., t] + discount * going[..., t] * ((1 - lam) * value[..., t] + lam * target)
        found.append(target)
    return torch.stack(found[::-1], -1)


class RewardLearner:
    """A world model with the head "reward", and what else it has of "value" with "policy" and
    "termination", as it learns.

    Args:
        model: see there; its heads "value" and "policy" are a `QEnsemble` and a `Policy`. Without
            these two nothing is known of what comes after a plan's horizon; without "termination"
            no episode is thought to end.
        objective: of the encoder and the predicted mean.
        lr, value_lr, policy_lr: Adam's learning rates, of the world model, the values and the
            policy.
        encoder_rate: the encoder's learning rate as a share of lr: values follow a representation
            that moves slowly.
        clip: largest gradient norm.
        discount: g per step.
        lam: of the value targets, see `lambda_returns`.
        expansion: steps that the policy is followed in the model before the slow values are asked,
            for each target (model-based value expansion, Feinberg et al., 2018). Values then look
            so much further at each update.
        target_rate: share of the values that their slow copy, which gives the targets, takes over
            at each update.
        rho: each further open-loop step counts this much less.
        reward_weight, value_weight, termination_weight: of these errors beside the objective. They
            reach the dynamics and the encoder too, which so keep what matters for reward where the
            objective leaves a choice.
        entropy: the policy's gain from a nat of entropy, in units of the values' spread.
        clone: weight of the policy's squared distance to the actions that were taken, in the same
            units (TD3+BC, Fujimoto & Gu, 2021): for data that no acting will correct. 0 while
            acting.
        compile: compile the two halves of an update (about a minute at the start).

    Raises:
        ValueError: when the model lacks a reward head, has one of value and policy without the
            other, or has dynamics whose predicted mean is not one latent (an ensemble's).
    """

    def __init__(
        self,
        model: WorldModel,
        objective: JointEmbeddingObjective,
        *,
        lr: float = 1e-3,
        value_lr: float = 1e-3,
        policy_lr: float = 1e-3,
        encoder_rate: float = 0.3,
        clip: float = 10.0,
        discount: float = 0.99,
        lam: float = 0.0,
        expansion: int = 0,
        target_rate: float = 0.01,
        rho: float = 0.7,
        reward_weight: float = 1.0,
        value_weight: float = 0.1,
        termination_weight: float = 0.1,
        entropy: float = 1e-3,
        clone: float = 0.0,
        compile: bool = False,
    ):
        if "reward" not in model.heads or ("value" in model.heads) != ("policy" in model.heads):
            raise ValueError(
                "learning from reward needs a model with a reward head, and with value and policy "
                f"both or neither; it has {', '.join(model.heads) or 'none'}."
            )
        self._acts = "policy" in model.heads
        if (clone or expansion) and not self._acts:
            raise ValueError(
                f"clone={clone} and expansion={expansion} are for a policy and its values, which "
                f"this model lacks: use 0."
            )
        if not 0 < discount <= 1 or not 0 <= lam <= 1 or not 0 < target_rate <= 1 or expansion < 0:
            raise ValueError(
                "expected 0 < discount <= 1, 0 <= lam <= 1, 0 < target_rate <= 1 and expansion >= "
                f"0, got {discount}, {lam}, {target_rate} and {expansion}."
            )
        if isinstance(objective, EpisodeObjective) or isinstance(model.dynamics, StaticLatents):
            raise ValueError(
                "law='within' and static latents compare two windows of one episode, which the "
                "windows of acting need not hold: learn from reward with objective.law=marginal "
                "and objective.static_dim=0."
            )
        rates = dict(lr=lr, value_lr=value_lr, policy_lr=policy_lr, encoder_rate=encoder_rate)
        if min(rates.values()) < 0 or not clip > 0 or not 0 < rho <= 1:
            raise ValueError(
                f"expected learning rates >= 0, clip > 0 and 0 < rho <= 1, got {rates}, "
                f"clip={clip}, rho={rho}."
            )
        self.model, self.objective = model, objective.to(model.device)
        self.discount, self.lam, self.target_rate, self.rho = discount, lam, target_rate, rho
        self.expansion = expansion
        self.weights = {
            "reward": reward_weight,
            "value": value_weight,
            "termination": termination_weight,
        }
        self.clip, self.entropy, self.clone = clip, entropy, clone
        # Empty modules where there are none: they have no weights, and nothing of them is called.
        self.value: QEnsemble | nn.Module = model.heads["value"] if self._acts else nn.Identity()
        self.policy: Policy | nn.Module = model.heads["policy"] if self._acts else nn.Identity()
        self.slow = copy.deepcopy(self.value).requires_grad_(False)
        apart = {
            id(p)
            for module in (model.encoder, self.policy, self.value)
            for p in module.parameters()
        }
        encoder, values = list(model.encoder.parameters()), list(self.value.parameters())
        rest = [
            p for module in (model, objective) for p in module.parameters() if id(p) not in apart
        ]
        self._parameters = [*encoder, *values, *rest]
        groups = [
            {"params": encoder, "lr": encoder_rate * lr},
            {"params": values, "lr": value_lr},
            {"params": rest},
        ]
        self._optimizers = {
            "optimizer": torch.optim.Adam([g for g in groups if g["params"]], lr=lr, fused=True)
        }
        self._policy_parameters = list(self.policy.parameters())
        if self._acts:
            self._optimizers["policy_optimizer"] = torch.optim.Adam(
                self._policy_parameters, lr=policy_lr, fused=True
            )
        for group in self._rates():
            group["initial_lr"] = group["lr"]
        # of the values from 5% to 95% of states: a running average
        self.spread = torch.ones((), device=model.device)
        self._tails = torch.tensor([0.05, 0.95], device=model.device)
        self._read, self._ascend = self._read_window, self._ascend_values
        if compile:
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
        z = self.model.encode(batch.o)
        noise = (
            draws.normal((self.expansion + 1, *batch.a.shape), generator, device=batch.a.device)
            if self._acts
            else None
        )
        z_hat, nll, heads = self._read(z, batch.a, batch.r, batch.terminated.float(), noise)
        # One latent of each window: what the discrepancy compares is then all but independent.
        losses = self.objective(z_hat, z[:, 1:], z[:, :1], generator=generator)
        loss = (
            losses["loss"] + nll + sum(self.weights[name] * error for name, error in heads.items())
        )
        self._optimizers["optimizer"].zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, self.clip)
        if not (loss + norm).isfinite():
            raise FloatingPointError(
                f"the loss became {loss.item()} and its gradient {norm.item()}; lower the learning "
                "rate or look for NaN in the observations and rewards."
            )
        self._optimizers["optimizer"].step()
        scalars = {**losses, **heads, "loss": loss, "nll": nll, "grad_norm": norm}
        if self._acts:
            scalars |= self._update_policy(
                torch.cat([z[:, :1], z_hat[0]], 1).detach(), batch.a, generator
            )
        return {name: value.detach() for name, value in scalars.items()}

    def _update_policy(
        self, z: Tensor, a: Tensor, generator: Generator | None
    ) -> dict[str, Tensor]:
        """A step of the policy on latents (B, T+1, D), of which the first T did `a`; the slow
        values follow the others.
        """
        noise = draws.normal((a.shape[0], a.shape[1] + 1, a.shape[2]), generator, device=a.device)
        self.value.requires_grad_(False)
        ascent, q, entropy = self._ascend(z, a, noise, self.spread)
        self._optimizers["policy_optimizer"].zero_grad(set_to_none=True)
        ascent.backward()
        self.value.requires_grad_(True)
        norm = nn.utils.clip_grad_norm_(self._policy_parameters, self.clip)
        if not (ascent + norm).isfinite():
            raise FloatingPointError(
                f"the policy's loss became {ascent.item()} and its gradient {norm.item()}; lower "
                f"the learning rates."
            )
        self._optimizers["policy_optimizer"].step()
        with torch.no_grad():
            low, high = torch.quantile(q.flatten(), self._tails)
            self.spread.lerp_((high - low).clamp(min=1.0), 0.01)
            torch._foreach_lerp_(
                list(self.slow.parameters()), list(self.value.parameters()), self.target_rate
            )
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
        """Predictions (2, B, T, D), the spread's loss, and the heads' errors along the open-loop
        rollout.
        """
        model = self.model
        z_hat = model.dynamics.training_means(z, a)
        if z_hat.dim() != 4:
            raise ValueError(
                f"{type(model.dynamics).__name__} predicts several means; use one whose mean is "
                f"one latent."
            )
        nll = model.dynamics.nll(z[:, :-1], a, z[:, 1:])
        # where each step of the window starts from
        path = torch.cat([z[:, :1], z_hat[0, :, :-1]], 1)
        weight = self.rho ** torch.arange(a.shape[1], device=z.device)
        weight = weight / weight.sum()

        def weighted(error: Tensor) -> Tensor:
            return (error.flatten(0, -2).mean(0) * weight).sum()

        errors = {
            "reward": weighted(
                F.smooth_l1_loss(model.heads["reward"](path, a), r, reduction="none")
            )
        }
        if noise is not None:
            with torch.no_grad():
                value = self._values(z[:, 1:], noise)
                target = lambda_returns(
                    r, value, 1 - terminated, discount=self.discount, lam=self.lam
                )
            errors["value"] = weighted(self.value.errors(path, a, target))
        if "termination" in model.heads:
            logit = model.heads["termination"].logit(path, a)
            errors["termination"] = weighted(
                F.binary_cross_entropy_with_logits(logit, terminated, reduction="none")
            )
        return z_hat, nll, errors

    def _values(self, z: Tensor, noise: Tensor) -> Tensor:
        """What the policy earns from latents (..., D): as the model says at first, then as the slow
        values do -> (...).
        """
        heads, earned, weight = self.model.heads, 0.0, 1.0
        for step in noise[:-1]:
            a = self.policy.squash(z, step)[0]
            earned = earned + weight * heads["reward"](z, a)
            weight = weight * self.discount
            if "termination" in heads:
                weight = weight * (1 - heads["termination"](z, a))
            z = self.model.dynamics.mean(z, a)
        return earned + weight * self.slow(z, self.policy.squash(z, noise[-1])[0]).amin(0)

    def _ascend_values(self, z: Tensor, taken: Tensor, noise: Tensor, spread: Tensor):
        """The policy's loss on latents (B, T+1, D), of which T acted; the values it finds, and its
        entropy.
        """
        a, log_density = self.policy.squash(z, noise)
        q = self.value(z, a).mean(0)
        loss = (self.entropy * log_density - q / spread).mean()
        if self.clone:
            loss = loss + self.clone * (a[:, :-1] - taken).square().mean()
        return loss, q.detach(), -log_density.detach().mean()

    def state_dict(self) -> dict[str, Any]:
        """All that learning goes on from: weights, slow values, optimisers."""
        parts = {
            "model": self.model,
            "objective": self.objective,
            "slow": self.slow,
            **self._optimizers,
        }
        return {**{name: part.state_dict() for name, part in parts.items()}, "spread": self.spread}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        parts = {
            "model": self.model,
            "objective": self.objective,
            "slow": self.slow,
            **self._optimizers,
        }
        for name, part in parts.items():
            part.load_state_dict(state[name])
        self.spread.copy_(state["spread"])
