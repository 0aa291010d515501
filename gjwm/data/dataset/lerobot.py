"""A dataset of this package written as a LeRobot v3 folder; `foreign.read_lerobot` reads one.

    meta/info.json, meta/stats.json, meta/tasks.parquet, meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet                    rows, one per observation; pictures as PNG
    videos/<feature>/chunk-000/file-000.mp4            or pictures as films of many episodes
    meta/gjwm.json                                     ours: what LeRobot has no place for

LeRobot's row t holds an observation and the action taken there, so that the observation that an
episode ends with needs an action: the last one, once more. Rows are written as they come, and the
folder takes its name when it is whole."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import Image

from gjwm._core.video import FilmWriter
from gjwm.data.dataset.episodes import Episode, newest_frames
from gjwm.data.dataset.metadata import layout
from gjwm.data.dataset.reader import dataset_info, read_episodes
from gjwm.data.replay import box_fields, frame_shapes

OURS, OURS_FORMAT = Path("meta", "gjwm.json"), 1
# What the file holds: all that makes a dataset of this package of the rows.
KEPT = ("env_id", "env_kwargs", "observation_space", "action_space", "frame_stack", "renderer")
CHUNK, DATA_MB, VIDEO_MB = 1000, 100, 200  # LeRobot's files per chunk and sizes of a file
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
# Of lossless films and others: the coder, what it is given, what it makes. Small pictures lose much
# with the usual quarter of their colours.
CODECS = (("libx264rgb", "rgb24", "gbrp"), ("libx264", "yuv444p", "yuv444p"))
# Columns of every LeRobot dataset, and what led from a row to the next.
COUNTS = ("frame_index", "episode_index", "index", "task_index")
NEXT = {
    "next.reward": "float32",
    "next.done": "bool",
    "next.truncated": "bool",
    # A word that LeRobot does not have: with truncated alone, an episode with both ends or neither
    # would come back with one.
    "next.terminated": "bool",
}


def feature_names(space: spaces.Space) -> dict[str, str]:
    """The LeRobot feature of each field of an observation space: {feature: field}."""
    fields = box_fields(space)
    if wrong := [name for name in fields if "/" in name]:
        raise ValueError(f"LeRobot has no feature with a / in its name, as in {wrong[0]!r}.")
    kinds = {name: "images." if _is_picture(box) else "" for name, box in fields.items()}
    alone = {"": "pixels" if kinds.get("") else "state"}
    return {f"observation.{kinds[name]}{alone.get(name, name)}": name for name in fields}


def _is_picture(box: spaces.Box) -> bool:
    return box.dtype == np.uint8 and len(box.shape) == 3


def write_lerobot(
    source: str | Path,
    target: str | Path,
    *,
    pictures: str = "png",
    quality: str | int | None = None,
    fps: str | int = 10,
    task: str = "",
) -> dict[str, Any]:
    """Write the dataset at `source` as a LeRobot v3 folder.

    Args:
        pictures: "png", within the tables, or "video".
        quality: of films, x264's constant rate factor: 0, the default, is lossless, 18 looks it, 30
            is small.
        fps: frames per second that timestamps and films say; a dataset does not know it.
        task: LeRobot's text of what is done; by default the environment's id.

    Returns:
        {"to", "episodes", "steps"}.

    Raises:
        FileNotFoundError, ValueError: for a source that cannot be read or holds pictures of other
            than three channels, options that cannot be, or a target that is there.
    """
    if pictures not in ("png", "video"):
        raise ValueError(f"pictures must be png or video, got {pictures!r}.")
    if quality is not None and pictures == "png":
        raise ValueError(
            f"quality={quality} is of films, and pictures=png is lossless: leave it out, or set "
            "pictures=video."
        )
    quality = _number("quality", 0 if quality is None else quality, 0, 51)
    fps = _number("fps", fps, 1, 1000)
    info = dataset_info(source)
    if not info["episodes"]:
        raise ValueError(f"{source} holds no episodes.")
    with _whole_folder(Path(target)) as folder:
        writing = _Folder(folder, info, pictures, quality, fps, task or info["env_id"])
        try:
            for episode in read_episodes(source):
                writing.add(episode)
        finally:
            writing.close()
        writing.describe()
    return {"to": "lerobot", "episodes": info["episodes"], "steps": info["steps"]}


def _number(name: str, given: str | int, least: int, most: int) -> int:
    number = int(given) if str(given).isdecimal() else -1
    if not least <= number <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {given}.")
    return number


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when the block ends well."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not empty; convert into a new folder.")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


class _Folder:
    """What is written episode by episode, and the descriptions at the end."""

    def __init__(
        self, folder: Path, info: dict[str, Any], pictures: str, quality: int, fps: int, task: str
    ):
        self.folder, self.info, self.fps, self.task = folder, info, fps, task
        self.arrow, self.parquet = _arrow()
        self.space, actions, self.frame_stack = layout(info)
        self.names = feature_names(self.space)
        fields = box_fields(self.space)
        shapes = frame_shapes(fields, self.frame_stack)
        self.features: dict[str, dict[str, Any]] = {}
        for feature, name in self.names.items():
            dtype, shape = fields[name].dtype.name, (max(1, int(np.prod(shapes[name]))),)
            named = None
            if _is_picture(fields[name]):
                c, *size = shapes[name]
                if c != 3:
                    raise ValueError(
                        f"LeRobot's pictures have 3 channels; those of {name or 'this dataset'} "
                        f"have {c}."
                    )
                dtype, shape = "image" if pictures == "png" else "video", (*size, 3)
                named = ["height", "width", "channels"]
            self.features[feature] = {"dtype": dtype, "shape": shape, "names": named}
        self.features["action"] = {"dtype": "float32", "shape": actions.shape, "names": None}
        for name, dtype in (*NEXT.items(), ("timestamp", "float32")):
            self.features[name] = {"dtype": dtype, "shape": (1,), "names": None}
        for name in COUNTS:
            self.features[name] = {"dtype": "int64", "shape": (1,), "names": None}
        films = [name for name, feature in self.features.items() if feature["dtype"] == "video"]
        self.films = {name: _Films(folder, name, quality, fps) for name in films}
        for name, film in self.films.items():
            self.features[name]["info"] = film.described(*self.features[name]["shape"])
        self.table, self.place, self.rows = None, _Place(), 0
        self.episodes: list[dict[str, Any]] = []
        self.seen: dict[str, _Seen] = {name: _Seen() for name in self.features}

    def add(self, episode: Episode) -> None:
        """Write one episode's rows and frames."""
        steps = len(episode.a)
        o = newest_frames(episode.o, self.space, self.frame_stack)
        named = o if isinstance(o, dict) else {"": o}
        number, rows = len(self.episodes), steps + 1
        columns: dict[str, np.ndarray] = {}
        for feature, name in self.names.items():
            shape = self.features[feature]["shape"]
            if len(shape) == 3:
                columns[feature] = np.ascontiguousarray(named[name].transpose(0, 2, 3, 1))
            else:
                columns[feature] = named[name].reshape(rows, *shape)
        columns["action"] = np.concatenate([episode.a, episode.a[-1:]])
        ended = np.arange(rows) >= steps - 1  # the row of the last action, and the one behind it
        columns["next.reward"] = np.append(episode.r, np.float32(0))
        columns["next.done"] = ended
        columns["next.truncated"] = ended & bool(episode.truncated[-1])
        columns["next.terminated"] = ended & bool(episode.terminated[-1])
        columns["frame_index"] = np.arange(rows)
        columns["timestamp"] = (np.arange(rows) / self.fps).astype(np.float32)
        columns["episode_index"], columns["task_index"] = np.full(rows, number), np.zeros(rows, int)
        columns["index"] = self.rows + np.arange(rows)
        entry: dict[str, Any] = {"episode_index": number, "tasks": [self.task], "length": rows}
        entry |= {"dataset_from_index": self.rows, "dataset_to_index": self.rows + rows}
        entry |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        for name, film in self.films.items():
            entry |= film.add(columns[name])
        entry |= {f"data/{key}": value for key, value in self._write(columns).items()}
        for name, values in columns.items():
            seen = self.seen[name].add(values)
            entry |= {f"stats/{name}/{key}": value for key, value in seen.statistics().items()}
        self.episodes.append(entry)
        self.rows += rows

    def _write(self, columns: dict[str, np.ndarray]) -> dict[str, int]:
        """Append rows to the tables -> which file has them."""
        arrays = {
            name: self._array(values, self.features[name])
            for name, values in columns.items()
            if name not in self.films
        }
        table = self.arrow.table(arrays)
        if self.table is not None and self.place.bytes >= DATA_MB * 2**20:
            self.table.close()
            self.table, self.place = None, self.place.next()
        if self.table is None:
            file = self.folder / DATA.format(**self.place.index())
            file.parent.mkdir(parents=True, exist_ok=True)
            self.table = self.parquet.ParquetWriter(file, table.schema)
        self.table.write_table(table)
        self.place.bytes += table.nbytes
        return self.place.index()

    def _array(self, values: np.ndarray, feature: dict[str, Any]) -> Any:
        """Values (T, ...) as an arrow array: PNG files, fixed lists, or numbers."""
        if feature["dtype"] == "image":
            return self.arrow.array([{"bytes": _png(frame), "path": None} for frame in values])
        flat = self.arrow.array(np.ascontiguousarray(values.reshape(-1)))
        size = int(np.prod(feature["shape"]))
        return flat if size == 1 else self.arrow.FixedSizeListArray.from_arrays(flat, size)

    def close(self) -> None:
        """Finish the files."""
        for film in self.films.values():
            film.close()
        if self.table is not None:
            self.table.close()

    def describe(self) -> None:
        """Write meta/, once all episodes are there."""
        episodes = self.folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        episodes.parent.mkdir(parents=True)
        self.parquet.write_table(self.arrow.Table.from_pylist(self.episodes), episodes)
        # pandas takes the text as the index of its rows
        index = {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode"}
        column = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64"}
        described = {"index_columns": ["__index_level_0__"], "column_indexes": []}
        described["columns"] = [
            column | {"numpy_type": "int64", "metadata": None},
            index | {"numpy_type": "object", "metadata": None},
        ]
        tasks = self.arrow.table({"task_index": [0], "__index_level_0__": [self.task]})
        tasks = tasks.replace_schema_metadata({"pandas": json.dumps(described)})
        self.parquet.write_table(tasks, self.folder / "meta" / "tasks.parquet")
        stats = {name: seen.statistics() for name, seen in self.seen.items()}
        info = {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": len(self.episodes),
            "total_frames": self.rows,
            "total_tasks": 1,
            "chunks_size": CHUNK,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": DATA,
            "video_path": VIDEO if self.films else None,
            "features": self.features,
        }
        ours = {"format": OURS_FORMAT} | {name: self.info[name] for name in KEPT}
        for name, content in (("stats", stats), ("gjwm", ours), ("info", info)):
            text = json.dumps(content, indent=1) + "\n"
            (self.folder / "meta" / f"{name}.json").write_text(text)


class _Place:
    """Which file is being written, and its size so far."""

    def __init__(self, number: int = 0):
        self.number, self.bytes = number, 0

    def index(self) -> dict[str, int]:
        return {"chunk_index": self.number // CHUNK, "file_index": self.number % CHUNK}

    def next(self) -> _Place:
        return _Place(self.number + 1)


class _Films:
    """The films of one camera, each of many episodes."""

    def __init__(self, folder: Path, name: str, quality: int, fps: int):
        self.folder, self.name, self.quality, self.fps = folder, name, quality, fps
        self.place, self.frames, self.film = _Place(), 0, None

    def add(self, frames: np.ndarray) -> dict[str, Any]:
        """Frames (T, h, w, 3) of an episode -> where they lie."""
        if self.film is not None and self.film.bytes() >= VIDEO_MB * 2**20:
            self.close()
            self.place, self.frames = self.place.next(), 0
        if self.film is None:
            file = self.folder / VIDEO.format(video_key=self.name, **self.place.index())
            file.parent.mkdir(parents=True, exist_ok=True)
            # Two frames from one that stands alone, as LeRobot's own: any is read quickly.
            codec, pixels = CODECS[self.quality > 0][:2]
            coded = dict(quality=self.quality, codec=codec, pixels=pixels, keyframes=2)
            self.film = FilmWriter(file, fps=self.fps, **coded)
        for frame in frames:
            self.film.add(frame)
        begin, self.frames = self.frames, self.frames + len(frames)
        times = {"from_timestamp": begin / self.fps, "to_timestamp": self.frames / self.fps}
        return {f"videos/{self.name}/{k}": v for k, v in (self.place.index() | times).items()}

    def described(self, height: int, width: int, channels: int) -> dict[str, Any]:
        """What info.json says of the films."""
        said = {"height": height, "width": width, "codec": "h264", "fps": self.fps}
        said |= {"pix_fmt": CODECS[self.quality > 0][2], "channels": channels}
        said |= {"is_depth_map": False}
        return {f"video.{k}": v for k, v in said.items()} | {"has_audio": False}

    def close(self) -> None:
        if self.film is not None:
            self.film.close()
            self.film = None


class _Seen:
    """Statistics of a feature: from all its values, of pictures from how often each level occurs
    in each channel."""

    def __init__(self):
        self.parts: list[np.ndarray] = []
        self.levels, self.frames = np.zeros((0, 256), int), 0

    def add(self, values: np.ndarray) -> _Seen:
        """Take in values (T, ...) -> what is seen in them alone."""
        alone = _Seen()
        if values.ndim == 4:
            channels = [np.bincount(values[..., c].ravel(), minlength=256) for c in range(3)]
            alone.levels, alone.frames = np.stack(channels), len(values)
            self.levels = alone.levels + (self.levels if self.frames else 0)
            self.frames += len(values)
        else:
            alone.parts = [values.reshape(len(values), -1)]
            self.parts += alone.parts
        return alone

    def statistics(self) -> dict[str, Any]:
        """LeRobot's min, max, mean, std, count and quantiles; pictures in [0, 1] and (3, 1, 1)."""
        if self.frames:
            levels = np.arange(256) / 255
            below = self.levels.cumsum(1) / self.levels.sum(1, keepdims=True)
            share = self.levels / self.levels.sum(1, keepdims=True)
            mean = share @ levels
            found = {"min": (self.levels > 0).argmax(1) / 255, "mean": mean}
            found["max"] = (255 - (self.levels[:, ::-1] > 0).argmax(1)) / 255
            found["std"] = np.sqrt(np.maximum(0, share @ levels**2 - mean**2))
            found |= {name: (below >= q).argmax(1) / 255 for name, q in QUANTILES.items()}
            told = {name: value.reshape(3, 1, 1).tolist() for name, value in found.items()}
            return told | {"count": [self.frames]}
        values = np.concatenate(self.parts).astype(np.float64)
        found = {name: getattr(values, name)(0) for name in ("min", "max", "mean", "std")}
        found |= dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0)))
        return {name: value.tolist() for name, value in found.items()} | {"count": [len(values)]}


def _png(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "png")
    return file.getvalue()


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            "LeRobot datasets are parquet files: pip install pyarrow, or gjwm[lerobot]."
        ) from error
    return pyarrow, pyarrow.parquet
