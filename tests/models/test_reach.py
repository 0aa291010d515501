"""Reach: closed forms against their values, simulated chains and known worlds."""

import pytest
import torch

from gjwm.models import Reach
from gjwm.models.reach import bridge, log_ratio


def chain(rho, episodes, steps, generator, turn=None):
    """Stationary AR chains (E, T, K), x' = rho x + noise, optionally turned by an orthogonal
    matrix."""
    rho = torch.as_tensor(rho)
    x = torch.randn(episodes, len(rho), generator=generator)
    path = [x]
    for _ in range(steps - 1):
        mean = rho * x if turn is None else rho * x @ turn.T
        x = mean + (1 - rho**2).sqrt() * torch.randn(x.shape, generator=generator)
        path.append(x)
    return torch.stack(path, 1)


@pytest.mark.parametrize(
    ("x", "y", "rho", "nats"),
    [(1.0, 1.0, 0.8, 0.955270), (1.0, -1.0, 0.8, -3.489174), (0.3, -2.0, 0.0, 0.0)],
)
def test_log_ratio_has_the_values_of_two_correlated_gaussians(x, y, rho, nats):
    x, y, rho = (torch.tensor([v], dtype=torch.float64) for v in (x, y, rho))
    assert log_ratio(x, y, rho).item() == pytest.approx(nats, abs=1e-6)
    law = torch.distributions.Normal
    direct = law(rho * x, (1 - rho**2).sqrt()).log_prob(y) - law(0.0, 1.0).log_prob(y)
    torch.testing.assert_close(log_ratio(x, y, rho), direct.sum())


def test_the_mean_log_ratio_of_pairs_is_their_information():
    generator = torch.Generator().manual_seed(0)
    rho = torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64)
    x = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    y = rho * x + (1 - rho**2).sqrt() * noise
    reach = Reach(3, 3)
    reach.set_matrix(rho.diag())
    assert reach.information().item() == pytest.approx(-0.5 * (1 - rho**2).log().sum().item())
    assert log_ratio(x, y, rho).mean().item() == pytest.approx(reach.information().item(), abs=0.02)


@pytest.mark.parametrize("count", [1, 3])
def test_a_bridge_is_the_mean_of_chains_with_these_ends(count):
    generator = torch.Generator().manual_seed(0)
    angle = torch.tensor(0.7)
    turn = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
    )
    path = chain([0.8, 0.8], 200_000, count + 2, generator, turn).double()
    ends, between = torch.cat([path[:, 0], path[:, -1]], -1), path[:, 1:-1].flatten(1)
    regression = torch.linalg.lstsq(ends, between).solution  # E[between | ends], linear
    start, end = torch.tensor([1.0, -0.5]).double(), torch.tensor([0.2, 0.9]).double()
    expected = (torch.cat([start, end]) @ regression).view(count, 2)
    torch.testing.assert_close(
        bridge(start, end, 0.8 * turn.double(), count), expected, atol=0.02, rtol=0
    )


def test_one_waypoint_lies_between_both_ends_and_nearer_to_the_mean_where_all_is_forgotten():
    s, g = torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 3.0]])
    rho = torch.tensor([0.95, 0.3])
    expected = rho * (s + g) / (1 + rho**2)
    torch.testing.assert_close(bridge(s, g, rho.diag(), 1)[:, 0], expected)


@pytest.fixture(scope="module")
def line():
    """A reach on a line: aimless episodes of one slow coordinate, bent into four latents."""
    generator = torch.Generator().manual_seed(0)
    x = chain([0.97, 0.2], 300, 60, generator)
    z = torch.cat([x, x[..., :1].tanh(), x[..., 1:].sin()], -1)
    torch.manual_seed(0)
    return Reach(4, 4, 8, hidden=(32, 32)).fit(z, steps=200, batch=256, generator=generator), z


def test_fitting_finds_the_correlation_of_the_slow_coordinate(line):
    reach, _ = line
    q = 1 - 1 / 8
    known = 0.97 * (1 - q) / (1 - q * 0.97)  # of geometric lags, on episodes that never end
    assert reach.rho[0].item() == pytest.approx(known, abs=0.06)


def test_a_state_nearer_along_the_slow_coordinate_is_nearer(line):
    reach, _ = line
    place = torch.linspace(-2, 2, 9)
    states = torch.stack([place, 0 * place, place.tanh(), 0 * place], -1)
    goal = states[-1]
    distance = reach.distance(states, goal)
    assert distance[-1] < 1e-6
    assert (distance.diff() < 0).all()
    ratio = reach.log_ratio(states, goal)
    assert (ratio.diff() > 0).float().mean() >= 0.75


def test_direction_counts_where_a_world_drifts():
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    reach = Reach(2, 2, hidden=())
    reach.net = torch.nn.Identity()
    reach.set_matrix(0.9 * turn)
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert reach.log_ratio(east, north) > reach.log_ratio(north, east) + 1


def test_waypoints_come_one_after_the_other(line):
    reach, z = line
    ways = reach.waypoints(z[:5, 0], z[0, -1], 3)
    assert ways.shape == (5, 3, 4)
    start, end = reach.embed(z[:5, 0]), reach.embed(z[0, -1])
    c = (reach.left * reach.rho) @ reach.right.T
    torch.testing.assert_close(ways, bridge(start, end.expand_as(start), c, 3))
    with pytest.raises(ValueError, match="count >= 1"):
        reach.waypoints(z[:5, 0], z[0, -1], 0)


@pytest.mark.parametrize(
    ("z", "says"),
    [
        (torch.zeros(2, 5, 3), "latents of episodes"),
        (torch.zeros(2, 1, 4), "two steps or more"),
        ([], "latents of episodes"),
        (torch.full((2, 5, 4), torch.nan), "NaN"),
    ],
)
def test_latents_that_do_not_fit_are_refused(z, says):
    with pytest.raises(ValueError, match=says):
        Reach(4).fit(z)


def test_imagined_latents_must_match():
    with pytest.raises(ValueError, match="imagined"):
        Reach(4).fit(torch.randn(2, 5, 4), torch.randn(2, 4, 4))


def test_sizes_must_be_counts():
    with pytest.raises(ValueError, match="dim"):
        Reach(4, 0)
