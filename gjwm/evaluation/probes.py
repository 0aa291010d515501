"""How much of the true state can be read from latents: linear, nearest-neighbour and MLP
regression, fitted on one set of episodes and scored on another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy.spatial import cKDTree
from torch import Generator, Tensor, nn

from gjwm.models.layers import mlp
from gjwm.training.train import fit_rows

Readout = Callable[[Tensor], Tensor]  # z (N, D) -> estimate of y (N, P), float64


def r2_score(estimate: Tensor, target: Tensor) -> float:
    """1 - squared error / variance, both summed over the target's dimensions: (N, P), (N, P) ->
    float.
    """
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
    gram = gram + ridge * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(
        len(gram), dtype=z.dtype
    )
    weight = torch.linalg.solve(gram, z.T @ (y_train - y_mean).double())
    return lambda z_test: (z_test - mean).double() @ weight + y_mean


def knn_readout(z_train: Tensor, y_train: Tensor, *, k: int = 5) -> Readout:
    """The k nearest neighbours' mean, weighted by inverse distance."""
    _check(z_train, y_train)
    tree = cKDTree(z_train.numpy())

    def read(z_test: Tensor) -> Tensor:
        distance, index = tree.query(z_test.numpy(), k=min(k, len(z_train)))
        distance, index = (
            torch.as_tensor(distance).view(len(z_test), -1),
            torch.as_tensor(index).view(len(z_test), -1),
        )
        weight = 1 / distance.clamp(min=1e-9)
        weight = weight / weight.sum(1, keepdim=True)
        return (weight[..., None] * y_train[index].double()).sum(1)

    return read


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
    net = mlp([x.shape[1], hidden, hidden, y.shape[1]])
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    fit_rows(net, x, y, steps=steps, batch=batch, lr=lr, generator=generator)

    @torch.no_grad()
    def read(z_test: Tensor) -> Tensor:
        return net(((z_test - mean) / std).float()).double() * y_std + y_mean

    return read


def linear_probe(
    z_train: Tensor, y_train: Tensor, z_test: Tensor, y_test: Tensor, **options: Any
) -> float:
    """R² of `linear_readout` on the test rows."""
    return _score(linear_readout, z_train, y_train, z_test, y_test, **options)


def knn_probe(
    z_train: Tensor, y_train: Tensor, z_test: Tensor, y_test: Tensor, **options: Any
) -> float:
    """R² of `knn_readout` on the test rows."""
    return _score(knn_readout, z_train, y_train, z_test, y_test, **options)


def mlp_probe(
    z_train: Tensor, y_train: Tensor, z_test: Tensor, y_test: Tensor, **options: Any
) -> float:
    """R² of `mlp_readout` on the test rows."""
    return _score(mlp_readout, z_train, y_train, z_test, y_test, **options)


def _score(
    fit: Callable[..., Readout],
    z_train: Tensor,
    y_train: Tensor,
    z_test: Tensor,
    y_test: Tensor,
    **options,
):
    _check(z_test, y_test)
    return r2_score(fit(z_train, y_train, **options)(z_test).double(), y_test.double())
