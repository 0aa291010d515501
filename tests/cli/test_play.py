"""`gjwm play NAME`, and the models that ship."""

import json
import re

import imageio.v3 as iio
import pytest
import torch

import gjwm
from gjwm.cli.app import main
from gjwm.cli.play import protocol
from gjwm.evaluation.evaluate import Task, attempt, held_out_episodes
from gjwm.models.pretrained import FOLDER, load_shipped, shipped
from gjwm.models.sharing import model_card
from gjwm.models.world_model import load_payload


@pytest.mark.parametrize("name", shipped())
def test_a_model_that_ships_plans(name):
    report = json.loads((FOLDER / name / "evaluation.json").read_text())
    settings, planner, cost = protocol(report)
    model = gjwm.WorldModel.from_pretrained(name)
    task = Task.of(model)
    few = dict(pairs=4, episodes=8, seed=77)
    settings = type(settings)(**{**vars(settings), **few})
    goals = task.goals(settings, planner)
    episodes = held_out_episodes(task, settings, workers=0)
    made = attempt(model, task, settings, episodes, goals, planner, cost).attempts
    radius = report["planning"]["protocol"]["success_radius"]
    assert made.distance[:, 0].mean() > radius, "goals that need no plan say nothing"
    assert made.reached(radius).sum() >= 3


@pytest.mark.parametrize("name", shipped())
def test_what_ships_is_small_plain_and_enough_for_a_card(name):
    files = sorted((FOLDER / name).iterdir())
    assert {f.name for f in files} <= {"checkpoint.pt", "decoder.pt", "evaluation.json"}
    assert sum(file.stat().st_size for file in files) < 2_000_000
    payload = load_payload(FOLDER / name / "checkpoint.pt")
    assert payload["extra"] == {}
    assert {v.dtype for v in payload["state"].values() if v.ndim > 1} == {torch.float16}
    model = load_shipped(name)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for text in (repr(payload["origin"]), (FOLDER / name / "evaluation.json").read_text()):
        assert not re.search(r"/(tmp|home|root|work)\b|runs/|cores", text)
    report = json.loads((FOLDER / name / "evaluation.json").read_text())
    card = model_card(model, name, report)
    planning = report["planning"]
    assert f"| **this model** | {planning['success_rate']:.1%} |" in card
    floors = max(planning[who]["ci95"][1] for who in ("random", "hold"))
    assert planning["ci95"][0] > 0.8 > 2 * floors


@pytest.mark.slow
def test_play_tells_each_episode_and_leaves_a_film(tmp_path, capsys):
    assert main(["play", "two-room", "episodes=2", f"film={tmp_path}"]) == 0
    out = capsys.readouterr().out
    told = re.findall(r"^episode \d: (?:reached after \d+ steps|not reached), [\d.]+ ms", out, re.M)
    assert len(told) == 2
    count = len(re.findall("reached after", out))
    film = tmp_path / "play-two-room.mp4"
    assert f"{count} of 2 goals reached; film: {film}" in out
    frames = iio.imread(film)
    assert len(frames) == 2 * 61 and frames.std() > 10  # two attempts of 60 steps


@pytest.mark.slow
def test_the_same_seed_plays_the_same_and_another_one_another(tmp_path, capsys):
    def steps(seed):
        assert main(["play", "two-room", "episodes=1", f"seed={seed}", f"film={tmp_path}"]) == 0
        return re.findall(r"episode 1: (.*?),", capsys.readouterr().out)

    assert steps(0) == steps(0) != steps(1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected one name of a model, got none; choose one of "),
        (["two-room", "reacher"], "expected one name of a model, got two-room reacher"),
        (["two-rom"], "no model 'two-rom' ships with gjwm; did you mean two-room? choose one of"),
        (["../two-room"], "no model '../two-room' ships with gjwm"),
        (["two-room", "episodes=0"], "episodes must be a whole number, at least 1, got 0"),
        (["two-room", "episodes=many"], "episodes must be a whole number, at least 1, got 'many'"),
        (["two-room", "seed=-1"], "seed must be a whole number, at least 0, got -1"),
        (["two-room", "seed=[1"], "seed must be a whole number, at least 0, got '[1'"),
        (["two-room", "epsodes=2"], "there is no setting epsodes; did you mean episodes?"),
        (["two-room", "film=a.avi"], "a video is written as .mp4 or .gif, got 'a.avi'"),
        (["two-room", "film=file/a.mp4"], "the film file/a.mp4 cannot be written ("),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence_before_work(
    words, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way of a folder")
    assert main(["play", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gjwm play: ") and said in error and len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_help_names_what_ships_and_every_setting(capsys):
    assert main(["play", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("gjwm play NAME ") and max(map(len, text.splitlines())) <= 100
    assert ", ".join(shipped()) in text
    assert re.findall(r"^  (\w+)=", text, re.M) == ["episodes", "seed", "film"]


def test_from_pretrained_names_what_ships_and_a_folder_goes_first(tmp_path, monkeypatch):
    assert gjwm.WorldModel.from_pretrained("two-room").decoder is not None
    with pytest.raises(FileNotFoundError, match="did you mean two-room"):
        gjwm.WorldModel.from_pretrained("two-rooms")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two-room").mkdir()
    with pytest.raises((FileNotFoundError, ImportError), match=r"config\.json|safetensors"):
        gjwm.WorldModel.from_pretrained("two-room")
