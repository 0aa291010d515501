"""Claims about paths between latents: they keep their ends, all but the linear one the variance,
and one the law N(0, I).
"""

import pytest
import torch

from gjwm.models.interpolation import linear, slerp, variance_preserving

PATHS = [linear, variance_preserving, slerp]


def ends(n=4000, d=16):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=g), torch.randn(n, d, generator=g)


@pytest.mark.parametrize("path", PATHS)
def test_paths_begin_and_end_where_they_should(path):
    z0, z1 = ends(5)
    between = path(z0, z1, torch.tensor([0.0, 0.3, 1.0]))
    assert between.shape == (5, 3, 16)
    torch.testing.assert_close(between[:, 0], z0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(between[:, 2], z1, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_the_way_back_is_the_same_and_halfway_both_ends_weigh_alike(path):
    z0, z1 = ends(50)
    t = torch.tensor([0.1, 0.25, 0.5])
    torch.testing.assert_close(path(z0, z1, t), path(z1, z0, 1 - t), atol=1e-5, rtol=1e-5)


def test_between_ends_at_right_angles_preserving_variance_is_going_along_the_circle():
    z0, z1 = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    t = torch.linspace(0, 1, 9)
    torch.testing.assert_close(variance_preserving(z0, z1, t), slerp(z0, z1, t))


@pytest.mark.parametrize("path", PATHS)
def test_the_variance_on_the_way(path):
    z0, z1 = ends()
    t = torch.tensor([0.25, 0.5, 0.75])
    variance = path(z0, z1, t).var(0).mean(-1)
    expected = t.square() + (1 - t).square() if path is linear else torch.ones(3)
    torch.testing.assert_close(variance, expected, atol=0.05, rtol=0)


def test_only_the_variance_preserving_path_keeps_the_law_of_the_norm():
    z0, z1 = ends(40_000, 4)
    midway = torch.tensor([0.5])
    # over chi-squared's
    spread = {path: path(z0, z1, midway).square().sum(-1).var().item() / 8 for path in PATHS}
    assert spread[variance_preserving] == pytest.approx(1, abs=0.05)
    assert spread[slerp] == pytest.approx(0.46, abs=0.03)
    radii = torch.stack([z0.norm(dim=-1), z1.norm(dim=-1)])
    between = slerp(z0, z1, midway)[:, 0].norm(dim=-1)
    assert (between >= radii.amin(0) - 1e-4).all() and (between <= radii.amax(0) + 1e-4).all()


def test_slerp_turns_at_constant_speed_on_the_shell():
    z0, z1 = (z / z.norm(dim=-1, keepdim=True) for z in ends(50))
    between = slerp(z0, z1, torch.linspace(0, 1, 9))
    torch.testing.assert_close(between.norm(dim=-1), torch.ones(50, 9))
    turn = torch.acos((between[:, 1:] * between[:, :-1]).sum(-1).clamp(-1, 1))
    torch.testing.assert_close(turn, turn[:, :1].expand(50, 8), atol=1e-3, rtol=0)


def test_ends_in_one_line_have_no_great_circle_and_stay_finite():
    z = torch.ones(1, 3)
    for other in (z, 2 * z, -z):
        assert slerp(z, other, torch.linspace(0, 1, 5)).isfinite().all()
    with pytest.raises(ValueError, match="one shape"):
        slerp(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(1))
