"""Planners: whatever bounds, warm start and score, actions are finite and within the bounds."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from gjwm.planning import CEM, ICEM, MPPI, CategoricalCEM, GradientPlanner, RandomShooting
from properties import refused, register

SMALL = dict(samples=8, iterations=3, elites=3)
PLANNERS = {
    "cem": lambda **o: CEM(**SMALL, **o),
    "cem diagonal": lambda **o: CEM(**SMALL, covariance="diagonal", tolerance=0.1, **o),
    "icem": lambda **o: ICEM(**SMALL, **o),
    "mppi": lambda **o: MPPI(**SMALL, **o),
    "mppi diagonal": lambda **o: MPPI(**SMALL, covariance="diagonal", min_std=0.0, **o),
    "shooting": lambda **o: RandomShooting(samples=8, **o),
    "gradient": lambda **o: GradientPlanner(starts=3, iterations=3, survivors=2, **o),
}
SCORES = {
    "bowl": lambda a: (a / (1 + a.abs().amax())).square().sum((-2, -1)),
    "slope": lambda a: a.clamp(-1e30, 1e30).sum((-2, -1)),
    "constant": lambda a: 0 * a.clamp(-1, 1).sum((-2, -1)),
    "huge": lambda a: 3e38 * torch.tanh(a[..., 0, 0]),
    "tiny": lambda a: 1e-40 * torch.tanh(a[..., 0, 0]),
    "holes": lambda a: torch.where(a[..., 0, 0] > 0, torch.nan, torch.tanh(a).sum((-2, -1))),
    "walls": lambda a: torch.where(a[..., 0, 0] > 0, torch.inf, torch.tanh(a).sum((-2, -1))),
    "lost": lambda a: a[..., 0, 0] * torch.nan,
}
# Of all sizes, next to one another, on one side of 0; some cannot be searched and are refused.
numbers = st.one_of(
    st.floats(width=32, allow_nan=False),
    st.floats(-2, 2),
    st.sampled_from([0.0, 1.0, -1.0, 0.1, 1e-38, 1e-45, 1e30, -3.4e38, 3.4e38, np.nan, 1e300]),
)
bounds = st.one_of(
    st.tuples(numbers, numbers),
    st.builds(lambda x: (0.0, abs(x)), numbers),  # of one side
    st.builds(lambda x: (-abs(x), 0.0), numbers),
    st.builds(  # neighbours
        lambda x: (x, float(np.nextafter(np.float32(x), np.float32(np.inf)))), st.floats(-2, 2)
    ),
    st.builds(lambda x, width: (x, x + width), numbers, st.floats(1e-8, 1e8)),
)


@register(
    4,
    name=st.sampled_from(sorted(PLANNERS)),
    limits=st.lists(bounds, min_size=1, max_size=3),
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 5)),
    repeat=st.integers(0, 3),
    score=st.sampled_from(sorted(SCORES)),
    start=st.sampled_from(["zero", "inside", "outside", "far"]),
    offered=st.sampled_from(["no", "inside", "far", "nan"]),
    double=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def actions_are_finite_and_within_bounds(
    name, limits, sizes, repeat, score, start, offered, double, seed
):
    """Of the plan, of its elites and of every candidate that is judged."""
    low, high = zip(*limits)
    planner = None
    with refused():
        planner = PLANNERS[name](low=low, high=high, repeat=repeat)
    if planner is None:
        assert repeat < 1 or not searchable(low, high), f"refused {low} to {high}"
        return
    dtype = torch.float64 if double else torch.float32
    lows, highs = (torch.tensor(x, dtype=torch.float64).to(dtype) for x in (low, high))
    g = torch.Generator().manual_seed(seed)
    shape = (sizes[0], sizes[1], len(limits))
    starts = {
        "zero": torch.zeros(shape, dtype=dtype),
        "inside": torch.lerp(lows, highs, torch.rand(shape, generator=g, dtype=dtype)),
        "outside": 3 * torch.randn(shape, generator=g, dtype=dtype),
        "far": 1e38 * torch.randn(shape, generator=g, dtype=dtype).sign(),
        "nan": torch.full(shape, torch.nan, dtype=dtype),
    }
    assert starts["inside"].isfinite().all()
    proposals = None if offered == "no" else starts[offered][:, None].expand(-1, 2, -1, -1)

    def judged(a: Tensor) -> Tensor:
        within(a, lows, highs)
        return SCORES[score](a)

    with refused() as said:
        plan = planner.plan(judged, starts[start], g, proposals=proposals)
        assert plan.mean.shape == shape and plan.mean.dtype == dtype
        within(plan.mean, lows, highs)
        assert plan.elites is not None
        within(plan.elites, lows, highs)
        assert plan.std.shape == shape and plan.std.isfinite().all() and (plan.std >= 0).all()
        assert plan.cost.isfinite().all()
    if said:
        assert score in ("lost", "holes", "walls") or offered == "nan", said


def searchable(low, high) -> bool:
    """Whether bounds are finite and in order, and their distance finite, in single precision."""
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.float32(low), np.float32(high)
        return bool(np.isfinite(high - low).all() and (low < high).all())


def within(a: Tensor, low: Tensor, high: Tensor) -> None:
    """Actions (..., A) lie within bounds (A,).

    Raises:
        AssertionError: for one that does not, or is NaN.
    """
    assert a.isfinite().all(), f"actions {a}"
    assert (a >= low).all() and (a <= high).all(), f"{a.tolist()} not in {low} to {high}"


@register(
    1,
    groups=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    horizon=st.integers(1, 4),
    exhaustive=st.sampled_from([1, 1024]),
    score=st.sampled_from(sorted(SCORES)),
    start=st.sampled_from([0.0, 1.0, -1.0, 1e38, 1e-40]),
    seed=st.integers(0, 2**32 - 1),
)
def discrete_plans_are_one_choice_per_part(groups, horizon, exhaustive, score, start, seed):
    """One-hot in each part, whatever the warm start's entries."""
    planner = CategoricalCEM(
        samples=8, iterations=2, elites=3, groups=groups, exhaustive=exhaustive
    )
    g = torch.Generator().manual_seed(seed)
    mean = start * torch.rand(2, horizon, sum(groups), generator=g)
    with refused() as said:
        plan = planner.plan(SCORES[score], mean, g)
        for part in plan.mean.split(groups, -1):
            assert ((part == 0) | (part == 1)).all() and (part.sum(-1) == 1).all(), part
        assert plan.std.isfinite().all() and plan.cost.isfinite().all()
    if said:
        assert score in ("lost", "holes", "walls"), said
