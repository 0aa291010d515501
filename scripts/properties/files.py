"""Damage to files: what a bad disk, a bad transfer or a bad program leaves of them."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Files = dict[str, bytes]
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # thousands of fsyncs
# One kind of damage at a place (a share of the file) and of a size in bytes.
damages = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["flip", "flip", "cut", "zero", "repeat", "insert", "text"]),
        "where": st.floats(0, 1),
        "size": st.integers(1, 64),
        "value": st.integers(1, 255),
    }
)
# Other values alone: JSON stays JSON, so that what it says is read.
values = st.fixed_dictionaries(
    {
        "kind": st.just("text"),
        "where": st.integers(0, 999).map(lambda place: place / 1000),
        "size": st.just(1),
        "value": st.integers(0, 7),
    }
)
wounds = st.lists(damages, min_size=1, max_size=3) | st.lists(values, min_size=1, max_size=2)
TEXT = (b"null", b"-1", b"[]", b"{}", b"9999999999", b'"x"', b"1e999", b"true")


def damaged(content: bytes, damage: dict) -> bytes:
    """The content with one damage."""
    at = min(int(damage["where"] * len(content)), max(0, len(content) - 1))
    kind, size, value = damage["kind"], damage["size"], damage["value"]
    rest = content[at:]
    if kind == "flip":
        return content[:at] + bytes([rest[0] ^ value]) + rest[1:] if rest else content
    if kind == "cut":
        return content[:at]
    if kind == "zero":
        return content[:at] + bytes(min(size, len(rest))) + rest[size:]
    if kind == "repeat":
        return content[:at] + rest[:size] + rest
    if kind == "insert":
        return content[:at] + bytes([value]) * size + rest
    if (changed := _with_value(content, damage["where"], TEXT[value % len(TEXT)])) is not None:
        return changed
    # JSON within another file: another value where it has a number or a text, to the next comma
    comma, end = content.find(b": ", at), -1
    if comma >= 0:
        end = min(
            (p for p in (content.find(c, comma) for c in (b",", b"\n", b"}")) if p >= 0), default=-1
        )
    if end < 0:
        return content
    return content[: comma + 2] + TEXT[value % len(TEXT)] + content[end:]


def _with_value(content: bytes, where: float, value: bytes) -> bytes | None:
    """JSON with another value somewhere; None if the content is none."""
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        return None
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        inner = node if isinstance(node, dict) else range(len(node) if type(node) is list else 0)
        for key in inner:
            places.append((node, key))
            visit(node[key])

    visit(whole)
    if not places:
        return None
    node, key = places[min(int(where * len(places)), len(places) - 1)]
    node[key] = json.loads(value)
    return json.dumps(whole, indent=1).encode()


@functools.cache
def made(make: Callable[[Path], None]) -> Files:
    """What `make` writes into a folder, by name: made once."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return {
            str(p.relative_to(folder)): p.read_bytes()
            for p in sorted(Path(folder).rglob("*"))
            if p.is_file()
        }


@contextmanager
def laid_out(files: Files) -> Iterator[Path]:
    """A folder with these files, for the block."""
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    try:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        yield folder
    finally:
        shutil.rmtree(folder)


def with_damage(files: Files, which: int, damage: list[dict]) -> Files:
    """The files, one of them damaged."""
    name = sorted(files)[which % len(files)]
    content = files[name]
    for each in damage:
        content = damaged(content, each)
    return files | {name: content}
