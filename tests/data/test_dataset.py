"""Claims about datasets on disk: nothing finished is lost, nothing whole is overwritten, and what
is wrong is named.
"""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest
import torch
from gymnasium import spaces

from gjwm._core.video import write_video
from gjwm.cli.app import main
from gjwm.data.dataset import (
    DatasetWriter,
    DiskWindows,
    Episode,
    dataset_info,
    load_buffer,
    open_windows,
    read_episodes,
    verify,
)
from gjwm.data.dataset import stream as stream_module
from gjwm.data.dataset.episodes import checksum
from gjwm.data.dataset.foreign import convert
from gjwm.data.dataset.lerobot import write_lerobot
from gjwm.data.dataset.shard import Shard
from gjwm.data.replay import Prefetch, stack_frames
from gjwm.envs.arena import stable_worldmodel

torch.set_num_threads(1)

ACTION = spaces.Box(-1, 1, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (6, 32, 32), np.uint8)  # two frames of 3 kB


def header(**changes):
    made = dict(env_id="x", env_kwargs={"size": 4}, frame_stack=2)
    return made | dict(observation_space=IMAGE, action_space=ACTION) | changes


def ends(length, last=True):
    return np.arange(length) == (length - 1 if last else -1)


def episode(number, length=6, **changes):
    """Pixels, actions and rewards that tell the episode and the step."""
    step = np.arange(length + 1)
    frames = np.random.default_rng([number, 7]).integers(0, 256, (length + 1, 3, 32, 32), np.uint8)
    frames[:, 0, 0, 0], frames[:, 0, 0, 1] = number, step
    a = np.stack([step[:-1] / 100, np.full(length, number / 100)], 1).astype(np.float32)
    r = step[:-1].astype(np.float32)
    whole = Episode(stack_frames(frames, 2), a, r, ends(length), ends(length, False))
    return whole._replace(**changes)


def write(path, lengths=(6, 3, 9, 5), *, shard_bytes=33_000, **changes):
    """Episodes of these lengths over several shards."""
    with DatasetWriter(path, shard_bytes=shard_bytes, **header(**changes)) as writer:
        for length in lengths:
            writer.append(episode(writer.episodes, length), behaviour="b", seed=1)
    return path


ENDS = [(True, False), (False, False), (False, True), (True, True)]  # terminated, truncated


def write_ends(path, **change):
    """A dataset whose four episodes end in all the ways there are."""
    with DatasetWriter(path, **header(**change)) as writer:
        for k, (length, (end, cut)) in enumerate(zip(LENGTHS, ENDS)):
            said = dict(terminated=ends(length, end), truncated=ends(length, cut))
            writer.append(episode(k, length, **said))


def ended(path):
    """How the episodes of a dataset ended, as in ENDS."""
    found = list(read_episodes(path))
    assert not any(e.terminated[:-1].any() or e.truncated[:-1].any() for e in found)
    return [(bool(e.terminated[-1]), bool(e.truncated[-1])) for e in found]


def assert_same(read, expected):
    read, expected = list(read), list(expected)
    assert len(read) == len(expected)
    for a, b in zip(read, expected):
        for x, y in zip(a[:5], b[:5]):
            np.testing.assert_array_equal(x, y)


def contents(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def run(code):
    """Python in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


LENGTHS = (6, 3, 9, 5)


# -- what goes in comes out ------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
def test_a_dataset_returns_the_episodes_it_was_given_from_memory_and_from_disk(tmp_path, compress):
    write(tmp_path, compress=compress)
    info = dataset_info(tmp_path)
    assert (info["episodes"], info["steps"]) == (4, 23) and len(info["shards"]) == 2
    assert verify(tmp_path) == []
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".h5"}  # nothing else is left
    assert_same(read_episodes(tmp_path), (episode(i, n) for i, n in enumerate(LENGTHS)))
    buffer = load_buffer(tmp_path)
    assert len(buffer) == 23 and buffer.frame_stack == 2
    with DiskWindows(tmp_path) as disk:
        assert len(disk) == 23
        for options in ({}, {"episodes": 2}):
            a, b = (
                x.sample(64, 2, generator=torch.Generator().manual_seed(3), **options)
                for x in (buffer, disk)
            )
            for name in ("o", "a", "r", "terminated", "episode"):
                torch.testing.assert_close(getattr(a, name), getattr(b, name))
        with pytest.raises(ValueError, match="nothing to sample yet: a window has 10 steps"):
            disk.sample(1, 10)


def test_a_shard_is_plain_hdf5_with_one_frame_per_chunk(tmp_path):
    write(tmp_path)
    with h5py.File(tmp_path / "shard-00000.h5") as file:
        images = file["observation"]
        assert images.shape == (11, 3, 32, 32) and images.chunks == (1, 3, 32, 32)
        assert file["ep_len"][:].tolist() == [7, 4] and file["ep_offset"][:].tolist() == [0, 7]
        np.testing.assert_array_equal(file["observation"][7:11], episode(1, 3).o[:, -3:])
        np.testing.assert_array_equal(file["action"][:6], episode(0).a)
        assert np.isnan(file["action"][6]).all() and np.isnan(file["reward"][6])
        assert file.attrs["env_id"] == "x" and json.loads(file.attrs["env_kwargs"]) == {"size": 4}
        assert json.loads(file.attrs["sources"]) == [{"behaviour": "b", "seed": 1}]
        assert "numpy" in json.loads(file.attrs["versions"]) and file.attrs["renderer"] == ""


def test_rows_of_pictures_lie_one_after_another_in_the_file(tmp_path):
    shard = write(tmp_path) / "shard-00000.h5"
    with h5py.File(shard) as file:
        images = file["observation"]
        begin = images.id.get_chunk_info(0).byte_offset
        rows = images[:]
    assert begin % 4096 == 0
    mapped = np.memmap(shard, np.uint8, "r", offset=begin, shape=rows.shape)
    np.testing.assert_array_equal(mapped, rows)


def test_all_columns_and_dict_observations_survive(tmp_path):
    space = spaces.Dict({"pixels": IMAGE, "state": spaces.Box(-np.inf, np.inf, (3,), np.float64)})
    rng = np.random.default_rng(0)
    state = rng.normal(size=(7, 3))
    full = episode(
        0,
        o={"pixels": episode(0).o, "state": state},
        sim_state=rng.normal(size=(7, 4)),
        position=rng.normal(size=(7, 2)),
        true_state={"x": rng.normal(size=(7,)), "door": rng.integers(0, 2, (7, 1))},
    )
    with DatasetWriter(tmp_path, **header(observation_space=space, record_state=True)) as writer:
        writer.append(full)
        with pytest.raises(ValueError, match="episode 1 has the columns"):
            writer.append(full._replace(position=None))
    (read,) = read_episodes(tmp_path)
    for name in ("pixels", "state"):
        np.testing.assert_array_equal(read.o[name], full.o[name])
    for name in ("sim_state", "position"):
        np.testing.assert_array_equal(getattr(read, name), getattr(full, name))
    for name in ("x", "door"):
        np.testing.assert_array_equal(read.true_state[name], full.true_state[name])
    with DiskWindows(tmp_path) as disk:
        o = disk.sample(4, 6).o
    torch.testing.assert_close(o["state"][0], torch.from_numpy(state).float())
    np.testing.assert_array_equal(o["pixels"][0].numpy(), full.o["pixels"])


def test_a_dataset_is_extended_and_its_first_episodes_stay_reachable(tmp_path):
    write(tmp_path, (6, 3))
    write(tmp_path, (9, 5))
    assert_same(read_episodes(tmp_path), (episode(i, n) for i, n in enumerate(LENGTHS)))
    a, b = load_buffer(tmp_path, episodes=3), DiskWindows(tmp_path, episodes=3)
    assert len(a) == len(b) == 18
    drawn = [x.sample(32, 2, generator=torch.Generator().manual_seed(0)).o for x in (a, b)]
    assert torch.equal(*drawn)
    with pytest.raises(ValueError, match="holds 4 episodes; 5 were asked for"):
        load_buffer(tmp_path, episodes=5)


def test_another_env_cannot_extend_a_dataset(tmp_path):
    before = contents(write(tmp_path / "d"))
    for change in (
        dict(env_id="y"),
        dict(env_kwargs={"size": 8}),
        dict(action_space=spaces.Box(-1, 1, (3,))),
    ):
        with pytest.raises(ValueError, match=f"cannot be extended with {next(iter(change))}"):
            DatasetWriter(tmp_path / "d", **header(**change))
    with pytest.raises(ValueError, match="plain JSON"):
        DatasetWriter(tmp_path / "other", **header(env_kwargs={"size": object()}))
    assert contents(tmp_path / "d") == before


def test_a_folder_without_an_episode_is_started_anew(tmp_path):
    DatasetWriter(tmp_path, **header()).close()
    (tmp_path / "journal").touch()  # of a writer that was killed
    collected = {"behaviour": {"uniform": 1.0}, "length": 6, "seed": 0}
    with DatasetWriter(tmp_path, **header(env_id="y"), collected=collected) as writer:
        assert dataset_info(tmp_path)["env_id"] == "y"
        writer.append(episode(0))
        with pytest.raises(ValueError, match="cannot be extended with env_id='x'"):
            DatasetWriter(tmp_path, **header())
    info = dataset_info(tmp_path)
    assert info["collected"] == collected and info["episodes"] == 1


def test_two_processes_cannot_extend_one_dataset_and_readers_do_not_wait(tmp_path):
    with DatasetWriter(tmp_path, **header()) as writer:
        writer.append(episode(0))
        with pytest.raises(BlockingIOError, match="being extended by another process"):
            DatasetWriter(tmp_path, **header())
        # sealed ones only, and the journal is left to the writer
        assert dataset_info(tmp_path)["episodes"] == 0
        writer.seal()
        assert dataset_info(tmp_path)["episodes"] == 1
    DatasetWriter(tmp_path, **header()).close()


# -- crashes ---------------------------------------------------------------------------------------


def interrupted(path, lengths=(6, 3)):
    """A dataset whose writer died with episodes in its journal."""
    with DatasetWriter(path, **header()) as writer:
        writer.append(episode(0, 4))
        writer.seal()
        for length in lengths:
            writer.append(episode(writer.episodes, length))
        shutil.copytree(path, path.with_name("copy"))
    shutil.rmtree(path)
    path.with_name("copy").rename(path)
    return path


def test_the_journal_of_a_dead_writer_is_sealed_by_the_next_open_which_says_so(tmp_path, caplog):
    path = interrupted(tmp_path / "d")
    assert any("journal holds 2 finished episodes" in problem for problem in verify(path))
    with caplog.at_level(logging.WARNING):
        assert dataset_info(path)["episodes"] == 3
    assert "2 finished episodes were moved" in caplog.text and "unfinished" not in caplog.text
    assert_same(read_episodes(path), [episode(0, 4), episode(1, 6), episode(2, 3)])
    assert verify(path) == []


def test_a_journal_cut_anywhere_loses_at_most_the_episode_that_was_being_written(tmp_path, caplog):
    path = interrupted(tmp_path / "d")
    journal = (path / "journal").read_bytes()
    second = journal.index(b"GJWMEPI1", 1)
    for cut in [0, 5, second - 1, second, second + 3, second + 200, len(journal) - 1, len(journal)]:
        trial = tmp_path / f"cut-{cut}"
        shutil.copytree(path, trial)
        (trial / "journal").write_bytes(journal[:cut])
        caplog.clear()
        kept = 1 + (cut >= second) + (cut == len(journal))
        assert dataset_info(trial)["episodes"] == kept
        torn = cut not in (0, second, len(journal))
        assert ("of an unfinished one were dropped" in caplog.text) == torn
        assert verify(trial) == []
        with DatasetWriter(trial, **header()) as writer:  # and collecting goes on
            assert writer.episodes == kept
            writer.append(episode(kept))
        assert dataset_info(trial)["episodes"] == kept + 1


def test_a_death_between_the_steps_of_sealing_neither_loses_nor_repeats_an_episode(
    tmp_path, caplog
):
    path = interrupted(tmp_path / "d")
    before = tmp_path / "before"
    shutil.copytree(path, before)
    dataset_info(path)
    # The shard is there but neither listed nor cleared from the journal; then listed, and the
    # journal still there.
    for steps in (["shard-00001.h5"], ["shard-00001.h5", "metadata.json"]):
        trial = tmp_path / f"trial-{len(steps)}"
        shutil.copytree(before, trial)
        for name in steps:
            shutil.copy(path / name, trial)
        (trial / "shard-00002.h5.partial").write_bytes(b"half a shard")
        assert dataset_info(trial)["episodes"] == 3
        assert_same(read_episodes(trial), read_episodes(path))
        names = ["metadata.json", "shard-00000.h5", "shard-00001.h5"]
        assert sorted(p.name for p in trial.iterdir()) == names


def test_a_journal_damaged_in_its_middle_is_kept_aside(tmp_path, caplog):
    path = interrupted(tmp_path / "d", (6, 3, 4))
    journal = bytearray((path / "journal").read_bytes())
    second = journal.index(b"GJWMEPI1", 1)
    journal[second + 600] ^= 255
    (path / "journal").write_bytes(journal)
    assert dataset_info(path)["episodes"] == 2
    assert "damaged in its middle" in caplog.text
    assert (path / "journal-damaged").read_bytes() == journal[second:]


def test_a_full_disk_is_an_error_that_keeps_what_was_finished(tmp_path):
    code = f"""
        import resource, signal, sys
        sys.path.insert(0, {str(os.path.dirname(__file__))!r})
        import test_dataset as t
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        writer = t.DatasetWriter({str(tmp_path / "d")!r}, **t.header())
        try:
            while True:
                writer.append(t.episode(writer.episodes))
        except OSError as error:
            print(writer.episodes, error)
    """
    done = run(code)
    count = int(done.stdout.split()[0])
    assert count == 4 and "File too large" in done.stdout, done.stderr
    assert dataset_info(tmp_path / "d")["episodes"] == count
    assert verify(tmp_path / "d") == []


# -- what is wrong is named ------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "empty", "foreign", "another"])
def test_a_damaged_shard_is_named_and_nothing_is_overwritten(tmp_path, damage):
    path = write(tmp_path / "d")
    file = path / "shard-00001.h5"
    whole = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        where = whole.index(episode(2, 9).o[4, -3:].tobytes())
        whole[where + 100] ^= 255
        file.write_bytes(whole)
    elif damage == "gone":
        file.unlink()
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "foreign":
        with h5py.File(file, "r+") as opened:
            opened.attrs["format"] = 99
    else:
        shutil.copy(path / "shard-00000.h5", file)
    before = contents(path)
    named = r"episode 2 in .*shard-00001" if damage == "flipped" else "shard-00001"
    with pytest.raises(ValueError, match=named):
        load_buffer(path)
    with pytest.raises(ValueError, match=named):
        list(read_episodes(path))
    if damage != "flipped":  # sampling does not read every byte
        with pytest.raises(ValueError, match=named):
            DiskWindows(path)
    (problem, *_) = verify(path)
    assert ("episode 2 in shard-00001.h5" if damage == "flipped" else "shard-00001.h5") in problem
    if damage == "foreign":
        assert "format 99, this version reads 2" in problem
    assert contents(path) == before


def test_metadata_that_is_missing_damaged_or_foreign_stops_every_use(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no metadata\.json"):
        dataset_info(tmp_path / "none")
    path = write(tmp_path / "d")
    file = path / "metadata.json"
    whole = json.loads(file.read_text())
    for content, match in [
        ("{", "not valid JSON"),
        ("[1]", "dataset format 'list'"),
        (json.dumps(whole | {"format": 1}), "dataset format 1, this version reads 2"),
        (json.dumps({k: v for k, v in whole.items() if k != "shards"}), "lacks shards"),
        (None, r"holds shards and no metadata\.json"),
    ]:
        file.unlink() if content is None else file.write_text(content)
        before = contents(path)
        read = (dataset_info, load_buffer, DiskWindows, verify, lambda p: list(read_episodes(p)))
        for use in read:
            with pytest.raises(ValueError, match=match):
                use(path)
        with pytest.raises(ValueError, match=match if content else "no dataset and not empty"):
            DatasetWriter(path, **header())
        assert contents(path) == before


@pytest.mark.parametrize("name", ["../other/shard-00000.h5", "{}/other/shard-00000.h5", None, 3])
def test_metadata_names_no_shard_in_another_folder(name, tmp_path):
    write(tmp_path / "other")
    path = write(tmp_path / "d")
    file, name = path / "metadata.json", name.format(tmp_path) if name == str(name) else name
    info = json.loads(file.read_text())
    info["shards"][0]["file"] = name
    file.write_text(json.dumps(info))
    for use in (dataset_info, load_buffer, DiskWindows, verify, lambda p: list(read_episodes(p))):
        with pytest.raises(ValueError, match=r"lists the shard .* no file within its folder"):
            use(path)


@pytest.mark.parametrize("kind", ["link", "soft", "external", "virtual"])
def test_a_shard_takes_no_rows_from_other_files(kind, tmp_path):
    path, other = write(tmp_path / "d"), tmp_path / "other.h5"
    shard = path / "shard-00000.h5"
    with h5py.File(shard, "r+") as file, h5py.File(other, "w") as theirs:
        theirs["reward"] = file["reward"][:]
        shape, dtype = file["reward"].shape, file["reward"].dtype
        del file["reward"]
        if kind == "link":
            file["reward"] = h5py.ExternalLink(str(other), "reward")
        elif kind == "soft":
            file["reward"] = h5py.SoftLink("/ep_len")
        elif kind == "external":
            (tmp_path / "raw").write_bytes(bytes(shape[0] * dtype.itemsize))
            places = [(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)]
            file.create_dataset("reward", shape, dtype, external=places)
        else:
            layout = h5py.VirtualLayout(shape, dtype)
            layout[:] = h5py.VirtualSource(str(other), "reward", shape)
            file.create_virtual_dataset("reward", layout)
    with pytest.raises(
        ValueError, match=r"shard-00000.* is damaged .*reward lies in another place"
    ):
        list(read_episodes(path))


def test_a_writer_killed_before_its_first_metadata_leaves_a_folder_that_can_be_used(tmp_path):
    for name in ("lock", "metadata.json.partial"):
        (tmp_path / name).write_text("")
    with DatasetWriter(tmp_path, **header()) as writer:
        assert writer.episodes == 0
    assert not (tmp_path / "metadata.json.partial").exists()
    assert dataset_info(tmp_path)["episodes"] == 0


def test_an_empty_dataset_says_so(tmp_path):
    DatasetWriter(tmp_path, **header()).close()
    assert verify(tmp_path) == [] and list(read_episodes(tmp_path)) == []
    for use in (load_buffer, DiskWindows, open_windows):
        with pytest.raises(ValueError, match="holds no episodes yet"):
            use(tmp_path)


def test_an_episode_with_nan_is_not_stored_and_one_that_got_in_is_named(tmp_path):
    with DatasetWriter(tmp_path, **header()) as writer:
        writer.append(episode(0))
        for field in ("a", "r"):
            bad = getattr(episode(1), field).copy()
            bad[3] = np.nan
            with pytest.raises(ValueError, match=r"episode 1 was not stored: .* contains NaN"):
                writer.append(episode(1, **{field: bad}))
        with pytest.raises(ValueError, match="reward has shape"):
            writer.append(episode(1, r=np.zeros(4, np.float32)))
        with pytest.raises(ValueError, match="the space says uint8"):
            writer.append(episode(1, o=episode(1).o.astype(np.float32)))
        with pytest.raises(ValueError, match="terminated is true on step 0"):
            writer.append(episode(1, terminated=np.ones(6, bool)))
        writer.append(episode(1))
    file = tmp_path / "shard-00000.h5"
    with h5py.File(file, "r+") as opened:
        opened["reward"][9] = np.nan
    assert any("episode 1 in shard-00000.h5" in problem for problem in verify(tmp_path))
    with pytest.raises(ValueError, match=r"episode 1 in .*shard-00000"):
        load_buffer(tmp_path)
    with pytest.raises(ValueError, match=r"episode 1 in .*reward contains NaN"):
        DiskWindows(tmp_path)
    with h5py.File(file, "r+") as opened, Shard(file) as shard:
        # NaN with a checksum to match, as another program might write
        opened["ep_crc32"][1] = checksum(shard.read(1))
    said = "episode 1 in shard-00000.h5: reward contains NaN"
    assert any(said in problem for problem in verify(tmp_path))
    with pytest.raises(ValueError, match=r"episode 1 in .*contains NaN"):
        load_buffer(tmp_path)


def test_what_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    for path in (tmp_path / "file", tmp_path / "file" / "deeper"):
        words = "collect collect.episodes=1 collect.workers=0 env.obs=state".split()
        assert main([*words, f"dataset={path}"]) == 1
        said = capsys.readouterr().err
        assert "file" in said and "Traceback" not in said and len(said.splitlines()) == 1
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="no dataset and not empty"):
        DatasetWriter(tmp_path / "notes", **header())
    assert (tmp_path / "file").read_text() == "not a folder"
    assert os.listdir(tmp_path / "notes") == ["a.txt"]


# -- larger than memory ----------------------------------------------------------------------------


def test_what_memory_cannot_hold_is_read_from_disk(tmp_path, monkeypatch, caplog):
    write(tmp_path)
    monkeypatch.setattr("gjwm.data.replay.memory.available_memory", lambda device="cpu": 50_000)
    monkeypatch.setattr(stream_module, "available_memory", lambda device="cpu": 50_000)
    with pytest.raises(MemoryError, match="lower the capacity"):
        load_buffer(tmp_path)
    with caplog.at_level(logging.INFO):
        source = open_windows(tmp_path)
    assert isinstance(source, DiskWindows) and "windows are read from disk" in caplog.text
    assert source.sample(8, 2).o.shape == (8, 3, 6, 32, 32)
    with pytest.raises(ValueError, match="storage must be one of"):
        open_windows(tmp_path, storage="tape")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_DATA")
def test_streaming_stays_within_a_cap_that_the_dataset_exceeds(tmp_path):
    space = spaces.Box(0, 255, (3, 64, 64), np.uint8)
    with DatasetWriter(tmp_path / "d", **header(observation_space=space, frame_stack=1)) as writer:
        o = np.zeros((101, 3, 64, 64), np.uint8)
        for number in range(150):  # 186 MB
            o[:, 0, 0, 0] = number
            none = ends(100, False)
            writer.append(Episode(o, np.zeros((100, 2)), np.zeros(100), ends(100), none))
    code = f"""
        import re, resource, torch
        torch.set_num_threads(1)
        from gjwm.data.dataset import DiskWindows, load_buffer
        source = DiskWindows({str(tmp_path / "d")!r}, readers=2)
        source.sample(4, 4)  # the threads' stacks
        held = int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
        cap = held + 64 * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
        for seed in range(10):
            batch = source.sample(128, 4, generator=torch.Generator().manual_seed(seed))
            assert (batch.o[:, :, 0, 0, 0] == batch.episode[:, None] % 256).all()
        try:
            load_buffer({str(tmp_path / "d")!r})
        except (MemoryError, RuntimeError) as error:
            print("refused", type(error).__name__)
    """
    done = run(code)
    assert done.stdout.startswith("refused"), done.stderr


@pytest.mark.parametrize("ahead", [0, 3])
def test_batches_drawn_ahead_are_those_drawn_one_by_one_and_can_be_gone_on_with(tmp_path, ahead):
    write(tmp_path)
    buffer = load_buffer(tmp_path)

    def draw(generator):
        return buffer.sample(4, 2, generator=generator)

    generator = torch.Generator().manual_seed(9)
    expected = [draw(generator).o for _ in range(8)]
    with Prefetch(draw, 9, ahead) as batches:
        first = [batches.next().o for _ in range(3)]
        state = batches.state()
        rest = [batches.next().o for _ in range(5)]
        assert all(torch.equal(a, b) for a, b in zip(first + rest, expected))
        batches.restore(state)
        assert all(torch.equal(batches.next().o, b) for b in expected[3:])
    with pytest.raises(ZeroDivisionError), Prefetch(lambda g: 1 / 0, 0, ahead) as batches:
        batches.next()


# -- other formats ---------------------------------------------------------------------------------


def test_our_own_format_can_be_packed_anew_and_survives_other_programs(tmp_path):
    path = write(tmp_path / "d")
    made = convert(path, tmp_path / "small", compress="true")
    assert made == {"from": "gjwm", "episodes": 4, "steps": 23}
    assert_same(read_episodes(tmp_path / "small"), read_episodes(path))
    assert len(dataset_info(tmp_path / "small")["shards"]) == 1
    with h5py.File(path / "shard-00000.h5") as old, h5py.File(tmp_path / "new.h5", "w") as new:
        new.attrs.update(old.attrs)
        for name in old:  # as h5repack may do
            new.create_dataset(name, data=old[name][:], chunks=(2, *old[name].shape[1:]))
    shutil.copy(tmp_path / "new.h5", path / "shard-00000.h5")
    assert verify(path) == []
    with pytest.raises(ValueError, match="rewritten by another program; run `gjwm data convert`"):
        DiskWindows(path)
    convert(path, tmp_path / "again")
    assert len(DiskWindows(tmp_path / "again")) == 23
    before = contents(tmp_path / "again")
    with pytest.raises(ValueError, match="not empty; convert into a new folder"):
        convert(path, tmp_path / "again")
    assert contents(tmp_path / "again") == before


def test_minari_files_are_read_and_their_actions_rescaled(tmp_path):
    folder = tmp_path / "pen" / "human-v0" / "data"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    played = []
    box = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-2, 0], "high": [2, 10]}
    spec = {"id": "Pen-v0", "kwargs": {"render_mode": None}}
    metadata = {"action_space": json.dumps(box), "env_spec": json.dumps(spec)}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for k in range(11):  # episode_10 comes after episode_9
            o, a = rng.normal(size=(k + 3, 4)), rng.uniform([-2, 0], [2, 10], (k + 2, 2))
            group = file.create_group(f"episode_{k}")
            group["observations/state"] = o
            group["observations/pixels"] = rng.integers(0, 256, (k + 3, 32, 40, 3), np.uint8)
            group["actions"], group["rewards"] = a, np.arange(k + 2.0)
            group["terminations"], group["truncations"] = ends(k + 2), ends(k + 2, False)
            played.append((o, a, group["observations/pixels"][:]))
    result = convert(tmp_path / "pen" / "human-v0", tmp_path / "d")
    assert result == {"from": "minari", "episodes": 11, "steps": sum(len(a) for _, a, _ in played)}
    assert dataset_info(tmp_path / "d")["env_id"] == "Pen-v0" and verify(tmp_path / "d") == []
    for read, (o, a, pixels) in zip(read_episodes(tmp_path / "d"), played):
        np.testing.assert_array_equal(read.o["state"], o)
        np.testing.assert_array_equal(read.o["pixels"], pixels.transpose(0, 3, 1, 2))
        np.testing.assert_allclose(read.a * [2, 5] + [0, 5], a, atol=1e-5)
        assert read.terminated[-1] and not read.truncated.any()
    with h5py.File(folder / "main_data.hdf5", "r+") as file:
        del file["episode_3/rewards"]
    with pytest.raises(ValueError, match=r"episode_3 of .* cannot be read"):
        convert(tmp_path / "pen" / "human-v0", tmp_path / "partly")
    assert dataset_info(tmp_path / "partly")["episodes"] == 3


def test_a_dataset_written_for_minari_comes_back_the_same(tmp_path, capsys):
    write_ends(tmp_path / "d")
    assert main(["data", "convert", str(tmp_path / "d"), str(tmp_path / "m"), "to=minari"]) == 0
    assert "4 episodes, 23 steps for Minari" in capsys.readouterr().out
    metadata = json.loads((tmp_path / "m" / "data" / "metadata.json").read_text())
    assert metadata["total_episodes"] == 4 and metadata["total_steps"] == 23
    assert json.loads(metadata["observation_space"])["shape"] == list(IMAGE.shape)
    convert(tmp_path / "m", tmp_path / "again")
    assert dataset_info(tmp_path / "again")["env_id"] == "x"
    for a, b in zip(read_episodes(tmp_path / "again"), read_episodes(tmp_path / "d"), strict=True):
        np.testing.assert_array_equal(a.o, b.o)
        np.testing.assert_allclose(a.a, b.a, atol=1e-6)
        for x, y in zip(a[2:5], b[2:5]):
            np.testing.assert_array_equal(x, y)
    assert ended(tmp_path / "again") == ENDS
    before = contents(tmp_path / "m" / "data")
    for wrong in (["to=lerobot"], ["to=minari", "compress=true"], ["to=minari"]):
        assert main(["data", "convert", str(tmp_path / "d"), str(tmp_path / "m"), *wrong]) == 1
    assert "not empty" in capsys.readouterr().err and contents(tmp_path / "m" / "data") == before


def test_a_full_disk_ends_writing_for_minari_in_a_sentence(tmp_path, no_room, capsys):
    """HDF5 would crash the process: there must be room before it begins."""
    write_ends(tmp_path / "d")
    words = ["data", "convert", str(tmp_path / "d"), str(tmp_path / "m"), "to=minari"]
    with no_room() as asked:
        assert main(words) == 1
    assert capsys.readouterr().err.startswith("gjwm data: No space left on device, writing ")
    assert not [path for path in (tmp_path / "m").rglob("*") if path.is_file()]
    assert main(words) == 0
    assert asked[0] > (tmp_path / "m" / "data" / "main_data.hdf5").stat().st_size


def test_minari_loads_what_was_written_for_it(tmp_path):
    minari = pytest.importorskip("minari")  # no part of any extra
    write_ends(tmp_path / "d")
    assert main(["data", "convert", str(tmp_path / "d"), str(tmp_path / "m"), "to=minari"]) == 0
    loaded = minari.MinariDataset(tmp_path / "m" / "data")
    assert loaded.total_episodes == 4 and loaded.total_steps == 23
    assert loaded.observation_space == IMAGE
    for theirs, ours in zip(loaded, read_episodes(tmp_path / "d"), strict=True):
        np.testing.assert_array_equal(theirs.observations, ours.o)
        np.testing.assert_allclose(theirs.rewards, ours.r)
        np.testing.assert_array_equal(theirs.terminations, ours.terminated)
        np.testing.assert_array_equal(theirs.truncations, ours.truncated)


def test_stable_worldmodel_loads_a_shard(tmp_path):
    if importlib.util.find_spec("stable_worldmodel") is None:
        pytest.skip("needs the extra [arena]: pip install 'gjwm[arena]'")
    write_ends(tmp_path)
    keys, episodes = ["observation", "action"], list(read_episodes(tmp_path))
    (shard,) = tmp_path.glob("shard-*.h5")
    loaded = stable_worldmodel("data.formats.hdf5").HDF5Dataset(path=shard, keys_to_load=keys)
    np.testing.assert_array_equal(loaded.lengths, np.array(LENGTHS) + 1)
    for k, ours in enumerate(episodes):
        theirs = loaded.load_episode(k)
        # a shard holds each frame once: the newest of each observation
        np.testing.assert_array_equal(theirs["observation"], ours.o[:, -3:])
        np.testing.assert_array_equal(theirs["action"][:-1], ours.a)


def test_stable_worldmodel_files_are_read_with_rewards_beside_their_actions(tmp_path):
    rng = np.random.default_rng(0)
    lengths = [5, 8]
    rows = sum(lengths)
    columns = {
        "pixels": rng.integers(0, 256, (rows, 32, 32, 3), np.uint8),
        "proprio": rng.normal(size=(rows, 3)),
        "action": rng.uniform(-3, 3, (rows, 2)),
        "reward": np.arange(float(rows)),
        "terminated": np.zeros(rows, bool),
    }
    columns["action"][[4, 12]] = np.nan
    columns["terminated"][12] = True
    with h5py.File(tmp_path / "push.h5", "w", libver="latest") as file:
        for name, values in columns.items():
            rest = values.shape[1:]
            file.create_dataset(name, data=values, maxshape=(None, *rest), chunks=(1, *rest))
        file["ep_len"], file["ep_offset"] = np.array(lengths, np.int32), np.array([0, 5])
    with pytest.raises(ValueError, match=r"an action is 2.* give the bounds"):
        convert(tmp_path / "push.h5", tmp_path / "wrong")
    options = dict(action_low="-3", action_high="3", env_id="swm/Push")
    made = convert(tmp_path / "push.h5", tmp_path / "d", **options)
    assert made == {"from": "swm", "episodes": 2, "steps": 11}
    first, second = read_episodes(tmp_path / "d")
    np.testing.assert_array_equal(second.o, columns["pixels"][5:].transpose(0, 3, 1, 2))
    np.testing.assert_allclose(3 * first.a, columns["action"][:4], atol=1e-5)
    np.testing.assert_array_equal(first.r, [1, 2, 3, 4])  # what came of the actions 0 to 3
    assert second.terminated[-1] and first.truncated[-1]
    convert(tmp_path / "push.h5", tmp_path / "two", observation="pixels,proprio", **options)
    assert set(next(read_episodes(tmp_path / "two")).o) == {"pixels", "proprio"}
    with pytest.raises(ValueError, match="has no column sound; its columns are action, pixels"):
        convert(tmp_path / "push.h5", tmp_path / "no", observation="sound")
    (tmp_path / "noise.h5").write_bytes(b"noise")
    with pytest.raises(ValueError, match=r"format of .* is not known"):
        convert(tmp_path / "noise.h5", tmp_path / "no")


def test_lerobot_tables_and_films_are_read(tmp_path):
    """Written as version 3 lays it out: two episodes in one table and one film."""
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    root = tmp_path / "robot"
    rng = np.random.default_rng(0)
    lengths, camera = [5, 7], "observation.images.top"
    state, action = rng.normal(size=(12, 3)), rng.uniform([-2, 0, 7], [6, 1, 7], (12, 3))
    frames = np.linspace(10, 240, 12).astype(np.uint8)
    frames = np.broadcast_to(frames[:, None, None, None], (12, 48, 64, 3))
    index = np.repeat([0, 1], lengths)
    place = {"chunk_index": 0, "file_index": 0}
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    features = {
        camera: {"dtype": "video", "shape": [48, 64, 3]},
        "observation.state": {"dtype": "float32", "shape": [3]},
        "action": {"dtype": "float32", "shape": [3]},
    }
    info = {
        "codebase_version": "v3.0",
        "fps": 10,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }
    (root / "meta" / "info.json").write_text(json.dumps(info))
    stats = {"action": {"min": action.min(0).tolist(), "max": action.max(0).tolist()}}
    (root / "meta" / "stats.json").write_text(json.dumps(stats))
    table = {
        "observation.state": state.tolist(),
        "action": action.tolist(),
        "episode_index": index,
        "next.reward": range(12),
    }
    parquet.write_table(arrow.table(table), root / info["data_path"].format(**place))
    episodes = [
        {"episode_index": k, "length": n, f"videos/{camera}/from_timestamp": 0.5 * k}
        | {f"{kind}/{name}": 0 for kind in ("data", f"videos/{camera}") for name in place}
        for k, n in enumerate(lengths)
    ]
    file = root / "meta/episodes/chunk-000/file-000.parquet"
    parquet.write_table(arrow.Table.from_pylist(episodes), file)
    film = root / info["video_path"].format(video_key=camera, **place)
    film.parent.mkdir(parents=True)
    write_video(film, frames, fps=10)
    made = convert(root, tmp_path / "d", size="32")
    assert made == {"from": "lerobot", "episodes": 2, "steps": 10}
    first, second = read_episodes(tmp_path / "d")
    assert second.o.shape == (7, 3, 32, 32) and first.truncated[-1]
    assert np.abs(second.o.mean((1, 2, 3)) - frames[5:, 0, 0, 0]).max() < 4  # h264 is not exact
    low, high = action.min(0), action.max(0)
    undone = (second.a + 1) / 2 * (high - low) + low
    np.testing.assert_allclose(undone[:, :2], action[5:11, :2], atol=1e-5)
    assert (second.a[:, 2] == 0).all() and second.r.tolist() == [5, 6, 7, 8, 9, 10]
    convert(root, tmp_path / "both", observation=f"{camera},observation.state")
    both = next(read_episodes(tmp_path / "both"))
    np.testing.assert_allclose(both.o["observation.state"], state[:5], rtol=1e-6)
    for outside in ("../secret", f"{tmp_path}/secret"):
        for kind, feature in (("data_path", "observation.state"), ("video_path", camera)):
            (root / "meta" / "info.json").write_text(json.dumps(info | {kind: outside}))
            with pytest.raises(ValueError, match=r"secret' does not name a file within"):
                convert(root, tmp_path / "out", observation=feature)
    (root / "meta" / "info.json").write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(ValueError, match=r"LeRobot format v2\.1; v3 is read"):
        convert(root, tmp_path / "old")


@pytest.mark.parametrize("pictures", ["png", "video"])
def test_a_dataset_written_for_lerobot_comes_back_the_same(tmp_path, capsys, monkeypatch, pictures):
    """Films are lossless unless a quality is asked for; a file holds one episode here."""
    parquet = pytest.importorskip("pyarrow.parquet")
    for limit in ("DATA_MB", "VIDEO_MB"):
        monkeypatch.setattr(f"gjwm.data.dataset.lerobot.{limit}", 0)
    write_ends(tmp_path / "d", renderer="egl")
    root = tmp_path / "robot"
    command = ["data", "convert", str(tmp_path / "d"), str(root), "to=lerobot", "fps=20"]
    assert main([*command, f"pictures={pictures}"]) == 0
    assert "4 episodes, 23 steps for LeRobot" in capsys.readouterr().out
    info = json.loads((root / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"]) == (
        "v3.0",
        4,
        27,
    )
    camera = "observation.images.pixels"
    assert info["features"][camera]["shape"] == [32, 32, 3] and info["fps"] == 20
    entries = parquet.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [entry["length"] for entry in entries] == [7, 4, 10, 6]
    assert [entry["dataset_from_index"] for entry in entries] == [0, 7, 11, 21]
    assert [entry["data/file_index"] for entry in entries] == [0, 1, 2, 3]
    rows = parquet.read_table(root / "data/chunk-000/file-002.parquet").to_pydict()
    assert rows["next.done"] == rows["next.truncated"] == [False] * 8 + [True] * 2
    assert rows["action"][-1] == rows["action"][-2] and rows["next.reward"] == [*range(9), 0]
    assert rows["index"] == list(range(11, 21)) and rows["episode_index"] == [2] * 10
    np.testing.assert_allclose(rows["timestamp"], np.arange(10) / 20, atol=1e-6)
    films = sorted(path.name for path in root.rglob("*.mp4"))
    assert films == ([f"file-00{k}.mp4" for k in range(4)] if pictures == "video" else [])
    convert(root, tmp_path / "again")
    old, new = dataset_info(tmp_path / "d"), dataset_info(tmp_path / "again")
    changed = {"collected", "shards"}
    assert {name for name in old if old[name] != new[name]} <= changed
    assert verify(tmp_path / "again") == []
    assert_same(read_episodes(tmp_path / "again"), read_episodes(tmp_path / "d"))
    assert ended(tmp_path / "again") == ENDS


def test_statistics_for_lerobot_are_those_of_all_values(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "d")
    write_lerobot(tmp_path / "d", tmp_path / "robot")
    told = json.loads((tmp_path / "robot" / "meta" / "stats.json").read_text())
    episodes = list(read_episodes(tmp_path / "d"))
    frames = np.concatenate([e.o[:, -3:] for e in episodes]) / 255
    actions = np.concatenate([np.concatenate([e.a, e.a[-1:]]) for e in episodes])
    for name, values, axes in (
        ("observation.images.pixels", frames, (0, 2, 3)),
        ("action", actions, 0),
    ):
        for what in ("min", "max", "mean", "std"):
            expected = getattr(values.astype(float), what)(axes)
            np.testing.assert_allclose(np.ravel(told[name][what]), expected, atol=1e-6)
        median = np.quantile(values, 0.5, axis=axes)
        np.testing.assert_allclose(np.ravel(told[name]["q50"]), median, atol=1 / 255)
        assert told[name]["count"] == [27]
    table = parquet.read_table(tmp_path / "robot/meta/episodes/chunk-000/file-000.parquet")
    assert table.to_pylist()[1]["stats/action/max"] == pytest.approx(episodes[1].a.max(0))
    tasks = parquet.read_table(tmp_path / "robot" / "meta" / "tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0], "__index_level_0__": ["x"]}


def test_vectors_of_any_kind_survive_lerobot(tmp_path):
    pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    shapes = {"state": (3,), "one": (1,), "matrix": (2, 2), "scalar": ()}
    boxes = {name: spaces.Box(-np.inf, np.inf, shape) for name, shape in shapes.items()}
    boxes |= {"state": spaces.Box(-np.inf, np.inf, (3,), np.float64)}
    boxes |= {"touch": spaces.Box(0, 255, (5,), np.uint8)}
    space = spaces.Dict(boxes)
    with DatasetWriter(tmp_path / "d", **header(frame_stack=1, observation_space=space)) as writer:
        for k, length in enumerate(LENGTHS):
            space.seed(k)
            drawn = [space.sample() for _ in range(length + 1)]
            o = {name: np.stack([one[name] for one in drawn]) for name in boxes}
            writer.append(episode(k, length, o=o, a=rng.uniform(-1, 1, (length, 2))))
    write_lerobot(tmp_path / "d", tmp_path / "robot")
    convert(tmp_path / "robot", tmp_path / "again")
    old, new = dataset_info(tmp_path / "d"), dataset_info(tmp_path / "again")
    assert old["observation_space"] == new["observation_space"]
    for a, b in zip(read_episodes(tmp_path / "again"), read_episodes(tmp_path / "d"), strict=True):
        np.testing.assert_array_equal(a.a, b.a)
        for name, values in b.o.items():
            assert a.o[name].dtype == values.dtype
            np.testing.assert_array_equal(a.o[name], values)


def test_without_our_file_a_lerobot_folder_is_read_as_that_of_a_stranger(tmp_path):
    pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "d")
    write_lerobot(tmp_path / "d", tmp_path / "robot", pictures="video", quality=10)
    ours = tmp_path / "robot" / "meta" / "gjwm.json"
    ours.write_text(json.dumps(json.loads(ours.read_text()) | {"format": 9}))
    with pytest.raises(ValueError, match="has format 9, this version reads 1"):
        convert(tmp_path / "robot", tmp_path / "no")
    ours.unlink()
    convert(tmp_path / "robot", tmp_path / "again")
    assert dataset_info(tmp_path / "again")["env_id"] == "robot"
    for a, b in zip(read_episodes(tmp_path / "again"), read_episodes(tmp_path / "d"), strict=True):
        lossy = np.abs(a.o.astype(int) - b.o[:, -3:]).mean()
        assert a.o.shape[1] == 3 and 0 < lossy < 8  # noise is what films keep worst
        np.testing.assert_allclose(a.a[:, 0], b.a[:, 0] / 0.04 - 1, atol=1e-5)  # from 0 to 0.08
        np.testing.assert_array_equal(a.r, b.r)
        assert a.terminated[-1] and not a.truncated.any()


def test_what_lerobot_cannot_hold_is_refused_and_leaves_nothing(tmp_path, capsys):
    pytest.importorskip("pyarrow.parquet")
    gray = spaces.Box(0, 255, (1, 32, 32), np.uint8)
    with DatasetWriter(tmp_path / "g", **header(frame_stack=1, observation_space=gray)) as writer:
        writer.append(episode(0, o=np.zeros((7, 1, 32, 32), np.uint8)))
    path = write(tmp_path / "d")
    target = tmp_path / "robot"
    for source, wrong, said in (
        ("g", [], "pictures have 3 channels; those of this dataset have 1"),
        ("d", ["pictures=gif"], "png or video, got 'gif'"),
        ("d", ["pictures=video", "quality=60"], "quality must be a whole number from 0 to 51, got"),
        ("d", ["quality=18"], "quality=18 is of films, and pictures=png is lossless: leave it out"),
        ("d", ["pictures=png", "quality=0"], "quality=0 is of films"),
        ("d", ["fps=0.5"], "fps must be a whole number"),
        ("d", ["compress=true"], "does not take compress; it takes pictures, quality, fps, task"),
    ):
        assert main(["data", "convert", str(tmp_path / source), str(target), "to=lerobot", *wrong])
        assert said in capsys.readouterr().err and not target.exists()
    assert main(["data", "convert", str(path), str(target), "to=zarr"]) == 1
    assert "to must be one of minari, lerobot" in capsys.readouterr().err
    whole = bytearray((path / "shard-00001.h5").read_bytes())
    whole[whole.index(episode(2, 9).o[4, -3:].tobytes()) + 100] ^= 255
    (path / "shard-00001.h5").write_bytes(whole)
    for pictures in ("png", "video"):
        with pytest.raises(ValueError, match=r"episode 2 in .* is damaged"):
            write_lerobot(path, target, pictures=pictures)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "g"]


# -- the command -----------------------------------------------------------------------------------


def test_the_data_command_informs_verifies_and_converts(tmp_path, capsys):
    path = str(write(tmp_path / "d"))
    assert main(["data", "info", path]) == 0
    shown = capsys.readouterr().out
    assert "4, 23" in shown and "2 shards" in shown and "cells of pixels" in shown
    assert main(["data", "verify", path]) == 0 and "nothing is wrong" in capsys.readouterr().out
    assert main(["data", "convert", path, str(tmp_path / "e"), "compress=true"]) == 0
    assert "4 episodes, 23 steps from gjwm" in capsys.readouterr().out
    (tmp_path / "e" / "shard-00000.h5").unlink()
    assert main(["data", "verify", str(tmp_path / "e")]) == 1
    assert "episodes 0 to 3" in capsys.readouterr().out
    for wrong in ([], ["fly"], ["convert", path], ["info", str(tmp_path / "none")]):
        assert main(["data", *wrong]) == 1
        assert "gjwm data" in capsys.readouterr().err
    assert main(["data", "convert", path, str(tmp_path / "f"), "speed=3"]) == 1
    assert "does not take speed" in capsys.readouterr().err
