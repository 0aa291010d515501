"""A sweep: which runs there are, which are done, running the rest, and what became of them.

Cells that leave the tuned key open get its value first, from runs on the tuning seed; then every
cell runs with every seed. A run is done when its folder holds an evaluation with the same settings.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gjwm.data.dataset import dataset_info
from gjwm.study.grid import Cell, bare, expand, merged, written
from gjwm.study.launch import Done, Job, Outcome, failure_of, record
from gjwm.study.rows import settings_in
from gjwm.study.summary import Record, figures_of
from gjwm.training.run import LATE, require_same_training, same_evaluation

Config = Mapping[str, Any]
Compose = Callable[[Sequence[str]], Config]
Launch = Callable[[Sequence[Job], Done], None]


@dataclass(frozen=True)
class Tune:
    """The key that is chosen per cell, the values tried, and the seed of these runs alone."""

    key: str
    values: Sequence[Any]
    seed: int


def best(reports: Mapping[Any, Config]) -> Any:
    """{value: report of its tuning run} -> the value with the highest planning success; ties go to
    the higher R2 after 5 steps (or the last), then to the value that comes first.

    Raises:
        ValueError: without a report.
    """
    if not reports:
        raise ValueError("a value is chosen among tuning runs, and none of them ended well.")

    def merit(value: Any) -> tuple[float, float]:
        r2 = reports[value]["prediction"]["r2_by_horizon"][:5][-1]
        known = r2 is not None and math.isfinite(r2)
        return reports[value]["planning"]["success_rate"], r2 if known else -math.inf

    return max(reports, key=merit)  # max keeps the first of equals


@dataclass(frozen=True)
class Run:
    """One cell with one seed."""

    cell: Cell
    seed: int
    tuning: bool
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.cell.path}/seed-{self.seed}".removeprefix("/")


@dataclass
class Sweep:
    """The runs of a study.

    Args:
        name, folder: of the study; a run lies in <folder>/<task>/<method>/seed-<k> and is called
            <name>/<task>/...
        grid, overrides, where: see `gjwm.study.grid.expand`.
        seeds: of every cell.
        tune: what is chosen first; None: nothing.
        given: overrides from the command line as they were typed; they replace those of `overrides`
            and `where`.
        compose: overrides -> resolved configuration.
        threads: of each run; None: as the configuration says.

    Raises:
        ValueError: for a grid that cannot be, seeds given twice or used for tuning, or an axis that
            the command line sets too.
    """

    name: str
    folder: Path
    seeds: Sequence[int]
    compose: Compose
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    where: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tune: Tune | None = None
    given: Sequence[str] = ()
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(
                f"study.seeds must be a list of different seeds, got {list(self.seeds)}."
            )
        if self.tune is not None and self.tune.seed in self.seeds:
            raise ValueError(
                f"study.tune.seed={self.tune.seed} is one of study.seeds: tuning must not see a "
                f"final seed."
            )
        self._typed = {_key(text): text for text in self.given}
        for axis in self.grid:
            if axis in self._typed:
                raise ValueError(
                    f"{axis} is an axis of study.grid and was set as well; give its values as "
                    f"{axis}=a,b."
                )
        self.cells = expand(self.grid, self.overrides, self.where)
        self._known: dict[Path, tuple[tuple[str, ...], Config]] = {}

    # -- which runs there are ----------------------------------------------------------------------

    @cached_property
    def tuning_runs(self) -> dict[Cell, dict[Any, Run]]:
        """{cell: {value: its tuning run}} of the cells that leave the tuned key open."""
        if self.tune is None:
            return {}
        key, seed = self.tune.key, self.tune.seed

        def is_open(cell: Cell) -> bool:
            return bare(key) not in map(bare, (*cell.overrides, *self._typed))

        return {
            cell: {
                value: self._run(cell.with_tuned(key, value), seed, tuning=True)
                for value in self.tune.values
            }
            for cell in filter(is_open, self.cells)
        }

    @property
    def _tuning(self) -> list[Run]:
        return [run for runs in self.tuning_runs.values() for run in runs.values()]

    def chosen(self) -> dict[Cell, Any]:
        """{cell: the tuned value} of cells whose tuning runs have been tried and not all failed."""
        values = {}
        for cell, runs in self.tuning_runs.items():
            reports = {value: self.report(run) for value, run in runs.items()}
            done = {value: report for value, report in reports.items() if report is not None}
            if done and all(v in done or failure_of(run.folder) for v, run in runs.items()):
                values[cell] = best(done)
        return values

    def final_runs(self) -> list[Run]:
        """The runs that count, of all cells whose tuned value is known or that need none."""
        chosen = self.chosen()
        cells = [
            cell.with_tuned(self.tune.key, chosen[cell]) if cell in chosen else cell
            for cell in self.cells
            if cell in chosen or cell not in self.tuning_runs
        ]
        return [self._run(cell, seed) for cell in cells for seed in self.seeds]

    def _run(self, cell: Cell, seed: int, *, tuning: bool = False) -> Run:
        return Run(cell, seed, tuning, self.folder.joinpath(*cell.parts, f"seed-{seed}"))

    def arguments(self, run: Run) -> tuple[str, ...]:
        """The overrides that a run gets on its command line."""
        return self._composed(run)[0]

    def config(self, run: Run) -> Config:
        """The resolved configuration of a run."""
        return self._composed(run)[1]

    def _composed(self, run: Run) -> tuple[tuple[str, ...], Config]:
        if run.folder not in self._known:  # composing takes tenths of a second
            overrides = run.cell.overrides.items()
            layers = [written(key, v) for key, v in overrides if bare(key) not in self._typed]
            layers += self._typed.values()
            own = {"seed": run.seed, "name": f"{self.name}/{run.name}", "run_dir": str(run.folder)}
            own |= {} if self.threads is None else {"threads": self.threads}
            composed = self.compose([*layers, *itertools.starmap(written, own.items())])
            # Each seed has its own data and goals, the same for all methods.
            evaluate = dict(composed["evaluate"])
            evaluate["seed"] += run.seed
            own |= {
                "dataset": f"{composed['dataset']}-seed-{run.seed}",
                "evaluate.seed": evaluate["seed"],
            }
            kept = [text for text in layers if _key(text) not in own]
            self._known[run.folder] = (
                (*kept, *itertools.starmap(written, own.items())),
                {**composed, "dataset": own["dataset"], "evaluate": evaluate},
            )
        return self._known[run.folder]

    # -- what became of them -----------------------------------------------------------------------

    def report(self, run: Run) -> Config | None:
        """The evaluation of a run that is done, or None."""
        path = run.folder / "evaluation.json"
        if not path.is_file():
            return None
        report, now = json.loads(path.read_text()), self.config(run)
        require_same_training(report["config"], now, run.folder)
        return report if same_evaluation(report["config"], now) else None

    def records(self) -> list[Record]:
        """Every run with what became of it; without its tuned value a cell is pending."""
        waiting = self.tuning_runs.keys() - self.chosen().keys()
        unknown = [self._run(c, seed) for c in self.cells if c in waiting for seed in self.seeds]
        return [
            *(self._record(run, self.report(run)) for run in (*self._tuning, *self.final_runs())),
            *(self._record(run, None) for run in unknown),
        ]

    def _record(self, run: Run, report: Config | None) -> Record:
        cell, error = run.cell, failure_of(run.folder) if report is None else None
        # What is no axis has a name in the tables too.
        task, method = cell.task or self.name, cell.method or "as configured"
        figures = None if report is None else figures_of(report)
        settings = {} if report is None else settings_in(report["config"])
        return Record(
            task, method, cell.tuned, run.seed, run.tuning, cell.path, figures, error, settings
        )

    # -- running -----------------------------------------------------------------------------------

    def execute(self, launch: Launch, notify: Callable[[str], None]) -> None:
        """Run what is not done: tuning, then the rest. The next call tries again what failed.

        Raises:
            ValueError: before anything runs, when a run was trained with other settings or two runs
                need different data under one name.
        """
        if self._tuning:
            self._finish(
                self._tuning, launch, notify, f"tuning {self.tune.key} on seed {self.tune.seed}"
            )
            for cell, value in self.chosen().items():
                notify(f"{cell.path}: {self.tune.key}={value}")
        self._finish(self.final_runs(), launch, notify, "final runs")

    def _finish(
        self, runs: Sequence[Run], launch: Launch, notify: Callable[[str], None], what: str
    ) -> None:
        for run in runs:
            self._require_same_state(run)
        collections = self._collections(runs)
        todo = [run for run in runs if self.report(run) is None]
        notify(f"{what}: {len(runs)}, of which {len(runs) - len(todo)} are done")
        missing = {self.config(run)["dataset"] for run in todo if not self._collected(run)}
        no_data: dict[str, str] = {}

        def collected(outcome: Outcome) -> None:
            if outcome.error is not None:
                no_data[outcome.job.name] = outcome.error
            notify(str(outcome))

        launch([job for path, job in collections.items() if path in missing], collected)
        jobs = []
        for run in todo:
            job = Job(run.name, ("run", *self.arguments(run)), run.folder, self.threads)
            if error := no_data.get(self.config(run)["dataset"]):
                record(Outcome(job, f"no data: {error}", 0.0))
            else:
                jobs.append(job)
        ended = itertools.count(len(runs) - len(todo) + 1)
        launch(jobs, lambda outcome: notify(f"[{next(ended)}/{len(runs)}] {outcome}"))

    def _require_same_state(self, run: Run) -> None:
        """Refuse to continue a training that was begun with other settings."""
        state = run.folder / "state"
        if any(state.glob("state-*.pt")):  # without one, training begins anew
            made, wanted = json.loads((state / "run.json").read_text())["config"], self.config(run)
            if not (run.folder / "checkpoint.pt").is_file():
                for stage in LATE:  # after the last state: may change
                    made[stage] = wanted.get(stage)
            require_same_training(made, wanted, run.folder)

    def _collections(self, runs: Sequence[Run]) -> dict[str, Job]:
        """{folder: the job that collects it}; runs of one task and seed share it."""
        jobs: dict[str, Job] = {}
        first: dict[str, tuple[Run, Config]] = {}
        for run in runs:
            config = self.config(run)
            path = config["dataset"]
            collect = {key: value for key, value in config["collect"].items() if key != "workers"}
            wanted = {"env": config["env"], "collect": collect, "seed": config["seed"]}
            other, before = first.setdefault(path, (run, wanted))
            different = [key for key in wanted if wanted[key] != before[key]]
            if different:
                raise ValueError(
                    f"{other.name} and {run.name} need different data ({', '.join(different)}) "
                    f"under one name, {path}: make dataset=... depend on what differs, e.g. "
                    "dataset='data/x-${env.size}'."
                )
            if path not in jobs:
                arguments = ("collect", *self.arguments(run), "resume=true")
                folder = self.folder / "data" / Path(path).name
                jobs[path] = Job(path, arguments, folder, self.threads)
        return jobs

    def _collected(self, run: Run) -> bool:
        config = self.config(run)
        path, episodes = Path(config["dataset"]), config["collect"]["episodes"]
        return (path / "metadata.json").is_file() and dataset_info(path)["episodes"] >= episodes


def _key(text: str) -> str:
    return bare(text).partition("=")[0]


def settings_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`Sweep`'s arguments among the settings of the config node "study".

    Raises:
        ValueError: for other keys in tune, or no values.
    """
    tune = settings["tune"]
    if tune is not None and (set(tune) != {"key", "values", "seed"} or not tune["values"]):
        raise ValueError(f"study.tune needs key, values (one at least) and seed, got {tune}.")
    return {
        "seeds": settings["seeds"],
        "grid": settings["grid"],
        "overrides": merged(settings["overrides"]),
        "where": settings["where"],
        "tune": None if tune is None else Tune(**tune),
    }
