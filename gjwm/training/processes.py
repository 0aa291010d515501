"""The processes that torchrun starts for one training."""

from __future__ import annotations

import functools
import itertools
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from gjwm._core import distributed

# What torchrun tells a process, and torch.distributed reads.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

_joined = itertools.count()


@functools.cache
def _store() -> Any:
    """Where processes find each other, as torchrun's variables say."""
    from torch.distributed.rendezvous import rendezvous  # not in builds without distributed

    return next(rendezvous("env://"))[0]


def on_this_machine() -> int:
    """Processes of this training that share the machine; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if Processes.of().size > 1 else 1


@dataclass(frozen=True)
class Processes:
    """This process's place among those of a training.

    They are one batch between `join` and `leave`; before and after, each is on its own.

    Args:
        rank: from 0, the first, which alone writes.
        size: how many.
        local_rank: among those of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def of(cls) -> Processes:
        """As torchrun's environment variables say; without them, one."""
        if any(name not in os.environ for name in VARIABLES):
            return cls()
        return cls(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> str:
        """Where this process trains: on CUDA, the GPU of its number on this machine.

        Raises:
            ValueError: for more processes than GPUs, or a GPU's number, which all would take.
        """
        if self.size == 1 or torch.device(name).type != "cuda":
            return name
        if torch.device(name).index is not None:
            raise ValueError(
                f"{self.size} processes cannot share device={name}: device=cuda gives each its own."
            )
        if self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun started more processes than the {torch.cuda.device_count()} GPUs here: "
                "lower --nproc-per-node."
            )
        return f"cuda:{self.local_rank}"

    def join(self, device: str) -> None:
        """Wait until all are here; from now on their samples are one batch."""
        if self.size == 1:
            return
        backend = "gloo"
        if torch.device(device).type == "cuda":
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        # A second training must not find the addresses of the first.
        prefix = f"gjwm-{next(_joined)}"
        store = dist.PrefixStore(prefix, _store())  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)

    def told(self, what: Any) -> Any:
        """The first process's `what`, plain data, on all of them."""
        if self.size == 1:
            return what
        said = [what]
        dist.broadcast_object_list(said, 0, device=torch.device("cpu"))
        return said[0]

    def leave(self) -> None:
        """Wait until all have come this far; from now on each is on its own again."""
        if self.size > 1:
            distributed.sum_(torch.zeros(1))
            dist.destroy_process_group()

    def __str__(self) -> str:
        return f"process {self.rank} of {self.size}"
