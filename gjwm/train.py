"""Offline training of a world model on a replay buffer, and of the picture decoder on its frozen latents."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from gjwm.objectives import JointEmbeddingObjective
from gjwm.replay import ReplayBuffer
from gjwm.world_model import WorldModel

Log = Callable[[dict[str, float], int], None]


def train(
    model: WorldModel,
    objective: JointEmbeddingObjective,
    buffer: ReplayBuffer,
    *,
    steps: int = 2500,
    batch: int = 64,
    length: int = 6,
    episodes: int | None = None,
    lr: float = 2e-3,
    weight_decay: float = 1e-4,
    clip: float = 1.0,
    warmup: float = 0.1,
    log: Log | None = None,
    log_every: int = 25,
    generator: Generator | None = None,
) -> dict[str, float]:
    """Minimise `model.loss` with AdamW on a one-cycle schedule, in place; the model ends in evaluation mode.

    Args:
        buffer: windows of `length` steps are drawn from it uniformly.
        steps: gradient steps.
        batch, length: windows per step, and T of each (the open-loop horizon).
        episodes: draw each batch from this many episodes only, and let the discrepancy see their windows as independent.
            What is constant within an episode but differs between them (a maze's layout, a colour) costs no alignment and
            is as Gaussian as anything: latents that show nothing else would satisfy the objective. Among few episodes such
            latents are few points and not a Gaussian. None: uniform over all windows.
        lr, weight_decay, clip, warmup: peak learning rate, AdamW's decay, gradient norm, share of steps spent warming up.
        log: called with scalars every `log_every` steps; keys "loss", "train/*", "frames_per_second".
        generator: draws windows and slices.

    Returns:
        the last logged scalars.

    Raises:
        FloatingPointError: when the loss is NaN or infinite; the model then holds the last good weights.
    """
    if steps < 1 or batch < 2:
        raise ValueError(f"training expects steps >= 1 and batch >= 2, got steps={steps} and batch={batch}.")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=warmup)
    device, scalars = model.device, {}
    model.train()
    since, frames = time.perf_counter(), 0
    for step in range(1, steps + 1):
        few = {} if episodes is None else {"episodes": episodes}
        windows = buffer.sample(batch, length, generator=generator, **few).to(device)
        if episodes is not None:
            windows = replace(windows, episode=torch.arange(batch, device=device))
        losses = model.loss(windows, objective, generator=generator)
        if not losses["loss"].isfinite():
            raise FloatingPointError(
                f"the loss became {losses['loss'].item()} at step {step}; lower the learning rate (now {lr}) "
                "or look for NaN in the data."
            )
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        schedule.step()
        frames += batch * (length + 1)
        if step % log_every == 0 or step == steps:
            elapsed = time.perf_counter() - since
            scalars = {f"train/{k}": v.item() for k, v in losses.items() if k != "loss"}
            scalars |= {
                "loss": losses["loss"].item(),
                "train/grad_norm": norm.item(),
                "train/lr": schedule.get_last_lr()[0],
                "frames_per_second": frames / elapsed,
            }
            if log is not None:
                log(scalars, step)
            since, frames = time.perf_counter(), 0
    model.eval()
    return scalars


def train_decoder(
    decoder: nn.Module,
    model: WorldModel,
    buffer: ReplayBuffer,
    *,
    steps: int = 500,
    batch: int = 64,
    lr: float = 2e-3,
    log: Log | None = None,
    log_every: int = 25,
    generator: Generator | None = None,
) -> float:
    """Fit `decoder` (z -> newest frame in [0, 1]) to images by squared error; no gradient reaches the world model.

    Errors are weighted by how much a pixel varies over the data: most of a control-suite image never changes, and a plain
    mean would let a small moving body vanish into the background.

    Returns:
        the last (unweighted) squared error per pixel.
    """
    optimizer = torch.optim.Adam(decoder.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    channels = decoder.image_shape[0]

    def draw(count: int) -> tuple[Tensor, Tensor]:
        o = buffer.sample(count, 1, generator=generator).o[:, 0].to(model.device)
        return o, o[:, -channels:].float() / 255

    _, images = draw(512)
    variation = images.std(0).mean(0)
    weight = variation / variation.mean().clamp(min=1e-6) + 0.1
    error = torch.tensor(float("nan"))
    decoder.train()
    for step in range(1, steps + 1):
        o, image = draw(batch)
        with torch.no_grad():
            z = model.encode(o)
        squared = (decoder(z) - image).square()
        optimizer.zero_grad(set_to_none=True)
        (weight * squared).mean().backward()
        optimizer.step()
        schedule.step()
        error = squared.detach().mean()
        if log is not None and (step % log_every == 0 or step == steps):
            log({"decoder/squared_error": error.item()}, step)
    decoder.eval()
    return error.item()
