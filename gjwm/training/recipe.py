"""From a dataset to a model: joint training, refining, calibrating, decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from gjwm import __version__, objectives
from gjwm._core.fit import Log, Threads
from gjwm._core.machine import check_device, keep_freed_memory
from gjwm._core.settings import check as check_setting
from gjwm.data.dataset import open_windows
from gjwm.data.handle import CALIBRATION, Dataset
from gjwm.data.replay import Windows
from gjwm.models.decoder import ConvDecoder, decoder_of, save_decoder
from gjwm.models.encoders import ConvEncoder, MLPEncoder
from gjwm.models.reach import Reach
from gjwm.models.world_model import Origin, WorldModel
from gjwm.training.metrics import progress
from gjwm.training.processes import Processes
from gjwm.training.run import Run, sole_process
from gjwm.training.settings import (
    CalibrateSettings,
    DecodeSettings,
    ModelRecipe,
    ObjectiveSettings,
    ReachSettings,
    Recipe,
    RefineSettings,
    TrainSettings,
    made,
    plain,
)
from gjwm.training.train import (
    check_batches,
    latent_buffer,
    latents_of,
    peak_memory_mb,
    refine,
    train_decoder,
)
from gjwm.training.train import train as train_jointly

__all__ = [
    "CalibrateSettings",
    "DecodeSettings",
    "ObjectiveSettings",
    "ReachSettings",
    "Recipe",
    "RefineSettings",
    "TrainSettings",
    "build",
    "calibrate",
    "train",
]


def train(
    data: Dataset | str | Path,
    recipe: Recipe | None = None,
    *,
    run: str | Path | Run | None = None,
    device: str = "cpu",
    threads: int | None = None,
    storage: str = "auto",
    notify: Callable[[str], Any] = print,
) -> WorldModel:
    """Train a world model on a dataset, as a recipe says, in stages: encoder and dynamics
    together; on latents that change no more the dynamics alone, and how far states lie apart;
    predicted spreads, corrected on episodes that training never saw; a decoder for pictures.

    Processes that torchrun started share the first stage. The others are the first process's, which
    alone writes; what the rest get is the model after the first stage. See docs/scaling.md.

    Args:
        data: what `gjwm.collect` returned, or a dataset's folder.
        recipe: None: `Recipe()`.
        run: a folder that gets checkpoint.pt, decoder.pt, config.yaml and metrics.jsonl, and from
            which an interrupted training goes on; None writes nothing.
        threads: of torch; None measures whether one or all are faster, see `Threads`.
        storage: "memory", "disk", or "auto", see `gjwm.data.dataset.open_windows`.
        notify: told what happens.

    Returns:
        the model, in evaluation mode. It knows its origin, and as `model.decoder` its decoder, if
        it has one.

    Raises:
        ValueError: for settings that do not fit each other or the data, before anything is trained.
        FloatingPointError: when a loss becomes NaN or infinite.
    """
    recipe = Recipe() if recipe is None else recipe
    check_setting("gjwm.train's recipe", recipe, Recipe)
    check_setting("gjwm.train's data", data, Dataset | str | Path)
    check_device(device)
    data = data if isinstance(data, Dataset) else Dataset.open(data)
    processes = Processes.of()
    device = processes.device(device)
    if device == "cpu":
        keep_freed_memory()
    with ExitStack() as stack:
        if run is not None and not isinstance(run, Run):
            if processes.first:
                stack.enter_context(sole_process(run))
            config = {"dataset": str(data.path), "env": _env(data), **recipe.plain()}
            run = Run(run, config, device=device, resume=True)
        # First weights are drawn from torch's own generator, which whoever calls gets back.
        cuda = [torch.device(device)] if device.startswith("cuda") else []
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        measuring = stack.enter_context(_thread_count(threads, device, processes))
        return _Training(data, recipe, run, device, measuring, notify, processes).go(storage)


def _env(data: Dataset) -> dict[str, Any]:
    return {"id": data.env_id, **data.env_kwargs}


@contextmanager
def _thread_count(
    threads: int | None, device: str, processes: Processes
) -> Iterator[Threads | None]:
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        measures = threads is None and before > 1 and torch.device(device).type == "cpu"
        measures &= processes.size == 1  # a step of several takes as long as the slowest's
        yield Threads(before) if measures else None
    finally:
        torch.set_num_threads(before)


def make_objective(recipe: ModelRecipe) -> nn.Module:
    """The objective that encoder and dynamics learn from."""
    discrepancy = made("discrepancy", recipe.discrepancy)
    return objectives.make_objective(discrepancy, **plain(recipe.objective))


def build(
    recipe: ModelRecipe, observation_shape: tuple[int, ...], action_dim: int, device: str = "cpu"
) -> WorldModel:
    """An untrained model for observations and actions of these shapes."""
    encoder = recipe.encoder or (ConvEncoder if len(observation_shape) == 3 else MLPEncoder)
    sizes = dict(latent_dim=recipe.latent_dim, action_dim=action_dim)
    return WorldModel(
        made(
            "encoder",
            encoder,
            observation_shape=list(observation_shape),
            latent_dim=recipe.latent_dim,
        ),
        recipe.make_dynamics("dynamics", recipe.dynamics, action_dim),
        {name: made(f"heads.{name}", head, **sizes) for name, head in recipe.heads.items()},
    ).to(device)


def check_refined(recipe: Recipe) -> None:
    """Raise ValueError unless the dynamics that refining would train can take the place of those
    that the encoder is trained with.
    """
    if recipe.refine.dynamics is not None:
        with torch.random.fork_rng(devices=[]):  # the weights of what is trained are drawn later
            recipe.make_dynamics("refine.dynamics", recipe.refine.dynamics, 1)


def check(recipe: Recipe, data: Dataset, episodes: int | None = None) -> None:
    """Raise ValueError for what would fail once data are read or the joint training is over: a
    model that cannot be made, other dynamics to refine that do not fit, windows longer than all of
    the first `episodes`.
    """
    check_refined(recipe)
    with torch.random.fork_rng(devices=[]):  # weights of no consequence
        build(recipe, *data.shapes())
    longest = max(data.lengths()[:episodes], default=0)
    lengths = {"train": recipe.train.length}
    if recipe.refine.steps:
        lengths["refine"] = recipe.refine.length
    for stage, length in lengths.items():
        if 0 < longest < length:
            raise ValueError(
                f"{stage}.length={length} is longer than the longest episode of {data.path}, "
                f"{longest} steps; shorten the windows, or collect longer episodes."
            )


def calibrate(
    model: WorldModel,
    data: Dataset,
    settings: CalibrateSettings = CalibrateSettings(),
    *,
    seed: int = 0,
) -> None:
    """Fit the factors on predicted spreads, and the scale of surprise, on episodes that neither
    training nor evaluation see.
    """
    length = settings.length or max(data.lengths())
    episodes = data.more(settings.episodes, length=length, seed=CALIBRATION + seed)
    lengths = sorted({len(episode.a) for episode in episodes})
    if len(lengths) != 1:
        raise ValueError(
            f"held-out episodes must have one length, and these have {lengths[0]} to {lengths[-1]} "
            "steps: shorten calibrate.length, keep the env from ending them (terminate: false for "
            "a Gymnasium environment), or set calibrate.episodes=0."
        )
    with torch.inference_mode():
        latents = [
            torch.cat(
                [model.encode(part.to(model.device)) for part in torch.from_numpy(e.o).split(1024)]
            )
            for e in episodes
        ]
    model.calibrate(
        torch.stack(latents),
        torch.stack([torch.from_numpy(e.a).to(model.device) for e in episodes]),
        horizon=min(settings.horizon, length),
        particles=settings.particles,
        generator=Generator(model.device).manual_seed(seed),
    )


def load_run(folder: str | Path, device: str = "cpu") -> WorldModel:
    """The model in a run's folder, its decoder attached."""
    model = WorldModel.load(Path(folder) / "checkpoint.pt", device)
    model.attach_decoder(decoder_of(folder, device))
    return model


class _Training:
    """One training; its stages share what it was asked for."""

    def __init__(
        self,
        data: Dataset,
        recipe: Recipe,
        run: Run | None,
        device: str,
        threads: Threads | None,
        notify: Callable[[str], Any],
        processes: Processes,
    ):
        self.data, self.recipe, self.run, self.device = data, recipe, run, device
        self.threads, self.processes = threads, processes
        self.notify = notify if processes.first else lambda message: None
        self.log: Log = lambda scalars, step: None
        self._encoded: list[Tensor] | None = None

    def go(self, storage: str) -> WorldModel:
        recipe, data, run = self.recipe, self.data, self.run
        torch.manual_seed(recipe.seed)
        objective = make_objective(recipe)
        # What is refused, the first process refuses, while the others wait for it.
        begun = self._begin(objective) if self.processes.first else None
        self.processes.join(self.device)
        begun = self.processes.told(begun)
        if begun is None:
            self.processes.leave()
            self.notify(f"{run.folder}: already trained, nothing to resume")
            return load_run(run.folder, self.device)
        after, episodes = begun
        residence = "auto" if self.device.startswith("cuda") else "cpu"
        windows = open_windows(
            data.path, residence, storage=storage, episodes=episodes, notify=self.notify
        )
        shape, action_dim = windows.observation_space.shape, windows.action_space.shape[0]
        model = build(recipe, shape, action_dim, self.device)
        # made here and not after training: first weights depend on what was made before them
        fresh = None
        if recipe.refine.dynamics is not None:
            fresh = recipe.make_dynamics("refine.dynamics", recipe.refine.dynamics, action_dim).to(
                self.device
            )
        if run is not None:
            model.describe()  # what cannot be saved is told before it is trained
        lengths = data.lengths()[:episodes]
        model.origin = Origin(
            env_id=data.env_id,
            env_kwargs=data.env_kwargs,
            behaviour=data.behaviour,
            length=max(lengths),
            recipe=recipe.plain(),
        )
        generator = Generator(self.device).manual_seed(recipe.seed)
        decodes = recipe.decode.steps if len(shape) == 3 else 0
        total = recipe.train.steps + recipe.refine.steps + recipe.reach.steps + decodes
        logs = run is not None and self.processes.first
        with run.logging(total, after) if logs else nullcontext(self.log) as self.log:
            measured = self._jointly(model, objective, windows, generator)
            self.processes.leave()
            if not self.processes.first:
                return model
            if recipe.refine.steps:
                measured |= self._refine(model, fresh, lengths, generator)
            if recipe.reach.steps:
                measured |= self._reach(model, lengths, generator)
            self._save(model, measured)
            self._calibrate(model, measured)
            if decodes:
                self._decode(model, shape, windows, generator)
        return model

    def _begin(self, objective: nn.Module) -> tuple[int | None, int | None] | None:
        """Step to go on after and episodes to train on, None for none and for all; or None when all
        is done.
        """
        recipe, data = self.recipe, self.data
        check_batches(objective, recipe.train, self.processes.size)
        if self.run is None:
            check(recipe, data)
            return None, None
        return self.run.begin(
            recipe.train.steps, len(data), lambda episodes: check(recipe, data, episodes)
        )

    @contextmanager
    def _stage(self, name: str, steps: int, before: int, loss: str) -> Iterator[dict[str, Any]]:
        """A stage's bar, and what its fit is logged with; `before` steps came before it."""
        with progress(steps, desc=name, silent=not self.processes.first) as bar:

            def log(scalars: dict[str, float], step: int) -> None:
                self.log(scalars, before + step)
                bar.report(
                    step,
                    loss=scalars[loss],
                    frames_per_second=scalars.get("frames_per_second"),
                )

            def say(line: str) -> None:
                bar.clear()
                self.notify(line)

            if self.threads is not None:
                self.threads.tell = say
            every = 25 if self.run is None else self.run.log_every
            yield {"log": log, "log_every": every, "threads": self.threads}

    def _jointly(
        self, model: WorldModel, objective: nn.Module, windows: Windows, generator: Generator
    ) -> dict[str, Any]:
        checkpoints = None if self.run is None else self.run.checkpoints
        begin = time.perf_counter()
        with self._stage("train", self.recipe.train.steps, 0, "loss") as logging:
            try:
                train_jointly(
                    model,
                    objective,
                    windows,
                    self.recipe.train,
                    generator=generator,
                    checkpoints=checkpoints,
                    **logging,
                )
            except FloatingPointError:
                if checkpoints is not None and self.processes.first:
                    checkpoints.clear()  # going on would end the same way
                raise
        if checkpoints is not None and self.processes.first:
            return {"seconds": checkpoints.latest().content["seconds"]}
        return {"seconds": time.perf_counter() - begin}

    def _refine(
        self, model: WorldModel, fresh: Any, lengths: list[int], generator: Generator
    ) -> dict[str, Any]:
        begin, settings = time.perf_counter(), self.recipe.refine
        stage = ("refine", settings.steps, self.recipe.train.steps, "refine/mean_squared_error")
        with self._stage(*stage) as logging:
            latents = latent_buffer(
                self._latents(model, len(lengths)), iter(self.data), model.action_dim
            )
            if fresh is not None:
                model.dynamics = fresh
                self.notify(
                    f"refining trains {type(fresh).__name__} from the start (refine.dynamics)"
                )
            refine(model.dynamics, latents, settings, generator=generator, **logging)
        return {"refine_seconds": time.perf_counter() - begin}

    def _latents(self, model: WorldModel, episodes: int) -> list[Tensor]:
        """Of the dataset's first episodes; encoded once, as they change no more."""
        if self._encoded is None:
            self._encoded = list(latents_of(model, islice(iter(self.data), episodes)))
        return self._encoded

    def _reach(self, model: WorldModel, lengths: list[int], generator: Generator) -> dict[str, Any]:
        begin, settings = time.perf_counter(), self.recipe.reach
        before = self.recipe.train.steps + self.recipe.refine.steps
        reach = Reach(model.latent_dim, settings.dim, settings.horizon).to(self.device)
        with self._stage("reach", settings.steps, before, "reach/loss") as logging:
            log = logging.pop("log")
            reach.fit(
                self._latents(model, len(lengths)),
                steps=settings.steps,
                batch=settings.batch,
                lr=settings.lr,
                generator=generator,
                log=lambda scalars, step: log({"reach/loss": scalars["loss"]}, step),
                **logging,
            )
        model.reach = reach
        return {
            "reach_seconds": time.perf_counter() - begin,
            "reach_information": reach.information().item(),
        }

    def _save(self, model: WorldModel, measured: dict[str, Any]) -> None:
        """What describes the run changes together with its model, and only after training: one that
        fails leaves an older run whole.
        """
        if self.run is None:
            return
        training = {
            **measured,
            "threads": torch.get_num_threads(),
            "peak_memory_mb": peak_memory_mb(model.device),
            "command": self.run.command,
        }
        extra = {"version": __version__, "config": self.run.config, "training": training}
        model.save(self.run.folder / "checkpoint.pt", **extra)
        self.run.write_config()

    def _calibrate(self, model: WorldModel, measured: dict[str, Any]) -> None:
        settings = self.recipe.calibrate
        if not settings.episodes:
            return
        if not self.data.collectable():
            self.notify(
                f"predictions stay uncalibrated: no more episodes of {self.data.env_id} can be "
                "collected here, as the environment or the behaviour is unknown"
            )
            return
        self.notify("calibrating predictions on held-out episodes")
        try:
            calibrate(model, self.data, settings, seed=self.recipe.seed)
        except ValueError as error:
            # The model is worth more than its intervals, and is there already.
            self.notify(f"predictions stay uncalibrated: {error}")
        else:
            self._save(model, measured)

    def _decode(
        self,
        model: WorldModel,
        shape: tuple[int, ...],
        windows: Windows,
        generator: Generator,
    ) -> None:
        settings, recipe = self.recipe.decode, self.recipe
        channels = shape[0] // windows.frame_stack
        decoder = ConvDecoder(model.latent_dim, (channels, *shape[1:])).to(self.device)
        before = recipe.train.steps + recipe.refine.steps + recipe.reach.steps
        with self._stage("decoder", settings.steps, before, "decoder/squared_error") as logging:
            train_decoder(decoder, model, windows, settings, generator=generator, **logging)
        model.attach_decoder(decoder)
        if self.run is not None:
            save_decoder(decoder, self.run.folder / "decoder.pt")
