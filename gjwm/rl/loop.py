"""Learning while acting, and from data alone; both go on exactly where they were interrupted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from gjwm._core import draws
from gjwm._core.checkpoint import Checkpoint, Checkpoints, random_state, restore_random_state
from gjwm._core.fit import Log
from gjwm._core.stopping import Finishing
from gjwm.data.acting import Transition
from gjwm.data.replay import Prefetch, ReplayBuffer, Windows
from gjwm.evaluation.geometry import glance
from gjwm.evaluation.intervals import mean_interval
from gjwm.planning import Planner
from gjwm.planning.agent import MPCAgent, reward_agent
from gjwm.rl.exploration import Explorer
from gjwm.rl.learner import RewardLearner
from gjwm.rl.settings import OnlineSettings
from gjwm.rl.stream import Stream


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What is done with a training besides training.

    Args:
        evaluate: called with the step (without updates on data) and the seconds so far, the model
            in evaluation mode; what it returns is logged. It must draw no numbers from the
            training's generator.
        log: called with scalars: "loss" and "train/*" of the last update, with its latents' figures
            (see `glance`) and the largest |reward| so far, "return" of the episodes that ended
            since, "updates", "seconds" and how they were spent. With evaluations also what aimless
            episodes earned on average, "aimless/return", where one ended before plans began, and
            where two did the upper end of its 95% interval, "aimless/high".
        doing: called as acting goes, with the step as `log` counts it and, in a few words, what is
            done while nothing is logged: aimless steps, and the many updates that follow them.
        checkpoints: where everything is kept. If a state is there already, learning goes on from it
            as if it had not been interrupted (bit by bit on a CPU with as many threads); all other
            arguments must be what they were.
    """

    evaluate: Callable[[int, float], Mapping[str, float]] | None = None
    log: Log | None = None
    doing: Callable[[int, str], Any] | None = None
    checkpoints: Checkpoints | None = None


def pretrain(
    learner: RewardLearner,
    windows: Windows,
    settings: OnlineSettings,
    *,
    hooks: Hooks = Hooks(),
    generator: Generator | None = None,
) -> None:
    """`settings.pretrain` updates on data; the model ends in evaluation mode.

    Where no acting follows (`settings.steps` is 0), learning rates cool down and the model is
    evaluated after the last update.

    Args:
        windows: of `settings.length` steps, with rewards: a `ReplayBuffer` or `DiskWindows`.
        generator: see `train_online`.
    """
    updates, alone = settings.pretrain, not settings.steps
    progress = _Progress(learner.model.device, generator, hooks)
    first = 0
    kept = progress.latest()
    if kept is not None:
        first = kept.step
        with kept.restoring():
            learner.load_state_dict(kept.content["learner"])
            progress.load_state_dict(kept.content)
    learner.model.train()

    def sample(generator: Generator) -> Any:
        return windows.sample(settings.batch, settings.length, generator=generator)

    with progress.finishing() as stop, Prefetch(sample, 0, windows.prefetch) as draw:
        draw.restore(progress.generator.get_state())
        for update in range(first + 1, updates + 1):
            last = update == updates
            if alone:
                learner.scale_rates(_cooled((update - 1) / updates, settings.cooldown))
            batch = draw.next().to(learner.model.device)
            losses = learner.update(batch, progress.noise)
            progress.saw(batch.r)
            progress.passed("updating")
            if update % settings.log_every == 0 or last:
                progress.log_losses(losses, learner.latents, update, updates=update)
            if alone and last:
                learner.model.eval()
                progress.evaluate(update, update)
            asked = stop.asked
            if update % settings.checkpoint_every == 0 or last or asked:
                progress.generator.set_state(draw.state())
                progress.keep(update, {"learner": learner.state_dict()})
            if asked:
                stop.leave()
        progress.generator.set_state(draw.state())
    learner.model.eval()


def train_online(
    learner: RewardLearner,
    planner: Planner,
    stream: Stream,
    buffer: ReplayBuffer | None,
    settings: OnlineSettings,
    *,
    hooks: Hooks = Hooks(),
    generator: Generator | None = None,
) -> None:
    """Learn while acting, in place; the model ends in evaluation mode.

    While the learner updates, a thread steps the environments with the actions just chosen (see
    `Stream.overlaps`): an update learns from what was known before them, so that the overlap
    changes the time and nothing else.

    Args:
        learner, planner: see `RewardLearner`, `reward_agent`.
        stream: of `settings.lanes` lanes.
        buffer: of as many lanes, with room for what is to be remembered, which may hold data
            already. When learning goes on from a state, the one kept with it takes its place, and
            None will do.
        settings: its `pretrain` updates were made before, and count as steps in logs and states.
        generator: on the CPU; draws actions and windows and seeds all other noise.

    Raises:
        ValueError: for a buffer or a stream of other lanes.
        FloatingPointError: when a loss is NaN or infinite; the model then holds the last good
            weights.
    """
    progress = _Progress(learner.model.device, generator, hooks)
    acting = _Acting(learner, planner, stream, buffer, settings, progress)
    learner.model.eval()
    with progress.finishing() as stop, ThreadPoolExecutor(1) as thread:
        while acting.step < settings.steps:
            a = acting.choose()
            progress.passed("acting")
            stepping = thread.submit(stream.step, a) if stream.overlaps else None
            acting.update()
            progress.passed("updating")
            acting.remember(stream.step(a) if stepping is None else stepping.result())
            progress.passed("stepping")
            acting.report(stop)


def planning_agent(
    learner: RewardLearner, planner: Planner, settings: OnlineSettings, generator: Generator
) -> MPCAgent:
    """Who acts once there is something to plan for."""
    return reward_agent(
        learner.model,
        planner,
        horizon=settings.horizon,
        discount=learner.settings.discount,
        policy_plans=settings.policy_plans,
        generator=generator,
    )


class _Acting:
    """Learning while acting: its parts, where it stands, and what each step is made of."""

    def __init__(
        self,
        learner: RewardLearner,
        planner: Planner,
        stream: Stream,
        buffer: ReplayBuffer | None,
        settings: OnlineSettings,
        progress: _Progress,
    ):
        self.learner, self.stream, self.buffer = learner, stream, buffer
        self.settings, self.progress, self.model = settings, progress, learner.model
        self.agent = planning_agent(learner, planner, settings, progress.noise)
        self.explorer = Explorer(
            settings.exploration, stream.lanes, self.model.action_dim, progress.generator
        )
        self.parts = {"learner": learner, "agent": self.agent}
        self.parts |= {"stream": stream, "explorer": self.explorer}
        self.step = self.updates = 0
        self.recent: list[float] = []  # returns since the last log
        self.losses: dict[str, Tensor] = {}
        self.latents = learner.latents
        self.aimless: list[float] = []  # returns of episodes without a plan
        self.planned_from: int | None = None  # the step from which on actions are planned
        self.rewarded = False  # whether any reward but 0 has been seen
        kept = progress.latest(after=settings.pretrain)
        if kept is not None:
            self._go_on(kept)
        held = None if self.buffer is None else self.buffer.num_envs
        if not stream.lanes == held == settings.lanes:
            raise ValueError(
                f"the settings have {settings.lanes} lanes, the stream has {stream.lanes} lanes "
                f"and expects a buffer of as many, got one of {held or 'no'} lanes."
            )

    COUNTERS = ("updates", "recent", "losses", "latents", "aimless", "planned_from", "rewarded")

    def _go_on(self, kept: Checkpoint) -> None:
        self.step = kept.step - self.settings.pretrain
        with kept.restoring():
            for name, part in self.parts.items():
                part.load_state_dict(kept.content[name])
            self.progress.load_state_dict(kept.content)
            for name in self.COUNTERS:
                setattr(self, name, kept.content[name])
            replay = kept.attached["replay.pt"]
        home = "auto" if self.model.device.type == "cuda" else "cpu"
        home = home if self.buffer is None else self.buffer.device
        self.buffer = ReplayBuffer.load(replay, home)

    def choose(self) -> np.ndarray:
        """The next actions (N, A): planned once enough is known to plan for."""
        settings = self.settings
        enough = settings.aimless_steps
        if not self.rewarded:
            enough = max(enough, settings.aimless_limit)
        if self.planned_from is None and self.step >= enough:
            self.planned_from = self.step
        if self.planned_from is None:
            return self.explorer.aimless().numpy()
        a = self.agent.act(self.stream.observation).cpu()
        return self.explorer.disturb(a, self.step - self.planned_from).numpy()

    def update(self) -> None:
        """As many updates as the steps so far are worth: none while aimless, then those of all."""
        settings, progress = self.settings, self.progress
        owed = 0
        if self.step >= settings.aimless_steps:
            owed = int(settings.update_ratio * self.step) - self.updates
        self.model.train()
        self.learner.scale_rates(_cooled(self.step / settings.steps, settings.cooldown))
        many = owed > math.ceil(settings.update_ratio * self.stream.lanes)  # than a step is worth
        for done in range(owed):
            if many:
                self._tell(f"update {done + 1} of {owed} after aimless steps")
            batch = self.buffer.sample(
                settings.batch, settings.length, generator=progress.generator
            )
            batch = batch.to(self.model.device)
            self.losses = self.learner.update(batch, progress.noise)
            self.latents = self.learner.latents
            progress.saw(batch.r)
        self.updates += owed
        self.model.eval()

    def _tell(self, what: str) -> None:
        if self.progress.hooks.doing is not None:
            self.progress.hooks.doing(self.settings.pretrain + self.step, what)

    def remember(self, seen: Transition) -> None:
        """One step of all lanes."""
        ends = (seen.terminated, seen.truncated)
        self.buffer.add(seen.o, seen.a, seen.r, *ends, seen.o_next, mask=seen.valid)
        self.agent.reset(torch.from_numpy(seen.ended))
        self.recent += self.stream.earned
        if self.planned_from is None:
            self.aimless += self.stream.earned
        self.rewarded = self.rewarded or bool((seen.r != 0).any())
        self.progress.saw(torch.from_numpy(seen.r))
        self.step += self.stream.lanes

    def report(self, stop: Finishing) -> None:
        """Log, evaluate and keep what is due after the last step, and stop if that was asked."""
        settings, progress, step = self.settings, self.progress, self.step
        before, logged = step - self.stream.lanes, settings.pretrain + step

        def due(every: int) -> bool:
            return step // every > before // every or step >= settings.steps

        if not self.losses:
            self._tell("aimless steps")
        if self.losses and due(settings.log_every):
            earned = {"return": sum(self.recent) / len(self.recent)} if self.recent else {}
            self.recent = []
            updates = settings.pretrain + self.updates
            progress.log_losses(self.losses, self.latents, logged, **earned, updates=updates)
        if step > settings.aimless_steps and due(settings.evaluate_every):
            progress.evaluate(step, logged, self._without_a_plan())
        asked = stop.asked
        if asked or due(settings.checkpoint_every):
            content = {name: part.state_dict() for name, part in self.parts.items()}
            content |= {name: getattr(self, name) for name in self.COUNTERS}
            progress.keep(logged, content, {"replay.pt": self.buffer.save})
        if asked:
            stop.leave()

    def _without_a_plan(self) -> dict[str, float]:
        """What aimless episodes earned, if any ended."""
        if not self.aimless:
            return {}
        mean, _, high = mean_interval(np.array(self.aimless))
        return {"aimless/return": mean, **({} if high is None else {"aimless/high": high})}


def _cooled(progress: float, cooldown: float) -> float:
    """1, then over the last `cooldown` of the way linearly down to 0.1."""
    left = 1 - progress
    return 1.0 if left >= cooldown else 0.1 + 0.9 * left / cooldown


class _Progress:
    """What both ways of learning share: random numbers, where the time goes, the log, and states.

    `generator` on the CPU draws windows and actions; `noise`, on the learner's device and seeded by
    it, all else.
    """

    def __init__(self, device: torch.device, generator: Generator | None, hooks: Hooks):
        self.generator = generator or Generator().manual_seed(torch.seed())
        seed = int(draws.integers(2**62, (1,), self.generator, device="cpu"))
        self.noise = Generator(device).manual_seed(seed)
        self.hooks = hooks
        self.largest = torch.zeros((), device=device)  # |reward| so far
        self.logged: dict[str, float] = {}  # the newest of each scalar
        self._spent: dict[str, float] = {}
        self._last = time.perf_counter()

    def finishing(self) -> Finishing:
        """A loop that a signal ends after the step under way, if a state of it can be kept."""
        return Finishing(self.hooks.checkpoints is not None)

    def passed(self, what: str) -> None:
        """The time since the last call was spent on this."""
        now = time.perf_counter()
        self._spent[what] = self._spent.get(what, 0.0) + now - self._last
        self._last = now

    @property
    def seconds(self) -> float:
        return sum(self._spent.values())

    def saw(self, r: Tensor) -> None:
        """Rewards (...), acted for or learned from."""
        self.largest = torch.maximum(self.largest, r.abs().amax().to(self.largest))

    def log_losses(
        self, losses: Mapping[str, Tensor], latents: Tensor, step: int, **others: float
    ) -> None:
        """The last update's losses, and figures of its latents (B, T+1, D)."""
        if self.hooks.log is None:
            return
        scalars = {
            "loss" if name == "loss" else f"train/{name}": value.item()
            for name, value in losses.items()
        }
        scalars |= {f"train/{name}": value for name, value in glance(latents).items()}
        scalars["train/largest_reward"] = self.largest.item()
        spent = {f"seconds/{name}": seconds for name, seconds in self._spent.items()}
        self._log({**scalars, **others, "seconds": self.seconds, **spent}, step)

    def _log(self, scalars: Mapping[str, float], step: int) -> None:
        self.logged.update(scalars)
        self.hooks.log(dict(scalars), step)

    def evaluate(
        self, step: int, logged_step: int, beside: Mapping[str, float] | None = None
    ) -> None:
        """Evaluate and log it; `beside` are scalars to log with it."""
        if self.hooks.evaluate is None:
            return
        earned = self.hooks.evaluate(step, self.seconds)
        self.passed("evaluating")
        if self.hooks.log is not None:
            self._log({**earned, **(beside or {})}, logged_step)

    def latest(self, after: int = -1) -> Checkpoint | None:
        """The newest state that was kept, if it is of a step beyond `after`."""
        kept = None if self.hooks.checkpoints is None else self.hooks.checkpoints.latest()
        return None if kept is None or kept.step <= after else kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Random numbers and clock go on from a state; the last of its parts to be loaded."""
        for each, kept in zip((self.generator, self.noise), state["generators"]):
            each.set_state(kept)
        restore_random_state(state["random"])
        self.largest, self._spent = state["largest"].to(self.largest.device), state["spent"]
        self.logged = state["logged"]

    def keep(
        self,
        step: int,
        content: dict[str, Any],
        attach: Mapping[str, Callable[[Path], Any]] | None = None,
    ) -> None:
        if self.hooks.checkpoints is None:
            return
        own = {
            "largest": self.largest,
            "logged": self.logged,
            "spent": self._spent,
            "seconds": self.seconds,
            "generators": [self.generator.get_state(), self.noise.get_state()],
            "random": random_state(),
        }
        self.hooks.checkpoints.save(step, {**content, **own}, attach=attach)
        self.passed("keeping")
