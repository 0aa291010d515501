"""kill -9 at random moments: no file is corrupt, what was finished is there, and going on gives
what would have been.

The suite kills a few times; `GJWM_KILLS=20 pytest tests/test_crash.py` more often.
"""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from gjwm._core.checkpoint import Checkpoints
from gjwm.cli.app import main
from gjwm.data.collect import collect_dataset
from gjwm.data.dataset import dataset_info, read_episodes, verify

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")]
KILLS = int(os.environ.get("GJWM_KILLS", 2))

EPISODES = 300 + 60 * KILLS
# a seal every 14 episodes
DATA = dict(env_id="Pendulum-v1", length=6, seed=5, workers=0, shard_bytes=4000)
COLLECT = f"""
    import sys
    from gjwm.data.collect import collect_dataset
    from gjwm.data.dataset import DatasetWriter, dataset_info
    path, side = sys.argv[1], open(sys.argv[2], "a", buffering=1)
    append = DatasetWriter.append

    def append_and_tell(self, episode, **source):
        number = self.episodes
        append(self, episode, **source)
        side.write(f"{{number}}\\n")

    DatasetWriter.append = append_and_tell
    try:
        there = dataset_info(path)["episodes"]
    except FileNotFoundError:
        there = 0
    side.write("begin\\n")
    if there < {EPISODES}:
        collect_dataset(path, episodes={EPISODES} - there, **{DATA!r})
"""


def killed(command, begun, seconds, rng):
    """Run a command and kill it up to `seconds` after `begun()` -> whether it was still running."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not begun() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, seconds))
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert running or process.returncode == 0
    return running


def test_a_killed_collection_loses_at_most_the_unfinished_episode(tmp_path):
    since = time.monotonic()
    collect_dataset(tmp_path / "unbroken", episodes=EPISODES, **DATA)
    seconds = time.monotonic() - since
    unbroken = list(read_episodes(tmp_path / "unbroken"))
    rng, kills, trial = random.Random(0), 0, 0
    while kills < KILLS:
        path, side = tmp_path / f"killed-{trial}", tmp_path / f"told-{trial}"
        side.touch()
        lines = len(side.read_text().splitlines())
        command = [sys.executable, "-c", textwrap.dedent(COLLECT), str(path), str(side)]
        kills += killed(
            command,
            lambda side=side, lines=lines: len(side.read_text().splitlines()) > lines,
            seconds / (KILLS / 2 + 1),
            rng,
        )
        told = [int(line) for line in side.read_text().split() if line != "begin"]
        count = dataset_info(path)["episodes"] if (path / "metadata.json").exists() else 0
        # Everything that was finished, and at most the one whose `append` was about to return.
        assert len(told) <= count <= len(told) + 1
        if count > len(told):  # it counts from here on
            side.write_text(side.read_text() + "".join(f"{n}\n" for n in range(len(told), count)))
        if count:
            assert verify(path) == []
        if kills == KILLS and count < EPISODES:
            collect_dataset(path, episodes=EPISODES - count, **DATA)
        if kills == KILLS or count == EPISODES:
            again = list(read_episodes(path))
            assert len(again) == EPISODES and verify(path) == []
            for a, b in zip(again, unbroken):
                for x, y in zip(a[:4], b[:4]):
                    np.testing.assert_array_equal(x, y)
            trial += 1  # nothing is left to kill


STEPS = 60 + 12 * KILLS
TRAIN = f"""
    experiment=two_room env.size=16 threads=1 dataset=data latent_dim=4 logger.wandb=disabled
    encoder.channels=[8,8] encoder.hidden=16 dynamics.hidden=16 dynamics.std_hidden=8
    collect.episodes=16 collect.length=20 collect.behaviour=uniform
    calibrate.episodes=8 calibrate.horizon=4 calibrate.particles=8 train.steps={STEPS}
    refine.steps=60 refine.batch=16 reach.steps=20 reach.batch=16 decode.steps=60
    logger.every=1 checkpoint.every=5
""".split()


def results(run):
    """Everything a training makes, without what a clock says."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("frames_per_second", None)
    files = (run / "checkpoint.pt", run / "decoder.pt")
    weights = [torch.load(file, weights_only=True)["state"] for file in files]
    return rows, weights


@pytest.mark.parametrize("storage", ["memory", "disk"] if KILLS > 2 else ["disk"])
def test_a_killed_training_resumes_to_the_same_metrics_and_weights(
    tmp_path, monkeypatch, caplog, storage
):
    monkeypatch.chdir(tmp_path)
    assert main(["collect", *TRAIN]) == 0
    since = time.monotonic()
    assert main(["train", *TRAIN, "name=unbroken"]) == 0
    seconds = time.monotonic() - since
    rows, weights = results(tmp_path / "runs" / "unbroken")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 60 + 20 + 60 + 1))
    rng, kills, trial = random.Random(1), 0, 0
    while True:
        run = tmp_path / "runs" / f"killed-{trial}"
        command = ["train", *TRAIN, f"name=killed-{trial}", f"storage={storage}", "resume=true"]
        code = f"from gjwm.cli.app import main; raise SystemExit(main({command!r}))"
        if kills < KILLS:
            stamp = _newest(run)
            kills += killed(
                [sys.executable, "-c", code],
                lambda run=run, stamp=stamp: _newest(run) != stamp,
                seconds / 2,
                rng,
            )
            found = Checkpoints(run / "state").latest()
            assert found is None or found.step % 5 == 0 or found.step == STEPS
            assert "cannot be read" not in caplog.text
            for file in run.glob("*.pt"):  # whole, if there
                torch.load(file, weights_only=True)
        else:
            assert main(command) == 0
        if (run / "metrics.jsonl").exists():
            again, weights_again = results(run)
            assert again == rows
            for a, b in zip(weights, weights_again):
                assert all(torch.equal(a[name], b[name]) for name in a)
            trial += 1
            if kills >= KILLS:
                break


def _newest(run):
    """When something in the run's folder last changed."""
    return max((p.stat().st_mtime_ns for p in run.rglob("*") if p.exists()), default=0)


ONLINE = f"""
    experiment=suite task=pendulum-swingup threads=1 logger.wandb=disabled latent_dim=4
    encoder.hidden=[16] dynamics.hidden=16 dynamics.std_hidden=8 heads.reward.hidden=[16]
    heads.value.hidden=16 heads.policy.hidden=[16] discrepancy.num_slices=8 planner.samples=16
    planner.iterations=2 planner.elites=4 online.horizon=3 online.batch=16
    +env.max_episode_steps=50 online.steps={200 + 40 * KILLS} online.aimless_steps=100
    online.aimless_limit=100 online.lanes=2 online.log_every=20 online.evaluate_every=120
    online.checkpoint_every=40 online.episodes=2
""".split()


def earned(folder):
    """What a run logged, its returns and weights, without what a clock says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]
    returns = [line.split(",") for line in (folder / "returns.csv").read_text().splitlines()]
    weights = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    return rows, [row[:2] + row[3:] for row in returns], weights


def test_a_killed_online_run_resumes_to_the_same_returns_and_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    since = time.monotonic()
    assert main(["online", *ONLINE, "name=unbroken"]) == 0
    seconds = time.monotonic() - since

    rows, returns, weights = earned(tmp_path / "runs" / "unbroken")
    rng, kills, trial, went_on = random.Random(2), 0, 0, 0
    while True:
        run = tmp_path / "runs" / f"killed-{trial}"
        command = ["online", *ONLINE, f"name=killed-{trial}", "resume=true"]
        went_on += Checkpoints(run / "state").latest() is not None
        code = f"from gjwm.cli.app import main; raise SystemExit(main({command!r}))"
        if kills < KILLS:
            stamp = _newest(run)
            kills += killed(
                [sys.executable, "-c", code],
                lambda run=run, stamp=stamp: _newest(run) != stamp,
                0.8 * seconds,
                rng,
            )
            found = Checkpoints(run / "state").latest()
            assert found is None or found.step % 40 == 0 or found.step == 200 + 40 * KILLS
            for file in run.glob("*.pt"):
                torch.load(file, weights_only=True)
        else:
            assert main(command) == 0
        if (run / "returns.json").exists():
            rows_again, returns_again, weights_again = earned(tmp_path / "runs" / f"killed-{trial}")
            assert rows_again == rows and returns_again == returns
            assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
            trial += 1
            if kills >= KILLS:
                break
    assert went_on  # from a state, and not only anew
