"""MPCAgent: encode, plan, act."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Generator, Tensor

from gjwm._core import draws
from gjwm.models.dynamics import Past, Prediction, TailedPrediction
from gjwm.models.world_model import WorldModel
from gjwm.planning.categorical import CategoricalCEM
from gjwm.planning.controller import RecedingHorizon
from gjwm.planning.costs import Cost, GoalCost, RewardCost
from gjwm.planning.history import History
from gjwm.planning.sampling import CEM
from gjwm.planning.search import Plan, Planner


class MPCAgent:
    """Plans in the latent space of a world model; an `Actor` of `gjwm.data.acting`.

    Of an ensemble's dynamics every member is planned on along its own path: a plain cost is the
    mean of theirs, so that a plan through a wall that one member believes in costs what the others
    say of it.

    For dynamics with a memory the agent keeps the past of each env, the latents that it saw and the
    actions that it took since the env's last `reset`, and plans with it. It then encodes every
    observation, also those between two plans.

    Args:
        model: a world model in evaluation mode.
        planner: see `gjwm.planning`; None is `default_planner()`.
        cost: (z (B, N, [P,] H+1, D), a (B, N, H, A)) -> (B, N); may be replaced at any time.
        goal: instead of a cost, observations to bring about, (B, *O) or (*O) for all envs: the cost
            is then `GoalCost` of their latents.
        horizon: H, actions per plan.
        replan_every: actions executed before planning again.
        generator: randomness of the planner and of the particles.
        particles: None plans on the mean rollout; P on P samples of it, with the same noise for all
            candidates of a round (common random numbers), so that plans are ranked by what they do
            and not by their draws. Each round draws afresh, or the search would fit its plan to
            those few draws; planners that differentiate keep them. For dynamics without a memory
            whose law is a diagonal Gaussian; for others pass a `rollout` that samples.
        rollout: (z0 (B, D), a (B, N, H, A)) -> z (B, N, [P,] H+1, D), what is judged when particles
            is None, such as samples of any law, with noise of their own for each candidate
            (`lambda z0, a: model.rollout(z0, a, particles=16, generator=generator)`); None: the
            model's mean rollout, or the members of an ensemble side by side. With a memory it is
            called with `past=` as well, (z (B, L, D), a (B, L, A)) or None.
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
        planner: Planner | None = None,
        cost: Cost | None = None,
        *,
        goal: ArrayLike | None = None,
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
        if (cost is None) == (goal is None):
            raise ValueError("MPCAgent plans for a cost or for a goal: give one of the two.")
        self.model, self.cost = model, _cost_of(model, goal) if cost is None else cost
        self.chunk = chunk or (2048 if model.device.type == "cpu" else 32768)
        self.particles, self.policy, self.policy_plans = particles, policy, policy_plans
        self.controller = RecedingHorizon(
            default_planner() if planner is None else planner,
            horizon=horizon,
            action_dim=model.action_dim,
            replan_every=replan_every,
            generator=generator,
            reuse=reuse,
        )
        members = getattr(model.dynamics, "members", 1) > 1
        usual = model.dynamics.rollout_members if members else model.rollout
        self._rollout = usual if rollout is None else rollout
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


def default_planner(action_groups: Sequence[int] = ()) -> CEM | CategoricalCEM:
    """The planner of `configs/planner/cem.yaml`, or for discrete actions of categorical.yaml: few
    rounds, for acting from a warm start.
    """
    if action_groups:
        return CategoricalCEM(samples=256, iterations=4, elites=24)
    return CEM(
        samples=256,
        iterations=4,
        elites=24,
        noise_beta=2.0,
        min_std=0.05,
        covariance="diagonal",
        memory=0.1,
    )


def _cost_of(model: WorldModel, goal: ArrayLike) -> GoalCost:
    """The cost of latents that are not those of the goals (B, *O) or (*O)."""
    goal, shape = torch.as_tensor(goal), tuple(model.encoder.observation_shape)
    if (
        goal.dim() not in (len(shape), len(shape) + 1)
        or goal.shape[goal.dim() - len(shape) :] != shape
    ):
        raise ValueError(
            f"expected a goal of the observations' shape {shape}, or (B, "
            f"{', '.join(map(str, shape))}), got {tuple(goal.shape)}."
        )
    with torch.inference_mode(False), torch.no_grad():
        batch = goal.clone() if goal.dim() > len(shape) else goal[None].clone()
        return GoalCost(model.encode(batch.to(model.device)))


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
            "model.rollout(z0, a, particles=P) (with a memory lambda z0, a, past: ... past=past) "
            "instead. An ensemble needs neither: its members are planned on side by side."
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
