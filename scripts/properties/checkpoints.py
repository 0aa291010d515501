"""Files of weights and states: whatever became of their bytes, what was saved or one sentence."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from hypothesis import strategies as st

from gjwm._core.checkpoint import Checkpoints
from gjwm.data.replay import ReplayBuffer
from gjwm.models import GaussianDynamics, MLPEncoder, WorldModel
from properties import refused, register
from properties.files import laid_out, made, with_damage, wounds
from properties.replay import ACTION, episode, space

hurt = dict(which=st.integers(0, 3), damage=wounds)


def model() -> WorldModel:
    """A small one, the same each time."""
    torch.manual_seed(0)
    return WorldModel(MLPEncoder((3,), 4, hidden=[8]), GaussianDynamics(4, 2, hidden=8)).eval()


def saved_model(path: Path) -> None:
    """Its file."""
    model().save(path / "checkpoint.pt", note="x")


def saved_states(path: Path) -> None:
    """Two states of a run, of which one will be damaged."""
    states = Checkpoints(path, every=1)
    for step in (1, 2):
        states.save(step, {"weights": torch.arange(50.0) * step, "step": step})


def saved_buffer(path: Path) -> None:
    """A replay buffer of two episodes."""
    filled().save(path / "replay.pt")


def filled() -> ReplayBuffer:
    """The buffer that was saved."""
    buffer = ReplayBuffer(40, space("vector", 1), ACTION)
    for k, length in enumerate((5, 7)):
        buffer.add_episode(*episode(k, length, "vector", 1))
    return buffer


@register(2, **hurt)
def a_damaged_model_is_the_model_or_refused(which, damage):
    """Never another one: a flipped bit of a weight is found."""
    with laid_out(with_damage(made(saved_model), which, damage)) as folder, refused():
        loaded, whole = (m.state_dict() for m in (WorldModel.load(folder), model()))
        assert loaded.keys() == whole.keys()
        for name, value in whole.items():
            assert torch.equal(loaded[name], value), f"{name} is not what was saved"


@register(2, **hurt)
def of_two_states_one_damaged_the_other_is_found(which, damage):
    """The newest that is whole, with what was kept in it."""
    files = made(saved_states)
    logging.disable(logging.WARNING)
    try:
        with laid_out(with_damage(files, which, damage)) as folder:
            found = Checkpoints(folder).latest()
    finally:
        logging.disable(logging.NOTSET)
    assert found is not None and found.step in (1, 2) and found.content["step"] == found.step
    assert torch.equal(found.content["weights"], torch.arange(50.0) * found.step)


@register(2, **hurt)
def a_damaged_replay_buffer_is_the_buffer_or_refused(which, damage):
    """The same windows for the same generator."""
    with laid_out(with_damage(made(saved_buffer), which, damage)) as folder, refused():
        drawn = [
            buffer.sample(8, 3, torch.Generator().manual_seed(0))
            for buffer in (ReplayBuffer.load(folder / "replay.pt"), filled())
        ]
        for name in ("o", "a", "r", "terminated", "episode"):
            assert torch.equal(*(getattr(batch, name) for batch in drawn)), name
