"""Claims about studies: which runs there are, that one's end is not another's, what is not done
twice, and what it all says.
"""

import csv
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from scipy import stats

from gjwm._core.stopping import Stopped, listening
from gjwm.evaluation.intervals import (
    mean_over_tasks,
    rank_correlation,
    rank_correlation_interval,
    rate_interval,
    wilson_interval,
)
from gjwm.study import (
    Job,
    Record,
    Sweep,
    Tune,
    best,
    expand,
    ranking,
    read_rows,
    run_local,
    run_slurm,
    write_study,
    written,
)
from gjwm.study import launch as launching
from gjwm.study.rows import settings_in
from gjwm.study.summary import (
    cell_figures,
    differences,
    figures_of,
    over_tasks,
    policies,
)
from gjwm.study.summary import (
    success as success_of,
)

# -- the grid --------------------------------------------------------------------------------------


def test_a_grid_is_the_product_of_its_axes_with_tasks_outermost():
    cells = expand(
        {
            "discrepancy": ["none", "sigreg"],
            "objective.lam": [1, 5.0],
            "experiment": ["reacher", "two_room"],
        },
        {"train.steps": 10, "discrepancy": "kl"},
        {
            "discrepancy=none": {"objective.lam": 0},
            "experiment=reacher, discrepancy=none": {"+train.steps": 3},
        },
    )
    assert len(cells) == 8 and [cell.task for cell in cells] == ["reacher"] * 4 + ["two_room"] * 4
    first, last = cells[0], cells[-1]
    assert first.parts == ("reacher", "none", "lam-1") and first.method == "none,lam-1"
    assert first.overrides == {
        "experiment": "reacher",
        "discrepancy": "none",
        "objective.lam": 0,
        "+train.steps": 3,
    }
    assert last.overrides == {
        "train.steps": 10,
        "experiment": "two_room",
        "discrepancy": "sigreg",
        "objective.lam": 5.0,
    }
    assert [cell.parts for cell in expand({"a.lam": [-1, 1, 1e-3], "x": [[8, 8]]})] == [
        ("lam--1", "8-8"),
        ("lam-1", "8-8"),
        ("lam-0.001", "8-8"),
    ]
    assert expand({})[0].parts == ()


@pytest.mark.parametrize(
    ("grid", "where", "said"),
    [
        ({"discrepancy": "sigreg"}, {}, "must be a list"),
        ({"discrepancy": []}, {}, "must be a list"),
        ({"discrepancy": ["kl", "kl"]}, {}, "each value once"),
        (
            {"discrepancy": ["kl"]},
            {"discrepency=kl": {}},
            "'discrepency=kl', which is no axis=value",
        ),
    ],
)
def test_a_grid_that_cannot_be_is_refused(grid, where, said):
    with pytest.raises(ValueError, match=said):
        expand(grid, {}, where)


def test_overrides_are_written_as_hydra_reads_them():
    hydra = pytest.importorskip("hydra.core.override_parser.overrides_parser")
    parser = hydra.OverridesParser.create()
    texts = ("sigreg", "true", "12", "a b", "it's", "runs/a-b/c", "")
    for value in (5, 0.5, 1e-3, True, None, [8, "x"], {"a": [1]}, *texts):
        result = parser.parse_override(written("+key.of", value)).value()
        result = getattr(result, "text", result)
        assert type(result) is type(value)
        assert str(result) == str(value)  # lists hold hydra's own strings
    assert written("~heads", None) == "~heads"


# -- choosing --------------------------------------------------------------------------------------


def evaluation(success, *, r2=0.5, episodes=10, config=None, **other):
    planning = {"success_rate": success, "episodes": episodes, "seconds_per_step": 0.01}
    return {
        "planning": planning | {"random": {"success_rate": 0.2, "episodes": episodes}},
        "prediction": {"r2_by_horizon": [0.9, 0.8, 0.7, 0.6, r2, 0.1], "skill_nats_per_dim": r2},
        "training": {"seconds": 2.0, "peak_memory_mb": 100.0},
        "config": {"train": {"steps": 1000}, "evaluate": {}, "planner": {}} | (config or {}),
        **other,
    }


def test_a_setting_is_chosen_by_success_then_by_prediction_then_by_order():
    assert best({1: evaluation(0.5, r2=0.9), 5: evaluation(0.6, r2=0.1)}) == 5
    assert (
        best({1: evaluation(0.5, r2=0.1), 5: evaluation(0.5, r2=0.9), 25: evaluation(0.4, r2=1.0)})
        == 5
    )
    assert best({1: evaluation(0.5), 5: evaluation(0.5)}) == 1
    assert best({1: evaluation(0.5, r2=float("nan")), 5: evaluation(0.5, r2=-3.0)}) == 5
    short = {"prediction": {"r2_by_horizon": [0.9, 0.3]}}
    assert best({1: evaluation(0.5), 5: evaluation(0.5) | short, 7: evaluation(0.5, r2=0.2)}) == 1
    with pytest.raises(ValueError, match="none of them"):
        best({})


# -- running ---------------------------------------------------------------------------------------


def compose(overrides):
    """What hydra makes of overrides, for these tests."""
    given = dict(text.lstrip("+").split("=", 1) for text in overrides)
    return {
        "dataset": given.get("dataset", f"data/{given.get('experiment', 'task')}").strip("'"),
        "env": {"id": given.get("experiment", "task"), "size": given.get("env.size")},
        "collect": {"episodes": 3, "workers": given.get("collect.workers")},
        "evaluate": {"seed": int(given.get("evaluate.seed", 1))},
        "planner": {"samples": given.get("planner.samples")},
        "train": {"steps": 1000},
        "seed": int(given.get("seed", 0)),
        "discrepancy": given.get("discrepancy"),
        "lam": given.get("objective.lam"),
    }


class FakeLauncher:
    """Does at once what processes would do: writes evaluations, or says why not."""

    def __init__(self, success=lambda job: 0.5, fails=()):
        self.success, self.fails, self.started = success, set(fails), []

    def __call__(self, jobs, done):
        for job in jobs:
            self.started.append(job.name)
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / launching.FAILURE).unlink(missing_ok=True)
            error = "gjwm run: out of luck." if job.name in self.fails else None
            if error is None and job.arguments[0] == "run":
                report = evaluation(self.success(job), config=compose(job.arguments[1:]))
                (job.folder / "evaluation.json").write_text(json.dumps(report))
            done(launching.record(launching.Outcome(job, error, 0.0)))


GRID = {"experiment": ["a", "b"], "discrepancy": ["none", "kl"]}


def sweep(folder, **changes):
    settings = {
        "grid": GRID,
        "seeds": [0, 1],
        "overrides": {"dataset": str(folder / "data" / "d")},
        "where": {f"experiment={task}": {"dataset": str(folder / "data" / task)} for task in "ab"},
    }
    return Sweep(name="s", folder=folder / "runs", compose=compose, **(settings | changes))


def test_what_failed_is_listed_and_tried_again_and_what_is_done_is_not(tmp_path):
    launch, messages = FakeLauncher(fails={"a/kl/seed-1"}), []
    sweep(tmp_path).execute(launch, messages.append)

    def runs(launch):
        return [name for name in launch.started if not name.startswith(str(tmp_path))]

    assert len(runs(launch)) == 8
    states = {f"{r.cell}/{r.seed}": r.state for r in sweep(tmp_path).records()}
    assert states.pop("a/kl/1") == "failed"
    assert set(states.values()) == {"done"} and len(states) == 7
    assert any("FAILED: gjwm run: out of luck." in line for line in messages)
    again = FakeLauncher()
    sweep(tmp_path).execute(again, messages.append)
    assert runs(again) == ["a/kl/seed-1"]
    assert {r.state for r in sweep(tmp_path).records()} == {"done"}
    # Other settings of the planner are judged anew, and how many processes collect changes nothing.
    third = FakeLauncher()
    sweep(tmp_path, given=["collect.workers=7"]).execute(third, messages.append)
    assert third.started == []
    sweep(tmp_path, given=["planner.samples=9"]).execute(third, messages.append)
    assert len(runs(third)) == 8
    with pytest.raises(ValueError, match="other settings of lam"):
        sweep(tmp_path, given=["objective.lam=2"]).execute(third, messages.append)


def test_data_are_collected_once_per_task_and_seed_and_without_them_no_run_starts(tmp_path):
    data = str(tmp_path / "data" / "a-seed-1")
    launch = FakeLauncher(fails={data})
    sweep(tmp_path).execute(launch, lambda message: None)
    collected = [name for name in launch.started if name.startswith(str(tmp_path))]
    assert collected == [
        str(tmp_path / "data" / f"{task}-seed-{seed}") for task in "ab" for seed in (0, 1)
    ]
    lost = [r for r in sweep(tmp_path).records() if r.state == "failed"]
    assert [(r.task, r.seed) for r in lost] == [("a", 1)] * 2 and lost[
        0
    ].error == "no data: gjwm run: out of luck."
    with pytest.raises(ValueError, match=r"need different data \(env\) under one name"):
        both = sweep(tmp_path / "other", grid={**GRID, "env.size": [16, 32]})
        both.execute(launch, lambda message: None)


def test_a_run_is_told_everything_and_the_command_line_has_the_last_word(tmp_path):
    settings = {
        "overrides": {"train.steps": 5, "env.size": 16},
        "where": {"discrepancy=none": {"objective.lam": 0}},
    }
    one = sweep(tmp_path, given=["train.steps=7", "name=x", "dataset=d"], threads=1, **settings)
    run = one.final_runs()[1]
    assert run.name == "a/none/seed-1" and run.folder == tmp_path / "runs" / "a" / "none" / "seed-1"
    told = """env.size=16 experiment=a discrepancy=none objective.lam=0 train.steps=7 threads=1
        seed=1 name=s/a/none/seed-1 dataset=d-seed-1 evaluate.seed=2"""
    assert set(one.arguments(run)) == {*told.split(), written("run_dir", str(run.folder))}
    with pytest.raises(ValueError, match="discrepancy is an axis"):
        sweep(tmp_path, given=["discrepancy=kl"])
    with pytest.raises(ValueError, match="different seeds"):
        sweep(tmp_path, seeds=[1, 1])
    with pytest.raises(ValueError, match="must not see a final seed"):
        sweep(tmp_path, tune=Tune("objective.lam", (1,), 0))


def test_a_setting_is_tuned_on_its_own_seed_where_it_is_open(tmp_path):
    tune = Tune("objective.lam", (1, 5, 25), 100)
    fixed = {
        "discrepancy=none": {"objective.lam": 0},
        "experiment=a": {"dataset": "a"},
        "experiment=b": {"dataset": "b"},
    }

    def success(job):  # a is best with 5, b with 25
        return 0.9 if ("a/kl/lam-5" in job.name or "b/kl/lam-25" in job.name) else 0.3

    def make():
        return sweep(tmp_path, tune=tune, where=fixed)

    assert [r.state for r in make().records()] == ["pending"] * (6 + 8)
    launch = FakeLauncher(success, fails={"a/kl/lam-1/seed-100"})
    make().execute(launch, lambda message: None)
    final = [r for r in make().records() if not r.tuning]
    assert {(r.task, r.method, r.tuned) for r in final} == {
        *(("a", "none", None), ("a", "kl", 5), ("b", "none", None), ("b", "kl", 25)),
    }
    assert {r.seed for r in final} == {0, 1} and all(r.state == "done" for r in final)
    assert [r.error for r in make().records() if r.tuning and r.state == "failed"] == [
        "gjwm run: out of luck."
    ]
    typed = sweep(tmp_path, tune=tune, given=["objective.lam=3"], where={})
    assert not typed.tuning_runs and len(typed.final_runs()) == 8


@pytest.fixture
def interpreter(tmp_path, monkeypatch):
    """A stand-in for Python, so that a process takes milliseconds: `-m gjwm WORD`."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\necho starting $3 with $OMP_NUM_THREADS\n"
        'case $3 in die) kill -KILL $$;; fail) printf "at 10%%\\rat 50%%\\nTrouble: no luck\\n\\n" '
        ">&2; exit 1;; wait) trap 'echo kept; exit 143' TERM; echo begun; "
        "while :; do sleep 0.01; done;; "
        "step) trap 'echo cut short; exit 1' TERM; "
        "trap 'echo asked; sleep 0.4; echo kept; exit 130'"
        ' INT; echo "begun\n$$"; while :; do sleep 0.01; done;; esac\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(sys, "executable", str(script))


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_run_that_is_killed_takes_no_other_with_it(at_once, tmp_path, interpreter):
    if at_once > 1:
        pytest.importorskip("joblib")
    jobs = [
        Job(f"{k}", (word,), tmp_path / f"{k}", 1)
        for k, word in enumerate(("go", "die", "fail", "go", "die", "go"))
    ]
    outcomes = []
    run_local(jobs, outcomes.append, at_once=at_once)
    errors = {outcome.job.name: outcome.error for outcome in outcomes}
    killed = "killed by SIGKILL, as a machine out of memory does"
    expected = (None, killed, "Trouble: no luck", None, killed, None)
    assert errors == {str(k): error for k, error in enumerate(expected)}
    assert launching.failure_of(tmp_path / "2") == "Trouble: no luck"
    assert launching.failure_of(tmp_path / "0") is None
    assert (tmp_path / "0" / "run.log").read_text() == "starting go with 1\n"


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_signal_to_a_study_lets_its_runs_end_after_their_step(
    at_once, tmp_path, interpreter, capfd
):
    if at_once > 1:
        pytest.importorskip("joblib")
    jobs = [Job(f"{k}", ("wait",), tmp_path / f"{k}", 1) for k in range(3)]
    logs = [job.folder / launching.LOG for job in jobs]

    def signal_when_begun():
        while not all(log.exists() and "begun" in log.read_text() for log in logs[:at_once]):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=signal_when_begun)
    thread.start()
    with pytest.raises(Stopped, match="SIGTERM"), listening():
        run_local(jobs, print, at_once=at_once)
    thread.join()
    assert [log.read_text().splitlines()[-1] for log in logs[:at_once]] == ["kept"] * at_once
    assert not any(log.exists() for log in logs[at_once:])  # the others were not begun
    waits = f"waits for {at_once} of its runs to end, each after its step; a second signal does not"
    assert waits in capfd.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_signal_while_a_run_begins_ends_that_run_too(tmp_path, interpreter, monkeypatch):
    log, real = tmp_path / "0" / launching.LOG, subprocess.Popen

    def interrupted(*arguments, **options):
        process = real(*arguments, **options)
        while "begun" not in log.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)  # here the signal is handled
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(Stopped, match="SIGTERM"), listening():
        run_local([Job("0", ("wait",), tmp_path / "0", 1)], print, at_once=1)
    assert log.read_text().splitlines()[-1] == "kept"


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_after_an_interrupt_that_all_get_a_study_only_waits(tmp_path, interpreter):
    log = tmp_path / "0" / launching.LOG

    def interrupt_all():
        while not (log.exists() and len(log.read_text().splitlines()) == 3):
            time.sleep(0.01)
        for process in (int(log.read_text().split()[-1]), os.getpid()):
            os.kill(process, signal.SIGINT)

    # what runs in the background may ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt_all)
    try:
        thread.start()
        with pytest.raises(Stopped, match="SIGINT"), listening():
            run_local([Job("0", ("step",), tmp_path / "0", 1)], print, at_once=1)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert log.read_text().splitlines()[-2:] == ["asked", "kept"]


def test_a_missing_extra_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert not launching.has_joblib()
    with pytest.raises(
        ImportError, match=r"study.jobs=2 needs joblib: pip install 'gjwm\[study\]'"
    ):
        run_local([], print, at_once=2)
    with pytest.raises(ImportError, match=r"pip install 'gjwm\[slurm\]'"):
        run_slurm([], print, at_once=2, folder=tmp_path, options={})


@pytest.mark.slow
def test_submitit_runs_the_same_jobs(tmp_path):
    pytest.importorskip("submitit")
    jobs = [Job(word, (word,), tmp_path / word, 1) for word in ("--version", "fly")]
    outcomes = []
    options = {"cluster": "local", "timeout_min": 5, "slurm_partition": "any"}
    run_slurm(
        jobs, outcomes.append, at_once=2, folder=tmp_path / "slurm", options=options, every=0.2
    )
    errors = {outcome.job.name: outcome.error for outcome in outcomes}
    assert errors["--version"] is None and errors["fly"].startswith("gjwm: unknown command 'fly'")


# -- what it says ----------------------------------------------------------------------------------


def records(rows):
    """(task, method, seed, success, more of the evaluation) -> records."""
    return [
        Record(
            task,
            method,
            None,
            seed,
            False,
            f"{task}/{method}",
            figures_of(evaluation(success, **more)),
        )
        for task, method, seed, success, more in rows
    ]


def test_figures_of_a_cell_are_means_with_intervals_over_seeds():
    rows = records(
        [
            ("a", "m", seed, success, {"r2": r2})
            for seed, success, r2 in ((0, 0.5, 0.1), (1, 0.9, 0.4), (7, 1.0, 0.7))
        ]
    )
    result = cell_figures(rows)
    mean, low, high = result["R2, 5 steps"]
    assert mean == pytest.approx(0.4) and low == pytest.approx(2 * mean - high)
    assert high - mean == pytest.approx(stats.t.ppf(0.975, 2) * 0.3 / np.sqrt(3))
    assert result["train ms per step"][0] == 2 and result["peak MB"][0] == 100
    assert "hold" not in result and result["success"][0] == pytest.approx(0.8)
    # Seeds that agree leave the uncertainty of 30 attempts, not none; seeds that differ more.
    agreed = cell_figures(records([("a", "m", seed, 1.0, {}) for seed in range(3)]))["success"]
    assert agreed[1] == pytest.approx(30 / (30 + 1.96**2), abs=1e-3) and agreed[2] == 1
    assert result["success"] == pytest.approx(rate_interval([5, 9, 10], [10] * 3))
    single = cell_figures(rows[:1])
    assert single["R2, 5 steps"] == (pytest.approx(0.1), None, None)
    assert single["success"][1] < 0.5 < single["success"][2]


def test_seeds_are_clusters_and_other_policies_count_once_per_seed():
    rows = records(
        [("a", "m", 0, 0.5, {}), ("a", "m", 1, 1.0, {"episodes": 30}), ("a", "n", 0, 0.1, {})]
    )
    assert success_of(rows[:2]) == pytest.approx(rate_interval([5, 30], [10, 30]))
    low, high = wilson_interval(8, 40)  # what is not trained is the same with every seed
    row = {"mean": 0.2, "low": low, "high": high, "attempts": 40}
    assert policies(rows) == {"a": {"random": pytest.approx(row)}}


def test_each_task_weighs_the_same_over_tasks():
    easy = [("easy", "m", k, rate, {}) for k, rate in enumerate((0.9, 1.0, 0.95, 0.97))]
    hard = [("hard", "m", k, rate, {}) for k, rate in enumerate((0.1, 0.5))]
    result = over_tasks(records([*easy, *hard, ("easy", "lost", 0, 0.9, {})]))
    assert list(result) == ["m"]  # the other method has no run of one task
    row = result["m"]["success"]
    assert row["mean"] == pytest.approx((0.955 + 0.3) / 2) and row["runs"] == 6
    assert row["low"] < row["mean"] < row["high"] and "hold" not in result["m"]
    assert over_tasks(records(easy)) == {}


def test_differences_are_between_runs_of_one_task_and_seed():
    rows = [("a", "ref", s, 0.2 + 0.3 * s, {}) for s in (0, 1)] + [("b", "ref", 0, 0.5, {})]
    rows += [("a", "m", s, 0.3 + 0.3 * s, {}) for s in (0, 1, 2)] + [("b", "m", 0, 0.8, {})]
    result = differences(records(rows), "ref")
    assert list(result) == ["m"] and result["m"]["pairs"] == 3
    assert result["m"]["mean"] == pytest.approx((0.1 + 0.3) / 2)
    assert result["m"]["low"] is None and result["m"]["high"] is None  # one pair of a task
    rows += [("b", name, 1, rate, {}) for name, rate in (("ref", 0.6), ("m", 0.8))]
    result = differences(records(rows), "ref")["m"]
    ends = mean_over_tasks({"a": [0.1, 0.1], "b": [0.3, 0.2]})
    assert (result["mean"], result["low"], result["high"]) == pytest.approx(ends)
    with pytest.raises(ValueError, match="no method of the study: ref, m"):
        differences(records(rows), "vicreg")


def test_rank_correlation_is_spearmans_within_groups():
    x, y = np.array([1.0, 5.0, 2.0, 8.0, 3.0]), np.array([0.1, 0.6, 0.6, 0.5, 0.2])
    assert rank_correlation([x], [y]) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert rank_correlation([x, x], [x, x]) == pytest.approx(1)
    assert rank_correlation([x], [np.ones(5)]) is None
    # Two tasks on different levels, in each of which the figure misleads: pooling levels would hide
    # it.
    x, y = np.array([np.arange(5.0), 100 + np.arange(5.0)]), np.arange(5.0)
    y = np.array([-y, 100 - y])
    assert rank_correlation(x, y) == pytest.approx(-1)
    assert stats.spearmanr(x.ravel(), y.ravel()).statistic > 0.4
    noise = np.random.default_rng(0).normal(size=(2, 40))
    ends = rank_correlation_interval([(noise[0], noise[1], np.arange(40))], draws=300)
    assert ends[0] < 0 < ends[1]
    # Ten copies of four runs are four pieces of evidence, not forty.
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 4.0, 3.0])
    alone = rank_correlation_interval([(np.tile(x, 10), np.tile(y, 10), np.arange(40))], draws=300)
    together = rank_correlation_interval(
        [(np.tile(x, 10), np.tile(y, 10), np.tile(np.arange(4), 10))], draws=300
    )
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_the_ranking_puts_the_figure_first_that_says_most():
    rng = np.random.default_rng(1)
    rows = []
    for task in ("a", "b"):
        for k in range(8):
            rank = {"gaussianity": {"effective_rank": 1 + rng.random(), "effective_rank_ideal": 2}}
            rows.append((task, f"m{k}", 0, k / 10, {"r2": k / 20, **rank}))
    runs = [*records(rows), Record("b", "m9", None, 0, False, "b/m9", None, "lost")]
    result = ranking(runs, draws=200)
    assert next(iter(result)) in ("R2, 5 steps", "skill nats/dim")
    r2 = result["R2, 5 steps"]
    assert set(r2) == {"a", "b", "all"}
    assert r2["all"]["rho"] == pytest.approx(1) and r2["all"]["runs"] == 16
    assert abs(result["effective rank, share of ideal"]["all"]["rho"]) < 0.9
    # the one does not vary, the others are too few
    assert "R2, 1 step" not in result and ranking(runs[:4]) == {}


def test_a_study_leaves_tables_pictures_and_the_names_of_what_failed(tmp_path):
    rows = [
        (t, m, s, 0.2 + 0.1 * s + 0.3 * (m == "kl"), {"r2": 0.1 * s})
        for t in "ab"
        for m in ("none", "kl")
        for s in range(3)
    ]
    runs = [*records(rows), Record("b", "kl", None, 9, False, "b/kl", None, "killed | by SIGKILL")]
    text = write_study(tmp_path, runs, title="s", command="gjwm study", reference="none")
    for line in (
        *("12 runs done, 1 failed, 0 not done", "| b/kl/seed-9 | killed \\| by SIGKILL |"),
        *("| kl | 0.600 [", "## Over all tasks", "| kl | 0.300 [0.300, 0.300] | 6 |"),
    ):
        assert line in text
    content = json.loads((tmp_path / "study.json").read_text())
    assert content["cells"][1]["figures"]["success"]["values"] == pytest.approx([0.5, 0.6, 0.7])
    with open(tmp_path / "runs.csv") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 13 and table[-1]["state"] == "failed" and table[3]["success"] == "0.5"
    with open(tmp_path / "study.csv") as file:
        rows = {(r["task"], r["method"], r["figure"]): r for r in csv.DictReader(file)}
    row = rows["a", "kl", "success"]
    assert row["mean"] == "0.6" and row["runs"] == "3"
    for name in ("success.svg", "ranking.svg"):
        picture = ElementTree.parse(tmp_path / name).getroot()
        assert picture.tag.endswith("svg") and len(list(picture.iter())) > 20 and name in text
    assert "0 runs done" in write_study(tmp_path / "empty", [], title="s", command="gjwm study")


def test_a_study_of_one_recipe_shows_every_figure_of_every_seed(tmp_path):
    runs = records([("a", "m", s, 0.5, {}) for s in (3, 5)])
    text = write_study(tmp_path, runs, title="s", command="gjwm study")
    assert "| figure | seed 3 | seed 5 |" in text and "| success | 0.5 | 0.5 |" in text
    assert "Success over seeds: 50.0% [29.9%, 70.1%]." in text and "%] of 20." in text


def test_all_tables_and_pictures_come_from_the_rows_of_the_runs_alone(tmp_path):
    rng = np.random.default_rng(4)
    runs = []
    for task, method, seed in itertools.product("ab", ("none", "kl"), (0, 1, 2, 100)):
        report = evaluation(rng.integers(0, 50) / 49, r2=rng.random() / 3, episodes=49)
        report["config"] |= {
            "seed": seed,
            "run_dir": f"runs/{seed}",
            "discrepancy": {"time": "pooled" if method == "kl" else None, "slices": 256},
            "evaluate": {"seed": 1 + seed},
        }
        tuned = (None, 0.5, 5, "fast")[seed % 4] if method == "kl" else None
        cell, figures = f"{task}/{method}", figures_of(report)
        told = settings_in(report["config"])
        runs.append(Record(task, method, tuned, seed, seed == 100, cell, figures, None, told))
    runs += [
        Record("b", "kl", 5, 7, False, "b/kl", None, "killed, by | SIGKILL"),
        Record("b", "kl", 5, 8, False, "b/kl", None),
    ]
    told = {"title": "s", "command": "gjwm study", "reference": "none", "tuned": "objective.lam"}
    write_study(tmp_path / "made", runs, **told)
    kept = tmp_path / "kept.csv"
    kept.write_bytes((tmp_path / "made" / "runs.csv").read_bytes())
    write_study(tmp_path / "again", read_rows(kept), **told)
    made = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == made
    assert {"study.md", "study.csv", "study.json", "success.svg", "ranking.svg"} < made.keys()
    # A row says what its run was told that others were not, and nothing that only names it.
    with open(kept) as file:
        table = list(csv.DictReader(file))
    settings = [key for key in table[0] if key.startswith("config.")]
    assert settings == ["config.discrepancy.time"]
    assert {(r["method"], r[settings[0]]) for r in table if r["state"] == "done"} == {
        ("none", "null"),
        ("kl", "pooled"),
    }
    (tmp_path / "other.csv").write_text("task,method\na,b\n")
    with pytest.raises(ValueError, match=r"other.csv is no runs.csv of a study"):
        read_rows(tmp_path / "other.csv")
