"""What all latent dynamics share: checks, rollouts and the pieces of the training loss.

A subclass says how one step's mean and law are computed; this module runs them over a horizon, for
many candidates and particles at once, in one loop over time."""

from __future__ import annotations

from collections.abc import Callable

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
    (the mean) and `_law` (the distribution around it), and `nll`. Without a memory, a `past` is
    accepted and changes nothing."""

    branches = False  # whether the law has several modes, which particles must not be moved off
    static_dim = 0  # how many of the last latents stay as they are, see `StaticLatents`
    members = 1  # networks whose paths `EnsembleDynamics.rollout_members` tells apart

    def __init__(self, latent_dim: int, action_dim: int):
        super().__init__()
        if latent_dim < 1 or action_dim < 1:
            raise ValueError(
                f"expected latent_dim and action_dim >= 1, got {latent_dim} and {action_dim}."
            )
        self.latent_dim, self.action_dim = latent_dim, action_dim
        self.memory: nn.Module | None = None

    # -- what a subclass says ----------------------------------------------------------------------

    def _inputs(self, a: Tensor) -> Tensor:
        """(..., A) -> (..., F), all that an action contributes to the mean."""
        raise NotImplementedError

    def _step(self, z: Tensor, inputs: Tensor, context: Tensor | None) -> Tensor:
        """(..., D), (..., F), the memory's features -> the mean of the next latent (..., D)."""
        raise NotImplementedError

    def _law(self, mean: Tensor, z: Tensor, a: Tensor, context: Tensor | None) -> Prediction:
        """The distribution around the mean, or beside it."""
        raise NotImplementedError

    def nll(self, z: Tensor, a: Tensor, z_next: Tensor) -> Tensor:
        """What the spread learns from: z, z_next (B, T, D) and a (B, T, A), all detached here ->
        scalar.
        """
        raise NotImplementedError

    # -- predictions -------------------------------------------------------------------------------

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
        context = self._context(z, a, past)
        return self._law(self._step(z, self._inputs(a), context), z, a, context)

    def predict_sequence(self, z: Tensor, a: Tensor) -> Prediction:
        """One step ahead of each latent of trajectories, given all before it: z (B, T, D), a (B, T,
        A) -> Prediction (B, T, D)."""
        self._check(z, a)
        context = self._sequence_context(z, a)
        return self._law(self._step(z, self._inputs(a), context), z, a, context)

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
        if particles is not None:
            a = a.unsqueeze(-3)
        lead = a.shape[:-2] if particles is None else (*a.shape[:-3], particles)
        z = z0.view(z0.shape[0], *[1] * (len(lead) - 1), z0.shape[1]).expand(*lead, -1)
        draw = None if particles is None else lambda law: law.sample(generator)
        return torch.stack(self._path(z, a, self._remember(past, z, lead), draw), -2)

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
        return self._step(z[:, :-1], self._inputs(a), self._sequence_context(z[:, :-1], a))

    def open_loop_means(self, z: Tensor, a: Tensor) -> Tensor:
        """The mean path over a window, or with a memory over its second half: (..., B, T, D)."""
        read = a.shape[1] // 2 if self.has_memory else 0
        past = (z[:, :read], a[:, :read]) if read else None
        state = self._remember(past, z[:, 0], (z.shape[0],))
        return torch.stack(self._path(z[:, read], a[:, read:], state)[1:], -2)

    # -- shared machinery --------------------------------------------------------------------------

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
        return (
            None
            if self.memory is None
            else self.memory.read(z, a, self.memory.start(z.shape[:-2], z))[0]
        )

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
        activation: of the mean's hidden layers. "silu", or "relu", whose kinks follow those of
            contact: where a step ends at a wall, the mean bends as sharply
            (docs/experiments/2026-11-27-walls-shown-and-felt.md).
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
        if depth < 1:
            raise ValueError(
                f"{type(self).__name__} needs at least one hidden layer, got depth={depth}."
            )
        self.from_latent = nn.Linear(latent_dim, hidden)
        self.from_action = nn.Linear(action_dim, hidden, bias=False)
        kind = activation_of(type(self).__name__, activation)
        self.body = nn.Sequential(kind(), mlp([hidden] * depth + [latent_dim], kind))
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

    def _spread_inputs(self, z: Tensor, a: Tensor, context: Tensor | None) -> Tensor:
        """What the spread is computed from, cut from the graph."""
        parts = [z, a] if context is None else [z, a, context]
        return torch.cat(parts, -1).detach()

    def _residual(
        self, z: Tensor, a: Tensor, z_next: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Mean, memory features and z_next - mean of a window, without a graph."""
        with torch.no_grad():
            context = self._sequence_context(z, a)
            mean = self._step(z, self._inputs(a), context)
            return mean, context, z_next - mean
