"""What an interrupted run needs to go on exactly: states on disk, two of them, and every random
number generator.
"""

from __future__ import annotations

import logging
import random
import re
import textwrap
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from gjwm._core.files import for_torch, inside, replacing

log = logging.getLogger(__name__)

FORMAT = 4  # of learning from reward also what it saw of rewards and latents
KEEP = 2  # the newest, and one more should its disk block have gone bad


def save_tensors(content: Any, path: str | Path) -> None:
    """`torch.save` of plain data and tensors, forced to no disk: see `replacing`.

    Raises:
        OSError: when the disk is full, say.
    """
    with for_torch(path) as file:
        torch.save(content, file)


def load_tensors(
    path: str | Path, device: torch.device | str = "cpu", *, mmap: bool = False
) -> Any:
    """What `save_tensors` wrote. No code is unpickled. torch does not look at the checksums of its
    archive, so that a flipped bit would be a weight; this does.

    Raises:
        Exception: of many kinds for a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        wrong = archive.testzip()
    if wrong is not None:
        raise ValueError(f"the checksum of {wrong} differs")
    return torch.load(path, map_location=device, weights_only=True, mmap=mmap or None)


class Checkpoint(NamedTuple):
    """What `Checkpoints.latest` found."""

    step: int
    content: dict[str, Any]
    attached: dict[str, Path]  # files saved with it
    path: Path

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Around whatever takes the content over.

        Raises:
            ValueError: one sentence, for content that does not fit, such as another version's.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            said = textwrap.shorten(str(error), 200, placeholder=" ...")
            raise ValueError(
                f"{self.path} does not fit this training ({type(error).__name__}: {said}); another "
                f"version of gjwm may have kept it: go on with that one, or remove "
                f"{self.path.parent} to start anew."
            ) from error


class Checkpoints:
    """A folder of states of one run, `state-<step>.pt`; each appears whole or not at all, and the
    newest two are kept.

    What has a file format of its own, such as a replay buffer that grows, is attached:
    `state-<step>-<name>` is written before the state that counts on it and goes with it.

    Args:
        folder: made when the first state is saved.
        every: steps between two states.
        keep: how many.
    """

    def __init__(self, folder: str | Path, *, every: int = 250, keep: int = KEEP):
        if keep < 1 or every < 1:
            raise ValueError(f"expected checkpoints every >= 1 and keep >= 1, got {every}, {keep}.")
        self.folder, self.every, self.keep = Path(folder), every, keep

    def save(
        self,
        step: int,
        content: dict[str, Any],
        attach: Mapping[str, Callable[[Path], Any]] | None = None,
    ) -> Path:
        """Write plain data and tensors as the state after `step`, then drop the oldest states.

        Args:
            attach: name -> what writes a file atomically, such as {"replay.pt": buffer.save}.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"state-{step:09d}.pt"
        attach = attach or {}
        for name, write in attach.items():
            write(self._attachment(path, name))
        with replacing(path) as partial:
            sizes = {name: self._attachment(path, name).stat().st_size for name in attach}
            save_tensors(
                {"format": FORMAT, "step": step, "content": content, "attached": sizes}, partial
            )
        for old in self._files()[: -self.keep]:
            self._remove(old)
        states = {file.stem for file in self._files()}
        for left in self.folder.glob(
            "state-*-*"
        ):  # of a process that was killed while it removed a state
            if left.name[: len(path.stem)] not in states:
                left.unlink()
        return path

    def _attachment(self, path: Path, name: str) -> Path:
        inside(path.parent, name)  # which a state's file gives
        return path.with_name(f"{path.stem}-{name}")

    @staticmethod
    def _whole(attachment: Path, size: int) -> Path:
        """The file, which must have the bytes that were written; one cut short would be found only
        by whoever loads it.
        """
        actual = attachment.stat().st_size
        if actual != size:
            raise ValueError(f"{attachment.name} has {actual} bytes of {size}")
        return attachment

    def _remove(self, path: Path) -> None:
        path.unlink()  # first: without it the attachments are nothing
        for attachment in path.parent.glob(f"{path.stem}-*"):
            attachment.unlink()

    def latest(self) -> Checkpoint | None:
        """The newest state that is whole, or None where none was saved; a damaged one, or one of
        whose attachments a piece is missing, is passed over with a warning.

        No code is unpickled.

        Raises:
            ValueError: when there are states and none can be read.
        """
        files = self._files()
        for path in reversed(files):
            try:
                payload = load_tensors(path)
                if payload["format"] != FORMAT:
                    raise ValueError(f"format {payload['format']}, this version reads {FORMAT}")
                attached = {
                    name: self._whole(self._attachment(path, name), n)
                    for name, n in payload["attached"].items()
                }
                return Checkpoint(payload["step"], payload["content"], attached, path)
            except (
                Exception
            ) as error:  # torch raises many kinds for a damaged file; all mean the same
                log.warning(
                    f"{path} cannot be read ({type(error).__name__}: {error}); trying the one "
                    f"before."
                )
        if files:
            raise ValueError(
                f"no state in {self.folder} can be read; remove the folder to start anew."
            )
        return None

    def clear(self) -> None:
        """Remove all states, and what a killed process left of others."""
        for path in self._files():
            self._remove(path)
        for path in self.folder.glob("state-*"):  # also what a killed process was writing
            path.unlink()

    def _files(self) -> list[Path]:
        """Oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if re.fullmatch(r"state-\d{9}\.pt", p.name))


def random_state() -> dict[str, Any]:
    """The states of the process-wide generators of torch (CPU and every CUDA device), numpy and
    Python.
    """
    # others may draw from numpy's global state
    kind, keys, position, has_gauss, gauss = cast(Any, np.random.get_state())  # noqa: NPY002
    version, internal, following = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {
            "kind": kind,
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": position,
            "has_gauss": has_gauss,
            "gauss": gauss,
        },
        "python": {"version": version, "internal": list(internal), "following": following},
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`. Devices that this machine lacks are passed over."""
    torch.set_rng_state(state["torch"])
    for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda, device)
    numpy = state["numpy"]
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(  # noqa: NPY002  (whoever uses the global state gets it back)
        (numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["gauss"])
    )
    python = state["python"]
    random.setstate((python["version"], tuple(python["internal"]), python["following"]))
