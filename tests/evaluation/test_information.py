"""Claims about information, entropy and label efficiency, against laws whose values are known."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from gjwm.data.dataset import Episode
from gjwm.evaluation import (
    contrastive_information,
    entropy_report,
    gaussian_information,
    information,
    information_report,
    label_efficiency,
)
from gjwm.evaluation.information import CUBE_NEGENTROPY, entropy, wishart_bias


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=g(seed), dtype=torch.float64)


def chains(episodes, steps, dim, rho, seed=0):
    """AR(rho) in each direction, N(0, 1) at each step."""
    noise = randn(episodes, steps, dim, seed=seed)
    z = [noise[:, 0]]
    for t in range(1, steps):
        z.append(rho * z[-1] + math.sqrt(1 - rho * rho) * noise[:, t])
    return torch.stack(z, 1)


def ar_nats(dim, correlation):
    return -0.5 * dim * math.log(1 - correlation**2)


# -- closed form -----------------------------------------------------------------------------------


def test_a_chain_has_its_known_information_at_every_lag():
    found = gaussian_information(chains(400, 40, 3, 0.9), [1, 4, 8])
    for k, nats, error in zip([1, 4, 8], found["nats"], found["standard_error"]):
        assert 0 < error < 0.1
        assert nats == pytest.approx(ar_nats(3, 0.9**k), abs=4 * error)


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_the_estimate_has_no_bias_where_the_plain_one_has_much(rho):
    seeds = range(30)
    found = [gaussian_information(chains(60, 2, 12, rho, s), [1])["nats"][0] for s in seeds]
    error = np.std(found, ddof=1) / math.sqrt(len(found))
    assert np.mean(found) == pytest.approx(ar_nats(12, rho), abs=3 * error)
    assert wishart_bias(12, 59) > 10 * error


def test_standard_errors_are_those_of_repeated_draws():
    found = [
        gaussian_information(chains(100, 20, 4, 0.8, s), [2], generator=g(s)) for s in range(40)
    ]
    spread = np.std([one["nats"][0] for one in found], ddof=1)
    stated = np.mean([one["standard_error"][0] for one in found])
    assert stated == pytest.approx(spread, rel=0.4)


def test_no_linear_map_changes_the_information():
    z = chains(100, 10, 3, 0.7)
    mixed = 5 + z @ randn(3, 3, seed=1)
    first, second = (gaussian_information(x, [2])["nats"][0] for x in (z, mixed))
    assert first == pytest.approx(second, rel=1e-6)


def test_what_an_episode_keeps_adds_nothing_within_episodes():
    kept = 3 * randn(200, 1, 4, seed=1)
    z = randn(200, 24, 4) + kept  # nothing of a step lasts but the episode itself
    assert gaussian_information(z, [2])["nats"][0] == pytest.approx(ar_nats(4, 0.9), abs=0.3)
    assert contrastive_information(z, [2], steps=20)["nats"][0] > 2
    for measure, options in ((gaussian_information, {}), (contrastive_information, {"steps": 20})):
        found = measure(z, [2], within=True, **options)
        assert found["nats"][0] == pytest.approx(0, abs=4 * found["standard_error"][0] + 0.01)


def test_within_episodes_it_is_that_of_differences_half_an_episode_apart():
    length, k, rho = 61, 4, 0.9
    gap = (length - k) // 2
    correlation = rho**k - (rho ** (gap - k) + rho ** (gap + k)) / 2
    expected = ar_nats(4, correlation / (1 - rho**gap))
    assert expected / ar_nats(4, rho**k) == pytest.approx(0.906, abs=1e-3)
    z = chains(400, length, 4, rho) + 10 * randn(400, 1, 4, seed=1)
    found = gaussian_information(z, [k], within=True)
    # of a gap that is odd the other half is a step longer
    assert found["nats"][0] == pytest.approx(expected, abs=4 * found["standard_error"][0])


def test_constants_are_certain_and_dead_directions_are_left_out():
    z = torch.cat([chains(90, 12, 2, 0.5), torch.zeros(90, 12, 1)], -1)
    assert gaussian_information(z, [1])["directions"] == [2]
    still = torch.cat([z, randn(90, 1, 1, seed=1).expand(-1, 12, -1)], -1)
    everything, within = (gaussian_information(still, [1], within=w) for w in (False, True))
    assert everything["certain"] == [1] and everything["nats"][0] > 6
    assert within["directions"] == [2] and within["nats"][0] < 1
    nothing = gaussian_information(torch.zeros(9, 4, 3), [1])
    assert nothing["nats"] == [0] and nothing["directions"] == [0]


def test_few_episodes_measure_few_directions():
    found = gaussian_information(chains(30, 10, 16, 0.5), [1])
    assert found["directions"] == [10] and math.isfinite(found["nats"][0])


# -- a bound ---------------------------------------------------------------------------------------


def test_the_bound_stays_below_the_truth_and_its_ceiling_and_comes_near():
    z = chains(160, 20, 2, 0.9)
    found = contrastive_information(z, [1, 4], steps=40)
    assert found["ceiling_nats"] == pytest.approx(math.log(80))
    for k, nats, error in zip([1, 4], found["nats"], found["standard_error"]):
        truth = ar_nats(2, 0.9**k)
        assert 0.6 * truth < nats < truth + 4 * error
    certain = randn(60, 1, 8).expand(-1, 4, -1) + 0.01 * randn(60, 4, 8, seed=1)
    nats = contrastive_information(certain, [1], steps=5)["nats"][0]
    assert math.log(30) - 0.01 < nats <= math.log(30) + 1e-5


def test_independent_steps_tell_nothing():
    found = contrastive_information(randn(160, 8, 3), [1, 2], steps=40)
    for nats, error in zip(found["nats"], found["standard_error"]):
        assert nats == pytest.approx(0, abs=4 * error + 0.01)


def test_a_critic_that_nothing_can_be_chosen_by_says_nothing():
    found = contrastive_information(chains(8, 8, 4, 0.9), [1, 4], steps=5)  # one episode to choose
    assert found["nats"] == pytest.approx([0, 0], abs=1e-6)


def test_the_bound_sees_what_no_correlation_shows():
    """z' = +-(rho z + noise): correlation 0, and the information of a mixture of two Gaussians."""
    rho, steps, episodes = 0.95, 12, 400
    noise = randn(episodes, steps)
    sign = torch.randint(2, (episodes, steps), generator=g(1)) * 2 - 1
    z = [noise[:, 0]]
    for t in range(1, steps):
        z.append(sign[:, t] * (rho * z[-1] + math.sqrt(1 - rho**2) * noise[:, t]))
    z = torch.stack(z, 1)[..., None]
    spread = math.sqrt(1 - rho**2)
    x, y = np.linspace(-6, 6, 1201), np.linspace(-6, 6, 1201)
    law = sum(stats.norm.pdf(y, s * rho * x[:, None], spread) for s in (-1, 1)) / 2
    ratio = np.log(np.maximum(law, 1e-300) / stats.norm.pdf(y))
    truth = (stats.norm.pdf(x)[:, None] * law * ratio).sum() * 0.01**2
    assert 0.5 < truth < 0.7
    closed = gaussian_information(z, [1])
    found = contrastive_information(z, [1])
    assert abs(closed["nats"][0]) < 0.05 and abs(found["gaussian_critic_nats"][0]) < 0.05
    assert 0.5 * truth < found["nats"][0] < truth + 4 * found["standard_error"][0]


def test_a_variable_that_is_bent_into_many_directions_is_counted_often_but_not_by_the_bound():
    x = chains(300, 30, 1, 0.9)
    z = torch.sin(3 * x @ randn(1, 8, seed=1) + randn(8, seed=2))
    truth, found = ar_nats(1, 0.9), contrastive_information(z, [1], steps=50)
    assert gaussian_information(z, [1])["nats"][0] > 2 * truth
    assert 0.5 * truth < found["nats"][0] < truth + 4 * found["standard_error"][0]


# -- entropy ---------------------------------------------------------------------------------------


def test_entropies_have_their_closed_forms():
    u = torch.rand(2000, 2, generator=g(), dtype=torch.float64)
    laplace = -(u[:, :1] - 0.5).sign() * torch.log1p(-2 * (u[:, :1] - 0.5).abs())
    assert entropy(3 * u[:, :1]) == pytest.approx(math.log(3), abs=0.06)
    assert entropy(2 * u) == pytest.approx(2 * math.log(2), abs=0.1)  # its edges cost a little
    assert entropy(laplace) == pytest.approx(1 + math.log(2), abs=0.08)
    assert entropy(randn(2000, 1)) == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=0.06)


def test_a_gaussian_is_as_far_from_the_standard_one_as_the_closed_form_says():
    std, mean, d = 0.6, 0.5, 16
    found = [entropy_report(mean + std * randn(100, d, seed=s)) for s in range(12)]
    truth = 0.5 * d * (std**2 + mean**2 - 1 - 2 * math.log(std))
    nats = [one["gaussian_nats"] for one in found]
    error = np.std(nats, ddof=1) / math.sqrt(len(nats))
    assert np.mean(nats) == pytest.approx(truth, abs=3 * error) and error < 0.2
    for kind in ("negentropy", "marginal_negentropy"):
        spread = found[0][f"{kind}_reference_std"]
        assert np.mean([one[f"{kind}_nats"] for one in found]) == pytest.approx(0, abs=2 * spread)


@pytest.mark.slow
def test_the_shape_of_a_cube_and_of_laplace_is_found_in_few_dimensions():
    u = torch.rand(1000, 2, generator=g(), dtype=torch.float64) - 0.5
    cube = entropy_report(u)
    for name in ("negentropy_nats", "marginal_negentropy_nats"):
        assert cube[name] == pytest.approx(2 * CUBE_NEGENTROPY, abs=0.12)
    laplace = entropy_report(-u.sign() * torch.log1p(-2 * u.abs()))
    truth = 2 * (0.5 * math.log(2 * math.pi * math.e * 2) - 1 - math.log(2))
    assert laplace["marginal_negentropy_nats"] == pytest.approx(truth, abs=0.1)
    assert cube["negentropy_recovered"] > 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("samples", "shares"),
    [(200, {2: 0.65, 4: 0.30, 8: 0.0}), (1000, {2: 0.87, 4: 0.54, 8: 0.15})],
)
def test_how_much_of_a_shape_is_found_falls_with_dimensions_as_the_page_says(samples, shares):
    for d, share in shares.items():
        report = entropy_report(torch.randn(samples, d, generator=g(), dtype=torch.float64))
        assert report["negentropy_recovered"] == pytest.approx(share, abs=0.03)


def test_many_dimensions_hide_the_shape_from_neighbours_and_the_report_says_so():
    cube = entropy_report(torch.rand(300, 16, generator=g(), dtype=torch.float64))
    truth = 16 * CUBE_NEGENTROPY
    assert cube["negentropy_recovered"] < 0.2 and cube["negentropy_nats"] < 0.2 * truth
    assert 0.5 * truth < cube["marginal_negentropy_nats"] < 1.2 * truth


def test_coordinates_that_are_coupled_show_together_alone():
    angle = 2 * math.pi * torch.rand(800, generator=g(), dtype=torch.float64)
    radius = torch.tensor([[1.0], [3.0]], dtype=torch.float64)[torch.arange(800) % 2]
    ring = radius * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * randn(800, 2)
    found = entropy_report(ring)
    assert found["negentropy_nats"] > found["marginal_negentropy_nats"] + 0.3


def test_episodes_that_stand_still_are_one_sample_each():
    still = entropy_report(randn(300, 1, 2).expand(-1, 20, -1))
    assert still["samples"] == 300
    assert abs(still["negentropy_nats"]) < 4 * still["negentropy_reference_std"]


def test_places_that_many_samples_share_are_told():
    z = randn(200, 2)
    z[:20] = z[0]  # a tenth of all in one place
    found = entropy_report(z)
    assert found["repeated"] == pytest.approx(0.1)
    assert 1 < found["negentropy_nats"] < 3  # 0.1 * 2 log of how much nearer than others
    assert entropy_report(randn(200, 2))["repeated"] == 0


def test_a_covariance_without_inverse_has_no_finite_distance():
    flat = randn(100, 1).expand(-1, 3)
    assert entropy_report(flat)["kl_nats"] is None
    assert entropy_report(randn(9, 20))["kl_nats"] is None


# -- labels ----------------------------------------------------------------------------------------


def labelled(**states):
    """Episodes (E) that hold nothing but true states (E, T, P)."""
    count, length = next(iter(states.values())).shape[:2]
    steps = np.zeros(length - 1, np.float32)
    nothing = (np.zeros((length, 1), np.float32), steps[:, None], steps, steps > 0, steps > 0)
    return [
        Episode(*nothing, true_state={name: y[i].numpy() for name, y in states.items()})
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def curves():
    z = randn(60, 20, 4)
    states = {
        "linear": z[..., :1] - z[..., 1:2],
        "size": z[..., :1].abs(),
        "noise": randn(60, 20, 1, seed=1),
        "still": torch.ones(60, 20, 1),
    }
    return label_efficiency(z, labelled(**states), labels=[50, 500], repeats=2)


@pytest.mark.slow
def test_a_linear_variable_needs_few_labels_and_a_folded_one_another_probe(curves):
    found = curves["variables"]
    assert curves["labels"] == [50, 500] and set(found) == {"linear", "size", "noise"}
    assert found["linear"]["linear"]["r2"][0] > 0.999
    assert max(found["size"]["linear"]["r2"]) < 0.1
    assert found["size"]["mlp"]["r2"][1] > 0.8 and found["size"]["knn"]["r2"][1] > 0.5
    assert found["size"]["mlp"]["bits"][1] > found["size"]["mlp"]["bits"][0] + 0.5


@pytest.mark.slow
def test_validation_keeps_every_probe_from_reading_noise(curves):
    for kind in ("linear", "knn", "mlp"):
        row = curves["variables"]["noise"][kind]
        assert min(row["r2"]) > -0.3 and max(row["bits"]) < 0.05


def test_bits_are_those_of_a_gaussian_channel():
    z = randn(60, 20, 1)
    noisy = z + 0.5 * randn(60, 20, 1, seed=1)  # R^2 = 1 / 1.25
    row = label_efficiency(z, labelled(y=noisy), labels=[200], repeats=1)["variables"]["y"]
    assert row["linear"]["r2"][0] == pytest.approx(0.8, abs=0.04)
    assert row["linear"]["bits"][0] == pytest.approx(0.5 * math.log2(5), abs=0.15)


# -- all of it -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_report_repeats_and_leaves_the_global_generator_alone(monkeypatch):
    monkeypatch.setattr(information, "LAGS", (4, 8))
    monkeypatch.setitem(information._PROBES, "mlp", (information._mlps, (0, 10), 2))
    z = chains(16, 12, 2, 0.5).float()
    episodes = labelled(position=z.double())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = (information_report(z, episodes) for _ in range(2))
    assert one == two and torch.equal(torch.get_rng_state(), before)
    assert one["time"]["lags"] == [4] and one["time"]["within_lags"] == []
    assert one["labels"]["labels"] == [50]


def test_bad_input_is_named():
    z = randn(20, 8, 2)
    for measure in (gaussian_information, contrastive_information):
        with pytest.raises(ValueError, match="8 episodes of 2 steps, got \\(20, 8\\)"):
            measure(z[..., 0])
        with pytest.raises(ValueError, match="got 320 NaN"):
            measure(z * torch.nan)
        with pytest.raises(ValueError, match="lag of 5 steps needs episodes of at least 10"):
            measure(z, [5])
        with pytest.raises(ValueError, match=r"3 steps within episodes needs .* at least 12"):
            measure(z, [3], within=True)
    with pytest.raises(ValueError, match=r"at least 8 of them, got \(5, 3\)"):
        entropy_report(randn(5, 3))
    with pytest.raises(ValueError, match="infinite"):
        entropy_report(randn(20, 3) / 0)
    with pytest.raises(ValueError, match="with none"):
        label_efficiency(z, labelled(still=torch.ones(20, 8, 1)))
    with pytest.raises(ValueError, match="1000 labels were asked for; 5 to 80"):
        label_efficiency(z, labelled(y=z), labels=[1000])
    with pytest.raises(ValueError, match="latents \\(20, 8, 2\\) of 3 episodes"):
        label_efficiency(z, labelled(y=z)[:3])
