"""The one loop that fits parameters to a loss, and the thread count with which it is fastest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gjwm._core import distributed
from gjwm._core.checkpoint import Checkpoints, random_state, restore_random_state
from gjwm._core.stopping import Finishing

Log = Callable[[dict[str, float], int], None]

BAD_STEPS = 5  # in a row, after which a fit has failed


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """Adam, or AdamW, with a schedule.

    Args:
        lr: peak learning rate.
        weight_decay: AdamW's; None is Adam.
        clip: largest gradient norm; None clips nothing.
        warmup: share of the steps before the peak of a one-cycle schedule; None is a cosine.
    """

    lr: float
    weight_decay: float | None = None
    clip: float | None = None
    warmup: float | None = 0.3

    def make(self, parameters: list[nn.Parameter], steps: int) -> tuple[Any, Any]:
        """-> (torch optimizer, its schedule over `steps`)."""
        if self.weight_decay is None:
            optimizer = torch.optim.Adam(parameters, lr=self.lr)
        else:
            optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        schedules = torch.optim.lr_scheduler
        if self.warmup is None:
            return optimizer, schedules.CosineAnnealingLR(optimizer, steps)
        # torch divides by the warm-up's steps less one
        warmup = max(self.warmup, min(2 / (steps + 1), 1.0))
        return optimizer, schedules.OneCycleLR(
            optimizer, self.lr, total_steps=steps + 1, pct_start=warmup
        )


class Stateful(Protocol):
    """What goes on after an interruption where it was."""

    def state(self) -> dict[str, Any]:
        """Plain data and tensors."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse."""


class Threads:
    """Keeps torch on the thread count with which steps are fastest at the moment.

    Beside another process two threads that wait for each other can be many times slower than one.
    The first steps are timed with one thread and with as many as torch has now, in turns, and again
    whenever a step has become twice as slow. Results depend on it by rounding alone.

    Args:
        most: the larger count; 1 measures nothing.
        clock: seconds that only rise.

    `tell` is called with a line about the count, when it is chosen first and when it changes.
    """

    TRIAL, ROUNDS, WINDOW = 4, 2, 50  # steps in a row with one count, turns, steps of one rate

    def __init__(self, most: int, clock: Callable[[], float] = time.perf_counter):
        self.most, self._clock = most, clock
        self.tell: Callable[[str], Any] = lambda line: None
        self._told: int | None = None
        self._begin()

    def _begin(self) -> None:
        self._turns = [1, self.most] * self.ROUNDS if self.most > 1 else []
        self._best: dict[int, float] = {}  # seconds of a step by count
        self._step, self._since, self._usual = 0, self._clock(), None
        if self._turns:
            torch.set_num_threads(self._turns[0])

    def _say(self, count: int) -> None:
        if count != self._told:
            one, all_ = (1e3 * self._best[n] for n in (1, self.most))
            self.tell(
                f"{count} thread{'s' * (count > 1)} from here on: {one:.1f} ms a step with 1, "
                f"{all_:.1f} with {self.most} (threads=N decides)"
            )
        self._told = count

    def step(self) -> None:
        """Call after each step."""
        if self.most <= 1:
            return
        self._step += 1
        now = self._clock()
        if self._turns:
            count = self._turns[0]
            if self._step > 1:  # the first step with a new count wakes its threads up
                self._best[count] = min(now - self._since, self._best.get(count, float("inf")))
                # a count that is far slower needs no more of its steps, which may take minutes
                hopeless = now - self._since > 3 * min(self._best.values())
            else:
                hopeless = False
            if self._step == self.TRIAL or hopeless:
                self._step = 0
                self._turns.pop(0)
                fastest = min(self._best, key=self._best.__getitem__)
                torch.set_num_threads(self._turns[0] if self._turns else fastest)
                if not self._turns:
                    self._say(fastest)
            self._since = self._clock()
        elif self._usual is not None and now - self._since > 2 * self.WINDOW * self._usual:
            self._begin()  # twice the window's time is over, however few steps it took
        elif self._step == self.WINDOW:
            seconds = (now - self._since) / self.WINDOW
            if self._usual is not None and seconds > 2 * self._usual:
                self._begin()
            else:
                self._usual = min(seconds, self._usual or seconds)
                self._step, self._since = 0, now


def fit(
    modules: Sequence[nn.Module],
    loss: Callable[[int], Mapping[str, Tensor]],
    optimiser: Optimiser,
    *,
    steps: int,
    log: Log | None = None,
    log_every: int = 25,
    threads: Threads | None = None,
    checkpoints: Checkpoints | None = None,
    state: Stateful | None = None,
) -> dict[str, float]:
    """Minimise a loss, in place; the modules are in training mode meanwhile and end in evaluation
    mode.

    A step whose loss or gradient is NaN or infinite is skipped: parameters, buffers and schedule
    stay as they were. A fit fails after `BAD_STEPS` of them in a row, or when no step was good.

    Under torch.distributed every process calls it with a loss of its own samples. Gradients and
    scalars are means over processes, first weights and saved states are the first process's; a bad
    step fails at once.

    Args:
        modules: whose parameters are fitted, as far as they require gradients; with none the loss
            is only computed, for what learns by seeing it.
        loss: step, from 1 -> scalars; "loss" is minimised, all are logged.
        log: called with scalars every `log_every` steps and after the last: those of the loss,
            "grad_norm", "lr" and "steps_per_second", and "skipped" where steps were.
        checkpoints: where the whole state is kept, and gone on from if one is there; with `state`,
            what else belongs to it. A signal ends the fit after the step under way, which is kept
            (see `gjwm._core.stopping`).

    Returns:
        the last logged scalars.

    Raises:
        FloatingPointError: when it has failed; parameters and buffers are then the last good ones.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer, schedule = optimiser.make(parameters, steps) if parameters else (None, None)
    scalars: dict[str, float] = {}
    losses: Mapping[str, Tensor] = {}  # of the last good step, as is the norm
    norm: Tensor | None = None
    skipped, row = 0, 0  # steps, in all and since the last good one
    first, before, begin = 0, 0.0, time.perf_counter()
    latest = None if checkpoints is None else checkpoints.latest()
    if latest is not None:
        first, content = latest.step, latest.content
        with latest.restoring():
            for name, part in {"optimizer": optimizer, "schedule": schedule}.items():
                if part is not None:
                    part.load_state_dict(content[name])
            if state is not None:
                state.restore(content)
            restore_random_state(content["random"])
            scalars, before = content["scalars"], content["seconds"]
            skipped, row = content["skipped"]

    def buffers() -> dict[tuple[int, str], Tensor]:
        named = enumerate(module.named_buffers() for module in modules)
        return {(i, name): buffer for i, module in named for name, buffer in module}

    def take(step: int) -> None:
        """One step.

        Raises:
            FloatingPointError: for what is NaN or infinite, with nothing but buffers changed.
        """
        nonlocal losses, norm
        own = loss(step)
        found, length = distributed.averaged(own), None
        if not found["loss"].isfinite():
            raise FloatingPointError(f"the loss became {found['loss'].item()}")
        if optimizer is not None and schedule is not None:
            optimizer.zero_grad(set_to_none=True)
            own["loss"].backward()
            distributed.average_gradients(parameters)
            if optimiser.clip is not None:
                length = nn.utils.clip_grad_norm_(parameters, optimiser.clip)
                if not length.isfinite():
                    raise FloatingPointError(f"the gradient's norm became {length.item()}")
            optimizer.step()
            schedule.step()
        losses, norm = found, length

    distributed.share_state(modules)
    for module in modules:
        module.train()
    since, last = time.perf_counter(), first
    try:
        # Processes that share the work would not stop, or skip, at the same step.
        alone = distributed.world_size() == 1
        with Finishing(alone and checkpoints is not None) as stop:
            for step in range(first + 1, steps + 1):
                # statistics, which a bad batch would spoil
                good = {name: buffer.clone() for name, buffer in buffers().items()}
                try:
                    take(step)
                    row = 0
                except FloatingPointError as error:
                    spoiled = buffers()
                    for name, value in good.items():
                        spoiled[name].copy_(value)
                    skipped, row = skipped + 1, row + 1
                    if row == BAD_STEPS or skipped == step == steps or not alone:
                        raise FloatingPointError(
                            f"{str(error).rstrip('.')} at step {step} (bad steps in a row: {row}); "
                            f"lower the learning rate (now {optimiser.lr}) or look for NaN in the "
                            "data."
                        ) from error
                if threads is not None:
                    threads.step()
                if losses and (step % log_every == 0 or step == steps):
                    now = time.perf_counter()
                    scalars = {name: scalar.item() for name, scalar in losses.items()}
                    if schedule is not None:
                        scalars["lr"] = schedule.get_last_lr()[0]
                    if norm is not None:
                        scalars["grad_norm"] = norm.item()
                    if skipped:
                        scalars["skipped"] = float(skipped)
                    scalars["steps_per_second"] = (step - last) / (now - since)
                    if log is not None:
                        log(scalars, step)
                    since, last = time.perf_counter(), step
                asked, kept = stop.asked, checkpoints if distributed.rank() == 0 else None
                if kept is not None and (step % kept.every == 0 or step == steps or asked):
                    content = {
                        **({} if state is None else state.state()),
                        "optimizer": None if optimizer is None else optimizer.state_dict(),
                        "schedule": None if schedule is None else schedule.state_dict(),
                        "random": random_state(),
                        "scalars": scalars,
                        "seconds": before + time.perf_counter() - begin,
                        "skipped": (skipped, row),
                    }
                    kept.save(step, content)
                if asked:
                    stop.leave()
    finally:
        for module in modules:
            module.eval()
    return scalars
