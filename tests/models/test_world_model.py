"""Claims about the world model: its losses, its file, and that the objective prevents collapse."""

import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from gjwm._core.checkpoint import Checkpoints
from gjwm._core.types import Batch
from gjwm.data.dataset import Episode
from gjwm.data.replay import ReplayBuffer
from gjwm.models.calibration import Calibration
from gjwm.models.decoder import ConvDecoder, load_decoder, save_decoder
from gjwm.models.dynamics import (
    DeterministicDynamics,
    EnsembleDynamics,
    GaussianDynamics,
    LinearGaussianDynamics,
    MixtureDynamics,
)
from gjwm.models.encoders import MLPEncoder
from gjwm.models.world_model import Origin, WorldModel
from gjwm.objectives import JointEmbeddingObjective, NoRegularizer, SIGReg, make_objective
from gjwm.training.settings import RefineSettings, TrainSettings
from gjwm.training.train import latent_buffer, latents_of, refine, train


def world_model(latent_dim=4, observation=3, action=2, output_norm="batch"):
    torch.manual_seed(0)
    return WorldModel(
        MLPEncoder((observation,), latent_dim, hidden=(32,), output_norm=output_norm),
        GaussianDynamics(latent_dim, action, hidden=32, std_hidden=16),
    )


class LinearSystem:
    """o' = 0.9 R o + 0.3 a + noise, seen through a fixed linear map to `observation` dimensions.
    Stands in for a buffer.
    """

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


def encoded(model, episodes):
    return latent_buffer(list(latents_of(model, episodes)), episodes, model.action_dim)


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
    # moves the BatchNorm statistics
    model.loss(LinearSystem(3).sample(16, 4, g()), JointEmbeddingObjective(SIGReg(16)))
    model.origin = Origin(env_id="Pendulum-v1", behaviour={"coloured": 1.0}, recipe={"seed": 3})
    model.eval().save(tmp_path / "model.pt", note={"seed": 3})
    loaded = WorldModel.load(tmp_path / "model.pt")
    assert loaded.origin == model.origin
    o, a = torch.randn(5, 3), torch.randn(5, 7, 2)
    assert torch.equal(loaded.encode(o), model.encode(o))
    assert torch.equal(loaded.rollout(loaded.encode(o), a), model.rollout(model.encode(o), a))
    assert not loaded.training


def test_an_environments_array_is_encoded_as_its_tensor_is():
    model, o = world_model().eval(), np.random.default_rng(0).normal(size=(5, 3))
    o = o.astype(np.float32)
    assert torch.equal(model.encode(o), model.encode(torch.from_numpy(o)))
    with pytest.raises(ValueError, match=r"built for observations \(\.\.\., 3\), got \(5, 2\)"):
        model.encode(o[:, :2])


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
    whole = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a readable"):
        WorldModel.load(tmp_path / "cut.pt")


def test_a_model_in_place_of_a_decoder_is_one_sentence(tmp_path):
    world_model().save(tmp_path / "decoder.pt")
    with pytest.raises(ValueError, match=r"decoder\.pt holds no decoder"):
        load_decoder(tmp_path / "decoder.pt")
    decoder = ConvDecoder(4, (3, 8, 8), channels=8)
    del decoder.stem
    save_decoder(decoder, tmp_path / "decoder.pt")
    with pytest.raises(ValueError, match=r"decoder\.pt lacks weights of the model .* stem\.0\."):
        load_decoder(tmp_path / "decoder.pt")


class Evil:
    """Unpickled by whoever does not refuse to, it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    mark, path = tmp_path / "ran", tmp_path / "model.pt"
    pickle.loads(pickle.dumps(Evil(mark)))
    mark.rmdir()  # it works
    world_model().save(path)
    payload = torch.load(path, weights_only=True)
    torch.save(payload | {"extra": Evil(mark)}, path)
    for load in (WorldModel.load, load_decoder):
        with pytest.raises(ValueError, match="not a readable gjwm checkpoint"):
            load(path)
    torch.save(Evil(mark), tmp_path / "state-000000001.pt")
    with pytest.raises(ValueError, match=r"no state in .* can be read"):
        Checkpoints(tmp_path).latest()
    with pytest.raises(ValueError):
        ReplayBuffer.load(path)
    for name in ("os:mkdir", "subprocess:Popen", "torch.nn:Linear"):
        evil = {"class": name, "config": {"path": str(mark), "args": ["mkdir", str(mark)]}}
        for part in ("encoder", "dynamics", "reach"):
            torch.save(payload | {part: evil}, path)
            with pytest.raises(ValueError, match=rf"model\.pt names {name}, which is no class of"):
                WorldModel.load(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "damage",
    ["no state", "no encoder", "wrong sizes", "unknown argument", "refused argument", "text"],
)
def test_damaged_contents_are_one_error_that_names_the_file(damage, tmp_path):
    path = tmp_path / "model.pt"
    world_model().save(path)
    payload = torch.load(path, weights_only=True)
    if damage == "no state":
        del payload["state"]
    elif damage == "no encoder":
        del payload["encoder"]
    elif damage == "wrong sizes":
        payload["state"]["dynamics.from_latent.weight"] = torch.zeros(3, 3)
    elif damage == "unknown argument":
        payload["dynamics"]["config"]["colour"] = 1
    elif damage == "refused argument":
        payload["dynamics"]["config"]["depth"] = 0
    else:
        payload["heads"] = "none"
    torch.save(payload, path)
    with pytest.raises(ValueError, match=r"model\.pt"):
        WorldModel.load(path)


def test_mismatched_parts_are_named():
    with pytest.raises(ValueError, match="latent_dim"):
        WorldModel(MLPEncoder((3,), 4), GaussianDynamics(5, 2))


def train_on_linear_system(objective, output_norm="none"):
    model = world_model(2, 6, 2, output_norm)
    train(
        model,
        objective,
        LinearSystem(),
        TrainSettings(steps=200, batch=64, length=4, lr=3e-3),
        generator=g(),
    )
    batch = LinearSystem().sample(512, 4, g(9))
    with torch.no_grad():
        z = model.encode(batch.o)
        predicted = model.rollout(z[:, 0], batch.a)
    return z.flatten(0, 1).std(0), (
        1 - (predicted - z).square().mean() / z.var((0, 1)).mean()
    ).item()


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
        train(
            model,
            JointEmbeddingObjective(SIGReg(8)),
            LinearSystem(),
            TrainSettings(steps=5, batch=8, length=3),
            generator=g(3),
        )
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_a_diverging_loss_stops_with_a_sentence_and_keeps_its_batch(tmp_path):
    class Broken(LinearSystem):
        def sample(self, batch, length, generator=None):
            windows = super().sample(batch, length, generator)
            return Batch(
                windows.o * torch.nan, windows.a, windows.r, windows.terminated, windows.episode
            )

    with pytest.raises(FloatingPointError, match=r"step 3.*bad-batch\.pt has the batch"):
        train(
            world_model(2, 6),
            JointEmbeddingObjective(SIGReg(8)),
            Broken(),
            TrainSettings(steps=3, batch=8, length=3),
            checkpoints=Checkpoints(tmp_path / "state"),
        )
    kept = torch.load(tmp_path / "bad-batch.pt", weights_only=True)
    assert kept["o"].isnan().all() and len(kept["o"]) == 8


def test_training_logs_scalars():
    rows = []
    train(
        world_model(2, 6),
        JointEmbeddingObjective(SIGReg(8)),
        LinearSystem(),
        TrainSettings(steps=7, batch=8, length=3),
        log=lambda scalars, step: rows.append((step, scalars)),
        log_every=3,
    )
    assert [step for step, _ in rows] == [3, 6, 7]
    assert {"loss", "train/alignment", "train/discrepancy", "frames_per_second"} <= set(rows[0][1])


def calibrated():
    model = world_model(2, 6).eval()
    batch = LinearSystem().sample(64, 8, g(1))
    with torch.no_grad():
        z = model.encode(batch.o)
    model.calibrate(z, batch.a, horizon=4, generator=g())
    return model, batch, z


def test_calibration_rescales_predictions_forecasts_and_particles_alike():
    model, batch, z = calibrated()
    factors = model.calibration.temperature
    assert len(factors) == 4 and (factors > 0).all()
    plain = model.dynamics
    with torch.no_grad():
        law, raw = model.predict(z[:, 0], batch.a[:, 0]), plain.predict(z[:, 0], batch.a[:, 0])
        torch.testing.assert_close(law.variance, raw.variance * factors[0] ** 2)
        torch.testing.assert_close(law.mean, raw.mean)
        torch.testing.assert_close(
            model.forecast(z[:, 0], batch.a[:, :4], generator=g()).variance,
            plain.forecast(z[:, 0], batch.a[:, :4], generator=g()).variance * factors[:, None] ** 2,
        )
        path = model.rollout(z[:, 0], batch.a[:, :4], 16, g())
        raw_path = plain.rollout(z[:, 0], batch.a[:, :4], 16, g())
        torch.testing.assert_close(
            path[:, :, 1:].std(1), raw_path[:, :, 1:].std(1) * factors[:, None]
        )
        torch.testing.assert_close(path.mean(1), raw_path.mean(1), atol=1e-4, rtol=1e-4)
        assert torch.equal(path[:, :, 0], raw_path[:, :, 0])
        # Plans on mean rollouts do not depend on it.
        assert torch.equal(model.rollout(z[:, 0], batch.a), plain.rollout(z[:, 0], batch.a))


def test_calibration_never_moves_particles_off_a_branch():
    torch.manual_seed(0)
    model = WorldModel(
        MLPEncoder((6,), 2, hidden=(16,)), MixtureDynamics(2, 2, hidden=16, mixture_hidden=16)
    ).eval()
    batch = LinearSystem().sample(32, 8, g(1))
    with torch.no_grad():
        z = model.encode(batch.o)
        model.calibrate(z, batch.a, horizon=3, particles=8, generator=g())
        path = model.rollout(z[:, 0], batch.a, 8, g())
        assert torch.equal(path, model.dynamics.rollout(z[:, 0], batch.a, 8, g()))


def test_calibration_is_saved_with_the_model(tmp_path):
    model, batch, _ = calibrated()
    model.save(tmp_path / "model.pt")
    loaded = WorldModel.load(tmp_path / "model.pt")
    with torch.no_grad():
        ours, theirs = model.surprise(batch.o, batch.a), loaded.surprise(batch.o, batch.a)
    assert torch.equal(ours.score, theirs.score) and torch.equal(ours.p_value, theirs.p_value)
    assert world_model().calibration is None
    # Tails too.
    model.calibration = Calibration(
        model.calibration.temperature, model.calibration.scores, tail=2.5
    )
    model.save(tmp_path / "tailed.pt")
    assert WorldModel.load(tmp_path / "tailed.pt").calibration.tail == 2.5


def test_a_calibration_that_fails_leaves_the_old_one_and_a_second_does_not_build_on_the_first():
    model, batch, z = calibrated()
    first = model.calibration
    with pytest.raises(ValueError, match="NaN"):
        model.calibrate(z * torch.nan, batch.a, horizon=4)
    assert model.calibration is first
    second = model.calibrate(z, batch.a, horizon=4, generator=g())
    assert torch.equal(second.temperature, first.temperature) and torch.equal(
        second.scores, first.scores
    )


def test_a_calibration_lives_where_the_latents_do_and_is_stored_once(monkeypatch, tmp_path):
    model, _, z = calibrated()
    model.save(tmp_path / "model.pt")
    payload = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.equal(payload["state"]["calibration.scores"], model.calibration.scores)
    assert "calibration" not in payload
    monkeypatch.setattr(
        "gjwm.models.world_model.fit_calibration", lambda *args, **kwargs: model.calibration
    )
    assert model.calibrate(z.to("meta"), z.to("meta")).scores.device.type == "meta"


def test_surprise_is_the_nll_per_dimension_and_its_p_value_falls_with_it():
    model, batch, z = calibrated()
    with torch.no_grad():
        found = model.surprise(batch.o, batch.a)
        law = model.predict(z[:, :-1], batch.a)
        torch.testing.assert_close(found.score, -law.log_prob(z[:, 1:]) / 2)
        order = found.score.flatten().argsort()
        assert (found.p_value.flatten()[order].diff() <= 0).all()
        # Held-out scores judged by themselves: uniform.
        assert (found.p_value <= 0.1).float().mean().item() == pytest.approx(0.1, abs=0.01)
        jump = batch.o.clone()
        jump[:, 5:] += 20
        assert model.surprise(jump, batch.a).p_value[:, 4].max() < 0.01
        model.calibration = None
        assert model.surprise(jump, batch.a).p_value[:, 4].max() < 0.01  # chi-squared


@pytest.mark.parametrize(
    "dynamics",
    [
        DeterministicDynamics(2, 2, hidden=32),
        GaussianDynamics(2, 2, hidden=32, std_hidden=16, covariance="low_rank", rank=1),
        GaussianDynamics(2, 2, hidden=32, std_hidden=16, covariance="full"),
        EnsembleDynamics(2, 2, members=3, hidden=32, std_hidden=16),
        MixtureDynamics(2, 2, components=2, hidden=32, mixture_hidden=16),
        LinearGaussianDynamics(2, 2),
        *[
            pytest.param(
                GaussianDynamics(
                    2, 2, hidden=32, std_hidden=16, backbone=backbone, memory_width=16
                ),
                marks=pytest.mark.slow,
            )
            for backbone in ("gru", "transformer")
        ],
    ],
    ids=[
        "deterministic",
        "low_rank",
        "full",
        "ensemble",
        "mixture",
        "linear",
        "gru",
        "transformer",
    ],
)
def test_every_dynamics_trains_with_an_encoder_and_survives_the_disk(dynamics, tmp_path):
    """The law must end better than N(0, I), on a system that all of them can represent."""
    torch.manual_seed(0)
    model = WorldModel(MLPEncoder((6,), 2, hidden=(32,)), dynamics)
    train(
        model,
        JointEmbeddingObjective(SIGReg(16), 5.0),
        LinearSystem(),
        TrainSettings(steps=150, batch=64, length=4, lr=3e-3),
        generator=g(),
    )
    model.save(tmp_path / "model.pt")
    loaded, batch = WorldModel.load(tmp_path / "model.pt"), LinearSystem().sample(256, 4, g(9))
    with torch.no_grad():
        z = model.encode(batch.o)
        law, again = (
            model.predict_sequence(z[:, :-1], batch.a),
            loaded.predict_sequence(z[:, :-1], batch.a),
        )
        assert torch.equal(law.log_prob(z[:, 1:]), again.log_prob(z[:, 1:]))
        skill = 1.4189 + law.log_prob(z[:, 1:]).mean().item() / 2
        assert skill > 0.5
        path = model.rollout(z[:, 0], batch.a, 7, g())
        assert path.shape == (256, 7, 5, 2) and path.isfinite().all()


def test_training_asks_for_few_episodes_and_tells_the_discrepancy_which_windows_share_one():
    class Watched(LinearSystem):
        asked = None

        def sample(self, batch, length, generator=None, episodes=None):
            self.asked = episodes
            windows = super().sample(batch, length, generator)
            return replace(windows, episode=torch.arange(batch) % episodes)

    class Clusters(SIGReg):
        def forward(self, z, *, clusters=None, generator=None):
            # one contrast per episode
            assert z.shape == (4, 4, 2) and torch.equal(clusters, torch.arange(4))
            return super().forward(z, clusters=clusters, generator=generator)

    buffer = Watched()
    objective = make_objective(Clusters(8), law="within")
    train(
        world_model(2, 6), objective, buffer, TrainSettings(steps=2, batch=8, length=3, episodes=4)
    )
    assert buffer.asked == 4


def test_refining_fits_the_dynamics_to_latents_that_stand_still():
    system, episodes = LinearSystem(), []
    drawn = system.sample(30, 12, g(1))
    # Of unequal lengths, as episodes that end early are.
    for i, length in enumerate([12, 9, 5] * 10):
        o, a = drawn.o[i, : length + 1].numpy(), drawn.a[i, :length].numpy()
        done = np.zeros(length, bool)
        episodes.append(Episode(o, a, np.zeros(length, np.float32), done, done))
    model = world_model(observation=6)
    train(
        model,
        JointEmbeddingObjective(SIGReg(16), 5.0),
        system,
        TrainSettings(steps=60, length=4),
        generator=g(2),
    )
    latents = encoded(model, episodes)
    assert len(latents) == 260 and latents.sample(1, 12, generator=g()).o.shape == (1, 13, 4)
    test = model.encode(system.sample(200, 5, g(3)).o).detach()
    a = system.sample(200, 5, g(3)).a

    def error():
        with torch.no_grad():
            return (model.rollout(test[:, 0], a)[:, 1:] - test[:, 1:]).square().mean().item()

    unrefined, logged = error(), []
    refine(
        model.dynamics,
        latents,
        RefineSettings(steps=300, batch=64, length=4),
        log=lambda s, i: logged.append((i, s)),
        generator=g(4),
    )
    assert error() < 0.5 * unrefined and not model.dynamics.training
    assert [i for i, _ in logged] == list(range(25, 301, 25))
    assert logged[-1][1]["refine/mean_squared_error"] < logged[0][1]["refine/mean_squared_error"]
    for wrong in (dict(steps=-1), dict(batch=0), dict(length=0), dict(lr=-1.0)):
        with pytest.raises(ValueError, match=r"refine\.(steps|batch|length|lr) must be"):
            refine(model.dynamics, latents, RefineSettings(**wrong))
    with pytest.raises(ValueError, match="evaluation mode"):
        encoded(model.train(), episodes)


def test_refining_stops_at_a_loss_that_is_no_number_and_keeps_the_weights():
    model = world_model()
    done = np.zeros(6, bool)
    latents = encoded(
        model.eval(),
        [
            Episode(
                np.ones((7, 3), np.float32),
                np.zeros((6, 2), np.float32),
                np.zeros(6, np.float32),
                done,
                done,
            )
        ],
    )
    before = {name: value.clone() for name, value in model.dynamics.state_dict().items()}
    with pytest.raises(FloatingPointError, match="loss became"):
        refine(model.dynamics, Spoiled(latents), RefineSettings(steps=2, batch=4), generator=g())
    assert all(
        torch.equal(before[name], value) for name, value in model.dynamics.state_dict().items()
    )


def test_windows_of_one_episode_are_made_sure_of_before_training():
    for objective in (
        make_objective(SIGReg(), law="within"),
        make_objective(SIGReg(), slow_dim=1),
    ):
        for episodes in (None, 8):
            with pytest.raises(ValueError, match="to half the batch"):
                train(
                    world_model(2),
                    objective,
                    LinearSystem(),
                    TrainSettings(steps=1, batch=8, episodes=episodes),
                )


class Spoiled:
    """Windows whose last latent is infinite."""

    def __init__(self, windows):
        self.windows = windows

    def sample(self, batch, length, generator=None):
        drawn = self.windows.sample(batch, length, generator=generator)
        drawn.o[:, -1] = float("inf")
        return drawn
