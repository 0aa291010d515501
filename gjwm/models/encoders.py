"""Encoders o -> z. All take (..., *O) with any leading axes and return (..., D).

The output is batch-normalised without learned scale by default. Epps-Pulley's gradient vanishes at
full collapse, and an encoder that starts with small outputs sits on that plateau for hundreds of
steps; unit variance from the first step avoids it, and leaves the shape and the rank of the
distribution to the objective."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from gjwm._core import distributed
from gjwm._core.configured import Configured
from gjwm.models.layers import BatchNorm, mlp


def _output_norm(kind: str, latent_dim: int) -> nn.Module:
    if kind == "batch":
        # Features of mostly static images vary by 1e-3 at first: the default eps of 1e-5 would
        # leave them on the plateau.
        return BatchNorm(latent_dim, eps=1e-8, affine=False)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"an encoder's output_norm must be 'batch' or 'none', got {kind!r}.")


class Encoder(Configured, nn.Module):
    """Base of all encoders: folds leading axes, checks the observation's shape, normalises the
    output.

    A subclass implements `features(o)`: (N, *O) float -> (N, D).
    """

    def __init__(self, observation_shape: Sequence[int], latent_dim: int, output_norm: str):
        super().__init__()
        self.observation_shape, self.latent_dim = tuple(observation_shape), latent_dim
        self.output_norm = _output_norm(output_norm, latent_dim)

    def features(self, o: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, o: Tensor) -> Tensor:
        """(..., *O) uint8 or float -> (..., D) float32.

        Raises:
            ValueError: when the trailing axes are not the observation shape this encoder was built
                for.
        """
        axes = len(self.observation_shape)
        if o.dim() < axes or tuple(o.shape[o.dim() - axes :]) != self.observation_shape:
            raise ValueError(
                "this encoder was built for observations (..., "
                f"{', '.join(map(str, self.observation_shape))}), got {tuple(o.shape)}."
            )
        lead = o.shape[: o.dim() - axes]
        z = self.features(o.reshape(-1, *self.observation_shape))
        return self.output_norm(z.float()).reshape(*lead, self.latent_dim)


class MLPEncoder(Encoder):
    """State vectors: an MLP on the flattened observation, standardised by a BatchNorm.

    Args:
        observation_shape: *O, flattened inside.
        latent_dim: D.
        hidden: width and number of the hidden layers.
        output_norm: "batch" or "none".
        symlog: read sign(x) log(1 + |x|) of each number (DreamerV3, Hafner et al., 2023). A joint
            that winds up under aimless actions, or a rare high speed, then does not squeeze all
            ordinary values together in the standardisation.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        hidden: Sequence[int] = (256, 256),
        output_norm: str = "batch",
        symlog: bool = False,
    ):
        super().__init__(observation_shape, latent_dim, output_norm)
        self.symlog = symlog
        inputs = math.prod(observation_shape)
        self.net = nn.Sequential(BatchNorm(inputs), mlp([inputs, *hidden, latent_dim]))

    def features(self, o: Tensor) -> Tensor:
        o = rearrange(o, "n ... -> n (...)").float()
        return self.net(o.sign() * o.abs().log1p() if self.symlog else o)


class ConvEncoder(Encoder):
    """Images: a patchifying convolution, stride-2 convolutions, one hidden linear layer.

    A 4x4 stride-4 stem reads each pixel once, which keeps 64x64 images cheap on a CPU.

    The mean picture of the first batch that it learns from is taken off all pictures. What never
    changes, most of most pictures, would otherwise be most of what the output layer adds up: each
    small step of its weights then shifts all outputs together by as much as they differ, faster
    than the output's running statistics follow, and the encoder in evaluation mode is not the one
    that was trained.

    Args:
        observation_shape: (C, h, w) with C = 3 * frame_stack; h and w divisible by patch.
        latent_dim: D.
        channels: of the stem and of each following stride-2 convolution.
        patch: stem kernel and stride, in pixels.
        hidden: width of the linear layer before the output.
        output_norm: "batch" or "none".
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        latent_dim: int = 32,
        *,
        channels: Sequence[int] = (32, 64, 64),
        patch: int = 4,
        hidden: int = 256,
        output_norm: str = "batch",
    ):
        super().__init__(observation_shape, latent_dim, output_norm)
        if len(self.observation_shape) != 3 or any(
            side % patch for side in self.observation_shape[1:]
        ):
            raise ValueError(
                f"ConvEncoder expects images (C, h, w) whose sides are multiples of patch={patch}, "
                f"got {self.observation_shape}."
            )
        layers: list[nn.Module] = [
            nn.Conv2d(self.observation_shape[0], channels[0], patch, stride=patch),
            nn.ReLU(),
        ]
        for inputs, outputs in itertools.pairwise(channels):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
        self.register_buffer("mean", torch.full(self.observation_shape, 127.5))
        self.register_buffer("centred", torch.tensor(False))  # whether `mean` is that of a batch
        # Channels-last convolutions with so few channels are about twice as fast on a CPU.
        self.conv = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        with torch.no_grad():
            size = self.conv(torch.zeros(1, *self.observation_shape)).numel()
        self.head = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, latent_dim))

    def features(self, o: Tensor) -> Tensor:
        if o.dtype != torch.uint8:
            raise ValueError(
                f"this model reads pictures of uint8 in 0..255, got {o.dtype}: convert them first."
            )
        x = o.to(torch.float32, memory_format=torch.channels_last)
        if self.training and not self.centred:
            with torch.no_grad():
                self.mean.copy_(distributed.mean_with_gradient(x.mean(0)))
                self.centred.fill_(True)
        x = x.sub_(self.mean).div_(255)
        return self.head(rearrange(self.conv(x), "n c h w -> n (c h w)"))
