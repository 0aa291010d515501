"""Latent rollouts per second of every dynamics, at the size that a planner asks for: 512
candidates, 12 steps, D = 64.

An ensemble of five is timed against one deterministic network of the default width and against one
of its own members' width, and against the same five members evaluated in a Python loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import seconds
from gjwm.models.dynamics import (
    DeterministicDynamics,
    EnsembleDynamics,
    GaussianDynamics,
    LinearGaussianDynamics,
    MixtureDynamics,
)


class _Loop(nn.Module):
    """The reference: M networks, one after the other."""

    def __init__(self, members: int, latent_dim: int, action_dim: int, hidden: int):
        super().__init__()
        self.parts = nn.ModuleList(
            DeterministicDynamics(latent_dim, action_dim, hidden=hidden) for _ in range(members)
        )

    def rollout(self, z0: Tensor, a: Tensor) -> Tensor:
        return torch.stack([part.rollout(z0, a) for part in self.parts]).mean(0)


@torch.inference_mode()
def run(*, quick: bool = False, compile: bool = False) -> list[dict[str, Any]]:
    """Rows: what, threads, ms (per batch of candidates), spread_percent, rollouts_per_s,
    times_deterministic (of width 256), times_one_member (of width 128). `compile` adds
    rows through torch.compile, each of which takes tens of seconds to build."""
    candidates, horizon, d, a_dim = (64, 4, 16, 2) if quick else (512, 12, 64, 6)
    g = torch.Generator().manual_seed(0)
    z0, a = (
        torch.randn(1, d, generator=g),
        2 * torch.rand(1, candidates, horizon, a_dim, generator=g) - 1,
    )
    torch.manual_seed(0)
    deterministic, member = (
        DeterministicDynamics(d, a_dim).eval(),
        DeterministicDynamics(d, a_dim, hidden=128).eval(),
    )
    ensemble = EnsembleDynamics(d, a_dim).eval()
    wide = EnsembleDynamics(d, a_dim, hidden=256).eval()
    gaussian, mixture = GaussianDynamics(d, a_dim).eval(), MixtureDynamics(d, a_dim).eval()
    # Fresh networks have a mean that can blow up over a horizon, and numbers out of range are slow:
    # damp them.
    for model in (deterministic, member, ensemble, wide, gaussian, mixture):
        last = model.body[1][-1]
        last.weight.data.mul_(0.1)
        if last.bias is not None:
            last.bias.data.mul_(0.1)
    loop = _Loop(5, d, a_dim, 128).eval()
    cases = {
        "deterministic, width 256": lambda: deterministic.rollout(z0, a),
        "deterministic, width 128": lambda: member.rollout(z0, a),
        "gaussian, mean": lambda: gaussian.rollout(z0, a),
        "gaussian, 5 particles": lambda: gaussian.rollout(z0, a, 5, g),
        "gaussian with GRU": None,
        "gaussian with transformer": None,
        "ensemble of 5, width 128, batched": lambda: ensemble.rollout_members(z0, a),
        "ensemble of 5, width 128, looped": lambda: loop.rollout(z0, a),
        "ensemble of 5, width 256, batched": lambda: wide.rollout_members(z0, a),
        "ensemble of 5, 5 particles": lambda: ensemble.rollout(z0, a, 5, g),
        "mixture, 5 particles": lambda: mixture.rollout(z0, a, 5, g),
        "linear-Gaussian, mean": None,
    }
    linear = LinearGaussianDynamics(d, a_dim).eval()
    gru = GaussianDynamics(d, a_dim, backbone="gru").eval()
    transformer = GaussianDynamics(d, a_dim, backbone="transformer").eval()
    cases["linear-Gaussian, mean"] = lambda: linear.rollout(z0, a)
    cases["gaussian with GRU"] = lambda: gru.rollout(z0, a)
    cases["gaussian with transformer"] = lambda: transformer.rollout(z0, a)
    if compile:
        for name, model in (
            ("deterministic, width 256", deterministic),
            ("ensemble of 5, width 128", ensemble),
        ):
            call = model.rollout_members if model is ensemble else model.rollout
            compiled = torch.compile(call)
            cases[f"{name}, compiled"] = lambda compiled=compiled: compiled(z0, a)
    found = seconds(cases, 1 if quick else 25)
    return [
        {
            "what": name,
            "threads": torch.get_num_threads(),
            "ms": 1e3 * spent.median,
            "spread_percent": spent.spread_percent,
            "rollouts_per_s": candidates / spent.median,
            "times_deterministic": spent.over(found["deterministic, width 256"]),
            "times_one_member": spent.over(found["deterministic, width 128"]),
        }
        for name, spent in found.items()
    ]
