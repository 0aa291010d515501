"""`gjwm online`: a task learned from its reward, while acting or from a dataset."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from gjwm import __version__
from gjwm._core.files import replacing
from gjwm.cli.config import (
    HELD_OUT,
    OWN,
    dynamics_of,
    env_kwargs,
    heads_of,
    keyword_arguments,
    residence_of,
)
from gjwm.cli.run_folder import (
    RETURNS,
    begin,
    check_kept,
    logging_into,
    require_same_env,
    write_json,
)
from gjwm.data.dataset import DiskWindows, episode_lengths, open_windows, read_episodes
from gjwm.data.replay import ReplayBuffer, available_memory, buffer_bytes, residence
from gjwm.models.world_model import WorldModel
from gjwm.objectives import make_objective
from gjwm.planning.agent import reward_agent
from gjwm.reporting.logging import progress
from gjwm.rl import (
    Act,
    Exploration,
    ReturnCurve,
    RewardLearner,
    Stream,
    check_schedule,
    play_returns,
    pretrain,
    return_report,
    simulator_actor,
    train_online,
)
from gjwm.training.checkpoint import Checkpoints

# Settings of cfg.online that are not arguments of `train_online`.
_ABOUT_ONLINE = ("lanes", "episodes", "data", "pretrain", "capacity", "exploration", "oracle")


def online_command(cfg: DictConfig, command: str) -> None:
    """Learn from reward into cfg.run_dir: while acting, or from the dataset cfg.online.data, or
    both; with cfg.resume go on.
    """
    run, own = Path(cfg.run_dir), cfg.online
    acting = OmegaConf.masked_copy(own, [k for k in own if k not in _ABOUT_ONLINE])
    names = OWN - {"log_every", "checkpoint_every"}
    loop = keyword_arguments("online", acting, train_online, own=names, besides=_ABOUT_ONLINE)
    loop["exploration"] = Exploration(
        **keyword_arguments("online.exploration", own.exploration, Exploration)
    )
    settings = keyword_arguments("learner", cfg.learner, RewardLearner)
    for name, least in (
        ("lanes", 1),
        ("episodes", 1),
        ("pretrain", 0),
        ("steps", 0),
        ("capacity", 1),
    ):
        value = own[name]
        if not (name == "capacity" and value is None) and (
            not isinstance(value, int) or value < least
        ):
            raise ValueError(
                f"online.{name} must be a whole number, {least} or more, got {value!r}."
            )
    # Before anything is touched, also what would be refused only once pretraining is over.
    if own.capacity is not None and own.capacity < own.lanes * (own.length + 1):
        raise ValueError(
            f"online.capacity={own.capacity} has no room for a window in each lane: expected at "
            f"least lanes * (length + 1) = {own.lanes * (own.length + 1)}."
        )
    names = (
        "aimless_steps",
        "update_ratio",
        "cooldown",
        "batch",
        "length",
        "horizon",
        "policy_plans",
    )
    schedule = {
        name: loop[name] for name in (*names, "evaluate_every", "log_every", "checkpoint_every")
    }
    if own.steps:
        check_schedule(lanes=own.lanes, steps=own.steps, **schedule)
    else:  # as if there were just enough of them
        least = own.lanes * (own.length + 1)
        check_schedule(lanes=own.lanes, steps=least + 1, **{**schedule, "aimless_steps": least})
    before = own.pretrain
    if before and own.data is None:
        raise ValueError(
            f"online.pretrain={before} updates learn from a dataset and online.data names none: "
            f"set it, or online.pretrain=0."
        )
    if not before and not own.steps:
        raise ValueError(
            "there is nothing to learn from: set online.steps, or online.data and online.pretrain "
            "to learn from a dataset."
        )
    if own.data is not None:  # replay begins with it also where nothing is learned from it before
        require_same_env(cfg, own.data)
    check_kept(cfg)
    stream = Stream(
        cfg.env.id, env_kwargs(cfg), lanes=own.lanes, seed=cfg.seed, workers=cfg.collect.workers
    )
    try:
        action_dim = stream.action_space.shape[0]
        model = WorldModel(
            instantiate(cfg.encoder, observation_shape=list(stream.observation_space.shape)),
            dynamics_of(cfg, cfg.dynamics, action_dim),
            heads_of(cfg, action_dim),
        ).to(cfg.device)
        objective = make_objective(instantiate(cfg.discrepancy), **cfg.objective)
        learner, planner = RewardLearner(model, objective, **settings), instantiate(cfg.planner)
        if own.oracle:
            _oracle(cfg)
            if not hasattr(stream.envs, "get_state"):
                raise ValueError(
                    f"online.oracle sets the simulator's state, and {cfg.env.id} does not let it: "
                    f"use null."
                )

        def ready(episodes: int) -> None:
            if own.data is not None and not episodes:
                raise ValueError(
                    f"{own.data} holds no episode to learn from; collect some with `gjwm collect`."
                )
            if own.steps:
                _announce_replay(_replay_arguments(cfg, stream, episodes), residence_of(cfg))

        # Only now is anything in the run's folder touched.
        checkpoints = Checkpoints(run / "state")
        begun = begin(cfg, run, checkpoints, before + own.steps, RETURNS, ready)
        if begun is None:
            print(f"{run}: already trained, nothing to resume")
            return
        try:
            _learn_online(
                cfg, command, stream, learner, planner, loop, checkpoints, *begun, before=before
            )
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
    """What `online_command` has made ready; `before` updates on the dataset's first `episodes` come
    first, and `after` is where a kept state stands."""
    run, own, model = Path(cfg.run_dir), cfg.online, learner.model
    resolved = OmegaConf.to_container(cfg, resolve=True)
    total = before + own.steps
    curve = ReturnCurve(
        run / "returns.csv",
        repeat=cfg.env.get("action_repeat", 1),
        resume_after=None if after is None else max(after - before, 0) if own.steps else after,
    )
    with logging_into(cfg, total, after) as (logger, live), progress(total, desc="online") as bar:
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
            return {
                "evaluate/return": report["return_mean"],
                "evaluate/low": low,
                "evaluate/high": high,
            }

        generator = torch.Generator().manual_seed(cfg.seed)
        replay = None
        if before and (after is None or after <= before):
            data = open_windows(
                own.data, residence_of(cfg), storage=cfg.storage, episodes=episodes, notify=print
            )
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
                **{
                    name: loop[name]
                    for name in ("batch", "length", "log_every", "checkpoint_every")
                },
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
        returns = {
            kind: _play(cfg, model, planner, kind)
            for kind in [*kinds, *(["oracle"] if own.oracle else [])]
        }
        # Nothing that takes long or can fail is left: now what there was of an earlier run of this
        # name goes.
        curve.finish()
        seconds = checkpoints.latest().content["seconds"]
        training = {"seconds": seconds, "threads": torch.get_num_threads(), "command": command}
        model.save(run / "checkpoint.pt", version=__version__, config=resolved, training=training)
        with replacing(run / "config.yaml") as partial:
            OmegaConf.save(OmegaConf.create(resolved), partial)
        live.finish(total, f"{RETURNS} has what was earned")
    # Last, and after the log is whole: a run without it is not done.
    write_json(run / RETURNS, {"version": __version__, "command": command, "returns": returns})
    for name, row in returns.items():
        low, high = row["ci95"]
        print(
            f"{name:8s} return {row['return_mean']:.1f} [{low:.1f}, {high:.1f}] of "
            f"{row['episodes']} episodes, {1e3 * row['seconds_per_step']:.1f} ms per step"
        )
    print(f"{run}: checkpoint.pt, returns.csv, returns.json, metrics.jsonl")


def _replay_arguments(cfg: DictConfig, stream: Stream, episodes: int) -> dict[str, Any]:
    """Of a buffer of the stream's lanes with room for the dataset's first `episodes` and for what
    is acted.
    """
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
    print(
        f"replay: {arguments['capacity']} steps take up to {needed / 2**20:,.1f} MiB{free} on "
        f"{where}",
        flush=True,
    )
    if available is not None and needed > available:
        raise MemoryError(
            f"a replay of {arguments['capacity']} steps takes {needed / 2**30:.1f} GiB and "
            f"{available / 2**30:.1f} GiB are available; set online.capacity to fewer, or lower "
            "env.size."
        )


def _replay(cfg: DictConfig, stream: Stream, episodes: int) -> ReplayBuffer:
    """A buffer of the stream's lanes, filled with the dataset's first episodes where there is
    one.
    """
    buffer = ReplayBuffer(**_replay_arguments(cfg, stream, episodes), device=residence_of(cfg))
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
        raise ValueError(
            "online.oracle needs a planner, such as that of configs/experiment/suite_offline.yaml."
        )
    rest = OmegaConf.masked_copy(
        cfg.online.oracle, [k for k in cfg.online.oracle if k != "planner"]
    )
    options = keyword_arguments("online.oracle", rest, simulator_actor, besides=["planner"])
    return instantiate(planner), {"discount": cfg.learner.discount, **options}


@contextmanager
def _actor(cfg: DictConfig, model: WorldModel, planner: Any, kind: str) -> Iterator[Act]:
    """The planner, the policy alone, uniform actions, none, or the planner on the true
    simulator.
    """
    generator = torch.Generator(cfg.device if kind == "plan" else "cpu").manual_seed(cfg.seed)
    if kind == "oracle":
        planner, options = _oracle(cfg)
        with simulator_actor(
            cfg.env.id, env_kwargs(cfg), planner, generator=generator, **options
        ) as act:
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
                return (
                    model.heads["policy"](model.encode(torch.as_tensor(o).to(cfg.device)))
                    .cpu()
                    .numpy()
                )
        a = torch.zeros(len(o), model.action_dim)
        return (a if kind == "hold" else a.uniform_(-1, 1, generator=generator)).numpy()

    yield act


def _play(cfg: DictConfig, model: WorldModel, planner: Any, kind: str) -> dict[str, Any]:
    """Returns of an actor on seeds that training never sees, the same ones each time: differences
    are the actor's.
    """
    with _actor(cfg, model, planner, kind) as act:
        returns, seconds = play_returns(
            act,
            cfg.env.id,
            env_kwargs(cfg),
            episodes=cfg.online.episodes,
            seed=HELD_OUT + 1000 * (cfg.seed % 1000),  # below CALIBRATION
            workers=cfg.collect.workers,
        )
    return return_report(returns, seconds)
