"""The properties of `scripts/fuzz.py` on a few inputs each; `make test-slow` tries more.

What hypothesis found stays here as a test of its own, or beside those of its module.
"""

import json
import re
import struct
import subprocess
import sys
import textwrap
import zlib
from contextlib import ExitStack

import fuzz
import numpy as np
import properties
import pytest
import torch
from properties import datasets
from properties.files import damaged, laid_out, made

from gjwm.cli.app import main
from gjwm.data.dataset import DiskWindows, dataset_info, load_buffer, read_episodes, verify
from gjwm.data.dataset.foreign import convert
from gjwm.data.replay import ReplayBuffer
from gjwm.models import WorldModel
from gjwm.objectives import (
    EpisodeObjective,
    JointEmbeddingObjective,
    NoRegularizer,
    predictive_information,
)
from gjwm.planning import CEM, GradientPlanner, RandomShooting

ALL = properties.properties()
EACH = pytest.mark.parametrize("claim", ALL, ids=lambda claim: f"{claim.part}.{claim.name}")


@EACH
def test_a_property_holds_for_a_few_inputs(claim):
    if claim.needs:
        pytest.importorskip(claim.needs)
    inputs = {"config": 2, "datasets": 4}.get(claim.part, 8)
    assert properties.run(claim, inputs) >= inputs


@pytest.mark.slow
@EACH
def test_a_property_holds_for_more_inputs(claim):
    if claim.needs:
        pytest.importorskip(claim.needs)
    assert properties.run(claim, 50 if claim.part == "config" else 300, seed=1) >= 50


def test_a_property_that_does_not_hold_is_told(capsys):
    from hypothesis import strategies as st

    def holds(number):
        assert number < 7

    claim = properties.Property("replay", "small", {"number": st.integers(0, 100)}, holds, 1.0)
    with pytest.raises(AssertionError):
        properties.run(claim, 200)
    assert fuzz.main(["nowhere"]) == 1
    assert "there is no part nowhere; choose from all, replay" in capsys.readouterr().err


def test_a_property_whose_package_is_not_there_is_left_out_and_said(capsys, monkeypatch):
    claim = properties.Property("datasets", "x", {}, lambda: None, 1.0, needs="no_such_package")
    monkeypatch.setattr(fuzz, "quotas", lambda parts, inputs: [(claim, 1)])
    assert fuzz.main(["datasets"]) == 0
    said = capsys.readouterr().out
    assert "datasets.x: left out; pip install no_such_package" in said and "0 inputs" in said


@pytest.mark.slow
def test_an_input_that_takes_too_long_is_told_and_the_next_ones_are_tried(capfd):
    """With a limit that every input exceeds."""
    (claim,) = (c for c in ALL if c.name == "windows_from_disk_are_those_from_memory")
    count, faults = fuzz.tried(claim, 3, seed=0, limit=1e-5)
    assert count == len(faults) == 3
    for fault in faults:
        assert fault.startswith("a crash or a hang: the process ended with 1 at lengths=[")
    assert "Timeout (0:00:00.00001" in capfd.readouterr().err
    assert fuzz.tried(claim, 3, seed=0, limit=60) == (3, [])


def test_inputs_are_shared_by_cost_and_each_property_gets_some():
    shared = fuzz.quotas(list(properties.PARTS), 10_000)
    assert {claim.name for claim, _ in shared} == {claim.name for claim in ALL}
    assert sum(inputs for _, inputs in shared) == pytest.approx(10_000, abs=len(ALL))


def test_alignment_in_half_precision_does_not_overflow():
    """The square of 1,000 did."""
    z = torch.full((2, 3, 2), 1000.0, dtype=torch.float16)
    losses = JointEmbeddingObjective(NoRegularizer())(-z[:, 1:], z[:, 1:], z)
    assert losses["alignment"] == 4e6


def test_slow_latents_in_half_precision_do_not_overflow():
    """Neither did the difference of two windows, nor its square, fit."""
    z = torch.tensor([6e4, -6e4], dtype=torch.float16)[:, None, None].expand(2, 3, 2)
    objective = EpisodeObjective(JointEmbeddingObjective(NoRegularizer()), slow_dim=1)
    losses = objective(z[:, 1:], z[:, 1:], z, clusters=torch.zeros(2, dtype=torch.int64))
    assert losses["slow_alignment"] == pytest.approx((2 * 6e4) ** 2, rel=1e-2)
    assert losses["loss"] == pytest.approx(0.8 * (2 * 6e4) ** 2, rel=1e-2)


# -- what was found --------------------------------------------------------------------------------


@pytest.mark.parametrize("planner", [CEM, RandomShooting, GradientPlanner])
@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1e-45), (0.1, 0.7), (0.0, 1e30), (1.0, 1.0000001), (-1e38, 1e38)]
)
def test_no_action_rounds_to_beyond_a_bound(planner, low, high):
    """Half of the smallest range was 0 and made NaN; centre + half * 1 rounded past `high`."""
    judged = []

    def score(a):
        judged.append(a.detach())
        return -torch.tanh(a).sum((-2, -1))

    start = torch.full((1, 3, 1), 0.3)
    plan = planner(low=low, high=high).plan(score, start, torch.Generator().manual_seed(0))
    bounds = torch.tensor([low, high])
    for a in (*judged, plan.mean):
        assert a.isfinite().all() and (a >= bounds[0]).all() and (a <= bounds[1]).all()
    assert plan.std.isfinite().all()


def test_bounds_hold_in_the_precision_of_the_plan():
    """They were kept in single precision: 0.1 became 0.10000000149."""
    planner = CEM(low=-0.1, high=0.1, samples=16, iterations=2)
    start = torch.zeros(1, 2, 1, dtype=torch.float64)
    plan = planner.plan(lambda a: -a.sum((-2, -1)), start, torch.Generator().manual_seed(0))
    assert plan.mean.dtype == torch.float64 and plan.mean.max().item() <= 0.1


def test_proposals_of_a_diverged_policy_are_refused():
    with pytest.raises(ValueError, match="proposals hold NaN or infinity; the policy"):
        CEM().plan(
            lambda a: 0 * torch.ones(a.shape[:2]),
            torch.zeros(1, 2, 1),
            proposals=torch.full((1, 1, 2, 1), torch.nan),
        )


def test_numbers_that_are_none_are_refused_by_the_buffer():
    buffer = ReplayBuffer(9, datasets.space("vector", 1), datasets.ACTION)
    o, a, r, *ends = datasets.episode(0, 3, "vector", 1)
    for wrong, said in ((a.astype(str), "array of <U32; expected real"), (a + 1j, "complex")):
        with pytest.raises(ValueError, match=said):
            buffer.add_episode(o, wrong, r, *ends)
    with pytest.raises(ValueError, match="complex64; expected real numbers"):
        buffer.add_episode(o, torch.tensor(a) + 1j, r, *ends)
    assert len(buffer) == 0


def test_an_alignment_of_nothing_is_refused_and_one_of_few_targets_is_finite():
    objective = JointEmbeddingObjective(NoRegularizer())
    with pytest.raises(ValueError, match="at least one prediction, got z_hat of shape"):
        objective(torch.zeros(3, 0, 2), torch.zeros(3, 0, 2), torch.zeros(3, 1, 2))
    one = torch.tensor([[1.0, 2.0]])
    assert predictive_information(2 * one, one).isfinite()  # Q has rank 1, S is 0
    assert predictive_information(one, one).isfinite()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("+=3", "expected NAME=VALUE, got '+=3'.\n"),
        ("+@x=[[1]]", "expected NAME=VALUE, got '+@x=[[1]]'.\n"),
        ("train=[[1]]", "train is a group of settings: train.KEY=VALUE sets one"),
    ],
)
def test_a_setting_without_a_name_or_of_no_group_is_refused(word, said, capsys):
    assert main(["train", word]) == 1
    assert capsys.readouterr().err.startswith(f"gjwm train: {said}")


def test_several_values_are_for_a_study(capsys):
    assert main(["train", "train.steps=1,2"]) == 1
    said = capsys.readouterr().err
    assert said == (
        "gjwm train: 'train.steps=1,2' gives several values, which only `gjwm study` takes; a list "
        "is train.steps=[1,2].\n"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("observation_space", {"type": "Box", "shape": [3], "dtype": -1, "low": 0, "high": 1}),
        ("observation_space", {"type": "Box", "shape": [10**12], "dtype": "uint8"}),
        ("action_space", {"type": "Box", "shape": [3], "dtype": "float32", "low": -1, "high": 1}),
        ("action_space", None),
        ("frame_stack", 3),
        ("env_kwargs", []),
        ("shards", [{"file": "shard-00000.h5"}]),
        ("steps", 7),
        ("episodes", None),
    ],
)
def test_metadata_that_does_not_describe_its_shards_is_refused(name, value):
    """It was believed: episodes came in the shape or with the frames that it said."""
    files = made(datasets.vectors)
    info = json.loads(files["metadata.json"])
    info[name] = value
    with laid_out(files | {"metadata.json": json.dumps(info).encode()}) as folder:
        for read in (lambda: list(read_episodes(folder)), lambda: load_buffer(folder)):
            with pytest.raises(ValueError, match=r"(metadata.json|shard-0000).*again\.$"):
                read()
        with pytest.raises(ValueError), DiskWindows(folder):
            pass


def test_a_shard_without_a_column_or_with_another_kind_of_one_is_named():
    import h5py

    for name in ("reward", "observation", "terminated"):
        with laid_out(made(datasets.vectors)) as folder:
            with h5py.File(folder / "shard-00000.h5", "r+") as file:
                values = file[name][:]
                del file[name]
            with pytest.raises(ValueError, match=f"shard-00000.h5 has no column {name}"):
                load_buffer(folder)
            with h5py.File(folder / "shard-00000.h5", "r+") as file:
                file[name] = np.stack([values, values], 1)
            with pytest.raises(ValueError, match=f"in {name}, expected"):
                load_buffer(folder)
            assert f"in {name}, expected" in verify(folder)[0]


def test_a_minari_file_with_other_things_in_place_of_episodes_is_refused_in_a_sentence(tmp_path):
    import h5py

    with laid_out(made(datasets.minari)) as folder:
        with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
            file["episode_x"] = 3
        with pytest.raises(ValueError, match=r"cannot be read .*\.$"):
            convert(folder, tmp_path / "d")
        (folder / "data" / "metadata.json").write_text("[]")
        with pytest.raises(ValueError, match=r"cannot be read .*\.$"):
            convert(folder, tmp_path / "e")


@pytest.mark.parametrize(("make", "where"), [(datasets.swm, 0.25), (datasets.minari, 0.5)])
def test_a_foreign_file_that_is_damaged_somewhere_is_refused_in_a_sentence(make, where, tmp_path):
    """In what tells its format, and between two of its episodes."""
    damage = {"kind": "repeat", "where": where, "size": 1, "value": 1}
    files = made(make)
    name = next(name for name in sorted(files) if name.endswith(("h5", "hdf5")))
    with laid_out(files | {name: damaged(files[name], damage)}) as folder:
        source = folder if make is datasets.minari else folder / name
        with pytest.raises(ValueError, match=r"cannot be read.*\.$"):
            convert(source, tmp_path / "d")


def test_a_foreign_dataset_that_tells_no_environment_is_refused_before_anything_is_written(
    tmp_path,
):
    """Some became datasets that could not be read, others a traceback."""
    for spec in ({"id": 5}, {"id": "Pen-v0", "kwargs": [1]}):
        metadata = json.dumps({"env_spec": json.dumps(spec)}).encode()
        with laid_out(made(datasets.minari) | {"data/metadata.json": metadata}) as folder:
            with pytest.raises(
                ValueError, match=r"says env_(id=5, no str|kwargs=\[1\], no dict)\."
            ):
                convert(folder, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_lerobot_folder_that_says_what_cannot_be_is_refused_in_a_sentence(tmp_path):
    """Tracebacks, and once half a minute and a name of 400 MB."""
    pytest.importorskip("pyarrow")
    whole = made(datasets.lerobot_tables)
    for file, name, value, said in (
        ("gjwm", "env_id", None, "says env_id=None, no str."),
        ("gjwm", "env_kwargs", None, "says env_kwargs=None, no dict."),
        ("gjwm", "frame_stack", "2", "says frame_stack='2', no int."),
        ("gjwm", "renderer", None, "says renderer=None, no str."),
        ("info", "data_path", "{chunk_index:0399999999d}", "is no way to name files, such as"),
    ):
        content = json.loads(whole[f"meta/{file}.json"]) | {name: value}
        with laid_out(whole | {f"meta/{file}.json": json.dumps(content).encode()}) as folder:
            with pytest.raises(ValueError, match=re.escape(said)):
                convert(folder, tmp_path / name)


def test_a_picture_that_is_damaged_is_refused_in_a_sentence(tmp_path):
    """Pillow has errors of its own for a length that is wrong and for one that is a bomb."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table, camera = "data/chunk-000/file-000.parquet", "observation.images.pixels"
    with laid_out(made(datasets.lerobot_tables)) as folder:
        rows = parquet.read_table(folder / table)
        png = rows[camera][0].as_py()["bytes"]
        begin, size = png.index(b"IDAT") - 4, png.index(b"IHDR") + 4
        short = png[:begin] + struct.pack(">I", 1) + png[begin + 4 :]
        header = b"IHDR" + struct.pack(">II", 60000, 60000) + png[size + 8 : size + 13]
        huge = png[: size - 4] + header + struct.pack(">I", zlib.crc32(header)) + png[begin:]
        for number, wrong in enumerate((short, huge)):
            pictures = arrow.array([{"bytes": wrong, "path": None}] * len(rows))
            which = rows.column_names.index(camera)
            parquet.write_table(rows.set_column(which, camera, pictures), folder / table)
            with pytest.raises(
                ValueError, match=r"episode 0 of .*: a picture is damaged \(.*\)\.$"
            ):
                convert(folder, tmp_path / f"{number}")


@pytest.mark.slow
def test_a_damaged_heap_of_attributes_does_not_hang_a_reader():
    """HDF5 loops on an object of size 0 or -16 in the heap that keeps attributes' text: what it
    reads there no reader needs."""
    whole = made(datasets.vectors)["shard-00000.h5"]
    heap = whole.index(b"GCOL") + 16
    code = """
        import sys
        from gjwm.data.dataset import read_episodes, verify
        for folder in sys.argv[1:]:
            assert len(list(read_episodes(folder))) == 3 and verify(folder) == []
    """
    with ExitStack() as stack:
        folders = []
        for number, size in ((0, 0), (1, 2**64 - 16), (1, 2**63)):
            header = struct.pack("<HHIQ", number, 1, 0, size)
            bad = {"shard-00000.h5": whole[:heap] + header + whole[heap + 16 :]}
            folders.append(stack.enter_context(laid_out(made(datasets.vectors) | bad)))
        command = [sys.executable, "-c", textwrap.dedent(code), *map(str, folders)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_shard_with_its_attributes_only_is_read_as_before():
    import h5py

    with laid_out(made(datasets.vectors)) as folder:
        for file in folder.glob("*.h5"):
            with h5py.File(file, "r+") as shard:
                header = json.loads(shard["ep_header"][:].tobytes())
                for name, value in shard.attrs.items():
                    text = isinstance(header[name], dict | list)
                    assert header[name] == (json.loads(value) if text else value)
                del shard["ep_header"]
        assert verify(folder) == []
        datasets.same(list(read_episodes(folder)), 1)


def test_a_flipped_bit_of_a_weight_is_found(tmp_path):
    """torch reads its archive without looking at the checksums."""
    from properties import checkpoints

    checkpoints.saved_model(tmp_path)
    content = (tmp_path / "checkpoint.pt").read_bytes()
    weight = checkpoints.model().encoder.state_dict()
    first = next(value for value in weight.values() if value.numel() > 4).numpy().tobytes()
    where = content.index(first[:16]) / len(content)
    flip = {"kind": "flip", "where": where + 1e-9, "size": 1, "value": 64}
    (tmp_path / "checkpoint.pt").write_bytes(damaged(content, flip))
    with pytest.raises(ValueError, match="not a readable gjwm checkpoint"):
        WorldModel.load(tmp_path)


def test_a_dataset_that_is_whole_passes():
    for make in (datasets.vectors, datasets.pictures, datasets.packed):
        with laid_out(made(make)) as folder:
            assert verify(folder) == [] and dataset_info(folder)["episodes"] == 3
