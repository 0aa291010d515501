"""An interrupted training goes on as if nothing had happened."""

import logging
import random

import numpy as np
import pytest
import torch
from gymnasium import spaces

from gjwm._core.checkpoint import Checkpoints, random_state, restore_random_state
from gjwm._core.files import replacing
from gjwm.data.replay import ReplayBuffer
from gjwm.models.dynamics import GaussianDynamics
from gjwm.models.encoders import MLPEncoder
from gjwm.models.world_model import WorldModel
from gjwm.objectives import JointEmbeddingObjective, SIGReg
from gjwm.training.settings import TrainSettings
from gjwm.training.train import train

torch.set_num_threads(1)


def data():
    buffer = ReplayBuffer(300, spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1, 1, (1,)))
    rng = np.random.default_rng(0)
    for _ in range(6):
        o = rng.normal(size=(41, 3)).cumsum(0).astype(np.float32)
        buffer.add_episode(
            o, rng.uniform(-1, 1, (40, 1)), np.zeros(40), np.zeros(40, bool), np.arange(40) == 39
        )
    return buffer


class Killed(Exception):
    pass


def training(folder=None, *, die_at=None, steps=30, seed=0, prefetch=0):
    """-> the log and the model, or what there was of the log when it died."""
    torch.manual_seed(seed)
    model = WorldModel(MLPEncoder([3], latent_dim=4), GaussianDynamics(4, 1))
    objective = JointEmbeddingObjective(SIGReg(num_slices=16))
    rows, buffer = [], data()
    buffer.prefetch = prefetch

    def log(scalars, step):
        if die_at is not None and step >= die_at:
            raise Killed
        rows.append(
            {"step": step, **{k: v for k, v in scalars.items() if k != "frames_per_second"}}
        )

    try:
        last = train(
            model,
            objective,
            buffer,
            TrainSettings(steps=steps, batch=16, length=3),
            log=log,
            log_every=1,
            generator=torch.Generator().manual_seed(seed),
            checkpoints=None if folder is None else Checkpoints(folder, every=7),
        )
    except Killed:
        return rows, None
    assert {k: v for k, v in last.items() if k != "frames_per_second"} == {
        k: v for k, v in rows[-1].items() if k != "step"
    }
    return rows, model


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_resumed_training_is_the_unbroken_one_bit_for_bit(tmp_path, prefetch):
    expected, model = training(prefetch=prefetch)
    seen = {}
    for die_at in (3, 9, 16, 16, 24, None):
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002 - a new process begins elsewhere
        rows, resumed = training(tmp_path, die_at=die_at, prefetch=prefetch)
        seen |= {row["step"]: row for row in rows}
    assert [seen[k] for k in sorted(seen)] == expected
    assert rows[0]["step"] == 22  # steps after the last state were done again, and no others
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "state-000000028.pt",
        "state-000000030.pt",
    ]


def test_windows_do_not_depend_on_reading_ahead_nor_checkpoints_on_the_result(tmp_path):
    plain, _ = training()
    assert training(prefetch=3)[0] == plain and training(tmp_path)[0] == plain
    assert training(seed=1)[0] != plain


def test_a_finished_training_is_not_done_again(tmp_path):
    _, model = training(tmp_path)
    torch.manual_seed(5)
    other = WorldModel(MLPEncoder([3], latent_dim=4), GaussianDynamics(4, 1))
    objective = JointEmbeddingObjective(SIGReg(num_slices=16))
    logged = []
    train(
        other,
        objective,
        data(),
        TrainSettings(steps=30, batch=16),
        checkpoints=Checkpoints(tmp_path),
        log=logged.append,
    )
    assert not logged and not other.training
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values())
    )


def test_two_states_are_kept_and_a_damaged_one_is_passed_over(tmp_path, caplog):
    states = Checkpoints(tmp_path / "state")
    assert states.latest() is None
    for step in (1, 2, 10):
        states.save(step, {"x": torch.tensor(step)})
    names = sorted(p.name for p in states.folder.iterdir())
    assert names == ["state-000000002.pt", "state-000000010.pt"]
    assert states.latest().step == 10 and states.latest().content["x"] == 10
    (states.folder / "state-000000099.pt.partial").write_bytes(b"killed while writing")
    newest = states.folder / names[1]
    newest.write_bytes(newest.read_bytes()[:200])
    with caplog.at_level(logging.WARNING):
        assert states.latest().step == 2
    assert "state-000000010.pt cannot be read" in caplog.text
    (states.folder / names[0]).write_bytes(b"")
    with pytest.raises(ValueError, match=r"no state in .* can be read; remove the folder"):
        states.latest()
    states.clear()
    assert states.latest() is None


def test_a_replay_buffer_goes_with_the_state_that_counts_on_it(tmp_path):
    states, buffer = Checkpoints(tmp_path), data()
    for step in (1, 2, 3):
        states.save(step, {}, attach={"replay.pt": buffer.save})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"state-00000000{step}{suffix}.pt" for step in (2, 3) for suffix in ("-replay", "")
    ]
    again = ReplayBuffer.load(states.latest().attached["replay.pt"])
    a, b = (x.sample(8, 3, generator=torch.Generator().manual_seed(0)) for x in (buffer, again))
    assert torch.equal(a.o, b.o)
    states.clear()
    assert list(tmp_path.iterdir()) == []


def test_every_process_wide_generator_goes_on_where_it_was():
    def draw():
        return torch.rand(3).tolist(), np.random.normal(size=3).tolist(), random.gauss(0, 1)  # noqa: NPY002

    draw()
    state = random_state()
    expected = [draw(), draw()]
    torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002
    restore_random_state(state)
    assert [draw(), draw()] == expected


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a.txt"
    with replacing(file) as partial:
        partial.write_text("one")
    with pytest.raises(Killed), replacing(file) as partial:
        partial.write_text("tw")
        raise Killed
    assert file.read_text() == "one" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["../secret", "{}/secret", "a/../../secret", "..\\secret", ""])
def test_an_attachment_stays_in_the_folder(name, tmp_path, caplog):
    (tmp_path / "secret").write_bytes(b"x" * 9)
    name = name.format(tmp_path)
    states = Checkpoints(tmp_path / "state", every=1)
    with pytest.raises(ValueError, match="does not name a file within"):
        states.save(1, {}, attach={name: lambda path: path.write_bytes(b"x" * 9)})
    path = states.save(2, {})
    payload = torch.load(path, weights_only=True) | {"attached": {name: 9}}
    torch.save(payload, path)
    with pytest.raises(ValueError, match=r"no state in .* can be read"):
        states.latest()
    assert "does not name a file within" in caplog.text


def test_a_state_with_a_damaged_attachment_is_passed_over_and_orphans_go(tmp_path, caplog):
    def write(path):
        with replacing(path) as partial:
            partial.write_bytes(b"x" * 100)

    states = Checkpoints(tmp_path)
    for step in (1, 2):
        states.save(step, {"step": step}, attach={"replay.pt": write})
    newest = states.latest()
    assert newest.step == 2 and newest.attached["replay.pt"].stat().st_size == 100
    newest.attached["replay.pt"].write_bytes(b"x" * 60)  # a disk that was full
    assert states.latest().step == 1 and "60 bytes of 100" in caplog.text
    newest.attached["replay.pt"].unlink()
    assert states.latest().step == 1
    write(tmp_path / "state-000000003-replay.pt")  # killed before the state that counts on it
    assert states.latest().step == 1
    states.clear()
    assert list(tmp_path.iterdir()) == [] and states.latest() is None
