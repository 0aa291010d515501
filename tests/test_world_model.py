"""Claims about the world model: its losses, its file, and that the objective prevents collapse."""

import pytest
import torch

from gjwm.dynamics import GaussianDynamics
from gjwm.encoders import MLPEncoder
from gjwm.objectives import JointEmbeddingObjective, NoRegularizer, SIGReg
from gjwm.train import train
from gjwm.types import Batch
from gjwm.world_model import WorldModel


def world_model(latent_dim=4, observation=3, action=2, output_norm="batch"):
    torch.manual_seed(0)
    return WorldModel(
        MLPEncoder((observation,), latent_dim, hidden=(32,), output_norm=output_norm),
        GaussianDynamics(latent_dim, action, hidden=32, std_hidden=16),
    )


class LinearSystem:
    """o' = 0.9 R o + 0.3 a + noise, seen through a fixed linear map to `observation` dimensions. Stands in for a buffer."""

    def __init__(self, observation=6, noise=0.02):
        g = torch.Generator().manual_seed(0)
        self.see = torch.randn(2, observation, generator=g)
        self.turn = 0.95 * torch.tensor([[0.9, -0.435], [0.435, 0.9]])
        self.noise = noise

    def sample(self, batch, length, generator=None):
        x = [torch.randn(batch, 2, generator=generator)]
        a = 2 * torch.rand(batch, length, 2, generator=generator) - 1
        for t in range(length):
            noise = self.noise * torch.randn(batch, 2, generator=generator)
            x.append(x[-1] @ self.turn.T + 0.3 * a[:, t] + noise)
        o = torch.stack(x, 1) @ self.see
        zeros = torch.zeros(batch, length)
        return Batch(o, a, zeros, zeros.bool(), torch.arange(batch))


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def test_losses_are_the_objective_plus_the_variance_nll():
    model, batch = world_model(), LinearSystem(3).sample(16, 4, g())
    losses = model.loss(batch, JointEmbeddingObjective(SIGReg(16), 5.0), generator=g(1))
    total = losses["alignment"] + 5 * losses["discrepancy"] + losses["nll"]
    torch.testing.assert_close(losses["loss"], total)
    torch.testing.assert_close(losses["alignment"], (losses["open_loop"] + losses["one_step"]) / 2)


def test_the_likelihood_never_reaches_encoder_or_mean():
    model, batch = world_model(), LinearSystem(3).sample(16, 4, g())
    model.loss(batch, JointEmbeddingObjective(SIGReg(16), 5.0), generator=g(1))["nll"].backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached and all(name.startswith("dynamics.log_std") for name in reached)


def test_a_saved_model_predicts_the_same_bit_for_bit(tmp_path):
    model = world_model()
    model.loss(
        LinearSystem(3).sample(16, 4, g()), JointEmbeddingObjective(SIGReg(16))
    )  # moves the BatchNorm statistics
    model.eval().save(tmp_path / "model.pt", note={"seed": 3})
    loaded = WorldModel.load(tmp_path / "model.pt")
    o, a = torch.randn(5, 3), torch.randn(5, 7, 2)
    assert torch.equal(loaded.encode(o), model.encode(o))
    assert torch.equal(loaded.rollout(loaded.encode(o), a), model.rollout(model.encode(o), a))
    assert not loaded.training


def test_damaged_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        WorldModel.load(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="not a readable"):
        WorldModel.load(tmp_path / "text.pt")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="format"):
        WorldModel.load(tmp_path / "other.pt")
    world_model().save(tmp_path / "model.pt")
    payload = torch.load(tmp_path / "model.pt", weights_only=True)
    payload["encoder"]["class"] = "os:system"
    torch.save(payload, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="not a torch module"):
        WorldModel.load(tmp_path / "evil.pt")
    whole = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a readable"):
        WorldModel.load(tmp_path / "cut.pt")


def test_mismatched_parts_are_named():
    with pytest.raises(ValueError, match="latent_dim"):
        WorldModel(MLPEncoder((3,), 4), GaussianDynamics(5, 2))


def train_on_linear_system(objective, output_norm="none"):
    model = world_model(2, 6, 2, output_norm)
    train(model, objective, LinearSystem(), steps=300, batch=64, length=4, lr=3e-3, generator=g())
    batch = LinearSystem().sample(512, 4, g(9))
    with torch.no_grad():
        z = model.encode(batch.o)
        predicted = model.rollout(z[:, 0], batch.a)
    return z.flatten(0, 1).std(0), (1 - (predicted - z).square().mean() / z.var((0, 1)).mean()).item()


def test_training_learns_the_system_and_the_discrepancy_prevents_collapse():
    spread, r2 = train_on_linear_system(JointEmbeddingObjective(SIGReg(32), lam=5.0))
    assert 0.7 < spread.min() and spread.max() < 1.3
    assert r2 > 0.9
    collapsed, _ = train_on_linear_system(JointEmbeddingObjective(NoRegularizer(), lam=0.0))
    assert collapsed.max() < 0.2 * spread.min()


def test_the_same_seed_gives_the_same_weights():
    weights = []
    for _ in range(2):
        model = world_model(2, 6)
        train(model, JointEmbeddingObjective(SIGReg(8)), LinearSystem(), steps=5, batch=8, length=3, generator=g(3))
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_a_diverging_loss_stops_with_a_sentence():
    class Broken(LinearSystem):
        def sample(self, batch, length, generator=None):
            windows = super().sample(batch, length, generator)
            return Batch(windows.o * torch.nan, windows.a, windows.r, windows.terminated, windows.episode)

    with pytest.raises(FloatingPointError, match="step 1"):
        train(world_model(2, 6), JointEmbeddingObjective(SIGReg(8)), Broken(), steps=3, batch=8, length=3)


def test_training_logs_scalars():
    rows = []
    train(
        world_model(2, 6),
        JointEmbeddingObjective(SIGReg(8)),
        LinearSystem(),
        steps=7,
        batch=8,
        length=3,
        log=lambda scalars, step: rows.append((step, scalars)),
        log_every=3,
    )
    assert [step for step, _ in rows] == [3, 6, 7]
    assert {"loss", "train/alignment", "train/discrepancy", "frames_per_second"} <= set(rows[0][1])


def test_among_few_episodes_latents_that_are_constant_within_them_are_no_gaussian():
    """Over all episodes they are as Gaussian as any: the discrepancy cannot see that they show no motion."""
    seen = SIGReg(256)
    layout, window = torch.randn(8, 6, generator=g()), torch.arange(64)
    still = layout[window % 8][:, None].expand(64, 5, 6)
    moving = torch.randn(64, 5, 6, generator=g(1))
    everywhere = torch.randn(64, 6, generator=g(2))[:, None].expand(64, 5, 6)
    value = {
        name: seen(z, clusters=window, generator=g(3)).item()
        for name, z in (("still", still), ("moving", moving), ("everywhere", everywhere))
    }
    assert value["still"] > 0.05 > 10 * abs(value["moving"]) and abs(value["everywhere"]) < 0.03
    blind = seen(still, clusters=window % 8, generator=g(3)).item()
    assert blind < 0.5 * value["still"]  # pairs of different episodes only, as without `episodes`


def test_training_asks_for_few_episodes_and_tells_the_discrepancy_that_windows_are_apart():
    class Watched(LinearSystem):
        asked = None

        def sample(self, batch, length, generator=None, episodes=None):
            self.asked = episodes
            return super().sample(batch, length, generator)

    class Clusters(SIGReg):
        def forward(self, z, *, clusters=None, generator=None):
            assert torch.equal(clusters, torch.arange(len(z)))
            return super().forward(z, clusters=clusters, generator=generator)

    buffer = Watched()
    train(world_model(2, 6), JointEmbeddingObjective(Clusters(8)), buffer, steps=2, batch=8, length=3, episodes=4)
    assert buffer.asked == 4
