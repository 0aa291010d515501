"""Gaussian joint-embedding world models: collect, train, evaluate, act.

    data = gjwm.collect("gjwm/reacher-easy-v0", obs="pixels", episodes=500)
    model = gjwm.train(data)
    report = gjwm.evaluate(model)
    agent = gjwm.MPCAgent(model, goal=image)
    gjwm.film(model, "goals.mp4")

Names are imported when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gjwm.data.handle import collect
    from gjwm.envs import make_vec
    from gjwm.envs.making import make_env
    from gjwm.evaluation import evaluate
    from gjwm.models.world_model import WorldModel
    from gjwm.planning import MPCAgent
    from gjwm.reporting.films import film
    from gjwm.training.recipe import Recipe, train

__version__ = "0.1.0"
__all__ = [
    "MPCAgent",
    "Recipe",
    "WorldModel",
    "__version__",
    "collect",
    "evaluate",
    "film",
    "make_env",
    "make_vec",
    "train",
]

_HOMES = {
    "MPCAgent": "gjwm.planning",
    "Recipe": "gjwm.training.recipe",
    "WorldModel": "gjwm.models.world_model",
    "collect": "gjwm.data.handle",
    "evaluate": "gjwm.evaluation",
    "film": "gjwm.reporting.films",
    "make_env": "gjwm.envs.making",
    "make_vec": "gjwm.envs",
    "train": "gjwm.training.recipe",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
