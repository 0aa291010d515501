"""What is fitted, by the one loop of `gjwm._core.fit`: a world model to windows of a dataset,
dynamics to latents, and what reads frozen latents: decoder, state head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Generator, Tensor, nn

from gjwm._core import distributed, draws
from gjwm._core.checkpoint import Checkpoints, save_tensors
from gjwm._core.files import replacing
from gjwm._core.fit import Log, Optimiser, Threads, fit
from gjwm._core.types import Batch
from gjwm.data.dataset import Episode
from gjwm.data.replay import Prefetch, ReplayBuffer, Windows
from gjwm.models.dynamics import Dynamics
from gjwm.models.heads import StateHead
from gjwm.models.world_model import WorldModel
from gjwm.objectives import EpisodeObjective, JointEmbeddingObjective
from gjwm.training.settings import DecodeSettings, RefineSettings, TrainSettings


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


def check_batches(
    objective: JointEmbeddingObjective, settings: TrainSettings, processes: int = 1
) -> None:
    """Raise ValueError for batches that cannot be shared among processes, and if the objective
    compares windows of one episode and batches need not hold two of any.
    """
    episodes, batch = settings.episodes, settings.batch
    pairs = isinstance(objective, EpisodeObjective)
    if batch % processes:
        raise ValueError(
            f"train.batch={batch} windows cannot be shared evenly among {processes} processes: "
            f"make it a multiple of {processes}."
        )
    if pairs and processes > 1:
        raise ValueError(
            "law='within' and slow latents compare two windows of one episode, which "
            f"{processes} processes would hold apart: train them without torchrun."
        )
    if pairs and (episodes is None or episodes >= batch):
        raise ValueError(
            "law='within' and slow latents compare two windows of one episode, and batches of "
            f"{batch} from {'all' if episodes is None else episodes} episodes may hold none: set "
            "train.episodes to half the batch."
        )


class _TrainingState:
    """What a training's state holds beside its optimiser."""

    def __init__(self, modules: dict[str, nn.Module], windows: Prefetch, generator: Any):
        self.modules, self.windows, self.generator = modules, windows, generator

    def state(self) -> dict[str, Any]:
        return {
            **{name: module.state_dict() for name, module in self.modules.items()},
            "windows": self.windows.state(),
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        self.windows.restore(state["windows"])
        if self.generator is not None:
            self.generator.set_state(state["generator"])


def train(
    model: WorldModel,
    objective: JointEmbeddingObjective,
    windows: Windows,
    settings: TrainSettings = TrainSettings(),
    *,
    log: Log | None = None,
    log_every: int = 25,
    generator: Generator | None = None,
    threads: Threads | None = None,
    checkpoints: Checkpoints | None = None,
) -> dict[str, float]:
    """Minimise `model.loss`, in place; the model ends in evaluation mode.

    Under torch.distributed each process takes its share of every batch, and all end with the same
    model: arguments must be the same on all.

    Args:
        windows: a `ReplayBuffer`, or `DiskWindows`, of which batches are read ahead.
        log: called with scalars every `log_every` steps; keys "loss", "train/*",
            "frames_per_second".
        generator: draws slices, and the seed of the windows: which come does not depend on where
            the data lie.
        threads, checkpoints: see `gjwm._core.fit.fit`. Gone on with, a training ends with the
            same weights and scalars as an unbroken one (bit by bit on a CPU with as many threads);
            all other arguments must be what they were.

    Returns:
        the last logged scalars.

    Raises:
        FloatingPointError: when the loss stays NaN or infinite, see `gjwm._core.fit.fit`; beside
            the folder of `checkpoints`, bad-batch.pt then holds the last batch.
    """
    processes = distributed.world_size()
    check_batches(objective, settings, processes)
    objective.to(model.device)
    batch, length = settings.batch, settings.length
    chosen: dict[str, Any] = {} if settings.episodes is None else {"episodes": settings.episodes}
    if processes > 1:  # all draw the same windows, and each reads its own
        chosen["part"] = distributed.share(batch)
    seed = int(draws.integers(2**62, (1,), generator, device="cpu"))

    def named(scalars: dict[str, float]) -> dict[str, float]:
        renamed = {f"train/{k}": v for k, v in scalars.items()}
        rate = renamed.pop("train/steps_per_second")
        return {
            "loss": renamed.pop("train/loss"),
            **renamed,
            "frames_per_second": rate * batch * (length + 1),
        }

    newest: Batch | None = None

    def loss(step: int) -> dict[str, Tensor]:
        nonlocal newest
        newest = drawn.next().to(model.device)
        return model.loss(newest, objective, generator=generator)

    with Prefetch(
        lambda g: windows.sample(batch, length, generator=g, **chosen),
        seed,
        getattr(windows, "prefetch", 0),  # what stands in for a buffer need not say it
    ) as drawn:
        try:
            scalars = fit(
                [model, objective],  # which has parameters when its target covariance is learned
                loss,
                Optimiser(
                    lr=settings.lr,
                    weight_decay=settings.weight_decay,
                    clip=settings.clip,
                    warmup=settings.warmup,
                ),
                steps=settings.steps,
                log=None if log is None else lambda scalars, step: log(named(scalars), step),
                log_every=log_every,
                threads=threads,
                checkpoints=checkpoints,
                state=_TrainingState({"model": model, "objective": objective}, drawn, generator),
            )
        except FloatingPointError as error:
            if checkpoints is None or newest is None:
                raise
            path = checkpoints.folder.with_name("bad-batch.pt")
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                save_tensors(vars(newest), partial)
            raise FloatingPointError(f"{error} {path} has the batch.") from error
    return named(scalars)


def latents_of(model: WorldModel, episodes: Iterable[Episode]) -> Iterator[Tensor]:
    """Latents (T+1, D) of each episode, on the model's device.

    Raises:
        ValueError: when the model is in training mode, in which encoding would change its BatchNorm
            statistics.
    """
    if model.training:
        raise ValueError(
            "encoding a dataset expects a model in evaluation mode, got one in training mode; call "
            "model.eval()."
        )
    for episode in episodes:
        o = torch.from_numpy(episode.o)
        with torch.no_grad():  # left before the caller goes on
            z = torch.cat([model.encode(part.to(model.device)) for part in o.split(1024)])
        yield z


def latent_buffer(
    latents: Sequence[Tensor], episodes: Iterable[Episode], action_dim: int
) -> ReplayBuffer:
    """Latents (T+1, D) in place of the observations of episodes, as a buffer that `refine` draws
    from, on the latents' device.
    """
    buffer = _empty_buffer(latents, action_dim)
    for z, episode in zip(latents, episodes):
        buffer.add_episode(z, *episode[1:5])
    return buffer


def latent_windows(z: Tensor, a: Tensor) -> ReplayBuffer:
    """Latents (E, T+1, D) and actions (E, T, A) of episodes, as a buffer that `refine` draws
    from.
    """
    if z.shape[:2] != (a.shape[0], a.shape[1] + 1):
        raise ValueError(
            f"expected latents (E, T+1, D) and actions (E, T, A), got {tuple(z.shape)} and "
            f"{tuple(a.shape)}."
        )
    buffer = _empty_buffer(z, a.shape[-1])
    nothing = torch.zeros(a.shape[1])
    for latents, actions in zip(z.detach(), a):
        buffer.add_episode(latents, actions, nothing, nothing.bool(), nothing.bool())
    return buffer


def _empty_buffer(latents: Sequence[Tensor], action_dim: int) -> ReplayBuffer:
    steps = sum(len(z) - 1 for z in latents)
    values = spaces.Box(-np.inf, np.inf, (latents[0].shape[-1],), np.float32)
    actions = spaces.Box(-1, 1, (action_dim,), np.float32)
    return ReplayBuffer(steps, values, actions, episodes=len(latents), device=latents[0].device)


def refine(
    dynamics: Dynamics,
    latents: Windows,
    settings: RefineSettings = RefineSettings(),
    *,
    log: Log | None = None,
    log_every: int = 25,
    generator: Generator | None = None,
    threads: Threads | None = None,
) -> None:
    """Fit the dynamics alone, in place, on the latents of an encoder that changes no more; ends in
    evaluation mode. Dynamics without parameters count the windows that others learn from.

    A step without the encoder costs a fraction of one with it and takes several times the windows.
    What it gains: docs/experiments/2026-11-27-refined-dynamics.md.

    Args:
        latents: of `latent_buffer` or `latent_windows`, on the dynamics' device.
        log: called every `log_every` steps with "refine/mean_squared_error": one-step and open-loop
            predictions over the window, weighted alike (and those of all members of an ensemble).
        generator: draws the seed of the windows.

    Raises:
        ValueError: for windows longer than all episodes.
        FloatingPointError: when the loss is NaN or infinite.
    """
    windows = torch.Generator().manual_seed(
        int(draws.integers(2**62, (1,), generator, device="cpu"))
    )

    def loss(step: int) -> dict[str, Tensor]:
        drawn = latents.sample(settings.batch, settings.length, generator=windows)
        z, a = drawn.o, drawn.a
        nll = dynamics.nll(z[:, :-1], a, z[:, 1:])
        error = (dynamics.training_means(z, a) - z[:, 1:]).square().mean()
        return {"loss": error + nll, "mean_squared_error": error}

    def report(scalars: dict[str, float], step: int) -> None:
        if log is not None:
            log({"refine/mean_squared_error": scalars["mean_squared_error"]}, step)

    fit(
        [dynamics],
        loss,
        Optimiser(
            lr=settings.lr, weight_decay=settings.weight_decay, clip=settings.clip, warmup=0.1
        ),
        steps=settings.steps,
        log=report,
        log_every=log_every,
        threads=threads,
    )


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
    fitted = fit_rows(head.net, z, target, steps=steps, batch=batch, lr=lr, generator=generator)
    head.eval()
    return fitted


def fit_rows(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    batch: int,
    lr: float,
    generator: Generator | None = None,
) -> float:
    """Fit a network to rows x (N, D), y (N, P) by squared error, with Adam on a cosine schedule ->
    the last squared error.
    """

    def loss(step: int) -> dict[str, Tensor]:
        rows = draws.integers(len(x), (batch,), generator, device=x.device)
        return {"loss": (net(x[rows]) - y[rows]).square().mean()}

    return fit([net], loss, Optimiser(lr=lr, warmup=None), steps=steps).get("loss", float("nan"))


def train_decoder(
    decoder: nn.Module,
    model: WorldModel,
    windows: Windows,
    settings: DecodeSettings = DecodeSettings(),
    *,
    log: Log | None = None,
    log_every: int = 25,
    generator: Generator | None = None,
    threads: Threads | None = None,
) -> float:
    """Fit `decoder` (z -> newest frame in [0, 1]) to images by squared error; no gradient reaches
    the world model.

    Errors are weighted by how much a pixel varies over the data: most of a control-suite image
    never changes, and a plain mean would let a small moving body vanish into the background.

    Returns:
        the last (unweighted) squared error per pixel.
    """
    channels = decoder.image_shape[0]

    def draw(count: int) -> tuple[Tensor, Tensor]:
        o = windows.sample(count, 1, generator=generator).o[:, 0].to(model.device)
        return o, o[:, -channels:].float() / 255

    _, images = draw(512)
    variation = images.std(0).mean(0)
    weight = variation / variation.mean().clamp(min=1e-6) + 0.1

    def loss(step: int) -> dict[str, Tensor]:
        o, image = draw(settings.batch)
        with torch.no_grad():
            z = model.encode(o)
        squared = (decoder(z) - image).square()
        return {"loss": (weight * squared).mean(), "squared_error": squared.detach().mean()}

    def report(scalars: dict[str, float], step: int) -> None:
        if log is not None:
            log({"decoder/squared_error": scalars["squared_error"]}, step)

    scalars = fit(
        [decoder],
        loss,
        Optimiser(lr=settings.lr),
        steps=settings.steps,
        log=report,
        log_every=log_every,
        threads=threads,
    )
    return scalars["squared_error"]
