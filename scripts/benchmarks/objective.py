"""SIGReg forward and backward against the plain form that LeJEPA and LeWM use, with values,
gradients and memory.

Reference: the plain form as those codes write it, projections times knots, cosine and sine of each,
mean over samples. Same slices, same quadrature, same thread count, in turn in one process. Errors
are relative to the plain form in double precision."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks import seconds
from gjwm.objectives import SIGReg, random_directions

KNOTS, T_MAX = 17, 5.0
# Inductor's compiling processes start in the background, and would share the cores with what is
# timed.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def plain_sigreg(x: Tensor, directions: Tensor) -> Tensor:
    """N independent samples x (N, D): every knot's angle, cosine and sine is stored."""
    t = torch.linspace(0, T_MAX, KNOTS, dtype=x.dtype, device=x.device)
    phi = torch.exp(-t.square() / 2)
    weight = torch.full_like(t, 2 * T_MAX / (KNOTS - 1))
    weight[0] = weight[-1] = T_MAX / (KNOTS - 1)
    angles = (x @ directions).unsqueeze(-1) * t
    error = (angles.cos().mean(0) - phi).square() + angles.sin().mean(0).square()
    return (error @ (weight * phi)).mean()


def _plain_clusters(x: Tensor, directions: Tensor) -> Tensor:
    """Trajectories x (B, T, D): the same, with pairs within a trajectory left out."""
    t = torch.linspace(0, T_MAX, KNOTS, dtype=x.dtype, device=x.device)
    phi = torch.exp(-t.square() / 2)
    weight = torch.full_like(t, 2 * T_MAX / (KNOTS - 1))
    weight[0] = weight[-1] = T_MAX / (KNOTS - 1)
    angles = (x @ directions).unsqueeze(-1) * t
    cos, sin = angles.cos().mean(1), angles.sin().mean(1)  # (B, S, K)
    rows = len(x)
    total = cos.sum(0).square() + sin.sum(0).square() - (cos.square() + sin.square()).sum(0)
    error = total / (rows * rows - rows) - 2 * phi * cos.mean(0) + phi.square()
    return (error @ (weight * phi)).mean()


def loss_and_gradient(loss: Callable[[Tensor], Tensor], z: Tensor) -> tuple[float, Tensor]:
    z = z.detach().requires_grad_()
    value = loss(z)
    (gradient,) = torch.autograd.grad(value, z)
    return value.item(), gradient


def _status(key: str) -> float:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)
    )
    return int(line.split()[1]) / 1024


def _peak_mb(call: Callable[[], Any]) -> float | None:
    """Memory that `call` needs on top of what is there, in MB: the kernel's high-water mark. None
    where it keeps none.
    """
    try:
        gc.collect()
        # freed memory that is still resident would hide what the call takes
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        call()
        return max(_status("VmHWM") - before, 0.0)
    except (OSError, StopIteration):
        return None


def _case(
    name: str, shape: tuple[int, ...], slices: int, compile: bool, rounds: int
) -> list[dict[str, Any]]:
    g = Generator().manual_seed(0)
    z = torch.randn(shape, generator=g)
    clustered = len(shape) == 3
    reference = _plain_clusters if clustered else plain_sigreg
    directions = random_directions(shape[-1], slices, Generator().manual_seed(1), like=z)
    exact, exact_gradient = loss_and_gradient(
        lambda x: reference(x, directions.double()), z.double()
    )

    def ours(compiled: bool) -> Callable[[Tensor], Tensor]:
        sigreg = SIGReg(
            slices,
            KNOTS,
            T_MAX,
            time="cluster" if clustered else "pooled",
            estimator="v",
            compile=compiled,
        )
        return lambda x: sigreg(x, generator=Generator().manual_seed(1))

    losses = {"plain": lambda x: reference(x, directions), "ours": ours(False)}
    if compile:
        losses |= {"plain, compiled": torch.compile(losses["plain"]), "ours, compiled": ours(True)}
    timed = seconds(
        {label: lambda loss=loss: loss_and_gradient(loss, z) for label, loss in losses.items()},
        rounds,  # after a call each that compiles
    )
    rows = []
    for label, loss in losses.items():
        value, gradient = loss_and_gradient(loss, z)
        rows.append(
            {
                "case": name,
                "implementation": label,
                "threads": torch.get_num_threads(),
                "ms": 1e3 * timed[label].median,
                "spread_percent": timed[label].spread_percent,
                "times faster": timed["plain"].over(timed[label]),
                "extra MB": _peak_mb(lambda loss=loss: loss_and_gradient(loss, z)),
                "value error": abs(value - exact),
                "gradient error": (
                    (gradient - exact_gradient).norm() / exact_gradient.norm()
                ).item(),
            }
        )
    return rows


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Rows per case and implementation: ms of forward and backward, their spread, ratio to the
    plain form, peak extra memory, errors.

    `quick` uses small batches and compiles nothing.
    """
    if quick:
        return _case("N=64 D=16 S=32", (64, 16), 32, False, 1) + _case(
            "B=8 T=4 D=16 S=32", (8, 4, 16), 32, False, 1
        )
    return [
        *_case("N=512 D=192 S=1024", (512, 192), 1024, True, 7),
        *_case("N=4096 D=192 S=1024", (4096, 192), 1024, True, 3),
        *_case("B=64 T=8 D=192 S=1024", (64, 8, 192), 1024, True, 7),
    ]
