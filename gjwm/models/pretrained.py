"""Small trained models that ship with the package: `gjwm/pretrained/<name>/`, a reduced run's
folder with checkpoint.pt, decoder.pt where there is one, and evaluation.json. `scripts/bundle.py`
makes one; matrices are float16 in the files and float32 once loaded.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import torch

from gjwm.models.decoder import decoder_of
from gjwm.models.world_model import WorldModel

FOLDER = Path(__file__).parents[1] / "pretrained"


def shipped() -> list[str]:
    """Names of the models that ship."""
    return sorted(path.parent.name for path in FOLDER.glob("*/checkpoint.pt"))


def shipped_folder(name: str) -> Path:
    """The folder of a model that ships.

    Raises:
        ValueError: for another name, with those that ship.
    """
    if name not in shipped():
        raise ValueError(f"no model {name!r} ships with gjwm; {nearest_shipped(name)}.")
    return FOLDER / name


def nearest_shipped(name: str) -> str:
    """The names that ship, told to somebody who wrote another one."""
    near = difflib.get_close_matches(name, shipped(), n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    return f"{guess}choose one of {', '.join(shipped())}"


def load_shipped(name: str, device: torch.device | str = "cpu") -> WorldModel:
    """A model that ships, in evaluation mode, with its decoder.

    Raises:
        ValueError: for another name, with those that ship.
    """
    folder = shipped_folder(name)
    model = WorldModel.load(folder, device)
    model.attach_decoder(decoder_of(folder, str(device)))
    return model
