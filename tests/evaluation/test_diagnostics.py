"""Claims about Gaussianity and calibration reports, against closed forms and simulated null
laws.
"""

import math

import numpy as np
import pytest
import torch

from gjwm.evaluation.calibration import calibration_report
from gjwm.evaluation.geometry import effective_rank, embedding_report, glance, rank_me
from gjwm.evaluation.normality import epps_pulley_p_value, henze_zirkler
from gjwm.models.dynamics import Prediction, gaussian_crps


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def report(z):
    return embedding_report(z, generator=torch.Generator().manual_seed(0))


def test_a_gaussian_batch_looks_ideal():
    r = report(randn(1000, 16))
    assert r["effective_rank"] == pytest.approx(r["effective_rank_ideal"], rel=0.02)
    assert r["condition_number"] == pytest.approx(r["condition_number_ideal"], rel=0.2)
    assert r["participation_ratio"] == pytest.approx(r["participation_ratio_ideal"], rel=0.02)
    assert r["epps_pulley"] == pytest.approx(r["epps_pulley_null"], rel=0.3)
    assert r["epps_pulley_reject_rate"] < 0.12
    assert min(r["norm_ks_p"], r["mardia_skewness_p"], r["mardia_kurtosis_p"]) > 0.01


def test_finite_sample_references_have_their_known_values():
    r = report(randn(256, 32))
    assert r["participation_ratio_ideal"] == pytest.approx(28.44, abs=0.01)
    assert r["participation_ratio"] == pytest.approx(28.35, abs=0.5)
    edge = math.sqrt(32 / 256)
    assert r["condition_number_ideal"] == pytest.approx(((1 + edge) / (1 - edge)) ** 2, rel=0.2)


def test_equal_eigenvalues_give_their_number_as_effective_rank():
    five = torch.tensor([2.0] * 5 + [0.0] * 3, dtype=torch.float64)
    assert effective_rank(five) == pytest.approx(5)
    assert effective_rank(torch.zeros(4, dtype=torch.float64)) == 0


@pytest.mark.parametrize("spoil", ["collapse", "rank one", "uniform", "shift"])
def test_every_departure_shows(spoil):
    z = randn(1000, 8)
    z = {
        "collapse": 0.01 * z,
        "rank one": z[:, :1].expand(-1, 8) + 1e-3 * z,
        "uniform": (torch.special.ndtr(z) - 0.5) * 12**0.5,
        "shift": z + 0.5,
    }[spoil]
    r, ideal = report(z), report(randn(1000, 8))
    if spoil == "uniform":
        assert r["mardia_kurtosis_p"] < 1e-3 and r["norm_ks_p"] < 1e-3
    else:
        assert r["epps_pulley"] > 5 * ideal["epps_pulley"] and r["norm_ks_p"] < 1e-3
    if spoil == "rank one":
        assert r["effective_rank"] < 1.2 and r["condition_number"] > 1e4


@pytest.mark.parametrize(
    "seed, n, d, warp, statistic, p",
    [
        (0, 100, 3, None, 0.7635287406288425, 0.35230254063933986),
        (1, 60, 5, None, 0.858069477693132, 0.4004441648225376),
        (2, 80, 2, np.exp, 8.936982930275448, 7.268552404449872e-16),
    ],
)
def test_henze_zirkler_equals_pingouin(seed, n, d, warp, statistic, p):
    """Values of pingouin 0.7.0's multivariate_normality on the same draws."""
    x = np.random.default_rng(seed).normal(size=(n, d))
    found = henze_zirkler(torch.from_numpy(x if warp is None else warp(x)))
    assert found["henze_zirkler"] == pytest.approx(statistic, rel=1e-12)
    assert found["henze_zirkler_p"] == pytest.approx(p, rel=1e-9)


def test_henze_zirkler_needs_a_covariance():
    for z in (randn(4, 5), randn(50, 1).expand(-1, 2)):
        assert henze_zirkler(z) == {"henze_zirkler": 4 * len(z), "henze_zirkler_p": 0}


def test_the_null_law_of_epps_pulley_has_its_known_quantiles():
    known = {0.763: 0.5, 2.26: 0.1, 2.94: 0.05, 4.58: 0.01}
    np.testing.assert_allclose(epps_pulley_p_value(list(known)), list(known.values()), rtol=0.02)


def test_the_tail_of_the_null_law_falls_without_a_floor():
    p = epps_pulley_p_value(np.concatenate([np.linspace(0, 60, 1201), np.geomspace(61, 1e4, 400)]))
    assert (np.diff(p) <= 0).all() and p[-1] < 1e-300
    np.testing.assert_allclose(epps_pulley_p_value([10.0, 12.0]), [7.0e-5, 1.13e-5], rtol=0.03)


def test_a_report_without_a_generator_leaves_the_global_one_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    z = randn(50, 4, 3)
    assert embedding_report(z, slices=8) == embedding_report(z, slices=8)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_glance_says_what_the_report_does():
    z = randn(400, 3, 8) * torch.tensor([3.0, 1, 1, 1, 1, 0.5, 0.1, 0.1]).double()
    seen, whole = glance(z), report(z)
    assert seen["rank"] == pytest.approx(whole["effective_rank"], rel=1e-6)
    assert seen["std"] == pytest.approx(7.7 / 8, rel=0.03)
    # of other slices, and of the windows' first latents instead of a random one of each
    assert seen["epps_pulley"] == pytest.approx(whole["epps_pulley"], rel=0.5)
    assert glance(randn(400, 3, 8))["epps_pulley"] == pytest.approx(
        whole["epps_pulley_null"], rel=0.5
    )
    assert glance(z) == seen  # the same slices each time


def test_a_glance_sees_collapse():
    line = randn(64, 4, 1) @ randn(1, 8, seed=1)
    assert glance(line)["rank"] == pytest.approx(1, abs=1e-3)
    point = glance(torch.ones(64, 4, 8))
    assert point["rank"] == point["std"] == 0 and point["epps_pulley"] > 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_report_takes_a_generator_of_another_device():
    generator = torch.Generator("cuda")
    assert embedding_report(randn(50, 3), slices=8, generator=generator)["samples"] == 50


def test_rank_me_counts_equal_directions():
    q = torch.linalg.qr(randn(40, 5))[0]
    assert rank_me(q @ torch.eye(5, 9, dtype=q.dtype)) == pytest.approx(5, rel=1e-4)
    assert rank_me(torch.zeros(10, 3, dtype=torch.float64)) == 0


def test_dead_directions_are_counted():
    z = randn(200, 8)
    z[:, 5:] *= 0.01
    r = report(z)
    assert r["dead_directions"] == 3 and r["dead_directions_ideal"] == 0


def test_every_figure_has_its_ideal_counterpart():
    r = report(randn(100, 4))
    figures = [k for k in r if not k.endswith(("_ideal", "_null", "samples"))]
    assert len(figures) > 15 and all(f"{k}_ideal" in r for k in figures)
    assert all(math.isfinite(value) for value in r.values())


def test_constant_trajectories_are_not_mistaken_for_many_samples():
    z = randn(300, 1, 4).expand(-1, 20, -1)
    r = report(z)
    assert r["independent_samples"] == 300 and r["samples"] == 6000
    assert r["epps_pulley"] < 2


def test_crps_has_its_closed_form_values():
    zero, one = torch.zeros(1), torch.ones(1)
    assert gaussian_crps(zero, one, zero).item() == pytest.approx(0.233695, abs=1e-6)
    y = randn(200_000)
    crps = gaussian_crps(torch.zeros_like(y), torch.ones_like(y), y).mean().item()
    assert crps == pytest.approx(0.564190, abs=3e-3)


def test_a_calibrated_prediction_covers_what_it_promises():
    mean, std = randn(4000, 8), randn(4000, 8, seed=1).exp()
    c = calibration_report(Prediction(mean, std.square()), mean + std * randn(4000, 8, seed=2))
    for level in (50, 80, 90, 95):
        assert c[f"coverage_{level}"] == pytest.approx(level / 100, abs=0.01)
    assert c["ece"] < 0.01 and c["pit_ks"] < 0.01
    assert c["temperature"] == pytest.approx(1, abs=0.02)


def test_overconfidence_shows_and_temperature_repairs_it():
    mean, y = torch.zeros(4000, 8, dtype=torch.float64), randn(4000, 8)
    c = calibration_report(Prediction(mean, mean + 0.25), y)
    assert c["coverage_90"] < 0.7 and c["temperature"] == pytest.approx(2, abs=0.03)
    repaired = calibration_report(Prediction(mean, mean + 0.25 * c["temperature"] ** 2), y)
    assert repaired["ece"] < 0.01 < c["ece"]


def test_skill_is_zero_for_the_marginal_and_grows_with_information():
    y = randn(4000, 8)
    marginal = calibration_report(Prediction(torch.zeros_like(y), torch.ones_like(y)), y)
    assert marginal["skill"] == pytest.approx(0, abs=0.01)
    noisy = y + 0.1 * randn(4000, 8, seed=1)
    known = calibration_report(Prediction(noisy, torch.full_like(y, 0.01)), y)
    assert known["skill"] == pytest.approx(-math.log(0.1), abs=0.02)


def test_skill_is_a_gain_on_the_targets_own_mean_and_variance():
    y = 3 + 2 * randn(4000, 8) * torch.arange(1.0, 9)
    own = Prediction(y.mean(0).expand_as(y), y.var(0, correction=0).expand_as(y))
    assert calibration_report(own, y)["skill"] == pytest.approx(0, abs=1e-9)
    # At the variance of an encoder that has collapsed a law of spread 0.01 says less than nothing.
    collapsed = 2.6e-5 * randn(4000, 8)
    flat = Prediction(collapsed, torch.full_like(collapsed, 1e-4))
    assert calibration_report(flat, collapsed)["skill"] < -5


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="deterministic"):
        calibration_report(Prediction(torch.zeros(3, 2), torch.zeros(3, 2)), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="shape"):
        calibration_report(Prediction(torch.zeros(3, 2), torch.ones(3, 2)), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="finite"):
        report(randn(100, 3) * torch.nan)
    with pytest.raises(ValueError, match="8 independent"):
        report(randn(5, 3))
