"""Claims about probes: each reads what it should be able to read, and no more."""

import pytest
import torch

from gjwm.evaluation.probes import knn_readout, linear_readout, mlp_readout, r2_score


def data(function, n=2000, dim=3):
    z = torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = function(z)
    return z[: n // 2], y[: n // 2], z[n // 2 :], y[n // 2 :]


def score(fit, z_train, y_train, z_test, y_test, **options):
    return r2_score(fit(z_train, y_train, **options)(z_test), y_test)


def test_linear_probe_reads_a_linear_map_exactly():
    weight = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert score(linear_readout, *data(lambda z: z @ weight + 5)) > 1 - 1e-9


def test_nonlinear_state_needs_a_nonlinear_probe():
    sets = data(lambda z: z[:, :1].square())
    assert score(linear_readout, *sets) < 0.05
    assert score(knn_readout, *sets) > 0.85
    assert score(mlp_readout, *sets, steps=400, generator=torch.Generator().manual_seed(0)) > 0.98


def test_no_probe_reads_what_is_not_there():
    noise = torch.randn(2000, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sets = data(lambda z: noise)
    assert score(linear_readout, *sets) < 0.05 and score(knn_readout, *sets) < 0.05


def test_mlp_probe_replays_from_its_generator():
    sets = data(lambda z: z[:, :2].sin())
    first, second = (
        score(mlp_readout, *sets, steps=20, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert first == second


def test_bad_input_is_named():
    z, y, *_ = data(lambda z: z)
    with pytest.raises(ValueError, match="N, D"):
        linear_readout(z, y[:5])
    with pytest.raises(ValueError, match="NaN"):
        knn_readout(z * torch.nan, y)
