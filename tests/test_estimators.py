"""What is measured of estimators is what it is called, and the tables in docs follow from the csv
that is kept."""

import math
from pathlib import Path

import estimators
import pytest
import torch
from population import Law, orthogonal, population
from torch import Generator

from gjwm.objectives import Discrepancy

DOCS = Path(__file__).parents[1] / "docs"
KEPT = DOCS / "study" / "estimators.csv"


class Mean(Discrepancy):
    """Half the squared norm of the mean: N dD/dz_i is the mean."""

    def _discrepancy(self, z, mask, clusters, generator):
        return z.mean(0).square().sum() / 2


@pytest.mark.parametrize("off", [0.0, 0.3])
def test_bias_and_variance_of_a_gradient_come_apart(off):
    """At a law of mean 0 the field is 0. Given z_i, the mean has mean z_i / N: its mean square is
    D / N, of which bias is D / N^2. Against a field that is off by a constant, both have its square
    more.
    """
    g, dim, n = Generator().manual_seed(0), 4, 8
    law, field = Law.of("uniform", dim), torch.full((9, n, dim), off)
    found = []
    for _ in range(60):
        z = estimators.sharing_batches(law, 9, n, g)
        found.append(estimators.compared(estimators.gradients(Mean(), z, g)[1], field, field))
    rows = {key: torch.tensor([row[key] for row in found]) for key in ("error", "bias2")}
    more = dim * off**2
    for values, truth in ((rows["error"].square(), dim / n), (rows["bias2"], dim / n**2)):
        assert abs(values.mean() - truth - more) < 4 * values.std() / len(values) ** 0.5
    # and the jackknife says how far one estimate is from it
    told = torch.tensor([row["bias2_se"] for row in found]).square().mean().sqrt()
    assert 0.7 < told / rows["bias2"].std() < 1.5


def test_any_two_batches_share_one_point():
    z = estimators.sharing_batches(Law.of("Gaussian", 2), 6, 8, Generator().manual_seed(0))
    for i in range(6):
        for j in range(i):
            same = (z[i][:, None] == z[j]).all(-1)
            assert same.sum() == 1 and same[j, i - 1]


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_the_population_of_a_round_gaussian_is_known(std):
    """Every slice of N(0, s^2 I) is N(0, s^2)."""
    dim, g = 4, Generator().manual_seed(0)
    law = Law(torch.full((dim,), std, dtype=torch.float64))
    x = law.sample(50, generator=g)
    found = population(estimators.contenders(8), law, x, directions=40, generator=g)
    b, s = 1 / dim, std
    w0, floor = math.sqrt(2 * math.pi), 0.05
    known = {
        "SIGReg": w0 * ((1 + 2 * s**2) ** -0.5 - 2 / (2 + s**2) ** 0.5 + 3**-0.5),
        "SlicedWasserstein": (s - 1) ** 2,
        "SlicedEnergy": (2 * math.sqrt(2 * (1 + s**2)) - 2 * s - 2) / math.sqrt(math.pi),
        "BHEP": (1 + 2 * b * s**2) ** (-dim / 2)
        - 2 * (1 + b * (1 + s**2)) ** (-dim / 2)
        + (1 + 2 * b) ** (-dim / 2),
        "GaussianKL": dim / 2 * (v := 0.95 * s**2 + floor) - dim / 2 - dim / 2 * math.log(v),
        "VICReg": max(0, 1 - math.sqrt(s**2 + 1e-4)),
    }
    known |= {f"SIGReg, {kind}": known["SIGReg"] for kind in ("plain", "orthogonal")}
    known["Subspaces(SIGReg)"] = known["SIGReg"]
    for name, (value, (first, second)) in found.items():
        assert value == pytest.approx(known[name], rel=1e-4, abs=2e-5), name
        # down the gradient is towards the origin from outside, away from it from inside
        for field in (first, second):
            assert (field * x).sum() * (s - 1) > 0 or (name == "VICReg" and s > 1)
    # the Wasserstein map of a slice is u / s, and directions at right angles average a a^T to I / D
    for field in found["SlicedWasserstein"][1]:
        torch.testing.assert_close(field, 2 * (1 - 1 / s) / dim * x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["decaying", "uniform", "Laplace", "clusters"])
def test_large_batches_have_the_gradient_of_the_population(name):
    g, n = Generator().manual_seed(0), 2048
    law = Law.of(name, 2)
    z = law.sample(n, generator=g)
    assert z.std(0) == pytest.approx(law.scale.tolist(), rel=0.1)
    made = estimators.contenders(256)
    found = population(made, law, z, directions=128, generator=g)
    for key, discrepancy in made.items():
        value, (field, _) = found[key]
        values, gradient = estimators.gradients(discrepancy, z[None], g)
        assert values.item() == pytest.approx(value, rel=0.3, abs=0.012), key
        if field.square().sum() > 0:  # two moments are blind to the last three laws
            along = (gradient[0] * field).sum() / field.square().sum()
            assert along == pytest.approx(1, abs=0.25), key


def test_directions_are_unit_and_at_right_angles():
    a = orthogonal(5, 12, Generator().manual_seed(0))
    assert a.shape == (15, 5)
    torch.testing.assert_close(a[:5] @ a[:5].T, torch.eye(5, dtype=a.dtype))


def test_a_discrepancy_without_a_formula_is_named():
    with pytest.raises(ValueError, match="no formula for mine, a Mean: add one"):
        law = Law.of("Gaussian", 2)
        population({"mine": Mean()}, law, torch.zeros(3, 2), directions=2, generator=Generator())


def test_measuring_fills_a_csv_that_gives_the_tables(tmp_path):
    quick, path = estimators.QUICK, tmp_path / "rows.csv"
    assert estimators.main([str(path), "--measure", "--quick"]) == 0
    results = estimators.Results(estimators.read(path))
    cells = 6 * len(quick["slices"]) + 3
    assert len(results.of) == len(quick["laws"]) * len(quick["sizes"]) * cells
    n, slices = quick["sizes"][0], quick["slices"][0]
    for text in estimators.tables(results, n, slices).values():
        assert all(f"| {name}" in text for name in results.names)
    assert estimators.picture(results, slices).startswith("<svg")


def test_the_tables_and_the_picture_of_docs_follow_from_the_kept_csv():
    results = estimators.Results(estimators.read(KEPT))
    page = (DOCS / "results.md").read_text()
    for title, text in estimators.tables(results).items():
        assert text in page, f"run scripts/estimators.py {KEPT}: {title} has changed"
    assert (DOCS / "assets" / "estimators.svg").read_text() == estimators.picture(results)
    full = estimators.FULL
    assert len(results.rows) == len(full["laws"]) * len(full["dims"]) * len(full["sizes"]) * (
        6 * len(full["slices"]) + 3
    )
