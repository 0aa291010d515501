"""The past of each environment, for dynamics with a memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gjwm.models.dynamics import Past


class History:
    """The last latents and actions of B envs, whose episodes began at different times.

    Args:
        steps: kept at most.
    """

    def __init__(self, steps: int):
        self.steps = steps
        self._z: Tensor | None = None  # (B, L, D), the newest last
        self._a: Tensor | None = None  # (B, L, A)
        self._lengths: Tensor | None = None  # (B,) how many of them belong to the env's episode

    def reset(self, mask: Tensor | None = None) -> None:
        """Forget the past of all envs, or of those where mask (B,) is true."""
        if mask is None or self._lengths is None:
            self._z = self._a = self._lengths = None
        else:
            self._lengths = self._lengths.masked_fill(mask.to(self._lengths.device), 0)

    def state_dict(self) -> dict[str, Any]:
        """The past of each env."""
        return {"z": self._z, "a": self._a, "lengths": self._lengths}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._z, self._a, self._lengths = state["z"], state["a"], state["lengths"]

    def append(self, z: Tensor, a: Tensor) -> None:
        """Each env was in z (B, D) and took a (B, A)."""
        if self._lengths is None or len(self._lengths) != len(z):
            self._z, self._a = z[:, None], a[:, None]
            self._lengths = torch.zeros(len(z), dtype=torch.long, device=z.device)
        else:
            self._z = torch.cat([self._z, z[:, None]], 1)[:, -self.steps :]
            self._a = torch.cat([self._a, a[:, None]], 1)[:, -self.steps :]
        self._lengths = (self._lengths + 1).clamp(max=self.steps)

    def groups(self, envs: int) -> list[tuple[Tensor | None, Past | None]]:
        """Envs with pasts of one length: their indices, None for all of them, and the past."""
        if self._lengths is None or len(self._lengths) != envs:
            return [(None, None)]
        lengths = self._lengths.unique().tolist()
        groups: list[tuple[Tensor | None, Past | None]] = []
        for length in lengths:
            index = None if len(lengths) == 1 else (self._lengths == length).nonzero()[:, 0]
            kept = [x[:, x.shape[1] - length :] for x in (self._z, self._a)]
            z, a = kept if index is None else (x[index] for x in kept)
            groups.append((index, (z, a) if length else None))
        return groups
