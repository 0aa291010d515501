"""Swing a pendulum up from random data and one goal observation, in about a minute:
`python examples/3_plan_in_your_own_env.py`.

Pendulum-v1 is Gymnasium's. Any environment that is registered there works alike: give its id, as
"module:id" if a module of yours registers it (docs/how-to/environment.md).
"""

import os

import numpy as np

import gjwm
from gjwm.planning import CEM
from gjwm.training.recipe import CalibrateSettings, RefineSettings, TrainSettings

SMALL = "GJWM_SMALL" in os.environ  # as the tests run it: seconds, and a bad model


def main():
    data = gjwm.collect(
        "Pendulum-v1",
        episodes=4 if SMALL else 100,
        length=20 if SMALL else 100,
        path="data/examples-pendulum",
        workers=0,
    )
    recipe = gjwm.Recipe(
        latent_dim=3,
        train=TrainSettings(steps=5 if SMALL else 600, batch=128),
        refine=RefineSettings(steps=0),  # such short trainings need neither
        calibrate=CalibrateSettings(episodes=0),
    )
    model = gjwm.train(data, recipe)

    upright = np.array([1.0, 0.0, 0.0], np.float32)  # cosine, sine and speed of the goal
    planner = CEM(samples=256, iterations=4)
    agent = gjwm.MPCAgent(model, planner, goal=upright, horizon=20)

    env = gjwm.make_env("Pendulum-v1")
    o, _ = env.reset(seed=0)
    heights = []
    for _ in range(5 if SMALL else 120):
        a = agent.act(o[None])[0]  # one lane
        o, *_ = env.step(np.asarray(a))
        heights.append(o[0])
    print(f"height in the last 30 steps, between -1 and 1: {np.mean(heights[-30:]):.2f}")
    return heights


if __name__ == "__main__":
    main()
