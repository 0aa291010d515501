"""A task learned from its reward, in one call: `learn`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, nn

from gjwm import __version__
from gjwm._core.checkpoint import Checkpoints
from gjwm._core.fit import Log
from gjwm._core.machine import keep_freed_memory
from gjwm._core.settings import Factory, check
from gjwm.data.acting import Actor, HoldActor, RandomActor, Recorder
from gjwm.data.dataset import dataset_info, episode_lengths, open_windows, read_episodes
from gjwm.data.handle import HELD_OUT, Dataset
from gjwm.data.replay import ReplayBuffer, buffer_bytes, require_memory, residence
from gjwm.evaluation.verdict import Finding
from gjwm.models.dynamics import GaussianDynamics
from gjwm.models.encoders import ConvEncoder, MLPEncoder
from gjwm.models.heads import RewardHead
from gjwm.models.world_model import Origin, WorldModel
from gjwm.objectives import SIGReg
from gjwm.planning import MPPI
from gjwm.rl.actor_critic import Policy, QEnsemble
from gjwm.rl.films import film_extremes
from gjwm.rl.health import Signs, ailments, sentence
from gjwm.rl.learner import RewardLearner
from gjwm.rl.loop import Hooks, planning_agent, pretrain, train_online
from gjwm.rl.oracle import RewardOracle
from gjwm.rl.returns import Foresight, PolicyActor, ReturnCurve, play_returns, return_report
from gjwm.rl.settings import LearnerSettings, OnlineSettings
from gjwm.rl.stream import Stream
from gjwm.training.metrics import progress
from gjwm.training.recipe import build, make_objective
from gjwm.training.run import RETURNS, Run, sole_process, write_json
from gjwm.training.settings import ModelRecipe, ObjectiveSettings, made, plain


def _encoder(observation_shape: tuple[int, ...], latent_dim: int) -> nn.Module:
    if len(observation_shape) == 3:
        return ConvEncoder(observation_shape, latent_dim)
    # symlog: joints may wind up under aimless actions
    return MLPEncoder(observation_shape, latent_dim, hidden=(128, 128), symlog=True)


def _heads() -> dict[str, Factory]:
    return {
        "reward": RewardHead,
        "value": partial(QEnsemble, hidden=128),
        "policy": partial(Policy, hidden=(128, 128)),
    }


@dataclass(frozen=True, kw_only=True)
class RewardRecipe(ModelRecipe):
    """A model, how it plans, and how both learn from reward. Sizes are for one core.

    Args:
        heads: "reward", and if wanted "termination", and "value" with "policy".
        planner: () -> a planner, which maximises the reward.
        learner, online: see there.
    """

    encoder: Factory = _encoder
    dynamics: Factory = field(
        default_factory=lambda: partial(GaussianDynamics, hidden=128, std_hidden=64)
    )
    heads: Mapping[str, Factory] = field(default_factory=_heads)
    # one latent of each window is judged
    discrepancy: Factory = field(
        default_factory=lambda: partial(SIGReg, num_slices=64, time="pooled")
    )
    objective: ObjectiveSettings = field(default_factory=lambda: ObjectiveSettings(lam=1.0))
    planner: Factory = field(
        default_factory=lambda: partial(
            MPPI,
            samples=24,
            iterations=1,
            elites=6,
            covariance="diagonal",
            init_std=0.7,
            min_std=0.05,
        )
    )
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    online: OnlineSettings = field(default_factory=OnlineSettings)


def learn(
    env_id: str,
    recipe: RewardRecipe | None = None,
    *,
    run: str | Path | Run | None = None,
    device: str = "cpu",
    workers: int | None = None,
    storage: str = "auto",
    notify: Callable[[str], Any] = print,
    **env_kwargs: Any,
) -> WorldModel:
    """Learn a task from its reward: while acting, from `recipe.online.data`, or both.

    Args:
        env_id, env_kwargs: of `gjwm.make_env`: any environment with actions in a box, whose
            observations are one array.
        run: a folder that gets checkpoint.pt, returns.csv (every return of every evaluation) and
            returns.json (of all actors at the end), and films of the best and the worst of the
            last episodes, where the environment draws pictures, and from which an interrupted
            training goes on; None writes nothing.
        workers: processes that step environments, see `gjwm.make_vec`.
        storage: where the dataset lies while it is learned from, see `open_windows`.
        notify: told what happens.

    Returns:
        the model, in evaluation mode. `reward_agent` acts with it.

    Raises:
        ValueError: for settings, an environment or data that do not go together.
        MemoryError: when replay takes more than there is.
        FloatingPointError: when a loss is NaN or infinite.
    """
    recipe = RewardRecipe() if recipe is None else recipe
    check("gjwm.rl.learn's recipe", recipe, RewardRecipe)
    settings = recipe.online
    if device == "cpu":
        keep_freed_memory()
    with ExitStack() as stack:
        if run is not None and not isinstance(run, Run):
            stack.enter_context(sole_process(run))
            config = {"env": {"id": env_id, **env_kwargs}, **plain(recipe)}
            run = Run(run, config, device=device, resume=True, last=RETURNS)
        if settings.data is not None:
            Dataset.open(settings.data).require_env(env_id, env_kwargs)
        lanes = dict(lanes=settings.lanes, seed=recipe.seed, workers=workers)
        stream = stack.enter_context(closing(Stream(env_id, env_kwargs, **lanes)))
        if settings.oracle and not hasattr(stream.envs, "get_state"):
            raise ValueError(
                f"online.oracle sets the simulator's state, and {env_id} does not let it: use null."
            )
        training = _Training(env_id, env_kwargs, recipe, stream, device, workers, storage, notify)
        return training.go(run)


@dataclass
class _Training:
    """One training: a learner and a planner that are made and checked before `go` trains."""

    env_id: str
    env_kwargs: dict[str, Any]
    recipe: RewardRecipe
    stream: Stream
    device: str
    workers: int | None
    storage: str
    notify: Callable[[str], Any]

    def __post_init__(self):
        recipe, stream = self.recipe, self.stream
        self.settings = recipe.online
        # Windows and replay live beside the model on a GPU if they fit.
        self._home = "auto" if self.device.startswith("cuda") else "cpu"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            shape, action_dim = stream.observation_space.shape, stream.action_space.shape[0]
            model = build(recipe, shape, action_dim, self.device)
            objective = make_objective(recipe)
        model.origin = Origin(env_id=self.env_id, env_kwargs=self.env_kwargs, recipe=plain(recipe))
        self.learner = RewardLearner(model, objective, recipe.learner)
        self.planner = made("planner", recipe.planner)
        self._seen: dict[str, float] = {}  # the newest of each scalar that was logged
        self._evaluations: list[float] = []
        self._ailments: tuple[Finding, ...] = ()

    @property
    def model(self) -> WorldModel:
        return self.learner.model

    @property
    def steps(self) -> int:
        """Of the whole training: updates on data, then agent steps."""
        return self.settings.pretrain + self.settings.steps

    def check_memory(self, episodes: int) -> None:
        """Say what replay will take, with the dataset's first `episodes`, before anything is taken.

        Raises:
            MemoryError: when it is more than there is.
            ValueError: for a dataset without episodes.
        """
        if self.settings.data is not None and not episodes:
            raise ValueError(
                f"{self.settings.data} holds no episode to learn from; collect some with "
                "`gjwm collect`."
            )
        if not self.settings.steps:
            return
        arguments = self._replay_arguments(episodes)
        needed, capacity = buffer_bytes(**arguments), arguments["capacity"]
        where = residence(self._home, needed)
        taken = require_memory(capacity, needed, where, settings="online.capacity or env.size")
        self.notify(f"replay: {capacity} steps take up to {taken} on {where}")

    def go(self, run: Run | None) -> WorldModel:
        data = self.settings.data
        episodes = 0 if data is None else dataset_info(data)["episodes"]
        if run is None:
            self.check_memory(episodes)
            self._train(None, episodes, None, lambda scalars, step: None)
            return self.model
        self.model.describe()  # what cannot be saved is told before it is trained
        # Only now is anything in the run's folder touched.
        begun = run.begin(self.steps, episodes, self.check_memory)
        if begun is None:
            self.notify(f"{run.folder}: already trained, nothing to resume")
            return WorldModel.load(run.folder / "checkpoint.pt", self.device)
        after, episodes = begun
        curve = self._curve(run.folder, after)
        self._evaluations = curve.means()
        kept = run.checkpoints.latest()
        if kept is not None:
            with kept.restoring():
                self._seen = dict(kept.content["logged"])
            self._judge(kept.step)  # what held then was told then
        with run.logging(self.steps, after) as log:

            def log_and_judge(scalars: dict[str, float], step: int) -> None:
                run.remarks = tuple(map(sentence, self._ailments))
                log(scalars, step)

            try:
                self._train(run.checkpoints, episodes, curve, log_and_judge)
            except FloatingPointError:
                run.checkpoints.clear()  # going on would end the same way
                raise
            actors = self._actors()
            plan = Recorder(actors["plan"]())
            actors["plan"] = lambda: plan
            returns = {}
            for name, make in actors.items():
                self.notify(f"playing held-out episodes: {name}")
                returns[name] = self._returns(make)
            run.returns = returns
            # Nothing that takes long or can fail is left: now what there was of an earlier run of
            # this name goes.
            curve.finish()
            seconds = run.checkpoints.latest().content["seconds"]
            training = {"seconds": seconds, "threads": torch.get_num_threads()}
            training["command"] = run.command
            about = {"version": __version__, "config": run.config, "training": training}
            self.model.save(run.folder / "checkpoint.pt", **about)
            run.write_config()
        self._film(run.folder / "videos", returns["plan"]["returns"], plan.actions)
        # Last, and after the log is whole: a run without it is not done.
        content = {"version": __version__, "command": run.command, "returns": returns}
        write_json(run.folder / RETURNS, content)
        for name, row in returns.items():
            between = " [{:.1f}, {:.1f}]".format(*row["ci95"]) if row["ci95"] else ""
            many = "s" * (row["episodes"] > 1)
            self.notify(
                f"{name:8s} return {row['return_mean']:.1f}{between} of {row['episodes']} "
                f"episode{many}, {1e3 * row['seconds_per_step']:.1f} ms per step"
            )
        for finding in self._ailments:  # of the last log: the run ended with them
            self.notify(sentence(finding))
        return self.model

    def _train(
        self, checkpoints: Checkpoints | None, episodes: int, curve: ReturnCurve | None, log: Log
    ) -> None:
        """Learn from the dataset's first `episodes`, then while acting, from the newest state."""
        settings = self.settings
        state = None if checkpoints is None else checkpoints.latest()
        fresh = state is None or state.step <= settings.pretrain  # replay was not kept yet

        def evaluate(step: int, seconds: float) -> dict[str, float]:
            make, promise = self._actors()["plan"], {}
            if "value" in self.model.heads:
                watched = Foresight(make(), self.model, self.recipe.learner.discount)
                report = self._returns(lambda: watched, saw=watched.saw)
                promise = {"value": watched.promised, "followed": watched.followed}
            else:
                report = self._returns(make)
            if curve is not None:
                curve.add(step, seconds, report["returns"])
            self._evaluations.append(report["return_mean"])
            earned = {"return": report["return_mean"], **promise}
            if report["ci95"] is not None:
                earned["low"], earned["high"] = report["ci95"]
            return {f"evaluate/{name}": value for name, value in earned.items()}

        def log_and_show(scalars: dict[str, float], step: int) -> None:
            self._seen.update(scalars)
            for finding in self._judge(step):
                bar.clear()
                self.notify(f"step {step}: {sentence(finding)}")
            log(scalars, step)
            seen = self._seen
            bar.report(step, loss=seen.get("loss", math.nan), earned=seen.get("evaluate/return"))

        with progress(self.steps, desc="online") as bar:
            shared: dict[str, Any] = dict(
                hooks=Hooks(
                    evaluate=evaluate, log=log_and_show, doing=bar.doing, checkpoints=checkpoints
                ),
                generator=Generator().manual_seed(self.recipe.seed),
            )
            if settings.pretrain and fresh:
                options = dict(storage=self.storage, episodes=episodes, notify=self.notify)
                windows = open_windows(settings.data, self._home, **options)
                pretrain(self.learner, windows, settings, **shared)
                del windows  # replay takes its place
                if self.device.startswith("cuda"):
                    torch.cuda.empty_cache()  # else it would still count as taken
            if settings.steps:
                replay = self._replay(episodes) if fresh else None
                train_online(self.learner, self.planner, self.stream, replay, settings, **shared)

    def _judge(self, step: int) -> list[Finding]:
        """Whether this training learns anything, after `step` logged ones -> what is wrong since
        now.
        """
        seen, bins = self._seen, getattr(self.learner.value, "two_hot", None)
        signs = Signs(
            steps=max(step - self.settings.pretrain, 0),
            largest_reward=seen.get("train/largest_reward"),
            rank=seen.get("train/rank"),
            std=seen.get("train/std"),
            latent_dim=self.model.latent_dim,
            value=seen.get("train/q"),
            discount=self.recipe.learner.discount,
            value_ends=None if bins is None else bins.ends,
            value_begun=0.0 if bins is None else bins.start,
            evaluations=self._evaluations,
            aimless=seen.get("aimless/return"),
            aimless_high=seen.get("aimless/high"),
        )
        known = {finding.name for finding in self._ailments}
        self._ailments = ailments(signs)
        return [finding for finding in self._ailments if finding.name not in known]

    def _curve(self, folder: Path, after: int | None) -> ReturnCurve:
        if after is not None and self.settings.steps:
            after = max(after - self.settings.pretrain, 0)  # rows count agent steps
        repeat = self.env_kwargs.get("action_repeat", 1)
        return ReturnCurve(folder / "returns.csv", repeat=repeat, resume_after=after)

    def _replay_arguments(self, episodes: int) -> dict[str, Any]:
        """Of a buffer with room for the dataset's first `episodes` and for what is acted."""
        settings, space = self.settings, self.stream.observation_space
        # steps per lane: each episode goes to the one with the fewest
        stored = [0] * settings.lanes
        for length in () if settings.data is None else episode_lengths(settings.data)[:episodes]:
            stored[stored.index(min(stored))] += length
        acted = -(-settings.steps // settings.lanes)
        steps = settings.capacity or settings.lanes * (max(stored) + acted + 1)
        return {
            "capacity": steps,
            "observation_space": space,
            "action_space": self.stream.action_space,
            "num_envs": settings.lanes,
            "frame_stack": self.env_kwargs.get("frame_stack", 1) if len(space.shape) == 3 else 1,
            "episodes": steps // 4,  # none is lost where episodes have four steps and more
        }

    def _replay(self, episodes: int) -> ReplayBuffer:
        buffer = ReplayBuffer(**self._replay_arguments(episodes), device=self._home)
        stored = () if self.settings.data is None else read_episodes(self.settings.data)
        for episode in itertools.islice(stored, episodes):
            buffer.add_episode(*episode[:5])
        return buffer

    def _actors(self) -> dict[str, Callable[[], Actor]]:
        """Who can act, and what makes them."""
        model, seed, oracle = self.model, self.recipe.seed, self.settings.oracle

        def plan() -> Actor:
            generator = Generator(self.device).manual_seed(seed)
            return planning_agent(self.learner, self.planner, self.settings, generator)

        actors: dict[str, Callable[[], Actor]] = {"plan": plan}
        if "policy" in model.heads:
            actors["policy"] = lambda: PolicyActor(model)
        actors["random"] = lambda: RandomActor(model.action_dim, np.random.default_rng(seed))
        actors["hold"] = lambda: HoldActor(model.action_dim)
        if oracle is not None:
            actors["oracle"] = lambda: RewardOracle(
                self.env_id,
                self.env_kwargs,
                made("online.oracle.planner", oracle.planner),
                horizon=oracle.horizon,
                replan_every=oracle.replan_every,
                discount=self.recipe.learner.discount,
                generator=Generator().manual_seed(seed),
            )
        return actors

    def _film(self, folder: Path, returns: Sequence[float], actions: np.ndarray) -> None:
        """Film the best and the worst of the last episodes; where that fails, say so and go on."""
        try:
            film_extremes(
                folder,
                self.env_id,
                self.env_kwargs,
                returns=np.array(returns),
                actions=actions,
                seed=self._held_out,
            )
        except Exception as error:  # renderers fail in ways of their own, and films are an extra
            self.notify(f"no films: {' '.join(str(error).split()) or type(error).__name__}")

    @property
    def _held_out(self) -> int:
        """The first of the seeds that training never sees."""
        return HELD_OUT + 1000 * (self.recipe.seed % 1000)

    def _returns(self, make: Callable[[], Actor], **watching: Any) -> dict[str, Any]:
        """What an actor earns on seeds that training never sees, the same ones each time.
        `watching` goes to `play_returns`.
        """
        actor = make()
        with closing(actor) if isinstance(actor, RewardOracle) else nullcontext():
            returns, seconds = play_returns(
                actor,
                self.env_id,
                self.env_kwargs,
                episodes=self.settings.episodes,
                seed=self._held_out,
                workers=self.workers,
                **watching,
            )
        return return_report(returns, seconds)
