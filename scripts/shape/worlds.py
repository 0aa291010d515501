"""Four small worlds whose states have different laws: a Gaussian, a box, a torus, and rooms that
differ from episode to episode.

A world is rules on states (..., X) without memory. Actions are (..., 2) in [-1, 1]. Episodes begin
at random and last `length` steps."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gjwm.envs import two_room_layout as layout

ACTIONS = 2


@dataclass(frozen=True)
class Protocol:
    """How plans are judged: goals `offset` steps ahead of a start, reached within `radius` at any
    of `budget` steps, by plans of `horizon` steps."""

    offset: int
    budget: int
    radius: float
    horizon: int
    length: int = 40  # of an episode


@functools.cache
def _random_map(inputs: int, outputs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of a fixed random two-layer map, the same for all seeds."""
    generator = torch.Generator().manual_seed(0)
    first = 1.5 * torch.randn(inputs, 64, generator=generator) / math.sqrt(inputs)
    shift = torch.randn(64, generator=generator)
    second = torch.randn(64, outputs, generator=generator) / math.sqrt(64)
    return first.to(device), shift.to(device), second.to(device)


def _noise(state: Tensor, generator: Generator) -> Tensor:
    """Normal numbers for states (..., G, X), the same for all that lead: what a model meets does
    not depend on which others are judged beside it."""
    return torch.randn(state.shape[-2:], generator=generator, device=state.device)


class World:
    """States (..., X), observations (..., O). `protocol` was set on seeds 0 to 3 with the arm
    "moments", aiming at 95% for the oracle and 40 to 80% for models."""

    name: str
    protocol: Protocol
    observed: int = 64  # O

    def begin(self, count: int, generator: Generator) -> Tensor:
        """-> states (count, X)."""
        raise NotImplementedError

    def step(self, state: Tensor, action: Tensor, generator: Generator | None = None) -> Tensor:
        """Without a generator nothing is random."""
        raise NotImplementedError

    def features(self, state: Tensor) -> Tensor:
        """What a random map shows, and what probes look for (..., F)."""
        return state

    def observe(self, state: Tensor) -> Tensor:
        """A fixed random nonlinear map of the features -> (..., O)."""
        x = self.features(state)
        first, shift, second = _random_map(x.shape[-1], self.observed, x.device)
        return torch.tanh(torch.tanh(x @ first + shift) @ second * 2)

    def distance(self, state: Tensor, goal: Tensor) -> Tensor:
        """What success is measured on."""
        raise NotImplementedError

    def way(self, state: Tensor, goal: Tensor) -> Tensor:
        """What the oracle makes small: the distance past all walls."""
        return self.distance(state, goal)

    def behave(self, state: Tensor, last: Tensor, generator: Generator) -> Tensor:
        """Coloured noise: the next of correlated actions."""
        fresh = torch.randn(last.shape, generator=generator, device=last.device)
        return (0.7 * last + 0.5 * fresh).clamp(-1, 1)

    def episodes(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """-> states (count, T + 1, X), actions (count, T, 2)."""
        state = self.begin(count, generator)
        action = torch.zeros(count, ACTIONS, device=state.device)
        states, actions = [state], []
        for _ in range(self.protocol.length):
            action = self.behave(state, action, generator)
            state = self.step(state, action, generator)
            states.append(state)
            actions.append(action)
        return torch.stack(states, 1), torch.stack(actions, 1)

    def goals(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Starts and goals of episodes of their own -> (count, X) twice. Pairs nearer than two
        radii are dropped, so that holding still reaches none."""
        starts, goals = [], []
        while sum(map(len, starts)) < count:
            states, _ = self.episodes(4 * count, generator)
            start, goal = states[:, 4], states[:, 4 + self.protocol.offset]
            apart = self.distance(start, goal) > 2 * self.protocol.radius
            starts.append(start[apart])
            goals.append(goal[apart])
        return torch.cat(starts)[:count], torch.cat(goals)[:count]


class LinearGaussian(World):
    """Two coordinates that drift back to 0, pushed through damped velocities, with Gaussian noise:
    every state and every pair of states is jointly Gaussian (up to the clipping of actions), so a
    Gaussian latent is right."""

    name = "gaussian"
    protocol = Protocol(offset=10, budget=20, radius=0.2, horizon=6)

    def _matrices(self, like: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.tensor([[0.98, 0, 0.2, 0], [0, 0.98, 0, 0.2], [0, 0, 0.8, 0], [0, 0, 0, 0.8]])
        b = torch.tensor([[0.0, 0], [0, 0], [0.5, 0], [0, 0.5]])
        return a.to(like), b.to(like)

    def begin(self, count: int, generator: Generator) -> Tensor:
        device = generator.device
        state = torch.zeros(count, 4, device=device)
        action = torch.zeros(count, ACTIONS, device=device)
        for _ in range(60):  # to the stationary law
            action = self.behave(state, action, generator)
            state = self.step(state, action, generator)
        return state

    def step(self, state: Tensor, action: Tensor, generator: Generator | None = None) -> Tensor:
        a, b = self._matrices(state)
        after = state @ a.T + action @ b.T
        if generator is not None:
            after = after + 0.03 * _noise(after, generator)
        return after

    def distance(self, state: Tensor, goal: Tensor) -> Tensor:
        return (state[..., :2] - goal[..., :2]).norm(dim=-1)


class Torus(World):
    """Two angles, turned by the actions: a law without edges that no Gaussian is a smooth image
    of."""

    name = "torus"
    protocol = Protocol(offset=10, budget=20, radius=0.05, horizon=4)

    def begin(self, count: int, generator: Generator) -> Tensor:
        return 2 * math.pi * torch.rand(count, 2, generator=generator, device=generator.device)

    def step(self, state: Tensor, action: Tensor, generator: Generator | None = None) -> Tensor:
        after = state + 0.25 * action
        if generator is not None:
            after = after + 0.02 * _noise(after, generator)
        return torch.remainder(after, 2 * math.pi)

    def features(self, state: Tensor) -> Tensor:
        return torch.cat([state.cos(), state.sin()], -1)

    def distance(self, state: Tensor, goal: Tensor) -> Tensor:
        apart = torch.remainder(state - goal + math.pi, 2 * math.pi) - math.pi
        return apart.norm(dim=-1)


class Rooms(World):
    """Two rooms and a door from pictures of 16 x 16 (`gjwm/two-room-v0`): a box with a wall.
    State: x, y, wall_x, door_y."""

    name = "box"
    protocol = Protocol(offset=16, budget=40, radius=0.08, horizon=16)
    observed = 16 * 16 * 3
    random = False

    def begin(self, count: int, generator: Generator) -> Tensor:
        u = torch.rand(count, layout.EPISODE_DRAWS, generator=generator, device=generator.device)
        self._aim: Tensor | None = None
        fixed = None if self.random else 0.5
        position, _, wall_x, door_y = layout.draw_episode(
            u, wall=fixed, door=fixed, other_room=False, separation=0.1
        )
        return torch.cat([position, wall_x[:, None], door_y[:, None]], -1)

    def step(self, state: Tensor, action: Tensor, generator: Generator | None = None) -> Tensor:
        x, y, wall_x, door_y = state.unbind(-1)
        dx, dy = (layout.SPEED * action).unbind(-1)
        x, y = layout.sweep(x, y, dx, dy, layout.doorway(wall_x, door_y), None)
        return torch.stack([x, y, wall_x, door_y], -1)

    def features(self, state: Tensor) -> Tensor:
        return state[..., :2]

    def observe(self, state: Tensor) -> Tensor:
        flat = state.reshape(-1, 4)
        pictures = []
        for part in flat.split(1 << 16):
            background = layout.background(part[:, 2], part[:, 3], 16, None, None)
            pictures.append(layout.paint(background[:, None], part[:, None, :2]).flatten(1))
        return torch.cat(pictures).reshape(*state.shape[:-1], -1)

    def distance(self, state: Tensor, goal: Tensor) -> Tensor:
        return (state[..., :2] - goal[..., :2]).norm(dim=-1)

    def way(self, state: Tensor, goal: Tensor) -> Tensor:
        return layout.way_length(state[..., :2], goal[..., :2], state[..., 2], state[..., 3], None)

    def behave(self, state: Tensor, last: Tensor, generator: Generator) -> Tensor:
        """Half of the episodes walk to random places, the others as everywhere."""
        noise = super().behave(state, last, generator)
        if self._aim is None:
            self._aim = state[:, :2]
        u = torch.rand(len(state), 4, generator=generator, device=state.device)
        place = layout.random_place(state[:, :2], state[:, 2], state[:, 3], u[:, :3])
        there = (self._aim - state[:, :2]).norm(dim=-1) < 0.05
        fresh = there | (u[:, 3] < 0.02)
        self._aim = torch.where(fresh[:, None], place, self._aim)
        walk = layout.expert_action(state[:, :2], self._aim, state[:, 2], state[:, 3], None)
        walk = (
            walk + 0.3 * torch.randn(walk.shape, generator=generator, device=walk.device)
        ).clamp(-1, 1)
        half = torch.arange(len(state), device=state.device) % 2 == 0
        return torch.where(half[:, None], walk, noise)


class RandomWalls(Rooms):
    """The same with wall and door drawn for every episode: a law that no episode shows whole."""

    name = "random-walls"
    random = True


WORLDS = {world.name: world for world in (LinearGaussian(), Rooms(), Torus(), RandomWalls())}
