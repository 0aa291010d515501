"""A sweep from its settings to its runs: which there are, which are done, in what order the rest
runs, and what became of them.

First the tuned key of every cell that leaves it open gets its value, from runs on the tuning seed;
then every cell runs with every seed. A run is done when its folder holds an evaluation with the
same settings; anything else is (re)started and goes on from what is there. Configurations are
composed by a function from outside: nothing here knows hydra."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gjwm.data.dataset import dataset_info
from gjwm.study.grid import Cell, bare, expand, merged, written
from gjwm.study.launch import Done, Job, Outcome, failure_of, record
from gjwm.study.summary import Record
from gjwm.study.tuning import best
from gjwm.training.settings import require_same_training, same_evaluation

Config = Mapping[str, Any]
Compose = Callable[[Sequence[str]], Config]
Launch = Callable[[Sequence[Job], Done], None]


@dataclass(frozen=True)
class Tune:
    """The key that is chosen per cell, the values tried, and the seed that is used for nothing
    else.
    """

    key: str
    values: tuple[Any, ...]
    seed: int

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], seeds: Sequence[int]) -> Tune:
        """From a mapping with these three keys.

        Raises:
            ValueError: for other keys, no values, or a seed that a final run has too.
        """
        if set(settings) != {"key", "values", "seed"} or not settings["values"]:
            raise ValueError(
                f"study.tune needs key, values (one at least) and seed, got {dict(settings)}."
            )
        if settings["seed"] in seeds:
            raise ValueError(
                f"study.tune.seed={settings['seed']} is one of study.seeds: tuning must not see a "
                f"final seed."
            )
        return cls(settings["key"], tuple(settings["values"]), settings["seed"])


@dataclass(frozen=True)
class Run:
    """One cell with one seed."""

    cell: Cell
    seed: int
    tuning: bool
    folder: Path

    @property
    def name(self) -> str:
        return "/".join((*self.cell.parts, f"seed-{self.seed}"))


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
        ValueError: for a grid that cannot be, seeds given twice, or an axis that the command line
            sets too.
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
        key = self.tune.key
        fixed = {
            cell
            for cell in self.cells
            if any(bare(k) == bare(key) for k in (*cell.overrides, *self._typed))
        }
        return {
            cell: {
                value: self._run(cell.with_tuned(key, value), self.tune.seed, tuning=True)
                for value in self.tune.values
            }
            for cell in self.cells
            if cell not in fixed
        }

    def chosen(self) -> dict[Cell, Any]:
        """{cell: the tuned value}, of cells whose tuning runs have all been tried and not all
        failed.
        """
        found = {}
        for cell, runs in self.tuning_runs.items():
            reports = {value: self.report(run) for value, run in runs.items()}
            known = {value: report for value, report in reports.items() if report is not None}
            tried = all(
                reports[value] is not None or failure_of(run.folder) for value, run in runs.items()
            )
            if tried and known:
                found[cell] = best(known)
        return found

    def final_runs(self) -> list[Run]:
        """The runs that count, of all cells whose tuned value is known or that need none."""
        chosen, runs = self.chosen(), []
        for cell in self.cells:
            if cell not in self.tuning_runs:
                runs += [self._run(cell, seed) for seed in self.seeds]
            elif cell in chosen:
                tuned = cell.with_tuned(self.tune.key, chosen[cell])
                runs += [self._run(tuned, seed) for seed in self.seeds]
        return runs

    def _run(self, cell: Cell, seed: int, *, tuning: bool = False) -> Run:
        return Run(cell, seed, tuning, self.folder.joinpath(*cell.parts, f"seed-{seed}"))

    def told(self, run: Run) -> tuple[str, ...]:
        """What a run is told."""
        return self._settled(run)[0]

    def config(self, run: Run) -> Config:
        """The resolved configuration of a run."""
        return self._settled(run)[1]

    def _settled(self, run: Run) -> tuple[tuple[str, ...], Config]:
        if run.folder not in self._known:  # composing takes tenths of a second
            layers = [
                written(key, value)
                for key, value in run.cell.overrides.items()
                if bare(key) not in self._typed
            ]
            layers += self._typed.values()
            own: dict[str, Any] = {
                "seed": run.seed,
                "name": f"{self.name}/{run.name}",
                "run_dir": str(run.folder),
            }
            if self.threads is not None:
                own["threads"] = self.threads
            composed = self.compose([*layers, *(written(key, value) for key, value in own.items())])
            dataset, judged = (
                f"{composed['dataset']}-seed-{run.seed}",
                composed["evaluate"]["seed"] + run.seed,
            )
            own |= {"dataset": dataset, "evaluate.seed": judged}
            config = {
                **composed,
                "dataset": dataset,
                "evaluate": {**composed["evaluate"], "seed": judged},
            }
            kept = [text for text in layers if _key(text) not in own]
            self._known[run.folder] = (
                (*kept, *(written(key, value) for key, value in own.items())),
                config,
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
        """Every run with what became of it; a cell whose tuned value is not known yet has one
        pending record per seed.
        """
        runs = [
            run for row in self.tuning_runs.values() for run in row.values()
        ] + self.final_runs()
        found = [
            Record(
                *self._names(run.cell),
                run.cell.tuned,
                run.seed,
                run.tuning,
                "/".join(run.cell.parts),
                report := self.report(run),
                failure_of(run.folder) if report is None else None,
            )
            for run in runs
        ]
        settled = set(self.chosen()) | (set(self.cells) - set(self.tuning_runs))
        for cell in self.cells:
            if cell not in settled:
                found += [
                    Record(*self._names(cell), None, seed, False, "/".join(cell.parts), None)
                    for seed in self.seeds
                ]
        return found

    def _names(self, cell: Cell) -> tuple[str, str]:
        """Task and method as tables call them, with a name for what is no axis."""
        return cell.task or self.name, cell.method or "as configured"

    # -- running -----------------------------------------------------------------------------------

    def execute(self, launch: Launch, notify: Callable[[str], None]) -> None:
        """Run what is not done: tuning, then the rest; what fails is noted in its folder and tried
        again by the next call.

        Raises:
            ValueError: before anything runs, when a run was trained with other settings or two runs
                need different data under one name.
        """
        tuning = [run for runs in self.tuning_runs.values() for run in runs.values()]
        if tuning:
            self._finish(tuning, launch, notify, f"tuning {self.tune.key} on seed {self.tune.seed}")
            for cell, value in self.chosen().items():
                notify(f"{'/'.join(cell.parts)}: {self.tune.key}={value}")
        self._finish(self.final_runs(), launch, notify, "final runs")

    def _finish(
        self, runs: Sequence[Run], launch: Launch, notify: Callable[[str], None], what: str
    ) -> None:
        for run in runs:
            before = run.folder / "state" / "run.json"
            if any(before.parent.glob("state-*.pt")):  # without one, training begins anew
                made, wanted = json.loads(before.read_text())["config"], self.config(run)
                if not (run.folder / "checkpoint.pt").is_file():
                    # comes after the last state, so it may still change
                    made["refine"] = wanted.get("refine")
                require_same_training(made, wanted, run.folder)
        data = self._datasets(runs)
        todo = [run for run in runs if self.report(run) is None]
        notify(f"{what}: {len(runs)}, of which {len(runs) - len(todo)} are done")
        missing = {str(self.config(run)["dataset"]) for run in todo}
        collections = [
            job for path, job in data.items() if path in missing and not self._collected(path, todo)
        ]
        broken: dict[str, str] = {}

        def collected(outcome: Outcome) -> None:
            if outcome.error is not None:
                broken[outcome.job.name] = outcome.error
            notify(_told(outcome))

        launch(collections, collected)
        jobs = []
        for run in todo:
            job = Job(run.name, ("run", *self.told(run)), run.folder, self.threads)
            error = broken.get(self.config(run)["dataset"])
            if error is None:
                jobs.append(job)
            else:
                run.folder.mkdir(parents=True, exist_ok=True)
                record(Outcome(job, f"no data: {error}", 0.0))
        ended = len(runs) - len(todo)

        def done(outcome: Outcome) -> None:
            nonlocal ended
            ended += 1
            notify(f"[{ended}/{len(runs)}] {_told(outcome)}")

        launch(jobs, done)

    def _datasets(self, runs: Sequence[Run]) -> dict[str, Job]:
        """{folder: the job that collects it}; runs of one task and seed share it."""
        jobs: dict[str, Job] = {}
        asked: dict[str, tuple[Run, Any]] = {}
        for run in runs:
            config = self.config(run)
            path = str(config["dataset"])
            collect = {key: value for key, value in config["collect"].items() if key != "workers"}
            wanted = {"env": config["env"], "collect": collect, "seed": config["seed"]}
            first, before = asked.setdefault(path, (run, wanted))
            different = [key for key in wanted if wanted[key] != before[key]]
            if different:
                raise ValueError(
                    f"{first.name} and {run.name} need different data ({', '.join(different)}) "
                    f"under one name, {path}: make "
                    "dataset=... depend on what differs, e.g. dataset='data/x-${env.size}'."
                )
            if path not in jobs:
                folder = self.folder / "data" / Path(path).name
                jobs[path] = Job(
                    path, ("collect", *self.told(run), "resume=true"), folder, self.threads
                )
        return jobs

    def _collected(self, path: str, runs: Sequence[Run]) -> bool:
        episodes = next(
            self.config(run)["collect"]["episodes"]
            for run in runs
            if self.config(run)["dataset"] == path
        )
        return (Path(path) / "metadata.json").is_file() and dataset_info(path)[
            "episodes"
        ] >= episodes


def _key(text: str) -> str:
    return bare(text).partition("=")[0]


def _told(outcome: Outcome) -> str:
    how = (
        "done"
        if outcome.error is None
        else f"FAILED: {outcome.error} ({outcome.job.folder / 'run.log'})"
    )
    return f"{outcome.job.name}: {how}, {outcome.seconds:.0f} s"


def settings_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`Sweep`'s arguments among the settings of the config node "study"."""
    tune = settings["tune"]
    return {
        "seeds": settings["seeds"],
        "grid": settings["grid"],
        "overrides": merged(settings["overrides"]),
        "where": settings["where"],
        "tune": None if tune is None else Tune.from_settings(tune, settings["seeds"]),
    }
