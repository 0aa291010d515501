"""Planning on a GPU: what launching kernels costs, and what CUDA graphs save of it. Without a GPU
it runs on the CPU.

One MLP model (D = 64, hidden 512, A = 2), H = 12, 512 candidates per env. *rollout*: one batch of
candidates, eagerly and compiled (`AgentOptions(compile=True)`: Inductor with CUDA graphs). *plan*:
CEM of 8 rounds, and as `over_bare` its time over that of the same rollouts and costs alone.
*refine*: one step of refining, windows of 16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from benchmarks import median_seconds
from benchmarks.planning import reference_model
from gjwm.data.replay import ReplayBuffer
from gjwm.models.dynamics import GaussianDynamics
from gjwm.planning import CEM
from gjwm.planning.agent import AgentOptions, MPCAgent
from gjwm.planning.costs import GoalCost
from gjwm.training.settings import RefineSettings
from gjwm.training.train import refine


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Rows: what, device, envs, ms, over_bare."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    candidates = 16 if quick else 512
    repeats = 1 if quick else 20 if device.type == "cuda" else 3
    rows = []

    def milliseconds(call: Callable[[], Any]) -> float:
        def finished() -> None:
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return 1e3 * median_seconds(
            finished, repeats=repeats, warmup=0 if quick else min(repeats, 3)
        )

    def row(what: str, envs: int, ms: float, over_bare: float | None = None) -> None:
        rows.append({"what": what, "device": name, "envs": envs, "ms": ms, "over_bare": over_bare})

    model = reference_model().to(device)
    generator = torch.Generator(device).manual_seed(0)
    planner = CEM(samples=candidates, iterations=8, elites=candidates // 8, covariance="diagonal")
    for envs in (1, 2) if quick else (1, 16):
        z0 = torch.randn(envs, 64, generator=generator, device=device)
        a = 2 * torch.rand(envs, candidates, 12, 2, generator=generator, device=device) - 1
        start = torch.zeros(envs, 12, 2, device=device)
        for kind in ("eager",) if quick else ("eager", "compiled"):
            options = AgentOptions(compile=kind == "compiled")
            cost = GoalCost(z0.roll(1, -1))
            agent = MPCAgent(model, planner, cost, horizon=12, options=options)
            with torch.no_grad():
                row(
                    f"rollout, {kind}",
                    envs,
                    milliseconds(lambda agent=agent, z0=z0, a=a: agent.imagine(z0, a)),
                )

                def score(
                    a: torch.Tensor, agent: MPCAgent = agent, z0: torch.Tensor = z0
                ) -> torch.Tensor:
                    return agent._score(z0, a, None)

                def bare(score: Callable = score, a: torch.Tensor = a) -> None:
                    for _ in range(planner.iterations):
                        score(a)

                floor = milliseconds(bare)
                whole = milliseconds(
                    lambda s=score, start=start: planner.plan(s, start, generator=generator)
                )
            row(f"plan, {kind}", envs, whole, whole / floor)
    latents = _latents(20 if quick else 400, device)
    for batch in (8,) if quick else (64, 512):
        dynamics = GaussianDynamics(40, 2).to(device)
        steps = 2 if quick else 30

        def refined(
            dynamics: GaussianDynamics = dynamics, batch: int = batch, steps: int = steps
        ) -> None:
            refine(dynamics, latents, RefineSettings(steps=steps, batch=batch, length=16, lr=1e-4))

        row(f"refine, {batch} windows", 1, milliseconds(refined) / steps)
    return rows


def _latents(episodes: int, device: torch.device) -> ReplayBuffer:
    """Episodes of 50 steps of noise."""
    boxes = (spaces.Box(-np.inf, np.inf, (40,), np.float32), spaces.Box(-1, 1, (2,), np.float32))
    buffer = ReplayBuffer(50 * episodes, *boxes, episodes=episodes, device=device)
    generator, never = torch.Generator().manual_seed(0), np.zeros(50, bool)
    for _ in range(episodes):
        z = torch.randn(51, 40, generator=generator)
        buffer.add_episode(
            z.to(device), np.zeros((50, 2), np.float32), np.zeros(50, np.float32), never, never
        )
    return buffer
