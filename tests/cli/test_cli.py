"""The four commands on a small world, and what they say when something is wrong."""

import errno
import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import h5py
import imageio.v3 as iio
import numpy as np
import pytest
import torch

from gjwm.cli.app import main
from gjwm.data.dataset import dataset_info
from gjwm.models.decoder import load_decoder
from gjwm.models.world_model import WorldModel
from gjwm.study.launch import Outcome, record

ROOT = Path(__file__).parents[2]
# Small enough for seconds, whole enough to use every part.
SMALL = [
    "experiment=two_room",
    "env.size=16",
    "threads=1",
    "name=small",
    "dataset=data/small",
    "latent_dim=4",
    "encoder.channels=[8,8]",
    "encoder.hidden=16",
    "dynamics.hidden=16",
    "dynamics.std_hidden=8",
    "planner.samples=32",
    "planner.elites=8",
    "planner.iterations=2",
    "collect.episodes=16",
    "collect.length=20",
    "calibrate.episodes=8",
    "calibrate.horizon=4",
    "calibrate.particles=8",
    "train.steps=30",
    "decode.steps=20",
    "refine.steps=10",
    "refine.batch=8",
    "reach.steps=10",
    "reach.batch=16",
    "reach.dim=4",
    "logger.every=10",
    "evaluate.episodes=12",
    "evaluate.length=30",
    "evaluate.pairs=4",
    "evaluate.steps=6",
    "evaluate.horizon=6",
    "evaluate.probe_steps=40",
    "video.episodes=2",
    "video.grid=3",
    "video.readout_episodes=12",
    "report.worst=0",
    "report.typical=0",
    "report.every=0.001",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command, *overrides):
    return main([command, *SMALL, "logger.wandb=disabled", *overrides])


def test_collect_train_evaluate_and_video_leave_one_run_folder(folder, capsys):
    filmed = ["report.worst=1", "report.typical=1"]
    assert [run(command, *filmed) for command in ("collect", "train", "evaluate", "video")] == [
        0
    ] * 4
    made = folder / "runs" / "small"
    names = {
        "config.yaml",
        "metrics.jsonl",
        "checkpoint.pt",
        "decoder.pt",
        "evaluation.json",
        "evaluation.npz",
    }
    assert names | {"report.html", "gallery", "videos"} <= {path.name for path in made.iterdir()}
    lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60, 70]
    assert {"loss", "train/alignment", "train/discrepancy", "frames_per_second"} <= set(lines[0])
    assert "refine/mean_squared_error" in lines[3] and "reach/loss" in lines[4]
    assert "decoder/squared_error" in lines[5]
    report = json.loads((made / "evaluation.json").read_text())
    assert report["planning"]["oracle"]["episodes"] == 4 and report["config"]["seed"] == 0
    film = iio.imread(made / "videos" / "goals.mp4")
    assert len(film) == 2 * 7 and film[0].std() > 0  # two attempts of 6 steps and their starts
    grid = iio.imread(made / "videos" / "grid.mp4")
    # three attempts at once, in two rows of two
    assert len(grid) == 7 and grid.shape[1] == grid.shape[2]
    shown = capsys.readouterr().out
    assert "env steps/s" in shown and "success" in shown and "report.html" in shown
    assert [row["kind"] for row in report["gallery"]] == ["worst", "typical"]
    worst, typical = report["gallery"]
    assert worst["closest_distance"] >= typical["closest_distance"]
    assert len(iio.imread(made / "gallery" / worst["file"])) == 7
    assert report["command"].startswith("gjwm evaluate experiment=two_room")
    assert report["training"]["command"].startswith("gjwm train experiment=two_room")
    model, decoder = WorldModel.load(made / "checkpoint.pt"), load_decoder(made / "decoder.pt")
    o = torch.zeros(1, *model.encoder.config["observation_shape"], dtype=torch.uint8)
    assert decoder.image(model.encode(o)).shape == (1, 3, 16, 16)


# As SMALL, for state vectors of other environments.
TINY = [
    text
    for text in SMALL
    if not text.startswith(("experiment", "env.", "encoder.", "planner.", "train.decoder"))
]
TINY += [
    "collect.workers=0",
    "encoder.hidden=[16]",
    "logger.wandb=disabled",
    "evaluate.goal_offset=6",
]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["env.id=Pendulum-v1"], ["experiment=cartpole_v1"]])
def test_other_gymnasium_environments_go_through_the_same_commands(overrides, folder):
    small = [*overrides, *TINY, "planner.samples=16", "planner.elites=8", "planner.iterations=2"]
    small += ["evaluate.oracle=true", "evaluate.length=16", "evaluate.episodes=8"]
    for command in ("collect", "train", "evaluate"):
        assert main([command, *small]) == 0
    report = json.loads((folder / "runs" / "small" / "evaluation.json").read_text())
    assert report["planning"]["oracle"]["episodes"] == 4
    model = WorldModel.load(folder / "runs" / "small" / "checkpoint.pt")
    assert model.action_dim == (2 if "experiment=cartpole_v1" in overrides else 1)


def test_a_planner_must_suit_the_actions_and_episodes_must_not_end(folder, capsys):
    small = ["experiment=cartpole_v1", *TINY, "calibrate.episodes=0"]
    assert [main([command, *small]) for command in ("collect", "train")] == [0, 0]
    capsys.readouterr()
    assert main(["evaluate", *small, "planner=cem", "planner.samples=32"]) == 1
    assert (
        "CartPole-v1 has discrete actions, CEM plans in a box: use planner=categorical"
        in capsys.readouterr().err
    )
    assert (
        main(["evaluate", *small, "planner.groups=[1,1]"]) == 1
        and "sizes [2]" in capsys.readouterr().err
    )
    assert (
        main(["evaluate", *small, "evaluate.goals=reset"]) == 1
        and "draws no goals" in capsys.readouterr().err
    )
    assert (
        main(["evaluate", *small, "env.terminate=true"]) == 1
        and "must have one length" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_report_is_drawn_again_from_the_folder_alone(folder, capsys):
    assert [run(command) for command in ("collect", "train")] == [0, 0]
    made = folder / "runs" / "small"
    live = (made / "report.html").read_text()  # training leaves a first page
    assert (
        "step 70 of 70, done" in live
        and "training-loss" in live
        and "training-decoder-squared-error" in live
    )
    assert run("evaluate", "evaluate.oracle=false", "report.worst=1") == 0
    page = (made / "report.html").read_bytes()
    elsewhere = folder / "another machine" / "small"
    elsewhere.mkdir(parents=True)
    for name in ("evaluation.json", "evaluation.npz", "metrics.jsonl"):
        shutil.copy(made / name, elsewhere)
    shutil.copytree(made / "gallery", elsewhere / "gallery")
    assert main(["report", f"run_dir='{elsewhere}'"]) == 0
    assert (elsewhere / "report.html").read_bytes() == page
    capsys.readouterr()
    assert main(["report", "run_dir=runs/none"]) == 1
    assert "gjwm evaluate" in capsys.readouterr().err
    # a model that was changed and saved by hand is judged too
    WorldModel.load(made / "checkpoint.pt").save(made / "checkpoint.pt")
    assert run("evaluate", "evaluate.oracle=false") == 0
    assert json.loads((made / "evaluation.json").read_text())["training"] == {}


def test_films_of_any_checkpoint_for_several_seeds(folder, capsys):
    """A run on state vectors has no decoder and no pictures to see: films show what happened and
    the curves.
    """
    small = [s for s in SMALL if not s.startswith("encoder")]
    settings = [
        *small,
        "env.obs=state",
        "encoder=mlp",
        "decode.steps=0",
        "logger.wandb=disabled",
    ]
    assert main(["collect", *settings]) == 0 and main(["train", *settings]) == 0
    kept = folder / "kept.pt"
    (folder / "runs" / "small" / "checkpoint.pt").rename(kept)
    films = [
        "video.seeds=[3,4]",
        "video.format=[mp4,gif]",
        "video.episodes=1",
        "video.grid=0",
        "name=films",
    ]
    capsys.readouterr()
    assert main(["video", *settings, *films, f"video.checkpoint={kept}"]) == 0
    said = capsys.readouterr().out.splitlines()  # minutes on a busy machine: not in silence
    one = ["collecting held-out episodes", "planning to 1 goal", "reading positions from latents"]
    assert said[:5] == [*one, "drawing goals-seed-3.mp4", "drawing goals-seed-3.gif"]
    made = sorted(path.name for path in (folder / "runs" / "films" / "videos").iterdir())
    assert made == ["goals-seed-3.gif", "goals-seed-3.mp4", "goals-seed-4.gif", "goals-seed-4.mp4"]
    third, fourth = (
        iio.imread(folder / "runs/films/videos" / f"goals-seed-{k}.mp4") for k in (3, 4)
    )
    assert third.shape == fourth.shape and (third != fourth).any()


def test_the_same_seed_trains_the_same_weights_and_another_seed_others(folder):
    run("collect")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run("train", f"name={name}", f"seed={seed}") == 0
    a, b, c = (
        torch.load(f"runs/{name}/checkpoint.pt", weights_only=True)["state"] for name in "abc"
    )
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_collecting_again_extends_the_dataset(folder):
    run("collect")
    run("collect", "seed=1", "collect.episodes=4")
    assert dataset_info("data/small")["episodes"] == 20


@pytest.mark.slow
def test_resuming_collects_what_is_missing_and_trains_nothing_twice(folder, capsys):
    run("collect", "collect.episodes=4")
    assert run("collect", "resume=true") == 0 and dataset_info("data/small")["episodes"] == 16
    assert "coverage:" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in (folder / "data" / "small").iterdir()}
    assert run("collect", "resume=true") == 0 and "none are missing" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    assert run("train", "resume=true", "checkpoint.every=10") == 0
    made = folder / "runs" / "small"
    assert {path.name for path in (made / "state").glob("*.pt")} == {
        "state-000000020.pt",
        "state-000000030.pt",
    }
    written = {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()}
    run("collect", "collect.episodes=2")  # more data do not change what a training is
    assert run("train", "resume=true") == 0 and "nothing to resume" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()} == written
    assert run("train", "resume=true", "train.lr=0.1") == 1
    error = capsys.readouterr().err
    assert "other settings of refine.lr (0.002 before, 0.1 now), train.lr (0.002 before," in error
    assert error.endswith("choose another run folder, or remove it; name=... chooses one.\n")
    (made / "metrics.jsonl").rename(made / "metrics.jsonl.partial")  # as if it had been killed
    assert run("train") == 1 and "go on with resume=true, or remove" in capsys.readouterr().err
    assert run("train", "resume=true") == 0 and not (made / "metrics.jsonl.partial").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["planner.samples=2"], "elites"),
        (["planner=categorical"], "CategoricalCEM plans one-hot actions"),
        (["evaluate.goals=ahead"], "evaluate.goal_offset must be"),
        (["cost._target_=gjwm.planning.costs.GoalCost", "+cost.bogus=1"], "bogus"),
    ],
)
def test_run_tells_what_evaluation_refuses_before_it_collects(overrides, said, folder, capsys):
    small = [text for text in SMALL if not text.startswith("planner.")]
    assert main(["run", *small, "logger.wandb=disabled", *overrides]) == 1
    assert said in capsys.readouterr().err and not (folder / "data").exists()


def test_run_tells_of_discrete_actions_before_it_collects(folder, capsys):
    assert main(["run", "env.id=CartPole-v1", *TINY, "planner=cem"]) == 1
    assert "use planner=categorical" in capsys.readouterr().err and not (folder / "data").exists()


def test_wandb_offline_needs_no_account_and_stays_in_the_run_folder(folder, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run("collect")
    assert main(["train", *SMALL, "logger.wandb=offline", "decode.steps=0"]) == 0
    assert list((folder / "runs" / "small" / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["fly"], 2, "unknown command 'fly'"),
        (["study", "study.jobs=0"], 1, "study.jobs must be"),
        (["study", "study.launcher=moon"], 1, "study.launcher must be local or slurm, got 'moon'"),
        (["study", "study.seeds=[]"], 1, "study.seeds must be a list"),
        (["study", "study=moon"], 1, "study has no option 'moon'; choose from gaussianity,"),
        (["train", "train.speed=3"], 1, "speed"),
        (
            ["train", "experiment=moon"],
            1,
            "experiment has no option 'moon'; choose from arena_cube, arena_push_t",
        ),
        (
            ["train", "experiment=tworoom"],
            1,
            "experiment has no option 'tworoom'; did you mean two_room?\n",
        ),
        (["train", "heads=[rewrd]"], 1, "heads has no option 'rewrd'; did you mean reward?"),
        (["train", "dataset=data/none"], 1, "data/none"),
        (["evaluate", "name=none"], 1, "no checkpoint at runs/none/checkpoint.pt"),
        (["train", "device=cuda:99"], 1, "device=cuda:99"),
        (["collect", "env.obs=sound"], 1, "'sound'"),
        (["collect", "env.id=gjwm/moon-walk-v0"], 1, "moon-walk"),
        (
            ["collect", "collect.behaviour=dancing"],
            1,
            "no behaviour 'dancing'; choose from uniform, coloured",
        ),
        (
            ["collect", "~collect.behaviour", "+collect.behaviour={dancing: 1}"],
            1,
            "no behaviour 'dancing'",
        ),
        (
            ["collect", "collect.episodes=0"],
            1,
            "collect.episodes must be a whole number, at least 1",
        ),
        (["collect", "collect.episodes=foo", "resume=true"], 1, "collect.episodes must be a whole"),
        (["collect", "collect.length=foo"], 1, "length must be a whole number, at least 1"),
        (["collect", "collect.workers=foo"], 1, "workers must be null or a whole number"),
        (["train", "logger.wandb=later"], 1, "later"),
        (
            ["train", "train.steps=abc"],
            1,
            "must be a whole number, at least 1, got 'abc'",
        ),
        (["train", "train.lr=nan"], 1, "train.lr must be a number, above 0, got nan"),
        (["train", "+train.bogus=1"], 1, "no setting train.bogus; choose from steps, batch"),
        (["train", "train.stpes=1"], 1, "no setting train.stpes; did you mean train.steps?"),
        (["train", "planner.sampels=1"], 1, "did you mean planner.samples?"),
        (["train", "dynamics=ensemble", "dynamics.memberz=4"], 1, "did you mean dynamics.members?"),
        (["collect", "planner=gradient", "planner.startz=3"], 1, "did you mean planner.starts?"),
        (
            ["train", "+dynamics@refine.dynamics=ensemble", "refine.dynamics.memberz=3"],
            1,
            "did you mean refine.dynamics.members?",
        ),
        (["train", "heads=[reward]", "heads.reward.hiden=[3]"], 1, "mean heads.reward.hidden?"),
        (["train", "trian.steps=5"], 1, "no setting trian.steps; did you mean train.steps?\n"),
        (["train", "moon.x=5"], 1, "no setting moon; choose from env, encoder, dynamics, disc"),
        (["collect", "env.walls=random"], 1, "; +env.walls=... adds an argument.\n"),
        (["train", "resume=maybe"], 1, "resume must be true or false, got 'maybe'"),
        (["train", "+env.wall=random"], 1, "env.wall=None and not 'random'"),
        (["train", "seed=1000001"], 1, "seed must be a whole number, at least 0 and below 1000000"),
        (["train", "threads=-1"], 1, "threads"),
        (["train", "device=gpu"], 1, "device must be cpu, cuda or cuda:N, got 'gpu'"),
        (["train", "dynamics=foo"], 1, "dynamics has no option 'foo'; choose from"),
        (
            ["train", "calibrate.horizon=-2"],
            1,
            "calibrate.horizon must be a whole number",
        ),
        (["train", "report.every=-1"], 1, "report.every must be a number, at least 0, got -1"),
        (["video", "video.episodes=0", "video.grid=0"], 1, "one of them at least 1"),
        (["report", "run_dir=runs/none"], 1, "no evaluation.json"),
        (
            ["evaluate", "evaluate.horizon=0"],
            1,
            "horizon must be a whole number, at least 1, got 0",
        ),
        (["evaluate", "evaluate.steps=0"], 1, "steps must be"),
        (["evaluate", "evaluate.pairs=0"], 1, "pairs must be"),
        (
            ["evaluate", "evaluate.episodes=1"],
            1,
            "episodes must be a whole number, at least 8",
        ),
        (["evaluate", "evaluate.replan_every=99"], 1, "replan_every=99"),
        (["evaluate", "+evaluate.bogus=1"], 1, "no setting evaluate.bogus"),
        (["evaluate", "planner.elites=9999"], 1, "elites"),
        *(
            (["collect", added], 1, f"no setting {said}")
            for added, said in {
                "+planner.foo=1": "planner.foo; choose from samples, iterations, elites",
                "+planner.sampels=1": "planner.sampels; did you mean planner.samples?",
                "++encoder.foo=1": "encoder.foo; choose from channels",
                "+discrepancy.foo=1": "discrepancy.foo; choose from num_slices",
                "+Train.steps=3": "Train.steps; did you mean train.steps?",
                "+logger.foo=1": "logger.foo; choose from wandb",
                "+video.foo=1": "video.foo; choose from checkpoint",
                "+evaluate.foo=1": "evaluate.foo; choose from goals",
                "+online.foo=1": "online.foo; choose from steps",
                "+online.oracle.foo=1": "online.oracle.foo; choose from planner, horizon",
                "+study.seed=1": "study.seed; did you mean study.seeds?",
                "+heads.foo=3": "heads.foo; ",
                "+foo=3": "foo; choose from env",
                "+dynamics@refine.dynamix=ensemble": "refine.dynamix",
            }.items()
        ),
        (["collect", "+foo.bar=1"], 1, "no setting foo; choose from env"),
        (["collect", "planner.elites=900"], 1, "elites=900, samples=128"),
        (
            ["collect", "planner=icem", "planner._target_=gjwm.planning.CEM"],
            1,
            "~planner.NAME",
        ),
        (["evaluate", "planner=categorical"], 1, "CategoricalCEM plans one-hot actions"),
        (
            ["collect", "experiment=reacher", "env.id=Pendulum-v1"],
            1,
            "Pendulum-v1 cannot be made with",
        ),
        (["collect", "env.id=Pendulm-v1"], 1, "the nearest id is Pendulum-v"),
        (["collect", "experiment=gym"], 1, "env.id"),
    ],
)
def test_wrong_input_gets_one_clear_message_and_a_failing_status(
    arguments, status, said, folder, capsys
):
    small = ("wandb", "train.", "wall", "calibrate", "evaluate.", "planner", "report.", "video.")
    if arguments[0] in ("train", "evaluate", "video") and any(
        word in arguments[1] for word in small
    ):
        run("collect")
        if arguments[0] != "train":
            run("train", "decode.steps=0", "calibrate.episodes=0")
        arguments = [arguments[0], *SMALL, *arguments[1:]]
    capsys.readouterr()
    assert main(arguments) == status
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and len(error.splitlines()) == 1
    assert error.startswith("gjwm")


def test_damaged_files_are_named_and_what_was_written_stays(folder, capsys):
    run("collect"), run("train")
    checkpoint = folder / "runs" / "small" / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:1000])
    assert run("evaluate") == 1 and "checkpoint.pt is not a readable" in capsys.readouterr().err
    checkpoint.write_bytes(whole)
    assert run("evaluate", "evaluate.oracle=false") == 0
    before = (folder / "runs" / "small" / "evaluation.json").read_bytes()
    assert run("evaluate", "evaluate.pairs=-1") == 1
    assert (folder / "runs" / "small" / "evaluation.json").read_bytes() == before
    shard = next((folder / "data" / "small").glob("*.h5"))
    shard.write_bytes(shard.read_bytes()[:100])
    capsys.readouterr()
    assert run("train") == 1 and shard.name in capsys.readouterr().err


def test_nan_in_the_data_stops_training_with_a_sentence(folder, capsys):
    assert run("collect", "env.obs=state") == 0
    shard = next((folder / "data" / "small").glob("*.h5"))
    with h5py.File(shard, "r+") as file:
        file["observation"][3] = np.nan
    capsys.readouterr()
    assert main(["data", "verify", "data/small"]) == 1 and "episode 0" in capsys.readouterr().out
    # Read from disk, where bytes are not compared with their checksums.
    for storage, said in (("memory", "episode 0"), ("disk", "NaN")):
        arguments = [s for s in SMALL if "encoder" not in s]
        status = main(
            [
                *(
                    "train",
                    *arguments,
                    "env.obs=state",
                    "encoder=mlp",
                    "logger.wandb=disabled",
                    f"storage={storage}",
                ),
            ]
        )
        assert status == 1 and said in capsys.readouterr().err


@pytest.fixture
def here(monkeypatch):
    """Runs of a study in this process, which is faster; `gjwm.study` tests that they are processes
    of their own.
    """

    def run_here(jobs, done, *, at_once):
        for job in jobs:
            error = None if main([*job.arguments]) == 0 else "failed"
            started.append(job.name)
            done(record(Outcome(job, error, 0.0)))

    started = []
    monkeypatch.setattr("gjwm.cli.study.run_local", run_here)
    return started


def test_a_study_of_seeds_summarises_them_and_does_nothing_twice(folder, here, capsys):
    study = ["study.seeds=[3,5]", "decode.steps=0", "evaluate.oracle=false"]
    assert run("study", *study) == 0
    assert here == ["data/small-seed-3", "data/small-seed-5", "seed-3", "seed-5"]
    made = folder / "runs" / "small"
    runs = [made / f"seed-{seed}" for seed in (3, 5)]
    (cell,) = json.loads((made / "study.json").read_text())["cells"]
    reports = [json.loads((path / "evaluation.json").read_text()) for path in runs]
    assert cell["figures"]["random"]["values"] == [
        r["planning"]["random"]["success_rate"] for r in reports
    ]
    assert "oracle" not in cell["figures"] and cell["figures"]["attempts"]["values"] == [4, 4]
    assert cell["figures"]["peak MB"]["mean"] > 100 and "| success |" in capsys.readouterr().out
    # The rows alone make the same tables elsewhere, and nothing runs.
    again = ["study.rows=runs/small/runs.csv", "run_dir=again"]
    assert run("study", *again) == 0 and len(here) == 4
    for name in ("runs.csv", "study.csv"):
        assert (folder / "again" / name).read_bytes() == (made / name).read_bytes()
    capsys.readouterr()
    written = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("seed-*/*")}
    assert (
        run("study", *study) == 0
        and run("run", *study, "seed=3", "name=small/seed-3", *_own(runs[0], 3)) == 0
    )
    assert {path: path.stat().st_mtime_ns for path in written} == written and len(here) == 4
    shards = sorted((folder / "data").rglob("*.h5"))
    assert run("study", *study, "objective.lam=0", "collect.episodes=20") == 1
    assert "trained with other settings of collect.episodes (" in capsys.readouterr().err
    # refused before anything was collected
    assert sorted((folder / "data").rglob("*.h5")) == shards


def _own(path, seed):
    """What a study tells the run of a seed."""
    return [f"dataset=data/small-seed-{seed}", f"evaluate.seed={1 + seed}"]


def test_a_grid_on_the_command_line_lists_what_fails_and_the_rest_is_whole(folder, here, capsys):
    grid = [
        "discrepancy=none,sigreg",
        "objective.lam=0,-1",
        "study.seeds=[0]",
        "train.steps=4",
        "calibrate.episodes=0",
    ]
    grid += ["decode.steps=0", "evaluate.oracle=false", "study.reference='none,lam-0'"]
    assert run("study", *grid) == 1
    shown = capsys.readouterr()
    assert "2 of 4 runs failed, runs/small/study.md says why" in shown.err
    assert len([name for name in here if name.startswith("data/")]) == 1  # four runs share them
    text = (folder / "runs" / "small" / "study.md").read_text()
    assert (
        "2 runs done, 2 failed" in text
        and "| sigreg/lam--1/seed-0 | failed |" in text
        and "sigreg,lam-0" in text
    )
    assert run("study", *grid, "study.only_summary=true") == 0 and len(here) == 5
    assert run("train", "train.lr=1,2") == 1  # axes are a study's


@pytest.mark.slow
def test_a_training_that_fails_leaves_the_run_before_it_whole(folder, capsys):
    run("collect"), run("train")
    made = folder / "runs" / "small"
    before = {
        name: (made / name).read_bytes()
        for name in ("config.yaml", "metrics.jsonl", "checkpoint.pt")
    }
    for bad in ("train.lr=-1", "train.length=100", "train.lr=1e20"):
        assert run("train", bad) == 1
        assert {name: (made / name).read_bytes() for name in before} == before


@pytest.mark.skipif(sys.platform == "win32", reason="the words are POSIX's")
def test_folders_that_cannot_be_written_are_named_and_nothing_is_lost(folder, capsys, monkeypatch):
    (folder / "file").touch()
    assert run("collect", "dataset=file/data") == 1
    assert "file/data: Not a directory; set dataset=" in capsys.readouterr().err
    assert run("collect") == 0
    kept = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    opened = os.open

    def read_only(path, flags, *rest):  # as on a disk mounted to be read only
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", read_only)
    assert run("collect") == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "Read-only file system; set dataset=" in told and "Traceback" not in told
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == kept
    assert main(["data", "verify", "data/small"]) == 0


def test_help_is_help_after_a_command_too(capsys):
    assert main(["train", "--help"]) == 0
    assert "two_room_random" in capsys.readouterr().out
    assert main(["data", "--help"]) == 0 and "verify" in capsys.readouterr().out
    assert main(["study", "train.lr=1,2", "--help"]) == 0
    assert "study.seeds" in capsys.readouterr().out


ENSEMBLE = ["+dynamics@refine.dynamics=ensemble"]
ENSEMBLE += [f"refine.dynamics.{text}" for text in ("members=2", "hidden=16", "std_hidden=8")]


def test_refining_may_train_an_ensemble_whose_members_are_planned_on(folder, capsys):
    assert run("collect") == 0
    assert run("train", *ENSEMBLE) == 0
    assert "refining trains EnsembleDynamics from the start" in capsys.readouterr().out
    model = WorldModel.load(folder / "runs" / "small" / "checkpoint.pt")
    assert model.dynamics.config["members"] == 2 and model.calibration is not None
    assert run("evaluate", *ENSEMBLE) == 0
    report = json.loads((folder / "runs" / "small" / "evaluation.json").read_text())
    assert report["planning"]["protocol"]["cost"] == "ReachCost"
    assert run("video", *ENSEMBLE) == 0
    capsys.readouterr()
    # And before anything is collected or trained:
    for wrong, message in (
        (["evaluate.horizon=0"], "horizon must be a whole number"),
        ([*ENSEMBLE, "refine.steps=0"], "would never be trained"),
        (["refine.dynamics=ensemble"], "got 'ensemble'"),
        ([*ENSEMBLE, "+refine.dynamics.no_such=1"], "no setting refine.dynamics.no_such; choose"),
    ):
        assert run("run", "name=other", "dataset=data/other", *wrong) == 1
        assert message in capsys.readouterr().err and not (folder / "data" / "other").exists()


@pytest.mark.slow
def test_refining_may_change_until_there_is_a_model(folder, capsys):
    assert run("collect") == 0
    for wrong, told in (
        (
            "refine.length=50",
            "refine.length=50 is longer than the longest episode of data/small, 20 steps",
        ),
        ("refine.batch=0", "refine.batch must be a whole number, at least 1, got 0"),
        ("refine.lr=-1", "refine.lr must be a number, above 0, got -1"),
        ("refine.dynamics=ensemble", "such as +dynamics@refine.dynamics=ensemble, got 'ensemble'"),
        ("objective.slow_dim=2", "set train.episodes to half the batch"),
        (
            "objective.slow_dim=null",
            "slow_dim must be a whole number, at least 0, got None",
        ),
        (
            "objective.slow_weight=nan",
            "slow_weight must be a number, at least 0, got nan",
        ),
    ):
        assert run("train", wrong) == 1  # before anything is trained
        assert told in capsys.readouterr().err
    assert run("train", "refine.lr=1e30") == 1
    assert "lower the learning rate" in capsys.readouterr().err
    assert run("train", "refine.lr=1e-3") == 1
    assert "go on with resume=true" in capsys.readouterr().err
    # The joint training is not lost, and what could not be refined is refined otherwise.
    assert run("train", "refine.lr=1e-3", "refine.length=5", "resume=true") == 0
    assert (folder / "runs" / "small" / "checkpoint.pt").exists()
    assert run("train", "refine.lr=2e-3", "resume=true") == 1
    assert "other settings of refine" in capsys.readouterr().err


def test_a_file_beside_the_command_takes_no_installed_modules_place(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (folder / "own_module.py").write_text("own = True\n")
    (folder / "tabnanny.py").write_text("own = True\n")  # the standard library has one
    monkeypatch.delitem(sys.modules, "tabnanny", raising=False)
    main(["data", "info", "none"])
    assert importlib.import_module("own_module").own
    assert not hasattr(importlib.import_module("tabnanny"), "own")
