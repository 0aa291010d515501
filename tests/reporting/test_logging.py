"""Claims about run logs."""

import json
import sys
import types

import numpy as np
import pytest

from gjwm._core.video import write_video
from gjwm.reporting.logging import RunLogger, flatten, log_results
from gjwm.training.metrics import progress


def rows(path, name="metrics.jsonl"):
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


def test_metrics_are_lines_of_valid_json_at_once(tmp_path):
    with RunLogger(tmp_path, wandb_mode="disabled") as logger:
        logger.log({"loss": 1.5, "r2": float("nan")}, 1)
        assert rows(tmp_path, "metrics.jsonl.partial") == [{"step": 1, "loss": 1.5, "r2": None}]
        logger.log({"loss": 0.5}, 2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_a_run_that_fails_leaves_the_figures_of_the_one_before(tmp_path):
    with RunLogger(tmp_path, wandb_mode="disabled") as logger:
        logger.log({"loss": 1.0}, 1)
    with pytest.raises(FloatingPointError):
        with RunLogger(tmp_path, wandb_mode="disabled") as logger:
            logger.log({"loss": 7.0}, 1)
            raise FloatingPointError
    assert rows(tmp_path) == [{"step": 1, "loss": 1.0}]
    assert rows(tmp_path, "metrics.jsonl.partial") == [{"step": 1, "loss": 7.0}]


@pytest.mark.slow
def test_wandb_offline_needs_no_account_and_stays_in_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with RunLogger(tmp_path, wandb_mode="offline", config={"seed": 1}) as logger:
        logger.log({"loss": 1.0}, 1)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_tensorboard_gets_the_same_scalars_and_a_resumed_run_hides_what_it_does_again(
    tmp_path, monkeypatch
):
    """With a stand-in, as the extra may be missing; the next test has the real one."""
    told = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            told.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            told.append((name, value, step))

        def close(self):
            told.append("closed")

    writer = types.ModuleType("torch.utils.tensorboard.writer")
    writer.SummaryWriter = SummaryWriter
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, writer.__name__, writer)
    given = dict(wandb_mode="disabled", tensorboard=True)
    with RunLogger(tmp_path, **given) as logger:
        logger.log({"loss": 1.5, "r2": 0.5}, 7)
    folder = str(tmp_path / "tensorboard")
    assert told == [(folder, None), ("loss", 1.5, 7), ("r2", 0.5, 7), "closed"]
    with RunLogger(tmp_path, resume_after=7, **given):
        assert told[-1] == (folder, 8)


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLogger(tmp_path, wandb_mode="disabled", tensorboard=True) as logger:
        logger.log({"loss": 1.5}, 7)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(7, 1.5)]


def test_tensorboard_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'gjwm\[tensorboard\]'"):
        RunLogger(tmp_path / "run", wandb_mode="disabled", tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_results_are_flattened_to_grouped_names():
    report = {
        "planning": {"success_rate": 0.5, "ci95": [0.1, 0.9], "oracle": {"episodes": 3}},
        "config": {"lr": 1.0},
    }
    report |= {"version": "1", "bad": float("nan"), "yes": True}
    assert flatten(report, "evaluation") == {
        "evaluation/planning/success_rate": 0.5,
        "evaluation/planning/oracle/episodes": 3,
    }


@pytest.mark.slow
def test_results_and_films_are_an_offline_run_of_their_own(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    film = write_video(tmp_path / "film.mp4", np.zeros((3, 32, 32, 3), np.uint8))
    log_results(tmp_path, group="a run", job="video", results={"x": 1.0}, videos={"goals": film})
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb")) and list(run.rglob("media/videos/videos/goals*.mp4"))


def test_disabled_results_go_nowhere(tmp_path):
    log_results(tmp_path, wandb_mode="disabled", results={"x": 1.0})
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="offline, online, disabled"):
        log_results(tmp_path, wandb_mode="sometimes")


def test_an_unknown_mode_is_named(tmp_path):
    with pytest.raises(ValueError, match="offline, online, disabled"):
        RunLogger(tmp_path, wandb_mode="sometimes")


def test_the_bar_shows_loss_and_frames_per_second(capsys):
    with progress(10, "train") as bar:
        bar.report(4, loss=0.25, frames_per_second=1234.5)
        assert bar.n == 4 and "loss=0.2500" in str(bar) and ("frames/s=1234" in str(bar))
