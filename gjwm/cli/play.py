"""`gjwm play NAME`: plan with a model that ships, and film it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
import yaml
from hydra.utils import instantiate

from gjwm._core.settings import Count, Natural, Settings
from gjwm._core.video import check_suffix, write_video
from gjwm.cli.arguments import arguments_of
from gjwm.cli.config import factory, fill, no_setting
from gjwm.cli.help import COLUMN, WIDTH
from gjwm.evaluation import Evaluation, held_out_episodes
from gjwm.evaluation.evaluate import Details, Task, attempt
from gjwm.evaluation.goals import CostOfGoals
from gjwm.evaluation.prediction import encode_episodes
from gjwm.evaluation.probes import knn_readout
from gjwm.models.pretrained import load_shipped, nearest_shipped, shipped, shipped_folder
from gjwm.planning import Planner
from gjwm.reporting import EVALUATION
from gjwm.reporting.films import camera, films_of

READOUT_EPISODES = 16  # enough for a drawing
PARTICLES = 12  # of a film's spread; decoding them takes longest


@dataclass(frozen=True, kw_only=True)
class PlaySettings(Settings):
    """Settings of `gjwm play`.

    Args:
        episodes: goals to plan to.
        seed: of goals and plans; another seed has other goals.
        film: the film, .mp4 or .gif, or a folder for it; null: play-NAME.mp4 here.
    """

    episodes: Count = 3
    seed: Natural = 0
    film: str | None = None


def play_command(words: Sequence[str]) -> int:
    """Plan to a few goals with a small model that ships with gjwm, print whether each was reached
    and how long a step took to decide, and film it.

    Raises:
        ValueError: for another name, setting or value, or a film that cannot be written, before
            anything is loaded.
    """
    name, settings = _asked(words)
    # One plan at a time is little work: two threads that wait for each other beside another
    # program take five times the processor's time (36 s for 7, two-room).
    torch.set_num_threads(1)
    path = _film_path(name, settings.film)
    folder = shipped_folder(name)
    protocol_settings, planner, cost = protocol(json.loads((folder / EVALUATION).read_text()))
    model = load_shipped(name)
    task = Task.of(model)
    goals = task.goals(protocol_settings, planner)
    env = camera(task.env_id, task.env_kwargs)  # no pictures: told now
    radius = env.unwrapped.success_radius
    env.close()
    print(f"{name}: {task.env_id}, {_numbers(model):,} parameters", flush=True)
    # Episodes of their own, which neither training nor evaluation saw.
    count = max(settings.episodes, READOUT_EPISODES)
    seed = 1000 + settings.seed
    held_out = replace(protocol_settings, episodes=count, pairs=1, seed=seed)
    episodes = held_out_episodes(task, held_out, workers=0)
    z = encode_episodes(model, episodes).flatten(0, 1)
    # for drawings; a network would read positions better, and take as long as all else
    position = knn_readout(z, torch.from_numpy(np.concatenate([e.position for e in episodes])))
    films, reached = [], 0
    for i in range(settings.episodes):
        one = replace(held_out, seed=seed + i)
        made = attempt(model, task, one, episodes[i:], goals, planner, cost)
        drawing = dict(decoder=model.decoder, position=position, particles=PARTICLES, seed=i)
        filming = films_of(model, task, made, **drawing)
        films.append(filming.film(0))
        filming.env.close()
        step = _first_step(made, radius)
        reached += step is not None
        told = "not reached" if step is None else f"reached after {step} steps"
        ms = 1e3 * made.attempts.seconds_per_step
        print(f"episode {i + 1}: {told}, {ms:.1f} ms per step", flush=True)
    write_video(path, np.concatenate(films))
    print(f"{reached} of {settings.episodes} goals reached; film: {path}")
    return 0


def play_help() -> str:
    """Its settings, with defaults and meaning."""
    does = " ".join((play_command.__doc__ or "").partition("\n\n")[0].split())
    lines = ["gjwm play NAME [key=value ...]", "", *textwrap.wrap(does, WIDTH), ""]
    lines += [*textwrap.wrap(f"NAME is one of {', '.join(shipped())}", WIDTH), ""]
    for setting, argument in arguments_of(PlaySettings).items():
        default = "null" if argument.default is None else argument.default
        said = textwrap.wrap(argument.meaning.removesuffix("."), WIDTH - COLUMN)
        lines.append(f"{f'  {setting}={default}':{COLUMN}}{said[0]}")
        lines += [" " * COLUMN + line for line in said[1:]]
    return "\n".join(lines)


def protocol(report: Mapping[str, Any]) -> tuple[Evaluation, Planner, CostOfGoals]:
    """How a model was judged: settings, planner and cost in the config of its evaluation.json."""
    config = report["config"]
    settings = fill(Evaluation, config["evaluate"], "evaluate")
    return settings, instantiate(config["planner"]), factory(config["cost"], "cost")


def _asked(words: Sequence[str]) -> tuple[str, PlaySettings]:
    names = [word for word in words if "=" not in word]
    if len(names) != 1:
        came = " ".join(names) or "none"
        raise ValueError(f"expected one name of a model, got {came}; {nearest_shipped('')}.")
    shipped_folder(names[0])
    known = [field.name for field in fields(PlaySettings)]
    given = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key not in known:
            raise ValueError(no_setting(key, known))
        if equals:
            given[key] = _value(key, value)
    return names[0], PlaySettings(**given)


def _value(key: str, text: str) -> Any:
    if key == "film":
        return None if text in ("", "null") else text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:  # the setting says what it expects
        return text


def _film_path(name: str, film: str | None) -> Path:
    """Where the film goes, its folder made and found to be writable.

    Raises:
        ValueError: when it cannot be written, or has another suffix.
    """
    path = Path(film or ".").expanduser()
    path = path / f"play-{name}.mp4" if path.is_dir() else check_suffix(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
        if path.is_dir():
            raise IsADirectoryError(None, "Is a directory")
    except OSError as error:
        raise ValueError(
            f"the film {path} cannot be written ({error.strerror}); film=... names another place."
        ) from error
    return path


def _first_step(made: Details, radius: float) -> int | None:
    near = made.attempts.distance[0, 1:] <= radius
    return int(near.argmax()) + 1 if near.any() else None


def _numbers(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
