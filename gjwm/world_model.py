"""WorldModel: an encoder and latent dynamics that belong together, with one file format."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from gjwm.dynamics import Dynamics, Past, Prediction
from gjwm.objectives import JointEmbeddingObjective
from gjwm.types import Batch

FORMAT = 1  # of the checkpoint file


class WorldModel(nn.Module):
    """Encoder o -> z and dynamics p(z' | z, a).

    Args:
        encoder: module (..., *O) -> (..., D) with `latent_dim` and `config` (its keyword arguments).
        dynamics: see `gjwm.dynamics`.
    """

    def __init__(self, encoder: nn.Module, dynamics: Dynamics):
        super().__init__()
        if encoder.latent_dim != dynamics.latent_dim:
            raise ValueError(
                f"the encoder's latents have {encoder.latent_dim} dimensions and the dynamics expect "
                f"{dynamics.latent_dim}: set both to the same latent_dim."
            )
        self.encoder, self.dynamics = encoder, dynamics

    @property
    def latent_dim(self) -> int:
        return self.dynamics.latent_dim

    @property
    def action_dim(self) -> int:
        return self.dynamics.action_dim

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode(self, o: Tensor) -> Tensor:
        """(..., *O) -> (..., D)."""
        return self.encoder(o)

    def predict(self, z: Tensor, a: Tensor) -> Prediction:
        """(..., D), (..., A) -> Prediction of the next latent."""
        return self.dynamics.predict(z, a)

    def rollout(
        self, z0: Tensor, a: Tensor, particles: int | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Open-loop latents, see the dynamics' `rollout`: z0 (B, D), a (B, [N,] H, A) -> (B, [N,] [P,] H+1, D)."""
        return self.dynamics.rollout(z0, a, particles, generator)

    def loss(
        self,
        batch: Batch,
        objective: JointEmbeddingObjective,
        *,
        truncate: int | None = None,
        generator: Generator | None = None,
    ) -> dict[str, Tensor]:
        """Training losses of a batch of windows.

        The encoder and the predicted mean learn from the objective, on an open-loop rollout over the window and on one-step
        predictions, weighted alike. The spread learns as the dynamics' `nll` says, on detached latents.

        Args:
            truncate: steps that the gradient flows back through the open-loop rollout; None: the whole window.

        Returns:
            scalars: "loss" (to minimise), "alignment", "discrepancy", "one_step", "open_loop", "nll" (of the spread).
        """
        z = self.encode(batch.o)  # (B, T+1, D)
        z_next = z[:, 1:]
        z_hat = self.dynamics.training_means(z, batch.a, truncate)
        losses = objective(z_hat, z_next, z, clusters=batch.episode, generator=generator)
        losses["nll"] = self.dynamics.nll(z[:, :-1], batch.a, z_next)
        losses["loss"] = losses["loss"] + losses["nll"]  # disjoint parameters: no weight to choose between them
        with torch.no_grad():
            losses["open_loop"], losses["one_step"] = ((part - z_next).square().mean() for part in z_hat)
        return losses

    def save(self, path: str | Path, **extra: Any) -> None:
        """Write class names, keyword arguments and weights to `path`, atomically. `extra` holds plain data or tensors."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        payload = {
            "format": FORMAT,
            "encoder": _describe(self.encoder),
            "dynamics": _describe(self.dynamics),
            "state": self.state_dict(),
            "extra": extra,
        }
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb") as file:
            torch.save(payload, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    @staticmethod
    def load(path: str | Path, device: torch.device | str = "cpu") -> WorldModel:
        """Rebuild a saved model in evaluation mode. No code is unpickled.

        Raises:
            FileNotFoundError, ValueError: when the file is missing, damaged or not a world model.
        """
        payload = load_payload(path, device)
        model = WorldModel(_rebuild(payload["encoder"], path), _rebuild(payload["dynamics"], path))
        model.load_state_dict(payload["state"])
        return model.to(device).eval()


def load_payload(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The checkpoint's plain contents (tensors and built-in types only)."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; train one with `gjwm train`, or point to its folder.")
    try:
        payload = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file; all mean the same to the reader
        raise ValueError(
            f"{path} is not a readable gjwm checkpoint ({type(error).__name__}); train it again."
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        found = payload.get("format") if isinstance(payload, dict) else type(payload).__name__
        raise ValueError(f"{path} has checkpoint format {found!r}, this version reads {FORMAT}; train it again.")
    return payload


def _describe(module: nn.Module) -> dict[str, Any]:
    return {"class": f"{type(module).__module__}:{type(module).__qualname__}", "config": module.config}


def _rebuild(description: dict[str, Any], path: str | Path) -> nn.Module:
    module, _, name = description["class"].partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path} needs {description['class']}, which cannot be imported: {error}.") from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ValueError(f"{path} names {description['class']}, which is not a torch module.")
    return cls(**description["config"])
