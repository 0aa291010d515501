"""Datasets of other packages, read episode by episode: Minari, stable-worldmodel HDF5, LeRobot v3,
and our own to pack anew.

All are read directly, without the packages that wrote them; only LeRobot's need pyarrow. Images
become (C, h, w); actions are rescaled from their bounds to [-1, 1], which everything here expects.
"""

from __future__ import annotations

import functools
import inspect
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from einops import rearrange
from gymnasium import spaces
from PIL import Image

from gjwm._core.files import DAMAGE, inside
from gjwm._core.nested import nested
from gjwm.data.dataset.episodes import Arrays, Episode
from gjwm.data.dataset.lerobot import DATA, NEXT, OURS, OURS_FORMAT, feature_names
from gjwm.data.dataset.metadata import layout, wrong_kind
from gjwm.data.dataset.reader import dataset_info, read_episodes
from gjwm.data.dataset.writer import DatasetWriter
from gjwm.data.replay import box_fields, rebuild_space


class Source(NamedTuple):
    """A foreign dataset, opened."""

    env_id: str
    env_kwargs: dict[str, Any]
    episodes: Iterator[Episode]
    spaces: tuple[spaces.Space, spaces.Box] | None = None  # None: what the first episode shows
    frame_stack: int = 1
    record_state: bool = False
    renderer: str = ""


def convert(
    source: str | Path, target: str | Path, kind: str | None = None, **options: str
) -> dict[str, Any]:
    """Write the dataset at `source` as a new dataset folder `target`.

    Args:
        kind: a name in FORMATS; None: found out.
        options: of the reader, as text, and `compress=true`.

    Returns:
        {"from", "episodes", "steps"}.

    Raises:
        FileNotFoundError, ValueError: for a source that cannot be read, naming the episode, or a
            target that exists. Episodes before the one that failed are kept.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"nothing to convert at {source}.")
    if Path(target).exists() and (not Path(target).is_dir() or any(Path(target).iterdir())):
        raise ValueError(f"{target} exists and is not empty; convert into a new folder.")
    if kind is None:
        with _in_sentences(source):
            kind = _recognise(source)
    if kind not in FORMATS:
        raise ValueError(f"from must be one of {', '.join(FORMATS)}, got {kind!r}.")
    compress = options.pop("compress", "false")
    if compress not in ("true", "false"):
        raise ValueError(f"compress must be true or false, got {compress!r}.")
    taken = [*inspect.signature(FORMATS[kind]).parameters][1:]
    if strange := [name for name in options if name not in taken]:
        raise ValueError(
            f"the {kind} reader does not take {', '.join(strange)}; it takes "
            f"{', '.join(taken) or 'no options'}."
        )
    with _in_sentences(source):
        opened = FORMATS[kind](source, **options)
    told = ("env_id", "env_kwargs", "frame_stack", "renderer")
    if said := wrong_kind({name: getattr(opened, name) for name in told}):
        raise ValueError(f"{source} says {said}.")
    episodes = _read(opened.episodes, source)
    first = next(episodes, None)
    if first is None:
        raise ValueError(f"{source} holds no episodes.")
    space, action_space = opened.spaces or (
        _space(first.o),
        spaces.Box(-1, 1, first.a.shape[1:], np.float32),
    )
    with DatasetWriter(
        target,
        env_id=opened.env_id,
        env_kwargs=opened.env_kwargs,
        observation_space=space,
        action_space=action_space,
        frame_stack=opened.frame_stack,
        record_state=opened.record_state,
        renderer=opened.renderer,
        compress=compress == "true",
    ) as writer:
        for episode in itertools.chain([first], episodes):
            writer.append(episode, converted_from=kind, source=source.name)
    return {"from": kind, "episodes": writer.info["episodes"], "steps": writer.info["steps"]}


@contextmanager
def _in_sentences(source: Path) -> Iterator[None]:
    """What a library raises for a damaged file in the block becomes a sentence."""
    try:
        yield
    except DAMAGE as error:
        said = " ".join(str(error).split())
        if isinstance(error, ValueError | FileNotFoundError) and said.endswith("."):
            raise  # one of ours
        raise ValueError(
            f"{source} cannot be read ({type(error).__name__}: {said.rstrip('.')})."
        ) from error


def _read(episodes: Iterator[Episode], source: Path) -> Iterator[Episode]:
    """The episodes; what fails on the way to one is a sentence."""
    while True:
        with _in_sentences(source):
            episode = next(episodes, None)
        if episode is None:
            return
        yield episode


def _recognise(source: Path) -> str:
    if (source / "metadata.json").is_file() and list(source.glob("shard-*.h5")):
        return "gjwm"
    if _minari_folder(source) is not None:
        return "minari"
    if (source / "meta" / "info.json").is_file():
        return "lerobot"
    if source.is_file() and h5py.is_hdf5(source):
        with _open(source) as file:
            if "ep_len" in file and "ep_offset" in file:
                return "swm"
    raise ValueError(f"the format of {source} is not known; say from={'|'.join(FORMATS)}.")


# -- readers ---------------------------------------------------------------------------------------


@contextmanager
def _reading(episode: object, source: Path) -> Iterator[None]:
    """What goes wrong in the block names the episode."""
    try:
        yield
    except DAMAGE as error:
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(f"{episode} of {source} cannot be read: {said}.") from error


def read_gjwm(source: Path) -> Source:
    """A dataset of this package: to compress it, or after another program rewrote it."""
    info = dataset_info(source)
    *described, frame_stack = layout(info)
    return Source(
        info["env_id"],
        info["env_kwargs"],
        read_episodes(source),
        tuple(described),
        frame_stack,
        info["record_state"],
        info["renderer"],
    )


def read_minari(source: Path) -> Source:
    """A Minari dataset in HDF5: `<dataset>/data/main_data.hdf5`, metadata.json beside it."""
    folder = _minari_folder(source)
    if folder is None:
        raise ValueError(
            f"{source} has no data/main_data.hdf5; Minari datasets of another kind must be saved "
            f"as HDF5 first."
        )
    metadata = {}
    if (folder / "metadata.json").is_file():
        metadata = json.loads((folder / "metadata.json").read_text())
    spec = json.loads(metadata.get("env_spec") or "{}")
    low = high = None
    if "action_space" in metadata:
        described = json.loads(metadata["action_space"])
        if described.get("type") != "Box":
            raise ValueError(
                f"{source} has actions of type {described.get('type')}; expected a Box (A,)."
            )
        box = rebuild_space(described)
        low, high = box.low, box.high
    env_id = spec.get("id") or metadata.get("dataset_id", source.name)

    def episodes() -> Iterator[Episode]:
        with _open(folder / "main_data.hdf5") as file:
            numbers = sorted(int(name[8:]) for name in file if name.startswith("episode_"))
            for name in (f"episode_{number}" for number in numbers):
                group = file[name]
                with _reading(name, source):
                    yield _episode(
                        _arrays(group["observations"]),
                        _rescale(group["actions"][()], low, high),
                        group["rewards"][()],
                        group["terminations"][()],
                        group["truncations"][()] if "truncations" in group else None,
                    )

    return Source(env_id, spec.get("kwargs") or {}, episodes())


def read_swm(
    source: Path,
    *,
    observation: str = "",
    env_id: str = "",
    action_low: str = "-1",
    action_high: str = "1",
) -> Source:
    """A stable-worldmodel HDF5 file: columns of equal length with `ep_len` and `ep_offset`.

    Its row t holds the frame and the action taken there, and the reward and the end that led to the
    frame; the last row's action is empty.

    Args:
        observation: the columns to observe, with commas between; by default pixels, else
            observation, proprio or state.
        env_id: what to call the env.
        action_low, action_high: bounds of the actions, which the file does not hold.
    """
    low, high = np.float32(action_low), np.float32(action_high)

    def episodes() -> Iterator[Episode]:
        with _open(source) as file:
            known = [name for name in file if name not in ("ep_len", "ep_offset")]
            guesses = [n for n in ("pixels", "observation", "proprio", "state") if n in file]
            wanted = observation.split(",") if observation else guesses[:1]
            needed = (*wanted, "action", "ep_len", "ep_offset")
            missing = [name for name in needed if name not in file]
            if missing or not wanted:
                raise ValueError(
                    f"{source} has no column {', '.join(missing) or 'to observe'}; its columns are "
                    f"{', '.join(known)}."
                )
            table = zip(file["ep_len"][()].tolist(), file["ep_offset"][()].tolist())
            for number, (length, offset) in enumerate(table):
                end = offset + length
                with _reading(f"episode {number}", source):
                    a = file["action"][offset : end - 1]
                    if len(a) != length - 1 or length < 2:
                        raise ValueError(
                            f"it has {len(a) + 1} of {length} rows; an episode needs two or more."
                        )
                    nothing = np.zeros(length - 1)
                    r, terminated = (
                        file[name][offset + 1 : end].reshape(-1) if name in file else nothing
                        for name in ("reward", "terminated")
                    )
                    o = _chosen({name: file[name][offset:end] for name in wanted})
                    yield _episode(o, _rescale(a, low, high), r, terminated)

    return Source(env_id or source.stem, {}, episodes(), renderer="unknown")


def read_lerobot(source: Path, *, observation: str = "", size: str = "") -> Source:
    """A LeRobot v3 dataset: tables in parquet, cameras as films of many episodes each.

    Its row t holds an observation and the action taken there; an episode's last action leads
    nowhere and is left out. Actions are rescaled from their least and greatest values in
    meta/stats.json. An end is terminated where next.done is true and a next.truncated is not.

    What `lerobot.write_lerobot` wrote has meta/gjwm.json and comes back as it was.

    Args:
        observation: the features to observe, with commas between; by default the first camera, or
            observation.state.
        size: images are resized to size x size.
    """
    parquet = _parquet()
    info = json.loads((source / "meta" / "info.json").read_text())
    version, features = str(info.get("codebase_version")), info["features"]
    if not version.startswith("v3."):
        raise ValueError(
            f"{source} is of LeRobot format {version}; v3 is read: convert it with lerobot's own "
            f"script first."
        )
    cameras = [name for name, feature in features.items() if feature["dtype"] in ("video", "image")]
    wanted = observation.split(",") if observation else [*cameras, "observation.state"][:1]
    ours: dict[str, Any] = {}
    if (source / OURS).is_file() and not observation and not size:
        ours = json.loads((source / OURS).read_text())
        if ours["format"] != OURS_FORMAT:
            raise ValueError(
                f"{source / OURS} has format {ours['format']}, this version reads {OURS_FORMAT}; "
                "name the features instead: observation=..."
            )
        *described, frame_stack = layout(ours)
        names, fields = feature_names(described[0]), box_fields(described[0])
        wanted = list(names)
    missing = [name for name in (*wanted, "action") if name not in features]
    if missing:
        raise ValueError(
            f"{source} has no feature {', '.join(missing)}; its features are {', '.join(features)}."
        )
    low = high = None
    if not ours:
        stats = json.loads((source / "meta" / "stats.json").read_text())["action"]
        low, high = (np.asarray(stats[bound], np.float32) for bound in ("min", "max"))
        apart = high > low  # a constant action becomes 0
        low, high = np.where(apart, low, low - 1), np.where(apart, high, high + 1)
    side = int(size) if size else None
    films = {
        name: _Film(source, info, name, side)
        for name in wanted
        if features[name]["dtype"] == "video"
    }

    @functools.lru_cache(maxsize=1)
    def table(chunk: int, file: int) -> Any:
        place = dict(chunk_index=chunk, file_index=file)
        return parquet.read_table(_placed(source, info["data_path"], **place))

    def observed(name: str, entry: dict[str, Any], rows: Any) -> np.ndarray:
        if name in films:
            return films[name].frames(entry)
        values = rows[name].to_pylist()
        if features[name]["dtype"] == "image":
            return _pictures(values, side)
        if ours:
            box = fields[names[name]]
            return np.array(values, box.dtype).reshape(-1, *box.shape)
        return np.array(values, np.float32)

    def arranged(o: dict[str, np.ndarray]) -> Arrays:
        if ours and isinstance(described[0], spaces.Dict):
            return {names[feature]: values for feature, values in o.items()}
        return _chosen(o)

    def episodes() -> Iterator[Episode]:
        for file in sorted((source / "meta" / "episodes").rglob("*.parquet")):
            for entry in parquet.read_table(file).to_pylist():
                number = entry["episode_index"]
                with _reading(f"episode {number}", source):
                    whole = table(entry["data/chunk_index"], entry["data/file_index"])
                    rows = whole.filter(_equals(whole["episode_index"], number))
                    if rows.num_rows != entry["length"] or rows.num_rows < 2:
                        raise ValueError(
                            f"it has {rows.num_rows} of {entry['length']} rows; an episode needs "
                            f"two or more."
                        )
                    o = arranged({name: observed(name, entry, rows) for name in wanted})
                    a = np.array(rows["action"].to_pylist(), np.float32)[:-1]
                    r, done, truncated, terminated = (
                        np.array(rows[name].to_pylist())[:-1].reshape(-1)
                        if name in rows.column_names
                        else np.zeros(len(a))
                        for name in NEXT
                    )
                    a = _rescale(a, low, high)
                    if ours and "next.terminated" in rows.column_names:
                        yield _episode(o, a, r, terminated, truncated)
                        continue
                    # without next.truncated nobody knows whether the end was one
                    told = "next.truncated" in rows.column_names
                    yield _episode(o, a, r, told & (done > 0) & (truncated == 0))

    if ours:
        return Source(
            ours["env_id"],
            ours["env_kwargs"],
            episodes(),
            tuple(described),
            frame_stack,
            renderer=ours["renderer"],
        )
    return Source(source.name, {}, episodes(), renderer="camera")


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            "LeRobot datasets are parquet files: pip install pyarrow, or gjwm[lerobot]."
        ) from error
    return pyarrow.parquet


def _equals(column: Any, value: int) -> Any:
    """Which rows of a table's column hold the value."""
    import pyarrow.compute as compute

    return compute.equal(column, value)


def _placed(source: Path, template: str, **place: Any) -> Path:
    """A file of a LeRobot folder, named as its info.json says. Python would fill in anything, such
    as a name of a gigabyte for {chunk_index:01000000000d}."""
    if re.search("[{}]", re.sub(r"\{\w+(:0\dd)?\}", "", template)):
        raise ValueError(f"{template!r} is no way to name files, such as {DATA!r}.")
    return inside(source, template.format(**place))


class _Film:
    """One camera's films, read forwards: the episodes of a film lie in it one after another."""

    def __init__(self, source: Path, info: dict[str, Any], camera: str, side: int | None):
        self.source, self.info, self.camera, self.side = source, info, camera, side
        self.file: Path | None = None
        self.position = 0

    def frames(self, entry: dict[str, Any]) -> np.ndarray:
        """An episode's frames (T, 3, h, w)."""
        from gjwm._core.video import read_video

        place = {k: entry[f"videos/{self.camera}/{k}"] for k in ("chunk_index", "file_index")}
        file = _placed(self.source, self.info["video_path"], video_key=self.camera, **place)
        first = round(entry[f"videos/{self.camera}/from_timestamp"] * self.info["fps"])
        if file != self.file or first < self.position:
            self.file, self.position, self._frames = file, 0, read_video(file)
        frames = []
        for frame in self._frames:
            self.position += 1
            if self.position > first:
                frames.append(_resized(frame, self.side))
            if len(frames) == entry["length"]:
                return np.stack(frames).transpose(0, 3, 1, 2)
        raise ValueError(f"{file} ends before frame {first + entry['length']}.")


def _pictures(encoded: list[dict[str, Any]], side: int | None) -> np.ndarray:
    """Pictures as parquet keeps them, {"bytes": PNG} -> (T, 3, h, w)."""
    images = []
    for one in encoded:
        try:
            image = Image.open(io.BytesIO(one["bytes"])).convert("RGB")
        except (SyntaxError, Image.DecompressionBombError) as error:  # no kinds of damage elsewhere
            raise ValueError(f"a picture is damaged ({error}).") from error
        images.append(_resized(np.asarray(image), side))
    return np.stack(images).transpose(0, 3, 1, 2)


def _resized(frame: np.ndarray, side: int | None) -> np.ndarray:
    if side is None or frame.shape[:2] == (side, side):
        return frame
    return np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BOX))


FORMATS: dict[str, Callable[..., Source]] = {
    "gjwm": read_gjwm,
    "minari": read_minari,
    "swm": read_swm,
    "lerobot": read_lerobot,
}


def _minari_folder(source: Path) -> Path | None:
    for folder in (source / "data", source, source.parent):
        if (folder / "main_data.hdf5").is_file():
            return folder
    return None


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is not a readable HDF5 file ({error}).") from error


def _arrays(item: h5py.Dataset | h5py.Group) -> Arrays:
    if isinstance(item, h5py.Dataset):
        return item[()]
    nested = [name for name, value in item.items() if not isinstance(value, h5py.Dataset)]
    if nested:
        raise ValueError(
            f"observations {', '.join(nested)} are nested; expected arrays, or one "
            "level of named arrays."
        )
    return {name: value[()] for name, value in item.items()}


def _chosen(o: dict[str, np.ndarray]) -> Arrays:
    """The only one of named arrays, or all of them."""
    return o if len(o) > 1 else next(iter(o.values()))


def _rescale(a: np.ndarray, low: Any, high: Any) -> np.ndarray:
    """Actions (T, ...) from [low, high] to (T, A) in [-1, 1]."""
    a = np.asarray(a, np.float32).reshape(len(a), -1)
    if low is not None:
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (high > low).all()):
            raise ValueError(
                f"its actions have the bounds {low} and {high}; finite ones are needed to rescale "
                "them."
            )
        a = 2 * (a - low) / (high - low) - 1
    if np.abs(a).max(initial=0) > 1 + 1e-3:
        raise ValueError(
            f"an action is {np.abs(a).max():.3g} after rescaling and must lie in [-1, 1]; give the "
            "bounds, as action_low=... action_high=..."
        )
    return a.clip(-1, 1).astype(np.float32)


def _episode(
    o: Arrays,
    a: np.ndarray,
    r: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray | None = None,
) -> Episode:
    """Pictures (T+1, h, w, C) as (T+1, C, h, w). Where nobody says what truncated, a recording
    that just stops is.
    """

    def channels_first(x: np.ndarray) -> np.ndarray:
        picture = x.dtype == np.uint8 and x.ndim == 4
        last = picture and x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4)
        return rearrange(x, "t h w c -> t c h w") if last else x

    last = np.arange(len(a)) == len(a) - 1
    terminated = np.asarray(terminated, bool) & last
    truncated = last & (~terminated if truncated is None else np.asarray(truncated, bool))
    return Episode(nested(channels_first, o), a, np.asarray(r, np.float32), terminated, truncated)


def _space(o: Arrays) -> spaces.Space:
    """The space that an episode's observations show."""
    if isinstance(o, dict):
        return spaces.Dict({name: _space(values) for name, values in o.items()})
    if o.dtype.kind == "f":
        return spaces.Box(-np.inf, np.inf, o.shape[1:], o.dtype)
    limits = np.iinfo(o.dtype)
    return spaces.Box(limits.min, limits.max, o.shape[1:], o.dtype)
