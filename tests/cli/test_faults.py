"""What may happen to a run, injected: docs/reliability.md lists these tests."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from gjwm._core.checkpoint import Checkpoints, load_tensors, save_tensors
from gjwm._core.files import holding
from gjwm._core.stopping import SIGNALS, Stopped, listening
from gjwm.cli.app import main
from gjwm.cli.config import COMPONENTS, groups, load_config
from gjwm.data.dataset import DatasetWriter, dataset_info, read_episodes, verify
from gjwm.envs.rendering import FastRenderer
from gjwm.models import ConvEncoder
from gjwm.models.world_model import WorldModel
from gjwm.reporting.logging import RunLogger, log_results

SMALL = """
    experiment=two_room env.size=16 threads=1 name=small dataset=data/small latent_dim=4 cost=goal
    logger.wandb=disabled encoder.channels=[8] encoder.hidden=16 dynamics.hidden=16
    dynamics.std_hidden=8 collect.episodes=6 collect.length=12 collect.behaviour=uniform
    collect.workers=0 calibrate.episodes=0 train.steps=12 train.batch=16 refine.steps=4
    refine.batch=8 reach.steps=0 decode.steps=0 logger.every=1 checkpoint.every=5 report.every=0
""".split()
BOTH = pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # a shell's background job ignores SIGINT, and so would gjwm
    before = {n: signal.signal(n, signal.default_int_handler) for n in SIGNALS}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_that_the_process_ignores_stays_ignored(folder):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with listening():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def collected(folder):
    assert main(["collect", *SMALL]) == 0
    return folder


def train(*overrides):
    return main(["train", *SMALL, *overrides])


def weights(name):
    return WorldModel.load(f"runs/{name}/checkpoint.pt").state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def said(capsys, number=None, step="step"):
    """The last line of what was said, after the bars; nothing else may follow them. After the
    signal `number` another line came before it, at once.
    """
    text = capsys.readouterr().err
    assert "Traceback" not in text
    if number is not None:
        at_once = f"{number.name}: ends after this {step}; a second signal does not wait."
        assert text.splitlines().count(at_once) == 1
        assert text.index(at_once) < text.index(f"stopped by {number.name}")
    return text.splitlines()[-1]


def signalled(monkeypatch, owner, method, number, when):
    """The process signals itself at the end of a call of `owner.method`; `when(*arguments)`."""
    original = getattr(owner, method)

    def call(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        if when(self, *args):
            signal.raise_signal(number)
        return result

    monkeypatch.setattr(owner, method, call)


# -- signals ---------------------------------------------------------------------------------------


@BOTH
def test_a_signal_ends_a_training_after_its_step_and_resuming_gives_the_same(
    number, status, collected, monkeypatch, capfd
):
    assert train("name=whole") == 0
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signalled(patch, RunLogger, "log", number, lambda self, row, step: step == 7)
        assert train() == status
    last = f"gjwm train: stopped by {number.name}; the same command with resume=true goes on."
    assert said(capfd, number) == last and signal.getsignal(number) == handler
    run = collected / "runs" / "small"
    assert not (run / "lock").exists() and Checkpoints(run / "state").latest().step == 7
    assert train("resume=true") == 0 and same(weights("small"), weights("whole"))
    rows = [
        [
            json.loads(line)["loss"]
            for line in open(f"runs/{name}/metrics.jsonl")
            if '"loss"' in line
        ]
        for name in ("small", "whole")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 12


def test_stages_without_states_end_at_once_and_are_done_again(collected, monkeypatch, capsys):
    assert train("name=whole") == 0
    with monkeypatch.context() as patch:
        signalled(patch, RunLogger, "log", signal.SIGTERM, lambda self, row, step: step == 14)
        assert train() == 143 and "stopped by SIGTERM" in said(capsys)
    assert Checkpoints("runs/small/state").latest().step == 12  # of the joint training
    assert train("resume=true") == 0 and same(weights("small"), weights("whole"))


def without(folder, *keys):
    """Take a key out of the newest state, as one of another version lacks it."""
    path = Checkpoints(folder).latest().path
    payload = load_tensors(path)
    part = payload["content"]
    for key in keys[:-1]:
        part = part[key]
    del part[keys[-1]]
    save_tensors(payload, path)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (("random",), "(KeyError: 'random')"),
        (("model",), "(KeyError: 'model')"),
        (("model", "encoder.centred"), 'Missing key(s) in state_dict: "encoder.centred"'),
        (("optimizer", "param_groups"), "(KeyError: 'param_groups')"),
    ],
)
def test_a_state_that_lacks_something_is_refused_in_a_sentence(
    keys, sentence, collected, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        signalled(patch, RunLogger, "log", signal.SIGTERM, lambda self, row, step: step == 7)
        assert train() == 143
    without("runs/small/state", *keys)
    kept = Path("runs/small/state/state-000000007.pt").read_bytes()
    assert train("resume=true") == 1
    line = said(capsys)
    assert line.startswith("gjwm train: runs/small/state/state-000000007.pt does not fit this tr")
    assert sentence in line and line.endswith("or remove runs/small/state to start anew.")
    assert Path("runs/small/state/state-000000007.pt").read_bytes() == kept


@pytest.mark.slow
@pytest.mark.parametrize("at", [5, 60], ids=["on data", "acting"])
@pytest.mark.parametrize(
    "keys", [("learner", "model", "dynamics.from_latent.weight"), ("spent",), ("logged",)]
)
def test_a_state_of_learning_from_reward_that_lacks_something_is_refused_in_a_sentence(
    at, keys, folder, monkeypatch, capsys
):
    assert main(["collect", *ONLINE]) == 0
    settings = [*ONLINE, *FROM_DATA, "online.log_every=5", "name=cut"]
    with monkeypatch.context() as patch:
        signalled(patch, RunLogger, "log", signal.SIGTERM, lambda self, row, step: step == at)
        assert main(["online", *settings]) == 143
    without("runs/cut/state", *keys)
    assert main(["online", *settings, "resume=true"]) == 1
    line = said(capsys)
    assert keys[-1] in line and "does not fit this training" in line
    assert line.endswith("or remove runs/cut/state to start anew.")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"config": 3, "episodes": 4}'])
def test_a_training_whose_beginning_is_not_told_is_refused_in_a_sentence(
    content, collected, capsys
):
    assert train() == 0
    started = Path("runs/small/state/run.json")
    started.unlink() if content is None else started.write_text(content)
    assert train("resume=true") == 1
    assert said(capsys).startswith("gjwm train: runs/small/state/run.json does not say how")


def test_who_signals_twice_does_not_wait(collected, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        signalled(patch, RunLogger, "log", signal.SIGINT, lambda self, row, step: step == 7)
        signalled(patch, RunLogger, "log", signal.SIGINT, lambda self, row, step: step == 7)
        assert train() == 130
    # the state of the step under way was not kept, that of the fifth is there
    assert Checkpoints("runs/small/state").latest().step == 5


@pytest.mark.parametrize("command", ["evaluate", "video"])
def test_a_signal_ends_judging_and_filming_at_once_and_leaves_what_was_there(
    command, collected, monkeypatch, capsys
):
    assert train() == 0
    for name in ("evaluation.json", "report.html", "goals.mp4"):
        Path("runs/small", name).write_text("of before")
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    work = {"evaluate": "evaluate.evaluate", "video": "video.film_attempts"}[command]
    monkeypatch.setattr(f"gjwm.cli.{work}", lambda *a, **k: signal.raise_signal(signal.SIGTERM))
    words = ["evaluate.episodes=8", "evaluate.length=12", "evaluate.goal_offset=4"]
    assert main([command, *SMALL, *words]) == 143
    assert said(capsys) == f"gjwm {command}: stopped by SIGTERM; the same command begins anew."
    assert before == {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}


@BOTH
def test_a_signal_ends_a_collection_after_its_episode(number, status, folder, monkeypatch, capfd):
    assert main(["collect", *SMALL, "dataset=data/whole"]) == 0
    three = "dataset=data/three"
    with monkeypatch.context() as patch:
        signalled(patch, DatasetWriter, "append", number, lambda self, episode: self.episodes == 3)
        assert main(["collect", *SMALL, three]) == status
    last = f"gjwm collect: stopped by {number.name}; the same command with resume=true goes on."
    assert said(capfd, number, "episode") == last
    assert dataset_info("data/three")["episodes"] == 3 and verify("data/three") == []
    assert not list(Path("data").rglob("*lock"))
    assert main(["collect", *SMALL, three, "resume=true"]) == 0
    for one, other in zip(read_episodes("data/three"), read_episodes("data/whole"), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(one[:4], other[:4]))


ONLINE = """
    threads=1 logger.wandb=disabled report.every=0 latent_dim=4 env.id=Pendulum-v1
    experiment=gym_online encoder.hidden=[16] dynamics.hidden=16 dynamics.std_hidden=8
    heads.reward.hidden=[16] heads.value.hidden=16 heads.policy.hidden=[16]
    discrepancy.num_slices=8 planner.samples=8 planner.iterations=1 planner.elites=4
    online.horizon=2 online.batch=8 online.steps=60 online.aimless_steps=30 online.lanes=2
    online.aimless_limit=30 online.log_every=10 online.evaluate_every=100
    online.checkpoint_every=40 +env.max_episode_steps=10 online.episodes=2 online.policy_plans=2
    collect.workers=0 collect.episodes=3 collect.length=20 collect.behaviour=uniform dataset=data
""".split()
FROM_DATA = ["online.data=data", "online.pretrain=10"]


@pytest.mark.slow
@pytest.mark.parametrize("at", [5, 60], ids=["on data", "acting"])
def test_a_signal_ends_learning_from_reward_after_its_step(at, folder, monkeypatch, capfd):
    number, status = (signal.SIGINT, 130) if at == 5 else (signal.SIGTERM, 143)
    assert main(["collect", *ONLINE]) == 0
    settings = [*ONLINE, *FROM_DATA, "online.log_every=5" if at == 5 else "online.log_every=10"]
    assert main(["online", *settings, "name=whole"]) == 0
    with monkeypatch.context() as patch:
        signalled(patch, RunLogger, "log", number, lambda self, row, step: step == at)
        assert main(["online", *settings, "name=cut"]) == status
    last = f"gjwm online: stopped by {number.name}; the same command with resume=true goes on."
    assert said(capfd, number) == last
    assert Checkpoints("runs/cut/state").latest().step == at  # no multiple of checkpoint_every
    assert main(["online", *settings, "name=cut", "resume=true"]) == 0
    assert same(weights("cut"), weights("whole"))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@BOTH
def test_a_process_that_is_signalled_leaves_with_one_line(number, status, collected):
    code = "import sys; from gjwm.cli.app import main; raise SystemExit(main(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        code,
        "train",
        *SMALL,
        "train.steps=100000",
        "checkpoint.every=5",
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    while not list(Path("runs/small/state").glob("state-*5.pt")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, text = process.communicate(timeout=120)
    assert process.returncode == status and "Traceback" not in text
    assert text.splitlines()[-1].startswith(f"gjwm train: stopped by {number.name};")
    assert Checkpoints("runs/small/state").latest().step >= 5


# -- a full disk -----------------------------------------------------------------------------------


def full(monkeypatch, at):
    """`torch.save` finds the disk full at its `at`-th call and later, half a file written."""
    save, calls = torch.save, []

    def save_some(content, file):
        calls.append(1)
        if len(calls) < at:
            return save(content, file)
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", save_some)


def test_a_full_disk_leaves_the_state_before_it_and_says_so_in_a_sentence(
    collected, monkeypatch, capsys
):
    assert train("name=whole") == 0
    with monkeypatch.context() as patch:
        full(patch, at=2)
        assert train() == 1
    line = said(capsys)
    assert line.startswith("gjwm train: No space left on device, writing runs/small/state/state-")
    assert line.endswith("Make room, then the same command with resume=true goes on.")
    run = collected / "runs" / "small"
    assert [path.name for path in (run / "state").glob("state-*")] == ["state-000000005.pt"]
    assert Checkpoints(run / "state").latest().step == 5
    assert train("resume=true") == 0 and same(weights("small"), weights("whole"))


def test_a_full_disk_leaves_the_model_of_the_run_before(collected, monkeypatch, capsys):
    assert train() == 0
    kept = Path("runs/small/checkpoint.pt").read_bytes()
    with monkeypatch.context() as patch:
        full(patch, at=4)  # after three states
        assert train("seed=1") == 1
    assert "writing runs/small/checkpoint.pt; what was there before is whole" in said(capsys)
    assert Path("runs/small/checkpoint.pt").read_bytes() == kept
    assert not list(Path("runs/small").glob("checkpoint*partial"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_torch_itself_finding_the_disk_full_is_an_error_of_the_disk():
    with pytest.raises(OSError) as caught:
        save_tensors({"x": torch.zeros(100_000)}, "/dev/full")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("room", [4096, 100_000])
def test_torch_itself_finding_the_disk_full_half_way_is_an_error_of_the_disk(
    room, largest_file, tmp_path
):
    """torch then raises a RuntimeError about positions in its archive."""
    with largest_file(room), pytest.raises(OSError) as caught:
        save_tensors({"x": torch.zeros(100_000)}, tmp_path / "x.pt")
    assert caught.value.errno == errno.EFBIG


def test_a_full_disk_at_a_shard_keeps_every_episode_and_is_told_in_a_sentence(
    folder, no_room, capsys
):
    """HDF5 would crash the process: there must be room before it begins."""
    assert main(["collect", *SMALL, "dataset=data/whole"]) == 0
    with no_room() as asked:
        assert main(["collect", *SMALL]) == 1
    line = said(capsys)
    assert line.startswith("gjwm collect: No space left on device, writing data/small/shard-")
    assert line.endswith("Make room, then the same command with resume=true goes on.")
    assert not list(Path("data/small").glob("*.partial"))
    assert asked[0] > Path("data/whole/shard-00000.h5").stat().st_size
    assert main(["collect", *SMALL, "resume=true"]) == 0 and verify("data/small") == []
    for one, other in zip(read_episodes("data/small"), read_episodes("data/whole"), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(one[:4], other[:4]))


# -- wandb -----------------------------------------------------------------------------------------


class Wandb(SimpleNamespace):
    """A wandb whose runs fail at one of their calls."""

    def __init__(self, fails):
        self.fails, self.asked, self.run = fails, [], None
        super().__init__(Video=lambda *args, **options: self.call("Video"))

    def call(self, what):
        self.asked.append(what)
        if what == self.fails:
            raise ConnectionError("the server\n is not there.")
        return what

    def init(self, **options):
        self.call("init")
        log = lambda *args, **options: self.call("log")  # noqa: E731
        return SimpleNamespace(log=log, finish=lambda **options: self.call("finish"))


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_training_goes_on_without_wandb_after_one_warning(fails, tmp_path, monkeypatch, caplog):
    fake = Wandb(fails)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with caplog.at_level(logging.WARNING), RunLogger(tmp_path, wandb_mode="online") as logger:
        for step in (1, 2, 3):
            logger.log({"loss": float(step)}, step)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert caplog.messages == [
        "wandb failed and is left out from here on (ConnectionError: the server is not there); "
        "metrics.jsonl has everything."
    ]
    assert fake.asked.count(fails) == 1 and fake.asked[-1] == fails


@pytest.mark.parametrize("fails", ["init", "Video", "log", "finish"])
def test_results_are_whole_without_wandb(fails, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", Wandb(fails))
    with caplog.at_level(logging.WARNING):
        log_results(tmp_path, wandb_mode="online", results={"x": 1.0}, videos={"a": Path("a.mp4")})
    assert len(caplog.messages) == 1 and "ConnectionError" in caplog.text


def test_a_whole_training_without_wandb(collected, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", Wandb("init"))
    assert train("logger.wandb=online") == 0 and Path("runs/small/checkpoint.pt").is_file()
    assert caplog.text.count("wandb failed") == 1


# -- two at once -----------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has no flock")
def test_a_folder_that_another_process_works_in_is_refused_untouched(collected, capsys):
    with holding("runs/small/lock"):
        for command in ("train", "online"):
            extra = ONLINE if command == "online" else []
            assert main([command, *(extra or SMALL), "name=small"]) == 1
            assert said(capsys).endswith(
                "another process works in runs/small; wait for it, or choose another run folder; "
                "name=... chooses one."
            )
        assert [path.name for path in Path("runs/small").iterdir()] == ["lock"]
    with holding("data/small/lock"):
        assert main(["collect", *SMALL]) == 1
        assert "is being extended by another process" in said(capsys)
    assert dataset_info("data/small")["episodes"] == 6


# -- what is refused -------------------------------------------------------------------------------


def tree():
    return {path for path in Path(".").rglob("*")}


REFUSED = {
    "collect": [
        ("collect.length=-1", "collect.length must be a whole number, at least 1, got -1"),
        ("collect.workers=abc", "collect.workers must be null or a whole number"),
        ("dataset=data/none/b +env.nope=1", "nope"),
        (
            f"dataset=data/none collect.length={10**20}",
            "collect.length must be a number below 2^63",
        ),
        ("dataset=data/none collect.behaviour=dance", "no behaviour 'dance'"),
        ("dataset=null", "dataset must be text, got None"),
    ],
    "train": [
        ("train.batch=-1", "train.batch must be a whole number, at least 2, got -1"),
        ("train.length=200", "train.length=200 is longer than the longest episode of data/small"),
        ("encoder.hidden=-5", "encoder: Trying to create tensor with negative dimension -5"),
        ("encoder.channels=abc", "encoder.channels must be a list, each a whole number, got 'abc'"),
        ("dynamics.hidden=big", "dynamics.hidden must be a whole number, got 'big'"),
        ("heads=[reward] heads.reward.hidden=3", "heads.reward.hidden must be a list"),
        ("dynamics._target_=nope.Nope", "dynamics._target_=nope.Nope cannot be imported"),
        ("encoder._target_=gjwm.models.GaussianDynamics", "encoder: GaussianDynamics.__init__()"),
        ("planner.samples=abc", "planner.samples must be a whole number, got 'abc'"),
        ("objective.law=within", "set train.episodes to half the batch"),
        ("objective.slow_dim=40 train.episodes=8", "slow_dim=40 must be below latent_dim=4"),
        ("train.lr", "expected NAME=VALUE, got 'train.lr'"),
        ("train.lr=[1", "the value of 'train.lr=[1' cannot be read"),
        ("train.lr=1e400", "train.lr must be a number, above 0, got inf"),
        ("refine.lr=1e400", "refine.lr must be a number, above 0, got inf"),
        (f"train.steps={10**20}", f"train.steps must be a number below 2^63, got {10**20}"),
        ("threads=99999999999", "threads must be null or a whole number, at least 1 and at most 1"),
        ("name=ü", "'name=ü' holds letters beyond ASCII, which stand in quotes; in the shell: 'n"),
        ("train=3", "train is a group of settings: train.KEY=VALUE sets one, train=NAME"),
        ("logger=3", "logger is a group of settings, logger.KEY=VALUE, got 3"),
        ("name=", "name must not be empty"),
        ("run_dir=null", "run_dir must be text, got None"),
        ("run_dir=''", "run_dir must name a folder, got ''"),
        ("dataset=''", "dataset must name a folder, got ''"),
        ("name=../x", "name=../x does not name a folder within runs; run_dir=... may be any"),
        ("name=..", "name=.. does not name a folder within runs; run_dir=... may be any folder"),
        ("name=/x", "name=/x does not name a folder within runs; run_dir=... may be any folder"),
        ("+train.lr=3", "train.lr is a setting already; set it as train.lr=..., without the +"),
        ("~train.foo", "there is no setting train.foo"),
        ("cost=risk +cost.foo=1", "no setting cost.foo; choose from kappa, nearest, mean, final"),
        ("discrepancy=sigreg_lewm +discrepancy.scal=n", "did you mean discrepancy.scale?"),
        ("logger={foo:1}", "no setting logger.foo; choose from wandb, tensorboard, project, every"),
        ("logger={wandbb:disabled}", "no setting logger.wandbb; did you mean logger.wandb?"),
        ("logger.foo.bar=1", "there is no setting logger.foo; choose from wandb, tensorboard"),
        ("heads.reward.foo=1", "there is no setting heads.reward; heads=NAME chooses from policy"),
        ("name=new dataset=data/none", "data/none"),
    ],
    "online": [
        ("online.capacity=3", "online.capacity=3 has no room for a window in each lane"),
        ("encoder.hidden=3", "encoder.hidden must be a list, each a whole number, got 3"),
        ("encoder.hidden=[-3]", "encoder: Trying to create tensor with negative dimension -3"),
        ("planner.elites=-1", "elites"),
        ("learner.lr=abc", "learner.lr must be a number, at least 0, got 'abc'"),
        ("learner.lr=1e400", "learner.lr must be a number, at least 0, got inf"),
        ("online.data=data/none online.pretrain=3", "data/none"),
    ],
    "evaluate": [("evaluate.pairs=0", "evaluate.pairs must be a whole number, at least 1, got 0")],
    "video": [("video.format=avi", "avi"), ("video.fps=0", "video.fps must be a whole number")],
    "report": [("report.worst=-1", "report.worst must be a whole number, at least 0, got -1")],
    "run": [
        ("name=r dataset=data/r train.batch=-1", "train.batch must be a whole number"),
        ("name=r dataset=data/r collect.workers=-1", "collect.workers must be null or a whole"),
        ("name=r dataset=data/r video.fps=0", "video.fps must be a whole number"),
        ("name=r dataset=data/r cost.last=40", "the last 1 to 4 latents of these goals, got"),
    ],
    "study": [
        ("study.jobs=0", "study.jobs must be null or a whole number, 1 or more, got 0"),
        ("trian.lr=1,2", "trian.lr"),
        ("study.rows=none.csv", "none.csv"),
    ],
}


@pytest.mark.parametrize(
    ("command", "settings", "sentence"),
    [(command, *case) for command, cases in REFUSED.items() for case in cases],
)
def test_a_refused_command_says_why_in_a_sentence_and_leaves_nothing(
    command, settings, sentence, dataset, monkeypatch, capsys
):
    monkeypatch.chdir(dataset)

    def read(*args, **kwargs):
        raise AssertionError("refused after the data were read")

    monkeypatch.setattr("gjwm.training.recipe.open_windows", read)
    before = tree()
    given = ONLINE if command == "online" else SMALL
    assert main([command, *given, *settings.split()]) == 1
    shown = capsys.readouterr()
    assert sentence in shown.err and len(shown.err.splitlines()) == 1, shown.err
    assert "hydra" not in shown.err and tree() == before


FOUR = ("train", "online", "evaluate", "collect")


def every_group():
    """(group of settings, what chooses its component or None, commands)."""
    cfg = load_config(["experiment=two_room"])
    own = {name for name in cfg if isinstance(cfg._get_node(name), DictConfig)}
    cases = [(name, None, FOUR) for name in sorted({*own, "online.exploration"} - {"heads"})]
    for group in COMPONENTS:
        for option in groups()[group] if group not in ("env", "heads") else ():
            cases.append((group, f"{group}={option}", ("train",)))
    heads = [(f"heads.{name}", f"heads=[{name}]", ("train",)) for name in groups()["heads"]]
    return [*cases, *heads]


@pytest.mark.slow
@pytest.mark.parametrize(("group", "choice", "commands"), every_group())
def test_an_unknown_setting_of_any_group_is_refused_before_any_work(
    group, choice, commands, dataset, monkeypatch, capsys
):
    monkeypatch.chdir(dataset)

    def begins(*args, **kwargs):
        raise AssertionError("began")

    for what in ("train.train", "online.learn", "collect.collect_dataset"):
        if group != "env":  # whose arguments are known only to what makes it
            monkeypatch.setattr(f"gjwm.cli.{what}", begins)
    monkeypatch.setattr("gjwm.cli.evaluate.WorldModel.load", begins)
    before = tree()
    for command in commands:
        given = ONLINE if command == "online" else SMALL
        if choice is not None:
            given = [text for text in given if not text.startswith(f"{group}.")] + [choice]
        for words in (f"{group}.foo=1", f"+{group}.foo=1", f"{group}={{foo:1}}"):
            assert main([command, *given, words]) == 1, words
            shown = capsys.readouterr().err
            assert len(shown.splitlines()) == 1 and tree() == before, shown
            named = f"no setting {group}.foo;" in shown
            named |= "{" in words and f"{group} is a group of settings: {group}.KEY=" in shown
            assert named or (group == "env" and "foo" in shown), shown


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["collect", *SMALL]) == 0
    finally:
        os.chdir(here)
    return folder


# -- other misfortunes -----------------------------------------------------------------------------


def test_opengl_lost_while_collecting_keeps_the_episodes_before(folder, monkeypatch, capsys):
    """A context may be gone after a suspend or a restart of the driver."""
    words = [*SMALL, "experiment=reacher", "env.size=16", "cost=goal", "collect.episodes=4"]
    assert main(["collect", *words, "dataset=data/whole"]) == 0
    drawn, draw = [], FastRenderer.picture

    def picture(self, *scene):
        drawn.append(1)
        if len(drawn) > 30:  # in the third episode
            raise ImportError("Cannot make the EGL context current")
        return draw(self, *scene)

    with monkeypatch.context() as patch:
        patch.setattr(FastRenderer, "picture", picture)
        assert main(["collect", *words]) == 1
    assert "Cannot make the EGL context current" in said(capsys)
    assert verify("data/small") == []
    assert 0 < dataset_info("data/small")["episodes"] < 4
    assert main(["collect", *words, "resume=true"]) == 0
    for one, other in zip(read_episodes("data/small"), read_episodes("data/whole"), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(one[:4], other[:4]))


def test_clocks_that_leap_change_no_number(collected, monkeypatch):
    assert train("name=whole") == 0
    hours, clock = iter(range(10**9)), time.perf_counter
    with monkeypatch.context() as patch:  # asleep an hour between any two looks
        patch.setattr(time, "perf_counter", lambda: clock() + 3600 * next(hours))
        patch.setattr(time, "monotonic", lambda: clock() + 3600 * next(hours))
        assert train() == 0
    assert next(hours) > 2  # somebody looked
    assert same(weights("small"), weights("whole"))


def dated(pattern, *years):
    """Give the run's files that match, in order of name, times of these years from now."""
    files = sorted(Path("runs/small").glob(pattern))
    assert len(files) == len(years)
    for file, year in zip(files, years):
        os.utime(file, (time.time() + year * 3e7,) * 2)


def test_a_wall_clock_that_was_set_picks_no_older_state(collected, monkeypatch):
    assert train("name=whole") == 0
    with monkeypatch.context() as patch:
        signalled(patch, RunLogger, "log", signal.SIGTERM, lambda self, row, step: step == 7)
        assert train() == 143
    dated("state/state-*.pt", 5, -5)  # of steps 5 and 7
    assert Checkpoints("runs/small/state").latest().step == 7
    assert train("resume=true") == 0 and same(weights("small"), weights("whole"))


def test_a_wall_clock_that_was_set_hides_no_lack_of_a_model(collected, monkeypatch):
    """Killed behind the last state, with an older model of the run's name from the future."""
    assert train("name=whole") == 0 and train("seed=1") == 0
    with monkeypatch.context() as patch:
        signalled(patch, RunLogger, "log", signal.SIGTERM, lambda self, row, step: step == 14)
        assert train() == 143
    older = weights("small")
    assert not same(older, weights("whole"))  # still that of seed 1
    dated("checkpoint.pt", 5), dated("state/state-*.pt", -5, -5)
    # as where a process dies between the end of its log and its model
    Path("runs/small/metrics.jsonl.partial").rename("runs/small/metrics.jsonl")
    assert train("resume=true") == 0 and same(weights("small"), weights("whole"))


@pytest.mark.parametrize("years", [5, -5], ids=["future", "past"])
def test_a_wall_clock_that_was_set_does_no_work_again(collected, years):
    assert train() == 0
    dated("checkpoint.pt", -years), dated("state/state-*.pt", years, years)
    kept = Path("runs/small/checkpoint.pt").read_bytes()  # its training took other seconds
    assert train("resume=true") == 0
    assert Path("runs/small/checkpoint.pt").read_bytes() == kept


def test_an_encoder_that_explodes_ends_a_training_in_a_sentence(collected, monkeypatch, capsys):
    assert train() == 0
    kept = Path("runs/small/checkpoint.pt").read_bytes()
    features, calls = ConvEncoder.features, []

    def exploding(self, o):
        calls.append(1)
        return features(self, o) * 10.0 ** (8 * len(calls))  # beyond float32 at the fifth

    with monkeypatch.context() as patch:
        patch.setattr(ConvEncoder, "features", exploding)
        assert train("seed=1") == 1
    assert "batch" in said(capsys) and Path("runs/small/bad-batch.pt").is_file()
    assert Path("runs/small/checkpoint.pt").read_bytes() == kept
