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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, within its exporter
def test_torch_makes_onnx_of_the_programs(tmp_path):
    """With two libraries that are no part of any extra."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = made(image, lambda: GaussianDynamics(D, A, hidden=8, std_hidden=8))
    model.export(tmp_path)
    o, z = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8), torch.randn(7, D)
    a, goal = torch.rand(7, A), torch.randn(7, D)
    with torch.no_grad():
        expected = {
            "encoder": ([o], model.encode(o)),
            "dynamics": ([z, a], model.dynamics.mean(z, a)),
            "reach": ([z, goal], model.reach.distance(z, goal)),
        }
    for name, (inputs, output) in expected.items():
        program = torch.export.load(tmp_path / f"{name}.pt2")
        torch.onnx.export(program, f=str(tmp_path / f"{name}.onnx"))
        session = runtime.InferenceSession(tmp_path / f"{name}.onnx")
        given = {put.name: x.numpy() for put, x in zip(session.get_inputs(), inputs, strict=True)}
        (got,) = session.run(None, given)
        torch.testing.assert_close(torch.from_numpy(got), output, rtol=1e-5, atol=1e-5)


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
