"""Replay: windows of any buffer lie inside one episode and hold what was added."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from hypothesis import strategies as st

from gjwm.data.replay import ReplayBuffer, stack_frames
from properties import refused, register
from properties.files import laid_out

ACTION = spaces.Box(-1, 1, (2,), np.float32)
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
lengths = st.lists(st.integers(1, 12), min_size=1, max_size=8)


def image(frame_stack: int) -> spaces.Box:
    """Space of stacked pictures of one channel."""
    return spaces.Box(0, 255, (frame_stack, 1, 4), np.uint8)


def frames(number: int, length: int) -> np.ndarray:
    """Pictures (T+1, 1, 1, 4) that say their episode and step."""
    step = np.arange(length + 1)
    told = np.stack([np.full(length + 1, number), step, 7 * step % 251, 0 * step], 1)
    return told.astype(np.uint8)[:, None, None]


def episode(number: int, length: int, kind: str, frame_stack: int) -> tuple:
    """o, a, r, terminated, truncated: numbers from which episode and step can be read."""
    step = np.arange(length)
    vector = np.stack(
        [np.full(length + 1, number), np.arange(length + 1), -step.sum() * np.ones(length + 1)], 1
    )
    pictures = stack_frames(frames(number, length), frame_stack)
    o = {"vector": vector.astype(np.float32), "image": pictures}
    o = o if kind == "dict" else o[kind]
    a = np.stack([step / 100, np.full(length, number / 100)], 1).astype(np.float32)
    last = step == length - 1
    ends = last & (number % 2 == 0), last & (number % 2 == 1)
    return o, a, (1000 * number + step).astype(np.float32), *ends


def space(kind: str, frame_stack: int) -> spaces.Space:
    """Of the observations of `episode`."""
    both = {"vector": VECTOR, "image": image(frame_stack)}
    return spaces.Dict(both) if kind == "dict" else both[kind]


def fill(buffer: ReplayBuffer, episodes: list[tuple], whole: bool) -> None:
    """Add episodes one after another: at once, or step by step in one lane of several."""
    for o, a, r, terminated, truncated in episodes:
        if whole:
            buffer.add_episode(o, a, r, terminated, truncated)
            continue
        for t in range(len(a)):
            now, after = (
                {k: v[i][None].repeat(buffer.num_envs, 0) for k, v in o.items()}
                if isinstance(o, dict)
                else o[i][None].repeat(buffer.num_envs, 0)
                for i in (t, t + 1)
            )
            row = (a[t], r[t], terminated[t], truncated[t])
            a_, r_, end, cut = (np.repeat(np.asarray(x)[None], buffer.num_envs, 0) for x in row)
            buffer.add(now, a_, r_, end, cut, after)


def check(batch, episodes: list[tuple], window: int, kind: str) -> None:
    """Every window of the batch is a stretch of one of the episodes.

    Raises:
        AssertionError: for one that is not.
    """
    for b in range(len(batch.r)):
        number, first = divmod(int(batch.r[b, 0]), 1000)
        o, a, r, terminated, _ = episodes[number]
        assert first + window <= len(a), f"a window crosses the end of episode {number}"
        rows = slice(first, first + window)
        np.testing.assert_array_equal(batch.a[b].numpy(), a[rows])
        np.testing.assert_array_equal(batch.r[b].numpy(), r[rows])
        np.testing.assert_array_equal(batch.terminated[b].numpy(), terminated[rows])
        seen = batch.o if isinstance(batch.o, dict) else {kind: batch.o}
        for name, values in seen.items():
            source = o[name] if isinstance(o, dict) else o
            np.testing.assert_array_equal(values[b].numpy(), source[first : first + window + 1])


def make(
    lengths: list[int], kind: str, frame_stack: int, lanes: int, spare: int, whole: bool
) -> tuple[ReplayBuffer, list[tuple]] | None:
    """A filled buffer and the episodes that went in; None where one does not fit a lane."""
    frame_stack = 1 if kind == "vector" else frame_stack
    episodes = [episode(k, n, kind, frame_stack) for k, n in enumerate(lengths)]
    capacity = max(lanes, sum(lengths) * (1 if whole else lanes) + spare)
    buffer = ReplayBuffer(
        capacity, space(kind, frame_stack), ACTION, lanes, frame_stack=frame_stack
    )
    with refused() as said:
        fill(buffer, episodes, whole)
    if said:
        assert whole and "does not fit a lane" in said[0], said
        assert max(lengths) > capacity // lanes
        return None
    return buffer, episodes


filled = dict(
    lengths=lengths,
    kind=st.sampled_from(["vector", "image", "dict"]),
    frame_stack=st.integers(1, 4),
    lanes=st.integers(1, 3),
    spare=st.integers(-40, 10),  # below 0 the ring drops what is oldest
    whole=st.booleans(),
)


@register(
    3,
    **filled,
    window=st.integers(-1, 14),
    batch=st.integers(-1, 16),
    limit=st.none() | st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def windows_lie_inside_one_episode(
    lengths, kind, frame_stack, lanes, spare, whole, window, batch, limit, seed
):
    """What is drawn is a stretch of what was added; nothing is refused that is all there."""
    made = make(lengths, kind, frame_stack, lanes, spare, whole)
    if made is None:
        return
    buffer, episodes = made
    sensible = window >= 1 and batch >= 1 and (limit is None or limit >= 1)
    with refused() as said:
        drawn = buffer.sample(batch, window, torch.Generator().manual_seed(seed), limit)
        assert sensible and len(drawn.r) == batch
        check(drawn, episodes, window, kind)
        if limit is not None:
            assert len(set(drawn.episode.tolist())) <= limit
    everything = spare >= 0 and (lanes == 1 or not whole)
    if said and sensible and everything:
        assert window > max(lengths), f"{said} though a window of {window} is in {lengths}"


@register(
    1,
    **filled,
    window=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
)
def a_saved_buffer_draws_the_same_windows(
    lengths, kind, frame_stack, lanes, spare, whole, window, seed
):
    """Written and read again it gives the same windows for the same generator."""
    made = make(lengths, kind, frame_stack, lanes, spare, whole)
    if made is None:
        return
    with laid_out({}) as folder:
        made[0].save(folder / "replay.pt")
        again = ReplayBuffer.load(folder / "replay.pt")
    drawn = []
    for buffer in (made[0], again):
        with refused() as said:
            drawn.append(buffer.sample(5, window, torch.Generator().manual_seed(seed)))
        drawn += said
    if isinstance(drawn[0], str):
        assert drawn[0] == drawn[1]
        return
    check(drawn[1], made[1], window, kind)
    assert torch.equal(drawn[0].r, drawn[1].r) and torch.equal(drawn[0].a, drawn[1].a)


NOT = {  # what may be wrong with one argument of `add_episode`
    "nan": lambda x: np.where(np.arange(x.size).reshape(x.shape) == x.size - 1, np.nan, x),
    "infinite": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 0, np.inf, x),
    "short": lambda x: x[:-1],
    "long": lambda x: np.concatenate([x, x[-1:]]),
    "flat": lambda x: x.reshape(-1),
    "text": lambda x: x.astype(str),
    "complex": lambda x: x.astype(complex),
    "objects": lambda x: np.array([None] * len(x), object),
}


@register(
    1,
    length=st.integers(1, 5),
    kind=st.sampled_from(["vector", "image"]),
    which=st.integers(0, 4),
    wrong=st.sampled_from(sorted(NOT)),
)
def what_does_not_fit_is_refused_and_changes_nothing(length, kind, which, wrong):
    """One sentence, and the buffer draws as before."""
    good = episode(1, length, kind, 1)
    buffer = ReplayBuffer(40, space(kind, 1), ACTION)
    buffer.add_episode(*good)
    bad = list(good)
    bad[which] = NOT[wrong](np.asarray(bad[which]))
    with refused() as said:
        buffer.add_episode(*bad)
    if said:
        assert len(buffer) == length
    else:  # a vector (T,) is flat already, and so on
        assert np.shape(bad[which]) == np.shape(good[which]) or wrong in ("flat",)
        assert len(buffer) == 2 * length
    drawn = buffer.sample(4, length, torch.Generator().manual_seed(0))
    assert drawn.r.isfinite().all() and drawn.a.isfinite().all()
