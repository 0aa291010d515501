"""Claims about learning from reward: targets, values, policy, the loop, and that an interruption
changes nothing.
"""

import csv
import json
import math
import runpy
from contextlib import closing
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from torch import distributions

from gjwm._core.checkpoint import Checkpoints
from gjwm._core.types import Batch
from gjwm.cli.app import main
from gjwm.cli.config import load_config
from gjwm.cli.online import reward_recipe
from gjwm.data.acting import HoldActor, Moment, RandomActor
from gjwm.data.dataset import dataset_info
from gjwm.data.replay import ReplayBuffer
from gjwm.models.dynamics import EnsembleDynamics, GaussianDynamics
from gjwm.models.encoders import MLPEncoder
from gjwm.models.heads import RewardHead, TerminationHead
from gjwm.models.world_model import WorldModel
from gjwm.objectives import JointEmbeddingObjective, SIGReg, make_objective
from gjwm.planning import ICEM, MPPI
from gjwm.planning.agent import reward_agent
from gjwm.reporting.logging import RunLogger
from gjwm.rl import (
    Exploration,
    Explorer,
    Hooks,
    LearnerSettings,
    OnlineSettings,
    ReturnCurve,
    RewardLearner,
    RewardOracle,
    RewardRecipe,
    Stream,
    lambda_returns,
    learn,
    loop,
    play_returns,
    pretrain,
    return_report,
    train_online,
)
from gjwm.rl.actor_critic import Policy, QEnsemble, TwoHot
from gjwm.rl.augment import random_shift
from gjwm.rl.returns import Foresight
from gjwm.training.metrics import progress

torch.set_num_threads(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Slide(gym.Env):
    """A point x on a line, moved by the action; the reward says how near it is to 0.6. Leaving
    [-1.5, 1.5] ends the episode.
    """

    observation_space = spaces.Box(-2, 2, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1)
        return np.array([self.x], np.float32), {}

    def step(self, action):
        self.x += 0.2 * float(action[0]) + 0.005 * self.np_random.standard_normal()
        fallen = abs(self.x) > 1.5
        reward = 0.0 if fallen else math.exp(-8 * (self.x - 0.6) ** 2)
        return np.array([np.clip(self.x, -2, 2)], np.float32), reward, fallen, False, {}


gym.register("test/Slide-v0", entry_point=Slide, max_episode_steps=20)


def learner(
    observation_dim=1,
    action_dim=1,
    *,
    heads=("reward", "value", "policy"),
    dynamics=None,
    **options,
):
    torch.manual_seed(0)
    made = {
        "reward": lambda: RewardHead(4, action_dim, hidden=(32, 32)),
        "termination": lambda: TerminationHead(4, action_dim, hidden=(32, 32)),
        "value": lambda: QEnsemble(4, action_dim, hidden=32),
        "policy": lambda: Policy(4, action_dim, hidden=(32, 32)),
    }
    model = WorldModel(
        MLPEncoder((observation_dim,), 4, hidden=(32, 32)),
        dynamics or GaussianDynamics(4, action_dim, hidden=32, std_hidden=16),
        {name: made[name]() for name in heads},
    )
    objective = JointEmbeddingObjective(SIGReg(num_slices=16, time="pooled"), lam=1.0)
    return RewardLearner(model, objective, LearnerSettings(**options))


def batch_of(o, a=None, r=None, ended=False):
    """Windows (B, T+1) of observations; without actions uniform ones, without rewards none."""
    count, steps = o.shape[0], o.shape[1] - 1
    a = torch.rand(count, steps, 1, generator=generator(1)) if a is None else a
    r = torch.zeros(count, steps) if r is None else r
    return Batch(o, a, r, torch.full((count, steps), ended), torch.arange(count))


def assert_same_weights(*learners):
    first, second = (learner.model.state_dict().values() for learner in learners)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def planner():
    return MPPI(
        samples=24, iterations=2, elites=6, covariance="diagonal", init_std=0.7, min_std=0.05
    )


# -- targets, values, policy -----------------------------------------------------------------------


def test_lambda_returns_are_one_step_targets_at_0_and_the_windows_return_at_1():
    r, value = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([10.0, 20.0, 30.0])
    on = torch.ones(3)
    one = lambda_returns(r, value, on, discount=0.5, lam=0.0)
    assert one.tolist() == [1 + 5, 2 + 10, 4 + 15]
    whole = lambda_returns(r, value, on, discount=0.5, lam=1.0)
    assert whole.tolist() == [1 + 0.5 * (2 + 0.5 * 19), 2 + 0.5 * 19, 19.0]
    ended = lambda_returns(r, value, torch.tensor([1.0, 0.0, 1.0]), discount=0.5, lam=1.0)
    assert ended.tolist() == [1 + 0.5 * 2, 2.0, 19.0]  # nothing comes after a terminal state


def test_two_hot_keeps_a_number_and_its_cross_entropy_is_least_there():
    bins = TwoHot(51, -2.0, 7.0)
    numbers = torch.tensor([-3.0, 0.0, 0.7, 12.3, 400.0])
    logits = torch.zeros(5, 51, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        bins.cross_entropy(logits, numbers).sum().backward()
        optimizer.step()
    torch.testing.assert_close(bins.mean(logits.detach()), numbers, rtol=0.02, atol=0.02)
    # Where returns differ it is their mean that is learned, not what its symlog is the mean of: 40.
    both = torch.zeros(51, requires_grad=True)
    optimizer = torch.optim.Adam([both], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        bins.cross_entropy(both.expand(2, 51), torch.tensor([20.0, 80.0])).mean().backward()
        optimizer.step()
    torch.testing.assert_close(bins.mean(both.detach()), torch.tensor(50.0), rtol=0.02, atol=0)
    ends = bins.cross_entropy(torch.zeros(2, 51), torch.tensor([-1e6, 1e6]))
    assert ends.tolist() == pytest.approx([math.log(51)] * 2)
    with pytest.raises(ValueError, match="bins"):
        TwoHot(1, 0.0, 1.0)


@pytest.mark.parametrize("bins", [None, 51])
def test_an_ensembles_members_are_networks_of_their_own_and_start_at_0(bins):
    q = QEnsemble(3, 2, members=3, hidden=16, bins=bins)
    z, a = torch.randn(5, 4, 3, generator=generator()), torch.rand(5, 4, 2, generator=generator())
    assert q(z, a).shape == (3, 5, 4)
    torch.testing.assert_close(q(z, a), torch.zeros(3, 5, 4), atol=1e-5, rtol=0)
    above = QEnsemble(3, 2, hidden=16, bins=51, low=-2.0, high=7.0)
    torch.testing.assert_close(above(z, a), torch.full((2, 5, 4), above.two_hot.start))
    assert above.two_hot.start == pytest.approx(129.1, abs=0.1)
    for layer in q.layers:
        torch.nn.init.normal_(layer.weight, generator=generator(1))
    apart = q(z, a)
    for layer in q.layers:
        layer.weight.data[1] += 1
    changed = q(z, a)
    assert torch.equal(apart[0], changed[0]) and torch.equal(apart[2], changed[2])
    assert (apart[1] != changed[1]).any()


def test_a_shifted_picture_is_the_picture_elsewhere_with_its_edge_repeated():
    pictures = torch.randint(0, 256, (2, 4, 6, 9, 8), dtype=torch.uint8, generator=generator())
    shifted = random_shift(pictures, 2, generator(1))
    padded = torch.nn.functional.pad(pictures.flatten(0, 1).float(), (2, 2, 2, 2), "replicate")
    places = set()
    for picture, around in zip(shifted.flatten(0, 1), padded):
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(around[:, y : y + 9, x : x + 8].byte(), picture)
        ]
        assert len(found) == 1  # all channels by the same
        places |= set(found)
    assert len(places) > 3  # each picture by its own
    assert torch.equal(random_shift(pictures, 2, generator(1)), shifted)


def test_vectors_are_not_shifted():
    with pytest.raises(ValueError, match=r"learner\.shift=3 moves pictures.*shape \(1,\): use 0"):
        learner(shift=3)


def test_the_policys_density_is_that_of_a_squashed_gaussian():
    policy = Policy(3, 2, hidden=(16, 16))
    z = torch.randn(64, 3, generator=generator())
    a, log_density = policy.sample(z, generator(1))
    mean, log_std = policy._moments(z)
    squashed = distributions.TransformedDistribution(
        distributions.Normal(mean, log_std.exp()), distributions.TanhTransform()
    )
    near = (a.abs() < 0.999).all(-1)  # the inverse of tanh is no longer exact beyond
    torch.testing.assert_close(
        log_density[near], squashed.log_prob(a).sum(-1)[near], atol=1e-3, rtol=1e-3
    )
    assert torch.equal(policy(z), mean.tanh()) and (a.abs() <= 1).all()


@pytest.mark.parametrize(("terminal", "value"), [(False, 5.0), (True, 1.0)])
def test_values_become_the_discounted_return_and_stop_at_a_terminal_state(terminal, value):
    """Reward 1 at every step: 1 / (1 - 0.8) where nothing ends, 1 where every step does."""
    heads = ("reward", "value", "policy", "termination")
    subject = learner(heads=heads, discount=0.8, target_rate=0.3, lr=1e-2, value_lr=1e-2, lam=1.0)
    subject.model.train()
    draw = generator(2)
    for _ in range(200):
        o = torch.randn(32, 1, 1, generator=draw).expand(-1, 4, -1)
        a = torch.rand(32, 3, 1, generator=draw)
        losses = subject.update(batch_of(o, a, torch.ones(32, 3), terminal), draw)
    assert losses["loss"].isfinite()
    model = subject.model.eval()
    z = model.encode(torch.randn(50, 1, generator=draw))
    q = model.heads["value"](z, model.heads["policy"](z))
    assert q.mean().item() == pytest.approx(value, rel=0.1)
    ends = model.heads["termination"](z, model.heads["policy"](z))
    assert ends.mean().item() == pytest.approx(float(terminal), abs=0.05)


def test_targets_may_follow_the_policy_in_the_model_first():
    """Rewards 1, each step the last with probability 1/2, and slow values of 8 beyond: worked out
    by hand.
    """
    subject = learner(heads=("reward", "value", "policy", "termination"), discount=0.5, expansion=2)
    for name, number in (("reward", 1.0), ("termination", 0.0)):  # of the logit
        layers = subject.model.heads[name].modules()
        *_, last = (m for m in layers if isinstance(m, torch.nn.Linear))
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.constant_(last.bias, number)
    subject.slow.forward = lambda z, a: torch.full((2, *z.shape[:-1]), 8.0)
    z = torch.randn(5, 3, 4, generator=generator())
    noise = torch.randn(3, 5, 3, 1, generator=generator(1))
    expected = torch.full((5, 3), 1 + 0.5 * 0.5 * (1 + 0.5 * 0.5 * 8))
    torch.testing.assert_close(subject._values(z, noise), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(subject._values(z, noise[:1]), torch.full((5, 3), 8.0))


def test_the_policy_climbs_the_values_without_moving_them():
    subject = learner(entropy=0.0, policy_lr=1e-2, value_lr=1e-2)
    draw = generator(3)
    o = torch.randn(64, 4, 1, generator=draw)
    a = 2 * torch.rand(64, 3, 1, generator=draw) - 1
    # Rewards that grow with the action alone: the best one is 1 everywhere.
    batch = batch_of(o, a, 1 + a[..., 0], True)
    subject.model.train()
    for _ in range(150):
        subject.update(batch, draw)
    model = subject.model.eval()
    assert model.heads["policy"](model.encode(batch.o)).mean() > 0.8

    kept = [p.clone() for p in model.heads["value"].parameters()]
    both = [*model.heads["value"].parameters(), *subject.policy.parameters()]
    climbing = torch.optim.SGD(both, lr=1.0)
    moved = [p.clone() for p in subject.policy.parameters()]
    subject.value.requires_grad_(False)
    z = model.encode(batch.o).detach()
    noise = torch.randn(64, 4, 1, generator=draw)
    loss, *_ = subject._ascend_values(z, batch.a, noise, subject.spread)
    climbing.zero_grad()
    loss.backward()
    climbing.step()
    assert all(torch.equal(p, q) for p, q in zip(kept, model.heads["value"].parameters()))
    assert any((p != q).any() for p, q in zip(moved, subject.policy.parameters()))


def test_a_clone_keeps_the_policy_near_the_datas_actions():
    """Nothing is to be gained anywhere, and the data always do 0.5."""

    def distance(clone):
        subject = learner(clone=clone, entropy=0.0, policy_lr=1e-2)
        subject.model.train()
        draw = generator(7)
        for _ in range(50):
            o = torch.randn(32, 4, 1, generator=draw)
            subject.update(batch_of(o, torch.full((32, 3, 1), 0.5)), draw)
        model = subject.model.eval()
        return (model.heads["policy"](model.encode(o[:, 0])) - 0.5).abs().mean().item()

    assert distance(1.0) < 0.1 < distance(0.0)


def test_values_may_be_plain_numbers():
    plain = QEnsemble(4, 1, hidden=16, bins=None)
    torch.nn.init.ones_(plain.layers[-1].bias)
    z, a = torch.randn(6, 4, generator=generator()), torch.zeros(6, 1)
    assert plain(z, a).shape == (2, 6) and (plain(z, a) == 1).all()
    assert (plain.errors(z, a, torch.full((6,), 3.0)) == 4).all()


def test_a_compiled_update_is_the_plain_one(monkeypatch):
    """Up to rounding; captured as one graph and run without a C++ compiler."""
    compile_, compiled = torch.compile, []

    def captured(function, **options):
        compiled.append(function.__name__)
        return compile_(function, backend="eager", fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", captured)
    batch = batch_of(torch.randn(16, 4, 1, generator=generator()), r=torch.ones(16, 3))
    losses = []
    for compile in (False, True):
        subject = learner(compile=compile, expansion=1)
        subject.model.train()
        for _ in range(3):
            last = subject.update(batch, generator(2))
        losses.append(torch.stack([last[name] for name in sorted(last)]))
    assert len(compiled) == 2
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)


def test_what_a_learner_cannot_use_is_one_sentence():
    for heads in (("value", "policy"), ("reward", "value"), ("reward", "policy"), ()):
        with pytest.raises(ValueError, match="both or neither"):
            learner(heads=heads)
    for wrong in ({"clone": 0.1}, {"expansion": 2}):
        with pytest.raises(ValueError, match="which this model lacks"):
            learner(heads=("reward",), **wrong)
    with pytest.raises(ValueError, match="slow latents compare two windows"):
        RewardLearner(learner().model, make_objective(SIGReg(16), slow_dim=2), LearnerSettings())
    with pytest.raises(ValueError, match="discount"):
        learner(discount=1.5)
    with pytest.raises(ValueError, match="expansion"):
        learner(expansion=-1)
    batch = batch_of(torch.randn(8, 4, 1))
    for wrong in ({"value_lr": -1.0}, {"clip": 0.0}, {"rho": 0.0}):
        with pytest.raises(ValueError, match=f"learner.{next(iter(wrong))} must be a number"):
            learner(**wrong)
    subject = learner()
    subject.model.train()
    kept = {name: x.clone() for name, x in subject.model.state_dict().items()}
    for name in ("o", "r"):
        broken = Batch(batch.o.clone(), batch.a, batch.r.clone(), batch.terminated, batch.episode)
        getattr(broken, name)[0, 0] = math.inf
        with pytest.raises(FloatingPointError, match="look for them in the data"):
            subject.update(broken)
    # running statistics too
    assert all(torch.equal(x, kept[name]) for name, x in subject.model.state_dict().items())
    subject = learner()
    object.__setattr__(subject.settings, "entropy", math.nan)
    kept = [p.clone() for p in subject.policy.parameters()]
    with pytest.raises(FloatingPointError, match="the policy's loss"):
        subject.update(batch)
    assert all(torch.equal(p, q) for p, q in zip(kept, subject.policy.parameters()))
    with pytest.raises(ValueError, match="EnsembleDynamics predicts several means"):
        learner(dynamics=EnsembleDynamics(4, 1, members=2, hidden=8, std_hidden=8)).update(batch)
    subject = learner()
    with pytest.raises(ValueError, match="gjwm online"):
        subject.model.loss(batch, subject.objective)
    with pytest.raises(ValueError, match="reward head"):
        headless = WorldModel(subject.model.encoder, subject.model.dynamics)
        reward_agent(headless, planner(), horizon=3, discount=0.9)


def test_a_loss_that_is_not_finite_changes_nothing():
    subject = learner()
    subject.model.train()
    before = [p.clone() for p in subject.model.parameters()]
    # finite, and too large for what is made of it
    batch = batch_of(torch.randn(8, 4, 1), r=torch.full((8, 3), 1e30))
    subject.weights["reward"] = 1e30
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        subject.update(batch)
    assert all(torch.equal(p, q) for p, q in zip(before, subject.model.parameters()))


# -- environments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("test/Slide-v0", {}),
        ("gjwm/cartpole-swingup-v0", {"obs": "state", "action_repeat": 2, "max_episode_steps": 20}),
    ],
)
def test_a_stream_comes_back_to_a_moment(env_id, kwargs):
    draw = np.random.default_rng(0)
    first, second = (Stream(env_id, kwargs, lanes=3, seed=5) for _ in range(2))
    for _ in range(47):
        first.step(draw.uniform(-1, 1, (3, *first.action_space.shape)))
    second.load_state_dict(first.state_dict())
    for _ in range(45):
        a = draw.uniform(-1, 1, (3, *first.action_space.shape))
        x, y = first.step(a), second.step(a)
        for u, v in zip(x, y):
            np.testing.assert_array_equal(u, v)
    assert first._rounds == second._rounds
    first.close()
    second.close()


def test_a_streams_episodes_differ_and_end_with_their_true_last_observation():
    stream = Stream("test/Slide-v0", {}, lanes=2, seed=0)
    starts, o_next, ended, returns = [stream.observation.copy()], None, np.zeros(2, bool), []
    for _ in range(60):
        seen = stream.step(np.full((2, 1), 0.1))
        if o_next is not None:
            np.testing.assert_array_equal(seen.o[~ended], o_next[~ended])
        o_next, ended = seen.o_next, seen.ended
        returns += stream.earned
        if ended.any():
            # 0.02 per step and a little noise: the last observation is a step on, not the same nor
            # the next first one.
            np.testing.assert_allclose(seen.o_next[ended] - seen.o[ended], 0.02, atol=0.0195)
            starts.append(stream.observation.copy())
    assert len(returns) == 6 and len(np.unique(np.concatenate(starts))) == 8
    stream.close()
    with pytest.raises(ValueError, match="one array"):
        Stream("gjwm/cartpole-swingup-v0", {"obs": "both", "size": 16}, lanes=1, seed=0, workers=0)


class Acts:
    """An actor made of a function of observations."""

    def __init__(self, act):
        self.act = lambda o, info: act(o)

    def reset(self, mask=None):
        pass


def test_returns_are_those_of_whole_episodes():
    returns, seconds = play_returns(
        Acts(lambda o: (0.6 - o) / 0.2), "test/Slide-v0", {}, episodes=6, seed=3
    )
    assert (returns > 13).all() and (returns <= 20).all() and seconds > 0
    fallen, _ = play_returns(Acts(np.ones_like), "test/Slide-v0", {}, episodes=6, seed=3)
    assert (fallen < returns).all()
    report = return_report(np.array([1.0, 2.0, 6.0]), 0.5)
    assert report["return_mean"] == 3 and report["ci95"] == pytest.approx([-3.572, 9.572], abs=1e-3)
    assert return_report(np.array([4.0]), 0.5)["ci95"] is None  # one says nothing of others
    with pytest.raises(ValueError, match="goes on after 5 steps"):
        play_returns(Acts(lambda o: 0 * o), "test/Slide-v0", {}, episodes=1, seed=0, limit=5)
    with pytest.raises(ValueError, match="at least one episode"):
        play_returns(Acts(lambda o: o), "test/Slide-v0", {}, episodes=0, seed=0)


def test_what_values_promise_stands_beside_what_followed():
    """Of episodes that end on their own: discounted by hand, up to each one's end."""
    model, steps = learner().model.eval(), []
    model.heads["value"].forward = lambda z, a: 3 + torch.stack([a[..., 0], -a[..., 0]])
    watched = Foresight(Acts(lambda o: np.ones_like(o)), model, 0.9)

    def saw(step):
        steps.append(step)
        watched.saw(step)

    for _ in range(2):  # an actor may play again
        steps.clear()
        returns, _ = play_returns(watched, "test/Slide-v0", {}, episodes=4, seed=3, saw=saw)
        lengths = [1 + next(t for t, s in enumerate(steps) if s.ended[i]) for i in range(4)]
        assert len(set(lengths)) > 1 and watched.promised == pytest.approx(3)
        rewards = np.stack([step.r for step in steps])
        assert returns[0] == pytest.approx(rewards[: lengths[0], 0].sum())
        by_hand = [0.9 ** np.arange(n) @ rewards[:n, i] for i, n in enumerate(lengths)]
        assert watched.followed == pytest.approx(np.mean(by_hand))


def test_an_oracle_sees_the_true_rewards_of_its_plans():
    """To a point mass's target: planned on the simulator, it earns more than standing still, from
    the same states.
    """
    kwargs = {"obs": "state", "action_repeat": 4, "max_episode_steps": 20}
    planner = ICEM(samples=24, iterations=3, elites=6, repeat=4)
    plan = dict(horizon=12, replan_every=4, generator=generator())
    with closing(RewardOracle("gjwm/point_mass-easy-v0", kwargs, planner, **plan)) as oracle:
        played, _ = play_returns(oracle, "gjwm/point_mass-easy-v0", kwargs, episodes=3, seed=1)
    still, _ = play_returns(HoldActor(2), "gjwm/point_mass-easy-v0", kwargs, episodes=3, seed=1)
    assert played.mean() > still.mean() + 5, (played, still)
    with pytest.raises(ValueError, match="no get_state"):
        RewardOracle("x", {}, planner).act(
            np.zeros((2, 1)), Moment(SyncVectorEnv([Slide, Slide]), 0)
        )


def test_a_return_curve_is_whole_and_goes_on(tmp_path):
    (tmp_path / "returns.csv").write_text("of a run before")
    curve = ReturnCurve(tmp_path / "returns.csv", repeat=2)
    curve.add(10, 1.5, [3.0, 4.0])
    assert (tmp_path / "returns.csv").read_text() == "of a run before"
    curve.add(20, 2.5, [5.0, 6.0])
    again = ReturnCurve(tmp_path / "returns.csv", repeat=2, resume_after=15)
    again.add(20, 2.75, [7.0, 8.0])
    again.finish()
    lines = (tmp_path / "returns.csv").read_text().split()
    assert lines == [
        "step,frames,seconds,episode,return",
        "10,20,1.5,0,3.0",
        "10,20,1.5,1,4.0",
        "20,40,2.8,0,7.0",
        "20,40,2.8,1,8.0",
    ]


# -- the loop --------------------------------------------------------------------------------------


SMALL = dict(lanes=2, batch=16, aimless_steps=40, log_every=20, checkpoint_every=40, horizon=3)


def run(steps, checkpoints=None, log=None, evaluate=None, doing=None, **options):
    heads = ("reward", "value", "policy", "termination")
    subject = learner(heads=heads, discount=0.9, target_rate=0.05)
    stream = Stream("test/Slide-v0", {}, lanes=2, seed=1)
    buffer = ReplayBuffer(1000, stream.observation_space, stream.action_space, 2)
    train_online(
        subject,
        planner(),
        stream,
        buffer,
        OnlineSettings(steps=steps, **{**SMALL, **options}),
        hooks=Hooks(evaluate=evaluate, log=log, doing=doing, checkpoints=checkpoints),
        generator=generator(4),
    )
    stream.close()
    return subject


def test_what_is_done_before_anything_is_logged_is_told():
    told, rows = [], []
    run(60, None, lambda row, step: rows.append(step), doing=lambda *what: told.append(what))
    assert told[:20] == [(step, "aimless steps") for step in range(2, 41, 2)]
    owed = [f"update {k} of 20 after aimless steps" for k in range(1, 21)]
    assert told[20:] == [(40, what) for what in owed]  # at once, and later ones are two by two
    assert rows[0] > 40


def test_a_bar_says_what_is_done_where_it_stays(capsys):
    with progress(100, "online") as bar:
        for k in (1, 2):
            bar.doing(40, f"update {k} of 20")
        bar.report(60, loss=1.5)
    drawn = capsys.readouterr().err
    assert "40/100" in drawn and "update 2 of 20" in drawn and "loss=1.5" in drawn


def test_an_interrupted_run_goes_on_bit_by_bit(tmp_path):
    rows, again = [], []
    whole = run(140, Checkpoints(tmp_path / "whole"), lambda row, step: rows.append((step, row)))
    run(100, Checkpoints(tmp_path / "cut"))  # kept after 80 and 100 steps
    for file in (tmp_path / "cut").glob("state-*100*"):
        file.unlink()  # killed before the last was written
    resumed = run(140, Checkpoints(tmp_path / "cut"), lambda row, step: again.append((step, row)))
    assert again[0][0] == 100

    def without_times(rows):
        rows = [(step, row) for step, row in rows if step > 80]
        return [(step, {k: v for k, v in row.items() if "seconds" not in k}) for step, row in rows]

    assert without_times(again) == without_times(rows)
    assert_same_weights(whole, resumed)
    files = [tmp_path / name / "state-000000140-replay.pt" for name in ("whole", "cut")]
    x, y = (ReplayBuffer.load(file).sample(32, 3, generator=generator(9)) for file in files)
    assert torch.equal(x.o, y.o) and torch.equal(x.a, y.a) and torch.equal(x.r, y.r)


def test_a_run_that_stopped_in_the_cooldown_goes_on_bit_by_bit(tmp_path):
    options = dict(steps=120, cooldown=0.5, update_ratio=0.25)
    whole = run(checkpoints=Checkpoints(tmp_path / "whole"), checkpoint_every=20, **options)

    class Stopped(Exception):
        pass

    def stop(row, step):
        if step >= 100:
            raise Stopped

    with pytest.raises(Stopped):
        run(checkpoints=Checkpoints(tmp_path / "cut"), checkpoint_every=20, log=stop, **options)
    assert Checkpoints(tmp_path / "cut").latest().step == 80
    resumed = run(checkpoints=Checkpoints(tmp_path / "cut"), checkpoint_every=20, **options)
    assert_same_weights(whole, resumed)


def test_stepping_in_a_thread_changes_no_number(monkeypatch):
    in_a_thread = run(80, update_ratio=0.25)
    begin = Stream.__init__

    def without(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        assert self.overlaps
        self.overlaps = False

    monkeypatch.setattr(Stream, "__init__", without)
    one_by_one = run(80, update_ratio=0.25)
    assert_same_weights(in_a_thread, one_by_one)


@pytest.mark.slow
def test_rewards_alone_are_learned_and_planned_for():
    """Without values and policy: the reward of three steps is all that counts, and on this line it
    is enough.
    """
    subject = learner(heads=("reward",))
    assert set(subject.state_dict()) == {"model", "objective", "slow", "optimizer", "spread"}
    stream = Stream("test/Slide-v0", {}, lanes=2, seed=1)
    buffer = ReplayBuffer(1000, stream.observation_space, stream.action_space, 2)
    rows = []
    train_online(
        subject,
        planner(),
        stream,
        buffer,
        OnlineSettings(steps=600, aimless_steps=200, batch=32, lanes=2),
        generator=generator(4),
        hooks=Hooks(log=lambda row, step: rows.append(row)),
    )
    stream.close()
    assert "train/reward" in rows[-1]
    assert not {"train/q", "train/value", "train/entropy"} & set(rows[-1])
    agent = reward_agent(subject.model, planner(), horizon=4, discount=0.99, generator=generator(5))
    learned, _ = play_returns(agent, "test/Slide-v0", {}, episodes=20, seed=100)
    assert learned.mean() > 12, learned.mean()


@pytest.mark.slow
def test_acting_learns_what_pays():
    """After 1,000 steps the planner earns most of what standing at the best place would, and random
    actions little.
    """
    subject = run(1000, update_ratio=0.5, aimless_steps=200)
    agent = reward_agent(subject.model, planner(), horizon=3, discount=0.9, generator=generator(5))
    learned, _ = play_returns(agent, "test/Slide-v0", {}, episodes=20, seed=100)
    chance = RandomActor(1, np.random.default_rng(0))
    aimless, _ = play_returns(chance, "test/Slide-v0", {}, episodes=20, seed=100)
    assert learned.mean() > 14 and aimless.mean() < 8, (learned.mean(), aimless.mean())


@pytest.mark.parametrize(("pays", "planned"), [(True, 40), (False, 80)])
def test_actions_stay_aimless_until_something_was_earned(monkeypatch, pays, planned):
    first = []
    disturb = Explorer.disturb
    monkeypatch.setattr(
        Explorer, "disturb", lambda self, a, step: (first.append(step), disturb(self, a, step))[1]
    )
    if not pays:
        step = Slide.step
        monkeypatch.setattr(
            Slide, "step", lambda self, a: (lambda o, r, *rest: (o, 0.0, *rest))(*step(self, a))
        )
    run(100, aimless_limit=80)
    assert first[0] == 0 and len(first) == (100 - planned) / 2


def test_latents_and_rewards_are_logged_with_losses_and_looked_at_only_then(monkeypatch):
    looks, rows = [], []
    look = loop.glance
    monkeypatch.setattr(loop, "glance", lambda z: (looks.append(z.shape), look(z))[1])
    run(120, log=lambda row, step: rows.append(row), evaluate=lambda *_: {"evaluate/return": 1.0})
    losses = [row for row in rows if "loss" in row]
    assert len(looks) == len(losses) == 4 and set(looks) == {(16, 4, 4)}
    for row in losses:
        assert 1 <= row["train/rank"] <= 4 and row["train/std"] == pytest.approx(1, abs=0.1)
        assert row["train/epps_pulley"] > 0
    # of all steps that were taken, a point next to 0.6 earns about 1
    largest = [row["train/largest_reward"] for row in losses]
    assert largest == sorted(largest) and 0.5 < largest[-1] <= 1
    (evaluated,) = (row for row in rows if "evaluate/return" in row)
    # episodes of 20 steps, in two lanes: two and more ended in the 40 steps without a plan
    assert 0 <= evaluated["aimless/return"] < evaluated["aimless/high"]


def test_evaluation_leaves_learning_as_it_is():
    def evaluate(step, seconds):
        play_returns(Acts(lambda o: 0 * o), "test/Slide-v0", {}, episodes=2, seed=50)
        return {"evaluate/return": 1.0}

    plain, judged = run(80), run(80, evaluate=evaluate, evaluate_every=20)
    assert_same_weights(plain, judged)


def test_updates_keep_to_their_ratio_and_the_schedule_falls():
    rows = []
    run(120, log=lambda row, step: rows.append((step, row)), update_ratio=0.25)
    # An update is made while the step after it is taken.
    assert all(abs(row["updates"] - 0.25 * step) <= 1 for step, row in rows)
    noise = Exploration(start=0.5, end=0.1, steps=100)
    assert [noise.std(s) for s in (0, 50, 100, 1000)] == pytest.approx([0.5, 0.3, 0.1, 0.1])


def test_aimless_actions_begin_white_then_have_the_colours_asked_for():
    explorer = Explorer(
        Exploration(quiet=800, loud_colours=(0.0, 2.0), block=400, loudness=0.3), 2, 1, generator()
    )

    def neighbours():
        a = torch.stack([explorer.aimless() for _ in range(400)])[..., 0]
        pairs = [torch.stack([a[:-1, i], a[1:, i]]) for i in range(2)]
        return [torch.corrcoef(pair)[0, 1].item() for pair in pairs], a

    (first, second), a = neighbours()
    assert abs(first) < 0.15 and abs(second) < 0.15
    assert a.std().item() == pytest.approx(3**-0.5, rel=0.1)
    (first, second), a = neighbours()
    assert abs(first) < 0.15 and second > 0.9
    planned = torch.stack([explorer.disturb(torch.zeros(2, 1), step) for step in range(3)])
    # one lane is undisturbed
    assert planned.abs().max() <= 1 and (planned[:, 0] == 0).all() and planned[:, 1].std() > 0
    other = Explorer(explorer.exploration, 2, 1, generator(1))
    other.load_state_dict(explorer.state_dict())
    assert torch.equal(explorer.disturb(torch.zeros(2, 1), 9), other.disturb(torch.zeros(2, 1), 9))
    with pytest.raises(ValueError, match="block must be a whole number, at least 2"):
        Exploration(block=1)
    # the first 2,000 steps are five blocks of a single lane
    single = Explorer(Exploration(block=400), 1, 1, generator(2))
    a = torch.stack([single.aimless() for _ in range(2400)])[:, 0, 0]
    loud = (a.abs() > 0.999).float()
    assert loud[:2000].mean() < 0.01 and loud[2000:].mean() > 0.3


def test_settings_that_cannot_work_are_one_sentence():
    for options, match in [
        ({"steps": -1}, "steps must be a whole number"),
        ({"steps": 0}, "nothing to learn from"),
        ({"log_every": 0}, "log_every must be a whole number"),
        ({"batch": 2.5}, "batch must be a whole number"),
        ({"update_ratio": 0}, "update_ratio must be a number, above 0"),
        ({"cooldown": 1.5}, "cooldown"),
        ({"aimless_steps": 4}, "aimless_steps from"),
        ({"aimless_steps": 100}, "to below online.steps"),
    ]:
        with pytest.raises(ValueError, match=match):
            run(**{"steps": 100, **options})
    stream = Stream("test/Slide-v0", {}, lanes=2, seed=1)
    with pytest.raises(
        ValueError, match="2 lanes and expects a buffer of as many, got one of 3 lanes"
    ):
        train_online(
            learner(),
            planner(),
            stream,
            ReplayBuffer(99, stream.observation_space, stream.action_space, 3),
            OnlineSettings(steps=99, aimless_steps=20, lanes=2),
        )
    stream.close()


def test_the_groups_defaults_are_those_of_the_classes():
    recipe = reward_recipe(load_config(["experiment=suite"]))
    assert recipe.online == OnlineSettings() and recipe.learner == LearnerSettings()


def test_learning_from_data_alone_ranks_actions():
    """From aimless episodes, without one step of its own, the policy moves towards the reward from
    both sides.
    """
    subject = learner(discount=0.9, target_rate=0.1, lr=3e-3, value_lr=3e-3, policy_lr=3e-3)
    buffer = ReplayBuffer(2000, Slide.observation_space, Slide.action_space)
    draw, env = np.random.default_rng(1), Slide()
    for episode in range(60):
        o, _ = env.reset(seed=episode)
        os, actions, rewards, ended = [o], [], [], []
        for _ in range(20):
            a = draw.uniform(-1, 1, 1).astype(np.float32)
            o, r, fallen, _, _ = env.step(a)
            os.append(o), actions.append(a), rewards.append(r), ended.append(fallen)
            if fallen:
                break
        done = np.array(ended)
        buffer.add_episode(
            np.stack(os), np.stack(actions), np.array(rewards), done, np.zeros_like(done)
        )
    rows = []
    pretrain(
        subject,
        buffer,
        OnlineSettings(steps=0, data="a buffer", pretrain=200, batch=32),
        hooks=Hooks(log=lambda row, step: rows.append(row)),
        generator=generator(6),
    )
    assert not subject.model.training and math.isfinite(rows[-1]["loss"])
    policy, model = subject.model.heads["policy"], subject.model
    with torch.no_grad():
        a = policy(model.encode(torch.tensor([[-0.3], [0.2], [1.1]])))
    assert a[0] > 0.3 and a[1] > 0.3 and a[2] < -0.3, a


# -- the command -----------------------------------------------------------------------------------

TINY = """
    threads=1 logger.wandb=disabled report.every=0.001 name=tiny latent_dim=4 env.id=Pendulum-v1
    experiment=gym_online encoder.hidden=[16] dynamics.hidden=16 dynamics.std_hidden=8
    heads.reward.hidden=[16] heads.value.hidden=16 heads.policy.hidden=[16]
    discrepancy.num_slices=8 planner.samples=16 planner.iterations=2 planner.elites=4
    online.horizon=3 online.batch=16 online.steps=160 online.aimless_steps=60 online.lanes=2
    online.log_every=40 online.evaluate_every=80 online.checkpoint_every=80
    +env.max_episode_steps=20 online.episodes=2 online.policy_plans=2
""".split()
DATA = """
    collect.episodes=3 collect.length=20 collect.workers=0 collect.behaviour=uniform dataset=data
""".split()
FROM_DATA = "online.data=data online.steps=0 online.pretrain=30 online.log_every=10".split()


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curve(folder):
    """Rows of returns.csv, without its head."""
    return [line.split(",") for line in (folder / "returns.csv").read_text().splitlines()[1:]]


def weights(folder):
    return WorldModel.load(folder / "checkpoint.pt").state_dict()


def refused(capsys, *words):
    """What a command that is refused says."""
    capsys.readouterr()
    assert main(["online", *words]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_the_command_learns_resumes_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["online", *TINY, "resume=true"]) == 0
    folder = tmp_path / "runs" / "tiny"
    said = capsys.readouterr().out
    assert "plan" in said and not (folder / "lock").exists()
    rows = logged(folder)
    assert [row["step"] for row in rows if "evaluate/return" in row] == [80, 160]
    assert {row[0] for row in curve(folder)} == {"80", "160"}
    for key in ("evaluate/value", "evaluate/followed"):  # costs are negative in this world
        assert all(row[key] < 0 for row in rows if "evaluate/return" in row), key
    returns = json.loads((folder / "returns.json").read_text())["returns"]
    assert set(returns) == {"plan", "policy", "random", "hold"} and returns["plan"]["episodes"] == 2
    heads = WorldModel.load(folder / "checkpoint.pt").heads.keys()
    assert heads == {"reward", "value", "policy", "termination"}
    page = (folder / "report.html").read_text()
    assert "<svg" in page and "<title>tiny</title>" in page
    who = {"plan": "the planner", "policy": "the policy alone", "random": "random"}
    for key, name in who.items():
        low, high = returns[key]["ci95"]
        row = f"<td>{returns[key]['return_mean']:.1f}</td><td>{low:.1f} to {high:.1f}</td>"
        assert f"<th>{name}</th>{row}<td>2</td>" in page
    assert main(["online", *TINY, "resume=true"]) == 0
    assert "nothing to resume" in capsys.readouterr().out
    # killed while the last returns were measured: the log is whole already
    (folder / "returns.json").unlink()
    assert main(["online", *TINY, "resume=true"]) == 0
    again = json.loads((folder / "returns.json").read_text())["returns"]
    assert logged(folder) == rows and again.keys() == returns.keys()
    assert "learner" in refused(capsys, *TINY, "resume=true", "learner.lr=0.1")
    assert "planner" in refused(capsys, *TINY, "resume=true", "planner.samples=20")
    states = sorted(path.name for path in (folder / "state").iterdir())
    for wrong in ("online.cooldown=1.5", "online.batch=0", "online.aimless_steps=160"):
        refused(capsys, *TINY, wrong)  # before a run is touched
    assert sorted(path.name for path in (folder / "state").iterdir()) == states


def test_rates_cool_down_over_the_last_share_of_the_steps():
    seen = []
    subject = learner(lr=1e-3, encoder_rate=0.5, value_lr=2e-3, policy_lr=4e-3)
    update = subject.update

    def watched(batch, noise):
        state = subject.state_dict()
        groups = [state[name]["param_groups"] for name in ("optimizer", "policy_optimizer")]
        seen.append([group["lr"] for each in groups for group in each])
        return update(batch, noise)

    subject.update = watched
    settings = OnlineSettings(steps=100, cooldown=0.5, aimless_steps=8, batch=8, lanes=1, horizon=2)
    stream = Stream("test/Slide-v0", {}, lanes=1, seed=0, workers=0)
    buffer = ReplayBuffer(200, stream.observation_space, stream.action_space, 1)
    train_online(subject, planner(), stream, buffer, settings, generator=generator())
    stream.close()
    whole, last = np.array([5e-4, 2e-3, 1e-3, 4e-3]), np.array(seen)
    np.testing.assert_allclose(last[:20], np.tile(whole, (20, 1)))
    assert (np.diff(last[27:, 0]) < 0).all() and np.ptp(last / whole, axis=1).max() < 1e-9
    np.testing.assert_allclose(last[-1] / whole, 0.1 + 0.9 * 0.02, atol=0.02)


@pytest.mark.slow
def test_the_command_plays_an_oracle_and_the_curves_are_drawn(tmp_path, monkeypatch, capsys):
    """A run of a control task with rewards alone, started twice under one name."""
    monkeypatch.chdir(tmp_path)
    others = ("env.id", "+env", "experiment", "name", "heads.value", "heads.policy")
    settings = [word for word in TINY if not word.startswith(others)]
    settings += """
        experiment=suite task=pendulum-swingup heads=[reward] +env.max_episode_steps=12 name=once
        +online.oracle.horizon=3 +online.oracle.replan_every=3 online.steps=240
        online.evaluate_every=240 planner.repeat=1
    """.split()
    settings.append("+online.oracle.planner={_target_: gjwm.planning.RandomShooting, samples: 8}")
    assert main(["online", *settings]) == 0
    assert "replay: " in capsys.readouterr().out
    folder = tmp_path / "runs" / "once"
    returns = json.loads((folder / "returns.json").read_text())["returns"]
    assert set(returns) == {"plan", "random", "hold", "oracle"}
    before = (folder / "returns.csv").read_text()
    for wrong, text in (
        ("logger.wandb=bogus", "logger.wandb must be"),
        ("storage=bogus", "storage must be"),
        ("+online.oracle.foo=1", "no setting online.oracle.foo"),
        ("online.oracle.planner=null", "needs a planner"),
        ("online.oracle=true", "needs a planner"),
        ("online.capacity=10000000000000", "lower online.capacity or env.size"),
        ("online.capacity=3", "no room for a window"),
        ("online.policy_plans=0", "online.policy_plans must be a whole number"),
    ):  # what is there stays whole
        assert text in refused(capsys, *settings, wrong)
        assert (folder / "returns.csv").read_text() == before
        assert list((folder / "state").glob("state-*.pt"))
        assert not (folder / "metrics.jsonl.partial").exists()
    assert main(["online", *settings, "seed=1"]) == 0
    assert len(before.splitlines()) == 3 and (folder / "returns.csv").read_text() != before
    words = ["curves", str(folder), "--csv", "curves.csv", "--picture", "curves.png"]
    monkeypatch.setattr("sys.argv", words)
    script = Path(__file__).parents[2] / "scripts" / "online_curves.py"
    runpy.run_path(str(script), run_name="__main__")
    earned = json.loads((folder / "returns.json").read_text())["returns"]["plan"]["return_mean"]
    assert (
        f"pendulum-swingup from state: {earned:.0f} of 1 runs after 480 frames"
        in capsys.readouterr().out
    )
    (row,) = csv.DictReader((tmp_path / "curves.csv").read_text().splitlines())
    named = [row[name] for name in ("task", "obs", "seed", "frames", "episodes")]
    assert named == ["pendulum-swingup", "state", "1", "480", "2"]
    assert float(row["return"]) == pytest.approx(earned, abs=0.06)
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_curves_of_states_pixels_and_unpublished_tasks_stand_in_one_table(
    tmp_path, monkeypatch, capsys
):
    for name, task, obs, returns in (
        ("a", "quadruped-walk", "pixels", [1.0, 3.0]),
        ("b", "reacher-easy", "pixels", [4.0, 6.0]),
        ("c", "reacher-easy", "state", [500.0, 700.0]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(
            f"task: {task}\nseed: 2\nenv: {{id: gjwm/{task}-v0, obs: {obs}}}\n"
        )
        earned = ReturnCurve(tmp_path / name / "returns.csv", repeat=2)
        earned.add(5000, 60.0, [0.0, 0.0])
        earned.add(10_000, 120.0, returns)
        earned.finish()
    table, picture = tmp_path / "curves.csv", tmp_path / "curves.png"
    words = ["curves", *(str(tmp_path / name) for name in "abc")]
    monkeypatch.setattr("sys.argv", [*words, "--csv", str(table), "--picture", str(picture)])
    script = Path(__file__).parents[2] / "scripts" / "online_curves.py"
    runpy.run_path(str(script), run_name="__main__")
    rows = [*csv.DictReader(table.read_text().splitlines())]
    assert [(row["task"], row["obs"], row["frames"], row["return"]) for row in rows] == [
        ("reacher-easy", "pixels", "10000", "0.0"),
        ("reacher-easy", "pixels", "20000", "5.0"),
        ("reacher-easy", "state", "10000", "0.0"),
        ("reacher-easy", "state", "20000", "600.0"),
        ("quadruped-walk", "pixels", "10000", "0.0"),
        ("quadruped-walk", "pixels", "20000", "2.0"),
    ]
    said = capsys.readouterr().out
    assert "reacher-easy from state: 600 of 1 runs after 20000 frames, at most 2.0 minutes" in said
    assert "reacher-easy from pixels: 5 of" in said and picture.stat().st_size > 1000
    # a later run takes the place of its own task's rows alone
    late = ReturnCurve(tmp_path / "c" / "returns.csv", repeat=2)
    late.add(5000, 60.0, [800.0, 800.0])
    late.finish()
    monkeypatch.setattr("sys.argv", ["curves", str(tmp_path / "c"), "--csv", str(table)])
    runpy.run_path(str(script), run_name="__main__")
    after = [*csv.DictReader(table.read_text().splitlines())]
    assert after[:2] == rows[:2] and after[3:] == rows[4:] and after[2]["return"] == "800.0"


@pytest.mark.slow
def test_the_command_learns_while_acting_from_pixels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = """
        experiment=suite task=cartpole-swingup env.obs=pixels env.size=32 env.frame_stack=2
        +env.max_episode_steps=15 encoder=conv encoder.hidden=16 collect.workers=0
        logger.wandb=disabled online.steps=80 online.aimless_steps=40 online.lanes=2
        online.episodes=1 online.batch=4 online.evaluate_every=80 online.log_every=20 name=seen
    """.split()
    assert main(["online", *settings]) == 0
    folder = tmp_path / "runs" / "seen"
    model = WorldModel.load(folder / "checkpoint.pt")
    assert model.encoder.observation_shape == (6, 32, 32)
    learned = [row["train/reward"] for row in logged(folder) if "train/reward" in row]
    assert len(learned) >= 2 and all(map(math.isfinite, learned))
    returns = json.loads((folder / "returns.json").read_text())["returns"]
    assert returns["plan"]["episodes"] == 1


def test_the_command_learns_from_data_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["collect", *TINY, *DATA]) == 0
    assert main(["online", *TINY, *DATA, *FROM_DATA]) == 0
    assert "plan" in capsys.readouterr().out
    folder = tmp_path / "runs" / "tiny"
    assert curve(folder)[0][0] == "30"
    assert main(["online", *TINY, *DATA, *FROM_DATA, "resume=true"]) == 0
    assert "nothing to resume" in capsys.readouterr().out
    rows = (folder / "metrics.jsonl").read_text()
    assert rows.count("evaluate/return") == 1
    (folder / "returns.json").unlink()  # killed while the last returns were measured
    assert main(["online", *TINY, *DATA, *FROM_DATA, "resume=true"]) == 0
    assert (folder / "metrics.jsonl").read_text() == rows
    assert [row[0] for row in curve(folder)] == ["30", "30"]
    begun = folder / "state" / "run.json"
    kept = json.loads(begun.read_text())
    begun.write_text(json.dumps({**kept, "device": "cuda"}))
    (folder / "returns.json").unlink()
    said = refused(capsys, *TINY, *DATA, *FROM_DATA, "resume=true")
    assert "go on with device=cuda" in said
    begun.write_text(json.dumps(kept))
    for wrong, text in [
        ("heads=[reward,value]", "value and policy both or neither; it has reward, value"),
        ("online.pretrain=30", "online.data names none"),
        ("+online.offset=3", "no setting online.offset"),
        ("+online.log=3", "no setting online.log; choose from steps"),
        ("online.episodes=0", "online.episodes must be a whole number"),
        ("online.horizon=null", "online.horizon must be a whole number, at least 1, got None"),
        ("learner.lr=null", "learner.lr must be a number, at least 0, got None"),
        ("online.evaluate_every=0", "online.evaluate_every must be a whole number"),
        ("env.id=CartPole-v1", "discrete actions"),
        ("online.steps=0", "nothing to learn from"),
    ]:
        assert text in refused(capsys, *TINY, wrong, "name=wrong")
    assert not (tmp_path / "runs" / "wrong" / "checkpoint.pt").exists()
    for phases in (FROM_DATA, ["online.data=data"]):
        said = refused(capsys, *TINY, "env.action_repeat=4", "name=other", *phases)
        assert "action_repeat" in said


class Silent(Slide):
    """Pays nothing, and shows itself."""

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def step(self, action):
        o, _, *rest = super().step(action)
        return o, 0.0, *rest

    def render(self):
        return np.full((64, 64, 3), 100 + 40 * int(np.sign(self.x)), np.uint8)


gym.register("test/Silent-v0", entry_point=Silent, max_episode_steps=20)


def test_a_run_without_rewards_says_so_on_the_console_and_its_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = [word for word in TINY if not word.startswith("env.id")]
    settings += ["env.id=test/Silent-v0", "online.aimless_limit=80"]
    assert main(["online", *settings]) == 0
    folder, said = tmp_path / "runs" / "tiny", capsys.readouterr().out
    told = [line for line in said.splitlines() if "No reward but 0" in line]
    # once when it is first seen, at step 80, and once at the end
    assert [line.partition(": ")[0] for line in told[:1]] == ["step 80"] and len(told) == 2
    assert "in 160 steps" in told[1] and "online.aimless_limit" in told[1]
    page = (folder / "report.html").read_text()
    assert 'id="remarks"' in page and "No reward but 0 was seen in 160 steps" in page
    assert sorted(path.name for path in (folder / "videos").iterdir()) == ["best.mp4", "worst.mp4"]


def test_what_ails_a_run_is_told_at_its_end_after_a_resume_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = [word for word in TINY if not word.startswith("env.id")]
    settings += ["env.id=test/Silent-v0", "online.aimless_limit=80"]
    assert main(["online", *settings]) == 0
    whole = [s for s in capsys.readouterr().out.splitlines() if "No reward but 0" in s]
    (tmp_path / "runs" / "tiny" / "returns.json").unlink()  # killed after the last state
    assert main(["online", *settings, "resume=true"]) == 0
    told = [s for s in capsys.readouterr().out.splitlines() if "No reward but 0" in s]
    assert told == whole[-1:]  # at the end, and not once more as if it were new
    # killed at step 80, by when it had been told
    for path in (tmp_path / "runs" / "tiny" / "state").glob("*000160*"):
        path.unlink()
    (tmp_path / "runs" / "tiny" / "returns.json").unlink()
    assert main(["online", *settings, "resume=true"]) == 0
    told = [s for s in capsys.readouterr().out.splitlines() if "No reward but 0" in s]
    assert told == whole[-1:]


@pytest.mark.parametrize("error", [AttributeError("'NoneType' has no 'glGetError'"), KeyError])
def test_a_run_whose_films_fail_in_any_way_is_done(error, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr("gjwm.rl.training.film_extremes", fails)
    online = OnlineSettings(steps=60, aimless_steps=40, batch=8, lanes=2, horizon=2, episodes=2)
    recipe, said = RewardRecipe(latent_dim=4, online=online), []
    learn("test/Slide-v0", recipe, run=tmp_path, workers=0, notify=said.append)
    assert (tmp_path / "returns.json").is_file()
    why = "KeyError" if error is KeyError else "'NoneType' has no 'glGetError'"
    assert f"no films: {why}" in said
    learn("test/Slide-v0", recipe, run=tmp_path, workers=0, notify=said.append)
    assert "nothing to resume" in said[-1]


def test_a_run_whose_environment_draws_nothing_ends_well_and_says_so(tmp_path):
    said = []
    online = OnlineSettings(steps=60, aimless_steps=40, batch=8, lanes=2, horizon=2, episodes=2)
    learn(
        "test/Slide-v0",
        RewardRecipe(latent_dim=4, online=online),
        run=tmp_path,
        workers=0,
        notify=said.append,
    )
    assert any(line.startswith("no films: test/Slide-v0 cannot be filmed") for line in said)
    assert (tmp_path / "returns.json").is_file() and not (tmp_path / "videos").exists()


@pytest.mark.slow
def test_data_on_disk_teach_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["collect", *TINY, *DATA]) == 0
    for place in ("memory", "disk"):
        settings = [*TINY, *DATA, *FROM_DATA, f"storage={place}", f"name={place}"]
        assert main(["online", *settings]) == 0
    a, b = (weights(tmp_path / "runs" / name) for name in ("memory", "disk"))
    assert all(torch.equal(x, b[name]) for name, x in a.items())


@pytest.mark.slow
def test_the_command_goes_on_in_either_phase_bit_by_bit(tmp_path, monkeypatch):
    """First from the data, then acting, and on from what was kept in either phase."""
    monkeypatch.chdir(tmp_path)
    assert main(["collect", *TINY, *DATA]) == 0
    begin = "online.data=data online.pretrain=30 online.checkpoint_every=20 online.log_every=10"
    begin = [*TINY, *DATA, *begin.split()]
    both = [*begin, "resume=true"]
    assert main(["online", *both, "name=both"]) == 0

    class Killed(BaseException):
        pass

    write, episodes = RunLogger.log, dataset_info("data")["episodes"]
    # An earlier run of the name, all of whose rows come before those of the next one.
    earlier = ["name=cut", "online.evaluate_every=60", "online.log_every=60"]
    assert main(["online", *both, *earlier]) == 0
    for at in (25, 30, 50, 110):  # in either phase, and between them
        with monkeypatch.context() as patch:

            def stop(self, metrics, step, at=at):
                if step >= at:
                    raise Killed
                write(self, metrics, step)

            patch.setattr(RunLogger, "log", stop)
            with pytest.raises(Killed):
                main(["online", *(begin if at == 25 else both), "name=cut"])
        if at == 25:  # what is collected meanwhile is not of this run
            assert main(["collect", *TINY, *DATA, "collect.episodes=1"]) == 0
            assert dataset_info("data")["episodes"] == episodes + 1
    assert main(["online", *both, "name=cut"]) == 0
    whole, cut = (tmp_path / "runs" / name for name in ("both", "cut"))
    assert all(torch.equal(x, weights(cut)[name]) for name, x in weights(whole).items())

    def made(folder):
        rows = [
            {k: v for k, v in row.items() if not k.startswith("seconds")} for row in logged(folder)
        ]
        return rows, [row[:2] + row[3:] for row in curve(folder)]

    assert made(cut) == made(whole)
    steps = [row["step"] for row in logged(whole)]
    assert steps[:3] == [10, 20, 30] and steps == sorted(steps) and steps[-1] == 30 + 160
    last = sorted((whole / "state").glob("*-replay.pt"))[-1]
    # two episodes in one lane, one in the other: nothing is forgotten
    assert len(ReplayBuffer.load(last)) == 3 * 20 + 160


def test_a_recipe_of_another_kind_and_a_replay_too_large_are_refused_by_name():
    with pytest.raises(ValueError, match=r"gjwm.rl.learn's recipe must be .*RewardRecipe, got 3"):
        learn("Pendulum-v1", 3)
    recipe = RewardRecipe(online=OnlineSettings(capacity=10**14))
    with pytest.raises(MemoryError, match=r"lower online.capacity or env.size\."):
        learn("Pendulum-v1", recipe, workers=0)
