"""Claims about calibration: right laws pass, wrong ones show, and one factor per horizon repairs
what one factor can.
"""

import math

import pytest
import torch

from gjwm.evaluation.calibration import calibration_report, energy_score
from gjwm.models.calibration import (
    Calibration,
    fit_calibration,
    fit_tail,
    fit_temperature,
    forecast_windows,
)
from gjwm.models.dynamics import Dynamics, FullPrediction, MixturePrediction, Prediction


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def test_true_laws_of_every_shape_pass_all_figures():
    tril = torch.tril(randn(3, 3, seed=5)) + 2 * torch.eye(3)
    mean = randn(4000, 3)
    log_weights = randn(4000, 3, seed=6).log_softmax(-1)
    for law in (
        Prediction(mean, randn(4000, 3, seed=1).exp()),
        FullPrediction.of(mean, tril),
        MixturePrediction.of(
            log_weights, 3 * randn(4000, 3, 3, seed=7), randn(4000, 3, 3, seed=8).exp()
        ),
    ):
        report = calibration_report(law, law.sample(g(2)))
        for level in (50, 80, 90, 95):
            assert report[f"coverage_{level}"] == pytest.approx(level / 100, abs=0.015)
        assert report["ece"] < 0.01 and report["pit_ks"] < 0.02
        assert report["mahalanobis"] == pytest.approx(1, abs=0.05)
        assert report["spread_skill"] == pytest.approx(1, abs=0.05)
        assert len(report["pit"]) == 20 and max(abs(share - 1) for share in report["pit"]) < 0.2


def test_the_energy_score_of_one_dimension_is_the_crps_and_prefers_the_truth():
    law = Prediction(randn(500, 1), randn(500, 1, seed=1).exp())
    y = law.sample(g(2))
    score = energy_score(law, y, samples=400, generator=g())
    assert score.mean().item() == pytest.approx(law.crps(y).mean().item(), rel=0.02)
    # Correlation is invisible to marginals and seen by the energy score.
    tril = torch.tensor([[1.0, 0.0], [0.95, math.sqrt(1 - 0.95**2)]])
    true = FullPrediction.of(torch.zeros(4000, 2), tril)
    independent, y = Prediction(true.mean, true.variance), true.sample(g(3))
    assert calibration_report(independent, y)["crps"] == pytest.approx(
        calibration_report(true, y)["crps"], rel=1e-4
    )
    scores = [
        energy_score(law, y, samples=64, generator=g()).mean().item() for law in (true, independent)
    ]
    assert scores[0] < scores[1] - 0.01


@pytest.mark.parametrize("wrong", [0.4, 2.5])
def test_the_fitted_factor_undoes_a_wrong_scale(wrong):
    law = Prediction(randn(4000, 2), randn(4000, 2, seed=1).exp())
    y = law.sample(g(2))
    factor = fit_temperature(law.tempered(wrong), y)
    assert factor == pytest.approx(1 / wrong, rel=0.03)
    mixture = MixturePrediction.of(
        torch.full((4000, 2), math.log(0.5)),
        torch.tensor([[-1.0], [2.0]]).expand(4000, 2, 1),
        0.1 * torch.ones(4000, 2, 1),
    )
    y = mixture.sample(g(3))
    assert calibration_report(mixture.tempered(wrong), y)["ece"] > 0.05
    repaired = mixture.tempered(wrong).tempered(fit_temperature(mixture.tempered(wrong), y))
    assert calibration_report(repaired, y)["ece"] < 0.02


def test_one_weight_of_tails_makes_all_intervals_right_where_a_factor_alone_cannot():
    law = Prediction(randn(6000, 4), randn(6000, 4, seed=1).exp())
    y, held = law.tailed(3.0).sample(g(2)), law.tailed(3.0).sample(g(3))
    alone = law.tempered(fit_temperature(law, held))
    tail = fit_tail([(law, held)], rows=3000)
    assert 2.5 <= tail <= 3.5
    both = law.tempered(fit_temperature(law, held, tail=tail)).tailed(tail)
    scalar, right = calibration_report(alone, y), calibration_report(both, y)
    assert right["coverage_90"] == pytest.approx(0.9, abs=0.01) and right["ece"] < 0.006
    assert right["coverage_95"] == pytest.approx(0.95, abs=0.01)
    assert scalar["coverage_90"] < 0.89 and scalar["coverage_95"] < 0.935
    assert right["nll"] < scalar["nll"] - 0.02
    assert right["spread_skill"] == pytest.approx(1, abs=0.05) and scalar["spread_skill"] < 0.9


def test_gaussian_errors_get_no_tails():
    law = Prediction(randn(6000, 4), randn(6000, 4, seed=1).exp())
    assert fit_tail([(law, law.sample(g(2)))], rows=6000) == 1.0


class Overconfident(Dynamics):
    """z' = 0.9 z + a, true noise 0.3 but believed 0.1, and the truth also drifts: each horizon
    needs a factor of its own.
    """

    def __init__(self, believed=0.1):
        super().__init__(2, 2)
        self.believed = believed

    def _inputs(self, a):
        return a

    def _step(self, z, inputs, context):
        return 0.9 * z + inputs

    def _law(self, mean, z, a, context):
        return Prediction(mean, torch.full_like(mean, self.believed**2))


def trajectories(episodes, seed, drift=0.15):
    z, a = [randn(episodes, 2, seed=seed)], 0.3 * randn(episodes, 12, 2, seed=seed + 1)
    bias = drift * randn(episodes, 2, seed=seed + 2)  # unseen, constant over an episode
    for t in range(12):
        z.append(0.9 * z[-1] + a[:, t] + bias + 0.3 * randn(episodes, 2, seed=seed + 3 + t))
    return torch.stack(z, 1), a


def test_factors_fitted_on_some_episodes_hold_on_others_at_every_horizon():
    model = Overconfident()
    calibration = fit_calibration(model, *trajectories(1500, 0), horizon=10, generator=g())
    factors = calibration.temperature
    assert len(factors) == 10 and factors[0].item() == pytest.approx(
        math.hypot(0.3, 0.15) / 0.1, rel=0.05
    )
    assert factors[9] > 1.15 * factors[0]  # a constant bias adds up faster than independent noise
    z, a = trajectories(1500, 100)
    law = model.forecast(z[:, 0], a[:, :10], particles=64, generator=g(1)).tempered(
        calibration.factors(10)
    )
    for k in (0, 4, 9):
        report = calibration_report(law[:, k], z[:, k + 1])
        assert report["coverage_90"] == pytest.approx(0.9, abs=0.02) and report["ece"] < 0.02
    assert torch.equal(calibration.factors(12)[9:], factors[9:, None].expand(3, 1))


def test_p_values_of_ordinary_steps_are_uniform_and_of_absurd_ones_small():
    calibration = Calibration([1.0], randn(5000).tolist())
    p = calibration.p_value(randn(5000, seed=1))
    for level in (0.01, 0.1, 0.5):
        assert (p <= level).float().mean().item() == pytest.approx(level, abs=0.02)
    assert calibration.p_value(torch.tensor([100.0])).item() == pytest.approx(1 / 5001)
    assert calibration.p_value(torch.tensor([-100.0])).item() == 1.0


@pytest.mark.parametrize("judge", [calibration_report, fit_temperature])
def test_what_cannot_be_judged_is_one_sentence(judge):
    mean, variance, y = randn(6, 2), torch.ones(6, 2), randn(6, 2, seed=1)
    for spoiled in range(3):
        given = [mean.clone(), variance.clone(), y.clone()]
        given[spoiled][:3, 0] = torch.tensor([torch.nan, torch.inf, 1.0])
        with pytest.raises(ValueError, match="2 NaN or infinite values"):
            judge(Prediction(*given[:2]), given[2])
    with pytest.raises(ValueError, match="at least one target"):
        judge(Prediction(mean[:0], variance[:0]), y[:0])
    with pytest.raises(ValueError, match="rows"):
        judge(Prediction(mean[0], variance[0]), y[0])


def test_the_energy_score_draws_for_at_most_2000_rows_and_never_broadcasts(monkeypatch):
    drawn = []
    sample = Prediction.sample
    monkeypatch.setattr(
        Prediction, "sample", lambda law, g=None: drawn.append(len(law.mean)) or sample(law, g)
    )
    calibration_report(Prediction(torch.zeros(3999, 2), torch.ones(3999, 2)), randn(3999, 2))
    assert set(drawn) == {2000}
    with pytest.raises(ValueError, match="target's shape"):
        energy_score(Prediction(torch.zeros(5, 2), torch.ones(5, 2)), torch.zeros(2))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="deterministic"):
        fit_temperature(Prediction(torch.zeros(3, 2), torch.zeros(3, 2)), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="positive"):
        Calibration([0.0], [1.0])
    with pytest.raises(ValueError, match="scores"):
        Calibration([1.0], [])
    with pytest.raises(ValueError, match="tail"):
        Calibration([1.0], [0.0], tail=0.5)
    with pytest.raises(ValueError, match="at least as long"):
        forecast_windows(Overconfident(), torch.zeros(4, 3, 2), torch.zeros(4, 2, 2), horizon=5)


def test_loading_a_calibration_loads_its_tails():
    heavy, light = Calibration([1.0], [0.0], 3.0), Calibration([1.0], [0.0])
    light.load_state_dict(heavy.state_dict())
    law = Prediction(torch.zeros(4, 2), torch.ones(4, 2))
    far = torch.full((4, 2), 5.0)
    assert torch.equal(light.correct(law).log_prob(far), heavy.correct(law).log_prob(far))
    assert (light.correct(law).log_prob(far) > law.log_prob(far)).all()
