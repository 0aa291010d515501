"""Collecting episodes: reproducible from (seed, episode number), whatever the number of processes.

Simulators that run one env at a time (MuJoCo) are spread over processes, each with one env of its
own; torch-native worlds (ids registered with a `vector_entry_point`) run many episodes as one batch
of tensors. `collect_episodes` yields episodes, `collect_dataset` writes them into a folder of
`gjwm.data.dataset`, each as soon as it is finished."""

from __future__ import annotations

import inspect
import os
import queue
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from tqdm import tqdm

from gjwm.data.acting import OneLane, as_array, play
from gjwm.data.behaviours import Behaviour, Uniform
from gjwm.data.coverage import Coverage
from gjwm.data.dataset import SHARD_BYTES, Arrays, DatasetWriter, Episode, newest_frames, restack
from gjwm.envs.making import importable, is_unit, make_env, spec_of, torch_native
from gjwm.envs.workers import Worker, WorkerDied, cores

CHUNK = 5  # episodes per message between processes: few to balance, many to hide the overhead
BATCH_BYTES = 512 * 2**20  # of observations that a torch-native world may collect at once


class _Job(NamedTuple):
    """Everything that decides what an episode will be, but its number."""

    env_id: str
    env_kwargs: dict[str, Any]
    behaviour: Behaviour
    length: int
    seed: int
    record_state: bool

    def seeds(self, episode: int) -> tuple[int, np.random.Generator]:
        """The env's seed and the behaviour's generator of one episode."""
        env, behaviour = np.random.SeedSequence([self.seed, episode]).spawn(2)
        return int(env.generate_state(1)[0] >> 1), np.random.default_rng(
            behaviour
        )  # 31 bits, which every env accepts


def collect_episodes(
    env_id: str,
    env_kwargs: Mapping[str, Any] | None = None,
    behaviour: Behaviour | None = None,
    *,
    episodes: int,
    length: int,
    seed: int = 0,
    workers: int | None = None,
    first_episode: int = 0,
    record_state: bool = False,
    progress: Callable[[int], Any] | None = None,
) -> Iterator[Episode]:
    """Episodes `first_episode` to `first_episode + episodes - 1`, in this order.

    Episode i depends on (seed, i) and the arguments that describe env and behaviour, on nothing
    else: not on the number of workers, nor on which episodes were collected before.

    Args:
        env_id, env_kwargs: for `make_env`.
        behaviour: who acts, see `gjwm.data.behaviours`; uniform actions by default.
        length: steps of an episode, which env may end sooner; torch-native worlds always play all
            of them.
        workers: processes; as many as cores are available by default, 0 to stay in this one.
            Scripts that use processes need the usual `if __name__ == "__main__":`. Torch-native
            worlds run in this process.
        record_state: also record sim_state and true_state, which the env must offer; position is
            recorded where there is one.
        progress: called with the number of frames of each finished episode.

    Raises:
        ValueError: for arguments that cannot work.
        RuntimeError: naming the episode that failed, or saying that a worker process died.
    """
    job = _job(env_id, env_kwargs, behaviour, length, seed, record_state, episodes, workers)
    space, _, frame_stack = _describe(job)
    for episode in _collect(job, episodes, workers, first_episode):
        if progress is not None:
            progress(len(episode.a) + 1)
        yield episode._replace(o=restack(episode.o, space, frame_stack))


def collect_dataset(
    path: str | Path,
    env_id: str,
    env_kwargs: Mapping[str, Any] | None = None,
    behaviour: Behaviour | None = None,
    *,
    episodes: int,
    length: int,
    seed: int = 0,
    workers: int | None = None,
    record_state: bool = False,
    compress: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = True,
    collected: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Collect episodes into the dataset folder `path`; one that exists is extended, its episode
    numbers go on.

    Whatever stops it, episodes that were finished stay; as each depends on its number only,
    collecting the missing ones later gives the dataset that would have been.

    Args:
        compress, shard_bytes: see `gjwm.data.dataset.DatasetWriter`.
        progress: show a bar with frames per second.
        collected: kept with a new dataset, see `gjwm.data.dataset.DatasetWriter`.
        The others as `collect_episodes`.

    Returns:
        {"episodes", "frames", "seconds", "frames_per_second", "coverage"} of this call; a frame is
        an observation, and the coverage is `gjwm.data.coverage.Coverage.report`.

    Raises:
        ValueError, RuntimeError: as `collect_episodes` and `gjwm.data.dataset.DatasetWriter`.
    """
    job = _job(env_id, env_kwargs, behaviour, length, seed, record_state, episodes, workers)
    space, action_space, frame_stack = _describe(job)
    source = {"behaviour": repr(job.behaviour), "seed": seed, "length": length}
    begin, done, frames, coverage = time.perf_counter(), 0, 0, Coverage()
    with (
        DatasetWriter(
            path,
            env_id=env_id,
            env_kwargs=job.env_kwargs,
            observation_space=space,
            action_space=action_space,
            frame_stack=frame_stack,
            record_state=record_state,
            renderer=_renderer(job, space),
            compress=compress,
            shard_bytes=shard_bytes,
            collected=collected,
        ) as writer,
        tqdm(total=episodes, unit="episode", disable=not progress) as bar,
    ):
        for episode in _collect(job, episodes, workers, writer.episodes):
            writer.append(episode, **source)
            coverage.add(episode)
            done, frames = done + 1, frames + len(episode.a) + 1
            bar.update()
            bar.set_postfix_str(
                f"{frames / (time.perf_counter() - begin):.0f} frames/s", refresh=False
            )
    seconds = time.perf_counter() - begin
    return {
        "episodes": done,
        "frames": frames,
        "seconds": seconds,
        "frames_per_second": frames / seconds,
        "coverage": coverage.report(),
    }


def _job(
    env_id: str,
    env_kwargs: Mapping[str, Any] | None,
    behaviour: Behaviour | None,
    length: int,
    seed: int,
    record_state: bool,
    episodes: int,
    workers: int | None,
) -> _Job:
    if episodes < 1 or length < 1 or seed < 0 or (workers is not None and workers < 0):
        raise ValueError(
            "expected episodes >= 1, length >= 1, seed >= 0 and workers >= 0 or None, got "
            f"{episodes}, {length}, {seed} and {workers}."
        )
    return _Job(env_id, dict(env_kwargs or {}), behaviour or Uniform(), length, seed, record_state)


def _describe(job: _Job) -> tuple[spaces.Space, spaces.Box, int]:
    """Observation space, action space and frame stack of the env."""
    env = make_env(job.env_id, **job.env_kwargs)
    try:
        observation_space, action_space = env.observation_space, env.action_space
        frame_stack = _frame_stack(env)
        discrete = bool(getattr(env.unwrapped, "action_groups", ()))
    finally:
        env.close()
    if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
        raise ValueError(f"{job.env_id} has the action space {action_space}; expected a Box (A,).")
    if not discrete and not is_unit(action_space):
        raise ValueError(
            f"{job.env_id} has unbounded actions, [{action_space.low}, {action_space.high}]; bound "
            f"them where it is registered."
        )
    return observation_space, action_space, frame_stack


def _frame_stack(env: gym.Env) -> int:
    """Frames per image, which the env's arguments say; 1 without images."""
    space = env.observation_space
    boxes = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    images = any(box.dtype == np.uint8 and len(box.shape) == 3 for box in boxes)
    kwargs = env.unwrapped.spec.kwargs if env.unwrapped.spec is not None else {}
    return int(kwargs.get("frame_stack", getattr(env.unwrapped, "frame_stack", 1))) if images else 1


def _renderer(job: _Job, space: spaces.Space) -> str:
    """What draws the env's images, such as "fast egl": pictures of one world differ between
    renderers, and between OpenGL libraries by a grey level here and there."""
    boxes = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if not any(box.dtype == np.uint8 and len(box.shape) == 3 for box in boxes):
        return ""
    spec = spec_of(job.env_id)
    if torch_native(spec):
        return "torch"
    chosen = {**spec.kwargs, **job.env_kwargs}.get("renderer")
    # choose_backend of gjwm.envs names the library when the env is made, which `_describe` has
    # done.
    return "unknown" if chosen is None else f"{chosen} {os.environ.get('MUJOCO_GL', 'unknown')}"


def _collect(
    job: _Job, episodes: int, workers: int | None, first_episode: int
) -> Iterator[Episode]:
    """Episodes in order, with single frames where the env stacks them."""
    if torch_native(spec_of(job.env_id)):
        return _collect_batched(job, episodes, first_episode)
    workers = cores() if workers is None else workers
    numbers = range(first_episode, first_episode + episodes)
    chunks = [numbers[i : i + CHUNK] for i in range(0, episodes, CHUNK)]
    return _collect_in_processes(job, chunks, workers) if workers else _collect_here(job, numbers)


# -- one env, one episode at a time ----------------------------------------------------------------


class _Recorder:
    """One env, kept open from episode to episode."""

    def __init__(self, job: _Job):
        self.job = job
        self.env = make_env(job.env_id, **job.env_kwargs)
        self.frame_stack = _frame_stack(self.env)

    def record(self, number: int) -> Episode:
        """Play episode `number`."""
        job, env = self.job, self.env
        env_seed, rng = job.seeds(number)
        lane = OneLane(env)
        actor = job.behaviour.start(job.length, env.action_space.shape[0], [rng])
        first, _ = lane.reset(seed=env_seed)
        frames, simulator, steps = [first], [self._simulator()], []
        for step in play(lane, actor, first, job.length):
            frames.append(step.following)
            simulator.append(self._simulator())
            steps.append(step)
            if step.ended.any():
                break
        terminated, truncated = (
            np.array([getattr(s, name)[0] for s in steps], bool)
            for name in ("terminated", "truncated")
        )
        truncated[-1] = truncated[-1] or not terminated[-1]
        o = newest_frames(_joined(frames), env.observation_space, self.frame_stack)
        return Episode(
            # Not a view: it would carry the whole stacks between processes.
            {name: np.ascontiguousarray(x) for name, x in o.items()}
            if isinstance(o, dict)
            else np.ascontiguousarray(o),
            np.concatenate([s.a for s in steps]).astype(np.float32),
            np.concatenate([s.r for s in steps]).astype(np.float32),
            terminated,
            truncated,
            **_stack(simulator),
        )

    def _simulator(self) -> dict[str, Any]:
        return _simulator(self.env.unwrapped, self.job.record_state)


def _simulator(env: Any, record_state: bool) -> dict[str, Any]:
    """sim_state, position and true_state of an env or vector env, copied; without `record_state`
    the position, if any.
    """
    if not record_state:
        return (
            {"position": np.array(as_array(env.position), np.float64)}
            if hasattr(env, "position")
            else {}
        )
    if not hasattr(env, "get_state"):
        raise ValueError(
            f"{type(env).__name__} has no get_state, position and true_state; set "
            "record_state=False."
        )
    return {
        "sim_state": np.array(as_array(env.get_state()), np.float64),
        "position": np.array(as_array(env.position), np.float64),
        "true_state": {name: np.array(as_array(value)) for name, value in env.true_state().items()},
    }


def _stack(records: list[Any], axis: int = 0) -> Any:
    """Equal arrays, or equal (nested) dicts of arrays, stacked along a new axis."""
    if isinstance(records[0], Mapping):
        return {name: _stack([record[name] for record in records], axis) for name in records[0]}
    return np.stack(records, axis)


def _joined(frames: list[Any]) -> Any:
    """Observations (1, *O) of one lane -> (T+1, *O)."""
    if isinstance(frames[0], Mapping):
        return {name: _joined([frame[name] for frame in frames]) for name in frames[0]}
    return np.concatenate(frames)


def _collect_here(job: _Job, numbers: range) -> Iterator[Episode]:
    recorder = _Recorder(job)
    try:
        for number in numbers:
            yield _record(recorder, number)
    finally:
        recorder.env.close()


def _record(recorder: _Recorder, number: int) -> Episode:
    try:
        return recorder.record(number)
    except Exception as error:
        raise _failed(recorder.job, number, error) from error


def _failed(job: _Job, number: int, error: Exception) -> RuntimeError:
    return RuntimeError(f"episode {number} of {job.env_id} failed: {type(error).__name__}: {error}")


# -- worker processes ------------------------------------------------------------------------------


def _collect_in_processes(job: _Job, chunks: list[range], workers: int) -> Iterator[Episode]:
    workers = min(workers, len(chunks))
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for _ in range(workers):
        idle.put(Worker(_Recording, job))

    def record(chunk: range) -> list[Episode]:
        worker = idle.get()
        try:
            return worker.call("record", chunk)
        except WorkerDied as death:
            # An episode depends on its number alone, so another process records just the same.
            warnings.warn(
                f"{death} in episodes {chunk[0]} to {chunk[-1]} of {job.env_id}; a new one records "
                f"them.",
                RuntimeWarning,
                stacklevel=2,
            )
            worker.close()
            worker = Worker(_Recording, job)
            try:
                return worker.call("record", chunk)
            except WorkerDied as again:
                raise RuntimeError(
                    f"{again} before episode {chunk[-1]} of {job.env_id} was done, and so did the "
                    f"one before it (for want of "
                    'memory? or the script lacks `if __name__ == "__main__":`); try fewer workers, '
                    "or workers=0 to see why."
                ) from again
        finally:
            idle.put(worker)

    # One thread waits for each worker.
    pool = ThreadPoolExecutor(workers)
    waiting, running = deque(chunks), deque()
    try:
        while waiting or running:
            while (
                waiting and len(running) < 2 * workers
            ):  # no more: finished episodes wait in memory
                running.append(pool.submit(record, waiting.popleft()))
            yield from running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        while not idle.empty():
            idle.get().close()


class _Recording:
    """What a worker process does: it records chunks of episodes, with an env made for the first."""

    def __init__(self, job: _Job):
        self.job, self.recorder = job, None

    def record(self, numbers: range) -> list[Episode]:
        if self.recorder is None:
            try:
                self.recorder = _Recorder(self.job)
            except Exception as error:
                raise _failed(self.job, numbers[0], error) from error
        return [_record(self.recorder, number) for number in numbers]

    def close(self) -> None:
        if self.recorder is not None:
            self.recorder.env.close()


# -- torch-native worlds ---------------------------------------------------------------------------


def _collect_batched(job: _Job, episodes: int, first_episode: int) -> Iterator[Episode]:
    """Many episodes as one batch, all of the same length, each with its own seed."""
    spec = spec_of(job.env_id)
    creator = (
        spec.vector_entry_point
        if callable(spec.vector_entry_point)
        else load_env_creator(spec.vector_entry_point)
    )
    accepted = inspect.signature(creator).parameters
    kwargs = dict(job.env_kwargs)
    length = job.length
    if "terminate_on_goal" in accepted:
        kwargs.setdefault("terminate_on_goal", False)
    if "max_episode_steps" in accepted:
        # The limit only shortens the recording: an env that truncates would already show the next
        # episode.
        length = min(length, kwargs.get("max_episode_steps", length))
        kwargs["max_episode_steps"] = length + 1

    observation_space, _, frame_stack = _describe(job)
    frame_bytes = sum(
        box.dtype.itemsize * int(np.prod(box.shape))
        for box in (
            observation_space.values()
            if isinstance(observation_space, spaces.Dict)
            else [observation_space]
        )
    )
    batch = max(1, min(256, episodes, BATCH_BYTES // ((length + 1) * frame_bytes)))
    for first in range(first_episode, first_episode + episodes, batch):
        numbers = range(first, min(first + batch, first_episode + episodes))
        try:
            recorded = _record_batch(job, kwargs, length, numbers, frame_stack)
        except Exception as error:
            raise _failed(job, first, error) from error
        yield from recorded


def _record_batch(
    job: _Job, kwargs: dict[str, Any], length: int, numbers: range, frame_stack: int
) -> Iterator[Episode]:
    env = gym.make_vec(
        importable(job.env_id),
        num_envs=len(numbers),
        vectorization_mode="vector_entry_point",
        **kwargs,
    )
    try:
        space = env.single_observation_space
        if not is_unit(env.single_action_space):
            raise ValueError(
                f"a torch-native world is collected with actions in [-1, 1], not "
                f"{env.single_action_space}; rescale inside it."
            )
        seeds, rngs = zip(*(job.seeds(number) for number in numbers))
        actor = job.behaviour.start(length, env.single_action_space.shape[0], rngs)
        observation, _ = env.reset(seed=list(seeds))
        first = newest_frames(observation, space, frame_stack)
        o = _allocate(first, length + 1)  # at once, as pixels of a whole batch are large
        _write(o, 0, first)
        simulator, a, r = [_simulator(env.unwrapped, job.record_state)], [], []
        for t, step in enumerate(play(env, actor, observation, length), 1):
            if step.ended.any():
                raise ValueError(
                    f"an episode ended on step {t} of {length}; a torch-native world is "
                    "collected at fixed length, so let it accept terminate_on_goal and "
                    "max_episode_steps, and leave terminate_on_goal out of env_kwargs."
                )
            _write(o, t, newest_frames(step.following, space, frame_stack))
            a.append(step.a)
            r.append(step.r.astype(np.float32))
            simulator.append(_simulator(env.unwrapped, job.record_state))
    finally:
        env.close()
    a, r = np.stack(a, 1), np.stack(r, 1)  # (N, T, A), (N, T)
    simulator = _stack(simulator, 1)
    terminated, truncated = np.zeros(length, bool), np.arange(length) == length - 1
    return [
        Episode(
            _row(o, i),
            a[i],
            r[i],
            terminated.copy(),
            truncated.copy(),
            **{k: _row(v, i) for k, v in simulator.items()},
        )
        for i in range(len(numbers))
    ]


def _allocate(frames: Arrays, observations: int) -> Arrays:
    """Arrays (N, observations, *O) for frames (N, *O)."""
    if isinstance(frames, dict):
        return {name: _allocate(values, observations) for name, values in frames.items()}
    return np.empty((len(frames), observations, *frames.shape[1:]), frames.dtype)


def _write(o: Arrays, t: int, frames: Arrays) -> None:
    """o[:, t] = frames, in place."""
    if isinstance(o, dict):
        for name, values in frames.items():
            o[name][:, t] = values
    else:
        o[:, t] = frames


def _row(values: Any, i: int) -> Any:
    return (
        {name: value[i] for name, value in values.items()}
        if isinstance(values, dict)
        else values[i]
    )
