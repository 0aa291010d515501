"""What all latent dynamics share: checks, and rollouts over a horizon, for many candidates and
particles at once, in one loop over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from gjwm._core.configured import Configured
from gjwm.models.dynamics.memory import make_memory
from gjwm.models.dynamics.prediction import Prediction
from gjwm.models.layers import activation_of, mlp

Past = tuple[Tensor, Tensor]  # latents (B, L, D) before z0 and the actions (B, L, A) taken there


class Dynamics(Configured, nn.Module):
    """Base of all dynamics p(z' | z, a).

    A subclass implements `_inputs` (what an action contributes, for all steps at once), `_step`
    (the mean) and `_law` (the distribution around it), and if needed what it learns from
    (`_spread_loss`, or all of `nll`). Without a memory, a `past` is accepted and changes nothing.
    """

    branches = False  # whether the law has several modes, which particles must not be moved off
    members = 1  # networks whose paths `EnsembleDynamics.rollout_members` tells apart

    def __init__(self, latent_dim: int, action_dim: int):
        super().__init__()
        if latent_dim < 1 or action_dim < 1:
            raise ValueError(
                f"expected latent_dim and action_dim >= 1, got {latent_dim} and {action_dim}."
            )
        self.latent_dim, self.action_dim = latent_dim, action_dim
        self.memory: nn.Module | None = None

    def _inputs(self, a: Tensor) -> Tensor:
        """(..., A) -> (..., F), all that an action contributes to the mean."""
        raise NotImplementedError

    def _step(self, z: Tensor, inputs: Tensor, context: Tensor | None) -> Tensor:
        """(..., D), (..., F), the memory's features -> the mean of the next latent (..., D)."""
        raise NotImplementedError

    def _law(self, mean: Tensor, z: Tensor, a: Tensor, context: Tensor | None) -> Prediction:
        """The distribution around the mean, or beside it."""
        raise NotImplementedError

    def _spread_loss(self, law: Any, z_next: Tensor) -> Tensor:
        """Of the law around the detached mean: nats per dimension."""
        return -law.log_prob(z_next).mean() / self.latent_dim

    def _count(self, residual: Tensor) -> None:
        """What a training batch's residuals (..., D) teach a law that counts them."""

    def _inside(self, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """z and a as `_step` wants them: an ensemble puts an axis of members first."""
        return z, a

    def _outside(self, law: Prediction) -> Prediction:
        """The law that `_law` said, without that axis."""
        return law

    def _merged(self, paths: Tensor, particles: int | None) -> Tensor:
        """A rollout's paths without that axis."""
        return paths

    def nll(self, z: Tensor, a: Tensor, z_next: Tensor) -> Tensor:
        """What the spread learns from: z, z_next (B, T, D) and a (B, T, A), all detached here ->
        scalar.
        """
        z_next = z_next.detach()
        z, a = self._inside(z.detach(), a)
        with torch.no_grad():
            context = self._sequence_context(z, a)
            mean = self._step(z, self._inputs(a), context)
            if self.training:
                self._count(z_next - mean)
        return self._spread_loss(self._law(mean, z, a, context), z_next)

    @property
    def has_memory(self) -> bool:
        """Whether the past of a latent changes its prediction."""
        return self.memory is not None

    def mean(self, z: Tensor, a: Tensor) -> Tensor:
        """E[z' | z, a]: (..., D), (..., A) -> (..., D)."""
        self._check(z, a)
        return self._step(z, self._inputs(a), self._context(z, a))

    def predict(self, z: Tensor, a: Tensor, past: Past | None = None) -> Prediction:
        """p(z' | z, a): (..., D), (..., A) -> Prediction of (..., D). With a past, z is (B, D) and
        a (B, A).
        """
        self._check(z, a)
        z, a = self._inside(z, a)
        context = self._context(z, a, past)
        return self._outside(self._law(self._step(z, self._inputs(a), context), z, a, context))

    def predict_sequence(self, z: Tensor, a: Tensor) -> Prediction:
        """One step ahead of each latent of trajectories, given all before it: z (B, T, D), a (B, T,
        A) -> Prediction (B, T, D)."""
        self._check(z, a)
        z, a = self._inside(z, a)
        context = self._sequence_context(z, a)
        return self._outside(self._law(self._step(z, self._inputs(a), context), z, a, context))

    def rollout(
        self,
        z0: Tensor,
        a: Tensor,
        particles: int | None = None,
        generator: Generator | None = None,
        *,
        past: Past | None = None,
    ) -> Tensor:
        """Open-loop rollout.

        Args:
            z0: start (B, D).
            a: actions (B, H, A); axes between B and H, such as candidates (B, N, H, A), share the
                start.
            particles: None follows the mean; P draws P samples per step.
            generator: draws the particles' noise.
            past: latents (B, L, D) and actions (B, L, A) before z0, for dynamics with a memory.

        Returns:
            (B, H+1, D), or (B, P, H+1, D) with particles; z0 comes first. Candidates keep their
            axis after B.

        Raises:
            ValueError: for other shapes or less than one particle.
        """
        self._check_rollout(z0, a, particles)
        lead, draw = a.shape[:-2], None
        if particles is not None:
            lead = (*lead, -(-particles // self.members))  # of each member
            a, draw = a.unsqueeze(-3), lambda law: law.sample(generator)
        z = z0.view(z0.shape[0], *[1] * (len(lead) - 1), z0.shape[1]).expand(*lead, -1)
        state = self._remember(past, z, lead)
        z, a = self._inside(z, a)
        return self._merged(torch.stack(self._path(z, a, state, draw), -2), particles)

    def forecast(
        self,
        z0: Tensor,
        a: Tensor,
        *,
        particles: int = 32,
        generator: Generator | None = None,
        past: Past | None = None,
    ) -> Prediction:
        """The law of z_1 .. z_H, each given only z0 and the actions: (B, D), (B, H, A) ->
        Prediction of (B, H, D).

        Here a diagonal Gaussian with the particles' mean and variance at each step (and the exact
        one-step law's at step 1)."""
        if particles < 2:
            raise ValueError(
                f"a forecast needs at least two particles to have a variance, got {particles}."
            )
        path = self.rollout(z0, a, particles, generator, past=past)[:, :, 1:]
        first = self.predict(z0, a[:, 0], past)
        mean = torch.cat([first.mean[:, None], path[:, :, 1:].mean(1)], 1)
        variance = torch.cat([first.variance[:, None], path[:, :, 1:].var(1)], 1)
        return Prediction(mean, variance.clamp(min=1e-12))

    def training_means(self, z: Tensor, a: Tensor) -> Tensor:
        """Predicted means of z[:, 1:] for the alignment, (2, ..., B, T, D): open loop over the
        window z (B, T+1, D), a (B, T, A), and one step from each latent.

        With a memory the first half of the window is read, not predicted open loop: a memory that
        has seen nothing would be trained to guess.
        """
        one_step, path = self.one_step_means(z, a), self.open_loop_means(z, a)
        read = a.shape[1] - path.shape[-2]
        return torch.stack([torch.cat([one_step[..., :read, :], path], -2), one_step])

    def one_step_means(self, z: Tensor, a: Tensor) -> Tensor:
        """E[z_{t+1} | z_t, a_t] of a window: z (B, T+1, D), a (B, T, A) -> (..., B, T, D)."""
        z, a = self._inside(z[:, :-1], a)
        return self._step(z, self._inputs(a), self._sequence_context(z, a))

    def open_loop_means(self, z: Tensor, a: Tensor) -> Tensor:
        """The mean path over a window, or with a memory over its second half: (..., B, T, D)."""
        read = a.shape[1] // 2 if self.has_memory else 0
        past = (z[:, :read], a[:, :read]) if read else None
        state = self._remember(past, z[:, 0], (z.shape[0],))
        z, a = self._inside(z[:, read], a[:, read:])
        return torch.stack(self._path(z, a, state)[1:], -2)

    def _build_mean(
        self,
        hidden: int,
        depth: int,
        activation: str,
        linear: Callable[..., nn.Module] = nn.Linear,
    ) -> None:
        """A residual MLP whose first layer takes the latent and the action apart."""
        name = type(self).__name__
        if depth < 1:
            raise ValueError(f"{name} needs at least one hidden layer, got depth={depth}.")
        self.from_latent = linear(self.latent_dim, hidden)
        self.from_action = linear(self.action_dim, hidden, bias=False)
        kind = activation_of(name, activation)
        layers = mlp([hidden] * depth + [self.latent_dim], kind, linear)
        self.body = nn.Sequential(kind(), layers)

    def _path(
        self,
        z: Tensor,
        a: Tensor,
        state: tuple[Tensor, ...] | None,
        draw: Callable[[Prediction], Tensor] | None = None,
    ) -> list[Tensor]:
        """z (..., D) and the H latents after it; a (..., H, A) broadcasts against z's leading axes.

        `draw` takes the next latent from each step's law; None follows the mean."""
        inputs = self._inputs(a)  # all steps at once: only the latent part is left in the loop
        path = [z]
        for h in range(a.shape[-2]):
            action = a[..., h, :]
            context = None
            if state is not None:
                feature, state = self.memory.read(
                    z.unsqueeze(-2), self._spread(action, z).unsqueeze(-2), state
                )
                context = feature.squeeze(-2)
            mean = self._step(z, inputs[..., h, :], context)
            if draw is not None:
                mean = draw(self._law(mean, z, self._spread(action, z), context))
            z = mean
            path.append(z)
        return path

    @staticmethod
    def _spread(a: Tensor, z: Tensor) -> Tensor:
        return a.expand(*z.shape[:-1], a.shape[-1])

    def _context(self, z: Tensor, a: Tensor, past: Past | None = None) -> Tensor | None:
        if self.memory is None:
            return None
        state = self._remember(past, z, z.shape[:-1])
        return self.memory.read(z.unsqueeze(-2), a.unsqueeze(-2), state)[0].squeeze(-2)

    def _sequence_context(self, z: Tensor, a: Tensor) -> Tensor | None:
        if self.memory is None:
            return None
        return self.memory.read(z, a, self.memory.start(z.shape[:-2], z))[0]

    def _remember(
        self, past: Past | None, z: Tensor, lead: tuple[int, ...]
    ) -> tuple[Tensor, ...] | None:
        """The memory's state after `past`, with the axes between B and the last shared."""
        if self.memory is None:
            return None
        state = self.memory.start((z.shape[0],) if past is not None else tuple(lead), z)
        if past is None:
            return state
        self._check(*past)
        _, state = self.memory.read(*past, state)
        between = len(lead) - 1
        return tuple(
            s.view(s.shape[0], *[1] * between, *s.shape[1:]).expand(*lead, *s.shape[1:])
            for s in state
        )

    def _check(self, z: Tensor, a: Tensor) -> None:
        if z.shape[-1] != self.latent_dim or a.shape[-1] != self.action_dim:
            raise ValueError(
                f"expected latents (..., {self.latent_dim}) and actions (..., {self.action_dim}), "
                f"got {tuple(z.shape)} and {tuple(a.shape)}."
            )

    def _check_rollout(self, z0: Tensor, a: Tensor, particles: int | None) -> None:
        self._check(z0, a)
        if a.dim() < 3 or z0.dim() != 2 or z0.shape[0] != a.shape[0]:
            raise ValueError(
                f"a rollout expects z0 (B, D) and actions (B, ..., H, A), got {tuple(z0.shape)} "
                f"and {tuple(a.shape)}."
            )
        if particles is not None and particles < 1:
            raise ValueError(f"a particle rollout needs at least one particle, got {particles}.")


class ResidualDynamics(Dynamics):
    """Mean z + f(z, a, memory): a residual MLP whose first layer takes the latent, the action and
    the memory apart.

    Args:
        latent_dim: D.
        action_dim: A.
        hidden, depth: width and number of hidden layers of the mean.
        backbone: "mlp" predicts from (z, a) alone; "gru" and "transformer" add a memory of the
            past.
        memory_width: features of the memory.
        window: steps that a transformer looks back, the present one included.
        activation: of the mean's hidden layers: "silu", or "relu", whose kinks follow those of
            contact (docs/experiments/2026-11-27-walls-shown-and-felt.md).
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        *,
        hidden: int = 256,
        depth: int = 2,
        backbone: str = "mlp",
        memory_width: int = 128,
        window: int = 8,
        activation: str = "silu",
    ):
        super().__init__(latent_dim, action_dim)
        self._build_mean(hidden, depth, activation)
        self.memory = make_memory(backbone, latent_dim, action_dim, memory_width, window)
        self.context_dim = 0 if self.memory is None else memory_width
        if self.memory is not None:
            self.from_memory = nn.Linear(memory_width, hidden, bias=False)

    def _inputs(self, a: Tensor) -> Tensor:
        return self.from_action(a)

    def _step(self, z: Tensor, inputs: Tensor, context: Tensor | None) -> Tensor:
        hidden = self.from_latent(z) + inputs
        if context is not None:
            hidden = hidden + self.from_memory(context)
        return z + self.body(hidden)

    @staticmethod
    def _joined(z: Tensor, a: Tensor, context: Tensor | None) -> Tensor:
        """What a law around the mean is computed from."""
        return torch.cat([z, a] if context is None else [z, a, context], -1)
