"""MPCAgent: encode, plan, act."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Generator, Tensor

from gjwm._core import draws
from gjwm._core.settings import check
from gjwm.models.dynamics import Past, Prediction, TailedPrediction
from gjwm.models.world_model import WorldModel
from gjwm.planning.categorical import CategoricalCEM
from gjwm.planning.controller import RecedingHorizon
from gjwm.planning.costs import Cost, GoalCost, ReachCost, RewardCost
from gjwm.planning.history import History
from gjwm.planning.sampling import CEM
from gjwm.planning.search import Plan, Planner


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """What most agents leave as it is: how plans are imagined, and which others compete with them.

    Args:
        rollout: (z0 (B, D), a (B, N, H, A)) -> z (B, N, [P,] H+1, D), what is judged without
            `particles`, such as samples of any law, with noise of their own for each candidate
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

    rollout: Callable[..., Tensor] | None = None
    policy: Callable[[Tensor], Tensor] | None = None
    policy_plans: int = 1
    reuse: float = 0.0
    history: int = 16
    chunk: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("policy_plans", "history", "chunk"):
            _check_count(name, getattr(self, name))


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
            is then that of their latents, `ReachCost` of a model with a reach, else `GoalCost`.
        horizon: H, actions per plan.
        replan_every: actions executed before planning again.
        generator: randomness of the planner and of the particles.
        particles: None plans on the mean rollout; P on P samples of it, with the same noise for all
            candidates of a round (common random numbers), so that plans are ranked by what they do
            and not by their draws. Each round draws afresh, or the search would fit its plan to
            those few draws; planners that differentiate keep them. For dynamics without a memory
            whose law is a diagonal Gaussian; for others set `AgentOptions.rollout`.
        options: see `AgentOptions`.

    Raises:
        ValueError: for a goal that is no observation of the model, and settings that do not fit.
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
        options: AgentOptions | None = None,
    ):
        check("MPCAgent's model", model, WorldModel)
        check("MPCAgent's horizon", horizon, int)
        check("MPCAgent's replan_every", replan_every, int)
        if planner is not None and (isinstance(planner, type) or not hasattr(planner, "plan")):
            raise ValueError(
                "MPCAgent's planner must be one with a method plan, such as gjwm.planning.ICEM(), "
                f"got {planner!r}."
            )
        self.model, self.particles = model, particles
        self.options = options = AgentOptions() if options is None else options
        if particles is not None:
            _check_count("particles", particles)
            _check_particles(model)
        if (cost is None) == (goal is None):
            raise ValueError("MPCAgent plans for a cost or for a goal: give one of the two.")
        self.cost = _cost_of(model, goal) if cost is None else cost
        self.chunk = options.chunk or (2048 if model.device.type == "cpu" else 32768)
        self.controller = RecedingHorizon(
            default_planner() if planner is None else planner,
            horizon=horizon,
            action_dim=model.action_dim,
            replan_every=replan_every,
            generator=generator,
            reuse=options.reuse,
        )
        dynamics = model.dynamics
        usual = dynamics.rollout_members if dynamics.members > 1 else model.rollout
        self._rollout = options.rollout or usual
        if options.compile:
            mode = "reduce-overhead" if model.device.type == "cuda" else None
            self._rollout = torch.compile(self._rollout, mode=mode, dynamic=False)
        self._history = History(options.history) if dynamics.has_memory else None
        self._imagined: _Imagined | None = None  # what the last plan was made from

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
            return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in part.items()}

        self.controller.load_state_dict(moved(state["controller"]))
        if self._history is not None:
            self._history.load_state_dict(moved(state["history"]))

    def act(self, o: ArrayLike, info: Any = None) -> Tensor:
        """Observations of B envs (B, *O), tensor or numpy array -> actions (B, A).

        Raises:
            ValueError: for another observation shape, such as that of one env without the axis B,
                or when the encoder returns NaN.
        """
        shape = tuple(self.model.encoder.observation_shape)
        o = _tensor(o, "observations", shape)
        if o.dim() != 1 + len(shape):
            raise ValueError(
                f"the agent acts in a batch of envs and expects observations {_batch_of(shape)}, "
                f"got {tuple(o.shape)}: add the axis B with o[None]."
            )
        # A planner may differentiate the rollout, which tensors made in inference mode forbid.
        with torch.inference_mode(False), torch.no_grad():
            envs, device, controller = len(o), self.model.device, self.controller
            if not controller.needs_plan and self._history is None:
                return controller.act(None, envs, device)
            z0 = self.model.encode(o.clone().to(device))
            if not z0.isfinite().all():
                raise ValueError(
                    "the encoder returned NaN or infinity for these observations; the model has "
                    "diverged."
                )
            pasts = [(None, None)] if self._history is None else self._history.groups(envs)
            if controller.needs_plan:
                self._imagined = _Imagined(z0, pasts)
            keep = getattr(controller.planner, "differentiates", False)
            noise_shape = (envs, 1, self.particles or 0, controller.horizon, z0.shape[-1])

            def score(a: Tensor) -> Tensor:
                seen = self._imagined
                if self.particles is not None and (seen.noise is None or not keep):
                    seen.noise = draws.normal(noise_shape, controller.generator, device=device)
                return self._score(z0, a, seen.noise)

            policy = self.options.policy
            proposals = None if policy is None else lambda: self._policy_rollouts(z0, policy)
            action = controller.act(score, envs, device, proposals)
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
        with torch.no_grad():
            a = self.plan.mean[:, None]
            z = self.imagine(self._imagined.z0, a, self._imagined.noise)
            named = hasattr(self.cost, "terms")
            terms = self.cost.terms(z, a) if named else {"cost": self.cost(z, a)}
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
        pasts = [(None, None)] if self._imagined is None else self._imagined.pasts
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

    def _policy_rollouts(self, z0: Tensor, policy: Callable[[Tensor], Tensor]) -> Tensor:
        """What the policy would do from z0 (B, D) -> (B, P, H, A)."""
        z, actions = z0[:, None].expand(-1, self.options.policy_plans, -1), []
        for _ in range(self.controller.horizon):
            a = policy(z)
            if a.shape != (*z.shape[:-1], self.model.action_dim):
                raise ValueError(
                    f"expected the policy to map latents {tuple(z.shape)} to actions (..., "
                    f"{self.model.action_dim}), got {tuple(a.shape)}."
                )
            actions.append(a)
            z = self.model.predict(z, a).mean
        return torch.stack(actions, -2)


@dataclass
class _Imagined:
    """What a plan was made from: the start (B, D), each env's past, the particles' noise."""

    z0: Tensor
    pasts: list[tuple[Tensor | None, Past | None]]
    noise: Tensor | None = None


def default_planner(action_groups: Sequence[int] = ()) -> CEM | CategoricalCEM:
    """The planner of `configs/planner/cem.yaml`, or for discrete actions of categorical.yaml: few
    rounds, for acting from a warm start.
    """
    if action_groups:
        return CategoricalCEM(samples=256, iterations=4, elites=24)
    return CEM(
        samples=128,
        iterations=4,
        elites=12,
        noise_beta=2.0,
        min_std=0.05,
        covariance="diagonal",
        memory=0.1,
    )


def _check_count(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"MPCAgent expects {name} >= 1, got {value}.")


def _batch_of(shape: tuple[int, ...]) -> str:
    return f"(B, {', '.join(map(str, shape))})"


def _tensor(x: ArrayLike, name: str, shape: tuple[int, ...]) -> Tensor:
    """`x` as a tensor, or a ValueError for what holds no numbers, such as a file's name."""
    try:
        return torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"expected {name} {_batch_of(shape)} as an array or a tensor, got a "
            f"{type(x).__name__} ({error})."
        ) from error


def _cost_of(model: WorldModel, goal: ArrayLike) -> GoalCost:
    """The cost of latents that are not those of the goals (B, *O) or (*O)."""
    shape = tuple(model.encoder.observation_shape)
    goal = _tensor(goal, "a goal", shape)
    if goal.dim() - len(shape) not in (0, 1) or goal.shape[goal.dim() - len(shape) :] != shape:
        raise ValueError(
            f"expected a goal of the observations' shape {shape}, or {_batch_of(shape)}, got "
            f"{tuple(goal.shape)}."
        )
    with torch.inference_mode(False), torch.no_grad():
        batch = goal.clone() if goal.dim() > len(shape) else goal[None].clone()
        z = model.encode(batch.to(model.device))
        return GoalCost(z) if model.reach is None else ReachCost(z, model.reach)


def _check_particles(model: WorldModel) -> None:
    """Raise unless a prediction is a mean and a variance per latent dimension."""
    z, a = (torch.zeros(1, n, device=model.device) for n in (model.latent_dim, model.action_dim))
    with torch.no_grad():
        law = model.predict(z, a)
    law = law.base if isinstance(law, TailedPrediction) else law
    if model.dynamics.has_memory:
        reason = "have a memory"
    elif type(law) is not Prediction:
        reason = f"predict a {type(law).__name__}"
    else:
        return
    raise ValueError(
        "MPCAgent(particles=...) samples independent Gaussians per latent dimension, and these "
        f"{type(model.dynamics).__name__} {reason}: pass options=AgentOptions(rollout=lambda z0, "
        "a: model.rollout(z0, a, particles=P)) instead (with a memory lambda z0, a, past: ... "
        "past=past). An ensemble needs neither: its members are planned on side by side."
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
        options=AgentOptions(
            policy=None if policy is None else lambda z: policy.sample(z, generator)[0],
            policy_plans=policy_plans,
        ),
    )
