"""A task learned from its reward, from Python: `learn`. `gjwm online` is the same, with a log and a
page.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from gjwm.data.dataset import (
    DiskWindows,
    dataset_info,
    episode_lengths,
    open_windows,
    read_episodes,
)
from gjwm.data.replay import ReplayBuffer, available_memory, buffer_bytes, residence
from gjwm.models.dynamics import GaussianDynamics
from gjwm.models.encoders import ConvEncoder, MLPEncoder
from gjwm.models.heads import RewardHead
from gjwm.models.world_model import Origin, WorldModel
from gjwm.objectives import SIGReg, make_objective
from gjwm.planning import MPPI, Planner
from gjwm.planning.agent import reward_agent
from gjwm.rl.actor_critic import Policy, QEnsemble
from gjwm.rl.learner import RewardLearner
from gjwm.rl.loop import Log, pretrain, train_online
from gjwm.rl.oracle import simulator_actor
from gjwm.rl.returns import Act, ReturnCurve, play_returns, return_report
from gjwm.rl.settings import LearnerSettings, OnlineSettings
from gjwm.rl.stream import Stream
from gjwm.training.checkpoint import Checkpoints

# Seeds of evaluation start here, and above: training never sees them.
HELD_OUT = 1_000_000


def _encoder(observation_shape: tuple[int, ...], latent_dim: int) -> nn.Module:
    if len(observation_shape) == 3:
        return ConvEncoder(observation_shape, latent_dim)
    # symlog: joints may wind up under aimless actions
    return MLPEncoder(observation_shape, latent_dim, hidden=(128, 128), symlog=True)


def _heads() -> dict[str, Callable[..., nn.Module]]:
    return {
        "reward": RewardHead,
        "value": partial(QEnsemble, hidden=128),
        "policy": partial(Policy, hidden=(128, 128)),
    }


@dataclass(frozen=True, kw_only=True)
class RewardRecipe:
    """A model, how it plans, and how both learn from reward. Sizes are for one core.

    Args:
        latent_dim: D.
        encoder: (observation_shape=, latent_dim=) -> module.
        dynamics: (latent_dim=, action_dim=) -> module.
        heads: name -> (latent_dim=, action_dim=) -> module: "reward", and if wanted "termination",
            and "value" with "policy".
        discrepancy: () -> module of the objective.
        objective: other arguments of `make_objective`.
        planner: maximises the reward.
        learner, online: see there.
        seed: of weights, actions and episodes.
    """

    latent_dim: int = 32
    encoder: Callable[..., nn.Module] = _encoder
    dynamics: Callable[..., nn.Module] = field(
        default_factory=lambda: partial(GaussianDynamics, hidden=128, std_hidden=64)
    )
    heads: Mapping[str, Callable[..., nn.Module]] = field(default_factory=_heads)
    # one latent of each window is judged
    discrepancy: Callable[[], nn.Module] = field(
        default_factory=lambda: partial(SIGReg, num_slices=64, time="pooled")
    )
    objective: Mapping[str, Any] = field(default_factory=lambda: {"lam": 1.0})
    planner: Planner = field(
        default_factory=lambda: MPPI(
            samples=24, iterations=1, elites=6, covariance="diagonal", init_std=0.7, min_std=0.05
        )
    )
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    online: OnlineSettings = field(default_factory=OnlineSettings)
    seed: int = 0


def learn(
    env_id: str,
    recipe: RewardRecipe | None = None,
    *,
    run: str | Path | None = None,
    device: str = "cpu",
    workers: int | None = None,
    log: Log | None = None,
    **env_kwargs: Any,
) -> WorldModel:
    """Learn a task from its reward: while acting, from `recipe.online.data`, or both.

    Args:
        env_id, env_kwargs: of `gjwm.make_env`: any environment with actions in a box, whose
            observations are one array.
        run: a folder for checkpoint.pt and returns.csv; states are kept in it, and learning goes on
            from the last one, with the settings that it began with. None: nothing is kept.
        workers: processes that step environments, see `gjwm.make_vec`.
        log: called with scalars and the step they belong to.

    Returns:
        the model, in evaluation mode. `reward_agent` acts with it.

    Raises:
        ValueError: for settings, an environment or data that do not go together.
        MemoryError: when replay takes more than there is.
    """
    with RewardTraining(
        env_id, recipe or RewardRecipe(), env_kwargs=env_kwargs, device=device, workers=workers
    ) as training:
        training.run(run, log=log)
        if run is not None:
            training.finish()
            training.model.save(Path(run) / "checkpoint.pt")
    return training.model


class RewardTraining:
    """Environments and a learner that are made and checked; `run` then trains. Close it, or use it
    in a `with`.

    Args:
        env_id, env_kwargs, device, workers: see `learn`.
        storage: where the dataset lies while it is learned from, see `open_windows`.
        notify: told what memory is taken, before it is.
    """

    def __init__(
        self,
        env_id: str,
        recipe: RewardRecipe,
        *,
        env_kwargs: Mapping[str, Any] | None = None,
        device: str = "cpu",
        workers: int | None = None,
        storage: str = "auto",
        notify: Callable[[str], None] = lambda text: None,
    ):
        self.env_id, self.env_kwargs, self.recipe = env_id, dict(env_kwargs or {}), recipe
        self.settings, self.workers = recipe.online, workers
        self.storage, self.notify = storage, notify
        self.device = device
        self.curve: ReturnCurve | None = None
        # Windows and replay live beside the model on a GPU if they fit.
        self._home = "auto" if device.startswith("cuda") else "cpu"
        self.stream = Stream(
            env_id, self.env_kwargs, lanes=self.settings.lanes, seed=recipe.seed, workers=workers
        )
        try:
            self.learner = self._make_learner()
            if self.settings.oracle and not hasattr(self.stream.envs, "get_state"):
                raise ValueError(
                    f"online.oracle sets the simulator's state, and {env_id} does not let it: use "
                    "null."
                )
        except BaseException:
            self.stream.close()
            raise

    def __enter__(self) -> RewardTraining:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the environments."""
        self.stream.close()

    @property
    def model(self) -> WorldModel:
        return self.learner.model

    @property
    def steps(self) -> int:
        """Of the whole training: updates on data, then agent steps."""
        return self.settings.pretrain + self.settings.steps

    def _make_learner(self) -> RewardLearner:
        recipe, shape = self.recipe, self.stream.observation_space.shape
        sizes = {"latent_dim": recipe.latent_dim, "action_dim": self.stream.action_space.shape[0]}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = WorldModel(
                recipe.encoder(observation_shape=list(shape), latent_dim=recipe.latent_dim),
                recipe.dynamics(**sizes),
                {name: head(**sizes) for name, head in recipe.heads.items()},
            ).to(self.device)
            objective = make_objective(recipe.discrepancy(), **recipe.objective)
        online = asdict(recipe.online)
        del online["oracle"], online["data"]
        model.origin = Origin(
            env_id=self.env_id,
            env_kwargs=self.env_kwargs,
            recipe={"learner": asdict(recipe.learner), "online": online, "seed": recipe.seed},
        )
        return RewardLearner(model, objective, recipe.learner)

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
        available = available_memory(where)
        free = "" if available is None else f" of {available / 2**30:.1f} GiB available"
        self.notify(
            f"replay: {capacity} steps take up to {needed / 2**20:,.1f} MiB{free} on {where}"
        )
        if available is not None and needed > available:
            raise MemoryError(
                f"a replay of {capacity} steps takes {needed / 2**30:.1f} GiB and "
                f"{available / 2**30:.1f} GiB are available; set online.capacity to fewer, or "
                "lower env.size."
            )

    def run(
        self,
        folder: str | Path | None = None,
        *,
        episodes: int | None = None,
        log: Log | None = None,
    ) -> float:
        """Train, from the newest state in `folder`/state if there is one -> seconds of training.

        Args:
            folder: for states, and returns.csv, which has another name until `finish`; None:
                nothing is kept.
            episodes: of the dataset, the first ones; None: all.
            log: called with scalars and the step.

        Raises:
            FloatingPointError: when a loss is not finite. States are removed: going on from them
                would end the same way.
        """
        settings, data = self.settings, self.settings.data
        if episodes is None:
            episodes = 0 if data is None else dataset_info(data)["episodes"]
            self.check_memory(episodes)
        checkpoints = None if folder is None else Checkpoints(Path(folder) / "state")
        kept = None if checkpoints is None else checkpoints.latest()
        after = None if kept is None else kept.step
        self.curve = None if folder is None else self._curve(Path(folder), after)
        seconds = 0.0

        def evaluate(step: int, spent: float) -> dict[str, float]:
            nonlocal seconds
            seconds = spent
            report = self.returns("plan")
            if self.curve is not None:
                self.curve.add(step, spent, report["returns"])
            low, high = report["ci95"]
            earned = {"return": report["return_mean"], "low": low, "high": high}
            return {f"evaluate/{name}": value for name, value in earned.items()}

        generator = Generator().manual_seed(self.recipe.seed)
        shared = dict(evaluate=evaluate, log=log, generator=generator, checkpoints=checkpoints)
        fresh = after is None or after <= settings.pretrain  # replay was not kept yet
        try:
            if settings.pretrain and fresh:
                windows = open_windows(
                    data, self._home, storage=self.storage, episodes=episodes, notify=self.notify
                )
                prefetch = 2 if isinstance(windows, DiskWindows) else 0
                pretrain(self.learner, windows, settings, prefetch=prefetch, **shared)
                del windows  # replay takes its place
                if self.device.startswith("cuda"):
                    torch.cuda.empty_cache()  # else it would still count as taken
            if settings.steps:
                replay = self._replay(episodes) if fresh else None
                train_online(
                    self.learner, self.recipe.planner, self.stream, replay, settings, **shared
                )
        except FloatingPointError:
            if checkpoints is not None:
                checkpoints.clear()
            raise
        return seconds if checkpoints is None else checkpoints.latest().content["seconds"]

    def finish(self) -> None:
        """returns.csv gets its name, in place of that of an earlier run."""
        if self.curve is not None:
            self.curve.finish()

    def _curve(self, folder: Path, after: int | None) -> ReturnCurve:
        if after is not None and self.settings.steps:
            after = max(after - self.settings.pretrain, 0)  # rows count agent steps
        repeat = self.env_kwargs.get("action_repeat", 1)
        return ReturnCurve(folder / "returns.csv", repeat=repeat, resume_after=after)

    def _replay_arguments(self, episodes: int) -> dict[str, Any]:
        """Of a buffer of the stream's lanes with room for the dataset's first `episodes` and for
        what is acted.
        """
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
        if self.settings.data is not None:
            for episode in itertools.islice(read_episodes(self.settings.data), episodes):
                buffer.add_episode(*episode[:5])
        return buffer

    @property
    def actors(self) -> list[str]:
        """Who can act: `returns` knows them."""
        policy = ["policy"] if "policy" in self.model.heads else []
        return ["plan", *policy, "random", "hold", *(["oracle"] if self.settings.oracle else [])]

    def returns(self, actor: str) -> dict[str, Any]:
        """What one of `actors` earns on seeds that training never sees, the same ones each time."""
        with self._actor(actor) as act:
            returns, seconds = play_returns(
                act,
                self.env_id,
                self.env_kwargs,
                episodes=self.settings.episodes,
                seed=HELD_OUT + 1000 * (self.recipe.seed % 1000),
                workers=self.workers,
            )
        return return_report(returns, seconds)

    @contextmanager
    def _actor(self, kind: str) -> Iterator[Act]:
        model, settings, discount = self.model, self.settings, self.recipe.learner.discount
        generator = Generator(self.device if kind == "plan" else "cpu")
        generator.manual_seed(self.recipe.seed)
        if kind == "oracle":
            oracle = settings.oracle
            with simulator_actor(
                self.env_id,
                self.env_kwargs,
                oracle.planner,
                horizon=oracle.horizon,
                replan_every=oracle.replan_every,
                discount=discount,
                generator=generator,
            ) as act:
                yield act
            return
        if kind == "plan":
            agent = reward_agent(
                model,
                self.recipe.planner,
                horizon=settings.horizon,
                discount=discount,
                policy_plans=settings.policy_plans,
                generator=generator,
            )

        def act(o: Any, envs: Any) -> Any:
            if kind == "plan":
                return agent.act(o).cpu().numpy()
            if kind == "policy":
                with torch.no_grad():
                    z = model.encode(torch.as_tensor(o).to(self.device))
                    return model.heads["policy"](z).cpu().numpy()
            a = torch.zeros(len(o), model.action_dim)
            return (a if kind == "hold" else a.uniform_(-1, 1, generator=generator)).numpy()

        yield act
