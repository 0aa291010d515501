"""MPCAgent: encode, plan, act. The only stateful controller: it owns each env's warm start and, for
dynamics with a memory, its past."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Generator, Tensor

from gjwm._core import draws
from gjwm.models.dynamics import Past, Prediction, TailedPrediction
from gjwm.models.world_model import WorldModel
from gjwm.planning import Plan, Planner, Score
from gjwm.planning.costs import Cost, RewardCost


class RecedingHorizon:
    """Warm starts and open-loop segments for any score function, over a batch of envs.

    The rest of the last plan, shifted by the actions executed, is the next warm start and competes
    as it is. With a planner of action blocks (`repeat` > 1) that holds only if `replan_every` is a
    multiple of `repeat`: otherwise the shifted plan changes within blocks, is averaged over them,
    and the new plan may cost more than the old one's rest.

    Args:
        planner: see `gjwm.planning`.
        horizon: H, actions per plan.
        action_dim: A.
        replan_every: actions executed before the next plan, 1..H.
        generator: the planner's randomness.
        reuse: share of the last plan's elites that compete, shifted in time, in the next one
            (iCEM's 0.3; planners of `gjwm.planning` only).
    """

    def __init__(
        self,
        planner: Planner,
        *,
        horizon: int,
        action_dim: int,
        replan_every: int = 1,
        generator: Generator | None = None,
        reuse: float = 0.0,
    ):
        if horizon < 1 or action_dim < 1:
            raise ValueError(
                f"planning needs horizon >= 1 and action_dim >= 1, got {horizon} and {action_dim}."
            )
        if not 1 <= replan_every <= horizon:
            raise ValueError(
                f"expected 1 <= replan_every <= horizon, got {replan_every} and {horizon}."
            )
        self.planner, self.horizon, self.action_dim = planner, horizon, action_dim
        if not 0 <= reuse <= 1:
            raise ValueError(f"expected 0 <= reuse <= 1, got {reuse}.")
        self.replan_every, self.generator, self.reuse = replan_every, generator, reuse
        self.plan: Plan | None = None
        self._mean: Tensor | None = None
        self._runners_up: Tensor | None = (
            None  # (B, K, H, A) the last plan's elites, shifted along with it
        )
        self._age = 0

    def reset(self, mask: ArrayLike | None = None) -> None:
        """Forget the warm start of all envs, or of those where mask (B,), true or 1, says so.

        Envs are planned as one batch, so that the next `act` replans all of them: open-loop
        segments of the others end early and they keep their warm starts. An all-false mask changes
        nothing.

        Raises:
            ValueError: for a mask of another shape or with other values than true, false, 1 and 0.
        """
        if mask is not None:
            mask = torch.as_tensor(mask)
            if self._mean is not None and mask.shape != self._mean.shape[:1]:
                raise ValueError(
                    f"expected a reset mask ({self._mean.shape[0]},), got {tuple(mask.shape)}."
                )
            if not ((mask == 0) | (mask == 1)).all():
                raise ValueError(
                    f"a reset mask holds true or false (or 1 and 0) for each env, got "
                    f"{mask.tolist()}."
                )
            mask = mask.bool()
            if not mask.any():
                return
        self._age = 0
        if mask is None or self._mean is None:
            self._mean = self._runners_up = None
        else:
            mask = mask.to(self._mean.device)
            self._mean = self._mean.masked_fill(mask[:, None, None], 0)
            if self._runners_up is not None:
                self._runners_up = self._runners_up.masked_fill(mask[:, None, None, None], 0)

    def act(
        self,
        score: Score | None,
        envs: int,
        device: torch.device | str = "cpu",
        proposals: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """The next actions (B, A). `score`, and `proposals` -> (B, P, H, A), are called only when
        `needs_plan`.
        """
        if self._mean is None or self._mean.shape[0] != envs:
            self._mean = torch.zeros(envs, self.horizon, self.action_dim, device=device)
            self._runners_up, self._age = None, 0
        if self._age % self.replan_every == 0:
            offers = [] if proposals is None else [proposals()]
            if self._runners_up is not None:
                offers.append(self._runners_up)
            extra: dict[str, Any] = {"proposals": torch.cat(offers, 1)} if offers else {}
            self.plan = self.planner.plan(score, self._mean, generator=self.generator, **extra)
            self._mean = self.plan.mean
            self._runners_up = None
            if self.reuse and self.plan.elites is not None:
                self._runners_up = self.plan.elites[
                    :, : round(self.reuse * self.plan.elites.shape[1])
                ]
            self._age = 0
        action = self._mean[:, 0].clone()  # the caller's to change: `plan` keeps its own
        self._mean = _shifted(self._mean)
        if self._runners_up is not None:
            self._runners_up = _shifted(self._runners_up)
        self._age += 1
        return action

    def state_dict(self) -> dict[str, Any]:
        """What the next plan starts from; `plan`, the last one's account, is not part of it."""
        return {"mean": self._mean, "runners_up": self._runners_up, "age": self._age}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._mean, self._runners_up, self._age = state["mean"], state["runners_up"], state["age"]

    @property
    def needs_plan(self) -> bool:
        """Whether the next `act` plans (an observation is then needed)."""
        return self._mean is None or self._age % self.replan_every == 0


def _shifted(plans: Tensor) -> Tensor:
    """Plans (..., H, A) one step on; the new last action repeats the old one, as smooth plans
    do.
    """
    return torch.cat([plans[..., 1:, :], plans[..., -1:, :]], -2)


class History:
    """The last latents and actions of B envs, whose episodes began at different times.

    Args:
        steps: kept at most.
    """

    def __init__(self, steps: int):
        self.steps = steps
        self._z: Tensor | None = None  # (B, L, D), the newest last
        self._a: Tensor | None = None  # (B, L, A)
        self._lengths: Tensor | None = None  # (B,) how many of them belong to the env's episode

    def reset(self, mask: Tensor | None = None) -> None:
        """Forget the past of all envs, or of those where mask (B,) is true."""
        if mask is None or self._lengths is None:
            self._z = self._a = self._lengths = None
        else:
            self._lengths = self._lengths.masked_fill(mask.to(self._lengths.device), 0)

    def state_dict(self) -> dict[str, Any]:
        """The past of each env."""
        return {"z": self._z, "a": self._a, "lengths": self._lengths}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._z, self._a, self._lengths = state["z"], state["a"], state["lengths"]

    def append(self, z: Tensor, a: Tensor) -> None:
        """Each env was in z (B, D) and took a (B, A)."""
        if self._lengths is None or len(self._lengths) != len(z):
            self._z, self._a = z[:, None], a[:, None]
            self._lengths = torch.zeros(len(z), dtype=torch.long, device=z.device)
        else:
            self._z = torch.cat([self._z, z[:, None]], 1)[:, -self.steps :]
            self._a = torch.cat([self._a, a[:, None]], 1)[:, -self.steps :]
        self._lengths = (self._lengths + 1).clamp(max=self.steps)

    def groups(self, envs: int) -> list[tuple[Tensor | None, Past | None]]:
        """Envs with pasts of one length: their indices, None for all of them, and the past."""
        if self._lengths is None or len(self._lengths) != envs:
            return [(None, None)]
        lengths = self._lengths.unique().tolist()
        found: list[tuple[Tensor | None, Past | None]] = []
        for length in lengths:
            index = None if len(lengths) == 1 else (self._lengths == length).nonzero()[:, 0]
            kept = [x[:, x.shape[1] - length :] for x in (self._z, self._a)]
            z, a = kept if index is None else (x[index] for x in kept)
            found.append((index, (z, a) if length else None))
        return found


class MPCAgent:
    """Plans in the latent space of a world model.

    For dynamics with a memory the agent keeps the past of each env, the latents that it saw and the
    actions that it took since the env's last `reset`, and plans with it. It then encodes every
    observation, also those between two plans.

    Args:
        model: a world model in evaluation mode.
        planner: see `gjwm.planning`.
        cost: (z (B, N, [P,] H+1, D), a (B, N, H, A)) -> (B, N), such as
            `GoalCost(model.encode(goal))`; may be replaced at any time.
        horizon: H, actions per plan.
        replan_every: actions executed before planning again.
        generator: randomness of the planner and of the particles.
        particles: None plans on the mean rollout; P on P samples of it, with the same noise for all
            candidates of a round (common random numbers), so that plans are ranked by what they do
            and not by their luck. Each round draws afresh, or the search would fit its plan to
            those few draws; planners that differentiate keep them. For dynamics without a memory
            whose law is a diagonal Gaussian; for others pass a `rollout` that samples.
        rollout: (z0 (B, D), a (B, N, H, A)) -> z (B, N, [P,] H+1, D), what is judged when particles
            is None, such as an ensemble's members side by side (`model.dynamics.rollout_members`)
            or samples of any law, with noise of their own for each candidate (`lambda z0, a:
            model.rollout(z0, a, particles=16, generator=generator)`); None: the model's mean
            rollout. With a memory it is called with `past=` as well, (z (B, L, D), a (B, L, A)) or
            None.
        policy: (z (..., D)) -> a (..., A), a prior such as a learned actor: its rollouts, made
            without a past, compete in each plan.
        policy_plans: rollouts of the policy; more than one only helps a policy that draws its
            actions.
        reuse: see `RecedingHorizon`.
        history: steps of the past that a memory reads, at most.
        chunk: rollouts made and judged at a time, one for each particle but not for each member of
            an ensemble. None: 2,048 on a CPU, where batches that fit the cache are faster than one
            large one, and 32,768 on a GPU, which idles in small ones.
        compile: compile the rollout with torch.compile (CUDA graphs on a GPU). The first plan of
            each shape then takes tens of seconds.
    """

    def __init__(
        self,
        model: WorldModel,
        planner: Planner,
        cost: Cost,
        *,
        horizon: int = 12,
        replan_every: int = 1,
        generator: Generator | None = None,
        particles: int | None = None,
        rollout: Callable[[Tensor, Tensor], Tensor] | None = None,
        policy: Callable[[Tensor], Tensor] | None = None,
        policy_plans: int = 1,
        reuse: float = 0.0,
        history: int = 16,
        chunk: int | None = None,
        compile: bool = False,
    ):
        counts = (
            ("particles", particles),
            ("policy_plans", policy_plans),
            ("history", history),
            ("chunk", chunk),
        )
        for name, value in counts:
            if value is not None and value < 1:
                raise ValueError(f"MPCAgent expects {name} >= 1, got {value}.")
        if particles is not None:
            _check_particles(model)
        self.model, self.cost = model, cost
        self.chunk = chunk or (2048 if model.device.type == "cpu" else 32768)
        self.particles, self.policy, self.policy_plans = particles, policy, policy_plans
        self.controller = RecedingHorizon(
            planner,
            horizon=horizon,
            action_dim=model.action_dim,
            replan_every=replan_every,
            generator=generator,
            reuse=reuse,
        )
        self._rollout = model.rollout if rollout is None else rollout
        if compile:
            mode = "reduce-overhead" if model.device.type == "cuda" else None
            self._rollout = torch.compile(self._rollout, mode=mode, dynamic=False)
        # The past of each env, where it matters, and what the last plan was made from: start,
        # particle noise, pasts.
        self._history = History(history) if getattr(model.dynamics, "has_memory", False) else None
        self._imagined: (
            tuple[Tensor, Tensor | None, list[tuple[Tensor | None, Past | None]] | None] | None
        ) = None

    @property
    def plan(self) -> Plan | None:
        """The last plan made."""
        return self.controller.plan

    def reset(self, mask: ArrayLike | None = None) -> None:
        """Start new episodes in all envs, or where mask (B,) is true: see `RecedingHorizon.reset`.
        Their past is forgotten.
        """
        self.controller.reset(mask)
        if self._history is not None:
            self._history.reset(None if mask is None else torch.as_tensor(mask).bool())

    def state_dict(self) -> dict[str, Any]:
        """What acting goes on from: the warm starts, and pasts where there is a memory."""
        history = None if self._history is None else self._history.state_dict()
        return {"controller": self.controller.state_dict(), "history": history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, from any device."""
        device = self.model.device

        def moved(part: dict[str, Any]) -> dict[str, Any]:
            return {
                name: value.to(device) if isinstance(value, Tensor) else value
                for name, value in part.items()
            }

        self.controller.load_state_dict(moved(state["controller"]))
        if self._history is not None:
            self._history.load_state_dict(moved(state["history"]))

    def act(self, o: ArrayLike, info: Any = None) -> Tensor:
        """Observations of B envs (B, *O), tensor or numpy array -> actions (B, A).

        Raises:
            ValueError: for another observation shape, such as that of one env without the axis B,
                or when the encoder returns NaN.
        """
        o = torch.as_tensor(o)
        expected = getattr(self.model.encoder, "observation_shape", None)
        if o.dim() == 0 or (expected is not None and o.dim() != 1 + len(expected)):
            raise ValueError(
                "the agent acts in a batch of envs and expects observations (B, "
                f"{', '.join(map(str, expected or ['...']))}), got {tuple(o.shape)}: add the axis "
                "B with o[None]."
            )
        # A planner may differentiate the rollout, which tensors made in inference mode forbid.
        with torch.inference_mode(False), torch.no_grad():
            envs, device = o.shape[0], self.model.device
            if not self.controller.needs_plan and self._history is None:
                return self.controller.act(None, envs, device)
            z0 = self.model.encode(o.clone().to(device))
            if not z0.isfinite().all():
                raise ValueError(
                    "the encoder returned NaN or infinity for these observations; the model has "
                    "diverged."
                )
            shape = (envs, 1, self.particles or 0, self.controller.horizon, z0.shape[-1])
            keep = getattr(self.controller.planner, "differentiates", False)
            pasts = None if self._history is None else self._history.groups(envs)
            if self.controller.needs_plan:
                self._imagined = z0, None, pasts

            def score(a: Tensor) -> Tensor:
                if self.particles is not None and (self._imagined[1] is None or not keep):
                    noise = draws.normal(shape, self.controller.generator, device=device)
                    self._imagined = z0, noise, pasts
                return self._score(z0, a, self._imagined[1])

            action = self.controller.act(
                score,
                envs,
                device,
                None if self.policy is None else lambda: self._policy_rollouts(z0),
            )
            if self._history is not None:
                self._history.append(z0, action)
            return action

    def explain(self) -> dict[str, Tensor]:
        """The last plan's cost in its terms, (B,) each: those of a `SumCost` by name, else under
        "cost".

        Raises:
            ValueError: before the first plan.
        """
        if self._imagined is None or self.plan is None:
            raise ValueError("nothing has been planned yet: call act first.")
        z0, noise, _ = self._imagined
        with torch.no_grad():
            a = self.plan.mean[:, None]
            z = self.imagine(z0, a, noise)
            terms = (
                self.cost.terms(z, a) if hasattr(self.cost, "terms") else {"cost": self.cost(z, a)}
            )
        return {name: value[:, 0] for name, value in terms.items()}

    def imagine(self, z0: Tensor, a: Tensor, noise: Tensor | None = None) -> Tensor:
        """z0 (B, D), a (B, N, H, A) -> what `rollout` gives, or with noise (B, 1, P, H, D)
        particles (B, N, P, H+1, D).

        With a memory, of the pasts that the last plan was made from.
        """
        if noise is not None:
            return particle_rollout(self.model, z0, a, noise)
        if self._history is None:
            return self._rollout(z0, a)
        pasts = [(None, None)] if self._imagined is None else self._imagined[2]
        if len(pasts) == 1:
            return self._rollout(z0, a, past=pasts[0][1])
        paths = torch.cat([self._rollout(z0[i], a[i], past=past) for i, past in pasts])
        return paths[torch.cat([i for i, _ in pasts]).argsort()]

    def _score(self, z0: Tensor, a: Tensor, noise: Tensor | None) -> Tensor:
        """a (B, N, H, A) -> cost (B, N), a few candidates of all envs at a time."""
        candidates = max(1, self.chunk // (a.shape[0] * (self.particles or 1)))
        parts = a.split(candidates, 1)
        costs = [self.cost(self.imagine(z0, part, noise), part) for part in parts]
        return costs[0] if len(costs) == 1 else torch.cat(costs, 1)

    def _policy_rollouts(self, z0: Tensor) -> Tensor:
        """What the policy would do from z0 (B, D) -> (B, P, H, A)."""
        z, actions = z0[:, None].expand(-1, self.policy_plans, -1), []
        for _ in range(self.controller.horizon):
            a = self.policy(z)
            if a.shape != (*z.shape[:-1], self.model.action_dim):
                raise ValueError(
                    f"expected the policy to map latents {tuple(z.shape)} to actions (..., "
                    f"{self.model.action_dim}), got {tuple(a.shape)}."
                )
            actions.append(a)
            z = self.model.predict(z, a).mean
        return torch.stack(actions, -2)


def _check_particles(model: WorldModel) -> None:
    """Raise unless a mean and a variance per latent dimension are all that the model's prediction
    depends on and says.
    """
    with torch.no_grad():
        device = model.device
        law = model.predict(
            torch.zeros(1, model.latent_dim, device=device),
            torch.zeros(1, model.action_dim, device=device),
        )
    reason = None
    if getattr(model.dynamics, "has_memory", False):
        reason = "have a memory"
    elif type(law.base if isinstance(law, TailedPrediction) else law) is not Prediction:
        reason = f"predict a {type(law).__name__}"
    if reason is not None:
        raise ValueError(
            "MPCAgent(particles=...) samples independent Gaussians per latent dimension, and "
            f"these {type(model.dynamics).__name__} {reason}: pass rollout=lambda z0, a: "
            "model.rollout(z0, a, particles=P) (with a memory lambda z0, a, past: ... past=past), "
            "or for an ensemble rollout=model.dynamics.rollout_members, instead."
        )


def particle_rollout(model: WorldModel, z0: Tensor, a: Tensor, noise: Tensor) -> Tensor:
    """Samples of p(z' | z, a) over the horizon, with given noise: the same for all candidates if
    its axis N is 1.

    Args:
        model: anything with `predict(z, a) -> Prediction`, whose mean and variance are all that is
            read: a diagonal Gaussian (a calibrated law's tails are not sampled, their variance is).
        z0: (B, D).
        a: (B, N, H, A).
        noise: standard normal (B, N or 1, P, H, D).

    Returns:
        (B, N, P, H+1, D); z0 comes first.
    """
    shape = (*a.shape[:2], noise.shape[2])
    z = z0[:, None, None].expand(*shape, -1)
    path = [z]
    for h in range(a.shape[2]):
        prediction = model.predict(z, a[:, :, None, h].expand(*shape, -1))
        z = prediction.mean + prediction.variance.sqrt() * noise[..., h, :]
        path.append(z)
    return torch.stack(path, -2)


def reward_agent(
    model: WorldModel,
    planner: Planner,
    *,
    horizon: int,
    discount: float,
    replan_every: int = 1,
    policy_plans: int = 8,
    generator: Generator | None = None,
) -> MPCAgent:
    """An agent that plans for the model's predicted reward.

    Where the model has values, the members' mean at the policy's action stands for all that comes
    after the horizon; where it has a policy, its rollouts compete in every plan; where it predicts
    termination, nothing is earned after it.

    Args:
        model: with a reward head, in evaluation mode.
        planner: see `gjwm.planning`.
        horizon, replan_every, generator: see `MPCAgent`.
        discount: g per step.
        policy_plans: the policy's rollouts per plan.

    Raises:
        ValueError: when the model has no reward head.
    """
    heads = model.heads
    if "reward" not in heads:
        raise ValueError(
            "planning for reward needs a model with a reward head; train it with heads=[reward]."
        )
    policy = heads["policy"] if "policy" in heads else None
    value = heads["value"] if "value" in heads and policy is not None else None
    cost = RewardCost(
        heads["reward"],
        discount=discount,
        termination=heads["termination"] if "termination" in heads else None,
        value=None if value is None else lambda z: value(z, policy(z)).mean(0),
    )
    return MPCAgent(
        model,
        planner,
        cost,
        horizon=horizon,
        replan_every=replan_every,
        generator=generator,
        policy=None if policy is None else lambda z: policy.sample(z, generator)[0],
        policy_plans=policy_plans,
    )
