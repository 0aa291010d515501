"""Objectives: whatever latents come in, a finite value with a finite gradient, or one sentence."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from gjwm.objectives import (
    BHEP,
    EpisodeObjective,
    GaussianKL,
    GaussianTarget,
    JointEmbeddingObjective,
    NoRegularizer,
    SIGReg,
    SlicedEnergy,
    SlicedWasserstein,
    Subspaces,
    VICReg,
)
from properties import refused, register

# name -> what makes it, and whether it is documented to be nowhere negative. A u-statistic may be.
DISCREPANCIES = {
    "sigreg": (lambda **o: SIGReg(8, **o), False),
    "sigreg pooled": (lambda **o: SIGReg(8, time="pooled", **o), False),
    "sigreg v": (lambda **o: SIGReg(8, time="pooled", estimator="v", **o), True),
    "sigreg lewm": (lambda **o: SIGReg.lewm(num_slices=8, **o), True),
    "wasserstein": (lambda **o: SlicedWasserstein(8, **o), True),
    "wasserstein per step": (lambda **o: SlicedWasserstein(8, time="per_step", **o), True),
    "energy": (lambda **o: SlicedEnergy(8, **o), False),
    "energy v": (lambda **o: SlicedEnergy(8, time="pooled", estimator="v", **o), True),
    "bhep": (lambda **o: BHEP(**o), False),
    "bhep v": (lambda **o: BHEP(0.7, time="per_step", estimator="v", **o), True),
    "kl": (lambda **o: GaussianKL(**o), True),
    "kl unshrunk": (lambda **o: GaussianKL(shrinkage=0.0, **o), True),
    "vicreg": (lambda **o: VICReg(**o), True),
    "vicreg per step": (lambda **o: VICReg(time="per_step", **o), True),
    "none": (lambda **o: NoRegularizer(), True),
    "subspaces": (lambda **o: Subspaces(SIGReg(4, **o), dim=2), False),
}
TARGETS = {
    "none": lambda dim: None,
    "isotropic": lambda dim: GaussianTarget(),
    "diagonal": lambda dim: GaussianTarget(
        "diagonal", variances=[1 + 0.2 * i / dim for i in range(dim)]
    ),
    "shrunk": lambda dim: GaussianTarget("shrunk"),
    "learned": lambda dim: GaussianTarget("learned", dim=dim),
}
KINDS = ("normal", "equal", "zero", "outlier", "line", "grid", "one nan", "one infinite")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
shapes = st.tuples(st.integers(0, 9), st.integers(0, 5)) | st.tuples(
    st.integers(0, 5), st.integers(0, 4), st.integers(0, 5)
)
drawn_latents = dict(
    shape=shapes,
    kind=st.sampled_from(KINDS),
    scale=st.floats(-8, 8),  # a power of ten
    shift=st.sampled_from([0.0, 1.0, -1e4, 1e8]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)


def latents(shape, kind: str, scale: float, shift: float, dtype, seed: int) -> Tensor:
    """Latents of that shape in units of 10^scale."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(shape, generator=g, dtype=torch.float64)
    if z.numel():
        flat = z.view(-1, shape[-1])
        if kind == "equal":
            flat[:] = flat[0].clone()
        elif kind == "zero":
            z.zero_()
        elif kind == "outlier":
            flat[0] *= 1e6
        elif kind == "line":
            flat[:] = flat[:, :1].clone()
        elif kind == "grid":
            z.round_()
        elif kind.startswith("one "):
            flat[-1, -1] = {"one nan": torch.nan, "one infinite": torch.inf}[kind]
    return ((z + shift) * 10.0**scale).to(dtype)


@register(
    3,
    name=st.sampled_from(sorted(DISCREPANCIES)),
    target=st.sampled_from(sorted(TARGETS)),
    masked=st.sampled_from(["no", "some", "all", "none"]),
    grouped=st.booleans(),
    **drawn_latents,
)
def a_discrepancy_is_finite_or_refuses(
    name, target, masked, grouped, shape, kind, scale, shift, dtype, seed
):
    """A finite scalar, not negative where none is documented to be, with a finite gradient; what
    the mask leaves out changes nothing, NaN neither."""
    z = latents(shape, kind, scale, shift, dtype, seed).requires_grad_()
    make, positive = DISCREPANCIES[name]
    wants = TARGETS[target](max(1, shape[-1]))
    if name == "none" or (name == "subspaces" and target in ("shrunk", "learned", "diagonal")):
        wants = None  # refused when it is made: a base of another dimension
    discrepancy = make(**({} if wants is None else {"target": wants}))
    g = torch.Generator().manual_seed(seed)
    mask = None if masked == "no" else torch.rand(shape[:-1], generator=g) < 0.7
    if masked in ("all", "none"):
        mask = torch.full(shape[:-1], masked == "all")
    clusters = torch.randint(3, shape[:1], generator=g) if grouped else None
    given = dict(mask=mask, clusters=clusters)
    with refused():
        value = discrepancy(z, **given, generator=torch.Generator().manual_seed(seed))
        assert value.shape == () and value.isfinite(), value
        assert value.dtype in (torch.float32, torch.float64)
        if positive:
            # rounding: sums of squares of this size
            assert value >= -1e-4 * max(1.0, z.detach().double().square().max().item()), value
        value.backward()
        if dtype == torch.float16:
            return  # cannot hold a gradient above 65,504: what GradScaler is for
        assert z.grad is not None and z.grad.isfinite().all(), f"gradient {z.grad} of {z}"
        if mask is None or mask.all() or target == "shrunk":
            return
        assert (z.grad[~mask] == 0).all(), "what the mask leaves out has a gradient"
        other = z.detach().clone()
        other[~mask] = torch.nan
        again = discrepancy(other, **given, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(value.detach(), again), "what the mask leaves out counts"


@register(
    1,
    name=st.sampled_from(["sigreg", "kl", "vicreg", "energy", "none"]),
    wrapped=st.sampled_from(["no", "within", "slow"]),
    align=st.sampled_from(["mse", "joint"]),
    masked=st.booleans(),
    batch=st.integers(0, 6),
    window=st.integers(0, 4),
    dim=st.integers(0, 4),
    kind=st.sampled_from(KINDS),
    scale=st.floats(-8, 8),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def an_objective_is_finite_or_refuses(
    name, wrapped, align, masked, batch, window, dim, kind, scale, dtype, seed
):
    """Alignment and discrepancy together, of windows; two of an episode where it compares them."""
    z = latents((batch, window + 1, dim), kind, scale, 0.0, dtype, seed).requires_grad_()
    z_hat = latents((batch, window, dim), "normal", scale, 0.0, dtype, seed + 1).requires_grad_()
    objective = JointEmbeddingObjective(DISCREPANCIES[name][0](), align=align)
    if wrapped != "no":
        options = {"law": "within"} if wrapped == "within" else {"slow_dim": 1}
        objective = EpisodeObjective(objective, **options)
    g = torch.Generator().manual_seed(seed)
    given = {"clusters": torch.arange(batch) // 2}
    if masked:
        given["mask"] = torch.rand(batch, window + 1, generator=g) < 0.8
    with refused():
        losses = objective(z_hat, z[:, 1:], z, **given, generator=g)
        for part, value in losses.items():
            assert value.shape == () and value.isfinite(), f"{part} is {value}"
        losses["loss"].backward()
        if dtype == torch.float16:
            return  # cannot hold a gradient of 1 / 1e-6: what GradScaler is for
        for tensor in (z, z_hat):
            assert tensor.grad is None or tensor.grad.isfinite().all(), tensor.grad
