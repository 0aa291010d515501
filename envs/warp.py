"""dm_control's tasks on a GPU: MuJoCo Warp steps and draws N simulators at once, torch computes
observations and rewards.

Optional: `pip install 'gjwm[warp]'`. It also runs on a CPU, slowly, which is how it is tested;
there the C simulators of `gjwm.envs.control_vector` are the ones to use. Warp computes in float32:
from one state, one step agrees with MuJoCo to about four digits, while trajectories part ways at
the first contact. Its pictures come from a ray tracer of its own and are those of neither OpenGL
renderer, so a dataset should hold one kind only.

Source: MuJoCo Warp, https://github.com/google-deepmind/mujoco_warp."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from einops import rearrange
from gymnasium.vector.utils import batch_space
from torch import Tensor

from gjwm.envs.common import check_choices, each, observation_space, write
from gjwm.envs.control_suite import ControlSuiteEnv
from gjwm.envs.suite_tasks import ELEMENTS, FORMULAS, sensor_rows
from gjwm.envs.vector import BatchedEnv, Seeds

# point_mass-hard draws the gains of its tendons, which all simulators of a batch would share.
TASKS = tuple(task for task in FORMULAS if task != ("point_mass", "hard"))


class WarpVectorEnv(BatchedEnv):
    """N simulators of one task as one batch on a device; `make_vec(id, n, physics="warp",
    device="cuda")`.

    Spaces, rewards, autoreset and seeds are those of `gjwm.envs.vector`: an episode begins in the
    state in which the single environment with that seed begins (drawn on the CPU, one after the
    other, which is what a reset costs).

    Args:
        single: a `ControlSuiteEnv` of one of `TASKS`, `obs="state"`, whose arguments hold for all;
            it draws where episodes begin. Taken over.
        n: how many, N.
        obs: "state", "pixels" or "both".
        device: None: computed on the CPU, numpy arrays are returned; else computed there, tensors
            are returned.
        contacts: most contacts of a simulator, on average over the batch.
        constraints: most constraint rows of a simulator.

    Raises:
        ImportError: without the extra, naming it.
        ValueError: for tasks without a formula, for arguments that Warp does not follow, and for
            actions of another shape or with NaN, naming the environment.
        RuntimeError: when the physics of an environment diverges or needs more contacts than
            `contacts`, at its episode's end."""

    def __init__(
        self,
        single: ControlSuiteEnv,
        n: int,
        *,
        obs: str = "state",
        device: str | torch.device | None = None,
        contacts: int = 48,
        constraints: int = 96,
    ):
        try:
            import mujoco_warp
            import warp
        except ImportError as error:
            raise ImportError(
                "physics='warp' needs MuJoCo Warp: pip install 'gjwm[warp]'."
            ) from error
        task, model, data = (single.domain, single.task_name), single._model, single._data
        if task not in TASKS:
            raise ValueError(
                f"{'-'.join(task)} has no batched reward for Warp; choose from "
                f"{', '.join('-'.join(t) for t in TASKS)}."
            )
        if single.render_mode or single.renderer != "fast" or single._variation:
            raise ValueError("Warp draws by itself: leave render_mode, renderer and variation out.")
        check_choices(obs=(obs, ("state", "pixels", "both")))
        super().__init__(single, n, device)
        self._single, self._formula, self.name = single, FORMULAS[task], "-".join(task)
        self.obs, self.frame_stack = obs, single.frame_stack
        self.action_repeat, size = single.action_repeat, single._renderer.size
        self.single_observation_space = observation_space(
            obs, size, self.frame_stack, single.observation_space
        )
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._limit, rest = divmod(single._limit, self.action_repeat)  # actions
        if rest:
            raise ValueError(f"action_repeat must divide the {single._limit} steps of an episode.")
        single.reset(seed=0)  # what a task sets in its model at every reset is now set
        self._mjw, self._wp = mujoco_warp, warp
        # else a line for every kernel
        warp.config.log_level = max(warp.config.log_level, warp.LOG_WARNING)
        warp.init()
        self._where = torch.device("cpu") if device is None else torch.device(device)
        self._stream = torch.cuda.Stream(self._where) if self._where.type == "cuda" else None
        self._graph, self._warm = None, False
        self._middle, self._half = (
            torch.from_numpy(x).to(self._where, torch.float32)
            for x in (single._middle, single._half)
        )
        self._runge_kutta = int(model.opt.integrator) == 1
        with self._on_device():
            self._model = mujoco_warp.put_model(model, batch_sizes={"geom_pos": self.num_envs})
            room = {"nconmax": max(contacts, data.ncon), "njmax": max(constraints, data.nefc)}
            self._data = mujoco_warp.put_data(model, data, nworld=self.num_envs, **room)
            self._fields = _Fields(single, self._model, self._data, self._where)
            self._camera = None if obs == "state" else self._look_through(single._renderer)
        kinds = ("NEFC", "NJMAX_NNZ", "BROADPHASE", "NARROWPHASE", "CCD")
        self._full = sum(int(getattr(mujoco_warp.OverflowType, kind)) for kind in kinds)
        self._generators: list[np.random.Generator | None] = [None] * self.num_envs
        self._steps = np.zeros(self.num_envs, np.int64)  # of the running episodes

    def _look_through(self, renderer: Any) -> _Camera:
        camera, size = renderer.camera_id, renderer.size
        if camera < 0:
            raise ValueError(f"camera={camera} cannot be drawn by Warp; name another.")
        frames = (self.num_envs, self.frame_stack, 3, size, size)
        self._frames = torch.zeros(frames, dtype=torch.uint8, device=self._where)
        return _Camera(self._single._model, self._model, self._data, camera, size)

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        """Warp and torch on one device and, if that is a GPU, on one stream."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._wp.ScopedDevice(self._wp.device_from_torch(self._where)))
            if self._stream is not None:
                outside = torch.cuda.current_stream(self._where)
                self._stream.wait_stream(outside)
                stack.callback(outside.wait_stream, self._stream)
                stack.enter_context(torch.cuda.stream(self._stream))
                stack.enter_context(self._wp.ScopedStream(self._wp.stream_from_torch(self._stream)))
            yield

    def reset(self, *, seed: Seeds = None, options: dict[str, Any] | None = None):
        """Start an episode in every environment -> (observations, infos); `options={"state": (N,
        X)}` says where."""
        seeds = self._seeds(seed)
        gym.vector.VectorEnv.reset(self, seed=next((s for s in seeds if s is not None), None))
        for i, one in enumerate(seeds):
            if one is not None or self._generators[i] is None:
                self._generators[i] = gym.utils.seeding.np_random(one)[0]
        with self._on_device():
            self._begin(np.arange(self.num_envs))
            if options and "state" in options:
                self.set_state(options["state"])
        return self.observe(), {}

    def step(self, actions: Any):
        """Apply actions (N, A) in [-1, 1] -> (observations, rewards, terminations, truncations,
        infos)."""
        actions = self._on(actions)
        with self._on_device():
            self._fields.data("ctrl")[:] = self._middle + actions.clamp(-1, 1) * self._half
            rewards = torch.zeros(self.num_envs, device=self._where)
            for _ in range(self.action_repeat):
                self._advance()
                rewards += self._formula.reward(self._fields)
            self._steps += 1
            ended = self._steps >= self._limit
            rows = ended.nonzero()[0]
            final = self._look()
            observations = final
            if len(rows):
                self._check_physics(rows)
                self._begin(rows)
                observations = each(final, Tensor.clone)
                write(observations, torch.from_numpy(rows).to(self._where), self._look(rows))
        none = np.zeros(self.num_envs, bool)
        if self.device is None:
            observations, final = (each(x, Tensor.numpy) for x in (observations, final))
            return self._results(observations, rewards.double().numpy(), none, ended, {}, final)
        flags = [torch.from_numpy(flag).to(self._where) for flag in (none, ended)]
        infos = {"final_obs": final, "_final_obs": flags[1].clone()} if len(rows) else {}
        return observations, rewards, *flags, infos

    def _on(self, actions: Any) -> Tensor:
        """Checked actions as float32 on the device."""
        if (
            isinstance(actions, Tensor)
            and actions.shape == self.action_space.shape
            and bool(actions.isfinite().all())
        ):
            return actions.detach().to(self._where, torch.float32)
        return torch.from_numpy(self._checked(actions).astype(np.float32)).to(self._where)

    def _advance(self) -> None:
        """One control step, as dm_control makes it; on a GPU it is recorded the second time and
        replayed from then on."""
        if self._stream is None or not self._warm:
            self._control_step()
            self._warm = True
            return
        if self._graph is None:
            with self._wp.ScopedCapture() as capture:
                self._control_step()
            self._graph = capture.graph
        self._wp.capture_launch(self._graph)

    def _control_step(self) -> None:
        mjw, m, d = self._mjw, self._model, self._data
        for k in range(self._single._substeps):
            if k or self._runge_kutta:
                mjw.step(m, d)
            else:
                mjw.step2(m, d)  # the first half was made at the end of the last step
        mjw.step1(m, d)

    def _begin(self, rows: np.ndarray) -> None:
        """Put the simulators at `rows` (n,) where the single environments' next episodes begin."""
        env, parts = self._single, []
        for i in rows:
            env._np_random = self._generators[i]
            env.reset()
            data = env._data
            fields = (data.qpos, data.qvel, data.qacc_warmstart, env._model.geom_pos)
            parts.append([np.array(x) for x in fields])
        self._put(rows, *(np.stack(part) for part in zip(*parts)))
        self._steps[rows] = 0

    def _put(self, rows: np.ndarray, qpos: Any, qvel: Any, warmstart: Any, geom_pos: Any) -> None:
        at, f = torch.from_numpy(rows).to(self._where), self._fields
        qpos, qvel, warmstart, geom_pos = (
            torch.as_tensor(x, dtype=torch.float32, device=self._where)
            for x in (qpos, qvel, warmstart, geom_pos)
        )
        f.data("qpos")[at], f.data("qvel")[at], f.data("qacc_warmstart")[at] = qpos, qvel, warmstart
        f.data("ctrl")[at], f.data("time")[at] = 0, 0
        f.geom_pos[at] = geom_pos
        # Warp takes what is fixed to the world to stand where it stood at first.
        still = torch.from_numpy(self._single._model.geom_bodyid == 0).to(self._where)
        seen = f.data("geom_xpos")
        seen[at] = torch.where(still[None, :, None], geom_pos, seen[at])
        self._mjw.step1(self._model, self._data)  # what follows from positions and velocities

    def _look(self, rows: np.ndarray | None = None) -> Any:
        """Fresh observations of all simulators; or of those at `rows`, whose episodes have just
        begun."""
        at = slice(None) if rows is None else torch.from_numpy(rows).to(self._where)
        seen = {}
        if self.obs != "pixels":
            seen["state"] = torch.cat(self._formula.observe(self._fields), 1)[at].float()
        if self._camera is not None:
            frame = self._camera.picture()[:, None]  # (N, 1, 3, size, size)
            if rows is None:
                self._frames = torch.cat([self._frames[:, 1:], frame], 1)
            else:
                self._frames[at] = frame[at].expand(-1, self.frame_stack, -1, -1, -1)
            # not a view of what the next reset writes into
            seen["pixels"] = self._frames[at].flatten(1, 2).clone()
        return seen if self.obs == "both" else seen[self.obs]

    def _check_physics(self, rows: np.ndarray) -> None:
        finite = self._fields.data("qpos").isfinite().all(1).cpu().numpy()
        full = (self._fields.data("overflow").cpu().numpy() & self._full) != 0
        for i in rows:
            if not finite[i]:
                raise RuntimeError(
                    f"env {i} of {self.name}: the physics state is invalid; reset it."
                )
            if full[i]:
                raise RuntimeError(
                    f"env {i} of {self.name} had too many contacts; raise contacts and constraints."
                )

    def get_state(self) -> np.ndarray:
        """(N, X) float64: qpos, qvel, the solver's warm start, and where geoms stand on their
        bodies (targets)."""
        with self._on_device():
            f = self._fields
            parts = [f.data(name) for name in ("qpos", "qvel", "qacc_warmstart")]
            return torch.cat([*parts, f.geom_pos.flatten(1)], 1).double().cpu().numpy()

    def set_state(self, states: Any) -> None:
        """Go to states (N, X) of `get_state`. The episodes' clocks go on; frame stacks fill as
        steps are made."""
        model = self._single._model
        sizes = [model.nq, model.nv, model.nv, 3 * model.ngeom]
        states = np.asarray(states.cpu() if isinstance(states, Tensor) else states)
        if states.shape != (self.num_envs, sum(sizes)):
            raise ValueError(
                f"expected states {(self.num_envs, sum(sizes))} from get_state, got {states.shape}."
            )
        *parts, geom_pos = np.split(states, np.cumsum(sizes)[:-1], 1)
        with self._on_device():
            rows = np.arange(self.num_envs)
            self._put(rows, *parts, geom_pos.reshape(self.num_envs, -1, 3))

    @property
    def position(self) -> np.ndarray:
        """(N, P) float64: what success is measured on."""
        return self._single._position_of(self._single._model, self._joints("qpos"))

    def true_state(self) -> dict[str, np.ndarray]:
        """Named variables, (N, *) each: position, and joint positions and velocities."""
        joints = {name: self._joints(name) for name in ("qpos", "qvel")}
        return {"position": self.position, **joints}

    def _joints(self, field: str) -> np.ndarray:
        with self._on_device():
            return self._fields.data(field).double().cpu().numpy()

    def observe(self) -> Any:
        """The observations of the current states; frame stacks repeat the current picture."""
        with self._on_device():
            observations = self._look(np.arange(self.num_envs))
        return each(observations, Tensor.numpy) if self.device is None else observations

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of the environment that draws episodes."""
        self._single.close()


class _Fields:
    """`suite_tasks.Simulators` over Warp's arrays, which torch sees without a copy."""

    xp = torch

    def __init__(self, env: ControlSuiteEnv, model: Any, data: Any, device: torch.device):
        import warp

        self._env, self._data, self._device, self._torch = env, data, device, warp.to_torch
        self._seen: dict[Any, Tensor] = {}
        self.geom_pos = warp.to_torch(model.geom_pos)  # (N, geoms, 3)

    def data(self, field: str) -> Tensor:
        """A field of mjData, (N, *field); writing into it is writing into the simulators."""
        if field not in self._seen:
            self._seen[field] = self._torch(getattr(self._data, field))
        return self._seen[field]

    def of(self, field: str, name: str) -> Tensor:
        """The row of a named element, (N, *row), or (1, *row) where all simulators share it."""
        model, kind = self._env._model, ELEMENTS[field.split("_")[0]]
        if kind == "sensor":
            return self.data(field)[:, sensor_rows(model, name)]
        row = getattr(model, kind)(name).id
        if not field.endswith("_size"):
            return self.data(field)[:, row].flatten(1)
        if (field, name) not in self._seen:
            size = np.array(getattr(model, field)[row], np.float32)
            self._seen[field, name] = torch.from_numpy(size).to(self._device)[None]
        return self._seen[field, name]


class _Camera:
    """Warp's ray tracer looking through one camera of every simulator: no shadows, the geoms that
    OpenGL would draw."""

    def __init__(self, host_model: Any, model: Any, data: Any, camera: int, size: int):
        import mujoco_warp
        import warp

        self._mjw, self._model, self._data = mujoco_warp, model, data
        self._context = mujoco_warp.create_render_context(
            host_model,
            nworld=data.nworld,
            cam_res=(size, size),
            render_rgb=True,
            cam_active=[camera],
        )
        self._rgb = warp.zeros((data.nworld, size, size), dtype=warp.vec3)
        self._pixels = warp.to_torch(self._rgb)  # (N, size, size, 3), the same memory

    def picture(self) -> Tensor:
        """uint8 (N, 3, size, size)."""
        self._mjw.refit_bvh(self._model, self._data, self._context)
        self._mjw.render(self._model, self._data, self._context)
        self._mjw.get_rgb(self._context, 0, self._rgb)
        pixels = (255 * self._pixels.clamp(0, 1)).round().to(torch.uint8)
        return rearrange(pixels, "n h w c -> n c h w").contiguous()
