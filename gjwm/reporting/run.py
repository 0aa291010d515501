"""A run's folder, read back: all that a report is drawn from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gjwm._core.files import replacing

EVALUATION, ARRAYS = "evaluation.json", "evaluation.npz"
METRICS, GALLERY = "metrics.jsonl", "gallery"


@dataclass(frozen=True)
class Run:
    """What a run's folder holds: evaluation.json, evaluation.npz and the rows of metrics.jsonl."""

    folder: Path
    report: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    metrics: tuple[Mapping[str, Any], ...]

    @property
    def config(self) -> Mapping[str, Any]:
        return self.report.get("config", {})


def load_run(folder: str | Path, report: Mapping[str, Any] | None = None) -> Run:
    """Read an evaluated run; `report` is what evaluation.json will hold, None reads the file.

    Raises:
        FileNotFoundError: without evaluation.json.
        ValueError: when it or its arrays are damaged.
    """
    folder = Path(folder)
    if report is None:
        report = _read_report(folder)
    path = folder / ARRAYS
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays = dict(loaded)
    # numpy and zipfile raise many kinds for a damaged file; all mean the same to the reader
    except Exception as error:
        raise ValueError(
            f"{path} is missing or damaged ({type(error).__name__}); write it again with `gjwm "
            f"evaluate`."
        ) from error
    return Run(folder, report, arrays, read_metrics(folder))


def _read_report(folder: Path) -> dict[str, Any]:
    file = folder / EVALUATION
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} has no {EVALUATION} to report on; write one with `gjwm evaluate`."
        )
    try:
        report = json.loads(file.read_text())
        if not isinstance(report, dict):
            raise ValueError(f"expected an object, got {type(report).__name__}")
    except ValueError as error:
        raise ValueError(
            f"{file} is not a readable evaluation ({error}); write it again with `gjwm evaluate`."
        ) from error
    return report


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as single precision to one compressed .npz, atomically."""
    single = {name: np.asarray(values, np.float32) for name, values in arrays.items()}
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **single)


def read_metrics(folder: str | Path, *, unfinished: bool = False) -> tuple[dict[str, Any], ...]:
    """Rows of metrics.jsonl, or of a running training's .partial; half a line is left out."""
    file = Path(folder) / (METRICS + ".partial" * unfinished)
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return tuple(row for row in rows if isinstance(row, dict) and "step" in row)
