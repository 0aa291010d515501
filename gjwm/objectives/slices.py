"""Random directions on the unit sphere, on which multivariate laws are compared one dimension at a
time.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from gjwm._core import draws

SLICES = ("gaussian", "orthogonal")


def random_directions(
    dim: int, count: int, generator: Generator | None, *, like: Tensor, slices: str = "gaussian"
) -> Tensor:
    """`count` directions, each uniform on the unit sphere of R^dim, as the columns of a (dim,
    count) matrix.

    Args:
        generator: drawn on its own device, then moved to that of `like`.
        slices: "gaussian": independent; "orthogonal": in blocks of `dim` mutually orthogonal ones,
            which cover all of space evenly and so vary less from draw to draw.
    """
    if slices == "gaussian":
        directions = draws.normal((dim, count), generator, device=like.device, dtype=like.dtype)
        return directions / directions.norm(dim=0, keepdim=True)
    blocks = -(-count // dim)
    q, r = torch.linalg.qr(
        draws.normal((blocks, dim, dim), generator, device=like.device, dtype=like.dtype)
    )
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # without the signs Q is not uniform
    return q.transpose(0, 1).reshape(dim, blocks * dim)[:, :count]
