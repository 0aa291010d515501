"""A planner that differentiates the score: Adam through the model from several starts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from gjwm.planning.noise import coloured_noise
from gjwm.planning.search import BoxPlanner, Judge

# of Adam; some hundred steps are made, so both moments must forget sooner than in training
BETAS = (0.8, 0.9)


class GradientPlanner(BoxPlanner):
    """Projected Adam on the actions, from the warm start, the proposals and noisy copies, all as
    one batch.

    The defaults are set to find an optimum: 160 steps reach that of LQR, 24 numbers, within 1%
    unless it is badly conditioned. An agent that replans at every step from a warm start can do
    with far fewer: `configs/planner/gradient.yaml` has 20.

    For smooth latent costs: few candidates, each much improved. In contact-rich or chaotic
    dynamics, and where a goal lies behind an obstacle that no start gets around, sampling is more
    robust. The score has to be differentiable in its actions; its gradient is taken even under
    `torch.no_grad` or `torch.inference_mode`, but tensors that the score closes over must not have
    been made under the latter.

    Args:
        starts: plans descended from at once.
        iterations: gradient steps.
        survivors: after a third of the steps only this many best starts go on; None keeps all.
        lr: Adam's first step size, in units of the action range's half width; it falls to 0 along a
            cosine.
        noise_beta, init_std: of the noisy copies, see `CEM`.
        **box: low, high, repeat, budget_ms of `BoxPlanner`.
    """

    differentiates = True

    def __init__(
        self,
        *,
        starts: int = 32,
        iterations: int = 160,
        survivors: int | None = 4,
        lr: float = 0.3,
        noise_beta: float = 1.0,
        init_std: float = 0.7,
        **box: Any,
    ):
        super().__init__(**box)
        if starts < 1 or iterations < 1 or not lr > 0 or not init_std > 0:
            raise ValueError(
                "GradientPlanner expects starts, iterations >= 1 and lr, init_std > 0, got "
                f"starts={starts}, iterations={iterations}, lr={lr}, init_std={init_std}."
            )
        if survivors is not None and not 1 <= survivors:
            raise ValueError(
                f"survivors must be at least 1, or None to keep all starts, got {survivors}."
            )
        self.starts, self.iterations, self.survivors = starts, iterations, survivors
        self.lr, self.noise_beta, self.init_std = lr, noise_beta, init_std

    def search(
        self, judge: Judge, offered: Tensor, generator: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            plans = self._starts(offered.clone(), generator)
            best, best_cost = plans, plans.new_full(plans.shape[:2], torch.inf)
            first, second = torch.zeros_like(plans), torch.zeros_like(plans)
            for step in range(self.iterations):
                cost, gradient = _differentiated(judge, plans, best_cost)
                best, best_cost = _better(plans, cost, best, best_cost)
                first = BETAS[0] * first + (1 - BETAS[0]) * gradient
                second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
                rate = self.lr * (0.5 + 0.5 * math.cos(math.pi * step / self.iterations))
                rate = rate * math.sqrt(1 - BETAS[1] ** (step + 1)) / (1 - BETAS[0] ** (step + 1))
                plans = (plans - rate * first / (second.sqrt() + 1e-12)).clamp(-1, 1)
                late = step + 1 >= self.iterations / 3
                if late and self.survivors is not None and self.survivors < plans.shape[1]:
                    best_cost, chosen = best_cost.topk(self.survivors, dim=1, largest=False)
                    plans, best, first, second = (
                        _chosen(t, chosen) for t in (plans, best, first, second)
                    )
                if not judge.another_round():
                    break
            cost = judge(plans, best_cost.isfinite().any(1))
            best, best_cost = _better(plans, cost, best, best_cost)
            order = best_cost.argsort(1)
            best = _chosen(best, order)
            return best, best.std(1, correction=0), best_cost.gather(1, order)[:, 0]

    def _starts(self, offered: Tensor, generator: Generator | None) -> Tensor:
        """What was offered (B, 1 + P, K, A), and noisy copies of the first -> (B, S, K, A)."""
        mean, offered = offered[:, :1], offered[:, : self.starts]
        shape = (len(mean), self.starts - offered.shape[1], *mean.shape[2:])
        noise = coloured_noise(shape, self.noise_beta, generator=generator, device=mean.device)
        return torch.cat([offered, (mean + self.init_std * noise).clamp(-1, 1)], 1)


def _differentiated(judge: Judge, plans: Tensor, best_cost: Tensor) -> tuple[Tensor, Tensor]:
    """Costs (B, S) of plans (B, S, K, A), and their gradient.

    Raises:
        ValueError: when the score does not depend on the actions through differentiable operations.
    """
    with torch.enable_grad():
        x = plans.detach().requires_grad_()
        cost = judge(x, best_cost.isfinite().any(1))
        if not cost.requires_grad:
            raise ValueError(
                "this planner needs a score that is differentiable in the actions, and this one is "
                "not (a simulator, or torch.no_grad inside?): use a sampling planner such as CEM."
            )
        (gradient,) = torch.autograd.grad(cost.sum(), x, materialize_grads=True)
    # A dropped candidate has no gradient: its start rests and its best counts.
    return cost.detach(), gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _better(plans: Tensor, cost: Tensor, best: Tensor, best_cost: Tensor) -> tuple[Tensor, Tensor]:
    better = cost < best_cost
    return torch.where(better[..., None, None], plans, best), torch.where(better, cost, best_cost)


def _chosen(plans: Tensor, index: Tensor) -> Tensor:
    """Of plans (B, S, K, A) those of index (B, S')."""
    return plans.gather(1, index[..., None, None].expand(-1, -1, *plans.shape[2:]))
