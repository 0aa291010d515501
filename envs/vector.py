"""Many environments as one: `make_vec` takes any Gymnasium id and picks the way that is fast for
it.

- torch-native worlds: one batch of tensors, their own `VectorEnv`
- dm_control's tasks from `"state"`: one process, simulators in a batch (`gjwm.envs.control_vector`)
- dm_control's tasks from `"pixels"` or `"both"`: worker processes, each with an OpenGL context of
  its own, which its lanes share
- any other, discrete or not: one after the other in this process, or in worker processes where it
  observes pictures

What all of them share. Environment i of `reset(seed=s)` plays the episodes of a single environment
reset with `seed=s + i`, whatever the number of workers. Autoreset is `SAME_STEP`: where an episode
ends, `step` returns the first observation of the next one, and `infos["final_obs"]` the true last
one of the ended, with the mask `infos["_final_obs"]`. Every array or tensor returned is fresh. With
`device=None` results are numpy arrays and `final_obs` is Gymnasium's object array; with a device
they are tensors there, rewards float32, and `final_obs` is a batch of the true next observations of
*all* environments, ready for a replay buffer (on steps where an episode ended)."""

from __future__ import annotations

import copy
import math
import multiprocessing
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from gjwm.envs.common import by_lane, each, write
from gjwm.envs.making import importable, make_env, one_sentence, spec_of, torch_native
from gjwm.envs.workers import Worker, WorkerDied, cores, start_method

CONTROL_SUITE = "gjwm.envs.control_suite:ControlSuiteEnv"
DEATHS = 3  # of a block's workers in a row, without a step in between, that end a run
Seeds = int | Sequence[int | None] | None
Observations = Any  # an array (N, *O), or a (nested) dict of them


def make_vec(
    env_id: str,
    n: int,
    *,
    device: str | torch.device | None = None,
    workers: int | None = None,
    physics: str = "mujoco",
    **kwargs: Any,
) -> VectorEnv:
    """`n` environments of one id as one Gymnasium `VectorEnv`, as the module tells.

    Args:
        env_id: any id of `make_env`: of this package, without a module in front, or any other of
            Gymnasium's.
        n: how many, N.
        device: of the tensors returned; None: numpy arrays. Torch-native worlds and
            `physics="warp"` also compute there.
        workers: processes; 0: this one. None: one per core where pictures are drawn one by one,
            else 0. Scripts that use processes need the usual `if __name__ == "__main__":`.
        physics: "mujoco", or "warp" for MuJoCo Warp (`gjwm.envs.warp`), which a few of dm_control's
            tasks have.
        kwargs: of the environment; with `physics="warp"` also those of `WarpVectorEnv`.

    Raises:
        ValueError: for arguments that cannot work. gymnasium.error.Error: for an unknown id, naming
            the nearest.
        RuntimeError: when pixels are asked for and the machine has no headless OpenGL."""
    if not isinstance(n, int | np.integer) or n < 1 or (workers is not None and workers < 0):
        raise ValueError(f"expected n >= 1 and workers >= 0 or None, got {n!r} and {workers!r}.")
    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={str(device)!r} needs a CUDA GPU, and torch sees none; use device='cpu' or "
            f"None."
        )
    if physics not in ("mujoco", "warp"):
        raise ValueError(f"physics must be 'mujoco' or 'warp', got {physics!r}.")
    spec = spec_of(env_id)
    if physics == "warp" and spec.entry_point != CONTROL_SUITE:
        raise ValueError(f"physics='warp' is for dm_control's tasks, not for {env_id}.")
    if workers and (physics == "warp" or torch_native(spec)):
        raise ValueError(f"{env_id} is one batch in this process; leave workers out.")
    if physics == "warp":
        from gjwm.envs.warp import WarpVectorEnv

        own = {k: kwargs.pop(k) for k in ("obs", "contacts", "constraints") if k in kwargs}
        return WarpVectorEnv(make_env(env_id, **kwargs).unwrapped, n, device=device, **own)
    if torch_native(spec):
        with one_sentence(env_id, kwargs):
            return gym.make_vec(
                importable(env_id),
                num_envs=n,
                vectorization_mode="vector_entry_point",
                device=device,
                **kwargs,
            )
    first = make_env(env_id, **kwargs)  # says what is wrong before any process is started
    pictures = shows_pictures(first.observation_space)
    if spec.entry_point == CONTROL_SUITE and not pictures and not workers:
        from gjwm.envs.control_vector import ControlSuiteVectorEnv

        return ControlSuiteVectorEnv(first, n, device=device)
    if workers is None:
        workers = cores() if pictures else 0
    return EnvVector(first, n, env_id, kwargs, device=device, workers=workers)


def shows_pictures(space: spaces.Space) -> bool:
    """Whether observations hold a picture: an array of uint8 with three axes, at any depth."""
    if isinstance(space, spaces.Dict):
        return any(shows_pictures(part) for part in space.values())
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


class BatchedEnv(VectorEnv):
    """What a batch of environments needs around its simulation: spaces, checks of actions,
    autoreset's results.

    Args:
        single: one of the environments; its spaces and its spec are taken.
        n: how many there are.
        device: None: numpy arrays are returned."""

    # False: an episode that ended goes on, where its world does, instead of making way for the next
    autoreset = True

    def __init__(self, single: gym.Env, n: int, device: str | torch.device | None):
        world = single.unwrapped
        self.num_envs = int(n)
        self.device = None if device is None else torch.device(device)
        self.spec = single.spec
        # how near to a goal's position counts as there
        self.success_radius = getattr(world, "success_radius", None)
        for name in ("way_length", "goal_distance"):  # of any states: one answers for all
            if hasattr(world, name):
                setattr(self, name, getattr(world, name))
        self.name = single.spec.id if single.spec is not None else type(world).__name__
        self.render_mode = single.render_mode
        self.metadata = {**single.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = single.observation_space
        self.single_action_space = single.action_space
        self.action_groups = tuple(getattr(world, "action_groups", ()))  # sizes of one-hot actions
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def __del__(self) -> None:
        """Nothing: gymnasium before 1.3 closes here, even what its constructor refused."""

    # -- the lanes: what a single environment offers, of all (`docs/environments.md`) --------------

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Every environment's method `name` called with the arguments, or its attribute -> one
        result each."""
        raise NotImplementedError

    def get_state(self) -> np.ndarray:
        """(N, X) float64, as the environments' `get_state`."""
        return np.stack(self.call("get_state"))

    def goal_state(self) -> np.ndarray:
        """(N, X) float64: the states of having arrived, where environments have goals."""
        return np.stack(self.call("goal_state"))

    @property
    def position(self) -> np.ndarray:
        """(N, P) float64: what success is measured on."""
        return np.stack(self.call("position"))

    def true_state(self) -> dict[str, np.ndarray]:
        """The environments' named variables, (N, *) each, for probes."""
        lanes = self.call("true_state")
        return {name: np.stack([lane[name] for lane in lanes]) for name in lanes[0]}

    def expert_action(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """(N, A): the scripted policy's, where environments have one."""
        return np.stack(self.call("expert_action", *args, **kwargs))

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One picture per environment."""
        return None if self.render_mode is None else self.call("render")

    def _shared_out(self, states: Any) -> Any:
        """States, one for each environment, or ValueError."""
        if len(states) != self.num_envs:
            raise ValueError(
                f"expected a state for each of {self.num_envs} envs, got {len(states)}."
            )
        return states

    # -- seeds, actions, results -------------------------------------------------------------------

    def _options(self, options: Mapping[str, Any] | None) -> list[Any]:
        """Reset's options of each environment: a "state" (N, X) among them is shared out."""
        if options is None or options.get("state") is None:
            return [options] * self.num_envs
        states = self._shared_out(options["state"])
        return [{**options, "state": state} for state in states]

    def _seeds(self, seed: Seeds) -> list[int | None]:
        """One seed per environment."""
        if seed is None or isinstance(seed, int | np.integer):
            return [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"expected one seed or {self.num_envs}, got {len(seed)}.")
        return [None if one is None else int(one) for one in seed]

    def _checked(self, actions: Any) -> np.ndarray:
        """Actions as an array (N, ...); ValueError naming the environment whose action cannot be
        taken.

        Where actions are one-hot, whole numbers are taken too: (N,), or (N, groups)."""
        if isinstance(actions, Tensor):
            actions = actions.detach().cpu().numpy()
        actions = np.asarray(actions)
        expected = (self.num_envs, *self.single_action_space.shape)
        if self.action_groups and actions.dtype.kind in "iu" and actions.shape != expected:
            actions = self._one_hot(actions)
        if actions.shape != expected:
            raise ValueError(
                f"{self.name} expects actions {expected}, one for each of {self.num_envs} envs, "
                f"got {actions.shape}."
            )
        if not np.isfinite(actions).all():
            i = int(np.argwhere(~np.isfinite(actions))[0, 0])
            raise ValueError(
                f"the action of env {i} of {self.name} holds NaN or infinity: {actions[i]}."
            )
        return actions

    def _one_hot(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers (N,) or (N, groups) -> (N, A)."""
        sizes = self.action_groups
        columns = numbers.reshape(self.num_envs, -1) if len(numbers) == self.num_envs else numbers
        if columns.shape != (self.num_envs, len(sizes)):
            raise ValueError(
                f"{self.name} expects actions {(self.num_envs, len(sizes))}, or one-hot "
                f"{(self.num_envs, *self.single_action_space.shape)}, got {numbers.shape}."
            )
        wrong = ((columns < 0) | (columns >= sizes)).any(1)
        if wrong.any():
            i = int(wrong.argmax())
            raise ValueError(
                f"the action of env {i} of {self.name} is {columns[i].tolist()}; expected numbers "
                f"below {sizes}."
            )
        parts = [np.eye(size, dtype=np.float32)[c] for size, c in zip(sizes, columns.T)]
        return np.concatenate(parts, 1)

    def _none_yet(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rewards, terminations and truncations (N,)."""
        return np.zeros(self.num_envs), *np.zeros((2, self.num_envs), bool)

    def _results(
        self,
        observations: Observations,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        infos: dict[str, Any],
        final: Observations,
    ):
        """What `step` returns, of arrays that nobody else holds. final: last observations, read
        where an episode ended."""
        ended = terminated | truncated
        if ended.any():
            infos["_final_obs"] = ended.copy()
            if self.device is None:
                infos["final_obs"] = by_lane(final, ended)
            else:
                infos["final_obs"] = each(observations, np.copy)
                write(infos["final_obs"], ended, each(final, lambda x: x[ended]))
        if self.device is not None:
            rewards = rewards.astype(np.float32)
        out = self._out
        return out(observations), out(rewards), out(terminated), out(truncated), out(infos)

    def _tensors(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype != object:
            return torch.from_numpy(value).to(self.device)
        return value

    def _out(self, value: Any) -> Any:
        return value if self.device is None else each(value, self._tensors)


# -- one environment after the other, here or in worker processes ----------------------------------


class EnvVector(BatchedEnv):
    """Single environments side by side: in this process, or in worker processes that are replaced
    when they die.

    A worker steps a block of neighbouring environments and writes their observations into memory
    that both processes see. Where one dies, its running episodes are truncated, with reward 0 and
    the observation before the lost step as their last; new episodes begin in a new process, and one
    warning says so. `infos["worker_died"]` (N,), there on that step only, marks the environments
    whose transition is not to be learned from. The third death in a row in one block, without a
    step in between, is an error.

    Args:
        first: an environment that was made with these arguments; taken over.
        n: how many.
        env_id, kwargs: for `make_env`.
        device: None: numpy arrays are returned.
        workers: processes, 0 for none.

    Raises:
        RuntimeError: naming the environment whose own code failed, or saying that a worker cannot
            run."""

    def __init__(
        self,
        first: gym.Env,
        n: int,
        env_id: str,
        kwargs: Mapping[str, Any],
        *,
        device: str | torch.device | None = None,
        workers: int = 0,
    ):
        super().__init__(first, n, device)
        # Gymnasium's own are all "gjwm/gym-v0" to `first.spec`
        self.name = env_id.rpartition(":")[2]
        self._make = (env_id, dict(kwargs))
        parts = np.array_split(np.arange(self.num_envs), min(max(workers, 1), self.num_envs))
        self._blocks = [part.tolist() for part in parts]
        # seeds of the last reset that had any
        self._origin: list[int | None] = [None] * self.num_envs
        self._resets = self._deaths = 0  # since then
        self._turn = 0
        self._lost = [0] * len(self._blocks)  # deaths in a row without a step
        space = self.single_observation_space
        if not workers:
            self._arrays = [_empty(space, self.num_envs) for _ in range(3)]
            self._groups: list[Any] = [_Group(*self._make, self._blocks[0], self._arrays, first)]
            return
        first.close()
        self._memory = [_shared(space, self.num_envs) for _ in range(3)]
        self._arrays = [_arrays(memory) for memory in self._memory]
        self._groups = [self._start(k) for k in range(len(self._blocks))]
        try:
            self._answers()
        except BaseException as error:
            self.close()
            if not isinstance(error, WorkerDied):
                raise
            raise RuntimeError(
                f"{error} while it started; scripts that use processes need `if __name__ == "
                f'"__main__":`, and workers=0 runs everything in this one.'
            ) from error

    @property
    def workers(self) -> int:
        """Worker processes; 0 when everything happens in this one."""
        return len(self.pids)

    @property
    def pids(self) -> list[int]:
        """The worker processes' ids."""
        return [group.process.pid for group in self._groups if isinstance(group, Worker)]

    def _start(self, k: int) -> Worker:
        return Worker(_shared_group, *self._make, self._blocks[k], self._memory)

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start an episode in every environment -> (observations, infos).

        `options` go to all of them; a "state" (N, X) among them is shared out."""
        seeds = self._seeds(seed)
        super().reset(seed=next((s for s in seeds if s is not None), None))
        if any(s is not None for s in seeds):
            self._resets = self._deaths = 0
        else:
            self._resets += 1
        self._origin = [old if new is None else new for old, new in zip(self._origin, seeds)]
        shared_out = self._options(options)
        self._turn = 1 - self._turn
        infos: dict[str, Any] = {}
        for group, block in zip(self._groups, self._blocks):
            mine = [seeds[i] for i in block], [shared_out[i] for i in block]
            group.ask("reset", self._turn, *mine)
        answers, deaths = self._answers_and_deaths()
        for k, death in deaths.items():
            # with seeds nothing is lost: it begins where its predecessor should have
            block = self._blocks[k]
            derived = dict(zip(block, self._derived_seeds(block)))
            again = [derived[i] if seeds[i] is None else seeds[i] for i in block]
            chosen = [shared_out[i] for i in block]
            what = "before its episodes began"
            answers[k] = self._replace(k, death, what, again, chosen, stacklevel=3)
        for answer, block in zip(answers, self._blocks):
            for i, info in zip(block, answer):
                infos = self._add_info(infos, info, i)
        return self._out(each(self._arrays[self._turn], np.copy)), self._out(infos)

    def step(self, actions: Any):
        """Apply actions (N, *A) -> (observations, rewards (N,), terminations (N,), truncations
        (N,), infos)."""
        actions = self._checked(actions)
        self._turn = 1 - self._turn
        for group, block in zip(self._groups, self._blocks):
            group.ask("step", self._turn, actions[block[0] : block[-1] + 1], self.autoreset)
        answers, deaths = self._answers_and_deaths()
        rewards, terminated, truncated = self._none_yet()
        infos: dict[str, Any] = {}
        for k, block in enumerate(self._blocks):
            part = slice(block[0], block[-1] + 1)
            if k in deaths:
                infos |= self._mourn(k, deaths[k], infos)
                truncated[part] = True
                continue
            rewards[part], terminated[part], truncated[part], step_infos, reset_infos = answers[k]
            for i, info in step_infos.items():
                ended = terminated[i] or truncated[i]
                infos = self._add_info(infos, {"final_info": info} if ended else info, i)
            for i, info in reset_infos.items():
                infos = self._add_info(infos, info, i)
            self._lost[k] = 0
        observations = each(self._arrays[self._turn], np.copy)
        return self._results(observations, rewards, terminated, truncated, infos, self._arrays[2])

    def _mourn(self, k: int, death: WorkerDied, infos: dict[str, Any]) -> dict[str, Any]:
        """Begin new episodes in a new process where worker `k` died, and close the books of the old
        ones."""
        block = self._blocks[k]
        write(self._arrays[2], block, each(self._arrays[1 - self._turn], lambda x: x[block]))
        what, seeds = "and its running episodes are truncated", self._derived_seeds(block)
        begun = self._replace(k, death, what, seeds, [None] * len(block), stacklevel=4)
        for i, info in zip(block, begun):
            infos = self._add_info(infos, info, i)
        died = infos.get("worker_died", np.zeros(self.num_envs, bool))
        died[block] = True
        return {**infos, "worker_died": died}

    def _derived_seeds(self, block: list[int]) -> list[int | None]:
        """Seeds for episodes that begin because a worker died; None where no seed was ever given.

        They follow from the last seeds, the resets without any since, and the deaths since, so that
        a run with the same seeds and the same misfortune is the same run."""
        self._deaths += 1
        found: list[int | None] = []
        for origin in (self._origin[i] for i in block):
            if origin is not None:
                words = np.random.SeedSequence([origin, self._resets, self._deaths])
                origin = int(words.generate_state(1)[0] >> 1)
            found.append(origin)
        return found

    def _replace(
        self,
        k: int,
        death: WorkerDied,
        what: str,
        seeds: list[int | None],
        options: list[Any],
        *,
        stacklevel: int,
    ) -> list[dict[str, Any]]:
        """Put a new process in the place of one that died and reset its environments -> their
        infos. Warns of each death."""
        where = f"envs {self._blocks[k][0]} to {self._blocks[k][-1]} of {self.name}"
        while True:
            self._lost[k] += 1
            if self._lost[k] >= DEATHS:
                raise RuntimeError(
                    f"{death}, {DEATHS} in a row before a step was made ({where}); workers=0 may "
                    f"show why."
                ) from death
            warnings.warn(
                f"{death} {what} ({where}); a new one takes its place and the others go on.",
                RuntimeWarning,
                stacklevel=stacklevel,
            )
            self._groups[k].close()
            self._groups[k] = self._start(k)
            try:
                self._groups[k].answer()
                return self._groups[k].call("reset", self._turn, seeds, options)
            except WorkerDied as again:
                death = again

    def _answers_and_deaths(self) -> tuple[list[Any], dict[int, WorkerDied]]:
        """What every group answers, all of them read before an error is raised."""
        answers, deaths, errors = [], {}, []
        for k, group in enumerate(self._groups):
            try:
                answers.append(group.answer())
            except WorkerDied as death:
                answers.append(None)
                deaths[k] = death
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return answers, deaths

    def _answers(self) -> list[Any]:
        answers, deaths = self._answers_and_deaths()
        if deaths:
            raise next(iter(deaths.values()))
        return answers

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        for group in self._groups:
            group.ask("call", name, args, kwargs)
        return tuple(x for answer in self._answers() for x in answer)

    def set_state(self, states: Any) -> None:
        """Go to states (N, X) of `get_state`."""
        states = self._shared_out(states)
        for group, block in zip(self._groups, self._blocks):
            group.ask("set_state", [states[i] for i in block])
        self._answers()

    def observe(self) -> Observations:
        """The observations of the current states, as `step` returns them."""
        for group in self._groups:
            group.ask("observe", self._turn)
        self._answers()
        return self._out(each(self._arrays[self._turn], np.copy))

    def simulate(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """As the environments' `simulate`: (B, X), (B, N, H, A) -> (B, N, H+1, P), any B.

        Worker processes share the states."""
        rows = np.array_split(np.arange(len(states)), len(self._groups))
        for group, part in zip(self._groups, rows):
            group.ask("simulate", states[part], actions[part])
        return np.concatenate([found for found in self._answers() if found is not None])

    def close_extras(self, **kwargs: Any) -> None:
        """End the worker processes, or close the environments that live here."""
        for group in self._groups:
            group.close()


class _Group:
    """The environments of one block, and where their observations go.

    arrays: two for observations, used in turn (so that those before a step outlive a worker that
    dies in it), and one for last observations; each (N, *O) for all N environments, or a dict of
    them."""

    def __init__(
        self,
        env_id: str,
        kwargs: dict[str, Any],
        block: list[int],
        arrays: list[Any],
        first: gym.Env | None = None,
    ):
        self.name, self.block, self.arrays, self._result = env_id, block, arrays, None
        first = first or make_env(env_id, **kwargs)
        # Ours share their OpenGL context with their copies; a context takes a fifth of a second.
        copies = hasattr(type(first.unwrapped), "__deepcopy__")
        self.envs = [
            first,
            *(copy.deepcopy(first) if copies else make_env(env_id, **kwargs) for _ in block[1:]),
        ]

    def ask(self, method: str, *args: Any) -> None:
        """As a `Worker`, for a group that lives in this process."""
        self._result = getattr(self, method)(*args)

    def answer(self) -> Any:
        return self._result

    def _each(self, function: Callable[..., Any], *values: Sequence[Any]) -> list[Any]:
        results = []
        for i, env, *mine in zip(self.block, self.envs, *values):
            try:
                results.append(function(i, env, *mine))
            except Exception as error:
                raise RuntimeError(
                    f"env {i} of {self.name} failed: {type(error).__name__}: {error}"
                ) from error
        return results

    def reset(self, turn: int, seeds: list[int | None], options: list[Any]) -> list[dict[str, Any]]:
        def one(i: int, env: gym.Env, seed: int | None, chosen: Any) -> dict[str, Any]:
            observation, info = env.reset(seed=seed, options=chosen)
            write(self.arrays[turn], i, observation)
            return info

        return self._each(one, seeds, options)

    def step(self, turn: int, actions: np.ndarray, autoreset: bool):
        """Rewards, terminations, truncations, and infos of steps and of resets where there are any,
        by environment."""
        step_infos, reset_infos = {}, {}

        def one(i: int, env: gym.Env, action: Any) -> tuple[float, bool, bool]:
            # A copy: an environment may keep or change it.
            observation, reward, terminated, truncated, info = env.step(
                np.array(action) if np.ndim(action) else action
            )
            if info:
                step_infos[i] = info
            if terminated or truncated:
                write(self.arrays[2], i, observation)
                if autoreset:
                    observation, info = env.reset()
                    if info:
                        reset_infos[i] = info
            write(self.arrays[turn], i, observation)
            return float(reward), bool(terminated), bool(truncated)

        rewards, terminated, truncated = zip(*self._each(one, actions))
        return rewards, terminated, truncated, step_infos, reset_infos

    def call(self, name: str, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
        def one(i: int, env: gym.Env) -> Any:
            attribute = env.get_wrapper_attr(name)
            return attribute(*args, **kwargs) if callable(attribute) else attribute

        return self._each(one)

    def set_state(self, states: list[Any]) -> None:
        self._each(lambda i, env, state: env.unwrapped.set_state(state), states)

    def observe(self, turn: int) -> None:
        self._each(lambda i, env: write(self.arrays[turn], i, env.unwrapped.observe()))

    def simulate(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray | None:
        return self.envs[0].unwrapped.simulate(states, actions) if len(states) else None

    def close(self) -> None:
        for env in self.envs:
            env.close()


# -- memory for observations -----------------------------------------------------------------------


def _empty(space: spaces.Space, n: int) -> Observations:
    """Arrays (n, *O) for the observations of a space."""
    if isinstance(space, spaces.Dict):
        return {name: _empty(part, n) for name, part in space.items()}
    kinds = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    if not isinstance(space, kinds):
        raise ValueError(f"observations must be arrays or a Dict of them, got the space {space}.")
    return np.zeros((n, *space.shape), space.dtype)


def _shared(space: spaces.Space, n: int) -> Any:
    """Memory for such arrays that worker processes see too: (memory, dtype, shape) of each. It has
    no name on the machine, so nobody can leave it behind."""
    new = multiprocessing.get_context(start_method()).RawArray
    return each(_empty(space, n), lambda x: (new("b", max(1, x.nbytes)), x.dtype, x.shape))


def _arrays(memory: Any) -> Observations:
    def view(part: tuple) -> np.ndarray:
        raw, dtype, shape = part
        return np.frombuffer(raw, dtype, math.prod(shape)).reshape(shape)

    return each(memory, view)


def _shared_group(
    env_id: str, kwargs: dict[str, Any], block: list[int], memory: list[Any]
) -> _Group:
    return _Group(env_id, kwargs, block, [_arrays(part) for part in memory])
