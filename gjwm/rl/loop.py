"""Act, remember, update, evaluate: learning while acting, which goes on exactly where an
interruption left it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Generator, Tensor

from gjwm._core import draws
from gjwm.data.replay import Prefetch, ReplayBuffer, Windows
from gjwm.planning import Planner
from gjwm.planning.agent import reward_agent
from gjwm.rl.exploration import Exploration, Explorer
from gjwm.rl.learner import RewardLearner
from gjwm.rl.stream import Stream
from gjwm.training.checkpoint import Checkpoints, random_state, restore_random_state

Log = Callable[[dict[str, float], int], None]
Evaluate = Callable[[int, float], Mapping[str, float]]


def pretrain(
    learner: RewardLearner,
    windows: Windows,
    *,
    updates: int,
    cooldown: float = 0.0,
    batch: int = 128,
    length: int = 3,
    evaluate: Evaluate | None = None,
    log: Log | None = None,
    log_every: int = 100,
    generator: Generator | None = None,
    prefetch: int = 0,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 1000,
) -> None:
    """Learn from data alone; the model ends in evaluation mode.

    Args:
        windows: of `length` steps, with rewards: a `ReplayBuffer` or `DiskWindows`.
        updates, batch: gradient steps, and windows in each.
        cooldown: see `train_online`; 0 where acting follows.
        evaluate: see `train_online`; called once, after the last update.
        log: called with scalars every `log_every` updates and after the last.
        generator: on the CPU; draws the windows and seeds all other noise.
        prefetch: batches read ahead by a thread, for data on disk; changes nothing but the time.
        checkpoints: where everything is kept every `checkpoint_every` updates and after the last.
            If a state is there already, learning goes on from it, bit by bit on a CPU with as many
            threads; all other arguments must be what they were.
    """
    _check_counts(
        updates=updates,
        batch=batch,
        length=length,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
    )
    _check_cooldown(cooldown)
    device = learner.model.device
    generator = Generator().manual_seed(torch.seed()) if generator is None else generator
    noise = _generator(generator, device)
    clock, first = _Clock(), 0
    found = None if checkpoints is None else checkpoints.latest()
    if found is not None:
        first = found.step
        learner.load_state_dict(found.content["learner"])
        _restore_generators(found.content, generator, noise)
        clock.spent = found.content["spent"]
    learner.model.train()
    with Prefetch(lambda g: windows.sample(batch, length, generator=g), 0, prefetch) as draw:
        draw.restore(generator.get_state())
        for update in range(first + 1, updates + 1):
            learner.scale_rates(_cooled((update - 1) / updates, cooldown))
            losses = learner.update(draw.next().to(device), noise)
            clock.passed("updating")
            if log is not None and (update % log_every == 0 or update == updates):
                log({**_scalars(losses), "updates": update, **clock.scalars()}, update)
            if evaluate is not None and update == updates:
                learner.model.eval()
                earned = evaluate(update, clock.total)
                clock.passed("evaluating")
                if log is not None:
                    log(dict(earned), update)
            if checkpoints is not None and (update % checkpoint_every == 0 or update == updates):
                generator.set_state(draw.state())
                content = {
                    "learner": learner.state_dict(),
                    "spent": clock.spent,
                    "seconds": clock.total,
                }
                checkpoints.save(update, content | _generators(generator, noise))
                clock.passed("keeping")
        generator.set_state(draw.state())
    learner.model.eval()


def train_online(
    learner: RewardLearner,
    planner: Planner,
    stream: Stream,
    buffer: ReplayBuffer | None,
    *,
    steps: int = 50_000,
    offset: int = 0,
    aimless_steps: int = 2000,
    aimless_limit: int = 20_000,
    update_ratio: float = 0.5,
    cooldown: float = 0.2,
    batch: int = 128,
    length: int = 3,
    horizon: int = 4,
    policy_plans: int = 8,
    exploration: Exploration | None = None,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 5000,
    log: Log | None = None,
    log_every: int = 500,
    generator: Generator | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 5000,
) -> None:
    """Learn while acting, in place; the model ends in evaluation mode.

    While the learner updates, a thread steps the environments with the actions just chosen (see
    `Stream.overlaps`): an update learns from what was known before them, so that the overlap
    changes the time and nothing else.

    Args:
        learner, planner: see `RewardLearner`, `reward_agent`.
        stream: of N lanes.
        buffer: of N lanes, with room for what is to be remembered, which may hold data already.
            When learning goes on from a state, the one kept with it takes its place, and None will
            do.
        steps: agent steps in all, counted over the lanes; control-suite frames are action_repeat
            times as many.
        offset: updates made before, by `pretrain`: steps count on from there in logs and states.
        aimless_steps: of these, without a plan at the start: see `Exploration`. Their updates are
            made up for at once.
        aimless_limit: while no reward but 0 has been seen, there is nothing to plan for: actions
            stay aimless up to this step.
        update_ratio: updates per step.
        cooldown: share of the steps, the last ones, over which the learning rates fall linearly to
            a tenth: what is learned then is the average of many updates rather than where the last
            few have led.
        batch, length: windows per update, and steps of each: the open-loop horizon that is learned.
        horizon, policy_plans: of the planner.
        exploration: of the actions; None: `Exploration()`.
        evaluate: called with the step (without the offset) and the seconds so far, every
            `evaluate_every` steps and after the last, the model in evaluation mode; what it returns
            is logged. It must draw no numbers from `generator`.
        log: called with scalars every `log_every` steps: "train/*" of the last update, "return" of
            the episodes that ended since, "updates", "seconds" and how they were spent.
        generator: on the CPU; draws actions and windows and seeds all other noise.
        checkpoints: where everything is kept every `checkpoint_every` steps and after the last. If
            a state is there already, learning goes on from it as if it had not been interrupted
            (bit by bit on a CPU with as many threads); all other arguments must be what they were.

    Raises:
        ValueError: for settings that cannot work.
        FloatingPointError: when a loss is NaN or infinite; the model then holds the last good
            weights.
    """
    lanes, model = stream.lanes, learner.model
    check_schedule(
        lanes=lanes,
        steps=steps,
        aimless_steps=aimless_steps,
        update_ratio=update_ratio,
        cooldown=cooldown,
        batch=batch,
        length=length,
        horizon=horizon,
        evaluate_every=evaluate_every,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
    )
    device = model.device
    generator = Generator().manual_seed(torch.seed()) if generator is None else generator
    noise = _generator(generator, device)
    agent = reward_agent(
        model,
        planner,
        horizon=horizon,
        discount=learner.discount,
        policy_plans=policy_plans,
        generator=noise,
    )
    explorer = Explorer(exploration or Exploration(), lanes, model.action_dim, generator)
    parts = {"learner": learner, "agent": agent, "stream": stream, "explorer": explorer}
    clock = _Clock()
    step, updates, recent, losses = 0, 0, [], {}
    planned = None  # the step from which on actions are planned
    paid = False  # whether any reward but 0 has been seen
    found = None if checkpoints is None else checkpoints.latest()
    if found is not None and found.step > offset:
        step, state = found.step - offset, found.content
        for name, part in parts.items():
            part.load_state_dict(state[name])
        _restore_generators(state, generator, noise)
        where = "auto" if device.type == "cuda" else "cpu"
        buffer = ReplayBuffer.load(
            found.attached["replay.pt"], where if buffer is None else buffer.device
        )
        updates, recent, losses = state["updates"], state["recent"], state["losses"]
        planned, paid = state["planned"], state["paid"]
        clock.spent = state["spent"]
    if buffer is None or buffer.num_envs != lanes:
        held = "none" if buffer is None else f"one of {buffer.num_envs}"
        raise ValueError(
            f"the stream has {lanes} lanes and expects a buffer of as many, got {held}."
        )

    def due(every: int, before: int) -> bool:
        return step // every > before // every or step >= steps

    model.eval()
    with ThreadPoolExecutor(1) as elsewhere:
        while step < steps:
            if planned is None and step >= (
                aimless_steps if paid else max(aimless_steps, aimless_limit)
            ):
                planned = step
            if planned is None:
                a = explorer.aimless()
            else:
                a = explorer.disturb(agent.act(stream.observation).cpu(), step - planned)
            clock.passed("acting")
            stepping = elsewhere.submit(stream.step, a.numpy()) if stream.overlaps else None
            # As many updates as the steps taken so far are worth: none while actions are aimless,
            # then those of all of them.
            owed = int(update_ratio * step) - updates if step >= aimless_steps else 0
            model.train()
            learner.scale_rates(_cooled(step / steps, cooldown))
            for _ in range(owed):
                losses = learner.update(
                    buffer.sample(batch, length, generator=generator).to(device), noise
                )
            updates += owed
            model.eval()
            clock.passed("updating")
            seen = stream.step(a.numpy()) if stepping is None else stepping.result()
            buffer.add(
                seen.o,
                seen.a,
                seen.r,
                seen.terminated,
                seen.truncated,
                seen.o_next,
                mask=seen.valid,
            )
            agent.reset(torch.from_numpy(seen.ended))
            recent += seen.returns
            paid = paid or bool((seen.r != 0).any())
            before, step = step, step + lanes
            clock.passed("stepping")
            if losses and due(log_every, before):
                earned = {"return": sum(recent) / len(recent)} if recent else {}
                recent = []
                if log is not None:
                    log(
                        {
                            **_scalars(losses),
                            **earned,
                            "updates": offset + updates,
                            **clock.scalars(),
                        },
                        offset + step,
                    )
            if evaluate is not None and step > aimless_steps and due(evaluate_every, before):
                earned = evaluate(step, clock.total)
                clock.passed("evaluating")
                if log is not None:
                    log(dict(earned), offset + step)
            if checkpoints is not None and due(checkpoint_every, before):
                content = {name: part.state_dict() for name, part in parts.items()}
                content |= {
                    "updates": updates,
                    "recent": recent,
                    "losses": losses,
                    "planned": planned,
                    "paid": paid,
                }
                content |= {
                    "spent": clock.spent,
                    "seconds": clock.total,
                    **_generators(generator, noise),
                }
                checkpoints.save(offset + step, content, attach={"replay.pt": buffer.save})
                clock.passed("keeping")


def check_schedule(
    *,
    lanes: int,
    steps: int,
    aimless_steps: int,
    update_ratio: float,
    cooldown: float,
    length: int,
    **counts: int,
) -> None:
    """Raise ValueError for settings of `train_online` that cannot work; `counts` are its other
    whole numbers.
    """
    _check_counts(steps=steps, length=length, **counts)
    _check_cooldown(cooldown)
    if update_ratio <= 0 or not lanes * (length + 1) <= aimless_steps < steps:
        raise ValueError(
            "expected update_ratio > 0, and aimless_steps from lanes * (length + 1) = "
            f"{lanes * (length + 1)} to below steps, got update_ratio={update_ratio}, "
            f"aimless_steps={aimless_steps} and steps={steps}."
        )


def _check_cooldown(cooldown: float) -> None:
    if not 0 <= cooldown <= 1:
        raise ValueError(f"expected cooldown, a share of the steps, from 0 to 1, got {cooldown}.")


def _cooled(progress: float, cooldown: float) -> float:
    """1, then over the last `cooldown` of the way linearly down to 0.1."""
    left = 1 - progress
    return 1.0 if left >= cooldown else 0.1 + 0.9 * left / cooldown


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"learning from reward expects {name} to be a whole number, 1 or more, got "
                f"{value!r}."
            )


def _generators(generator: Generator, noise: Generator) -> dict[str, Any]:
    return {"generators": [generator.get_state(), noise.get_state()], "random": random_state()}


def _restore_generators(state: Mapping[str, Any], generator: Generator, noise: Generator) -> None:
    for each, kept in zip((generator, noise), state["generators"]):
        each.set_state(kept)
    restore_random_state(state["random"])


class _Clock:
    """Where the time goes."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._last = time.perf_counter()

    def passed(self, what: str) -> None:
        now = time.perf_counter()
        self.spent[what] = self.spent.get(what, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        return sum(self.spent.values())

    def scalars(self) -> dict[str, float]:
        return {"seconds": self.total, **{f"seconds/{name}": s for name, s in self.spent.items()}}


def _scalars(losses: Mapping[str, Tensor]) -> dict[str, float]:
    return {
        "loss" if name == "loss" else f"train/{name}": value.item()
        for name, value in losses.items()
    }


def _generator(generator: Generator | None, device: torch.device) -> Generator:
    """One on `device`, seeded by `generator`."""
    return Generator(device).manual_seed(int(draws.integers(2**62, (1,), generator, device="cpu")))
