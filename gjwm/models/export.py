"""A model's parts as programs of torch.export, which run without this package."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gjwm._core.files import for_torch, replacing


class _Calls(nn.Module):
    """A module whose forward is another one's method."""

    def __init__(self, module: nn.Module, method: str):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return getattr(self.module, self.method)(x, y)


def write_programs(model: Any, folder: str | Path) -> None:
    """See `WorldModel.export`."""
    if model.training:
        raise ValueError(
            "exporting expects a model in evaluation mode, got one in training mode; call "
            "model.eval()."
        )
    if model.dynamics.has_memory:
        raise ValueError(
            "the mean step that is exported knows no past, and these dynamics have a memory of it: "
            "export a model with backbone='mlp'."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shape = model.encoder.config["observation_shape"]
    # traced with two rows: torch takes a size of 1 for a constant
    o = torch.zeros(2, *shape, dtype=torch.uint8 if len(shape) == 3 else torch.float32)
    z, a = torch.zeros(2, model.latent_dim), torch.zeros(2, model.action_dim)
    _write(model.encoder, [o], folder / "encoder.pt2", model.device)
    _write(_Calls(model.dynamics, "mean"), [z, a], folder / "dynamics.pt2", model.device)
    if model.reach is not None:
        _write(_Calls(model.reach, "distance"), [z, z.clone()], folder / "reach.pt2", model.device)


def _write(
    module: nn.Module, arguments: Sequence[Tensor], path: Path, device: torch.device
) -> None:
    """Of a module whose arguments have any number of rows, the same for all."""
    rows = torch.export.Dim("rows")
    given = tuple(x.to(device) for x in arguments)
    module = copy.deepcopy(module)
    for x in (*module.parameters(), *module.buffers()):
        x.data = x.data.contiguous()  # torch.export.save doubts weights in another order
    with torch.no_grad():
        program = torch.export.export(
            module, given, dynamic_shapes=tuple({0: rows} for _ in given), strict=False
        )
    with replacing(path) as partial, for_torch(partial) as file:
        torch.export.save(program, file)
