"""How much of the true state can be read from latents: linear, nearest-neighbour and MLP
regression, fitted on one set of episodes and scored on another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Generator, Tensor, nn

from gjwm.data.dataset import Episode
from gjwm.evaluation.intervals import ratio_interval
from gjwm.models.layers import mlp
from gjwm.training.train import fit_rows

Readout = Callable[[Tensor], Tensor]  # z (N, D) -> estimate of y (N, P), float64


def r2_score(estimate: Tensor, target: Tensor) -> float:
    """1 - squared error / variance of (N, P), both summed over P."""
    residual = (estimate - target).square().sum()
    return (1 - residual / (target - target.mean(0)).square().sum()).item()


def _check(z: Tensor, y: Tensor) -> None:
    if z.dim() != 2 or y.dim() != 2 or len(z) != len(y):
        raise ValueError(
            f"a probe expects z (N, D) and y (N, P) for fitting and scoring, got {tuple(z.shape)} "
            f"and {tuple(y.shape)}."
        )
    if not (z.isfinite().all() and y.isfinite().all()):
        raise ValueError("a probe was given NaN or infinity; check the encoder's latents.")


def linear_readout(z_train: Tensor, y_train: Tensor, *, ridge: float = 1e-6) -> Readout:
    """Ridge regression with intercept; `ridge` is relative to the latents' mean variance."""
    _check(z_train, y_train)
    mean, y_mean = z_train.mean(0), y_train.mean(0)
    z = (z_train - mean).double()
    gram = z.T @ z
    scale = ridge * gram.diagonal().mean().clamp(min=1e-12)
    gram = gram + scale * torch.eye(len(gram), dtype=z.dtype)
    weight = torch.linalg.solve(gram, z.T @ (y_train - y_mean).double())
    return lambda z_test: (z_test - mean).double() @ weight + y_mean


def knn_readout(z_train: Tensor, y_train: Tensor, *, k: int = 5) -> Readout:
    """The k nearest neighbours' mean, weighted by inverse distance."""
    _check(z_train, y_train)
    tree = cKDTree(z_train.numpy())

    def read(z_test: Tensor) -> Tensor:
        distance, index = tree.query(z_test.numpy(), k=min(k, len(z_train)))
        distance, index = (torch.as_tensor(x).view(len(z_test), -1) for x in (distance, index))
        weight = 1 / distance.clamp(min=1e-9)
        weight = weight / weight.sum(1, keepdim=True)
        return (weight[..., None] * y_train[index].double()).sum(1)

    return read


def seeded_mlp(sizes: Sequence[int], generator: Generator) -> nn.Sequential:
    """`mlp` with first weights by a generator (He et al., 2015) and biases of 0."""
    net = mlp(sizes, linear=partial(nn.utils.skip_init, nn.Linear))  # draws no global numbers
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    return net


def mlp_readout(
    z_train: Tensor,
    y_train: Tensor,
    *,
    hidden: int = 256,
    steps: int = 1500,
    batch: int = 512,
    lr: float = 3e-3,
    generator: Generator,
) -> Readout:
    """A two-layer network on standardised latents, trained by Adam on a cosine schedule."""
    _check(z_train, y_train)
    mean, std = z_train.mean(0), z_train.std(0).clamp(min=1e-6)
    y_mean, y_std = y_train.mean(0), y_train.std(0).clamp(min=1e-9)
    x, y = ((z_train - mean) / std).float(), ((y_train - y_mean) / y_std).float()
    net = seeded_mlp([x.shape[1], hidden, hidden, y.shape[1]], generator)
    fit_rows(net, x, y, steps=steps, batch=batch, lr=lr, generator=generator)

    @torch.no_grad()
    def read(z_test: Tensor) -> Tensor:
        return net(((z_test - mean) / std).float()).double() * y_std + y_mean

    return read


def varying_states(episodes: Sequence[Episode]) -> dict[str, Tensor]:
    """Name -> true state variable (E, T+1, P) of equally long episodes, those that vary; none where
    they were not recorded.
    """
    states = {}
    for name in episodes[0].true_state or {}:
        y = torch.from_numpy(np.stack([e.true_state[name] for e in episodes])).double().flatten(2)
        if not y.flatten(0, 1).var(0).max() < 1e-12:  # what is constant leaves nothing to read
            states[name] = y
    return states


def probe_report(
    z: Tensor,
    episodes: Sequence[Episode],
    *,
    steps: int = 1500,
    fitted: dict[str, Readout] | None = None,
    generator: Generator,
) -> dict[str, Any]:
    """Read the true state from z: probes are fitted on one half of the held-out episodes and scored
    on the other.

    Args:
        z: latents (E, T+1, D) of the episodes, which were recorded with their true states.
        steps: gradient steps of the MLP probe.
        fitted: filled with the MLP probe of each variable.

    Returns:
        linear_r2, knn_r2, mlp_r2 of the goal-relevant position, each with its *_ci95 by a bootstrap
        over the scoring episodes, and under "variables" those of every true state variable.
    """
    half = len(episodes) // 2
    flat = z.double().cpu()
    z_train, z_test = flat[:half].flatten(0, 1), flat[half:].flatten(0, 1)
    states = varying_states(episodes)
    if "position" not in states:
        raise ValueError(
            "the held-out true_state() has no 'position' that varies, which the headline probe "
            "reads."
        )
    y_train = torch.cat([y[:half].flatten(0, 1) for y in states.values()], -1)
    readouts = {  # each reads all variables at once
        "linear": linear_readout(z_train, y_train),
        "knn": knn_readout(z_train, y_train),
        "mlp": mlp_readout(z_train, y_train, steps=steps, generator=generator),
    }
    variables: dict[str, dict[str, Any]] = {name: {} for name in states}
    sizes = [y.shape[-1] for y in states.values()]
    for kind, read in readouts.items():
        estimates = read(z_test).unflatten(0, (len(episodes) - half, -1)).split(sizes, -1)
        for (name, y), estimate in zip(states.items(), estimates, strict=True):
            y = y[half:]
            variables[name][f"{kind}_r2"] = r2_score(estimate.flatten(0, 1), y.flatten(0, 1))
            whole = (y - y.mean((0, 1))).square().sum((1, 2)).numpy()  # per episode
            low, high = ratio_interval((estimate - y).square().sum((1, 2)).numpy(), whole)
            variables[name][f"{kind}_r2_ci95"] = [float(1 - high), float(1 - low)]
    if fitted is not None:
        for i, name in enumerate(states):
            fitted[name] = _part(readouts["mlp"], sum(sizes[:i]), sizes[i])
    return {**variables["position"], "variables": variables}


def _part(read: Readout, start: int, size: int) -> Readout:
    """A readout of some of another's columns."""
    return lambda z: read(z).narrow(-1, start, size)
