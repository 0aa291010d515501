"""Datasets of other packages, read episode by episode: Minari, stable-worldmodel HDF5, LeRobot v3,
and our own to pack anew.

All are read directly, without the packages that wrote them; only LeRobot's need pyarrow. Images
become (C, h, w); actions are rescaled from their bounds to [-1, 1], which everything here expects.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from gymnasium import spaces
from PIL import Image

from gjwm.data.dataset.episodes import Arrays, Episode
from gjwm.data.dataset.reader import dataset_info, read_episodes
from gjwm.data.dataset.writer import DatasetWriter
from gjwm.data.replay import rebuild_space


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
    kind = _recognise(source) if kind is None else kind
    if kind not in FORMATS:
        raise ValueError(f"from must be one of {', '.join(FORMATS)}, got {kind!r}.")
    compress = options.pop("compress", "false")
    if compress not in ("true", "false"):
        raise ValueError(f"compress must be true or false, got {compress!r}.")
    try:
        opened = FORMATS[kind](source, **options)
    except TypeError as error:
        raise ValueError(
            f"the {kind} reader does not take {', '.join(options)}: {error}."
        ) from error
    writer: DatasetWriter | None = None
    try:
        for episode in opened.episodes:
            if writer is None:
                space, action_space = opened.spaces or (
                    _space(episode.o),
                    _unit_box(episode.a.shape[1]),
                )
                writer = DatasetWriter(
                    target,
                    env_id=opened.env_id,
                    env_kwargs=opened.env_kwargs,
                    observation_space=space,
                    action_space=action_space,
                    frame_stack=opened.frame_stack,
                    record_state=opened.record_state,
                    renderer=opened.renderer,
                    compress=compress == "true",
                )
            writer.append(episode, converted_from=kind, source=source.name)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise ValueError(f"{source} holds no episodes.")
    return {"from": kind, "episodes": writer.info["episodes"], "steps": writer.info["steps"]}


def _recognise(source: Path) -> str:
    if (source / "metadata.json").is_file() and list(source.glob("shard-*.h5")):
        return "gjwm"
    if _minari_folder(source) is not None:
        return "minari"
    if (source / "meta" / "info.json").is_file():
        return "lerobot"
    if source.is_file() and h5py.is_hdf5(source):
        with h5py.File(source, "r") as file:
            if "ep_len" in file and "ep_offset" in file:
                return "swm"
    raise ValueError(f"the format of {source} is not known; say from={'|'.join(FORMATS)}.")


# -- readers
# --  ----------------------------------------------------------------------------------------------


def read_gjwm(source: Path) -> Source:
    """A dataset of this package: to compress it, to unite its shards, or to repair what another
    program rewrote.
    """
    info = dataset_info(source)
    described = rebuild_space(info["observation_space"]), rebuild_space(info["action_space"])
    return Source(
        info["env_id"],
        info["env_kwargs"],
        read_episodes(source),
        described,
        info["frame_stack"],
        info["record_state"],
        info["renderer"],
    )


def read_minari(source: Path) -> Source:
    """A Minari dataset of the HDF5 kind: `<dataset>/data/main_data.hdf5` with metadata.json beside
    it.
    """
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
    env_id, kwargs = (
        spec.get("id") or metadata.get("dataset_id", source.name),
        spec.get("kwargs") or {},
    )

    def episodes() -> Iterator[Episode]:
        with _open(folder / "main_data.hdf5") as file:
            names = sorted(
                (name for name in file if name.startswith("episode_")),
                key=lambda n: int(n.split("_")[1]),
            )
            for name in names:
                group = file[name]
                try:
                    a = np.asarray(group["actions"][()], np.float32)
                    yield Episode(
                        _images_first(_arrays(group["observations"])),
                        _rescale(a.reshape(len(a), -1), low, high),
                        group["rewards"][()].astype(np.float32),
                        *_ends(group["terminations"][()], group["truncations"][()]),
                    )
                except (KeyError, OSError, ValueError) as error:
                    raise ValueError(f"{name} of {source} cannot be read: {error}") from error

    return Source(env_id, kwargs, episodes())


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
            guesses = [
                name for name in ("pixels", "observation", "proprio", "state") if name in file
            ]
            wanted = observation.split(",") if observation else guesses[:1]
            missing = [
                name for name in (*wanted, "action", "ep_len", "ep_offset") if name not in file
            ]
            if missing or not wanted:
                raise ValueError(
                    f"{source} has no column {', '.join(missing) or 'to observe'}; its columns are "
                    f"{', '.join(known)}."
                )
            for number, (length, offset) in enumerate(
                zip(file["ep_len"][()].tolist(), file["ep_offset"][()].tolist())
            ):
                rows, steps = slice(offset, offset + length), slice(offset + 1, offset + length)
                try:
                    o = _images_first({name: file[name][rows] for name in wanted})
                    a = np.asarray(file["action"][rows.start : rows.stop - 1], np.float32)
                    if len(a) != length - 1 or length < 2:
                        raise ValueError(
                            f"it has {len(a) + 1} of {length} rows; an episode needs two or more."
                        )
                    r = file["reward"][steps] if "reward" in file else np.zeros(length - 1)
                    flags = [
                        file[name][steps].astype(bool).reshape(-1)
                        if name in file
                        else np.zeros(length - 1, bool)
                        for name in ("terminated", "truncated")
                    ]
                    yield Episode(
                        o if len(wanted) > 1 else o[wanted[0]],
                        _rescale(a.reshape(len(a), -1), low, high),
                        np.asarray(r, np.float32).reshape(-1),
                        *_ends(*flags),
                    )
                except (OSError, ValueError) as error:
                    raise ValueError(
                        f"episode {number} of {source} cannot be read: {error}"
                    ) from error

    return Source(env_id or source.stem, {}, episodes(), renderer="unknown")


def read_lerobot(source: Path, *, observation: str = "", size: str = "") -> Source:
    """A LeRobot v3 dataset: tables in parquet, cameras as films of many episodes each.

    Its row t holds an observation and the action taken there; an episode's last action leads
    nowhere and is left out. Actions are rescaled from their least and greatest values in
    meta/stats.json.

    Args:
        observation: the features to observe, with commas between; by default the first camera, or
            observation.state.
        size: images are resized to size x size.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError(
            "LeRobot datasets are parquet files: pip install pyarrow, or gjwm[lerobot]."
        ) from error
    info = json.loads((source / "meta" / "info.json").read_text())
    version, features = str(info.get("codebase_version")), info["features"]
    if not version.startswith("v3."):
        raise ValueError(
            f"{source} is of LeRobot format {version}; v3 is read: convert it with lerobot's own "
            f"script first."
        )
    cameras = [name for name, feature in features.items() if feature["dtype"] in ("video", "image")]
    wanted = observation.split(",") if observation else [*cameras, "observation.state"][:1]
    missing = [name for name in (*wanted, "action") if name not in features]
    if missing:
        raise ValueError(
            f"{source} has no feature {', '.join(missing)}; its features are {', '.join(features)}."
        )
    stats = json.loads((source / "meta" / "stats.json").read_text())["action"]
    low, high = (np.asarray(stats[bound], np.float32) for bound in ("min", "max"))
    low, high = (
        np.where(high > low, low, low - 1),
        np.where(high > low, high, high + 1),
    )  # a constant action becomes 0
    side = int(size) if size else None

    def episodes() -> Iterator[Episode]:
        table: dict[str, Any] = {}
        films = {
            name: _Film(source, info, name, side)
            for name in wanted
            if features[name]["dtype"] == "video"
        }
        for file in sorted((source / "meta" / "episodes").rglob("*.parquet")):
            for entry in parquet.read_table(file).to_pylist():
                number = entry["episode_index"]
                try:
                    place = {
                        "chunk_index": entry["data/chunk_index"],
                        "file_index": entry["data/file_index"],
                    }
                    if table.get("place") != place:
                        table = {
                            "place": place,
                            "rows": parquet.read_table(source / info["data_path"].format(**place)),
                        }
                    rows = table["rows"].filter(_equals(table["rows"]["episode_index"], number))
                    if rows.num_rows != entry["length"] or rows.num_rows < 2:
                        raise ValueError(
                            f"it has {rows.num_rows} of {entry['length']} rows; an episode needs "
                            f"two or more."
                        )
                    o = {
                        name: films[name].frames(entry)
                        if name in films
                        else _pictures(rows[name].to_pylist(), side)
                        if features[name]["dtype"] == "image"
                        else np.array(rows[name].to_pylist(), np.float32)
                        for name in wanted
                    }
                    a = np.array(rows["action"].to_pylist(), np.float32).reshape(rows.num_rows, -1)[
                        :-1
                    ]
                    rewards = (
                        rows["next.reward"].to_pylist()[:-1]
                        if "next.reward" in rows.column_names
                        else [0.0] * len(a)
                    )
                    none = np.zeros(len(a), bool)
                    yield Episode(
                        o if len(wanted) > 1 else o[wanted[0]],
                        _rescale(a, low, high),
                        np.array(rewards, np.float32).reshape(-1),
                        *_ends(none, none),
                    )
                except (KeyError, OSError, ValueError) as error:
                    raise ValueError(
                        f"episode {number} of {source} cannot be read: {error}"
                    ) from error

    return Source(source.name, {}, episodes(), renderer="camera")


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
        file = self.source / self.info["video_path"].format(video_key=self.camera, **place)
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
    images = [
        _resized(np.asarray(Image.open(io.BytesIO(one["bytes"])).convert("RGB")), side)
        for one in encoded
    ]
    return np.stack(images).transpose(0, 3, 1, 2)


def _resized(frame: np.ndarray, side: int | None) -> np.ndarray:
    if side is None or frame.shape[:2] == (side, side):
        return frame
    return np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BOX))


def _equals(column: Any, value: int) -> Any:
    import pyarrow.compute as compute

    return compute.equal(column, value)


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


def _images_first(o: Arrays) -> Arrays:
    """uint8 images (T+1, h, w, C) as (T+1, C, h, w)."""
    if isinstance(o, dict):
        return {name: _images_first(values) for name, values in o.items()}
    if (
        o.dtype == np.uint8
        and o.ndim == 4
        and o.shape[-1] in (1, 3, 4)
        and o.shape[1] not in (1, 3, 4)
    ):
        return np.ascontiguousarray(o.transpose(0, 3, 1, 2))
    return o


def _rescale(a: np.ndarray, low: Any, high: Any) -> np.ndarray:
    """Actions (T, A) from [low, high] to [-1, 1]."""
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


def _ends(terminated: np.ndarray, truncated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flags (T,) true on the last step at most; a recording that just stops is truncated."""
    last = np.arange(len(terminated)) == len(terminated) - 1
    terminated = np.asarray(terminated, bool) & last
    return terminated, last & ~terminated


def _space(o: Arrays) -> spaces.Space:
    """The space that an episode's observations show."""
    if isinstance(o, dict):
        return spaces.Dict({name: _space(values) for name, values in o.items()})
    if o.dtype.kind == "f":
        return spaces.Box(-np.inf, np.inf, o.shape[1:], o.dtype)
    limits = np.iinfo(o.dtype)
    return spaces.Box(limits.min, limits.max, o.shape[1:], o.dtype)


def _unit_box(action_dim: int) -> spaces.Box:
    return spaces.Box(-1, 1, (action_dim,), np.float32)
