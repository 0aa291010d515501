"""Collect episodes, train a world model on them, judge it: `python examples/1_train.py`.

Minutes of a laptop's CPU for a point in two rooms, seen as 64x64 pictures. Leaves
examples-output/two-room.pt for the next program, and examples-output/two-room/ for the last.
"""

import os
from pathlib import Path

import gjwm
from gjwm.evaluation import Evaluation
from gjwm.training.recipe import CalibrateSettings, DecodeSettings, RefineSettings, TrainSettings

SMALL = "GJWM_SMALL" in os.environ  # as the tests run it: seconds, and a bad model


def main():
    out = Path("examples-output")
    out.mkdir(exist_ok=True)

    # Who acts decides what a model can learn: here mostly an expert that walks through the door.
    data = gjwm.collect(
        "gjwm/two-room-v0",
        obs="pixels",
        episodes=6 if SMALL else 1000,
        length=20 if SMALL else 60,
        behaviour={"scripted": 0.75, "coloured": 0.25},
        path="data/examples-two-room",
        workers=0 if SMALL else None,
    )

    # Encoder and dynamics together, then the spreads that they predict, then a decoder for films.
    recipe = gjwm.Recipe(
        latent_dim=16,
        train=TrainSettings(steps=10 if SMALL else 2000, batch=64),
        refine=RefineSettings(steps=0),
        calibrate=CalibrateSettings(episodes=4 if SMALL else 200, horizon=4 if SMALL else 12),
        decode=DecodeSettings(steps=5 if SMALL else 600),
    )
    model = gjwm.train(data, recipe)
    model.save(out / "two-room.pt")
    model.export(out / "two-room")

    # Goal images, beside the same planner on the true simulator, random actions, standing still.
    short = dict(episodes=8, length=20, pairs=2, steps=4, horizon=4, goal_offset=4, probe_steps=5)
    report = gjwm.evaluate(model, Evaluation(**short) if SMALL else Evaluation())
    planning = report["planning"]
    for name, attempts in {"model": planning, **planning}.items():
        if isinstance(attempts, dict) and "success_rate" in attempts:
            rate, (low, high) = attempts["success_rate"], attempts["ci95"]
            print(f"{name:8} {rate:5.0%} of the goals [{low:.0%}, {high:.0%}]")


if __name__ == "__main__":
    main()
