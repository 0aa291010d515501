"""Gymnasium environments of gjwm, registered under "gjwm/<name>-v0" when this package is imported.

    gymnasium.make("gjwm.envs:gjwm/reacher-easy-v0", obs="pixels")

Every task of the DeepMind Control suite is "gjwm/<domain>-<task>-v0" (`gjwm.envs.control_suite`), and with goals
"gjwm/<domain>-<task>-goal-v0" (`gjwm.envs.goals`). Any other Gymnasium environment is "gjwm/gym-v0" with its id as `name`
(`gjwm.envs.gym_env`). "gjwm/two-room-v0" and "gjwm/two-room-slippery-v0", which adds a shortcut over ice, are torch-native
worlds (`gjwm.envs.two_room`), also through gymnasium.make_vec; "gjwm/fork-v0" (`gjwm.envs.fork`) is a road whose branch nobody
chooses. `make_vec(id, n)` makes many environments of any id at once (`gjwm.envs.vector`). Nothing heavy is imported until an
environment is made.
"""

if __name__ != "gjwm.envs":
    raise ImportError(f"import gjwm.envs, not {__name__!r}: the folder envs/ is installed as gjwm.envs.")

from typing import Any

import gymnasium

from gjwm.envs.task_names import TASKS

for _domain, _task in TASKS:
    for _variant, _entry in (("", "control_suite:ControlSuiteEnv"), ("-goal", "goals:make_goal_task")):
        gymnasium.register(
            f"gjwm/{_domain}-{_task}{_variant}-v0",
            entry_point=f"gjwm.envs.{_entry}",
            kwargs={"domain": _domain, "task": _task, "renderer": "fast"},
            # The env checks actions itself, and its own time limit survives set_state and action repeat.
            order_enforce=False,
            disable_env_checker=True,
        )

gymnasium.register(
    "gjwm/gym-v0",
    entry_point="gjwm.envs.gym_env:GymEnv",
    order_enforce=False,
    disable_env_checker=True,
)

gymnasium.register(
    "gjwm/two-room-v0",
    entry_point="gjwm.envs.two_room:TwoRoomEnv",
    vector_entry_point="gjwm.envs.two_room:TwoRoomVectorEnv",
    order_enforce=False,
    disable_env_checker=True,
)

gymnasium.register(
    "gjwm/fork-v0",
    entry_point="gjwm.envs.fork:ForkEnv",
    order_enforce=False,
    disable_env_checker=True,
)

gymnasium.register(
    "gjwm/two-room-slippery-v0",
    entry_point="gjwm.envs.two_room:TwoRoomEnv",
    vector_entry_point="gjwm.envs.two_room:TwoRoomVectorEnv",
    kwargs={"door": 0.8, "shortcut": 0.35, "goal": "other-room"},
    order_enforce=False,
    disable_env_checker=True,
)


def __getattr__(name: str) -> Any:
    if name == "make_vec":  # imports torch
        from gjwm.envs.vector import make_vec

        return make_vec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
