"""Gymnasium environments of gjwm, registered under "gjwm/<name>-v0" when this package is imported.

    gymnasium.make("gjwm.envs:gjwm/reacher-easy-v0", obs="pixels")

Every task of the DeepMind Control suite is "gjwm/<domain>-<task>-v0" (`gjwm.envs.control_suite`),
and with goals "gjwm/<domain>-<task>-goal-v0" (`gjwm.envs.goals`). Any other Gymnasium environment
is "gjwm/gym-v0" with its id as `name` (`gjwm.envs.gym_env`). The rest are worlds of this package,
most of them torch-native: many episodes are one batch of tensors.

    gjwm/two-room-v0                  a dot, a wall and a door (`gjwm.envs.two_room`)
    gjwm/two-room-slippery-v0         the same with a shortcut over ice
    gjwm/two-room-noisy-v0            the same with wind along the wall
    gjwm/point-maze-v0                a ball with momentum in a maze (`gjwm.envs.point_maze`)
    gjwm/point-maze-<maze>-v0         open, u, cross, rooms, medium, spiral
    gjwm/push-v0                      a disc pushes a block to a pose (`gjwm.envs.push`)
    gjwm/torch-pendulum-swingup-v0    dm_control's pendulum in torch (`gjwm.envs.pendulum`)
    gjwm/torch-cartpole-swingup-v0    dm_control's cartpole in torch (`gjwm.envs.cartpole`)
    gjwm/fork-v0                      a road whose branch nobody chooses (`gjwm.envs.fork`)
    gjwm/arena-two-room-v0            stable-worldmodel's TwoRoom (`gjwm.envs.arena`)
    gjwm/arena-push-t-v0              its Push-T (`gjwm.envs.arena_push_t`)
    gjwm/arena-reacher-v0             its Reacher (`gjwm.envs.arena_reacher`)
    gjwm/arena-cube-v0                its cube, of ogbench (`gjwm.envs.arena_cube`)

`make_vec(id, n)` makes many environments of any id at once (`gjwm.envs.vector`). Nothing heavy is
imported until an environment is made."""

if __name__ != "gjwm.envs":
    raise ImportError(
        f"import gjwm.envs, not {__name__!r}: the folder envs/ is installed as gjwm.envs."
    )

from typing import Any

import gymnasium

from gjwm.envs.task_names import MAZES, TASKS


def _register(name: str, entry: str, vector: str | None = None, **kwargs: Any) -> None:
    """The id "gjwm/<name>-v0" for a class of this package. Our environments check actions and keep
    time limits themselves."""
    gymnasium.register(
        f"gjwm/{name}-v0",
        entry_point=f"gjwm.envs.{entry}",
        vector_entry_point=None if vector is None else f"gjwm.envs.{vector}",
        kwargs=kwargs,
        order_enforce=False,
        disable_env_checker=True,
    )


for _domain, _task in TASKS:
    _kwargs = {"domain": _domain, "task": _task, "renderer": "fast"}
    _register(f"{_domain}-{_task}", "control_suite:ControlSuiteEnv", **_kwargs)
    _register(f"{_domain}-{_task}-goal", "goals:make_goal_task", **_kwargs)
_register("gym", "gym_env:GymEnv")
_register("fork", "fork:ForkEnv")
_register("arena-two-room", "arena:ArenaTwoRoomEnv")
_register("arena-push-t", "arena_push_t:ArenaPushTEnv")
_register("arena-reacher", "arena_reacher:ArenaReacherEnv")
_register("arena-cube", "arena_cube:ArenaCubeEnv")

_ICE = {"door": 0.8, "shortcut": 0.35, "goal": "other-room"}
_WIND = {"corridor": 0.2, "goal": "other-room"}
# id: (module, class name without Env or VectorEnv, arguments)
_TORCH_NATIVE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "two-room": ("two_room", "TwoRoom", {}),
    "two-room-slippery": ("two_room", "TwoRoom", _ICE),
    "two-room-noisy": ("two_room", "TwoRoom", _WIND),
    "point-maze": ("point_maze", "PointMaze", {}),
    **{f"point-maze-{maze}": ("point_maze", "PointMaze", {"maze": maze}) for maze in MAZES},
    "push": ("push", "Push", {}),
    "torch-pendulum-swingup": ("pendulum", "Pendulum", {}),
    "torch-cartpole-swingup": ("cartpole", "Cartpole", {}),
}
for _id, (_module, _class, _kwargs) in _TORCH_NATIVE.items():
    _register(_id, f"{_module}:{_class}Env", f"{_module}:{_class}VectorEnv", **_kwargs)


def __getattr__(name: str) -> Any:
    if name == "make_vec":  # imports torch
        from gjwm.envs.vector import make_vec

        return make_vec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
