"""Claims about violations of expectation: what is painted, and that a model which knows its world
notices.
"""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from gjwm.data.dataset import Episode, restack
from gjwm.evaluation.surprise import VIOLATIONS, auroc, spoil, violation_report
from gjwm.models.dynamics import Dynamics, Prediction
from gjwm.models.world_model import WorldModel

SIZE, NOISE = 16, 0.01


class Centroid(nn.Module):
    """Picture of a red dot -> its x, y and how red it is: an encoder that sees exactly what there
    is.
    """

    latent_dim, config = 3, {}

    def forward(self, o):
        o = o[..., -3:, :, :].float()
        grid = (torch.arange(SIZE) + 0.5) / SIZE
        total = o.sum((-1, -2, -3)).clamp(min=1)
        x, y = (o.sum((-3, -2)) * grid).sum(-1) / total, (o.sum((-3, -1)) * grid).sum(-1) / total
        return torch.stack([x, y, o[..., 0, :, :].sum((-1, -2)) / total], -1)


class Moves(Dynamics):
    """The dot moves by 0.05 a."""

    def __init__(self):
        super().__init__(3, 2)
        self.anchor = nn.Parameter(torch.zeros(1))  # gives the model a device

    def _inputs(self, a):
        return torch.cat([0.05 * a, torch.zeros_like(a[..., :1])], -1)

    def _step(self, z, inputs, context):
        return z + inputs

    def _law(self, mean, z, a, context):
        return Prediction(mean, torch.full_like(mean, NOISE**2))


def picture(x, y):
    grid = (np.arange(SIZE) + 0.5) / SIZE
    dot = np.exp(-((grid[None] - x) ** 2 + (grid[:, None] - y) ** 2) / 0.01)
    return (np.stack([dot, 0.2 * dot, 0 * dot]) * 255).astype(np.uint8)


def episodes(count, seed, frame_stack=1, length=40):
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        angle = rng.uniform(0, 2 * np.pi) + 0.4 * np.arange(length)
        a = np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)
        path = rng.uniform(0.4, 0.6, 2) + np.concatenate([np.zeros((1, 2)), np.cumsum(0.05 * a, 0)])
        path[1:] += 0.003 * rng.standard_normal(path[1:].shape)
        frames = np.stack([picture(*p) for p in path])
        no = np.zeros(length, bool)
        o = restack(frames, space(frame_stack), frame_stack)
        made.append(Episode(o, a, np.zeros(length, np.float32), no, no))
    return made


def space(frame_stack=1):
    return spaces.Box(0, 255, (3 * frame_stack, SIZE, SIZE), np.uint8)


@pytest.mark.parametrize("frame_stack", [1, 2])
@pytest.mark.parametrize("kind", VIOLATIONS)
def test_only_the_named_step_is_impossible(kind, frame_stack):
    (episode,) = episodes(1, 0, frame_stack)
    options = dict(observation_space=space(frame_stack), frame_stack=frame_stack)
    spoiled = spoil(episode, kind, **options, rng=np.random.default_rng(0))
    assert spoiled.o.shape[1:] == episode.o.shape[1:] and len(spoiled.o) == len(spoiled.a) + 1
    np.testing.assert_array_equal(spoiled.o[: spoiled.step + 1], episode.o[: spoiled.step + 1])
    z = Centroid()(torch.from_numpy(spoiled.o)).numpy()
    error = np.abs(z[1:, :2] - z[:-1, :2] - 0.05 * spoiled.a).max(-1)
    redder = np.abs(np.diff(z[:, 2]))
    if kind == "teleport":
        assert error[spoiled.step] > 0.05 > 2 * np.delete(error, spoiled.step).max()
    elif kind == "colour":
        assert redder[spoiled.step] > 0.3 and np.delete(redder, spoiled.step).max() < 0.05
        assert error.max() < 0.03
    else:
        frozen = slice(spoiled.step, spoiled.step + 5)
        assert error[frozen].min() > 0.03
        rest = np.r_[error[: spoiled.step], error[spoiled.step + 5 :]]
        assert rest.max() < 0.03


def test_a_model_that_knows_its_world_notices_and_stays_calm_otherwise():
    model = WorldModel(Centroid(), Moves()).eval()
    ordinary = episodes(60, 1)
    o, a = (torch.from_numpy(np.stack([getattr(e, name) for e in ordinary])) for name in ("o", "a"))
    assert model.surprise(o, a).p_value.shape == (60, 40)
    model.calibrate(model.encode(o), a, horizon=3)
    report = violation_report(model, episodes(40, 2), observation_space=space(), seed=0)
    assert 0.003 < report["false_alarm_rate"] < 0.03
    for kind in VIOLATIONS:
        assert report[kind]["auroc"] > 0.97 and report[kind]["detection_rate"] > 0.9


def test_auroc_is_the_probability_of_the_right_order():
    positive, negative = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.0, 2.0])
    wins = 4.5  # of six pairs, one tie among them
    assert auroc(positive, negative) == pytest.approx(wins / 6)
    assert auroc(negative, positive) == pytest.approx(1 - wins / 6)


def test_bad_input_is_named():
    (episode,) = episodes(1, 0)
    options = dict(observation_space=space(), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="violation"):
        spoil(episode, "miracle", **options)
    with pytest.raises(ValueError, match="picture"):
        spoil(episode._replace(o=np.zeros((41, 4))), "teleport", **options)
    with pytest.raises(ValueError, match="16 steps"):
        spoil(episode._replace(o=episode.o[:9], a=episode.a[:8]), "teleport", **options)
