"""A small decoder z -> image, trained on frozen latents and used for pictures only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gjwm._core.checkpoint import save_tensors
from gjwm._core.configured import Configured, load_weights, rebuild
from gjwm._core.files import replacing
from gjwm.models.world_model import FORMAT, load_payload


class ConvDecoder(Configured, nn.Module):
    """Linear layer to a coarse grid, then nearest upsampling and convolutions up to the image size.

    Args:
        latent_dim: D.
        image_shape: (C, h, w); h and w divisible by 8.
        channels: of the coarse grid.
    """

    def __init__(self, latent_dim: int, image_shape: Sequence[int], *, channels: int = 64):
        super().__init__()
        self.image_shape = tuple(image_shape)
        if len(self.image_shape) != 3 or any(side % 8 for side in self.image_shape[1:]):
            raise ValueError(
                f"ConvDecoder makes images (C, h, w) with sides divisible by 8, got "
                f"{self.image_shape}."
            )
        c, h, w = self.image_shape
        self.grid = (channels, h // 8, w // 8)
        self.stem = nn.Sequential(
            nn.Linear(latent_dim, 256), nn.SiLU(), nn.Linear(256, channels * h * w // 64)
        )
        self.net = nn.Sequential(
            nn.SiLU(),
            nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(channels // 2, channels // 2, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(channels // 2, c, 4, stride=2, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """(..., D) -> (..., C, h, w), about [0, 1]."""
        lead = z.shape[:-1]
        x = self.net(self.stem(z.reshape(-1, z.shape[-1])).view(-1, *self.grid))
        return (x + 0.5).reshape(*lead, *self.image_shape)

    @torch.inference_mode()
    def image(self, z: Tensor) -> Tensor:
        """(..., D) -> uint8 (..., C, h, w)."""
        return self(z).mul(255).clamp(0, 255).to(torch.uint8)


def save_decoder(decoder: ConvDecoder, path: Path) -> None:
    """Write a decoder's keyword arguments and weights, atomically."""
    with replacing(path) as partial:
        save_tensors(
            {"format": FORMAT, "config": decoder.config, "state": decoder.state_dict()}, partial
        )


def load_decoder(path: Path, device: str = "cpu") -> ConvDecoder:
    """The decoder written by `save_decoder`, in evaluation mode.

    Raises:
        FileNotFoundError, ValueError: when the file is missing, damaged or no decoder.
    """
    payload = load_payload(path, device)
    config, state = payload.get("config"), payload.get("state")
    if not isinstance(config, dict) or not isinstance(state, dict):
        raise ValueError(f"{path} holds no decoder; `gjwm train resume=true` makes one again.")
    decoder = rebuild({"class": "gjwm.models.decoder:ConvDecoder", "config": config}, path)
    load_weights(decoder, state, path)
    return decoder.to(device).eval()


def decoder_of(folder: str | Path, device: str = "cpu") -> ConvDecoder | None:
    """The run's decoder, which a run on state vectors or with decode.steps=0 does not have."""
    path = Path(folder) / "decoder.pt"
    return load_decoder(path, device) if path.is_file() else None
