"""Act, remember, update, evaluate: learning while acting, and from data alone. Both go on exactly
where an interruption left them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from gjwm._core import draws
from gjwm.data.replay import Prefetch, ReplayBuffer, Windows
from gjwm.planning import Planner
from gjwm.planning.agent import reward_agent
from gjwm.rl.exploration import Explorer
from gjwm.rl.learner import RewardLearner
from gjwm.rl.settings import OnlineSettings
from gjwm.rl.stream import Stream
from gjwm.training.checkpoint import Checkpoint, Checkpoints, random_state, restore_random_state

Log = Callable[[dict[str, float], int], None]
Evaluate = Callable[[int, float], Mapping[str, float]]


def pretrain(
    learner: RewardLearner,
    windows: Windows,
    settings: OnlineSettings,
    *,
    evaluate: Evaluate | None = None,
    log: Log | None = None,
    generator: Generator | None = None,
    checkpoints: Checkpoints | None = None,
    prefetch: int = 0,
) -> None:
    """`settings.pretrain` updates on data; the model ends in evaluation mode.

    Where no acting follows (`settings.steps` is 0), learning rates cool down and `evaluate` is
    called after the last update.

    Args:
        windows: of `settings.length` steps, with rewards: a `ReplayBuffer` or `DiskWindows`.
        evaluate, log, generator, checkpoints: see `train_online`.
        prefetch: batches read ahead by a thread, for data on disk; changes nothing but the time.
    """
    updates, last = settings.pretrain, not settings.steps
    progress = _Progress(learner.model.device, generator, log, checkpoints)
    first = 0
    kept = progress.latest()
    if kept is not None:
        first = kept.step
        learner.load_state_dict(kept.content["learner"])
        progress.load_state_dict(kept.content)
    learner.model.train()
    with Prefetch(
        lambda g: windows.sample(settings.batch, settings.length, generator=g), 0, prefetch
    ) as draw:
        draw.restore(progress.generator.get_state())
        for update in range(first + 1, updates + 1):
            share = _cooled((update - 1) / updates, settings.cooldown) if last else 1.0
            learner.scale_rates(share)
            losses = learner.update(draw.next().to(learner.model.device), progress.noise)
            progress.passed("updating")
            if update % settings.log_every == 0 or update == updates:
                progress.log_losses(losses, update, updates=update)
            if last and evaluate is not None and update == updates:
                learner.model.eval()
                progress.evaluate(evaluate, update, update)
            if update % settings.checkpoint_every == 0 or update == updates:
                progress.generator.set_state(draw.state())
                progress.keep(update, {"learner": learner.state_dict()})
        progress.generator.set_state(draw.state())
    learner.model.eval()


def train_online(
    learner: RewardLearner,
    planner: Planner,
    stream: Stream,
    buffer: ReplayBuffer | None,
    settings: OnlineSettings,
    *,
    evaluate: Evaluate | None = None,
    log: Log | None = None,
    generator: Generator | None = None,
    checkpoints: Checkpoints | None = None,
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
        evaluate: called with the step (without those updates) and the seconds so far, every
            `evaluate_every` steps and after the last, the model in evaluation mode; what it returns
            is logged. It must draw no numbers from `generator`.
        log: called with scalars every `log_every` steps: "train/*" of the last update, "return" of
            the episodes that ended since, "updates", "seconds" and how they were spent.
        generator: on the CPU; draws actions and windows and seeds all other noise.
        checkpoints: where everything is kept every `checkpoint_every` steps and after the last. If
            a state is there already, learning goes on from it as if it had not been interrupted
            (bit by bit on a CPU with as many threads); all other arguments must be what they were.

    Raises:
        ValueError: for a buffer or a stream of other lanes.
        FloatingPointError: when a loss is NaN or infinite; the model then holds the last good
            weights.
    """
    model, steps, offset = learner.model, settings.steps, settings.pretrain
    progress = _Progress(model.device, generator, log, checkpoints)
    agent = reward_agent(
        model,
        planner,
        horizon=settings.horizon,
        discount=learner.settings.discount,
        policy_plans=settings.policy_plans,
        generator=progress.noise,
    )
    explorer = Explorer(settings.exploration, stream.lanes, model.action_dim, progress.generator)
    parts = {"learner": learner, "agent": agent, "stream": stream, "explorer": explorer}
    step, updates, recent, losses = 0, 0, [], {}
    planned_from: int | None = None  # the step from which on actions are planned
    rewarded = False  # whether any reward but 0 has been seen
    kept = progress.latest(after=offset)
    if kept is not None:
        step, state = kept.step - offset, kept.content
        for name, part in parts.items():
            part.load_state_dict(state[name])
        progress.load_state_dict(state)
        home = "auto" if model.device.type == "cuda" else "cpu"
        home = home if buffer is None else buffer.device
        buffer = ReplayBuffer.load(kept.attached["replay.pt"], home)
        updates, recent, losses = state["updates"], state["recent"], state["losses"]
        planned_from, rewarded = state["planned_from"], state["rewarded"]
    if buffer is None or not stream.lanes == buffer.num_envs == settings.lanes:
        held = "none" if buffer is None else f"one of {buffer.num_envs}"
        raise ValueError(
            f"the settings have {settings.lanes} lanes, the stream has {stream.lanes} lanes and "
            f"expects a buffer of as many, got {held}."
        )

    def due(every: int, before: int) -> bool:
        return step // every > before // every or step >= steps

    model.eval()
    with ThreadPoolExecutor(1) as thread:
        while step < steps:
            if planned_from is None and step >= (
                settings.aimless_steps
                if rewarded
                else max(settings.aimless_steps, settings.aimless_limit)
            ):
                planned_from = step
            if planned_from is None:
                a = explorer.aimless()
            else:
                a = explorer.disturb(agent.act(stream.observation).cpu(), step - planned_from)
            progress.passed("acting")
            stepping = thread.submit(stream.step, a.numpy()) if stream.overlaps else None
            # As many updates as the steps taken so far are worth: none while actions are aimless,
            # then those of all of them.
            owed = 0
            if step >= settings.aimless_steps:
                owed = int(settings.update_ratio * step) - updates
            model.train()
            learner.scale_rates(_cooled(step / steps, settings.cooldown))
            for _ in range(owed):
                batch = buffer.sample(settings.batch, settings.length, generator=progress.generator)
                losses = learner.update(batch.to(model.device), progress.noise)
            updates += owed
            model.eval()
            progress.passed("updating")
            seen = stream.step(a.numpy()) if stepping is None else stepping.result()
            flags = (seen.terminated, seen.truncated)
            buffer.add(seen.o, seen.a, seen.r, *flags, seen.o_next, mask=seen.valid)
            agent.reset(torch.from_numpy(seen.ended))
            recent += stream.earned
            rewarded = rewarded or bool((seen.r != 0).any())
            before, step = step, step + stream.lanes
            progress.passed("stepping")
            if losses and due(settings.log_every, before):
                earned = {"return": sum(recent) / len(recent)} if recent else {}
                recent = []
                progress.log_losses(losses, offset + step, **earned, updates=offset + updates)
            if (
                evaluate is not None
                and step > settings.aimless_steps
                and due(settings.evaluate_every, before)
            ):
                progress.evaluate(evaluate, step, offset + step)
            if due(settings.checkpoint_every, before):
                content = {name: part.state_dict() for name, part in parts.items()}
                content |= {"updates": updates, "recent": recent, "losses": losses}
                content |= {"planned_from": planned_from, "rewarded": rewarded}
                progress.keep(offset + step, content, {"replay.pt": buffer.save})


def _cooled(progress: float, cooldown: float) -> float:
    """1, then over the last `cooldown` of the way linearly down to 0.1."""
    left = 1 - progress
    return 1.0 if left >= cooldown else 0.1 + 0.9 * left / cooldown


class _Progress:
    """What both ways of learning share: random numbers, where the time goes, the log, and states.

    `generator` on the CPU draws windows and actions; `noise`, on the learner's device and seeded by
    it, all else.
    """

    def __init__(
        self,
        device: torch.device,
        generator: Generator | None,
        log: Log | None,
        checkpoints: Checkpoints | None,
    ):
        self.generator = generator or Generator().manual_seed(torch.seed())
        seed = int(draws.integers(2**62, (1,), self.generator, device="cpu"))
        self.noise = Generator(device).manual_seed(seed)
        self._log, self._checkpoints = log, checkpoints
        self._spent: dict[str, float] = {}
        self._last = time.perf_counter()

    def passed(self, what: str) -> None:
        """The time since the last call was spent on this."""
        now = time.perf_counter()
        self._spent[what] = self._spent.get(what, 0.0) + now - self._last
        self._last = now

    @property
    def seconds(self) -> float:
        return sum(self._spent.values())

    def log_losses(self, losses: Mapping[str, Tensor], step: int, **others: float) -> None:
        if self._log is None:
            return
        scalars = {
            "loss" if name == "loss" else f"train/{name}": value.item()
            for name, value in losses.items()
        }
        spent = {f"seconds/{name}": seconds for name, seconds in self._spent.items()}
        self._log({**scalars, **others, "seconds": self.seconds, **spent}, step)

    def evaluate(self, evaluate: Evaluate, step: int, logged_step: int) -> None:
        earned = evaluate(step, self.seconds)
        self.passed("evaluating")
        if self._log is not None:
            self._log(dict(earned), logged_step)

    def latest(self, after: int = -1) -> Checkpoint | None:
        """The newest state that was kept, if it is of a step beyond `after`."""
        kept = None if self._checkpoints is None else self._checkpoints.latest()
        return None if kept is None or kept.step <= after else kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Random numbers and clock go on from a state; the last of its parts to be loaded."""
        for each, kept in zip((self.generator, self.noise), state["generators"]):
            each.set_state(kept)
        restore_random_state(state["random"])
        self._spent = state["spent"]

    def keep(
        self,
        step: int,
        content: dict[str, Any],
        attach: Mapping[str, Callable[[Path], Any]] | None = None,
    ) -> None:
        if self._checkpoints is None:
            return
        own = {
            "spent": self._spent,
            "seconds": self.seconds,
            "generators": [self.generator.get_state(), self.noise.get_state()],
            "random": random_state(),
        }
        self._checkpoints.save(step, {**content, **own}, attach=attach)
        self.passed("keeping")
