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


def plain(dim):
    """A reach whose features are the latents themselves."""
    reach = Reach(dim, dim)
    reach.net = torch.nn.Identity()
    return reach


def test_the_matrix_of_a_world_that_turns_is_measured_with_its_direction():
    generator = torch.Generator().manual_seed(0)
    angle = torch.tensor(0.5)
    turn = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
    )
    path = chain([0.9, 0.9], 100_000, 2, generator, turn)
    scale = torch.tensor([[2.0, 0.0], [1.0, 0.5]])  # features need not be white
    reach = plain(2)
    reach.settle(path[:, 0] @ scale.T + 3, path[:, 1] @ scale.T + 3)
    known = -0.5 * 2 * torch.tensor(1 - 0.81).log()
    assert reach.information().item() == pytest.approx(known.item(), abs=0.02)
    now, later = path[:5, 0].double(), path[5:10, 1].double()
    law = torch.distributions.Normal
    mean = 0.9 * now @ turn.T.double()
    direct = law(mean, 0.19**0.5).log_prob(later) - law(0.0, 1.0).log_prob(later)
    ratio = reach.log_ratio(path[:5, 0] @ scale.T + 3, path[5:10, 1] @ scale.T + 3)
    torch.testing.assert_close(ratio.double(), direct.sum(-1), atol=0.1, rtol=0.05)


def test_a_world_in_which_nothing_lasts_is_refused():
    with pytest.raises(ValueError, match="no direction of these latents lasts"):
        plain(2).set_matrix(-0.5 * torch.eye(2))


@pytest.mark.parametrize("ask", ["log_ratio", "waypoints", "information"])
def test_a_reach_that_was_not_fitted_says_so(ask):
    z = torch.zeros(2, 4)
    given = {"log_ratio": (z, z), "waypoints": (z, z, 2), "information": ()}[ask]
    with pytest.raises(ValueError, match="knows nothing yet: call fit"):
        getattr(Reach(4), ask)(*given)


def test_fitting_leaves_the_latents_alone_and_stays_in_evaluation_mode():
    z = torch.randn(12, 9, 4, requires_grad=True)
    with torch.no_grad():
        reach = Reach(4, 3, 1, hidden=(8,)).fit([*z, z[0, :5]], steps=2, batch=8)
    assert z.grad is None and reach.fitted
    before = reach.distance(z[0], z[1]).detach()
    reach.train()
    torch.testing.assert_close(reach.distance(z[0], z[1]).detach(), before)


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
    reach, z = line
    place = torch.linspace(-2, 2, 9)
    states = torch.stack([place, 0 * place, place.tanh(), 0 * place], -1)
    goal = states[-1]
    distance = reach.distance(states, goal)
    assert distance[-1] < 1e-6
    place = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert reach.distance(z[:, 0], z[place, -1]).mean().item() == pytest.approx(1, rel=0.25)
    assert (distance.diff() < 0).all()
    ratio = reach.log_ratio(states, goal)
    assert (ratio.diff() > 0).float().mean() >= 0.75


def test_direction_counts_where_a_world_drifts():
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    reach = plain(2)
    reach.set_matrix(0.9 * turn + 0.05 * torch.eye(2))
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert reach.log_ratio(east, north) > reach.log_ratio(north, east) + 1


def test_waypoints_come_one_after_the_other(line):
    reach, z = line
    ways = reach.waypoints(z[:5, 0], z[0, -1], 3)
    assert ways.shape == (5, 3, 4)
    start, end = reach.embed(z[:5, 0]), reach.embed(z[0, -1])
    c = (reach.left * reach.rho) @ reach.right.T
    torch.testing.assert_close(ways, bridge(start, end.expand_as(start), c, 3))
    with pytest.raises(ValueError, match="at least 1"):
        reach.waypoints(z[:5, 0], z[0, -1], 0)


@pytest.mark.parametrize(
    ("z", "says"),
    [
        (torch.zeros(2, 5, 3), "latents of episodes"),
        (torch.zeros(2, 1, 4), "two steps or more"),
        (torch.zeros(5, 4), "latents of episodes"),
        ([], "two steps or more"),
        (torch.full((2, 5, 4), torch.nan), "NaN"),
    ],
)
def test_latents_that_do_not_fit_are_refused(z, says):
    with pytest.raises(ValueError, match=says):
        Reach(4).fit(z)


def test_sizes_must_be_counts():
    with pytest.raises(ValueError, match="dim"):
        Reach(4, 0)
