"""Many models trained at once: seeds x arms as one batch of matrix products.

Models of one seed share data, batches and first weights; nothing else connects them, so each is
trained exactly as it would be alone, within rounding (a test)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from shape.arms import Arm, directions, normalised, penalty, whitening

DIM, HIDDEN, ACTIONS = 16, 128, 2


@dataclass(frozen=True)
class Settings:
    """How every model is trained."""

    steps: int = 2000
    batch: int = 128  # windows
    length: int = 4  # steps of a window that are predicted
    lr: float = 2e-3
    clip: float = 1.0
    ema: float = 0.99


Weights = dict[str, Tensor]


def first_weights(observed: int, seeds: list[int], arms: int, device: torch.device) -> Weights:
    """The same for all arms of a seed: (seeds, arms, ...), He-uniform as torch's Linear."""
    shapes = {
        "e1": (observed, HIDDEN), "e2": (HIDDEN, HIDDEN), "e3": (HIDDEN, DIM),
        "d1": (DIM + ACTIONS, HIDDEN), "d2": (HIDDEN, HIDDEN), "d3": (HIDDEN, DIM),
    }  # fmt: skip
    weights: Weights = {}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for name, shape in shapes.items():
        bound = 1 / math.sqrt(shape[0])
        for key, size in ((name, shape), (name + "b", shape[1:])):
            drawn = torch.stack(
                [bound * (2 * torch.rand(size, generator=g) - 1) for g in generators]
            )
            one = (1,) * (3 - drawn.dim())
            drawn = drawn.reshape(len(seeds), 1, *one, *size)
            weights[key] = drawn.repeat(1, arms, *(1,) * (drawn.dim() - 2)).to(device)
    return weights


def encoded(w: Weights, o: Tensor) -> Tensor:
    """Observations (S, N, O), the same for all arms, or (S, A, N, O) -> h (S, A, N, D)."""
    if o.dim() == 3:
        o = o[:, None]
    h = torch.nn.functional.silu(o @ w["e1"] + w["e1b"])
    h = torch.nn.functional.silu(h @ w["e2"] + w["e2b"])
    return h @ w["e3"] + w["e3b"]


def predicted(w: Weights, z: Tensor, a: Tensor) -> Tensor:
    """z (S, A, N, D), a (S, A or 1, N, 2) -> the next z, as z plus a change."""
    a = a.expand(*z.shape[:-1], a.shape[-1])
    h = torch.nn.functional.silu(torch.cat([z, a], -1) @ w["d1"] + w["d1b"])
    h = torch.nn.functional.silu(h @ w["d2"] + w["d2b"])
    return z + h @ w["d3"] + w["d3b"]


@dataclass
class Data:
    """Episodes of every seed: o (S, E, T + 1, O) uint8 or float, a (S, E, T, 2), truth (S, E, T +
    1, F)."""

    o: Tensor
    a: Tensor
    truth: Tensor

    def windows(self, generator: Generator, batch: int, length: int) -> tuple[Tensor, Tensor]:
        """-> o (S, B, L + 1, O), a (S, B, L, 2): windows of different episodes, the same of every
        seed."""
        episodes, steps = self.a.shape[1:3]
        device = self.a.device
        which = torch.randperm(episodes, generator=generator, device=device)[:batch]
        start = torch.randint(steps - length + 1, (batch,), generator=generator, device=device)
        at = start[:, None] + torch.arange(length + 1, device=device)
        o = self.o[:, which[:, None], at]
        return as_float(o), self.a[:, which[:, None], at[:, :-1]]


def as_float(o: Tensor) -> Tensor:
    """Pictures to [-1, 1]."""
    return o.float() / 127.5 - 1 if o.dtype == torch.uint8 else o


class Group:
    """Arms that are computed alike: all but λ the same."""

    def __init__(self, arms: list[Arm], device: torch.device):
        self.members: list[tuple[Arm, Tensor, Tensor]] = []
        kinds = list(dict.fromkeys(replace(arm, lam=0.0) for arm in arms))
        for kind in kinds:
            at = [i for i, arm in enumerate(arms) if replace(arm, lam=0.0) == kind]
            lam = torch.tensor([arms[i].lam for i in at], device=device)
            self.members.append((kind, torch.tensor(at, device=device), lam))
        self.norms = [
            (
                norm,
                torch.tensor([i for i, arm in enumerate(arms) if arm.norm == norm], device=device),
            )
            for norm in dict.fromkeys(arm.norm for arm in arms)
        ]
        ema = [i for i, arm in enumerate(arms) if arm.target == "ema"]
        self.slow = torch.tensor(ema, device=device)
        order = torch.cat([at for _, at in self.norms])
        self.back = order.argsort()

    def normalised(self, h: Tensor) -> Tensor:
        """h (S, A, N, D) -> z, each arm by its norm."""
        seeds = len(h)
        parts = [
            normalised(h[:, at].flatten(0, 1), norm).unflatten(0, (seeds, -1))
            for norm, at in self.norms
        ]
        return torch.cat(parts, 1)[:, self.back]


def losses(
    w: Weights, slow: Weights | None, group: Group, o: Tensor, a: Tensor, slices: Tensor
) -> tuple[Tensor, Tensor]:
    """-> loss and alignment (S, A). Windows o (S, B, L + 1, O), a (S, B, L, 2)."""
    batch, length = a.shape[1:3]
    flat = o.flatten(1, 2)
    z = group.normalised(encoded(w, flat)).unflatten(2, (batch, length + 1))
    target = z
    if slow is not None:
        with torch.no_grad():
            at = group.slow
            copies = group.normalised(encoded(slow, flat)).unflatten(2, (batch, length + 1))
        target = z.clone()
        target[:, at] = copies[:, at]
    now, alignment = z[:, :, :, 0], z.new_zeros(z.shape[:2])
    for k in range(length):
        now = predicted(w, now, a[:, None, :, k])
        alignment = alignment + (now - target[:, :, :, k + 1]).square().mean((-2, -1)) / length
    loss = alignment
    for kind, at, lam in group.members:
        if kind.discrepancy is not None:
            value = penalty(z[:, at].flatten(0, 1), kind, slices).unflatten(0, (len(z), -1))
            loss = loss.index_add(1, at, lam * value)
    return loss, alignment


def train(
    data: Data, arms: list[Arm], seeds: list[int], settings: Settings
) -> tuple[Weights, dict[str, Tensor]]:
    """Train every arm on every seed's data -> weights (S, A, ...), and by name the alignment (S, A)
    of the last tenth of the steps."""
    device = data.a.device
    w = first_weights(data.o.shape[-1], seeds, len(arms), device)
    names = list(w)
    for tensor in w.values():
        tensor.requires_grad_()
    group = Group(arms, device)
    slow = {k: v.detach().clone() for k, v in w.items()} if len(group.slow) else None
    optimizer = torch.optim.AdamW(list(w.values()), lr=settings.lr, weight_decay=1e-4, foreach=True)
    generator = torch.Generator(device).manual_seed(1000)  # windows and slices of all seeds
    last = torch.zeros(len(seeds), len(arms), device=device)
    tail = max(1, settings.steps // 10)
    for step in range(settings.steps):
        o, a = data.windows(generator, settings.batch, settings.length)
        loss, alignment = losses(w, slow, group, o, a, directions(DIM, generator))
        gradients = torch.autograd.grad(loss.sum(), [w[k] for k in names])
        squares = [g.square().flatten(2).sum(-1) for g in gradients]
        norm = torch.stack(squares).sum(0).sqrt()
        scale = (settings.clip / norm.clamp_min(1e-12)).clamp_max(1.0)
        scale = torch.where(norm.isfinite(), scale, 0.0)
        for name, gradient in zip(names, gradients):
            factor = scale.reshape(*scale.shape, *(1,) * (gradient.dim() - 2))
            w[name].grad = torch.nan_to_num(gradient, 0.0, 0.0, 0.0) * factor
        warm = min(1.0, (step + 1) / (0.1 * settings.steps))
        cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for parameters in optimizer.param_groups:
            parameters["lr"] = settings.lr * warm * cosine
        optimizer.step()
        if slow is not None:
            with torch.no_grad():
                for name, copy in slow.items():
                    copy.lerp_(w[name], 1 - settings.ema)
        if step >= settings.steps - tail:
            last += alignment.detach() / tail
    return {k: v.detach() for k, v in w.items()}, {"alignment": last}


@dataclass
class Frozen:
    """Trained models with norms of the whole data: z = (h - mean) @ transform (S, A, ...)."""

    w: Weights
    mean: Tensor
    transform: Tensor

    def encode(self, o: Tensor) -> Tensor:
        """o (S, N, O) or (S, A, N, O) -> z (S, A, N, D)."""
        return (encoded(self.w, as_float(o)) - self.mean) @ self.transform

    def predict(self, z: Tensor, a: Tensor) -> Tensor:
        """One step, see `predicted`."""
        return predicted(self.w, z, a)


@torch.no_grad()
def freeze(w: Weights, arms: list[Arm], data: Data, count: int = 8192) -> Frozen:
    """Norms from `count` observations of the data instead of a batch's."""
    o = data.o.flatten(1, 2)
    o = as_float(o[:, :: max(1, o.shape[1] // count)])
    h = encoded(w, o)
    mean, transform = whitening(h)
    eye = torch.eye(h.shape[-1], device=h.device)
    for i, arm in enumerate(arms):
        if arm.norm == "none":
            mean[:, i], transform[:, i] = 0.0, eye
        elif arm.norm == "batch":
            scale = (h[:, i].var(1, correction=0) + 1e-5).rsqrt()
            transform[:, i] = torch.diag_embed(scale)
    return Frozen(w, mean, transform)
