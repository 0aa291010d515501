"""Plan with an exported model, without the code that made it: `python
examples/5_plan_from_export.py`, after 1_train.py.

The two files are programs of torch.export, and CEM sees a score only: neither gjwm.models nor
gjwm.training is imported.
"""

import os
from functools import partial

import torch

import gjwm
from gjwm.planning import CEM

SMALL = "GJWM_SMALL" in os.environ  # as the tests run it


def score(step, z, goal, a):
    """Nearest approach to the goal and a share of the mean distance: (1, N, H, A) -> (1, N)."""
    z, distances = z.expand(a.shape[1], -1), []
    for action in a[0].unbind(1):
        z = step(z, action)
        distances.append((z - goal).square().mean(-1))
    distances = torch.stack(distances)
    return (distances.amin(0) + 0.1 * distances.mean(0))[None]


@torch.no_grad()
def main():
    encode, step = (
        torch.export.load(f"examples-output/two-room/{name}.pt2").module()
        for name in ("encoder", "dynamics")
    )
    env = gjwm.make_env("gjwm/two-room-v0", obs="pixels", size=64, goal="other-room")
    o, _ = env.reset(seed=0)
    goal = encode(torch.from_numpy(env.unwrapped.goal_image())[None])
    planner, plan = CEM(samples=256, iterations=4), torch.zeros(1, 24, 2)
    steps = reward = 0
    while not reward and steps < (2 if SMALL else 60):
        z = encode(torch.from_numpy(o)[None])
        plan = planner.plan(partial(score, step, z, goal), plan).mean
        o, reward, *_ = env.step(plan[0, 0].numpy())
        plan = torch.cat([plan[:, 1:], plan[:, -1:]], 1)  # the next search starts from this one
        steps += 1
    print(f"{'at the goal' if reward else 'not at the goal'} after {steps} steps")
    return reward


if __name__ == "__main__":
    main()
