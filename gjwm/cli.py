"""`gjwm collect|train|online|evaluate|... key=value ...`, `gjwm data` and `gjwm benchmark`: all that knows hydra.

Each command composes `configs/config.yaml` with the overrides, builds plain objects from it and calls the library. A run
lives in one folder, runs/<name>/, with the resolved config beside what it made.
"""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.resources
import inspect
import itertools
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import gymnasium
import torch
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString, Transformer
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gjwm import __version__, benchmarks
from gjwm.behaviours import Behaviour, behaviour_from_weights
from gjwm.checkpoint import Checkpoints
from gjwm.collect import Episode, collect_dataset, collect_episodes
from gjwm.data_command import data_command
from gjwm.dataset import STORAGES, DiskWindows, dataset_info, episode_lengths, open_windows, read_episodes
from gjwm.decoder import ConvDecoder
from gjwm.envs.workers import cores
from gjwm.evaluate import Details, check_equal_length, check_protocol, encode_episodes, evaluate
from gjwm.explore import BEHAVIOURS
from gjwm.files import holding, replacing
from gjwm.logging import RunLogger, check_mode, log_results, progress
from gjwm.objectives import JointEmbeddingObjective
from gjwm.online import (
    Act,
    Exploration,
    ReturnCurve,
    RewardLearner,
    Stream,
    check_schedule,
    play_returns,
    pretrain,
    return_report,
    reward_agent,
    simulator_actor,
    train_online,
)
from gjwm.replay import ReplayBuffer, available_memory, buffer_bytes, residence
from gjwm.report import ARRAYS, EVALUATION, GALLERY, LiveReport, judge, save_arrays, write_report
from gjwm.rollout_video import attempt, films_of, gallery, goals_video, grid_video, position_readout
from gjwm.settings import require_same_training, same_evaluation
from gjwm.study import Job, Sweep, has_joblib, run_local, run_slurm, settings_of, write_study
from gjwm.study.launch import Done
from gjwm.train import peak_memory_mb, train, train_decoder
from gjwm.world_model import WorldModel, load_payload

# Seeds end where held-out episodes begin, so that these never meet training data; those that calibrate the model's predictions
# start elsewhere again, so that evaluation never sees them.
HELD_OUT = 1_000_000
CALIBRATION = 2_000_000


def with_experiment(command: str, overrides: Sequence[str]) -> list[str]:
    """The overrides, led by the experiment that a command starts from where they name none.

    An env.id that is not one of gjwm's starts from experiment=gym: the default experiment's settings are a task's own.
    """
    if any(text.startswith("experiment=") for text in overrides):
        return list(overrides)
    ids = [text.partition("=")[2] for text in overrides if text.startswith("env.id=")]
    foreign = bool(ids) and not ids[-1].startswith("gjwm/")
    online = command == "online"
    experiment = ("gym_online" if foreign else "suite") if online else "gym" if foreign else None
    return [*([] if experiment is None else [f"experiment={experiment}"]), *overrides]


def load_config(overrides: Sequence[str] = ()) -> DictConfig:
    """configs/config.yaml with hydra overrides such as "experiment=two_room" or "train.steps=100"."""
    with initialize_config_module("gjwm.configs", version_base="1.3"):
        return compose("config", overrides=list(overrides))


def _prepare(cfg: DictConfig) -> None:
    for name, seed in (("seed", cfg.seed), ("evaluate.seed", cfg.evaluate.seed)):
        if not isinstance(seed, int) or not 0 <= seed < HELD_OUT:
            raise ValueError(f"{name} must be a whole number from 0 to {HELD_OUT - 1}, got {seed!r}.")
    threads = cfg.threads or cores()
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be null or a whole number, 1 or more, got {threads!r}.")
    torch.set_num_threads(threads)
    _check_device(str(cfg.device))
    if str(cfg.device).startswith("cuda"):
        torch.cuda.set_device(torch.device(cfg.device).index or 0)  # what "auto" means to a replay buffer
    torch.manual_seed(cfg.seed)  # weights of new networks; everything else has a generator of its own


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name} was asked for and this machine has no CUDA device; use device=cpu.")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}.")


# Keyword arguments that commands pass themselves: no settings.
_OWN = {
    *("log", "log_every", "generator", "prefetch", "checkpoints", "checkpoint_every"),  # of training
    *("offset", "evaluate", "exploration", "notify", "details", "model", "objective"),
}


def _options(
    group: str,
    settings: DictConfig,
    function: Callable,
    *,
    own: Collection[str] = _OWN,
    besides: Collection[str] = (),
) -> dict[str, Any]:
    """A config group as the keyword arguments of `function`, with wrong names and kinds told in one sentence.

    Args:
        own: keyword arguments that are no settings.
        besides: other settings of the group, to be named with them.

    Raises:
        ValueError: for a name that `function` does not take, or no number where its default is one (null where it may be None).
    """
    options = OmegaConf.to_container(settings, resolve=True)
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in own
    }
    for name, value in options.items():
        if name not in parameters:
            raise ValueError(f"there is no setting {group}.{name}; choose from {', '.join([*parameters, *besides])}.")
        default = parameters[name].default
        if isinstance(default, bool) or not isinstance(default, int | float):
            continue
        whole = isinstance(default, int)
        right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if value is None and "None" in str(parameters[name].annotation):
            continue
        if not (right and math.isfinite(value)):
            raise ValueError(f"{group}.{name} must be a {'whole ' * whole}number, got {value!r}.")
    return options


def _env_kwargs(cfg: DictConfig) -> dict[str, Any]:
    kwargs = OmegaConf.to_container(cfg.env, resolve=True)
    kwargs.pop("id")
    return kwargs


def _behaviour(cfg: DictConfig) -> Behaviour:
    """cfg.collect.behaviour: a name alone, or weights and arguments by name."""
    settings = OmegaConf.to_container(cfg.collect, resolve=True)["behaviour"]
    return behaviour_from_weights({settings: 1.0} if isinstance(settings, str) else settings, BEHAVIOURS)


def collect_command(cfg: DictConfig, command: str) -> None:
    """Collect episodes into cfg.dataset, extending what is there; with cfg.resume only those that are missing."""
    if not cfg.resume:
        _collect(cfg, cfg.collect.episodes)
        return
    # Who asks for the missing episodes waits for whoever is collecting them.
    with holding(f"{cfg.dataset}.lock", wait=True):
        found = (Path(cfg.dataset) / "metadata.json").exists()
        there = dataset_info(cfg.dataset)["episodes"] if found else 0
        if there >= cfg.collect.episodes:
            print(f"{cfg.dataset}: holds {there} episodes, none are missing")
        else:
            _collect(cfg, cfg.collect.episodes - there)


def _collect(cfg: DictConfig, episodes: int) -> None:
    result = collect_dataset(
        cfg.dataset,
        cfg.env.id,
        _env_kwargs(cfg),
        _behaviour(cfg),
        episodes=episodes,
        length=cfg.collect.length,
        seed=cfg.seed,
        workers=cfg.collect.workers,
        compress=cfg.compress,
    )
    repeat = cfg.env.get("action_repeat", 1)
    print(
        f"{cfg.dataset}: {result['episodes']} episodes, {result['frames']} frames in {result['seconds']:.1f} s "
        f"({result['frames_per_second']:.0f} frames/s, {repeat * result['frames_per_second']:.0f} env steps/s)"
    )
    seen = result["coverage"]
    print(
        f"coverage: {seen['cells']} cells of {seen['of']} visited, as even as {seen['effective_cells']:.1f} cells visited alike"
    )


def train_command(cfg: DictConfig, command: str) -> None:
    """Train a world model on cfg.dataset into cfg.run_dir, then a decoder for pictures; with cfg.resume go on."""
    run = Path(cfg.run_dir)
    _require_same_env(cfg, cfg.dataset)
    decoder_steps = cfg.train.decoder_steps
    own = OmegaConf.masked_copy(cfg.train, [k for k in cfg.train if k != "decoder_steps"])
    options = _options("train", own, train, besides=["decoder_steps"])
    if cfg.calibrate.horizon < 1 or cfg.calibrate.episodes < 0:
        raise ValueError(
            f"expected calibrate.horizon >= 1 and calibrate.episodes >= 0, got {cfg.calibrate.horizon} and "
            f"{cfg.calibrate.episodes}."
        )
    _check_kept(cfg)
    checkpoints = Checkpoints(run / "state")
    resolved = OmegaConf.to_container(cfg, resolve=True)
    begun = _begin(cfg, run, checkpoints, cfg.train.steps, "checkpoint.pt")
    if begun is None:
        print(f"{run}: already trained, nothing to resume")
        return
    after, episodes = begun
    buffer = open_windows(
        cfg.dataset,
        _residence(cfg),
        storage=cfg.storage,
        episodes=episodes,
        notify=print,
    )
    shape = buffer.observation_space.shape
    model = WorldModel(
        instantiate(cfg.encoder, observation_shape=list(shape)),
        instantiate(cfg.dynamics, action_dim=buffer.action_space.shape[0]),
        _heads(cfg, buffer.action_space.shape[0]),
    ).to(cfg.device)
    objective = JointEmbeddingObjective(instantiate(cfg.discrepancy), **cfg.objective)
    generator = torch.Generator(cfg.device).manual_seed(cfg.seed)
    decodes = bool(decoder_steps) and len(shape) == 3
    total = options["steps"] + decoder_steps * decodes
    with _logging(cfg, total, after) as (logger, live):
        with progress(options["steps"], desc="train") as bar:

            def log(scalars: dict[str, float], step: int) -> None:
                logger.log(scalars, step)
                live.update(step)
                bar.report(step, loss=scalars["loss"], frames_per_second=scalars["frames_per_second"])

            try:
                train(
                    model,
                    objective,
                    buffer,
                    log=log,
                    log_every=cfg.logger.every,
                    generator=generator,
                    prefetch=2 if isinstance(buffer, DiskWindows) else 0,
                    checkpoints=checkpoints,
                    checkpoint_every=cfg.checkpoint.every,
                    **options,
                )
            except FloatingPointError:
                checkpoints.clear()  # going on would end the same way
                raise
            seconds = checkpoints.latest().content["seconds"]
            training = {
                "seconds": seconds,
                "threads": torch.get_num_threads(),
                "peak_memory_mb": peak_memory_mb(model.device),
                "command": command,
            }
        extra = {"version": __version__, "config": resolved, "training": training}
        # What describes the run changes together with its model, and only now: a failed training leaves an older run whole.
        model.save(run / "checkpoint.pt", **extra)
        with replacing(run / "config.yaml") as partial:
            OmegaConf.save(OmegaConf.create(resolved), partial)
        if cfg.calibrate.episodes:
            print("calibrating predictions on held-out episodes", flush=True)
            calibrate_model(model, cfg)
            model.save(run / "checkpoint.pt", **extra)
        if decodes:
            channels = shape[0] // cfg.env.get("frame_stack", 1)
            decoder = ConvDecoder(model.latent_dim, (channels, *shape[1:])).to(cfg.device)
            first = options["steps"]
            with progress(decoder_steps, desc="decoder") as bar:

                def log_decoder(scalars: dict[str, float], step: int) -> None:
                    logger.log(scalars, first + step)
                    live.update(first + step)
                    bar.report(step, loss=scalars["decoder/squared_error"])

                train_decoder(
                    decoder,
                    model,
                    buffer,
                    steps=decoder_steps,
                    log=log_decoder,
                    log_every=cfg.logger.every,
                    generator=generator,
                )
            save_decoder(decoder, run / "decoder.pt")
        live.finish(total)
    print(f"{run}: checkpoint.pt, metrics.jsonl")


@contextmanager
def _logging(cfg: DictConfig, steps: int, after: int | None) -> Iterator[tuple[RunLogger, LiveReport]]:
    """The run's log, kept up to step `after` of an interrupted run, and its live report of `steps` steps."""
    run = Path(cfg.run_dir)
    with (
        LiveReport(run, name=cfg.name, steps=steps, seconds=cfg.report.every) as live,
        RunLogger(
            run,
            wandb_mode=cfg.logger.wandb,
            project=cfg.logger.project,
            name=cfg.name,
            config=OmegaConf.to_container(cfg, resolve=True),
            resume_after=after,
        ) as logger,
    ):
        yield logger, live


def _check_kept(cfg: DictConfig) -> None:
    """Settings that are first used when a run's folder has been touched."""
    if cfg.storage not in STORAGES:
        raise ValueError(f"storage must be one of {', '.join(STORAGES)}, got {cfg.storage!r}.")
    check_mode(cfg.logger.wandb)


def _heads(cfg: DictConfig, action_dim: int) -> dict[str, torch.nn.Module]:
    """The heads that were asked for; a preset's sizes of others have no _target_."""
    return {name: instantiate(head, action_dim=action_dim) for name, head in cfg.heads.items() if "_target_" in head}


RETURNS = "returns.json"
# Settings of cfg.online that are not arguments of `train_online`.
_ABOUT_ONLINE = ("lanes", "episodes", "data", "pretrain", "capacity", "exploration", "oracle")


def online_command(cfg: DictConfig, command: str) -> None:
    """Learn from reward into cfg.run_dir: while acting, or from the dataset cfg.online.data, or both; with cfg.resume go on."""
    run, own = Path(cfg.run_dir), cfg.online
    acting = OmegaConf.masked_copy(own, [k for k in own if k not in _ABOUT_ONLINE])
    names = _OWN - {"log_every", "checkpoint_every"}
    loop = _options("online", acting, train_online, own=names, besides=_ABOUT_ONLINE)
    loop["exploration"] = Exploration(**_options("online.exploration", own.exploration, Exploration))
    settings = _options("learner", cfg.learner, RewardLearner)
    for name, least in (("lanes", 1), ("episodes", 1), ("pretrain", 0), ("steps", 0), ("capacity", 1)):
        value = own[name]
        if not (name == "capacity" and value is None) and (not isinstance(value, int) or value < least):
            raise ValueError(f"online.{name} must be a whole number, {least} or more, got {value!r}.")
    # Before anything is touched, also what would be refused only once pretraining is over.
    if own.capacity is not None and own.capacity < own.lanes * (own.length + 1):
        raise ValueError(
            f"online.capacity={own.capacity} has no room for a window in each lane: expected at least lanes * (length + 1) = "
            f"{own.lanes * (own.length + 1)}."
        )
    names = ("aimless_steps", "update_ratio", "cooldown", "batch", "length", "horizon", "policy_plans")
    schedule = {name: loop[name] for name in (*names, "evaluate_every", "log_every", "checkpoint_every")}
    if own.steps:
        check_schedule(lanes=own.lanes, steps=own.steps, **schedule)
    else:  # as if there were just enough of them
        least = own.lanes * (own.length + 1)
        check_schedule(lanes=own.lanes, steps=least + 1, **{**schedule, "aimless_steps": least})
    before = own.pretrain
    if before and own.data is None:
        raise ValueError(
            f"online.pretrain={before} updates learn from a dataset and online.data names none: set it, or online.pretrain=0."
        )
    if not before and not own.steps:
        raise ValueError(
            "there is nothing to learn from: set online.steps, or online.data and online.pretrain to learn from a dataset."
        )
    if own.data is not None:  # replay begins with it also where nothing is learned from it before
        _require_same_env(cfg, own.data)
    _check_kept(cfg)
    stream = Stream(cfg.env.id, _env_kwargs(cfg), lanes=own.lanes, seed=cfg.seed, workers=cfg.collect.workers)
    try:
        action_dim = stream.action_space.shape[0]
        model = WorldModel(
            instantiate(cfg.encoder, observation_shape=list(stream.observation_space.shape)),
            instantiate(cfg.dynamics, action_dim=action_dim),
            _heads(cfg, action_dim),
        ).to(cfg.device)
        objective = JointEmbeddingObjective(instantiate(cfg.discrepancy), **cfg.objective)
        learner, planner = RewardLearner(model, objective, **settings), instantiate(cfg.planner)
        if own.oracle:
            _oracle(cfg)
            if not hasattr(stream.envs, "get_state"):
                raise ValueError(
                    f"online.oracle sets the simulator's state, and {cfg.env.id} does not let it: use null."
                )

        def ready(episodes: int) -> None:
            if own.data is not None and not episodes:
                raise ValueError(f"{own.data} holds no episode to learn from; collect some with `gjwm collect`.")
            if own.steps:
                _announce_replay(_replay_arguments(cfg, stream, episodes), _residence(cfg))

        # Only now is anything in the run's folder touched.
        checkpoints = Checkpoints(run / "state")
        begun = _begin(cfg, run, checkpoints, before + own.steps, RETURNS, ready)
        if begun is None:
            print(f"{run}: already trained, nothing to resume")
            return
        try:
            _learn_online(cfg, command, stream, learner, planner, loop, checkpoints, *begun, before=before)
        except FloatingPointError:
            checkpoints.clear()  # going on would end the same way
            raise
    finally:
        stream.close()


def _learn_online(
    cfg: DictConfig,
    command: str,
    stream: Stream,
    learner: RewardLearner,
    planner: Any,
    loop: dict[str, Any],
    checkpoints: Checkpoints,
    after: int | None,
    episodes: int,
    *,
    before: int,
) -> None:
    """What `online_command` has made ready; `before` updates on the dataset's first `episodes` come first, and `after` is where
    a kept state stands."""
    run, own, model = Path(cfg.run_dir), cfg.online, learner.model
    resolved = OmegaConf.to_container(cfg, resolve=True)
    total = before + own.steps
    curve = ReturnCurve(
        run / "returns.csv",
        repeat=cfg.env.get("action_repeat", 1),
        resume_after=None if after is None else max(after - before, 0) if own.steps else after,
    )
    with _logging(cfg, total, after) as (logger, live), progress(total, desc="online") as bar:
        shown: dict[str, float] = {}

        def log(scalars: dict[str, float], step: int) -> None:
            logger.log(scalars, step)
            live.update(step)
            shown.update(scalars)
            bar.report(step, loss=shown.get("loss", math.nan), earned=shown.get("evaluate/return"))

        def evaluate_returns(step: int, seconds: float) -> dict[str, float]:
            report = _play(cfg, model, planner, "plan")
            curve.add(step, seconds, report["returns"])
            low, high = report["ci95"]
            return {"evaluate/return": report["return_mean"], "evaluate/low": low, "evaluate/high": high}

        generator = torch.Generator().manual_seed(cfg.seed)
        replay = None
        if before and (after is None or after <= before):
            data = open_windows(own.data, _residence(cfg), storage=cfg.storage, episodes=episodes, notify=print)
            pretrain(
                learner,
                data,
                updates=before,
                cooldown=0.0 if own.steps else own.cooldown,
                evaluate=None if own.steps else evaluate_returns,
                log=log,
                generator=generator,
                prefetch=2 if isinstance(data, DiskWindows) else 0,
                checkpoints=checkpoints,
                **{name: loop[name] for name in ("batch", "length", "log_every", "checkpoint_every")},
            )
            del data  # replay takes its place
            if cfg.device.startswith("cuda"):
                torch.cuda.empty_cache()  # else it would still count as taken
        if own.steps:
            if after is None or after <= before:
                replay = _replay(cfg, stream, episodes)
            train_online(
                learner,
                planner,
                stream,
                replay,
                offset=before,
                evaluate=evaluate_returns,
                log=log,
                generator=generator,
                checkpoints=checkpoints,
                **loop,
            )
        kinds = ["plan", *(["policy"] if "policy" in model.heads else []), "random", "hold"]
        returns = {kind: _play(cfg, model, planner, kind) for kind in [*kinds, *(["oracle"] if own.oracle else [])]}
        # Nothing that takes long or can fail is left: now what there was of an earlier run of this name goes.
        curve.finish()
        seconds = checkpoints.latest().content["seconds"]
        training = {"seconds": seconds, "threads": torch.get_num_threads(), "command": command}
        model.save(run / "checkpoint.pt", version=__version__, config=resolved, training=training)
        with replacing(run / "config.yaml") as partial:
            OmegaConf.save(OmegaConf.create(resolved), partial)
        live.finish(total, f"{RETURNS} has what was earned")
    # Last, and after the log is whole: a run without it is not done.
    _write_json(run / RETURNS, {"version": __version__, "command": command, "returns": returns})
    for name, row in returns.items():
        low, high = row["ci95"]
        print(
            f"{name:8s} return {row['return_mean']:.1f} [{low:.1f}, {high:.1f}] of {row['episodes']} episodes, "
            f"{1e3 * row['seconds_per_step']:.1f} ms per step"
        )
    print(f"{run}: checkpoint.pt, returns.csv, returns.json, metrics.jsonl")


def _residence(cfg: DictConfig) -> str:
    return "auto" if cfg.device.startswith("cuda") else "cpu"


def _replay_arguments(cfg: DictConfig, stream: Stream, episodes: int) -> dict[str, Any]:
    """Of a buffer of the stream's lanes with room for the dataset's first `episodes` and for what is acted."""
    space, data = stream.observation_space, cfg.online.data
    stored = [0] * cfg.online.lanes  # steps per lane: each episode goes to the one with the fewest
    for length in () if data is None else episode_lengths(data)[:episodes]:
        stored[stored.index(min(stored))] += length
    acted = -(-cfg.online.steps // cfg.online.lanes)
    steps = cfg.online.capacity or cfg.online.lanes * (max(stored) + acted + 1)
    return {
        "capacity": steps,
        "observation_space": space,
        "action_space": stream.action_space,
        "num_envs": cfg.online.lanes,
        "frame_stack": cfg.env.get("frame_stack", 1) if len(space.shape) == 3 else 1,
        "episodes": steps // 4,  # none is lost where episodes have four steps and more
    }


def _announce_replay(arguments: dict[str, Any], device: str) -> None:
    """Say what a buffer will take, before it or anything else is taken.

    Raises:
        MemoryError: when it is more than there is.
    """
    needed = buffer_bytes(**arguments)
    where = residence(device, needed)
    available = available_memory(where)
    free = "" if available is None else f" of {available / 2**30:.1f} GiB available"
    print(f"replay: {arguments['capacity']} steps take up to {needed / 2**20:,.1f} MiB{free} on {where}", flush=True)
    if available is not None and needed > available:
        raise MemoryError(
            f"a replay of {arguments['capacity']} steps takes {needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB are "
            "available; set online.capacity to fewer, or lower env.size."
        )


def _replay(cfg: DictConfig, stream: Stream, episodes: int) -> ReplayBuffer:
    """A buffer of the stream's lanes, filled with the dataset's first episodes where there is one."""
    buffer = ReplayBuffer(**_replay_arguments(cfg, stream, episodes), device=_residence(cfg))
    if cfg.online.data is not None:
        for episode in itertools.islice(read_episodes(cfg.online.data), episodes):
            buffer.add_episode(*episode[:5])
    return buffer


def _oracle(cfg: DictConfig) -> tuple[Any, dict[str, Any]]:
    """cfg.online.oracle as a planner and the other arguments of `simulator_actor`.

    Raises:
        ValueError: for other settings.
    """
    planner = cfg.online.oracle.get("planner") if OmegaConf.is_dict(cfg.online.oracle) else None
    if planner is None:
        raise ValueError("online.oracle needs a planner, such as that of configs/experiment/suite_offline.yaml.")
    rest = OmegaConf.masked_copy(cfg.online.oracle, [k for k in cfg.online.oracle if k != "planner"])
    options = _options("online.oracle", rest, simulator_actor, besides=["planner"])
    return instantiate(planner), {"discount": cfg.learner.discount, **options}


@contextmanager
def _actor(cfg: DictConfig, model: WorldModel, planner: Any, kind: str) -> Iterator[Act]:
    """The planner, the policy alone, uniform actions, none, or the planner on the true simulator."""
    generator = torch.Generator(cfg.device if kind == "plan" else "cpu").manual_seed(cfg.seed)
    if kind == "oracle":
        planner, options = _oracle(cfg)
        with simulator_actor(cfg.env.id, _env_kwargs(cfg), planner, generator=generator, **options) as act:
            yield act
        return
    if kind == "plan":
        agent = reward_agent(
            model,
            planner,
            horizon=cfg.online.horizon,
            discount=cfg.learner.discount,
            policy_plans=cfg.online.policy_plans,
            generator=generator,
        )

    def act(o: Any, envs: Any) -> Any:
        if kind == "plan":
            return agent.act(o).cpu().numpy()
        if kind == "policy":
            with torch.no_grad():
                return model.heads["policy"](model.encode(torch.as_tensor(o).to(cfg.device))).cpu().numpy()
        a = torch.zeros(len(o), model.action_dim)
        return (a if kind == "hold" else a.uniform_(-1, 1, generator=generator)).numpy()

    yield act


def _play(cfg: DictConfig, model: WorldModel, planner: Any, kind: str) -> dict[str, Any]:
    """Returns of an actor on seeds that training never sees, the same ones each time: differences are the actor's."""
    with _actor(cfg, model, planner, kind) as act:
        returns, seconds = play_returns(
            act,
            cfg.env.id,
            _env_kwargs(cfg),
            episodes=cfg.online.episodes,
            seed=HELD_OUT + 1000 * (cfg.seed % 1000),  # below CALIBRATION
            workers=cfg.collect.workers,
        )
    return return_report(returns, seconds)


def _begin(
    cfg: DictConfig,
    run: Path,
    checkpoints: Checkpoints,
    steps: int,
    last: str,
    ready: Callable[[int], None] = lambda episodes: None,
) -> tuple[int | None, int] | None:
    """Make the run's folder ready -> (step to go on after or None, episodes to train on), or None if all is done.

    Args:
        steps: after which training ends.
        last: the file that is written at the very end: if the last state is newer, the run was killed before it.
        ready: called with the episodes before anything is touched, unless all is done; what it raises stops the command.

    Raises:
        ValueError: when a training would be lost, or resumed with other settings.
    """
    found, started = checkpoints.latest(), run / "state" / "run.json"
    unfinished = found is not None and (run / "metrics.jsonl.partial").exists()
    if found is not None and cfg.resume:
        before = json.loads(started.read_text())
        online = last == RETURNS
        require_same_training(before["config"], OmegaConf.to_container(cfg, resolve=True), run, online=online)
        if found.step >= steps and not unfinished and _newer(run / last, checkpoints):
            return None
        kinds = [torch.device(name).type for name in (before["config"]["device"], cfg.device)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{run} was begun on {kinds[0]}, whose random numbers {kinds[1]} does not have: go on with device={kinds[0]}."
            )
        ready(before["episodes"])
        return found.step, before["episodes"]
    if unfinished:
        raise ValueError(
            f"{run} holds a training that stopped after step {found.step}: go on with resume=true, or remove "
            f"{checkpoints.folder} to start anew."
        )
    dataset = cfg.online.data if last == RETURNS else cfg.dataset
    episodes = 0 if dataset is None else dataset_info(dataset)["episodes"]
    ready(episodes)
    checkpoints.clear()
    started.parent.mkdir(parents=True, exist_ok=True)
    _write_json(started, {"config": OmegaConf.to_container(cfg, resolve=True), "episodes": episodes})
    return None, episodes


def _newer(file: Path, checkpoints: Checkpoints) -> bool:
    """Whether a file is there and was written after all states."""
    states = max(path.stat().st_mtime_ns for path in checkpoints.folder.glob("state-*.pt"))
    return file.is_file() and file.stat().st_mtime_ns >= states


def _require_same_env(cfg: DictConfig, dataset: str) -> None:
    """Refuse data of another world: nothing later would notice."""
    info = dataset_info(dataset)
    made = {"id": info["env_id"], **info["env_kwargs"]}
    wanted = OmegaConf.to_container(cfg.env, resolve=True)
    different = sorted(key for key in made.keys() | wanted.keys() if made.get(key) != wanted.get(key))
    if different:
        raise ValueError(
            f"{dataset} was collected with "
            + ", ".join(f"env.{key}={made.get(key)!r} and not {wanted.get(key)!r}" for key in different)
            + "; pass the same settings, or another dataset=..."
        )


def save_decoder(decoder: ConvDecoder, path: Path) -> None:
    """Write a decoder's keyword arguments and weights, atomically."""
    with replacing(path) as partial:
        torch.save({"format": 1, "config": decoder.config, "state": decoder.state_dict()}, partial)


def load_decoder(path: Path, device: str = "cpu") -> ConvDecoder:
    """The decoder written by `save_decoder`, in evaluation mode."""
    payload = load_payload(path, device)
    decoder = ConvDecoder(**payload["config"])
    decoder.load_state_dict(payload["state"])
    return decoder.to(device).eval()


def calibrate_model(model: WorldModel, cfg: DictConfig) -> None:
    """Fit the factors on predicted spreads, and the scale of surprise, on episodes that neither training nor evaluation see."""
    episodes = collect_episodes(
        cfg.env.id,
        _env_kwargs(cfg),
        _behaviour(cfg),
        episodes=cfg.calibrate.episodes,
        length=cfg.evaluate.length,
        seed=CALIBRATION + cfg.seed,
        workers=cfg.collect.workers,
    )
    episodes = list(episodes)
    check_equal_length(episodes)
    latents, actions = [], []
    for episode in episodes:
        latents.append(encode_episodes(model, [episode])[0])
        actions.append(torch.from_numpy(episode.a).to(cfg.device))
    model.calibrate(
        torch.stack(latents),
        torch.stack(actions),
        horizon=min(cfg.calibrate.horizon, cfg.evaluate.length),
        particles=cfg.calibrate.particles,
        generator=torch.Generator(cfg.device).manual_seed(cfg.seed),
    )


def held_out_episodes(cfg: DictConfig, *, episodes: int | None = None) -> list[Episode]:
    """Episodes with seeds that training never saw, recorded with their simulator states."""
    return list(
        collect_episodes(
            cfg.env.id,
            _env_kwargs(cfg),
            _behaviour(cfg),
            episodes=episodes or cfg.evaluate.episodes,
            length=cfg.evaluate.length,
            seed=HELD_OUT + cfg.evaluate.seed,
            workers=cfg.collect.workers,
            record_state=True,
        )
    )


def evaluate_command(cfg: DictConfig, command: str) -> None:
    """Write evaluation.json, the curves and films that go with it, and report.html into cfg.run_dir."""
    run = Path(cfg.run_dir)
    model = WorldModel.load(run / "checkpoint.pt", cfg.device)
    options = _evaluate_options(cfg)
    planner = instantiate(cfg.planner)
    print("collecting held-out episodes", flush=True)
    episodes, details = held_out_episodes(cfg), Details()
    report = evaluate(
        model,
        cfg.env.id,
        _env_kwargs(cfg),
        episodes,
        planner,
        notify=lambda message: print(message, flush=True),
        details=details,
        **options,
    )
    if cfg.report.worst + cfg.report.typical:
        print("filming attempts", flush=True)
        try:
            films = films_of(
                model,
                cfg.env.id,
                _env_kwargs(cfg),
                details,
                decoder=_decoder_of(run, cfg.device),
                position=details.readouts["position"],
                seed=options["seed"],
            )
        except ValueError as error:
            print(f"no films: {error}", file=sys.stderr)  # what was measured is worth more than its pictures
        else:
            shown = dict(worst=cfg.report.worst, typical=cfg.report.typical, fps=cfg.video.fps)
            report["gallery"] = gallery(run / GALLERY, films, **shown)
    report["training"] = load_payload(run / "checkpoint.pt")["extra"]["training"]
    report["version"], report["command"] = __version__, command
    report["evaluated"] = time.strftime("%Y-%m-%d %H:%M")
    report["versions"] = _versions()
    report["config"] = OmegaConf.to_container(cfg, resolve=True)
    save_arrays(run / ARRAYS, details.arrays)
    _write_json(run / EVALUATION, report)
    print(summary(report))
    print("\n".join(judge(report).lines))
    print(run / EVALUATION)
    print(write_report(run))
    if cfg.logger.wandb != "disabled":
        films_shown = {
            f"{row['kind']}/{row['attempt']}": run / GALLERY / row["file"] for row in report.get("gallery", [])
        }
        log_results(
            run,
            wandb_mode=cfg.logger.wandb,
            project=cfg.logger.project,
            group=cfg.name,
            job="evaluate",
            results=report,
            videos=films_shown,
        )


def report_command(cfg: DictConfig, command: str) -> None:
    """Draw cfg.run_dir/report.html again from what an evaluation left there: no model, data or world is needed."""
    print(write_report(cfg.run_dir))


def _decoder_of(run: Path, device: str) -> ConvDecoder | None:
    """The run's decoder, which a run on state vectors or with train.decoder_steps=0 does not have."""
    path = run / "decoder.pt"
    return load_decoder(path, device) if path.is_file() else None


def _versions() -> dict[str, str]:
    names = ("torch", "numpy", "gymnasium", "mujoco", "dm-control")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
        "machine": f"{platform.system()} {platform.machine()}, {cores()} cores",
    }


def _evaluate_options(cfg: DictConfig) -> dict[str, Any]:
    """cfg.evaluate as `evaluate`'s arguments, checked before minutes are spent on episodes."""
    own = OmegaConf.masked_copy(cfg.evaluate, [k for k in cfg.evaluate if k not in ("length", "episodes")])
    options = _options("evaluate", own, evaluate, besides=["episodes", "length"])
    episodes, length = cfg.evaluate.episodes, cfg.evaluate.length
    if not isinstance(episodes, int) or not isinstance(length, int) or episodes < 8 or length < 1:
        raise ValueError(
            f"expected evaluate.episodes >= 8, half of which fit the probes, and evaluate.length >= 1, got {episodes!r} and "
            f"{length!r}."
        )
    known = inspect.signature(check_protocol).parameters
    check_protocol(**{name: value for name, value in options.items() if name in known})
    return options


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def summary(report: dict[str, Any]) -> str:
    """The report's headline figures, a few lines for people."""
    p, g, c, s = report["prediction"], report["gaussianity"], report["calibration"], report["planning"]
    lines = [
        f"prediction   R2 at {p['horizon']} steps {p['r2_by_horizon'][-1]:.3f} (copy-last "
        f"{p['copy_last_r2_by_horizon'][-1]:.3f}), skill {p['skill_nats_per_dim']:.2f} nats/dim (copy-last "
        f"{p['skill_copy_last_nats_per_dim']:.2f}), rank accuracy {p['rank_accuracy']:.3f}",
        f"probe R2     linear {report['probe']['linear_r2']:.3f}, kNN {report['probe']['knn_r2']:.3f}, "
        f"MLP {report['probe']['mlp_r2']:.3f}",
        f"gaussianity  effective rank {g['effective_rank']:.1f} (ideal {g['effective_rank_ideal']:.1f}), Epps-Pulley "
        f"{g['epps_pulley']:.2f} (ideal {g['epps_pulley_null']:.2f}), variance {p['variance_per_dim']:.3f} (ideal 1)",
        f"calibration  50/80/90/95% intervals cover {c['coverage_50']:.2f} {c['coverage_80']:.2f} "
        f"{c['coverage_90']:.2f} {c['coverage_95']:.2f}, ECE {c['ece']:.3f}",
    ]
    if "surprise" in report:
        v = report["surprise"]
        lines.append(
            f"surprise     AUROC teleport {v['teleport']['auroc']:.3f}, colour {v['colour']['auroc']:.3f}, frozen "
            f"{v['frozen']['auroc']:.3f}; false alarms {v['false_alarm_rate']:.2%} at {v['level']:.0%}"
        )
    for name in ("model", "random", "hold", "oracle"):
        row = s if name == "model" else s.get(name)
        if row is not None:
            low, high = row["ci95"]
            lines.append(
                f"planning     {name:7s} success {row['success_rate']:.1%} [{low:.1%}, {high:.1%}] of {row['episodes']}, "
                f"{1e3 * row['seconds_per_step']:.1f} ms per step"
            )
    return "\n".join(lines)


def video_command(cfg: DictConfig, command: str) -> None:
    """Write films of attempts into cfg.run_dir/videos: goals*.mp4, some in detail, and grid*.mp4, many at once."""
    run = Path(cfg.run_dir)
    checkpoint = Path(cfg.video.checkpoint or run / "checkpoint.pt")
    model = WorldModel.load(checkpoint, cfg.device)
    decoder = _decoder_of(checkpoint.parent, cfg.device)
    options = _evaluate_options(cfg)
    suffixes = (cfg.video.format,) if isinstance(cfg.video.format, str) else tuple(cfg.video.format)
    count = max(cfg.video.episodes, cfg.video.grid)
    if count < 1 or cfg.video.episodes < 0 or cfg.video.grid < 0:
        raise ValueError(
            f"a video shows video.episodes attempts in detail and video.grid at once, one of them at least 1, got "
            f"{cfg.video.episodes} and {cfg.video.grid}."
        )
    seeds = [cfg.evaluate.seed] if cfg.video.seeds is None else list(cfg.video.seeds)
    made = []
    for seed in seeds:
        own = cfg.copy()
        own.evaluate.seed = seed
        episodes = held_out_episodes(own, episodes=max(count, cfg.video.readout_episodes))
        details = attempt(
            model,
            cfg.env.id,
            _env_kwargs(cfg),
            episodes,
            instantiate(cfg.planner),
            count=count,
            seed=seed,
            **{k: options[k] for k in ("goals", "goal_offset", "steps", "horizon", "replan_every")},
        )
        position = None
        if cfg.video.readout_episodes:
            latents = encode_episodes(model, episodes)
            position = position_readout(latents, episodes, generator=torch.Generator().manual_seed(seed))
        films = films_of(
            model,
            cfg.env.id,
            _env_kwargs(cfg),
            details,
            decoder=decoder,
            position=position,
            scale=cfg.video.scale,
            seed=seed,
        )
        name = "" if cfg.video.seeds is None else f"-seed-{seed}"
        for suffix in suffixes:
            if cfg.video.episodes:
                path = run / "videos" / f"goals{name}.{suffix}"
                made.append(goals_video(path, films, shown=cfg.video.episodes, fps=cfg.video.fps))
            if cfg.video.grid:
                path = run / "videos" / f"grid{name}.{suffix}"
                made.append(grid_video(path, films, shown=cfg.video.grid, fps=cfg.video.fps))
    print("\n".join(map(str, made)))
    if cfg.logger.wandb != "disabled":
        log_results(
            run,
            wandb_mode=cfg.logger.wandb,
            project=cfg.logger.project,
            group=cfg.name,
            job="video",
            videos={path.stem: path for path in made},
        )


def run_command(cfg: DictConfig, command: str) -> None:
    """Collect, train and evaluate into cfg.run_dir; what is there is gone on with, and what is done is not done again.

    One process at a time works on a run: another waits, and then finds it done.
    """
    cfg.resume = True
    run, now = Path(cfg.run_dir), OmegaConf.to_container(cfg, resolve=True)
    with holding(run / "lock", wait=True):
        trained = (run / "checkpoint.pt").is_file() and not (run / "metrics.jsonl.partial").exists()
        if trained:
            require_same_training(OmegaConf.to_container(OmegaConf.load(run / "config.yaml")), now, run)
        collect_command(cfg, command)
        if not trained:
            train_command(cfg, command)
        before = json.loads((run / EVALUATION).read_text())["config"] if (run / EVALUATION).is_file() else None
        if not trained or before is None or not same_evaluation(before, now):
            evaluate_command(cfg, command)
        else:
            print(f"{run}: already evaluated")


def study_command(cfg: DictConfig, command: str) -> None:
    """Run a grid of settings with several seeds, each run in a process of its own, and write what they found together."""
    overrides = shlex.split(command)[2:]
    axes, fixed = split_sweep(overrides)
    settings = OmegaConf.to_container(cfg.study, resolve=False)  # interpolations are each run's own
    settings["grid"] |= axes
    several = {"local": cores() if has_joblib() else 1, "slurm": 256}  # as many as submitit's arrays run by default
    if settings["launcher"] not in several:
        raise ValueError(f"study.launcher must be local or slurm, got {settings['launcher']!r}.")
    at_once = several[settings["launcher"]] if settings["jobs"] is None else settings["jobs"]
    if not isinstance(at_once, int) or at_once < 1:
        raise ValueError(f"study.jobs must be null or a whole number, 1 or more, got {at_once!r}.")
    folder = Path(cfg.run_dir)
    sweep = Sweep(
        name=cfg.name,
        folder=folder,
        compose=lambda given: OmegaConf.to_container(load_config(with_experiment("run", given)), resolve=True),
        given=[text for text in fixed if not text.lstrip("+~").startswith(("study=", "study.", "study@"))],
        threads=1 if at_once > 1 and cfg.threads is None else cfg.threads,
        **settings_of(settings),
    )

    def launch(jobs: Sequence[Job], done: Done) -> None:
        if settings["launcher"] == "slurm":
            run_slurm(jobs, done, at_once=at_once, folder=folder / "slurm", options=settings["slurm"])
        else:
            run_local(jobs, done, at_once=at_once)

    if not settings["only_summary"]:
        try:
            with holding(folder / "lock"):
                missing = "" if has_joblib() else "; pip install 'gjwm[study]' runs several"
                print(f"{folder}: up to {at_once} at once{missing}")
                sweep.execute(launch, lambda message: print(message, flush=True))
        except BlockingIOError as error:
            raise ValueError(
                f"another study is running in {folder}; wait for it, or look at it with study.only_summary=true."
            ) from error
    records = sweep.records()
    tuned = None if sweep.tune is None else sweep.tune.key
    print(write_study(folder, records, title=cfg.name, command=command, reference=settings["reference"], tuned=tuned))
    print(folder / "study.md")
    failed = sum(record.state == "failed" for record in records)
    if failed and not settings["only_summary"]:
        raise RuntimeError(
            f"{failed} of {len(records)} runs failed, {folder / 'study.md'} says why; the same command tries them again."
        )


def split_sweep(overrides: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Axes among overrides, in hydra's multirun grammar (discrepancy=none,sigreg, seed=range(3)), and the other overrides."""
    axes: dict[str, list[Any]] = {}
    fixed = []
    for text in overrides:
        parsed = OverridesParser.create().parse_override(text)
        if parsed.is_sweep_override():
            values = parsed.sweep_iterator(transformer=Transformer.identity)
            key = "+" * parsed.is_add() + parsed.get_key_element().lstrip("+~")
            axes[key] = [value.text if isinstance(value, QuotedString) else value for value in values]
        else:
            fixed.append(text)
    return axes, fixed


COMMANDS: dict[str, Callable[[DictConfig, str], None]] = {
    "collect": collect_command,
    "train": train_command,
    "online": online_command,
    "evaluate": evaluate_command,
    "report": report_command,
    "video": video_command,
    "run": run_command,
    "study": study_command,
}


def benchmark_command(arguments: Sequence[str]) -> None:
    """`NAME [quick=true]`: run one of gjwm.benchmarks and print its table."""
    name, *options = arguments or [""]
    if any(option not in ("quick=true", "quick=false") for option in options):
        raise ValueError(f"a benchmark takes quick=true or nothing else, got {' '.join(options)}.")
    print(benchmarks.table(benchmarks.run(name, quick="quick=true" in options)))


def _experiments() -> str:
    folder = importlib.resources.files("gjwm.configs") / "experiment"
    return "|".join(sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")))


USAGE = f"""usage: gjwm {"|".join(COMMANDS)} [key=value ...]
       gjwm data info|verify|convert DATASET ...
       gjwm benchmark {"|".join(benchmarks.names())} [quick=true]

  collect    gather episodes into data/<task>
  train      train a world model on them into runs/<name>
  online     learn a task from its reward while acting: task=walker-walk preset=cpu|gpu
  evaluate   write runs/<name>/evaluation.json and report.html
  report     draw report.html again, from the run's folder alone: run_dir=...
  video      write runs/<name>/videos/goals.mp4 and grid.mp4
  run        collect, train and evaluate, going on with what is there
  study      that for several seeds and any grid of settings, and a table: study.seeds=[0,1,2] discrepancy=none,sigreg
  data       look into a dataset, check every byte of it, or bring one of another format in
  benchmark  measure speed, ours beside a reference and the floor

Common overrides: experiment={_experiments()}  name=...  seed=...  objective.lam=0  logger.wandb=disabled
resume=true goes on with a collection or a training that was interrupted"""

# What a user's input or machine can cause; anything else is a defect and keeps its traceback.
USER_ERRORS = (
    ValueError,
    OSError,
    MemoryError,
    FloatingPointError,
    RuntimeError,
    ImportError,
    gymnasium.error.Error,
    HydraException,
    OmegaConfBaseException,
)


@contextmanager
def _alone(run_dir: str) -> Iterator[None]:
    """Keep other trainings out of a run's folder, as two would write over each other."""
    with ExitStack() as stack:
        try:
            stack.enter_context(holding(Path(run_dir) / "lock"))
        except BlockingIOError as error:
            raise ValueError(f"another process works in {run_dir}; wait for it, or choose another name=...") from error
        yield


UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command -> exit status: 0, 1 after an error told in one sentence, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None and arguments[0] not in ("data", "benchmark"):
        print(
            f"gjwm: unknown command {arguments[0]!r}; choose one of {', '.join(COMMANDS)}, data, benchmark.",
            file=sys.stderr,
        )
        return 2
    try:
        if arguments[0] == "data":
            return data_command(arguments[1:])
        if command is None:
            benchmark_command(arguments[1:])
        else:
            settings = split_sweep(arguments[1:])[1] if command is study_command else arguments[1:]
            cfg = load_config(with_experiment(arguments[0], settings))
            _prepare(cfg)
            with _alone(cfg.run_dir) if command in (train_command, online_command) else nullcontext():
                command(cfg, shlex.join(["gjwm", *arguments]))
    except USER_ERRORS as error:
        if os.environ.get("GJWM_TRACEBACK"):
            raise
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        told = " ".join(str(cause).split())  # hydra's come in several lines
        if isinstance(cause, OSError) and cause.errno in UNWRITABLE and cause.filename and command is not None:
            told = (
                f"{cause.filename}: {cause.strerror}; set dataset=... or run_dir=... to a folder that can be written."
            )
        print(f"gjwm {arguments[0]}: {told}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"gjwm {arguments[0]}: stopped.", file=sys.stderr)
        return 130
    return 0
