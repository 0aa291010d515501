"""WorldModel: an encoder and latent dynamics that belong together, with one file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn

from gjwm._core.checkpoint import load_tensors, save_tensors
from gjwm._core.configured import describe, load_weights, rebuild
from gjwm._core.files import replacing
from gjwm._core.machine import check_device
from gjwm._core.types import Batch
from gjwm.models.calibration import Calibration, fit_calibration
from gjwm.models.dynamics import Dynamics, Past, Prediction
from gjwm.models.export import write_programs
from gjwm.models.reach import Reach
from gjwm.objectives import JointEmbeddingObjective
from gjwm.objectives.losses import weighted_sum

FORMAT = 2  # of the checkpoint file; encoders of pictures know a mean picture


class Surprise(NamedTuple):
    """How unexpected steps are, see `WorldModel.surprise`."""

    score: Tensor  # (B, T) nats per dimension
    p_value: Tensor  # (B, T)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model comes from, in plain data: enough to collect more of the same, and to judge it.

    Args:
        env_id, env_kwargs: of `gymnasium.make`; an env_id of None is data of unknown origin.
        behaviour: who acted, as name -> weight or {"weight": ..., argument: ...}.
        length: steps of the episodes.
        recipe: the training's settings.
    """

    env_id: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    behaviour: dict[str, Any] | None = None
    length: int | None = None
    recipe: dict[str, Any] = field(default_factory=dict)


class WorldModel(nn.Module):
    """Encoder o -> z and dynamics p(z' | z, a).

    Args:
        encoder: module (..., *O) -> (..., D) with `latent_dim`; `Configured`, as all parts, for a
            model that is saved.
        dynamics: see `gjwm.models.dynamics`.
        heads: what else is read from latents, by name, such as {"reward": RewardHead(...)}; see
            `gjwm.models.heads`.

    `calibration` is None until `calibrate` has seen held-out episodes; then predictions, forecasts
    and particles have its factors, and predictions and forecasts its tails. `reach` is None, or
    fitted to the latents: how far states lie apart. `origin` says where the model comes from.
    `decoder` draws latents where there is one; `save` leaves it out, `save_pretrained` does not.
    """

    decoder: nn.Module | None = None

    def __init__(
        self, encoder: nn.Module, dynamics: Dynamics, heads: Mapping[str, nn.Module] | None = None
    ):
        super().__init__()
        if encoder.latent_dim != dynamics.latent_dim:
            raise ValueError(
                f"the encoder's latents have {encoder.latent_dim} dimensions and the dynamics "
                f"expect {dynamics.latent_dim}: set both to the same latent_dim."
            )
        self.encoder, self.dynamics = encoder, dynamics
        self.heads = nn.ModuleDict(heads or {})
        self.calibration: Calibration | None = None
        self.reach: Reach | None = None
        self.origin: Origin | None = None

    def attach_decoder(self, decoder: nn.Module | None) -> None:
        """Keep a decoder at hand, outside of the model's weights."""
        self.__dict__["decoder"] = decoder

    @property
    def latent_dim(self) -> int:
        return self.dynamics.latent_dim

    @property
    def action_dim(self) -> int:
        return self.dynamics.action_dim

    @property
    def members(self) -> int:
        return self.dynamics.members

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode(self, o: Tensor | np.ndarray) -> Tensor:
        """(..., *O), an environment's array too -> (..., D).

        Raises:
            ValueError: for observations of another shape.
        """
        if not isinstance(o, Tensor):
            o = torch.as_tensor(o, device=self.device)
        return self.encoder(o)

    def predict(self, z: Tensor, a: Tensor, past: Past | None = None) -> Prediction:
        """(..., D), (..., A) -> law of the next latent."""
        return self._corrected(self.dynamics.predict(z, a, past))

    def predict_sequence(self, z: Tensor, a: Tensor) -> Prediction:
        """One step ahead of each latent of trajectories: z (B, T, D), a (B, T, A) -> law of (B, T,
        D).
        """
        return self._corrected(self.dynamics.predict_sequence(z, a))

    def forecast(
        self,
        z0: Tensor,
        a: Tensor,
        *,
        particles: int = 32,
        generator: Generator | None = None,
        past: Past | None = None,
    ) -> Prediction:
        """The law of the next H latents, each given only z0 and the actions: (B, D), (B, H, A) ->
        law of (B, H, D).
        """
        law = self.dynamics.forecast(z0, a, particles=particles, generator=generator, past=past)
        return law if self.calibration is None else self.calibration.correct(law, a.shape[1])

    def rollout(
        self,
        z0: Tensor,
        a: Tensor,
        particles: int | None = None,
        generator: Generator | None = None,
        *,
        past: Past | None = None,
    ) -> Tensor:
        """Open-loop latents, see the dynamics' `rollout`: z0 (B, D), a (B, [N,] H, A) -> (B, [N,]
        [P,] H+1, D).

        A calibrated model scales its particles about their mean by the horizon's factor, but not
        those of a mixture: between its branches there may be nothing.
        """
        path = self.dynamics.rollout(z0, a, particles, generator, past=past)
        if particles is None or self.calibration is None or self.dynamics.branches:
            return path
        centre = path.mean(-3, keepdim=True)
        factors = torch.cat([path.new_ones(1, 1), self.calibration.factors(a.shape[-2])])
        return centre + factors * (path - centre)

    def _corrected(self, law: Prediction) -> Prediction:
        return law if self.calibration is None else self.calibration.correct(law)

    def surprise(self, o: Tensor, a: Tensor) -> Surprise:
        """How unexpected each step of some trajectories is.

        Args:
            o: observations (B, T+1, *O).
            a: actions (B, T, A).

        Returns:
            score (B, T): -log p(z_{t+1} | z_t, a_t) / D in nats; p_value (B, T): uniform on
            ordinary steps, from the held-out scores, or without a calibration from the chi-squared
            law of the Mahalanobis distance.
        """
        z = self.encode(o)
        law = self.predict_sequence(z[:, :-1], a)
        score = -law.log_prob(z[:, 1:]) / self.latent_dim
        if self.calibration is not None:
            return Surprise(score, self.calibration.p_value(score))
        half = torch.tensor(self.latent_dim / 2, device=z.device)
        return Surprise(score, torch.special.gammaincc(half, law.mahalanobis(z[:, 1:]) / 2))

    def calibrate(
        self,
        z: Tensor,
        a: Tensor,
        *,
        horizon: int = 12,
        particles: int = 64,
        generator: Generator | None = None,
    ) -> Calibration:
        """Fit and keep one factor per horizon, one weight of tails, and the scores of ordinary
        steps, on held-out episodes.

        Args:
            z, a: latents (E, T+1, D) and actions (E, T, A) of episodes that training never saw.
            horizon: factors are fitted for 1..horizon steps.
            particles, generator: of the forecasts.

        Raises:
            ValueError: for NaN, or no episodes; the calibration is then the one before.
        """
        # Of the dynamics, whose laws no earlier calibration has changed.
        calibration = fit_calibration(
            self.dynamics, z, a, horizon=horizon, particles=particles, generator=generator
        )
        self.calibration = calibration.to(z.device)
        return self.calibration

    def loss(
        self,
        batch: Batch,
        objective: JointEmbeddingObjective,
        *,
        generator: Generator | None = None,
    ) -> dict[str, Tensor]:
        """Training losses of a batch of windows.

        The encoder and the predicted mean learn from the objective, on open-loop and one-step
        predictions alike; the spread from the dynamics' `nll`, on detached latents.

        Returns:
            scalars: "loss" (to minimise), the objective's, "one_step", "open_loop", "nll" (of the
                spread), and one per head.
        """
        z = self.encode(batch.o)  # (B, T+1, D)
        z_next = z[:, 1:]
        z_hat = self.dynamics.training_means(z, batch.a)
        losses = objective(z_hat, z_next, z, clusters=batch.episode, generator=generator)
        losses["nll"] = self.dynamics.nll(z[:, :-1], batch.a, z_next)
        # The spread and the heads have parameters of their own: no weight to choose between them.
        weights = {**objective.weights, "nll": 1.0, **dict.fromkeys(self.heads, 1.0)}
        for name, head in self.heads.items():
            if not hasattr(head, "loss"):
                raise ValueError(
                    f"the head {name!r} learns by temporal differences and not from single "
                    "windows: use `gjwm online`, or gjwm.rl.RewardLearner."
                )
            losses[name] = head.loss(z.detach(), batch)
        losses["loss"] = weighted_sum(losses, weights)
        with torch.no_grad():
            losses["open_loop"], losses["one_step"] = (
                (part - z_next).square().mean() for part in z_hat
            )
        return losses

    def describe(self) -> dict[str, Any]:
        """All of a model but its weights, as plain data: each part's class and arguments, and the
        origin.

        Raises:
            ValueError: for a part that is not `Configured`.
        """
        return {
            "encoder": describe(self.encoder),
            "dynamics": describe(self.dynamics),
            "heads": {name: describe(head) for name, head in self.heads.items()},
            "reach": None if self.reach is None else describe(self.reach),
            "origin": None if self.origin is None else asdict(self.origin),
        }

    @staticmethod
    def from_description(
        description: Mapping[str, Any], weights: Mapping[str, Tensor], source: object
    ) -> WorldModel:
        """The model that `describe` described, with its `state_dict`, in evaluation mode; `source`
        is named in errors.

        Raises:
            ValueError: when the two do not make a model.
        """
        try:
            heads = {name: rebuild(head, source) for name, head in description["heads"].items()}
            encoder: Any = rebuild(description["encoder"], source)
            dynamics: Any = rebuild(description["dynamics"], source)
            fitted = None
            if "calibration.scores" in weights:
                fitted = [weights[f"calibration.{x}"] for x in ("temperature", "scores", "tail")]
            try:
                model = WorldModel(encoder, dynamics, heads)
                model.calibration = None if fitted is None else Calibration(*fitted)
            except ValueError as error:
                raise ValueError(f"{source} holds parts that do not fit: {error}") from error
            reach: Any = description.get("reach")  # older files have none
            reach = None if reach is None else rebuild(reach, source)
            model.reach = reach
            if model.reach is not None and model.reach.latent_dim != model.latent_dim:
                raise ValueError(
                    f"{source} has a reach of {model.reach.latent_dim} latent dimensions and a "
                    f"model of {model.latent_dim}; train it again."
                )
            load_weights(model, weights, source)
            origin = description.get("origin")  # older files have none
            model.origin = None if origin is None else Origin(**origin)
        except (AttributeError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"{source} holds a model whose contents do not fit ({type(error).__name__}: "
                f"{error}); train it again."
            ) from error
        return model.eval()

    def save(self, path: str | Path, **extra: Any) -> None:
        """Write class names, keyword arguments and weights to `path`, atomically. `extra` holds
        plain data or tensors.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        description = self.describe()
        payload = {"format": FORMAT, **description, "state": self.state_dict(), "extra": extra}
        with replacing(path) as partial:
            save_tensors(payload, partial)

    def export(self, folder: str | Path) -> None:
        """Write programs for any number of rows B, which torch runs without this package, on the
        model's device: `torch.export.load(folder / "encoder.pt2").module()`.

        encoder.pt2: observations (B, *O), pictures as uint8, else float32 -> latents (B, D).
        dynamics.pt2: latents (B, D), actions (B, A) -> E[z' | z, a] (B, D). Called step by step it
        is the model's mean rollout; with an ensemble the members are averaged at each step, where a
        rollout follows each on its own.
        reach.pt2: `Reach.distance` of latents (B, D) and goals (B, D) -> (B,), for a model that has
        one.

        Raises:
            ValueError: in training mode, and for dynamics with a memory.
        """
        write_programs(self, folder)

    @staticmethod
    def load(path: str | Path, device: torch.device | str = "cpu") -> WorldModel:
        """Rebuild a saved model in evaluation mode, from its file or its run's folder. No code is
        unpickled.

        Raises:
            FileNotFoundError, ValueError: when the file is missing, damaged or not a world model.
        """
        path = Path(path)
        path = path / "checkpoint.pt" if path.is_dir() else path
        payload = load_payload(path, device)
        state = payload.get("state")
        if not isinstance(state, dict):
            raise ValueError(f"{path} is a gjwm checkpoint without weights; train it again.")
        return WorldModel.from_description(payload, state, path).to(device)

    def save_pretrained(
        self, folder: str | Path, *, evaluation: Mapping[str, Any] | str | Path | None = None
    ) -> Path:
        """Write the model for others: `model.safetensors`, `config.json` and a model card,
        `README.md`, its decoder included. Needs the extra `hub`.

        Args:
            folder: made if missing; a model that is there is replaced.
            evaluation: the report of `gjwm.evaluate`, or its file, evaluation.json: what the card
                says of the model's success.

        Raises:
            ValueError: for weights that are NaN or infinite, a part that is not `Configured`, or a
                folder with a README.md or a config.json of something else.
        """
        from gjwm.models.sharing import save_pretrained

        return save_pretrained(self, folder, evaluation)

    @staticmethod
    def from_pretrained(source: str | Path, device: torch.device | str = "cpu") -> WorldModel:
        """A model that `save_pretrained` or `push_to_hub` wrote, or that ships with gjwm, in
        evaluation mode. No code is loaded, and nothing is imported; a part of a class of your own
        must be imported before.

        Args:
            source: a folder; else the name of a model that ships, such as "two-room"; neither needs
                a network. Or "user/name" on the hub.

        Raises:
            FileNotFoundError, ValueError: when it is missing, damaged or not a world model.
            OSError: when the hub does not give it.
        """
        from gjwm.models.sharing import from_pretrained

        return from_pretrained(source, device)

    def push_to_hub(
        self,
        repo: str,
        *,
        evaluation: Mapping[str, Any] | str | Path | None = None,
        private: bool = False,
    ) -> str:
        """Upload what `save_pretrained` writes and return its address. Needs the extra `hub`, and
        that you are logged in there.

        Args:
            repo: "user/name"; made if missing.
            evaluation: see `save_pretrained`.
            private: whether others are kept from seeing it.

        Raises:
            ValueError: as `save_pretrained`, or for a repo that is public and should be private.
            OSError: when the hub refuses, or cannot be reached.
        """
        from gjwm.models.sharing import push_to_hub

        return push_to_hub(self, repo, evaluation, private)


def load_payload(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The checkpoint's plain contents (tensors and built-in types only)."""
    check_device(device)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}; train one with `gjwm train`, or point to its folder."
        )
    try:
        payload = load_tensors(path, device)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(
            f"{path} is not a readable gjwm checkpoint ({type(error).__name__}); train it again."
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        found = payload.get("format") if isinstance(payload, dict) else type(payload).__name__
        raise ValueError(
            f"{path} has checkpoint format {found!r}, this version reads {FORMAT}; train it again."
        )
    return payload
