"""Offline training of a world model on a replay buffer, and of what reads its frozen latents:
decoder, state head.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from torch import Generator, Tensor, nn

from gjwm._core import draws
from gjwm.data.dataset import Episode
from gjwm.data.replay import Prefetch, ReplayBuffer, Windows
from gjwm.models.dynamics import Dynamics
from gjwm.models.heads import StateHead
from gjwm.models.world_model import WorldModel
from gjwm.objectives import EpisodeObjective, JointEmbeddingObjective, NonFiniteLatentsError
from gjwm.training.checkpoint import Checkpoints, random_state, restore_random_state

Log = Callable[[dict[str, float], int], None]


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory this process has held so far, in MB: of the GPU if `device` is one, else
    resident; None on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # Linux; its getrusage begins with what the parent process held
        return next(
            int(line.split()[1]) / 1024
            for line in status.read_text().splitlines()
            if line.startswith("VmHWM")
        )
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def check_pairs(objective: JointEmbeddingObjective, batch: int, episodes: int | None) -> None:
    """Raise ValueError if the objective compares windows of one episode and batches need not hold
    two of any.
    """
    pairs = isinstance(objective, EpisodeObjective)
    if pairs and (episodes is None or episodes >= batch):
        raise ValueError(
            "law='within' and static latents compare two windows of one episode, and batches of "
            f"{batch} from {'all' if episodes is None else episodes} episodes may hold none: set "
            "train.episodes to half the batch."
        )


def train(
    model: WorldModel,
    objective: JointEmbeddingObjective,
    buffer: Windows,
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
    prefetch: int = 0,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 250,
) -> dict[str, float]:
    """Minimise `model.loss` with AdamW on a one-cycle schedule, in place; the model ends in
    evaluation mode.

    Args:
        buffer: windows of `length` steps are drawn from it: a `ReplayBuffer`, or `DiskWindows`.
        steps: gradient steps.
        batch, length: windows per step, and T of each (the open-loop horizon).
        episodes: draw each batch from this many episodes only, as an objective with law="within" or
            static latents needs, which compares two windows of one episode (half of `batch` makes
            pairs). None: uniform over all windows.
        lr, weight_decay, clip, warmup: peak learning rate, AdamW's decay, gradient norm, share of
            steps spent warming up.
        log: called with scalars every `log_every` steps; keys "loss", "train/*",
            "frames_per_second".
        generator: draws slices, and the seed of the windows: which come does not depend on where
            the data lie.
        prefetch: batches read ahead by a thread, for data on disk; changes nothing but the time.
        checkpoints: where the whole state is kept every `checkpoint_every` steps and after the
            last. If a state is there already, training goes on from it, with the same weights and
            scalars as if it had not been interrupted (bit by bit on a CPU with as many threads);
            all other arguments must be what they were.

    Returns:
        the last logged scalars.

    Raises:
        FloatingPointError: when the loss is NaN or infinite; the model then holds the last good
            weights.
    """
    if steps < 1 or batch < 2:
        raise ValueError(
            f"training expects steps >= 1 and batch >= 2, got steps={steps} and batch={batch}."
        )
    if checkpoint_every < 1:
        raise ValueError(f"training expects checkpoint_every >= 1, got {checkpoint_every}.")
    check_pairs(objective, batch, episodes)
    device, scalars = model.device, {}
    objective.to(device).train()
    # An objective has parameters when its target covariance is learned.
    parameters = [
        p for module in (model, objective) for p in module.parameters() if p.requires_grad
    ]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps + 1, pct_start=warmup
    )
    model.train()
    seed = int(draws.integers(2**62, (1,), generator, device="cpu"))
    few = {} if episodes is None else {"episodes": episodes}
    begin = since = time.perf_counter()
    frames, first, before = 0, 0, 0.0
    with Prefetch(
        lambda g: buffer.sample(batch, length, generator=g, **few), seed, prefetch
    ) as draw:
        found = None if checkpoints is None else checkpoints.latest()
        if found is not None:
            first, state = found.step, found.content
            for name, part in (
                ("model", model),
                ("objective", objective),
                ("optimizer", optimizer),
                ("schedule", schedule),
            ):
                part.load_state_dict(state[name])
            draw.restore(state["windows"])
            if generator is not None:
                generator.set_state(state["generator"])
            restore_random_state(state["random"])
            scalars, before = state["scalars"], state["seconds"]
        for step in range(first + 1, steps + 1):
            windows = draw.next().to(device)
            try:
                losses = model.loss(windows, objective, generator=generator)
            except NonFiniteLatentsError as error:
                raise FloatingPointError(
                    f"at step {step}: {error} Lower the learning rate (now {lr}) or look for NaN "
                    f"in the data."
                ) from error
            if not losses["loss"].isfinite():
                raise FloatingPointError(
                    f"the loss became {losses['loss'].item()} at step {step}; lower the learning "
                    f"rate (now {lr}) or look for NaN in the data."
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
            if checkpoints is not None and (step % checkpoint_every == 0 or step == steps):
                state = {
                    "model": model.state_dict(),
                    "objective": objective.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "windows": draw.state(),
                    "generator": None if generator is None else generator.get_state(),
                    "random": random_state(),
                    "scalars": scalars,
                    "seconds": before + time.perf_counter() - begin,
                }
                checkpoints.save(step, state)
    model.eval()
    return scalars


def train_dynamics(
    dynamics: Dynamics,
    z: Tensor,
    a: Tensor,
    *,
    steps: int = 1500,
    batch: int = 64,
    length: int = 5,
    lr: float = 2e-3,
    weight_decay: float = 1e-4,
    clip: float = 1.0,
    generator: Generator | None = None,
) -> None:
    """Fit dynamics to encoded episodes, the encoder left as it is, as `train` fits them beside it;
    ends in evaluation mode.

    Laws can so be compared on the same latents. Dynamics without parameters count the windows that
    the others learn from.

    Args:
        z, a: latents (E, T+1, D) and actions (E, T, A).
        steps, batch, length, lr, weight_decay, clip: as in `train`.
        generator: draws windows.

    Raises:
        ValueError: for other shapes, or windows longer than the episodes.
        FloatingPointError: when the loss is NaN or infinite.
    """
    if length > a.shape[1] or z.shape[:2] != (a.shape[0], a.shape[1] + 1):
        raise ValueError(
            f"expected latents (E, T+1, D) and actions (E, T, A) with T >= length={length}, got "
            f"{tuple(z.shape)} and {tuple(a.shape)}."
        )

    def draw() -> tuple[Tensor, Tensor]:
        episode = draws.integers(len(z), (batch, 1), generator, device=z.device)
        first = draws.integers(a.shape[1] - length + 1, (batch, 1), generator, device=z.device)
        step = first + torch.arange(length + 1, device=z.device)
        return z[episode, step], a[episode, step[:, :-1]]

    _fit_dynamics(dynamics, draw, steps=steps, lr=lr, weight_decay=weight_decay, clip=clip)


def encode_dataset(
    model: WorldModel, episodes: Iterable[Episode], *, steps: int, count: int
) -> ReplayBuffer:
    """Episodes with latents (T+1, D) for observations, one after the other, as a buffer that
    `refine` draws from.

    Args:
        model: in evaluation mode; the buffer is on its device.
        episodes: of any lengths T, with observations (T+1, *O).
        steps, count: of all episodes together, and how many there are.

    Raises:
        ValueError: when the model is in training mode, in which encoding would change its BatchNorm
            statistics.
    """
    if model.training:
        raise ValueError(
            "encode_dataset expects a model in evaluation mode, got one in training mode; call "
            "model.eval()."
        )
    latents = spaces.Box(-np.inf, np.inf, (model.latent_dim,), np.float32)
    actions = spaces.Box(-1, 1, (model.action_dim,), np.float32)
    buffer = ReplayBuffer(steps, latents, actions, episodes=count, device=model.device)
    with torch.inference_mode():
        for episode in episodes:
            o = torch.from_numpy(episode.o)
            z = torch.cat([model.encode(part.to(model.device)) for part in o.split(1024)])
            buffer.add_episode(z, *episode[1:5])
    return buffer


def check_refining(
    *,
    steps: int,
    batch: int,
    length: int,
    lr: float,
    weight_decay: float,
    clip: float,
) -> None:
    """Raise ValueError unless `refine` can work with these numbers."""
    if min(steps, batch, length) < 1 or not (lr > 0 and clip > 0 and weight_decay >= 0):
        raise ValueError(
            "refining expects steps, batch and length >= 1, lr and clip > 0 and weight_decay >= "
            f"0, got steps={steps}, batch={batch}, length={length}, lr={lr}, clip={clip} and "
            f"weight_decay={weight_decay}."
        )


def refine(
    dynamics: Dynamics,
    latents: Windows,
    *,
    steps: int = 2000,
    batch: int = 256,
    length: int = 5,
    lr: float = 2e-3,
    weight_decay: float = 1e-4,
    clip: float = 1.0,
    log: Log | None = None,
    log_every: int = 25,
    generator: Generator | None = None,
) -> None:
    """Go on with the dynamics alone, in place, on the latents of an encoder that changes no more;
    ends in evaluation mode.

    A step without the encoder costs a fraction of one with it and takes several times the windows.
    What it gains: docs/experiments/2026-11-27-refined-dynamics.md.

    Args:
        latents: of `encode_dataset`, on the dynamics' device.
        steps, batch, length, lr, weight_decay, clip: as in `train`.
        log: called every `log_every` steps with "refine/mean_squared_error": one-step and open-loop
            predictions over the window, weighted alike (and those of all members of an ensemble).
        generator: draws the seed of the windows.

    Raises:
        ValueError: for numbers that `check_refining` refuses, and windows longer than all episodes.
        FloatingPointError: when the loss is NaN or infinite.
    """
    fit = dict(steps=steps, lr=lr, weight_decay=weight_decay, clip=clip)
    check_refining(batch=batch, length=length, **fit)
    windows = torch.Generator().manual_seed(
        int(draws.integers(2**62, (1,), generator, device="cpu"))
    )

    def draw() -> tuple[Tensor, Tensor]:
        drawn = latents.sample(batch, length, generator=windows)
        return drawn.o, drawn.a

    _fit_dynamics(dynamics, draw, **fit, log=log, log_every=log_every)


def _fit_dynamics(
    dynamics: Dynamics,
    draw: Callable[[], tuple[Tensor, Tensor]],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    clip: float,
    log: Log | None = None,
    log_every: int = 25,
) -> None:
    """AdamW on a one-cycle schedule over windows of latents (B, T+1, D) and actions (B, T, A)."""
    parameters = list(dynamics.parameters())
    if parameters:
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, lr, total_steps=steps + 1, pct_start=0.1
        )
    dynamics.train()
    for step in range(1, steps + 1):
        z, a = draw()
        nll = dynamics.nll(z[:, :-1], a, z[:, 1:])  # what has no parameters counts the windows here
        error = (dynamics.training_means(z, a) - z[:, 1:]).square().mean()
        loss = error + nll
        norm = torch.zeros(())
        if parameters:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, clip)
        if not (loss.isfinite() and norm.isfinite()):
            dynamics.eval()
            raise FloatingPointError(
                f"the dynamics' loss became {loss.item()} (gradient norm {norm.item()}) at step "
                f"{step}; lower the learning rate (now {lr}) or look for NaN in the latents."
            )
        if parameters:
            optimizer.step()
            schedule.step()
        if log is not None and (step % log_every == 0 or step == steps):
            log({"refine/mean_squared_error": error.item()}, step)
    dynamics.eval()


def train_state_head(
    head: StateHead,
    z: Tensor,
    state: Tensor,
    *,
    steps: int = 1500,
    batch: int = 512,
    lr: float = 3e-3,
    generator: Generator | None = None,
) -> float:
    """Fit a state head to encoded episodes by squared error in standard units; the latents stay as
    they are.

    Args:
        z, state: (N, D) and (N, P).

    Returns:
        the last squared error, as a share of the state's variance.
    """
    if z.dim() != 2 or state.dim() != 2 or len(z) != len(state):
        raise ValueError(
            f"expected latents (N, D) and states (N, P), got {tuple(z.shape)} and "
            f"{tuple(state.shape)}."
        )
    z, state = z.detach().float(), state.float()
    head.standardise(state)
    target = (state - head.shift) / head.scale
    optimizer = torch.optim.Adam(head.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    error = torch.tensor(float("nan"))
    head.train()
    for _ in range(steps):
        rows = draws.integers(len(z), (batch,), generator, device=z.device)
        error = (head.net(z[rows]) - target[rows]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        optimizer.step()
        schedule.step()
    head.eval()
    return error.item()


def train_decoder(
    decoder: nn.Module,
    model: WorldModel,
    buffer: Windows,
    *,
    steps: int = 500,
    batch: int = 64,
    lr: float = 2e-3,
    log: Log | None = None,
    log_every: int = 25,
    generator: Generator | None = None,
) -> float:
    """Fit `decoder` (z -> newest frame in [0, 1]) to images by squared error; no gradient reaches
    the world model.

    Errors are weighted by how much a pixel varies over the data: most of a control-suite image
    never changes, and a plain mean would let a small moving body vanish into the background.

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
