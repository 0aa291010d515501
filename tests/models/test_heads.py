"""Claims about heads: they learn what latents tell, and never touch the encoder."""

import pytest
import torch

from gjwm._core.types import Batch
from gjwm.models.dynamics import GaussianDynamics, LinearGaussianDynamics
from gjwm.models.encoders import MLPEncoder
from gjwm.models.heads import RewardHead, StateHead, TerminationHead
from gjwm.models.world_model import WorldModel
from gjwm.objectives import JointEmbeddingObjective, SIGReg
from gjwm.training.settings import RefineSettings
from gjwm.training.train import latent_windows, refine, train_state_head


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(seed=0, b=64, t=4):
    o, a = randn(b, t + 1, 3, seed=seed), randn(b, t, 2, seed=seed + 1)
    r = o[:, :-1, 0] + a[:, :, 1]
    return Batch(o, a, r, o[:, :-1, 1] > 0.5, torch.arange(b))


def test_reward_and_termination_are_learned_from_latents():
    torch.manual_seed(0)
    reward, end = RewardHead(3, 2), TerminationHead(3, 2)
    optimizer = torch.optim.Adam([*reward.parameters(), *end.parameters()], lr=3e-3)
    for i in range(400):
        windows = batch(10 * i)
        optimizer.zero_grad()
        (reward.loss(windows.o, windows) + end.loss(windows.o, windows)).backward()
        optimizer.step()
    held_out = batch(10**6, b=500)
    z, a = held_out.o[:, :-1], held_out.a
    with torch.no_grad():
        assert (reward(z, a) - held_out.r).square().mean() < 0.02 * held_out.r.var()
        assert ((end(z, a) > 0.5) == held_out.terminated).float().mean() > 0.97


def test_heads_learn_in_a_world_model_without_touching_encoder_or_dynamics(tmp_path):
    torch.manual_seed(0)
    model = WorldModel(
        MLPEncoder((3,), 4, hidden=(16,)),
        GaussianDynamics(4, 2, hidden=16, std_hidden=8),
        {
            "reward": RewardHead(4, 2, hidden=(8,)),
            "termination": TerminationHead(4, 2, hidden=(8,)),
        },
    )
    objective = JointEmbeddingObjective(SIGReg(8), 5.0)
    losses = model.loss(batch(), objective, generator=torch.Generator().manual_seed(0))
    (losses["reward"] + losses["termination"]).backward(retain_graph=True)
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"heads"}
    total = (
        losses["alignment"]
        + 5 * losses["discrepancy"]
        + losses["nll"]
        + losses["reward"]
        + losses["termination"]
    )
    torch.testing.assert_close(losses["loss"], total)
    model.eval().save(tmp_path / "model.pt")
    loaded = WorldModel.load(tmp_path / "model.pt")
    z, a = randn(5, 4), randn(5, 2)
    for name in ("reward", "termination"):
        assert torch.equal(loaded.heads[name](z, a), model.heads[name](z, a))


def test_a_state_head_reads_a_state_in_its_own_units():
    torch.manual_seed(0)
    z = randn(4000, 3)
    state = torch.stack([100 + 20 * z[:, 0], 0.01 * (z[:, 1] * z[:, 2]).tanh()], -1)
    head = StateHead(3, 2)
    train_state_head(
        head, z[:3000], state[:3000], steps=400, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        error = (head(z[3000:]) - state[3000:]).square().mean(0)
    assert (error < 0.05 * state.var(0)).all()
    with pytest.raises(ValueError, match="states"):
        train_state_head(head, z, state[:5])


@pytest.mark.parametrize(
    "build",
    [lambda: GaussianDynamics(2, 1, hidden=16, std_hidden=8), lambda: LinearGaussianDynamics(2, 1)],
)
def test_dynamics_alone_are_fitted_to_frozen_latents(build):
    torch.manual_seed(0)
    z, a = [randn(40, 2)], randn(40, 12, 1, seed=1)
    for t in range(12):
        z.append(0.9 * z[-1] + 0.3 * a[:, t] + 0.1 * randn(40, 2, seed=2 + t))
    z, dynamics = torch.stack(z, 1), build()
    refine(
        dynamics,
        latent_windows(z, a),
        RefineSettings(steps=150, length=4, lr=5e-3, batch=64),
        generator=torch.Generator().manual_seed(0),
    )
    law = dynamics.predict_sequence(z[:, :-1], a)
    assert (law.mean - z[:, 1:]).square().mean().sqrt().item() == pytest.approx(0.1, rel=0.3)
    assert (
        law.variance.mean().sqrt().item() == pytest.approx(0.1, rel=0.4) and not dynamics.training
    )
    with pytest.raises(ValueError, match="a window has 13 steps"):
        refine(dynamics, latent_windows(z, a), RefineSettings(length=13, batch=64))
