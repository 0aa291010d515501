"""A planner that differentiates the score: Adam through the model from several starts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from gjwm.planning.noise import coloured_noise
from gjwm.planning.search import BoxPlanner, Clock, Judge

# of Adam; tens of steps are made, so the second moment must settle sooner than in training
BETAS = (0.9, 0.99)


class GradientPlanner(BoxPlanner):
    """Projected Adam on the actions, from the warm start, the proposals and noisy copies, all as
    one batch.

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
        iterations: int = 20,
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
        self,
        judge: Judge,
        knots: Tensor,
        proposals: Tensor | None,
        generator: Generator | None,
        clock: Clock,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        with torch.inference_mode(False), torch.no_grad():
            knots = knots.clone()
            offered = (
                knots[:, None]
                if proposals is None
                else torch.cat([knots[:, None], proposals.clone()], 1)
            )
            offered = offered[:, : self.starts]
            shape = (len(knots), self.starts - offered.shape[1], *knots.shape[1:])
            noise = coloured_noise(shape, self.noise_beta, generator=generator, device=knots.device)
            starts = torch.cat([offered, (knots[:, None] + self.init_std * noise).clamp(-1, 1)], 1)
            plans, cost = descend(
                judge,
                starts,
                iterations=self.iterations,
                lr=self.lr,
                survivors=self.survivors,
                clock=clock,
            )
            return plans[:, 0], plans.std(1, correction=0), cost[:, 0], plans


def descend(
    judge: Judge,
    plans: Tensor,
    *,
    iterations: int,
    lr: float,
    survivors: int | None = None,
    clock: Clock,
) -> tuple[Tensor, Tensor]:
    """Improve plans (B, S, K, A) by projected Adam -> the best that each start saw, sorted: (B, S',
    K, A), cost (B, S').

    Call it under `torch.no_grad`.

    Raises:
        ValueError: when the score does not depend on the actions through differentiable operations.
    """
    best, best_cost = plans, plans.new_full(plans.shape[:2], torch.inf)
    first, second = torch.zeros_like(plans), torch.zeros_like(plans)
    for step in range(iterations):
        with torch.enable_grad():
            x = plans.detach().requires_grad_()
            cost = judge(x, best_cost.isfinite().any(1))
            if not cost.requires_grad:
                raise ValueError(
                    "this planner needs a score that is differentiable in the actions, and this "
                    "one is not (a simulator, or torch.no_grad inside?): use a sampling planner "
                    "such as CEM."
                )
            (gradient,) = torch.autograd.grad(cost.sum(), x, allow_unused=True)
        if gradient is None:
            gradient = torch.zeros_like(plans)
        cost = cost.detach()
        better = cost < best_cost
        best, best_cost = (
            torch.where(better[..., None, None], plans, best),
            torch.where(better, cost, best_cost),
        )
        # A dropped candidate has no gradient: its start rests and its best counts.
        gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
        rate = lr * (0.5 + 0.5 * math.cos(math.pi * step / iterations))
        step_size = rate * math.sqrt(1 - BETAS[1] ** (step + 1)) / (1 - BETAS[0] ** (step + 1))
        plans = (plans - step_size * first / (second.sqrt() + 1e-12)).clamp(-1, 1)
        if survivors is not None and survivors < plans.shape[1] and step + 1 >= iterations / 3:
            chosen = best_cost.topk(survivors, dim=1, largest=False).indices
            best_cost = best_cost.gather(1, chosen)
            chosen = chosen[..., None, None].expand(-1, -1, *plans.shape[2:])
            plans, best, first, second = (t.gather(1, chosen) for t in (plans, best, first, second))
        if not clock.another_round():
            break
    cost = judge(plans, best_cost.isfinite().any(1))
    better = cost < best_cost
    best, best_cost = (
        torch.where(better[..., None, None], plans, best),
        torch.where(better, cost, best_cost),
    )
    order = best_cost.argsort(1)
    return best.gather(1, order[..., None, None].expand_as(best)), best_cost.gather(1, order)
