"""What processes of one training send each other in a step: sizes, on random data.

torchrun --nproc-per-node 2 scripts/exchanged.py experiment=two_room
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any, cast

import torch
import torch.distributed as dist

from gjwm._core import distributed
from gjwm._core.fit import Optimiser, fit
from gjwm._core.types import Batch
from gjwm.cli.config import load_config, recipe_of
from gjwm.training.processes import Processes
from gjwm.training.recipe import build, make_objective

SHAPE, ACTIONS = (6, 64, 64), 2  # of the reacher: two frames
# who adds numbers up over processes -> what for
USES = {
    "average_gradients": "gradients",
    "share_state": "first weights, once",
    "forward": "BatchNorm, forward",
    "backward": "BatchNorm, backward",
    "averaged": "losses, for the log",
}


def counted(function, sizes: Counter, calls: Counter):
    """`function`, whose bytes and calls are added up by who asked for them."""

    def call(x, *rest, **given):
        frame = sys._getframe(2)  # behind sum_ or broadcast
        use = USES.get(frame.f_code.co_name, "discrepancy")
        use = use if x.is_floating_point() else "discrepancy"  # which window is of which episode
        sizes[use] += x.numel() * x.element_size()
        calls[use] += 1
        return function(x, *rest, **given)

    return call


def main(arguments: list[str]) -> None:
    cfg = load_config(arguments)
    recipe, processes = recipe_of(cfg), Processes.of()
    torch.manual_seed(0)
    model, objective = build(recipe, SHAPE, ACTIONS), cast(Any, make_objective(recipe))
    processes.join("cpu")
    sizes, calls = Counter(), Counter()
    dist.all_reduce = counted(dist.all_reduce, sizes, calls)
    dist.broadcast = counted(dist.broadcast, sizes, calls)
    part, length = distributed.share(recipe.train.batch), recipe.train.length
    windows = part.stop - part.start
    torch.manual_seed(processes.rank)
    batch = Batch(
        o=torch.randint(256, (windows, length + 1, *SHAPE), dtype=torch.uint8),
        a=torch.rand(windows, length, ACTIONS),
        r=torch.zeros(windows, length),
        terminated=torch.zeros(windows, length, dtype=torch.bool),
        # as drawn from that many episodes: some windows share one
        episode=torch.randint(int(cfg.collect.episodes), (windows,)),
    )
    fit(
        [model, objective],
        lambda step: model.loss(batch, objective),
        Optimiser(lr=1e-3, weight_decay=0.0, clip=1.0),
        steps=1,
    )
    if processes.first:
        for name in ("encoder", "dynamics"):
            count = sum(p.numel() for p in getattr(model, name).parameters())
            print(f"{name}: {count:,} parameters")
        for use in sizes:
            print(f"{use}: {calls[use]} calls, {sizes[use]:,} bytes")
    processes.leave()


if __name__ == "__main__":
    main(sys.argv[1:])
