"""The DeepMind Control suite as Gymnasium environments. The only module that knows dm_control."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from gymnasium import spaces

from gjwm.envs.common import (
    WORDS,
    StackedFrames,
    check_choices,
    check_observed,
    checked_action,
    checked_state,
    from_words,
    get_physics,
    observation_space,
    put,
    set_physics,
    state_option,
    to_words,
)
from gjwm.envs.rendering import LOCK, FaithfulRenderer, FastRenderer, NoContexts, prepare_backend
from gjwm.envs.suite_tasks import goal_space, joint_positions
from gjwm.envs.task_names import TASKS
from gjwm.envs.variation import Variation
from gjwm.envs.workers import cores

# Arrays of the *model* that some task redraws at each reset (targets, damping, terrain); part of an
# environment's state.
_EPISODE_FIELDS = (
    *("body_pos", "body_quat", "geom_pos", "geom_quat", "geom_size", "site_pos", "site_size"),
    *("light_pos", "dof_damping", "wrap_prm"),
)
_TERRAIN = ("hfield_data",)  # 40,000 numbers, which one task redraws

_RENDERERS = {"fast": FastRenderer, "faithful": FaithfulRenderer}
_UNBOUNDED = 1e10  # what dm_control writes as the bound of an actuator without one


class ControlSuiteEnv(StackedFrames):
    """A task of dm_control's suite, from its state vector, from pixels, or both.

    Action space: `Box(-1, 1, (A,), float32)`; clipped to these bounds, then rescaled to the
    task's own. Each action is applied for `action_repeat` control steps.

    Observation space: `"state"` (`Box(-inf, inf, (S,), float32)`): the task's own observation,
    flattened in its order; `"pixels"` (`Box(0, 255, (3 * frame_stack, size, size), uint8)`): RGB
    frames, oldest first, newest last; `"both"` (`Dict`): `"pixels"` and `"state"`. After a reset or
    `set_state` the frame stack repeats the first frame.

    Reward: the task's own, in [0, 1] per control step, summed over `action_repeat`.

    Start and end: the task's own initial distribution, drawn from the seed; later resets go on
    from there. `terminated` only where the task itself ends with discount 0, which of all tasks
    only lqr does; the time limit (1000 control steps, lqr has none) is `truncated`.

    Reaching goals: `position` is compared with `success_radius`: see `gjwm.envs.suite_tasks`.

    Args:
        domain, task: names in `dm_control.suite`; set by the id.
        obs: "state", "pixels" or "both".
        size: side of the picture, pixels.
        camera: camera id; -1: the free one; None: 2 for quadruped, else 0.
        action_repeat: control steps per action.
        frame_stack: pictures per observation.
        max_episode_steps: actions per episode, no more than the task's time limit; None: that.
        hidden: names of geoms, sites or bodies left out of pictures.
        render_mode: "rgb_array" for `render()`.
        renderer: "fast": no shadows, reflections, skybox or multisampling, or "faithful":
            dm_control's own pictures to the last bit, which take 9 to 27 times as long. The two
            look different: never mix them in one dataset, which keeps the choice.
        variation: what differs between episodes: factors of `gjwm.envs.variation`.

    Raises:
        ValueError: for an unknown task or hidden name, an action of another shape or with NaN, a
            state of another size.
        RuntimeError: when pixels are asked for and the machine has no headless OpenGL."""

    def __init__(
        self,
        *,
        domain: str,
        task: str,
        obs: str = "state",
        size: int = 64,
        camera: int | None = None,
        action_repeat: int = 1,
        frame_stack: int = 1,
        max_episode_steps: int | None = None,
        hidden: Sequence[str] = (),
        render_mode: str | None = None,
        renderer: str = "fast",
        variation: Mapping[str, bool | float] | Sequence[str] | None = None,
    ):
        check_observed(obs, size, frame_stack, action_repeat, render_mode)
        check_choices(renderer=(renderer, tuple(_RENDERERS)))
        draws = obs != "state" or render_mode is not None
        suite = _load(domain, task, draws=draws, skybox=renderer == "faithful")
        self.obs, self.action_repeat = obs, action_repeat
        self.render_mode, self.domain, self.task_name = render_mode, domain, task
        self._physics, self._task = suite.physics, suite.task
        self._model, self._data = self._physics.model.ptr, self._physics.data.ptr
        terrain = _TERRAIN if (domain, task) == ("quadruped", "escape") else ()
        self._drawn = _EPISODE_FIELDS + terrain
        self._substeps = round(suite.control_timestep() / self._physics.timestep())
        self._limit = suite._step_limit  # control steps; dm_control has no public name for it
        if max_episode_steps is not None:
            self.check_length(max_episode_steps)
            self._limit = min(self._limit, action_repeat * max_episode_steps)
        self._hide(hidden)
        camera = camera if camera is not None else {"quadruped": 2}.get(domain, 0)
        if not -1 <= camera < self._model.ncam:
            raise ValueError(
                f"{domain} has the cameras 0 to {self._model.ncam - 1} and the free one, -1; "
                f"camera={camera} does not exist."
            )
        self._variation = Variation(variation, self._model, camera) if variation else None
        self._word = 0
        self.renderer = renderer
        self._renderer = _RENDERERS[renderer](size, camera)
        bounds = suite.action_spec()
        low, high = np.asarray(bounds.minimum, np.float64), np.asarray(bounds.maximum, np.float64)
        if (high >= _UNBOUNDED).any():  # lqr: one unit of ours is one of theirs
            low, high = np.full(bounds.shape, -1.0), np.ones(bounds.shape)
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        self.action_space = spaces.Box(-1.0, 1.0, bounds.shape, np.float32)
        self._start_frames(frame_stack)
        state = None
        if obs != "pixels":
            with self._physics.reset_context():
                self._task.initialize_episode(self._physics)
            state = spaces.Box(-np.inf, np.inf, self.state_vector().shape, np.float32)
        self.observation_space = observation_space(obs, size, frame_stack, state)
        goal = goal_space(domain)
        self._position_of, self.success_radius = goal.position, goal.radius
        self._steps = 0
        self._simulator: _Simulator | None = None

    def check_length(self, max_episode_steps: int) -> None:
        """ValueError for a number of actions that the task's own time limit does not allow."""
        if max_episode_steps < 1 or self.action_repeat * (max_episode_steps - 1) >= self._limit:
            raise ValueError(
                f"{self.domain}-{self.task_name} ends after {self._limit:g} control steps, so "
                f"max_episode_steps must be 1 to {math.ceil(self._limit / self.action_repeat)} "
                f"with action_repeat={self.action_repeat}, got {max_episode_steps}."
            )

    def _hide(self, names: Sequence[str]) -> None:
        import mujoco

        invisible = 5  # groups above 2 are not drawn by default
        model, kinds = self._model, mujoco.mjtObj
        for name in names:
            body, geom, site = (
                mujoco.mj_name2id(model, kind, name)
                for kind in (kinds.mjOBJ_BODY, kinds.mjOBJ_GEOM, kinds.mjOBJ_SITE)
            )
            if max(body, geom, site) < 0:
                raise ValueError(
                    f"{self.domain} has no body, geom or site named {name!r} to hide; "
                    f"env.hidden=[] hides nothing."
                )
            if body >= 0:
                model.geom_group[model.geom_bodyid == body] = invisible
            if geom >= 0:
                model.geom_group[geom] = invisible
            if site >= 0:
                model.site_group[site] = invisible

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode -> (observation, info). `options={"state": s}` starts from a state of
        `get_state`."""
        super().reset(seed=seed)
        state = state_option(options)
        # A generator of its own for each episode: one word then says all that it will draw, see
        # `get_state`.
        self._word = int(self.np_random.integers(2**32, dtype=np.uint32))
        self._task._random = np.random.RandomState(self._word)
        if self._variation is not None:
            self._variation.apply(self._model, self._word)
        with self._physics.reset_context():
            self._task.initialize_episode(self._physics)
        self._steps = 0
        self._frames.clear()
        if state is not None:
            self.set_state(state)
        return self.observe(), {}

    def step(self, action):
        """Apply action (A,) in [-1, 1] -> (observation, reward, terminated, truncated, info)."""
        control = self._control(action, self.action_space.shape)
        reward, discount = 0.0, None
        for _ in range(self.action_repeat):
            self._task.before_step(control, self._physics)
            self._physics.step(self._substeps)
            self._task.after_step(self._physics)
            reward += float(self._task.get_reward(self._physics) or 0.0)
            self._steps += 1
            discount = self._task.get_termination(self._physics)
            if discount is not None or self._steps >= self._limit:
                break
        terminated = discount is not None and discount == 0.0
        truncated = not terminated and (discount is not None or self._steps >= self._limit)
        if self.obs != "state":
            self._frames.append(self.picture())
        return self.observe(), reward, terminated, truncated, {}

    def _control(self, action: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Actions in [-1, 1] -> the task's units, float64."""
        action = checked_action(action, shape, f"{self.domain}-{self.task_name}")
        return self._middle + np.clip(action, -1, 1).astype(np.float64) * self._half

    def state_vector(self) -> np.ndarray:
        """The task's own observation (S,), whatever this environment observes."""
        parts = self._task.get_observation(self._physics).values()
        return np.concatenate([np.atleast_1d(part).ravel() for part in parts]).astype(np.float32)

    def picture(self) -> np.ndarray:
        """uint8 (3, size, size): what is observed and shown."""
        scene = (self._physics,) if self.renderer == "faithful" else (self._model, self._data)
        picture = self._renderer.picture(*scene)
        if self._variation is None:
            return picture
        return self._variation.draw_over(picture, self._word, self._data.time)

    def get_state(self) -> np.ndarray:
        """(X,) float64, everything the future depends on but the episode's clock, and so its time
        limit.

        MuJoCo's integration state; what this episode drew in the model (targets, damping, ...); the
        sensors' readings, which are of the last step; the episode's seed, from which its variation
        comes; and the generator of the episodes to come, 32 bits to an entry. Tasks draw at resets
        only."""
        physics, fields = get_physics(self._model, self._data), map(np.ravel, self._fields())
        return np.concatenate([physics, *fields, [float(self._word)], to_words(self.np_random)])

    def _fields(self) -> list[np.ndarray]:
        return [*(getattr(self._model, name) for name in self._drawn), self._data.sensordata]

    def set_state(self, state: np.ndarray) -> None:
        """Go to a state of `get_state`; the frame stack then repeats its picture. The episode's
        clock goes on."""
        count, (*fields, sensors) = get_physics(self._model, self._data).size, self._fields()
        drawn = sum(field.size for field in fields)
        expected = count + drawn + sensors.size + 1 + WORDS
        state = checked_state(state, expected, self.domain)
        self._word = int(state[-WORDS - 1])
        if self._variation is not None:
            self._variation.apply(self._model, self._word)
        put(fields, state[count:])
        set_physics(self._model, self._data, state[:count])
        # It reads sensors of force and acceleration anew, where a step leaves them as they were
        # before it.
        sensors[...] = state[count + drawn : -WORDS - 1]
        from_words(self.np_random, state[-WORDS:])
        self._frames.clear()

    @property
    def position(self) -> np.ndarray:
        """(P,) float64: what success is measured on, see the class."""
        return self._position_of(self._model, np.array(self._data.qpos))

    def image_position(self, position: np.ndarray) -> np.ndarray | None:
        """Where positions (..., P) are seen in a picture: (..., 2), shares of its width and height
        from the top left corner.

        None in domains whose position is no point on the ground, or seen by a free camera."""
        height = {"reacher": 0.01, "point_mass": 0.01}.get(self.domain)  # m, of what moves there
        camera = self._renderer.camera_id
        if height is None or camera < 0:
            return None
        position = np.asarray(position, np.float64)
        point = np.concatenate([position, np.full_like(position[..., :1], height)], -1)
        seen = (point - self._data.cam_xpos[camera]) @ self._data.cam_xmat[camera].reshape(3, 3)
        # a camera looks along its -z
        half = -seen[..., 2:] * np.tan(np.radians(self._model.cam_fovy[camera]) / 2)
        return 0.5 + 0.5 * seen[..., :2] * [1.0, -1.0] / half

    def true_state(self) -> dict[str, np.ndarray]:
        """Named variables for probes: position (P,), qpos with every hinge as cos and sin, qvel."""
        qpos = np.array(self._data.qpos)
        return {
            "position": self.position,
            "qpos": joint_positions(self._model, qpos, signed=True),
            "qvel": np.array(self._data.qvel),
        }

    def simulate(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """True positions under many action sequences, without changing this environment.

        Args:
            states: (B, X) from `get_state`.
            actions: (B, N, H, A) in [-1, 1], each applied for `action_repeat` control steps.

        Returns:
            (B, N, H+1, P) float32, index 0 the start.

        Raises:
            ValueError: for tasks that turn actions into controls in a way of their own."""
        if self._simulator is None:
            self._simulator = _Simulator(self)
        return self._simulator.positions(states, actions)

    def __deepcopy__(self, memo: dict[int, Any]) -> ControlSuiteEnv:
        """An independent environment in the same state, which draws with the same OpenGL context.

        Many times cheaper than making another one."""
        other = copy.copy(self)
        memo[id(self)] = other
        other._physics = self._physics.copy(share_model=False)
        other._physics._contexts = NoContexts()
        other._model, other._data = other._physics.model.ptr, other._physics.data.ptr
        other._task = copy.copy(self._task)
        other._task._random = copy.deepcopy(self._task._random)
        other._np_random = copy.deepcopy(self._np_random)
        other._frames = copy.copy(self._frames)
        other._simulator = None
        return other

    def close(self) -> None:
        """Let go of the OpenGL contexts, which are freed with the last copy that uses them. A later
        picture opens new ones."""
        self._renderer = type(self._renderer)(self._renderer.size, self._renderer.camera_id)


# In the place of dm_control's gradient of 800 x 4800 pixels, which is 11.5 of a model's 11.8 MB and
# which the fast renderer never draws: every lane of a batch has a model of its own.
_NO_SKY = b"""<mujoco><asset>
  <texture name="skybox" type="skybox" builtin="flat" width="1" height="6"/>
</asset></mujoco>"""


def _load(domain: str, task: str, *, draws: bool, skybox: bool):
    """dm_control's environment, with the OpenGL choice made before dm_control is imported."""
    if (domain, task) not in TASKS:
        names = ["-".join(names) for names in TASKS]
        near = get_close_matches(f"{domain}-{task}", names, n=3, cutoff=0.4) or names
        raise ValueError(
            f"dm_control's suite has no task '{domain}-{task}'; the nearest are {', '.join(near)}."
        )
    # One at a time: OpenGL is chosen by environment variables, and the sky is changed for all.
    with LOCK:
        prepare_backend(draws, "dm_control.suite")
        from dm_control import suite

        assets, sky = suite.common.ASSETS, "./common/skybox.xml"
        kept = assets[sky]
        try:
            assets[sky] = kept if skybox else _NO_SKY
            env = suite.load(domain, task, task_kwargs={"random": 0})
        finally:
            assets[sky] = kept
    env.physics._contexts = NoContexts()
    return env


class _Simulator:
    """mujoco.rollout on a copy of an environment's model: C threads, no Python per step."""

    rows = 8192  # rollouts at a time, which bounds memory

    def __init__(self, env: ControlSuiteEnv):
        from dm_control.rl import control
        from dm_control.suite import base

        if type(env._task).before_step not in (base.Task.before_step, control.Task.before_step):
            raise ValueError(
                f"{env.domain}-{env.task_name} turns actions into controls in its own way, which "
                "the batched simulator does not know; step environments instead."
            )
        import mujoco
        from mujoco import rollout

        self.env, self.model = env, copy.copy(env._model)
        self.pool = rollout.Rollout(nthread=cores())
        self.data = [mujoco.MjData(self.model) for _ in range(cores())]

    def positions(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        import mujoco

        env = self.env
        states, actions = np.asarray(states, np.float64), np.asarray(actions)
        if states.ndim != 2 or actions.ndim != 4 or len(states) != len(actions):
            raise ValueError(
                f"simulate expects states (B, X) and actions (B, N, H, A), got {states.shape} and "
                f"{actions.shape}."
            )
        envs, candidates, horizon, _ = actions.shape
        count = get_physics(self.model, self.data[0]).size
        start, warm = (
            np.stack([self._extract(s[:count], part) for s in states])
            for part in (mujoco.mjtState.mjSTATE_FULLPHYSICS, mujoco.mjtState.mjSTATE_WARMSTART)
        )
        controls = env._control(actions, (envs, candidates, horizon, *env.action_space.shape))
        repeat = env.action_repeat * env._substeps
        # What an episode drew in the model differs between envs: one rollout per set.
        drawn = sum(getattr(self.model, name).size for name in env._drawn)
        fields = states[:, count : count + drawn]
        masses = env._variation is not None and "mass" in env._variation.strength
        groups = np.split(np.arange(envs), envs if masses or self._moves(fields) else 1)
        qpos = np.empty((envs, candidates, horizon + 1, self.model.nq))
        # FULLPHYSICS begins with time, then qpos
        qpos[:, :, 0] = start[:, None, 1 : 1 + self.model.nq]
        for group in groups:
            if masses:
                env._variation.apply(self.model, int(states[group[0], -WORDS - 1]))
            put((getattr(self.model, name) for name in env._drawn), fields[group[0]])
            flat = controls[group].reshape(-1, horizon, controls.shape[-1])
            begin, heat = (np.repeat(x[group], candidates, 0) for x in (start, warm))
            ends = np.empty((len(flat), horizon, self.model.nq))
            for low in range(0, len(flat), self.rows):
                part = slice(low, low + self.rows)
                control, warmth = np.repeat(flat[part], repeat, 1), heat[part]
                states_out, _ = self.pool.rollout(
                    self.model, self.data, begin[part], control, initial_warmstart=warmth
                )
                ends[part] = states_out[:, repeat - 1 :: repeat, 1 : 1 + self.model.nq]
            qpos[group, :, 1:] = ends.reshape(len(group), candidates, horizon, -1)
        return env._position_of(self.model, qpos).astype(np.float32)

    def _moves(self, fields: np.ndarray) -> bool:
        """Whether the envs' model fields differ in anything that physics sees (a site or an
        invisible target is not)."""
        model, at = self.model, 0
        still = (model.geom_contype == 0) & (model.geom_conaffinity == 0) & (model.geom_bodyid == 0)
        for name in self.env._drawn:
            field = getattr(model, name)
            part = fields[:, at : at + field.size]
            at += field.size
            different = (part != part[0]).any(0)
            if name.startswith("geom_"):
                different = different.reshape(model.ngeom, -1).any(1) & ~still
            if different.any() and name not in ("site_pos", "site_size", "light_pos"):
                return True
        return False

    def _extract(self, state: np.ndarray, part: Any) -> np.ndarray:
        """A part of an integration state, such as the solver's warm start."""
        import mujoco

        full = mujoco.mjtState.mjSTATE_INTEGRATION
        out = np.empty(mujoco.mj_stateSize(self.model, part))
        state = np.ascontiguousarray(state)
        mujoco.mj_extractState(self.model, state, int(full), out, int(part))
        return out
