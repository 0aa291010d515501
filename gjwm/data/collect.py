"""Collecting episodes: reproducible from (seed, episode number), whatever the number of processes.

Simulators that run one env at a time (MuJoCo) are spread over processes, each with one env of its
own; torch-native worlds (ids registered with a `vector_entry_point`) run many episodes as one batch
of tensors. `collect_episodes` yields episodes, `collect_dataset` writes them into a folder of
`gjwm.data.dataset`, each as soon as it is finished."""

from __future__ import annotations

import inspect
import math
import os
import queue
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from tqdm import tqdm

from gjwm._core.files import holding
from gjwm._core.nested import nested
from gjwm._core.settings import Count, Natural, check
from gjwm._core.stopping import Finishing
from gjwm.data.acting import OneLane, as_array, play, shows_pictures
from gjwm.data.behaviours import Behaviour, Uniform, behaviour_from_weights
from gjwm.data.coverage import Coverage
from gjwm.data.dataset import DatasetWriter, Episode, dataset_info, newest_frames, restack
from gjwm.data.replay import box_fields
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
    observation_space: spaces.Space
    action_space: spaces.Box
    frame_stack: int

    def seeds(self, episode: int) -> tuple[int, np.random.Generator]:
        """The env's seed and the behaviour's generator of one episode."""
        env, behaviour = np.random.SeedSequence([self.seed, episode]).spawn(2)
        # 31 bits, which every env accepts
        return int(env.generate_state(1)[0] >> 1), np.random.default_rng(behaviour)

    @contextmanager
    def naming(self, number: int) -> Iterator[None]:
        """Errors name the episode."""
        try:
            yield
        except Exception as error:
            raise RuntimeError(
                f"episode {number} of {self.env_id} failed: {type(error).__name__}: {error}"
            ) from error


def collect_episodes(
    env_id: str,
    env_kwargs: Mapping[str, Any] | None = None,
    behaviour: Behaviour | None = None,
    *,
    episodes: int | range,
    length: int,
    seed: int = 0,
    workers: int | None = None,
    record_state: bool = False,
) -> Iterator[Episode]:
    """Episodes by number, in order.

    Episode i depends on (seed, i) and the arguments that describe env and behaviour, on nothing
    else: not on the number of workers, nor on which episodes were collected before.

    Args:
        env_id, env_kwargs: for `make_env`.
        behaviour: who acts, see `gjwm.data.behaviours`; uniform actions by default.
        episodes: how many from number 0 on, or a range of numbers.
        length: steps of an episode, which env may end sooner; torch-native worlds always play all
            of them.
        workers: processes; as many as cores are available by default, 0 to stay in this one.
            Scripts that use processes need the usual `if __name__ == "__main__":`. Torch-native
            worlds run in this process.
        record_state: also record sim_state and true_state, which the env must offer; position is
            recorded where there is one.

    Raises:
        ValueError: for arguments that cannot work.
        RuntimeError: naming the episode that failed, or saying that a worker process died.
    """
    is_range = isinstance(episodes, range)
    check_amounts(len(episodes) if is_range else episodes, length, seed, workers)
    numbers = episodes if is_range else range(episodes)
    job = _job(env_id, env_kwargs, behaviour or Uniform(), length, seed, record_state)
    for episode in _collect(job, numbers, workers):
        yield episode._replace(o=restack(episode.o, job.observation_space, job.frame_stack))


def collect_dataset(
    path: str | Path,
    env_id: str,
    env_kwargs: Mapping[str, Any] | None = None,
    behaviour: Behaviour | Mapping[str, Any] | None = None,
    *,
    episodes: int,
    length: int,
    seed: int = 0,
    workers: int | None = None,
    **writing: Any,
) -> dict[str, Any]:
    """Collect episodes into the dataset folder `path`; one that exists is extended, its episode
    numbers go on.

    Whatever stops it, episodes that were finished stay; as each depends on its number only,
    collecting the missing ones later gives the dataset that would have been.

    Args:
        behaviour: also as settings for `behaviour_from_weights`, which a new dataset keeps, so that
            more episodes like these can be collected.
        writing: compress and shard_bytes of `gjwm.data.dataset.DatasetWriter`.
        The others as `collect_episodes`.

    Returns:
        {"episodes", "frames", "seconds", "frames_per_second", "coverage"} of this call; a frame is
        an observation, and the coverage is `gjwm.data.coverage.Coverage.report`.

    Raises:
        ValueError, RuntimeError: as `collect_episodes` and `gjwm.data.dataset.DatasetWriter`.
    """
    check_amounts(episodes, length, seed, workers)
    length, seed = int(length), int(seed)  # numpy's are not plain JSON
    collected = None
    if isinstance(behaviour, Mapping):
        collected = {"behaviour": behaviour, "length": length, "seed": seed}
        behaviour = behaviour_from_weights(behaviour)
    job = _job(env_id, env_kwargs, behaviour or Uniform(), length, seed, record_state=False)
    source = {"behaviour": repr(job.behaviour), "seed": seed, "length": length}
    begin, frames, coverage = time.perf_counter(), 0, Coverage()
    with (
        DatasetWriter(
            path,
            env_id=env_id,
            env_kwargs=job.env_kwargs,
            observation_space=job.observation_space,
            action_space=job.action_space,
            frame_stack=job.frame_stack,
            renderer=_renderer(job),
            collected=collected,
            **writing,
        ) as writer,
        tqdm(total=episodes, unit="episode") as bar,
        Finishing(step="episode") as stop,
    ):
        numbers = range(writer.episodes, writer.episodes + episodes)
        for episode in _collect(job, numbers, workers):
            writer.append(episode, **source)
            coverage.add(episode)
            frames += len(episode.a) + 1
            bar.update()
            speed = frames / (time.perf_counter() - begin)
            bar.set_postfix_str(f"{speed:.0f} frames/s", refresh=False)
            stop.leave()
    seconds = time.perf_counter() - begin
    return {
        "episodes": episodes,
        "frames": frames,
        "seconds": seconds,
        "frames_per_second": frames / seconds,
        "coverage": coverage.report(),
    }


@contextmanager
def sole_collector(path: str | Path) -> Iterator[dict[str, Any] | None]:
    """Wait for whoever completes the dataset `path` -> its metadata now, None if there is none."""
    with holding(f"{Path(path)}.lock", wait=True):
        yield dataset_info(path) if (Path(path) / "metadata.json").exists() else None


def check_amounts(episodes: int, length: int, seed: int, workers: int | None) -> None:
    """Raise ValueError, naming the first that cannot be."""
    check("episodes", episodes, Count)
    check("length", length, Count)
    check("seed", seed, Natural)
    check("workers", workers, Natural | None)


def _job(
    env_id: str,
    env_kwargs: Mapping[str, Any] | None,
    behaviour: Behaviour,
    length: int,
    seed: int,
    record_state: bool,
) -> _Job:
    env_kwargs = dict(env_kwargs or {})
    env = make_env(env_id, **env_kwargs)
    try:
        space, action_space = env.observation_space, env.action_space
        discrete = bool(getattr(env.unwrapped, "action_groups", ()))
        # Frames per image, which the env's arguments say.
        kwargs = env.unwrapped.spec.kwargs if env.unwrapped.spec is not None else {}
        frame_stack = int(kwargs.get("frame_stack", getattr(env.unwrapped, "frame_stack", 1)))
    finally:
        env.close()
    if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
        raise ValueError(f"{env_id} has the action space {action_space}; expected a Box (A,).")
    if not discrete and not is_unit(action_space):
        raise ValueError(
            f"{env_id} has unbounded actions, [{action_space.low}, {action_space.high}]; bound "
            f"them where it is registered."
        )
    frame_stack = frame_stack if shows_pictures(space) else 1
    made = (space, action_space, frame_stack)
    return _Job(env_id, env_kwargs, behaviour, length, seed, record_state, *made)


def _renderer(job: _Job) -> str:
    """What draws the env's images, such as "fast egl": pictures differ between renderers."""
    if not shows_pictures(job.observation_space):
        return ""
    spec = spec_of(job.env_id)
    if torch_native(spec):
        return "torch"
    chosen = {**spec.kwargs, **job.env_kwargs}.get("renderer")
    # choose_backend of gjwm.envs has named the library when the env was made.
    return "unknown" if chosen is None else f"{chosen} {os.environ.get('MUJOCO_GL', 'unknown')}"


def _collect(job: _Job, numbers: range, workers: int | None) -> Iterator[Episode]:
    """Episodes in order, with single frames where the env stacks them."""
    if torch_native(spec_of(job.env_id)):
        return _collect_batched(job, numbers)
    workers = cores() if workers is None else workers
    return _collect_in_processes(job, numbers, workers) if workers else _collect_here(job, numbers)


def _record(job: _Job, envs: Any, seeds: Any, rngs: Sequence[np.random.Generator]) -> list[Episode]:
    """An episode in each of N lanes, up to the first step on which one ends."""
    actor = job.behaviour.start(job.length, job.action_space.shape[0], rngs)

    def single(observation: Any) -> Any:
        return newest_frames(observation, job.observation_space, job.frame_stack)

    def roomy(x: np.ndarray, steps: int) -> np.ndarray:
        """x (N, t, *O) with room for more steps."""
        whole = np.empty((len(x), steps, *x.shape[2:]), x.dtype)
        whole[:, : x.shape[1]] = x
        return whole

    # At once, as pixels of a whole batch are large; but a single env may end long before.
    room = job.length + 1 if not isinstance(envs, OneLane) else min(job.length + 1, 64)
    observation, _ = envs.reset(seed=seeds)
    o = nested(lambda x: roomy(x[:, None], room), single(observation))  # (N, room, *O)

    def write(t: int, observation: Any) -> None:
        nonlocal o, room
        if t == room:
            room = min(2 * room, job.length + 1)
            o = nested(lambda x: roomy(x, room), o)

        def put(whole: np.ndarray, frames: np.ndarray) -> None:
            whole[:, t] = frames

        nested(put, o, single(observation))

    write(0, observation)
    simulator, steps = [_simulator(envs, job.record_state)], []
    for t, step in enumerate(play(envs, actor, observation, job.length), 1):
        write(t, step.following)
        simulator.append(_simulator(envs, job.record_state))
        steps.append(step)
        if step.ended.any():
            if not isinstance(envs, OneLane):
                raise ValueError(
                    f"an episode ended on step {t} of {job.length}; a torch-native world is "
                    "collected at fixed length, so let it accept terminate_on_goal and "
                    "max_episode_steps, and leave terminate_on_goal out of env_kwargs."
                )
            break
    kinds = {"a": np.float32, "r": np.float32, "terminated": bool, "truncated": bool}
    recorded = {  # (N, T, ...)
        name: np.stack([getattr(step, name) for step in steps], 1).astype(kind)
        for name, kind in kinds.items()
    }
    recorded["truncated"][:, -1] |= ~recorded["terminated"][:, -1]
    # An episode that ended early does not keep what was meant for a long one.
    shorter = len(steps) + 1 < room
    recorded["o"] = nested(lambda x: x[:, : len(steps) + 1].copy() if shorter else x, o)
    recorded |= nested(lambda *x: np.stack(x, 1), *simulator)

    def episode(i: int) -> Episode:
        return Episode(**nested(lambda x: x[i], recorded))

    return [episode(i) for i in range(len(rngs))]


def _simulator(envs: Any, record_state: bool) -> dict[str, Any]:
    """What the simulators of N lanes say; without `record_state` the position, if any."""
    env = envs.unwrapped
    if record_state and not hasattr(env, "get_state"):
        raise ValueError(
            f"{type(env).__name__} has no get_state, position and true_state; set "
            "record_state=False."
        )

    def copied(value: Any, dtype: Any = None) -> np.ndarray:
        value = np.array(as_array(value), dtype)
        return value[None] if isinstance(envs, OneLane) else value

    seen: dict[str, Any] = {}
    if record_state or hasattr(env, "position"):
        seen["position"] = copied(env.position, np.float64)
    if record_state:
        seen["sim_state"] = copied(env.get_state(), np.float64)
        seen["true_state"] = nested(copied, env.true_state())
    return seen


# -- one env, one episode at a time ----------------------------------------------------------------


class _Recorder:
    """One env, kept open from episode to episode; what a worker process serves."""

    def __init__(self, job: _Job):
        self.job, self.lane = job, None

    def record(self, numbers: Sequence[int]) -> list[Episode]:
        """Play episodes by number, in an env made for the first."""
        episodes = []
        for number in numbers:
            with self.job.naming(number):
                if self.lane is None:
                    self.lane = OneLane(make_env(self.job.env_id, **self.job.env_kwargs))
                seed, rng = self.job.seeds(number)
                episodes += _record(self.job, self.lane, seed, [rng])
        return episodes

    def close(self) -> None:
        """Close the env."""
        if self.lane is not None:
            self.lane.env.close()


def _collect_here(job: _Job, numbers: range) -> Iterator[Episode]:
    with closing(_Recorder(job)) as recorder:
        for number in numbers:
            yield from recorder.record([number])


# -- worker processes ------------------------------------------------------------------------------


def _collect_in_processes(job: _Job, numbers: range, workers: int) -> Iterator[Episode]:
    chunks = [numbers[i : i + CHUNK] for i in range(0, len(numbers), CHUNK)]
    workers = min(workers, len(chunks))
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for _ in range(workers):
        idle.put(Worker(_Recorder, job))

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
            worker = Worker(_Recorder, job)
            try:
                return worker.call("record", chunk)
            except WorkerDied as again:
                raise RuntimeError(
                    f"{again} before episode {chunk[-1]} of {job.env_id} was done, and so did the "
                    "one before it (for want of memory? or the script lacks `if __name__ == "
                    '"__main__":`); try fewer workers, or workers=0 to see why.'
                ) from again
        finally:
            idle.put(worker)

    # One thread waits for each worker.
    pool = ThreadPoolExecutor(workers)
    waiting, running = deque(chunks), deque()
    try:
        while waiting or running:
            # No more: finished episodes wait in memory.
            while waiting and len(running) < 2 * workers:
                running.append(pool.submit(record, waiting.popleft()))
            yield from running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        while not idle.empty():
            idle.get().close()


# -- torch-native worlds ---------------------------------------------------------------------------


def _collect_batched(job: _Job, numbers: range) -> Iterator[Episode]:
    """Many episodes as one batch, all of the same length, each with its own seed."""
    creator = spec_of(job.env_id).vector_entry_point
    creator = creator if callable(creator) else load_env_creator(creator)
    accepted = inspect.signature(creator).parameters
    kwargs = dict(job.env_kwargs)
    if "terminate_on_goal" in accepted:
        kwargs.setdefault("terminate_on_goal", False)
    if "max_episode_steps" in accepted:
        # The limit only shortens the recording: an env that truncates would already show the next
        # episode.
        job = job._replace(length=min(job.length, kwargs.get("max_episode_steps", job.length)))
        kwargs["max_episode_steps"] = job.length + 1
    frame_bytes = sum(
        box.dtype.itemsize * math.prod(box.shape)
        for box in box_fields(job.observation_space).values()
    )
    batch = max(1, min(256, len(numbers), BATCH_BYTES // ((job.length + 1) * frame_bytes)))
    for i in range(0, len(numbers), batch):
        with job.naming(numbers[i]):
            recorded = _record_batch(job, kwargs, numbers[i : i + batch])
        yield from recorded


def _record_batch(job: _Job, kwargs: dict[str, Any], numbers: range) -> list[Episode]:
    env = gym.make_vec(
        importable(job.env_id),
        num_envs=len(numbers),
        vectorization_mode="vector_entry_point",
        **kwargs,
    )
    with closing(env):
        if not is_unit(env.single_action_space):
            raise ValueError(
                f"a torch-native world is collected with actions in [-1, 1], not "
                f"{env.single_action_space}; rescale inside it."
            )
        seeds, rngs = zip(*(job.seeds(number) for number in numbers))
        return _record(job, env, list(seeds), rngs)
