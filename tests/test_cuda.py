"""Claims about a GPU: the same numbers as on the CPU, whole jobs run there, and CUDA graphs change
no plan.
"""

import copy
import json

import numpy as np
import pytest
import torch

from gjwm._core.types import Batch
from gjwm.cli.app import main
from gjwm.models import Reach
from gjwm.models.dynamics import (
    DeterministicDynamics,
    EnsembleDynamics,
    GaussianDynamics,
    LinearGaussianDynamics,
    MixtureDynamics,
)
from gjwm.models.encoders import MLPEncoder
from gjwm.models.heads import RewardHead
from gjwm.models.world_model import WorldModel
from gjwm.objectives import (
    BHEP,
    GaussianKL,
    JointEmbeddingObjective,
    SIGReg,
    SlicedEnergy,
    SlicedWasserstein,
    Subspaces,
    VICReg,
)
from gjwm.planning import (
    CEM,
    ICEM,
    MPPI,
    CategoricalCEM,
    GradientPlanner,
    RandomShooting,
)
from gjwm.planning.agent import AgentOptions, MPCAgent
from gjwm.planning.costs import GoalCost
from gjwm.rl import LearnerSettings, RewardLearner
from gjwm.rl.actor_critic import Policy, QEnsemble
from gjwm.training.settings import RefineSettings, TrainSettings
from gjwm.training.train import latent_buffer, latents_of, refine, train

CUDA = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DYNAMICS = {
    "deterministic": lambda: DeterministicDynamics(6, 2, hidden=32),
    "gaussian": lambda: GaussianDynamics(6, 2, hidden=32),
    "relu": lambda: GaussianDynamics(6, 2, hidden=32, activation="relu"),
    "low-rank": lambda: GaussianDynamics(6, 2, hidden=32, covariance="low_rank", rank=2),
    "full": lambda: GaussianDynamics(6, 2, hidden=32, covariance="full"),
    "gru": lambda: GaussianDynamics(6, 2, hidden=32, backbone="gru"),
    "transformer": lambda: GaussianDynamics(6, 2, hidden=32, backbone="transformer"),
    "ensemble": lambda: EnsembleDynamics(6, 2, hidden=16),
    "mixture": lambda: MixtureDynamics(6, 2, hidden=32),
    "linear": lambda: LinearGaussianDynamics(6, 2),
}
DISCREPANCIES = {
    "sigreg": lambda: SIGReg(16),
    "sigreg, pooled": lambda: SIGReg(16, time="pooled"),
    "bhep": lambda: BHEP(),
    "energy": lambda: SlicedEnergy(16),
    "wasserstein": lambda: SlicedWasserstein(16),
    "kl": lambda: GaussianKL(),
    "vicreg": lambda: VICReg(),
    "subspaces": lambda: Subspaces(SIGReg(8), dim=2, count=3),
}
FEW = dict(samples=64, iterations=4, elites=8)
PLANNERS = {
    "CEM": lambda: CEM(**FEW),
    "CEM, diagonal": lambda: CEM(covariance="diagonal", noise_beta=2.0, repeat=2, **FEW),
    "ICEM": lambda: ICEM(**FEW),
    "MPPI": lambda: MPPI(**FEW),
    "RandomShooting": lambda: RandomShooting(samples=64),
    "GradientPlanner": lambda: GradientPlanner(starts=4, iterations=20),
    "CategoricalCEM": lambda: CategoricalCEM(samples=64, iterations=4, elites=8),
}


def g(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def world_model(dynamics="gaussian", heads=None):
    torch.manual_seed(0)
    return WorldModel(MLPEncoder((4,), 6, hidden=(32,)), DYNAMICS[dynamics](), heads or {}).eval()


def on_cuda(module):
    return copy.deepcopy(module).to(CUDA)


def close(here, there, tolerance=1e-4):
    assert there.device.type == CUDA.type
    torch.testing.assert_close(there.cpu(), here, atol=tolerance, rtol=tolerance)


def windows(count=16, length=5, seed=0):
    o = torch.randn(count, length + 1, 4, generator=g(seed))
    a = torch.rand(count, length, 2, generator=g(seed + 1)) * 2 - 1
    r = torch.rand(count, length, generator=g(seed + 2))
    return Batch(o, a, r, torch.zeros(count, length, dtype=torch.bool), torch.arange(count))


@pytest.mark.parametrize("name", DISCREPANCIES)
def test_a_discrepancy_and_its_gradient_are_those_of_the_cpu(name):
    z = torch.randn(24, 4, 6, generator=g()) * 1.5 + 0.3
    found = []
    for device in ("cpu", CUDA):
        x = z.to(device, copy=True).requires_grad_()
        value = DISCREPANCIES[name]().to(device)(x, generator=g(1))
        value.backward()
        found.append((value.detach(), x.grad))
    for here, there in zip(*found):
        close(here, there, 1e-3)


def test_a_reach_is_fitted_there_and_answers_as_on_the_cpu():
    z = torch.randn(40, 20, 4, generator=g()).cumsum(1) / 3
    torch.manual_seed(0)
    there = Reach(4, 4, 6, hidden=(16,)).to(CUDA)
    there.fit(z.to(CUDA), steps=20, batch=64, generator=torch.Generator(CUDA).manual_seed(0))
    here = copy.deepcopy(there).cpu()
    start, goal = z[:5, 0], z[:5, -1]
    with torch.no_grad():
        close(here.log_ratio(start, goal), there.log_ratio(start.to(CUDA), goal.to(CUDA)), 1e-3)
        close(here.distance(start, goal), there.distance(start.to(CUDA), goal.to(CUDA)), 1e-3)
        close(here.waypoints(start, goal, 3), there.waypoints(start.to(CUDA), goal.to(CUDA), 3))
        close(here.information(), there.information())


@pytest.mark.parametrize("name", DYNAMICS)
def test_dynamics_predict_and_draw_as_on_the_cpu(name):
    torch.manual_seed(0)
    here = DYNAMICS[name]().eval()
    there = on_cuda(here)
    z, a = torch.randn(5, 4, 6, generator=g()), torch.rand(5, 3, 2, generator=g(1)) * 2 - 1
    with torch.no_grad():
        close(
            here.nll(z[:, :-1], a, z[:, 1:]),
            there.nll(z.to(CUDA)[:, :-1], a.to(CUDA), z.to(CUDA)[:, 1:]),
            1e-3,
        )
        close(here.training_means(z, a), there.training_means(z.to(CUDA), a.to(CUDA)))
        close(here.rollout(z[:, 0], a), there.rollout(z[:, 0].to(CUDA), a.to(CUDA)))
        # One generator on the CPU draws the same particles for both.
        mine, theirs = (
            model.rollout(z[:, 0].to(device), a.to(device), particles=10, generator=g(2))
            for model, device in ((here, "cpu"), (there, CUDA))
        )
        close(mine, theirs, 1e-3)
        own = there.rollout(z[:, 0].to(CUDA), a.to(CUDA), particles=10, generator=g(2, CUDA))
        assert own.isfinite().all() and own.shape == mine.shape


@pytest.mark.parametrize("name", PLANNERS)
def test_planners_find_on_the_gpu_what_they_find_on_the_cpu(name):
    plans = []
    for device in ("cpu", CUDA):
        target = torch.rand(3, 1, 6, 2, generator=g(5)).to(device) * 2 - 1
        start = torch.zeros(3, 6, 2, device=device)
        plans.append(
            PLANNERS[name]().plan(
                lambda a, t=target: (a - t).square().sum((-2, -1)), start, generator=g(6)
            )
        )
        own = PLANNERS[name]().plan(
            lambda a, t=target: (a - t).square().sum((-2, -1)), start, generator=g(6, device)
        )
        assert own.mean.device == start.device
        # other numbers, about as good a plan
        assert own.cost.sum() < 1.5 * plans[-1].cost.sum() + 1.5
    close(plans[0].mean, plans[1].mean, 1e-3)
    close(plans[0].cost, plans[1].cost, 1e-3)


def agents(**options):
    model = world_model(options.pop("dynamics", "gaussian"))
    for device in ("cpu", CUDA):
        there = copy.deepcopy(model).to(device)
        goal = there.encode(torch.ones(3, 4, device=device))
        yield MPCAgent(
            there,
            CEM(covariance="diagonal", **FEW),
            GoalCost(goal),
            horizon=6,
            generator=g(3),
            **options,
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"particles": 8},
        {"replan_every": 2, "options": AgentOptions(reuse=0.3)},
        {"dynamics": "gru"},
        {"options": AgentOptions(chunk=50)},
    ],
    ids=str,
)
def test_an_agent_acts_on_the_gpu_as_on_the_cpu(options):
    here, there = agents(**options)
    for step in range(4):
        o = torch.randn(3, 4, generator=g(step))
        with torch.no_grad():
            close(here.act(o), there.act(o), 1e-3)
        if step == 1:
            here.reset([True, False, False]), there.reset([True, False, False])
    assert set(there.explain()) == set(here.explain())


@pytest.mark.slow
def test_cuda_graphs_change_no_plan():
    _, eager = agents()
    _, replayed = agents(options=AgentOptions(compile=True))
    for step in range(5):
        o = torch.randn(3, 4, generator=g(step))
        close(eager.act(o).cpu(), replayed.act(o), 1e-3)
        torch.testing.assert_close(eager.plan.cost, replayed.plan.cost, atol=1e-3, rtol=1e-3)
        if step == 2:
            eager.reset([True, False, False]), replayed.reset([True, False, False])


@pytest.mark.slow
def test_a_compiled_discrepancy_is_the_plain_one():
    z = torch.randn(64, 6, device=CUDA)
    plain, fused = (
        SIGReg(32, time="pooled", compile=c).to(CUDA)(z, generator=g(1)) for c in (False, True)
    )
    torch.testing.assert_close(plain, fused, atol=1e-4, rtol=1e-3)


class Walk:
    """o' = o + 0.2 (a, a): what a buffer would draw."""

    def sample(self, batch, length, generator=None):
        a = torch.rand(batch, length, 2, generator=generator) * 2 - 1
        o = torch.randn(batch, 1, 4, generator=generator)
        o = torch.cat([o, o + 0.2 * torch.cat([a, a], -1).cumsum(1)], 1)
        zeros = torch.zeros(batch, length)
        return Batch(o, a, zeros, zeros.bool(), torch.arange(batch))


def test_training_and_refining_learn_on_the_gpu_and_the_file_loads_on_the_cpu(tmp_path):
    model = world_model().to(CUDA)
    objective = JointEmbeddingObjective(SIGReg(16), 1.0)
    errors = []
    train(
        model,
        objective,
        Walk(),
        TrainSettings(steps=150, batch=64, length=4, lr=3e-3),
        generator=g(),
        log=lambda s, k: errors.append(s),
    )
    model.eval()
    assert errors[-1]["train/alignment"] < 0.5 * errors[0]["train/alignment"]
    walk = Walk().sample(40, 12, g(1))

    class Played:
        def __init__(self, i):
            self.o = walk.o[i].numpy()
            self.rest = (
                walk.a[i].numpy(),
                np.zeros(12),
                np.zeros(12, bool),
                np.eye(12, dtype=bool)[-1],
            )

        def __getitem__(self, part):
            return self.rest

    played = [Played(i) for i in range(40)]
    latents = latent_buffer(list(latents_of(model, played)), played, model.action_dim)
    assert latents.device.type == CUDA.type
    before = _open_loop_error(model, walk)
    refine(
        model.dynamics,
        latents,
        RefineSettings(steps=150, batch=64, length=6, lr=2e-3),
        generator=g(2),
    )
    assert _open_loop_error(model, walk) < before
    model.save(tmp_path / "model.pt")
    again = WorldModel.load(tmp_path / "model.pt")
    assert again.device.type == "cpu"
    close(again.encode(walk.o), model.encode(walk.o.to(CUDA)))


@torch.no_grad()
def _open_loop_error(model, walk):
    z = model.encode(walk.o.to(model.device))
    return (model.rollout(z[:, 0], walk.a.to(model.device)) - z)[:, 1:].square().mean().item()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_learning_from_reward_updates_on_the_gpu(compiled):
    heads = {
        "reward": RewardHead(6, 2, hidden=(32,)),
        "value": QEnsemble(6, 2, hidden=32),
        "policy": Policy(6, 2, hidden=(32,)),
    }
    model = world_model(heads=heads).to(CUDA).train()
    learner = RewardLearner(
        model,
        JointEmbeddingObjective(SIGReg(16, time="pooled"), lam=1.0),
        LearnerSettings(compile=compiled),
    )
    losses = []
    for step in range(20):
        losses.append(learner.update(windows(64, seed=step % 3).to(CUDA), generator=g(step)))
    assert all(value.isfinite().all() for value in losses[-1].values())
    assert losses[-1]["reward"] < losses[0]["reward"]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["two_room", "two_room_random", "reacher"])
def test_whole_runs_go_through_on_the_gpu(experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = [] if experiment == "reacher" else ["env.size=16"]
    code = main(
        [
            "run",
            f"experiment={experiment}",
            "device=cuda",
            "name=small",
            "logger.wandb=disabled",
            "collect.episodes=24",
            "collect.length=30",
            "collect.workers=0",
            "train.steps=40",
            "decode.steps=20",
            "refine.steps=20",
            *(["reach.steps=20"] if experiment == "two_room" else []),
            "calibrate.episodes=8",
            "calibrate.horizon=4",
            "calibrate.particles=8",
            "evaluate.episodes=12",
            "evaluate.length=30",
            "evaluate.pairs=4",
            "evaluate.steps=6",
            "evaluate.horizon=8",
            "evaluate.probe_steps=40",
            "report.worst=0",
            "report.typical=0",
            "report.every=0",
            *sizes,
        ]
    )
    assert code == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "runs" / "small" / "evaluation.json").read_text())
    assert report["planning"]["episodes"] == report["planning"]["oracle"]["episodes"] == 4
