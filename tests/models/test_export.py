"""Exported programs give what the model gives, for any number of rows."""

import pytest
import torch

from gjwm.models import (
    ConvEncoder,
    EnsembleDynamics,
    GaussianDynamics,
    LinearGaussianDynamics,
    MixtureDynamics,
    MLPEncoder,
    Reach,
    WorldModel,
)

D, A = 4, 2


def made(encoder, dynamics):
    torch.manual_seed(0)
    model = WorldModel(encoder(), dynamics())
    for buffer in ("running_mean", "running_var"):  # as after a training
        getattr(model.encoder.output_norm, buffer).uniform_(0.5, 2)
    model.reach = Reach(D, 3, hidden=[8])
    model.reach.set_matrix(torch.diag(torch.tensor([0.9, 0.5, 0.1])))
    return model.eval()


def image():
    return ConvEncoder((3, 8, 8), D, channels=[4, 4], hidden=8)


@pytest.mark.parametrize(
    ("encoder", "dynamics"),
    [
        (image, lambda: GaussianDynamics(D, A, hidden=8, std_hidden=8)),
        (lambda: MLPEncoder((5,), D, hidden=[8]), lambda: EnsembleDynamics(D, A, hidden=8)),
        (image, lambda: MixtureDynamics(D, A, hidden=8, mixture_hidden=8)),
        (image, lambda: LinearGaussianDynamics(D, A)),
    ],
)
def test_programs_equal_the_model_for_other_numbers_of_rows(encoder, dynamics, tmp_path):
    model = made(encoder, dynamics)
    if isinstance(model.dynamics, LinearGaussianDynamics):
        z = torch.randn(50, D)
        model.dynamics.update(z, torch.randn(50, A), z.roll(1, 1))
        model.dynamics.fit()
    model.export(tmp_path)
    encode, step, distance = (
        torch.export.load(tmp_path / f"{name}.pt2").module()
        for name in ("encoder", "dynamics", "reach")
    )
    shape = model.encoder.observation_shape
    for rows in (1, 2, 7, 300):
        o = torch.randn(rows, *shape)
        o = (255 * o.sigmoid()).to(torch.uint8) if len(shape) == 3 else o
        a = torch.rand(rows, A)
        with torch.no_grad():
            z, goal = model.encode(o), torch.randn(rows, D)
            pairs = [
                (encode(o), z),
                (step(z, a), model.dynamics.mean(z, a)),
                (distance(z, goal), model.reach.distance(z, goal)),
            ]
        for got, expected in pairs:
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_a_model_without_reach_exports_two_programs(tmp_path):
    model = made(image, lambda: GaussianDynamics(D, A, hidden=8, std_hidden=8))
    model.reach = None
    model.export(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"encoder.pt2", "dynamics.pt2"}


def test_what_cannot_be_exported_is_told_before_anything_is_written(tmp_path):
    model = made(image, lambda: GaussianDynamics(D, A, backbone="gru", memory_width=8))
    with pytest.raises(ValueError, match="have a memory"):
        model.export(tmp_path / "new")
    model = made(image, lambda: GaussianDynamics(D, A)).train()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        model.export(tmp_path / "new")
    assert not (tmp_path / "new").exists()
