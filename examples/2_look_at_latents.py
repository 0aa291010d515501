"""What do latents look like? `python examples/2_look_at_latents.py`, after 1_train.py.

Are they Gaussian, how many directions do they use, do they show where the point is, and how far
ahead are they predicted?
"""

import os

import torch

import gjwm
from gjwm.evaluation.geometry import embedding_report
from gjwm.evaluation.probes import knn_readout, linear_readout, r2_score

SMALL = "GJWM_SMALL" in os.environ  # as the tests run it


@torch.inference_mode()
def main():
    model = gjwm.WorldModel.load("examples-output/two-room.pt")
    origin = model.origin  # a model knows where it comes from
    episodes = gjwm.collect(
        origin.env_id,
        **origin.env_kwargs,
        behaviour=origin.behaviour,
        episodes=10 if SMALL else 100,
        length=origin.length,
        seed=1_000_000,  # episodes that training never saw
        path="data/examples-held-out",
        workers=0 if SMALL else None,
    )
    o, a, position = (
        torch.stack([torch.from_numpy(getattr(e, name)) for e in episodes])
        for name in ("o", "a", "position")
    )
    z = model.encode(o)  # (E, T+1, D)

    geometry = embedding_report(z)
    for name in ("effective_rank", "epps_pulley", "condition_number"):
        print(f"{name}: {geometry[name]:.2f}, a Gaussian's {geometry[f'{name}_ideal']:.2f}")

    half = len(z) // 2  # probes are fitted on one half and scored on the other
    zs, ys = ([x[s].flatten(0, 1) for s in (slice(half), slice(half, None))] for x in (z, position))
    for readout in (linear_readout, knn_readout):
        r2 = r2_score(readout(zs[0], ys[0])(zs[1]), ys[1])
        print(f"position by {readout.__name__}: R² {r2:.3f}")

    rollout = model.rollout(z[:, 0], a)  # open loop: the first latent and the actions
    for k in (1, 5, 10):
        r2 = r2_score(rollout[:, k], z[:, k])
        print(f"{k} steps ahead: R² {r2:.2f}, nothing changes {r2_score(z[:, 0], z[:, k]):.2f}")
    return geometry


if __name__ == "__main__":
    main()
