"""Behaviours: who acts while data are collected.

A behaviour makes an `Actor` for one episode in each of N envs, with one numpy generator each; all
it draws comes from these, so an episode's actions depend on its own generator only. Actions are
float32 (N, A) in [-1, 1]."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gjwm.data.acting import Actor, FunctionActor, Moment, RecordedActor, as_array
from gjwm.data.planned_behaviours import Curious, Planned


class Behaviour(Protocol):
    """Who acts while data are collected."""

    def start(self, length: int, action_dim: int, rngs: Sequence[np.random.Generator]) -> Actor:
        """Begin one episode of at most `length` steps in each of N = len(rngs) envs."""
        ...


def noise_sequence(
    length: int, action_dim: int, beta: float, rng: np.random.Generator
) -> np.ndarray:
    """Gaussian noise (T, A) with power spectrum 1/f^beta along time and unit variance (Timmer &
    König, 1995).

    The law of `gjwm.planning.coloured_noise`, by FFT from a numpy generator: for the length of an
    episode. Drawn with period 2T and cut, otherwise the first and the last step would be
    neighbours; below the lowest frequency the spectrum is flat."""
    period = 2 * length
    frequency = np.fft.rfftfreq(period).clip(min=1 / period)
    amplitude = frequency ** (-beta / 2)
    # irfft counts every frequency twice except the first and the last, which are real.
    power = amplitude**2 * np.r_[1, np.full(len(frequency) - 2, 2), 1]
    real, imaginary = rng.standard_normal((2, len(frequency), action_dim))
    real[1:-1] /= np.sqrt(2)
    imaginary[1:-1] /= np.sqrt(2)
    imaginary[[0, -1]] = 0
    spectrum = amplitude[:, None] * (real + 1j * imaginary)
    return np.fft.irfft(spectrum, n=period, axis=0)[:length] * period / np.sqrt(power.sum())


@dataclass(frozen=True)
class Uniform:
    """Independent uniform actions in [-1, 1]."""

    def start(self, length: int, action_dim: int, rngs: Sequence[np.random.Generator]) -> Actor:
        return _recorded([rng.uniform(-1, 1, (length, action_dim)) for rng in rngs])


@dataclass(frozen=True)
class Coloured:
    """Clipped noise with spectrum 1/f^beta along time and standard deviation `scale`."""

    beta: float = 2.0
    scale: float = 1.0

    def start(self, length: int, action_dim: int, rngs: Sequence[np.random.Generator]) -> Actor:
        noise = (noise_sequence(length, action_dim, self.beta, rng) for rng in rngs)
        return _recorded([self.scale * each for each in noise])


@dataclass(frozen=True)
class Scripted:
    """The env's own `expert_action` plus white Gaussian noise of standard deviation `noise`,
    clipped to [-1, 1].

    Raises (on the first action):
        ValueError: when the env has no `expert_action`.
    """

    noise: float = 0.3

    def start(self, length: int, action_dim: int, rngs: Sequence[np.random.Generator]) -> Actor:
        noise = _white(self.noise, length, action_dim, rngs)

        def act(o: Any, info: Moment) -> np.ndarray:
            world = _world(info, "expert_action")
            heading = as_array(world.expert_action()).reshape(-1, action_dim)
            return (heading + noise[info.step]).clip(-1, 1).astype(np.float32)

        return FunctionActor(act)


@dataclass(frozen=True)
class Wandering:
    """Straight walks from one place to the next, whatever stands in between, plus white Gaussian
    noise, clipped to [-1, 1].

    A planner whose model does not know a wall walks straight into it, and data of a policy that
    avoids walls never show what happens then. Places come from the env's `random_place`, and
    actions must be displacements: along the same axes as its `position`.

    Args:
        noise: standard deviation.
        patience: steps after which a walk is given up, at most; it ends sooner `near` its place
            (world units), and each is given a uniform share of the patience.
        near: distance along each axis; half a step or more, or a walker goes to and fro around its
            place.

    Raises (on the first action):
        ValueError: when the env has no random_place, or its position other axes than its actions.
    """

    noise: float = 0.3
    patience: int = 50
    near: float = 0.03

    def __post_init__(self):
        if self.noise < 0 or self.patience < 1 or not self.near > 0:
            raise ValueError(
                f"Wandering expects noise >= 0, patience >= 1 and near > 0, got {self.noise}, "
                f"{self.patience} and {self.near}."
            )

    def start(self, length: int, action_dim: int, rngs: Sequence[np.random.Generator]) -> Actor:
        noise = _white(self.noise, length, action_dim, rngs)
        steps_left = np.zeros(len(rngs))
        places = np.zeros((len(rngs), action_dim))

        def act(o: Any, info: Moment) -> np.ndarray:
            nonlocal steps_left
            world = _world(info, "random_place")
            position = as_array(world.position).reshape(len(rngs), -1)
            if position.shape[1] != action_dim:
                raise ValueError(
                    "wandering expects actions along the axes of the position; "
                    f"{type(world).__name__} has {action_dim} actions and {position.shape[1]} "
                    "coordinates: choose another behaviour."
                )
            due = (steps_left <= 0) | (np.abs(places - position).max(1) < self.near)
            if due.any():
                # Only who starts a walk draws, so that an episode's actions do not depend on its
                # company.
                u = np.stack(
                    [rng.random(4) if starts else np.zeros(4) for rng, starts in zip(rngs, due)]
                )
                asked = u[:, :3] if np.ndim(world.position) == 2 else u[0, :3]
                try:
                    drawn = as_array(world.random_place(asked)).reshape(len(rngs), -1)
                except NotImplementedError as error:
                    raise ValueError(str(error)) from error
                places[due] = drawn[due]
                steps_left = np.where(due, np.ceil(self.patience * u[:, 3]), steps_left)
            steps_left = steps_left - 1
            way = places - position
            heading = way / np.abs(way).max(1, keepdims=True).clip(min=1e-9)
            return (heading + noise[info.step]).clip(-1, 1).astype(np.float32)

        return FunctionActor(act)


class Mixture:
    """Each episode follows one behaviour, chosen with probability proportional to its weight.

    Args:
        weights: {behaviour: weight}, or pairs of them; weights >= 0, not all 0.
    """

    def __init__(self, weights: Mapping[Behaviour, float] | Iterable[tuple[Behaviour, float]]):
        pairs = list(weights.items() if isinstance(weights, Mapping) else weights)
        self.behaviours = [behaviour for behaviour, _ in pairs]
        total = np.array([weight for _, weight in pairs], float)
        if not pairs or not np.isfinite(total).all() or (total < 0).any() or total.sum() == 0:
            raise ValueError(
                f"a mixture expects weights >= 0 with a positive sum, got {total.tolist()}."
            )
        self.probabilities = total / total.sum()

    def start(self, length: int, action_dim: int, rngs: Sequence[np.random.Generator]) -> Actor:
        count = len(self.behaviours)
        choice = np.array([rng.choice(count, p=self.probabilities) for rng in rngs])
        # Each behaviour gets generators of its own, so that what it draws does not depend on who
        # else is started.
        children = [rng.spawn(count) for rng in rngs]
        # Started in all N envs, because an expert answers for all at once; kept where chosen.
        actors = {
            k: self.behaviours[k].start(length, action_dim, [child[k] for child in children])
            for k in np.unique(choice)
        }

        def act(o: Any, info: Moment) -> np.ndarray:
            actions = np.empty((len(rngs), action_dim), np.float32)
            for k, actor in actors.items():
                actions[choice == k] = actor.act(o, info)[choice == k]
            return actions

        return FunctionActor(act)

    def __repr__(self) -> str:
        parts = (f"{who!r}: {p:g}" for who, p in zip(self.behaviours, self.probabilities))
        return f"Mixture({{{', '.join(parts)}}})"


BEHAVIOURS: dict[str, type] = {
    "uniform": Uniform,
    "coloured": Coloured,
    "scripted": Scripted,
    "wandering": Wandering,
    "planner": Planned,
    "curiosity": Curious,
}


def behaviour_from_weights(weights: str | Mapping[str, float | Mapping[str, Any]]) -> Behaviour:
    """A behaviour from plain settings: a name of `BEHAVIOURS`, or weights such as {"scripted":
    0.75, "coloured": 0.25}.

    In place of a weight stands a dict to set arguments too, such as {"coloured": {"weight": 1,
    "beta": 1.0}}.

    Raises:
        ValueError: for an unknown name or argument, or weights that make no mixture.
    """
    pairs = []
    for name, value in ({weights: 1.0} if isinstance(weights, str) else weights).items():
        if name not in BEHAVIOURS:
            raise ValueError(
                f"there is no behaviour {name!r}; choose from {', '.join(BEHAVIOURS)}."
            )
        options = dict(value) if isinstance(value, Mapping) else {"weight": value}
        weight = options.pop("weight", 1.0)
        try:
            pairs.append((BEHAVIOURS[name](**options), weight))
        except TypeError as error:
            raise ValueError(f"behaviour {name} does not take {options}: {error}.") from error
    mixture = Mixture(pairs)
    return mixture.behaviours[0] if len(pairs) == 1 else mixture


def _world(info: Moment, offering: str) -> Any:
    """The environment itself, which must have such an attribute."""
    world = info.envs.unwrapped
    if not hasattr(world, offering):
        raise ValueError(f"{type(world).__name__} has no {offering}; choose another behaviour.")
    return world


def _white(
    scale: float, length: int, action_dim: int, rngs: Sequence[np.random.Generator]
) -> np.ndarray:
    """White noise (T, N, A)."""
    return np.stack([scale * rng.standard_normal((length, action_dim)) for rng in rngs], 1)


def _recorded(actions: Sequence[np.ndarray]) -> Actor:
    """Plays back N sequences (T, A)."""
    return RecordedActor(np.stack(actions).clip(-1, 1).astype(np.float32))
