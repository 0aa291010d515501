"""A dataset as a thing to pass on: where it lies, which environment made it, and who acted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym

from gjwm.data.behaviours import behaviour_from_weights
from gjwm.data.collect import check_amounts, collect_dataset, collect_episodes, sole_collector
from gjwm.data.dataset import Episode, dataset_info, episode_lengths, read_episodes
from gjwm.data.dataset.metadata import layout
from gjwm.envs.making import is_foreign, spec_of
from gjwm.envs.workers import in_worker

# Seeds end where held-out episodes begin, so that these never meet training data; those that
# calibrate the model's predictions start elsewhere again, so that evaluation never sees them.
HELD_OUT = 1_000_000
CALIBRATION = 2_000_000

BehaviourSettings = Mapping[str, Any]  # name -> weight, or {"weight": ..., argument: ...}


@dataclass(frozen=True)
class Dataset:
    """A dataset on disk.

    Args:
        path: its folder.
        env_id, env_kwargs: of the environment that made it.
        behaviour: who acted there, by name; None where nobody said it.
        workers: processes that collect more episodes like these; None: one per core.
    """

    path: Path
    env_id: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    behaviour: dict[str, Any] | None = None
    workers: int | None = None

    @classmethod
    def open(cls, path: str | Path, **known: Any) -> Dataset:
        """The dataset in a folder; `known` replaces what its metadata say.

        Raises:
            FileNotFoundError, ValueError: when there is none, or it is damaged.
        """
        info = dataset_info(path)
        behaviour = (info.get("collected") or {}).get("behaviour")
        given = dict(env_id=info["env_id"], env_kwargs=info["env_kwargs"], behaviour=behaviour)
        return cls(Path(path), **given | known)

    def __len__(self) -> int:
        """Episodes in it now."""
        return dataset_info(self.path)["episodes"]

    def __iter__(self) -> Iterator[Episode]:
        return read_episodes(self.path)

    def lengths(self) -> list[int]:
        """Steps of each episode."""
        return episode_lengths(self.path)

    def shapes(self) -> tuple[tuple[int, ...], int]:
        """Of an observation, as a model sees it, and the number of actions."""
        observation_space, action_space, _ = layout(dataset_info(self.path))
        return observation_space.shape, action_space.shape[0]

    def require_env(self, env_id: str, env_kwargs: Mapping[str, Any]) -> None:
        """Raise ValueError if another environment made these data: nothing later would notice."""
        collected = {"id": self.env_id, **self.env_kwargs}
        wanted = {"id": env_id, **env_kwargs}
        different = [
            f"env.{key}={collected.get(key)!r} and not {wanted.get(key)!r}"
            for key in sorted(collected.keys() | wanted.keys())
            if collected.get(key) != wanted.get(key)
        ]
        if different:
            raise ValueError(
                f"{self.path} was collected with {', '.join(different)}; pass the same settings, "
                "or another dataset=..."
            )

    def collectable(self) -> bool:
        """Whether the environment is known here, and who acted."""
        try:
            spec_of(self.env_id)
        except (gym.error.Error, ImportError, ValueError):
            return False
        return self.behaviour is not None

    def more(
        self, episodes: int, *, length: int, seed: int, record_state: bool = False
    ) -> list[Episode]:
        """Other episodes by the same behaviour in the same environment, kept in memory."""
        more = collect_episodes(
            self.env_id,
            self.env_kwargs,
            behaviour_from_weights(self.behaviour),
            episodes=episodes,
            length=length,
            seed=seed,
            workers=self.workers,
            record_state=record_state,
        )
        return list(more)


def collect(
    env_id: str,
    *,
    episodes: int,
    length: int = 60,
    behaviour: BehaviourSettings | str | None = None,
    seed: int = 0,
    path: str | Path | None = None,
    workers: int | None = None,
    **env_kwargs: Any,
) -> Dataset:
    """A dataset of at least `episodes` episodes; what is missing of it is collected.

    Episode i depends on (seed, i) and the settings alone: whatever interrupts it, calling this
    again completes the same dataset.

    Args:
        env_id: any id of Gymnasium, ours ("gjwm/reacher-easy-v0") among them.
        length: steps of an episode.
        behaviour: who acts, by name ("scripted"), or as weights {"scripted": 0.75, "coloured":
            0.25}, with arguments as {"coloured": {"weight": 1.0, "beta": 1.0}}; None: coloured
            noise.
        path: the folder; None: data/<the id's name>.
        workers: processes; None: one per core, 0: this one. Scripts that use processes need the
            usual `if __name__ == "__main__":`.
        env_kwargs: the environment's arguments, such as obs="pixels", size=64, action_repeat=2; see
            `usual_arguments` for those that are not given.

    Raises:
        ValueError: for settings that cannot work, or a folder that holds other episodes.
        RuntimeError: when a worker process calls it again.
    """
    if in_worker():
        # It would wait for the folder, which the script's own process holds.
        raise RuntimeError(
            "gjwm.collect was called again in a worker process, which imports the script anew: put "
            'the script\'s calls under `if __name__ == "__main__":`, or pass workers=0.'
        )
    check_amounts(episodes, length, seed, workers)
    env_kwargs = _plain(usual_arguments(env_id, env_kwargs) | env_kwargs)
    weights = _plain(
        {behaviour: 1.0} if isinstance(behaviour, str) else dict(behaviour or {"coloured": 1.0})
    )
    if path is None:
        path = Path("data") / task_of(env_id).removesuffix("-v0")
    path = Path(path)
    how = {"length": int(length), "seed": int(seed)}
    with sole_collector(path) as info:
        there, wanted = 0, {"behaviour": weights, **how}
        if info is not None and info["episodes"]:
            there, made = info["episodes"], info.get("collected") or wanted
            if made != wanted:
                raise ValueError(
                    f"{path} was collected with {made} and not {wanted}; choose another path=..."
                )
        if there < episodes or not there:
            how["episodes"] = episodes - there
            collect_dataset(path, env_id, env_kwargs, weights, workers=workers, **how)
        elif info["env_id"] != env_id or info["env_kwargs"] != env_kwargs:
            raise ValueError(
                f"{path} holds episodes of {info['env_id']} with {info['env_kwargs']} and not of "
                f"{env_id} with {env_kwargs}; choose another path=..."
            )
    return Dataset(path, env_id, env_kwargs, weights, workers)


def task_of(env_id: str) -> str:
    """An id as a name that every file system takes: without the module that registers it."""
    return env_id.rpartition(":")[2].removeprefix("gjwm/")


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As the folder's metadata keep them: tuples are lists."""
    return json.loads(json.dumps(settings))


# Worlds without velocities: one frame shows all there is.
_STILL = ("two-room", "push", "fork", "arena-two-room")


def usual_arguments(env_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What an environment is made with where nothing else is said: two frames where velocities do
    not show in one, two simulator steps per action for dm_control, episodes that go on past the
    environment's own end, no marks of a task's own target in pictures.
    """
    spec = spec_of(env_id)
    name = task_of(env_id)
    usual: dict[str, Any] = {}
    if is_foreign(env_id):
        usual["terminate"] = False
    elif "domain" in spec.kwargs or name.startswith("torch-"):
        usual["action_repeat"] = 4 if name.startswith("torch-cartpole") else 2
    elif name.startswith(("two-room", "point-maze", "push")):
        usual["terminate_on_goal"] = False
    if given.get("obs") == "pixels":
        usual["size"] = 64
        if not name.startswith(_STILL):
            usual["frame_stack"] = 2
        if spec.kwargs.get("domain") in ("reacher", "point_mass"):
            usual["hidden"] = ["target"]
    return usual
