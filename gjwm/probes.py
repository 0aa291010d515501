"""How much of the true state can be read from latents: linear, nearest-neighbour and MLP regression, fitted on one set of
episodes and scored on another."""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Generator, Tensor, nn

from gjwm.encoders import mlp


def r2_score(estimate: Tensor, target: Tensor) -> float:
    """1 - squared error / variance, both summed over the target's dimensions: (N, P), (N, P) -> float."""
    residual = (estimate - target).square().sum()
    return (1 - residual / (target - target.mean(0)).square().sum()).item()


def _check(z_train: Tensor, y_train: Tensor, z_test: Tensor, y_test: Tensor) -> None:
    shapes = [tuple(x.shape) for x in (z_train, y_train, z_test, y_test)]
    if any(len(s) != 2 for s in shapes) or shapes[0][0] != shapes[1][0] or shapes[2][0] != shapes[3][0]:
        raise ValueError(f"a probe expects z (N, D) and y (N, P) for fitting and scoring, got {shapes}.")
    if not all(x.isfinite().all() for x in (z_train, y_train, z_test, y_test)):
        raise ValueError("a probe was given NaN or infinity; check the encoder's latents.")


def linear_probe(z_train: Tensor, y_train: Tensor, z_test: Tensor, y_test: Tensor, *, ridge: float = 1e-6) -> float:
    """R² on the test rows of ridge regression with intercept; `ridge` is relative to the latents' mean variance."""
    _check(z_train, y_train, z_test, y_test)
    mean, y_mean = z_train.mean(0), y_train.mean(0)
    z = (z_train - mean).double()
    gram = z.T @ z
    gram = gram + ridge * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram), dtype=z.dtype)
    weight = torch.linalg.solve(gram, z.T @ (y_train - y_mean).double())
    return r2_score((z_test - mean).double() @ weight + y_mean, y_test.double())


def knn_probe(z_train: Tensor, y_train: Tensor, z_test: Tensor, y_test: Tensor, *, k: int = 5) -> float:
    """R² of the k nearest neighbours' mean, weighted by inverse distance."""
    _check(z_train, y_train, z_test, y_test)
    distance, index = cKDTree(z_train.numpy()).query(z_test.numpy(), k=min(k, len(z_train)))
    distance, index = torch.as_tensor(distance).view(len(z_test), -1), torch.as_tensor(index).view(len(z_test), -1)
    weight = 1 / distance.clamp(min=1e-9)
    weight = weight / weight.sum(1, keepdim=True)
    return r2_score((weight[..., None] * y_train[index].double()).sum(1), y_test.double())


def mlp_probe(
    z_train: Tensor,
    y_train: Tensor,
    z_test: Tensor,
    y_test: Tensor,
    *,
    hidden: int = 256,
    steps: int = 1500,
    batch: int = 512,
    lr: float = 3e-3,
    generator: Generator,
) -> float:
    """R² of a two-layer network on standardised latents, trained by Adam on a cosine schedule."""
    _check(z_train, y_train, z_test, y_test)
    mean, std = z_train.mean(0), z_train.std(0).clamp(min=1e-6)
    y_mean, y_std = y_train.mean(0), y_train.std(0).clamp(min=1e-9)
    x, y = ((z_train - mean) / std).float(), ((y_train - y_mean) / y_std).float()
    net = mlp([x.shape[1], hidden, hidden, y.shape[1]])
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        (net(x[rows]) - y[rows]).square().mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        estimate = net(((z_test - mean) / std).float()) * y_std + y_mean
    return r2_score(estimate.double(), y_test.double())
