"""Claims about memories: read at once or step by step they say the same, and they see what one
latent does not show.
"""

import pytest
import torch

from gjwm.models.dynamics import GaussianDynamics, MixtureDynamics
from gjwm.models.dynamics.memory import GRUMemory, TransformerMemory

both = pytest.mark.parametrize("backbone", ["gru", "transformer"])


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stirred(module):
    """AdaLN gates start at zero, where blocks do nothing: give them something to do."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
    return module


def dynamics(backbone, kind=GaussianDynamics, window=3):
    torch.manual_seed(0)
    return stirred(kind(3, 2, hidden=16, backbone=backbone, memory_width=8, window=window)).eval()


@pytest.mark.parametrize(
    "memory", [GRUMemory(3, 2, 8), TransformerMemory(3, 2, 8, window=3)], ids=["gru", "transformer"]
)
def test_a_sequence_at_once_is_the_same_step_by_step(memory):
    memory = stirred(memory)
    z, a = randn(2, 4, 7, 3), randn(2, 4, 7, 2, seed=1)
    whole, _ = memory.read(z, a, memory.start((2, 4), z))
    state, steps = memory.start((2, 4), z), []
    for t in range(7):
        feature, state = memory.read(z[:, :, t : t + 1], a[:, :, t : t + 1], state)
        steps.append(feature)
    torch.testing.assert_close(torch.cat(steps, 2), whole)


@both
def test_nothing_later_changes_a_prediction(backbone):
    model = dynamics(backbone)
    z, a = randn(2, 8, 3), randn(2, 8, 2, seed=1)
    before = model.predict_sequence(z, a).mean
    z2, a2 = z.clone(), a.clone()
    z2[:, 5:], a2[:, 5:] = 9.0, 9.0
    after = model.predict_sequence(z2, a2).mean
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().min() > 0


def test_a_transformer_forgets_what_left_its_window_and_not_sooner():
    memory = stirred(TransformerMemory(3, 2, 8, layers=1, window=3))
    z, a = randn(1, 6, 3), randn(1, 6, 2, seed=1)
    changed = z.clone()
    changed[:, 2] += 1
    gap = (
        memory.read(z, a, memory.start((1,), z))[0]
        - memory.read(changed, a, memory.start((1,), z))[0]
    )
    moved = gap.abs().amax(-1)[0] > 1e-6
    assert moved.tolist() == [False, False, True, True, True, False]


@both
def test_a_rollout_after_a_past_continues_it(backbone):
    model = dynamics(backbone)
    z, a = randn(2, 4, 3), randn(2, 9, 2, seed=1)
    past = (z[:, :3], a[:, :3])
    path = model.rollout(z[:, 3], a[:, 3:], past=past)
    whole = z
    for t in range(3, 9):
        following = model.predict_sequence(whole, a[:, : t + 1]).mean[:, -1]
        torch.testing.assert_close(path[:, t - 2], following, atol=1e-5, rtol=1e-5)
        whole = torch.cat([whole, following[:, None]], 1)
    torch.testing.assert_close(model.predict(z[:, 3], a[:, 3], past).mean, path[:, 1])
    assert (model.rollout(z[:, 3], a[:, 3:])[:, 1] - path[:, 1]).abs().max() > 1e-4


@both
@pytest.mark.parametrize("kind", [GaussianDynamics, MixtureDynamics])
def test_candidates_and_particles_carry_memories_of_their_own(backbone, kind):
    model = dynamics(backbone, kind)
    z, a = randn(2, 4, 3), randn(2, 5, 6, 2, seed=1)
    past = (z[:, :3], randn(2, 3, 2, seed=2))
    together = model.rollout(z[:, 3], a, past=past)
    for n in range(5):
        torch.testing.assert_close(
            together[:, n], model.rollout(z[:, 3], a[:, n], past=past), atol=1e-5, rtol=1e-5
        )
    assert model.rollout(z[:, 3], a, 4, torch.Generator().manual_seed(0), past=past).shape == (
        2,
        5,
        4,
        7,
        3,
    )
    law = model.forecast(
        z[:, 3], a[:, 0], particles=4, generator=torch.Generator().manual_seed(0), past=past
    )
    assert law.mean.shape == (2, 6, 3)


@both
def test_velocity_is_learned_from_the_past(backbone):
    """A point drifts at a constant velocity that no single latent shows: only a memory can say
    where it goes.
    """
    r2 = {}
    for kind in ("mlp", backbone):
        torch.manual_seed(0)
        model = GaussianDynamics(
            1, 1, hidden=32, std_hidden=8, backbone=kind, memory_width=16, window=4
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

        def window(seed):
            start, velocity = randn(128, 1, 1, seed=seed), 0.3 * randn(128, 1, 1, seed=seed + 1)
            return start + velocity * torch.arange(7)[:, None], torch.zeros(128, 6, 1)

        for i in range(250):
            z, a = window(10 * i)
            optimizer.zero_grad()
            (
                (model.training_means(z, a) - z[:, 1:]).square().mean()
                + model.nll(z[:, :-1], a, z[:, 1:])
            ).backward()
            optimizer.step()
        z, a = window(10**6)
        with torch.no_grad():
            path = model.rollout(z[:, 3], a[:, 3:], past=(z[:, :3], a[:, :3]))
        moved = z[:, 4:] - z[:, 3:4]
        r2[kind] = 1 - ((path[:, 1:] - z[:, 4:]).square().mean() / moved.square().mean()).item()
    assert r2[backbone] > 0.8 and r2["mlp"] < 0.2


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="backbone"):
        GaussianDynamics(2, 1, backbone="lstm")
    with pytest.raises(ValueError, match="heads"):
        TransformerMemory(2, 1, 6, heads=4)
    with pytest.raises(ValueError, match="window"):
        TransformerMemory(2, 1, 8, window=0)
