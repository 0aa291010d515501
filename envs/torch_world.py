"""The base of torch-native worlds: a batch of states, rules as pure functions of them, and no
Gymnasium.

A world is written as functions of *planes*: a state of X numbers is a tuple of X tensors, all of
the batch's shape; an action likewise. Rules written so work over any batch shape, in any float
type, on any device, and carry gradients wherever the physics has them. `World` keeps the planes of
B running episodes and does all that worlds have in common: seeds, clocks, time limits, action
repeat, frame stacks, restarts under a mask, checks, and rollouts for planners.

Nothing in `World.step`, `World.begin` and `World.observe` waits for an accelerator. What is random
is a hash of (seed, episode, number): it depends neither on the device nor on the other worlds of
the batch, and drawing it is a few integer operations on tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from . import raster
from .common import check_choices, check_counts

Planes = tuple[Tensor, ...]
Seed = int | Sequence[int | None] | None

# Odd constants and multipliers of splitmix64 (Steele, Lea & Flood, 2014), as signed 64-bit numbers;
# products wrap.
_WEYL = -0x61C8864680B583EB
_MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
_COUNTER_BITS = 52  # of a world's noise counter: exact in a float64 state


def _mixed(h: Tensor) -> Tensor:
    """splitmix64's finaliser, int64 -> int64."""
    for shift, multiplier in zip((30, 27), _MULTIPLIERS):
        h = (h ^ ((h >> shift) & ((1 << (64 - shift)) - 1))) * multiplier
    return h ^ ((h >> 31) & ((1 << 33) - 1))


def uniforms(key: Tensor, counter: Tensor, count: int) -> Planes:
    """`count` float32 planes in [0, 1), each a function of key and counter (...), int64, alone."""
    seed = _mixed(_mixed(key + 1) + counter * _WEYL)
    steps = [((k * _WEYL + 2**63) % 2**64) - 2**63 for k in range(1, count + 1)]  # wrapped to int64
    return tuple(((_mixed(seed + step) >> 40) & 0xFFFFFF).float() * 2.0**-24 for step in steps)


def gaussian(u: Tensor, v: Tensor) -> Tensor:
    """Two planes of uniform numbers in [0, 1) -> one of standard normals (Box & Muller, 1958)."""
    return torch.sqrt(-2.0 * torch.log1p(-u)) * torch.cos(2 * math.pi * v)


def normals(key: Tensor, counter: Tensor, count: int) -> Planes:
    """`count` standard normal float32 planes, as `uniforms`."""
    u = uniforms(key, counter, 2 * count)
    return tuple(gaussian(u[2 * k], u[2 * k + 1]) for k in range(count))


def within(low: float, high: float, u: Tensor) -> Tensor:
    """Uniform numbers u in [0, 1) stretched to [low, high]."""
    return low + (high - low) * u


def select(mask: Tensor, chosen: Planes, other: Planes) -> Planes:
    """The planes of `chosen` where mask (B,), else those of `other`."""
    return tuple(torch.where(mask, a, b) for a, b in zip(chosen, other))


class World:
    """B worlds of one kind, each in an episode of its own.

    A kind of world says what it is by `draw`, `advance`, `reward`, `position_of`, `goal_of`,
    `goal_state_of`, `valid`, `pictures`, and the constants below.

    Args:
        worlds: B, how many.
        obs: "pixels", "state" or "both".
        size: side of the pictures, pixels.
        frame_stack: pictures per observation, oldest first.
        action_repeat: control steps per action; rewards are summed.
        max_episode_steps: actions until truncation; None: the kind's own number of control steps.
        success_radius: distance of `position` and `goal` below which the goal is reached.
        terminate_on_goal: end the episode at the goal.
        device: where the tensors live.

    Raises:
        ValueError: if an argument is not one of the above."""

    state_names: ClassVar[tuple[str, ...]] = ()  # what get_state, set_state and simulate mean by X
    vector_names: ClassVar[tuple[str, ...]] = ()  # what "state" observations hold
    vector_bounds: ClassVar[tuple[Any, Any]] = (-math.inf, math.inf)  # of those
    actions: ClassVar[int] = 1  # A
    draws: ClassVar[int] = 0  # uniform numbers that an episode begins with
    noises: ClassVar[int] = 0  # normal numbers that a control step takes
    limit: ClassVar[int] = 1000  # control steps of an episode
    least_size: ClassVar[int] = 16

    def __init__(
        self,
        *,
        worlds: int = 1,
        obs: str = "pixels",
        size: int = 64,
        frame_stack: int = 1,
        action_repeat: int = 1,
        max_episode_steps: int | None = None,
        success_radius: float = 0.05,
        terminate_on_goal: bool = False,
        device: str | torch.device = "cpu",
    ):
        check_choices(obs=(obs, ("pixels", "state", "both")))
        check_counts(
            num_envs=(worlds, 1),
            size=(size, self.least_size),
            frame_stack=(frame_stack, 1),
            action_repeat=(action_repeat, 1),
            max_episode_steps=(1 if max_episode_steps is None else max_episode_steps, 1),
        )
        if not 0.0 < success_radius <= 1.0:
            raise ValueError(
                f"success_radius is {success_radius!r}; pass a distance above 0 and at most 1"
            )
        self.worlds, self.size, self.frame_stack = int(worlds), int(size), int(frame_stack)
        self.obs, self.action_repeat = obs, int(action_repeat)
        self.success_radius = float(success_radius)
        if max_episode_steps is not None:
            self.limit = self.action_repeat * int(max_episode_steps)
        self.terminate_on_goal, self.device = bool(terminate_on_goal), torch.device(device)

        self.seeded = False
        self.key = torch.zeros(self.worlds, dtype=torch.int64, device=self.device)
        self.episode = torch.zeros_like(self.key)  # how many each world has begun since its seed
        self.noise_counter = torch.zeros_like(self.key)  # says what a step's noise is
        self.elapsed = torch.zeros_like(self.key, dtype=torch.int32)  # control steps
        self._planes: Planes | None = None
        self.history: list[Planes] = []  # states of the stacked frames, oldest first
        self._backdrop: Tensor | None = None

    # -- what a kind of world says -----------------------------------------------------------------

    def draw(self, u: Planes) -> Planes:
        """An episode's first state from `draws` uniform planes in [0, 1)."""
        raise NotImplementedError

    def advance(self, state: Planes, action: Planes, noise: Planes | None = None) -> Planes:
        """One control step, from A planes in [-1, 1] and `noises` normal planes (None: none)."""
        raise NotImplementedError

    def reward(self, before: Planes, action: Planes, after: Planes) -> Tensor:
        """The reward of a control step. Unless a world says otherwise: 1 at the goal, else 0."""
        return self.success(after).to(after[0].dtype)

    def position_of(self, state: Planes) -> Planes:
        """What success is measured on -> P planes."""
        raise NotImplementedError

    def goal_of(self, state: Planes) -> Planes:
        """Where `position_of` should be -> P planes."""
        raise NotImplementedError

    def goal_state_of(self, state: Planes) -> Planes:
        """The state of having arrived at the goal, at rest."""
        raise NotImplementedError

    def vectors_of(self, state: Planes) -> Planes:
        """What "state" observations hold."""
        return state

    def shown_by(self, state: Planes) -> dict[str, Planes]:
        """Named variables that pictures show, for probes; "position" is one of them."""
        return {"position": self.position_of(state)}

    def valid(self, state: Planes) -> Tensor:
        """Whether planes are a state of this world -> a bool plane."""
        return torch.stack([plane.isfinite() for plane in state]).all(0)

    invalid = "holds NaN or infinity"  # what else a refused state is told

    def pictures(self, state: Planes, rows: Tensor | None = None) -> Tensor:
        """Pictures of planes (n, K) of all worlds, or of the worlds `rows (n,)` -> fresh uint8 (n,
        K, 3, size, size)."""
        raise NotImplementedError

    def backdrop(self) -> Tensor:
        """What stands still in every picture -> uint8, broadcasts to (3, size, size): a floor."""
        return raster.ink(raster.FLOOR, self.device).to(torch.uint8)[:, None, None]

    def canvas(self, *batch: int) -> Tensor:
        """Fresh copies of the backdrop -> uint8 (*batch, 3, size, size)."""
        if self._backdrop is None:
            self._backdrop = self.backdrop()
        shape = (*batch, 3, self.size, self.size)
        frames = torch.empty(shape, dtype=torch.uint8, device=self.device)
        return frames.copy_(self._backdrop)

    def scenes(self, state: Planes) -> Tensor:
        """Pictures for people, with the goal in them where that is not seen: planes (n,) -> uint8
        (n, 3, size, size)."""
        return self.pictures(tuple(plane[:, None] for plane in state))[:, 0]

    def begun(self, mask: Tensor | None, drawn: bool) -> None:
        """Called after states were put in place, in all worlds (None) or where mask (B,): for what
        follows from them. drawn: they are from `draw`, not from outside."""

    def expert(self, state: Planes) -> Planes:
        """The scripted policy's action -> A planes."""
        raise NotImplementedError

    def way_length(self, state: Planes, position: Planes, goal: Planes) -> Tensor:
        """How long the way from one place to another is in the world of `state`, P planes each;
        here the straight line."""
        return torch.stack([p - g for p, g in zip(position, goal)]).norm(dim=0)

    def random_place(self, state: Planes, u: Planes) -> Planes:
        """See `TorchEnv.random_place`: three uniform planes -> P planes."""
        raise NotImplementedError(
            f"{type(self).__name__} has no random_place to wander to; choose another behaviour"
        )

    @property
    def planes(self) -> Planes:
        """The running episodes' states: X planes (B,). Before the first episode, where one with
        seed 0 would begin."""
        if self._planes is None:
            self._put(self.draw(uniforms(self.key, self.episode, self.draws)), None, drawn=True)
        return self._planes

    # -- episodes ----------------------------------------------------------------------------------

    def seed(self, seed: Seed) -> None:
        """Seed world i with `seed + i`, or with `seed[i]`; None goes on, and the first time seeds
        from entropy."""
        if seed is None:
            if self.seeded:
                return
            seeds = [None] * self.worlds
        elif isinstance(seed, int | np.integer):
            seeds = [int(seed) + i for i in range(self.worlds)]
        else:
            seeds = list(seed)
        if len(seeds) != self.worlds:
            raise ValueError(
                f"seed holds {len(seeds)} numbers for {self.worlds} environments; pass one for each"
            )
        for s in seeds:
            if s is not None and (not isinstance(s, int | np.integer) or not 0 <= s < 2**63):
                raise ValueError(f"seed is {s!r}; pass whole numbers, from 0 to 2**63 - 1")
        fresh = torch.tensor([s is not None for s in seeds])
        keys = torch.tensor([0 if s is None else int(s) for s in seeds])
        if not self.seeded:
            entropy = np.random.SeedSequence().generate_state(self.worlds, np.uint64) >> 1
            keys = torch.where(fresh, keys, torch.from_numpy(entropy.astype(np.int64)))
            fresh = torch.ones_like(fresh)
        fresh, keys = fresh.to(self.device), keys.to(self.device)
        self.key = torch.where(fresh, keys, self.key)
        self.episode = torch.where(fresh, 0, self.episode)
        counter = _first_noise(self.key, self.episode)
        self.noise_counter = torch.where(fresh, counter, self.noise_counter)
        self.seeded = True

    def begin(self, mask: Tensor | None = None) -> None:
        """Start new episodes in all worlds, or where mask (B,)."""
        state = self.draw(uniforms(self.key, self.episode, self.draws))
        counter = _first_noise(self.key, self.episode)
        if mask is None:
            self.episode, self.noise_counter = self.episode + 1, counter
        else:
            self.episode = self.episode + mask
            self.noise_counter = torch.where(mask, counter, self.noise_counter)
        self._put(state, mask, drawn=True)

    def set_state(self, states: Any) -> None:
        """Put the worlds into `states (B, X)`, with a new clock; the frame stack repeats the
        picture."""
        if len(states) != self.worlds:
            raise ValueError(f"expected a state for each of {self.worlds} envs, got {len(states)}")
        planes, counter = self.check_states(states)
        if counter is not None:
            self.noise_counter = counter
        self._put(planes, None, drawn=False)

    def _put(self, state: Planes, mask: Tensor | None, *, drawn: bool) -> None:
        if mask is None:
            self._planes = tuple(plane.contiguous() for plane in state)
            self.elapsed = torch.zeros_like(self.elapsed)
            self.history = [self._planes] * self.frame_stack
        else:
            self._planes = select(mask, state, self.planes)
            self.elapsed = torch.where(mask, 0, self.elapsed)
            self.history = [select(mask, state, past) for past in self.history]
        self.begun(mask, drawn)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Apply `actions (B, A)` -> rewards (B,) float32, and success, terminated, truncated (B,)
        bool."""
        action = tuple(actions.clamp(-1.0, 1.0).t().contiguous())
        state = self.planes
        running, rewards = None, None
        for _ in range(self.action_repeat):
            after = self.advance(state, action, self._noise())
            reward = self.reward(state, action, after)
            if running is None:
                self.elapsed = self.elapsed + 1
            else:  # episodes that ended within this action stay as they ended
                after, reward = select(running, after, state), reward * running
                self.elapsed = self.elapsed + running
            self._planes = state = after
            rewards = reward if rewards is None else rewards + reward
            success = self.success(after)
            terminated = success if self.terminate_on_goal else torch.zeros_like(success)
            truncated = (self.elapsed >= self.limit) & ~terminated
            running = ~(terminated | truncated)
        self.history = [*self.history[1:], self.planes]
        return rewards, success, terminated, truncated

    def _noise(self) -> Planes | None:
        if not self.noises:
            return None
        if not self.seeded:
            self.seed(None)
        noise = normals(self.noise_counter, torch.zeros_like(self.noise_counter), self.noises)
        self.noise_counter = (self.noise_counter + 1) & ((1 << _COUNTER_BITS) - 1)
        return noise

    def success(self, state: Planes) -> Tensor:
        """Whether states are less than `success_radius` from their goals -> a bool plane."""
        gaps = ((p - g).square() for p, g in zip(self.position_of(state), self.goal_of(state)))
        return sum(gaps) < self.success_radius**2

    # -- what can be seen --------------------------------------------------------------------------

    def observe(self, rows: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Fresh observations of all worlds, or of the worlds `rows (n,)`: never a view of anything
        kept."""
        if self.obs == "pixels":
            return self._pixels(rows)
        if self.obs == "state":
            return self._vectors(rows)
        return {"pixels": self._pixels(rows), "state": self._vectors(rows)}

    def _pixels(self, rows: Tensor | None) -> Tensor:
        # asking for the planes begins an episode where none has begun
        history = self.history if self.planes else []
        if rows is not None:
            history = [tuple(plane[rows] for plane in state) for state in history]
        stacked = tuple(torch.stack(planes, 1) for planes in zip(*history))  # X planes (n, K)
        return rearrange(self.pictures(stacked, rows), "n k c h w -> n (k c) h w")

    def _vectors(self, rows: Tensor | None) -> Tensor:
        state = self.planes if rows is None else tuple(plane[rows] for plane in self.planes)
        return torch.stack(self.vectors_of(state), -1).float()

    def state_of(self, planes: Planes) -> Tensor:
        """(B, X) float64, in the order of `state_names`, then the noise counter where steps are
        noisy; what `set_state` takes."""
        columns = [*planes, self.noise_counter] if self.noises else planes
        return torch.stack([plane.double() for plane in columns], -1)

    # -- rollouts ----------------------------------------------------------------------------------

    def rollout(
        self,
        states: Any,
        actions: Tensor,
        particles: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[Planes, Tensor | None, tuple[int, ...]]]:
        """From states (B', X) under actions (B', N, H, A), at times 0..H: the state, the reward of
        the action that led there, and the batch's shape, (B', N) or with particles (B', N, P).

        Without particles no noise; else the same noise for all plans of a world. Neither goals nor
        time end anything here."""
        planes, _ = self.check_states(states)
        given, count = tuple(actions.shape), len(planes[0])
        if len(given) != 4 or (given[0], given[-1]) != (count, self.actions):
            raise ValueError(
                f"actions have shape {given} for {count} states; "
                f"expected ({count}, N, H, {self.actions})"
            )
        if particles is not None and particles < 1:
            raise ValueError(f"particles is {particles!r}; pass a whole number, 1 or more, or None")
        worlds, candidates, horizon, _ = actions.shape
        # Time first and coordinates apart: each step reads and writes contiguous (B, N) planes.
        steps = rearrange(actions, "b n h a -> h a b n").contiguous().clamp(-1.0, 1.0)
        state = tuple(plane[:, None] for plane in planes)
        shape: tuple[int, ...] = (worlds, candidates)
        if particles is not None:
            steps, state = steps[..., None], tuple(plane[..., None] for plane in state)
            shape = (worlds, candidates, particles)
        noise = None
        if particles is not None and self.noises:
            source = generator.device if generator else self.device
            drawn = (horizon, self.action_repeat, self.noises, worlds, 1, particles)
            noise = torch.randn(drawn, generator=generator, device=source).to(self.device)
        yield state, None, shape
        for t in range(horizon):
            action, total = tuple(steps[t]), 0.0
            for k in range(self.action_repeat):
                after = self.advance(state, action, None if noise is None else tuple(noise[t, k]))
                total = total + self.reward(state, action, after)
                state = after
            yield state, total.expand(shape), shape

    # -- checks ------------------------------------------------------------------------------------

    def check_actions(self, actions: Any, shape: tuple[int, ...]) -> Tensor:
        """`actions` as a float32 tensor of `shape` on the device; ValueError if its shape or a NaN
        forbids it.

        NaN is looked for where that is free, on the CPU."""
        actions = self.tensor(actions).detach()
        if tuple(actions.shape) != shape:
            raise ValueError(f"action has shape {tuple(actions.shape)}; expected {shape}")
        if self.device.type == "cpu" and bool(actions.isnan().any()):
            raise ValueError("action contains NaN; expected numbers in [-1, 1]")
        return actions

    def check_states(self, states: Any) -> tuple[Planes, Tensor | None]:
        """States (n, X), or with the noise counter (n, X+1) -> X planes (n,), and the counter or
        None; ValueError if one is none of this world."""
        if not isinstance(states, Tensor):
            states = torch.from_numpy(np.array(states, dtype=np.float64))
        states, count = states.detach().to(self.device), len(self.state_names)
        counted = bool(self.noises) and states.ndim == 2 and states.shape[1] == count + 1
        if states.ndim != 2 or (states.shape[1] != count and not counted):
            more = " (and the noise counter, where it is to go on as it was)" if self.noises else ""
            raise ValueError(
                f"state has shape {tuple(states.shape[1:])}; expected ({count},): "
                f"{', '.join(self.state_names)}{more}"
            )
        planes = tuple(plane.contiguous() for plane in states[:, :count].float().t())
        fits = self.valid(planes)
        if not bool(fits.all()):
            bad = states[int((~fits).nonzero()[0, 0]), :count].tolist()
            raise ValueError(
                f"state {[round(v, 4) for v in bad]} {self.invalid}; pass one that get_state could "
                f"return: {', '.join(self.state_names)}"
            )
        if not counted:
            return planes, None
        return planes, states[:, count].double().nan_to_num().long() & ((1 << _COUNTER_BITS) - 1)

    def tensor(self, values: Any) -> Tensor:
        """`values` (array, tensor or nested list) as a float32 tensor on the device."""
        if not isinstance(values, Tensor):
            values = torch.from_numpy(np.array(values, dtype=np.float32))
        return values.to(self.device, torch.float32)


def _first_noise(key: Tensor, episode: Tensor) -> Tensor:
    """Where an episode's noise begins, int64 below 2^52: far from any other's."""
    return (_mixed(_mixed(key + 2) + episode * _WEYL) >> 12) & ((1 << _COUNTER_BITS) - 1)
