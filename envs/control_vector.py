"""dm_control's tasks, many at once in one process, from state vectors: C physics back to back,
rewards in one formula."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from gjwm.envs.control_suite import ControlSuiteEnv
from gjwm.envs.suite_tasks import ELEMENTS, FORMULAS, sensor_rows
from gjwm.envs.vector import BatchedEnv, Seeds, cores

# degrees of freedom x physics steps per control step, above which a second thread is worth its
# hand-overs
HEAVY = 60


class ControlSuiteVectorEnv(BatchedEnv):
    """`ControlSuiteEnv`s with `obs="state"`, stepped together; every number is that of the single
    environment, to the last bit.

    What a step costs is less the physics than the Python around it. Here the physics of all
    simulators advances in C without a word in between, their fields are gathered into arrays (N,
    ...), and observation and reward are computed once for all (`gjwm.envs.suite_tasks`). Tasks
    without a formula are asked one by one.

    Args:
        first: one environment, `obs="state"`, whose arguments and time limit hold for all; taken
            over.
        n: how many, N.
        device: None: numpy arrays are returned; else tensors there. The physics is computed on the
            CPU.
        threads: None: one per core where the physics is heavy enough for it (humanoid, walker),
            else one.

    Raises:
        ValueError: for actions of another shape or with NaN, naming the environment.
        RuntimeError: when the physics of an environment diverges, naming it."""

    def __init__(
        self,
        first: gym.Env,
        n: int,
        *,
        device: str | torch.device | None = None,
        threads: int | None = None,
    ):
        super().__init__(first, n, device)
        env: ControlSuiteEnv = first.unwrapped
        self.envs = [env, *(copy.deepcopy(env) for _ in range(self.num_envs - 1))]
        self.action_repeat = env.action_repeat
        self._limit = env._limit  # control steps
        if (outer := _time_limit(first)) is not None:
            self._limit = min(self._limit, outer * env.action_repeat)
        self._seeded = False
        self._physics = _Batch(self.envs, threads)
        self._formula = FORMULAS.get((env.domain, env.task_name))

    def reset(self, *, seed: Seeds = None, options: dict[str, Any] | None = None):
        """Start an episode in every environment -> (observations (N, S), infos); `options={"state":
        (N, X)}` says where."""
        seeds = self._seeds(seed)
        super().reset(seed=next((s for s in seeds if s is not None), None))
        if seed is None and not self._seeded:
            # Copies would all draw what the first one draws.
            seeds = [int(s) for s in np.random.SeedSequence().generate_state(self.num_envs) >> 1]
        self._seeded = True
        for env, one, chosen in zip(self.envs, seeds, self._options(options)):
            env.reset(seed=one, options=chosen)
        return self._out(self._observe()), {}

    def step(self, actions: Any):
        """Apply actions (N, A) in [-1, 1] -> (observations, rewards, terminations, truncations,
        infos)."""
        actions = self._checked(actions)
        controls = self.envs[0]._control(actions, actions.shape)
        rewards, terminated, truncated = self._none_yet()
        running = np.arange(self.num_envs)
        for _ in range(self.action_repeat):
            self._physics.advance(running, controls)
            rewards[running] += self._rewards(running)
            for i in running:
                self.envs[i]._steps += 1
            steps = np.array([env._steps for env in self.envs])
            truncated |= steps >= self._limit
            if self._physics.ends:
                for i in running:
                    discount = self.envs[i]._task.get_termination(self.envs[i]._physics)
                    terminated[i] = discount == 0.0
                    truncated[i] = not terminated[i] and (truncated[i] or discount is not None)
            running = (~(terminated | truncated)).nonzero()[0]
            if not len(running):
                break
        observations = final = self._observe()
        ended = (terminated | truncated).nonzero()[0]
        if len(ended) and self.autoreset:
            observations = observations.copy()
            for i, (observation, _) in zip(ended, self._physics.map(ControlSuiteEnv.reset, ended)):
                observations[i] = observation
        return self._results(observations, rewards, terminated, truncated, {}, final)

    def _observe(self) -> np.ndarray:
        if self._formula is None:
            return np.stack([env.observe() for env in self.envs])
        parts = self._formula.observe(self._physics)
        return np.concatenate(parts, 1, dtype=np.float32, casting="same_kind")

    def _rewards(self, rows: np.ndarray) -> np.ndarray:
        if self._formula is None:
            envs = [self.envs[i] for i in rows]
            return np.array([float(e._task.get_reward(e._physics) or 0.0) for e in envs])
        return self._formula.reward(self._physics)[rows]

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        members = [getattr(env, name) for env in self.envs]
        return tuple(x(*args, **kwargs) if callable(x) else x for x in members)

    def set_state(self, states: Any) -> None:
        """Go to states (N, X) of `get_state`."""
        for env, state in zip(self.envs, self._shared_out(states)):
            env.set_state(state)

    def observe(self) -> Any:
        """The observations (N, S) of the current states."""
        return self._out(self._observe())

    def simulate(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """As `ControlSuiteEnv.simulate`, any B."""
        return self.envs[0].simulate(states, actions)

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of threads and OpenGL contexts."""
        self._physics.close()
        for env in self.envs:
            env.close()


def _time_limit(env: gym.Env) -> int | None:
    """Steps after which a wrapper of `gymnasium.make` truncates."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.TimeLimit):
            return env._max_episode_steps
        env = env.env
    return None


class _Batch:
    """The simulators of a list of environments: advanced together, and read together as
    `suite_tasks.Simulators`."""

    xp = np

    def __init__(self, envs: list[ControlSuiteEnv], threads: int | None):
        import mujoco
        from dm_control.mujoco import Physics
        from dm_control.rl import control
        from dm_control.suite import base

        self.envs, first = envs, envs[0]
        task, physics = type(first._task), type(first._physics)
        self._models, self._datas = [env._model for env in envs], [env._data for env in envs]
        plain = (base.Task, control.Task)
        self._before = task.before_step not in [kind.before_step for kind in plain]
        self._after = task.after_step not in [kind.after_step for kind in plain]
        self.ends = task.get_termination not in [kind.get_termination for kind in plain]
        self._own_step = physics.step is not Physics.step or not first._physics.legacy_step
        self._whole = first._model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
        self._views: dict[Any, list[np.ndarray]] = {}
        self._shapes: dict[Any, tuple[int, ...]] = {}
        self._controls = [data.ctrl for data in self._datas]
        self._alarms = [data.warning.number for data in self._datas]
        heavy = first._model.nv * first._substeps >= HEAVY
        self.threads = min(len(envs), (cores() if heavy else 1) if threads is None else threads)
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def map(self, function: Any, rows: np.ndarray) -> list[Any]:
        """`function` of the environments at `rows`, in threads where that pays: MuJoCo lets go of
        Python's lock."""
        envs = [self.envs[i] for i in rows]
        return list(map(function, envs) if self._pool is None else self._pool.map(function, envs))

    def advance(self, rows: np.ndarray, controls: np.ndarray) -> None:
        """One control step of the simulators at `rows`, as dm_control makes it."""
        before = np.concatenate(self._alarms)
        if self._pool is None or len(rows) < 2:
            self._advance(rows, controls)
        else:
            shares = np.array_split(rows, self.threads)
            list(self._pool.map(self._advance, shares, [controls] * self.threads))
        after = np.concatenate(self._alarms)
        if (after > before).any():
            self._diverged(int((after > before).argmax()) // len(self._alarms[0]))

    def _advance(self, rows: np.ndarray, controls: np.ndarray) -> None:
        import mujoco

        step, first_half, second_half = mujoco.mj_step, mujoco.mj_step1, mujoco.mj_step2
        substeps = self.envs[0]._substeps
        if self._before or self._after or self._own_step:
            for i in rows:
                env = self.envs[i]
                env._task.before_step(controls[i], env._physics)
                env._physics.step(substeps)
                env._task.after_step(env._physics)
            return
        # dm_control's step leaves positions and velocities, and what follows from them, of the new
        # state: the first half of the next step. (Physics.step, of which this is the inside.)
        models, datas, mine = self._models, self._datas, self._controls
        for i in rows.tolist():
            model, data = models[i], datas[i]
            mine[i][:] = controls[i]
            if self._whole:
                step(model, data, substeps)
            else:
                second_half(model, data)
                if substeps > 1:
                    step(model, data, substeps - 1)
            first_half(model, data)

    def _diverged(self, i: int) -> None:
        import mujoco

        kinds = mujoco.mjtWarning.__members__
        names = [name for name, number in zip(kinds, self._alarms[i]) if number]
        env = self.envs[i]
        raise RuntimeError(
            f"env {i} of {env.domain}-{env.task_name}: the physics state is invalid "
            f"({', '.join(names)}); reset it."
        )

    def _gather(self, key: Any, row: Any) -> np.ndarray:
        """The arrays of all simulators side by side. row: env -> its array, a view that stays true
        as the simulator moves."""
        views = self._views.get(key)
        if views is None:
            rows = [row(env) for env in self.envs]
            self._shapes[key] = (len(rows), *rows[0].shape)
            self._views[key] = views = [view.reshape(-1) for view in rows]
        return np.concatenate(views).reshape(self._shapes[key])

    def data(self, field: str) -> np.ndarray:
        """A field of mjData, (N, *field)."""
        return self._gather(field, lambda env: getattr(env._data, field))

    def of(self, field: str, name: str) -> np.ndarray:
        """The row of a named element, (N, *row)."""
        kind = ELEMENTS[field.split("_")[0]]

        def row(env: ControlSuiteEnv) -> np.ndarray:
            if kind == "sensor":
                return env._data.sensordata[sensor_rows(env._model, name)]
            index = getattr(env._model, kind)(name).id
            return getattr(env._data if hasattr(env._data, field) else env._model, field)[index]

        return self._gather((field, name), row)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
