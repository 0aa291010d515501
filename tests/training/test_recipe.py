"""The front door: a dataset, a model and an agent in a few lines, with what the commands do."""

import json
import re
from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
import yaml

import gjwm
from gjwm._core.fit import Threads
from gjwm.cli.app import main
from gjwm.evaluation import Evaluation
from gjwm.evaluation.evaluate import Task
from gjwm.models.dynamics import GaussianDynamics
from gjwm.models.encoders import ConvEncoder, MLPEncoder
from gjwm.objectives import SIGReg
from gjwm.planning import ReachCost
from gjwm.reporting.films import film_attempts
from gjwm.training.recipe import (
    CalibrateSettings,
    DecodeSettings,
    ObjectiveSettings,
    ReachSettings,
    Recipe,
    RefineSettings,
    TrainSettings,
    build,
)

SMALL = dict(
    latent_dim=4,
    dynamics=partial(GaussianDynamics, hidden=16, std_hidden=8),
    discrepancy=partial(SIGReg, num_slices=16),
    train=TrainSettings(steps=6, batch=8, length=3),
    refine=RefineSettings(steps=4, batch=8, length=3),
    calibrate=CalibrateSettings(episodes=4, horizon=3, particles=4),
    decode=DecodeSettings(steps=3, batch=4),
)
# Keyword arguments of `gjwm.collect`.
FEW = dict(episodes=6, length=10, workers=0)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_any_gymnasium_environment_becomes_a_model_that_knows_its_origin(folder):
    data = gjwm.collect("Pendulum-v1", **FEW)
    assert len(data) == 6 and data.path.name == "Pendulum-v1" and data.lengths() == [10] * 6
    again = gjwm.collect("Pendulum-v1", **FEW | {"episodes": 8})  # completes it
    assert again == data and len(data) == 8
    with pytest.raises(ValueError, match=r"was collected with .*'length': 10"):
        gjwm.collect("Pendulum-v1", **FEW | {"length": 12})
    with pytest.raises(ValueError, match="choose another"):
        gjwm.collect("Pendulum-v1", action_repeat=3, **FEW)

    model = gjwm.train(data, Recipe(**SMALL), run="runs/pendulum", threads=1)
    assert isinstance(model.encoder, MLPEncoder) and not model.training
    assert model.calibration is not None and model.decoder is None
    origin = model.origin
    assert (origin.env_id, origin.length, origin.behaviour) == ("Pendulum-v1", 10, {"coloured": 1})
    assert origin.recipe["train"]["steps"] == 6 and origin.env_kwargs == {"terminate": False}
    run = folder / "runs" / "pendulum"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]
    assert steps == [6, 10]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["env"]["id"] == "Pendulum-v1" and config["refine"]["steps"] == 4

    assert same(gjwm.WorldModel.load(run / "checkpoint.pt"), model)
    assert same(gjwm.WorldModel.load(run), model)
    # without a folder the same model, and with one that is whole nothing is done again
    assert same(gjwm.train(str(data.path), Recipe(**SMALL), threads=1), model)
    written = (run / "checkpoint.pt").stat().st_mtime_ns
    assert same(gjwm.train(data, Recipe(**SMALL), run=run, threads=1), model)
    assert (run / "checkpoint.pt").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"latent_dim \(4 before, 5 now\)"):
        gjwm.train(data, Recipe(**SMALL | {"latent_dim": 5}), run=run)


def test_a_reach_comes_with_the_model_and_judges_plans(folder):
    data = gjwm.collect("gjwm/two-room-v0", obs="state", **FEW)
    recipe = Recipe(**SMALL, reach=ReachSettings(steps=4, dim=3, horizon=4, batch=16))
    model = gjwm.train(data, recipe, run="runs/reach", threads=1)
    loaded = gjwm.WorldModel.load("runs/reach")
    z = torch.randn(2, 3, 4)
    torch.testing.assert_close(loaded.reach.log_ratio(z[0], z[1]), model.reach.log_ratio(*z))
    assert (loaded.reach.dim, loaded.reach.horizon) == (3, 4) and loaded.reach.rho[0] > 0
    logged = [json.loads(line) for line in open("runs/reach/metrics.jsonl")]
    assert [row["step"] for row in logged] == [6, 10, 14] and "reach/loss" in logged[-1]
    settings = Evaluation(
        episodes=8, length=10, pairs=2, steps=3, horizon=3, oracle=False, probe_steps=1
    )
    report = gjwm.evaluate(loaded, settings, cost=ReachCost)
    assert report["planning"]["protocol"]["cost"] == "ReachCost"
    plain = gjwm.train(data, Recipe(**SMALL), threads=1)
    assert plain.reach is None
    with pytest.raises(ValueError, match="the model has none: train it with reach"):
        gjwm.evaluate(plain, settings, cost=ReachCost)
    with pytest.raises(ValueError, match="the model has none: train it with reach"):
        film_attempts(plain, Task.of(plain), settings, count=1, cost=ReachCost)


def test_pixels_get_a_convolutional_encoder_a_decoder_and_an_agent(folder):
    data = gjwm.collect("gjwm/two-room-v0", obs="pixels", size=16, **FEW)
    assert data.env_kwargs == {"terminate_on_goal": False, "obs": "pixels", "size": 16}
    model = gjwm.train(data, Recipe(**SMALL), threads=1)
    assert isinstance(model.encoder, ConvEncoder)
    image = torch.from_numpy(next(iter(data)).o)
    assert model.decoder.image(model.encode(image[:2])).shape == (2, 3, 16, 16)
    agent = gjwm.MPCAgent(model, goal=image[-1], horizon=3)
    action = agent.act(image[:1])
    assert action.shape == (1, 2) and action.abs().max() <= 1


def test_usual_arguments_are_those_of_the_experiments():
    from gjwm.cli.config import env_kwargs, load_config
    from gjwm.data.handle import usual_arguments

    for experiment in ("reacher", "point_mass"):
        cfg = load_config([f"experiment={experiment}"])
        given = {"obs": "pixels"}
        assert usual_arguments(cfg.env.id, given) | given == env_kwargs(cfg)


def test_a_recipe_is_the_command(folder):
    settings = [
        *("experiment=two_room", "env.size=16", "latent_dim=4", "encoder.channels=[8,8]"),
        *("encoder.hidden=16", "dynamics.hidden=16", "dynamics.std_hidden=8", "seed=3"),
        *("train.steps=6", "train.batch=8", "train.length=3", "refine.steps=4", "refine.batch=8"),
        *("calibrate.episodes=4", "calibrate.horizon=3", "calibrate.particles=4"),
        *("decode.steps=3", "decode.batch=4", "discrepancy.num_slices=16", "threads=1"),
        *("reach.steps=3", "reach.batch=8", "reach.dim=2"),
        *("collect.episodes=6", "collect.length=10", "collect.workers=0", "report.every=0"),
        *("logger.wandb=disabled", "name=command", "dataset=data/rooms"),
    ]
    assert [main([command, *settings]) for command in ("collect", "train")] == [0, 0]
    recipe = Recipe(
        **SMALL | {"encoder": partial(ConvEncoder, channels=[8, 8], hidden=16), "seed": 3},
        reach=ReachSettings(steps=3, batch=8, dim=2),
    )
    model = gjwm.train("data/rooms", recipe, run="runs/python", threads=1)
    made = gjwm.WorldModel.load("runs/command/checkpoint.pt")
    assert same(made, model)
    assert made.origin.behaviour == {"coloured": 0.25, "scripted": 0.75} == model.origin.behaviour
    logs = [
        [json.loads(line) for line in open(f"runs/{name}/metrics.jsonl")]
        for name in ("command", "python")
    ]
    for row in (row for log in logs for row in log):
        row.pop("frames_per_second", None)
    assert logs[0] == logs[1]
    config = yaml.safe_load(open("runs/command/config.yaml"))
    assert config["collect"]["length"] == config["evaluate"]["length"] == 10  # resolved
    assert config["refine"]["lr"] == 2e-3 and config["env"]["goal"] == "other-room"


def test_data_of_unknown_origin_are_trained_on_without_calibration(folder):
    pendulum = gymnasium.spec("Pendulum-v1")
    gymnasium.register("somewhere/else-v7", pendulum.entry_point, max_episode_steps=200)
    try:
        data = gjwm.collect("somewhere/else-v7", **FEW)
    finally:
        del gymnasium.registry["somewhere/else-v7"]
    told = []
    model = gjwm.train(data.path, Recipe(**SMALL), threads=1, notify=told.append)
    assert model.calibration is None
    assert "stay uncalibrated: no more episodes of somewhere/else-v7 can be collected" in told[-1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": TrainSettings(steps=6, batch=8, length=30)}, "train.length=30 is longer"),
        ({"refine": RefineSettings(steps=4, length=30)}, "refine.length=30 is longer"),
        ({"encoder": partial(MLPEncoder, width=3)}, "encoder: .*'width'"),
    ],
)
def test_settings_that_do_not_fit_are_named_before_a_run_folder_is_touched(changes, said, folder):
    data = gjwm.collect("Pendulum-v1", **FEW)
    with pytest.raises(ValueError, match=said):
        gjwm.train(data, Recipe(**SMALL | changes), run="runs/x", threads=1)
    assert not (folder / "runs" / "x" / "checkpoint.pt").exists()


class Machine:
    """A clock that moves by what a step takes with the present number of threads."""

    def __init__(self, seconds):
        self.seconds, self.now = seconds, 0.0

    def __call__(self):
        return self.now

    def step(self):
        self.now += self.seconds[torch.get_num_threads()]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_faster_thread_count_is_kept_and_measured_again_when_steps_slow_down(two_threads):
    machine = Machine({1: 1.0, 2: 0.6})
    threads, told = Threads(2, clock=machine), []
    threads.tell = told.append

    def work(steps):
        for _ in range(steps):
            machine.step()
            threads.step()
        return torch.get_num_threads()

    assert work(200) == 2
    machine.seconds = {1: 1.1, 2: 9.0}  # another process has come
    assert work(200) == 1
    machine.seconds = {1: 1.1, 2: 0.6}  # it has gone, and one thread is no slower than it was
    assert work(200) == 1
    assert torch.get_num_threads() == 1 and work(1) == 1
    assert told == [  # a line for each choice that is another one
        "2 threads from here on: 1000.0 ms a step with 1, 600.0 with 2 (threads=N decides)",
        "1 thread from here on: 1100.0 ms a step with 1, 9000.0 with 2 (threads=N decides)",
    ]


def test_a_thread_count_that_is_far_slower_is_left_after_its_first_timed_step(two_threads):
    machine = Machine({1: 1.0, 2: 20.0})
    threads, steps = Threads(2, clock=machine), []
    while not steps or torch.get_num_threads() == 2 or len(steps) < 12:
        steps.append(torch.get_num_threads())
        machine.step()
        threads.step()
    assert steps.count(2) == 4  # in each of two turns one wakes the threads up, one is timed


def test_a_training_tells_the_thread_count_that_it_measured(two_threads, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    data = gjwm.collect("Pendulum-v1", **FEW)
    recipe, said = Recipe(**SMALL | {"train": TrainSettings(steps=20, batch=8, length=3)}), []
    gjwm.train(data, recipe, notify=said.append)
    assert sum("from here on" in line for line in said) >= 1
    said.clear()
    gjwm.train(data, recipe, threads=1, notify=said.append)
    assert not any("from here on" in line for line in said)


def test_the_same_call_takes_the_same_data_whatever_holds_its_arguments(folder):
    asked = dict(FEW, obs="pixels", size=16, hidden=("target",))
    first = gjwm.collect("gjwm/reacher-easy-v0", **asked)
    again = gjwm.collect("gjwm/reacher-easy-v0", **asked)
    assert len(first) == len(again) == 6
    assert again.env_kwargs["hidden"] == ["target"]


def test_a_model_outlives_episodes_that_cannot_calibrate_it(folder):
    data = gjwm.collect("CartPole-v1", **dict(FEW, episodes=20, length=40), terminate=True)
    notes = []
    recipe = Recipe(**SMALL | {"calibrate": CalibrateSettings(episodes=12, horizon=3)})
    model = gjwm.train(data, recipe, notify=notes.append)
    assert model.calibration is None
    assert any("stay uncalibrated" in note and "one length" in note for note in notes)


def test_discrete_actions_are_planned_without_being_told(folder, capsys):
    data = gjwm.collect("CartPole-v1", **FEW)
    model = gjwm.train(data, Recipe(**SMALL))
    settings = Evaluation(episodes=8, length=10, pairs=2, steps=3, horizon=3, goal_offset=3)
    settings = replace(settings, oracle=False, probe_steps=20)
    capsys.readouterr()
    report = gjwm.evaluate(model, settings)
    assert report["planning"]["episodes"] == 2
    told = capsys.readouterr().out.splitlines()  # as the command, stage by stage
    assert told[0] == "collecting held-out episodes" and "planning with the model" in told
    gjwm.evaluate(model, settings, notify=lambda message: None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("settings", "wrong", "expected"),
    [
        (TrainSettings, {"lr": -1.0}, "train.lr must be a number, above 0, got -1.0"),
        (TrainSettings, {"clip": 0.0}, "train.clip must be a number, above 0"),
        (TrainSettings, {"clip": float("nan")}, "train.clip must be a number, above 0, got nan"),
        (TrainSettings, {"warmup": float("inf")}, "train.warmup must be a number, at least 0 and"),
        (TrainSettings, {"steps": np.bool_(True)}, "train.steps must be a whole number"),
        (TrainSettings, {"steps": np.float64(2)}, "train.steps must be a whole number"),
        (TrainSettings, {"warmup": 2.0}, "train.warmup must be a number, at least 0 and below 1"),
        (TrainSettings, {"episodes": 0}, "train.episodes must be null or a whole number"),
        (TrainSettings, {"steps": 2.5}, "train.steps must be a whole number, at least 1, got 2.5"),
        (CalibrateSettings, {"length": 0}, "calibrate.length must be null or a whole number"),
        (ObjectiveSettings, {"lam": -1.0}, "objective.lam must be a number, at least 0"),
        (ObjectiveSettings, {"lam": "5"}, "objective.lam must be a number, at least 0, got '5'"),
        (ObjectiveSettings, {"law": "foo"}, "objective.law must be 'marginal' or 'within'"),
        (Recipe, {"seed": None}, "seed must be a whole number, at least 0, got None"),
        (Recipe, {"encoder": "conv"}, "encoder must be null or a class, or a functools.partial"),
        (Recipe, {"discrepancy": SIGReg()}, "a functools.partial of one, got an instance of SIGR"),
        (Recipe, {"heads": {"reward": "r"}}, "heads must be names, each with a class"),
        (Recipe, {"train": {"steps": 5}}, "train must be a gjwm.training.settings.TrainSettings"),
    ],
)
def test_settings_refuse_what_cannot_train(settings, wrong, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        settings(**wrong)


def test_settings_take_numbers_of_numpy_and_keep_plain_ones():
    train = TrainSettings(steps=np.int64(5), lr=np.float32(0.5), clip=np.float64(2))
    assert [type(value) for value in (train.steps, train.lr, train.clip)] == [int, float, float]
    assert train == TrainSettings(steps=5, lr=0.5, clip=2.0)
    assert type(Recipe(seed=np.int64(3)).seed) is int


def test_gradients_need_not_be_clipped():
    assert TrainSettings(clip=float("inf")).clip == RefineSettings(clip=float("inf")).clip


def test_a_device_that_is_not_there_is_told_as_on_the_command_line(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = gjwm.collect("CartPole-v1", **FEW)
    for call in (lambda d: gjwm.train(data, device=d), lambda d: gjwm.WorldModel.load("x.pt", d)):
        with pytest.raises(ValueError, match="device must be cpu, cuda or cuda:N, got 'gpu'"):
            call("gpu")
        with pytest.raises(ValueError, match="device=cuda was asked for and this machine has no"):
            call("cuda")


def test_the_front_door_names_what_is_no_recipe_data_or_model(folder):
    data = gjwm.collect("CartPole-v1", **FEW)
    tiny = build(Recipe(**SMALL), (4,), 2)
    for call, expected in (
        (
            lambda: gjwm.train(data, {"steps": 5}),
            "recipe must be a gjwm.training.settings.Recipe, got",
        ),
        (lambda: gjwm.train(3), "data must be a gjwm.data.handle.Dataset or text"),
        (lambda: gjwm.train(data, Recipe(discrepancy=lambda: None)), "made nothing"),
        (lambda: gjwm.evaluate(tiny, episodes=8), r"how many is Evaluation\(episodes=8\)\."),
        (lambda: gjwm.evaluate("runs/x"), "model must be a gjwm.models.world_model.W"),
    ):
        with pytest.raises(ValueError, match=expected):
            call()
