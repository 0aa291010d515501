"""Every yaml builds what it names, and every experiment composes into a world that can be
stepped.
"""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from gjwm._core.configured import rebuild
from gjwm._core.types import Batch
from gjwm.cli.config import (
    env_kwargs,
    factory,
    fill,
    import_parts,
    load_config,
    recipe_of,
    split_sweep,
)
from gjwm.data.behaviours import behaviour_from_weights
from gjwm.data.collect import make_env
from gjwm.evaluation.goals import asks_for_reach
from gjwm.models import Reach
from gjwm.objectives import make_objective
from gjwm.rl import LearnerSettings, RewardLearner
from gjwm.study import Sweep, settings_of
from gjwm.training.recipe import build, check_refined
from gjwm.training.settings import TrainSettings

CONFIGS = Path(__file__).parents[2] / "configs"
COMPONENTS = ("encoder", "dynamics", "heads", "discrepancy", "planner", "cost")
STAGES = ("env", "collect", "train", "refine", "reach", "calibrate", "decode", "evaluate")
GROUPS = (*COMPONENTS, *STAGES, "online", "learner", "experiment", "preset", "study")


def options(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def test_no_group_is_left_out_here():
    assert {path.parent.name for path in CONFIGS.glob("*/*.yaml")} == set(GROUPS)


@pytest.mark.parametrize("name", options("experiment"))
def test_an_experiment_builds_its_env_model_and_planner(name):
    if name.startswith("arena") and importlib.util.find_spec("stable_worldmodel") is None:
        pytest.skip("needs the extra [arena]: pip install 'gjwm[arena]'")
    cfg = load_config(
        [f"experiment={name}", *(["env.id=Pendulum-v1"] if name.startswith("gym") else [])]
    )
    _check_planned(cfg)
    env = make_env(cfg.env.id, **env_kwargs(cfg))
    observation, _ = env.reset(seed=0)
    recipe = replace(recipe_of(cfg), heads={})
    model = build(recipe, env.observation_space.shape, env.action_space.shape[0]).eval()
    z = model.encode(torch.from_numpy(observation)[None])
    assert z.shape == (1, cfg.latent_dim)
    plan = instantiate(cfg.planner).plan(
        lambda a: model.rollout(z, a)[..., -1, :].square().sum(-1),
        torch.zeros(1, cfg.evaluate.horizon, model.action_dim),
        generator=torch.Generator().manual_seed(0),
    )
    observation, reward, *_ = env.step(plan.mean[0, 0].numpy())
    assert env.observation_space.contains(observation) and np.isfinite(reward)
    assert behaviour_from_weights(OmegaConf.to_container(cfg, resolve=True)["collect"]["behaviour"])
    env.close()


def test_an_experiment_lists_only_what_differs():
    lengths = {}
    for path in CONFIGS.glob("experiment/*"):
        lines = [line.strip() for line in path.read_text().splitlines()]
        lengths[path.stem] = sum(bool(line) and not line.startswith("#") for line in lines)
    lengths.pop("suite_offline")  # its teacher and its oracle are settings of their own
    assert max(lengths.values()) <= 15, lengths


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"speed": 3}, "no setting train.speed; choose from steps, batch"),
        ({"steps": "abc"}, "train.steps must be a whole number, at least 1, got 'abc'"),
        ({"steps": True}, "train.steps must be a whole number, at least 1, got True"),
        ({"steps": 2.0}, "train.steps must be a whole number, at least 1, got 2.0"),
        ({"lr": float("nan")}, "train.lr must be a number, above 0, got nan"),
        ({"lr": None}, "train.lr must be a number, above 0, got None"),
        ({"episodes": 1.5}, "train.episodes must be null or a whole number, at least 1, got 1.5"),
        ({"batch": 1}, "train.batch must be a whole number, at least 2, got 1"),
    ],
)
def test_fill_names_what_came_and_what_was_expected(settings, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        fill(TrainSettings, settings, "train")


def test_fill_leaves_out_what_is_not_said():
    filled = fill(TrainSettings, {"lr": 1, "episodes": None}, "train", steps=7)
    assert filled == TrainSettings(lr=1, episodes=None, steps=7)


def _plain(overrides):
    return OmegaConf.to_container(load_config(overrides), resolve=True)


def _check_planned(cfg):
    """The dynamics that training ends with can be made, and planned on as evaluation asks."""
    recipe = recipe_of(cfg)
    check_refined(recipe)


@pytest.mark.parametrize("name", options("study"))
def test_a_study_composes_and_builds_a_run_of_every_task_and_method(name, tmp_path):
    settings = OmegaConf.to_container(load_config([f"study={name}"]).study, resolve=False)
    sweep = Sweep(name=name, folder=tmp_path, compose=_plain, **settings_of(settings))
    runs = [next(iter(row.values())) for row in sweep.tuning_runs.values()] + sweep.final_runs()
    assert len({run.folder for run in runs}) == len(runs)
    seen = set()
    for run in runs:
        if run.cell.task in seen and run.cell.method in seen:
            continue  # every task and every method once
        seen |= {run.cell.task, run.cell.method}
        cfg = OmegaConf.create(sweep.config(run))
        assert (
            cfg.seed == run.seed
            and cfg.run_dir == str(run.folder)
            and cfg.dataset.endswith(f"-seed-{run.seed}")
        )
        env = make_env(cfg.env.id, **env_kwargs(cfg))
        model = build(recipe_of(cfg), env.observation_space.shape, 2).eval()
        observation, _ = env.reset(seed=0)
        assert model.encode(torch.from_numpy(observation)[None]).shape == (1, cfg.latent_dim)
        make_objective(instantiate(cfg.discrepancy), **cfg.objective)
        _check_planned(cfg)
        env.close()
    assert {cell.task for cell in sweep.cells} | {cell.method for cell in sweep.cells} == seen


def test_commas_on_the_command_line_are_axes():
    axes, fixed = split_sweep(
        ["discrepancy=none,sigreg", "+x=1,2.5", "study.seeds=[0,1]", "a='b,c'", "seed=range(2)"]
    )
    assert axes == {"discrepancy": ["none", "sigreg"], "+x": [1, 2.5], "seed": [0, 1]}
    assert fixed == ["study.seeds=[0,1]", "a='b,c'"]


class Own(gym.Env):
    """Speaks this package's protocol and takes one argument of its own."""

    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, speed):
        self.speed = speed

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.float32(self.speed * action), 0.0, False, False, {}

    def get_state(self):
        return np.zeros(1)


ENVS = {
    "bare": ["env.id=gjwm-test/own-v0", "+env.speed=0.5"],
    "gym": ["env.id=Pendulum-v1"],
    "moving": ["task=point-maze"],
    "suite": ["task=walker-walk"],
    "world": ["task=two-room"],
}


@pytest.mark.parametrize("name", options("env"))
def test_envs(name, monkeypatch):
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    gym.register("gjwm-test/own-v0", Own)
    cfg = load_config(["experiment=gym", f"env={name}", *ENVS[name]])
    env = make_env(cfg.env.id, **env_kwargs(cfg))
    env.reset(seed=0)
    action = np.full(env.action_space.shape, 0.5, np.float32)
    assert env.observation_space.contains(env.step(action)[0])
    env.close()


@pytest.mark.parametrize("name", options("encoder"))
def test_encoders(name):
    cfg = load_config([f"encoder={name}"])
    shape = (5,) if name.startswith("mlp") else (6, 64, 64)
    encoder = build(recipe_of(cfg), shape, 2).encoder.eval()
    o = torch.zeros(2, *shape, dtype=torch.uint8 if len(shape) == 3 else torch.float32)
    assert encoder(o).shape == (2, cfg.latent_dim)


@pytest.mark.parametrize("name", options("dynamics"))
def test_dynamics(name):
    cfg = load_config([f"dynamics={name}"])
    dynamics = build(recipe_of(cfg), (6, 64, 64), 2).dynamics
    assert dynamics.predict(torch.zeros(3, cfg.latent_dim), torch.zeros(3, 2)).mean.shape == (
        3,
        cfg.latent_dim,
    )


@pytest.mark.parametrize("name", options("heads"))
def test_heads(name):
    cfg = load_config([f"heads=[{name}]"])
    head = build(recipe_of(cfg), (6, 64, 64), 2).heads[name]
    z, a = torch.zeros(3, 4, cfg.latent_dim), torch.zeros(3, 4, 2)
    if name == "policy":
        assert head(z).shape == a.shape
    else:
        assert head(z, a).shape == ((2, 3, 4) if name == "value" else (3, 4))


@pytest.mark.parametrize("name", options("preset"))
@pytest.mark.parametrize("experiment", ["suite", "suite_offline", "cartpole_v1"])
def test_presets_size_a_learner_that_can_update(name, experiment):
    plus = "" if experiment.startswith("suite") else "+"
    heads = "heads=[reward,value,policy,termination]"
    cfg = load_config(
        [
            f"experiment={experiment}",
            f"{plus}preset={name}",
            heads,
            "online.batch=8",
            "learner.compile=false",
        ]
    )
    images = cfg.env.obs == "pixels"
    shape = (6, 64, 64) if images else (5,)
    model = build(recipe_of(cfg), shape, 2)
    learner = RewardLearner(
        model,
        make_objective(instantiate(cfg.discrepancy), **cfg.objective),
        LearnerSettings(**cfg.learner),
    )
    steps = cfg.online.length
    o = torch.randint(255, (8, steps + 1, *shape), generator=torch.Generator().manual_seed(0))
    o = o.to(torch.uint8) if images else o.float()
    batch = Batch(
        o,
        torch.zeros(8, steps, 2),
        torch.ones(8, steps),
        torch.zeros(8, steps).bool(),
        torch.arange(8),
    )
    assert learner.update(batch, torch.Generator().manual_seed(0))["loss"].isfinite()
    assert torch.device(cfg.device).type == {"cpu": "cpu", "gpu": "cuda"}[name]


@pytest.mark.parametrize("name", options("discrepancy"))
def test_discrepancies(name):
    cfg = load_config([f"discrepancy={name}"])
    objective = make_objective(instantiate(cfg.discrepancy), **cfg.objective)
    z = torch.randn(32, 4, cfg.latent_dim, generator=torch.Generator().manual_seed(0))
    losses = objective(z[:, 1:], z[:, 1:], z, generator=torch.Generator().manual_seed(0))
    assert losses["loss"].isfinite()


@pytest.mark.parametrize("name", options("planner"))
def test_planners(name):
    planner = instantiate(load_config([f"planner={name}"]).planner)
    first = torch.tensor([1.0, 0.0])  # also one-hot, for the planner of discrete actions
    plan = planner.plan(
        lambda a: (a - first).square().mean((-1, -2)),
        torch.zeros(2, 6, 2),
        generator=torch.Generator().manual_seed(0),
    )
    assert plan.cost.max() < 0.2  # the zero plan costs 0.5


def test_the_default_is_the_demo_the_readme_promises():
    cfg = load_config()
    assert cfg.env.id == "gjwm/reacher-easy-v0" and cfg.env.obs == "pixels" and cfg.env.size == 64
    assert cfg.device == "cpu" and cfg.logger.wandb == "offline"
    # 24 environment steps ahead, 50 to get there.
    assert (
        cfg.env.action_repeat * cfg.evaluate.goal_offset == 24
        and cfg.env.action_repeat * cfg.evaluate.steps == 50
    )
    assert cfg.evaluate.pairs >= 100


def test_an_experiment_may_change_what_the_main_file_sets():
    assert load_config(["experiment=two_room_random"]).objective.law == "within"
    assert (
        load_config(["experiment=two_room_random", "objective.law=marginal"]).objective.law
        == "marginal"
    )


@pytest.mark.parametrize("name", options("cost"))
def test_costs(name):
    made = factory(load_config([f"cost={name}"]).cost, "cost")
    reach = Reach(3, 3)
    reach.net = torch.nn.Identity()
    reach.set_matrix(0.5 * torch.eye(3))
    cost = made(torch.zeros(2, 3), **({"reach": reach} if asks_for_reach(made) else {}))
    paths, a = torch.randn(2, 5, 4, 7, 3), torch.zeros(2, 5, 6, 1)
    near, far = cost(0.1 * paths, a), cost(paths, a)
    assert near.shape == (2, 5) and (near < far).all()


def test_a_command_imports_the_parts_that_its_own_settings_name(tmp_path, monkeypatch):
    """A checkpoint imports nothing, so this is how a class of the user's own is found."""
    (tmp_path / "their_part.py").write_text(
        "from gjwm.models import GaussianDynamics\nclass Mine(GaussianDynamics):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    described = {"class": "their_part:Mine", "config": {"latent_dim": 2, "action_dim": 1}}
    import_parts(load_config(["experiment=two_room"]))
    with pytest.raises(ValueError, match="import their_part first"):
        rebuild(described, "a file")
    import_parts(load_config(["experiment=two_room", "dynamics._target_=their_part.Mine"]))
    assert type(rebuild(described, "a file")).__name__ == "Mine"
