"""Claims about films of attempts: they show what was judged, and the model's own open loop."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

from gjwm.data.acting import HoldActor, RandomActor, make_env, make_vec
from gjwm.data.collect import collect_episodes
from gjwm.evaluation import Details, Evaluation
from gjwm.evaluation.evaluate import Task, attempt
from gjwm.evaluation.goals import attempt_goals, goal_pairs_from_resets
from gjwm.models.decoder import ConvDecoder
from gjwm.models.dynamics import GaussianDynamics
from gjwm.models.encoders import MLPEncoder
from gjwm.models.world_model import Origin, WorldModel
from gjwm.planning import CEM
from gjwm.reporting.films import camera, film, films_of, gallery, play_again, position_readout

ICE = "gjwm/two-room-slippery-v0"
SETTINGS = {"obs": "state", "size": 16, "terminate_on_goal": False}
TASK = Task("gjwm/two-room-v0", SETTINGS, None)


def model_of_states():
    torch.manual_seed(0)
    encoder = MLPEncoder((6,), 4, hidden=(8,), output_norm="none")
    return WorldModel(encoder, GaussianDynamics(4, 2, hidden=8, std_hidden=8)).eval()


def test_an_attempt_played_again_has_the_same_noise():
    """On ice each step slips at random: only the attempt's own seed gives the same path."""
    settings = {**SETTINGS, "slip": 0.1}
    envs = make_vec(ICE, 8, **settings)
    pairs = goal_pairs_from_resets(envs, seed=0)
    pairs.start[:, :2] = (0.5, 0.35)  # on the bridge
    attempts = attempt_goals(envs, pairs, RandomActor(2, np.random.default_rng(0)), steps=6)
    env = make_env(ICE, **settings, render_mode="rgb_array")
    for i in (5, 2):
        recording = play_again(env, pairs, attempts.actions, i)
        away = np.linalg.norm(recording.observations[:, :2] - pairs.goal_position[i], axis=-1)
        np.testing.assert_allclose(away, attempts.distance[i], atol=1e-6)
        assert recording.frames.shape == (7, 16, 16, 3) and recording.rewards.shape == (6,)
    other = play_again(env, pairs, attempts.actions[[3] * 8], 5)
    assert (
        np.abs(
            np.linalg.norm(other.observations[-1, :2] - pairs.goal_position[5])
            - attempts.distance[5, -1]
        )
        > 1e-3
    )


@pytest.fixture(scope="module")
def attempted():
    model = model_of_states()
    episodes = list(
        collect_episodes("gjwm/two-room-v0", SETTINGS, episodes=8, length=10, record_state=True)
    )
    planner = CEM(samples=16, iterations=1, elites=4)
    settings = Evaluation(pairs=5, steps=6, horizon=4, replan_every=2, seed=0)
    details = attempt(model, TASK, settings, episodes, "reset", planner)
    return model, episodes, details


def films(attempted, **extra):
    model, _, details = attempted
    return films_of(model, TASK, details, scale=4, **extra)


def test_a_film_grows_with_what_can_be_shown(attempted):
    model, episodes, details = attempted
    assert [step for step, _ in details.plans] == [0, 2, 4]
    bare = films(attempted).film(0)
    assert bare.shape[0] == 7 and bare.shape[2] == 2 * 64 + 2
    decoder = ConvDecoder(4, (3, 16, 16), channels=8).eval()
    assert films(attempted, decoder=decoder).film(0).shape[2] == 4 * 64 + 4
    latents = torch.stack([model.encode(torch.from_numpy(e.o)) for e in episodes]).detach()
    readout = position_readout(latents, episodes, generator=torch.Generator().manual_seed(0))
    filming = films(attempted, position=readout)
    traced, picture = filming.film(0), (slice(18, 82), slice(0, 64))
    # where plans begin
    assert all((traced[t][picture] != bare[t][picture]).any() for t in (0, 2, 4))
    z = model.encode(
        torch.from_numpy(
            play_again(filming.env, details.pairs, details.attempts.actions, 0).observations
        )
    )
    a = torch.from_numpy(details.attempts.actions[0])
    traces = filming._plan_traces(0, z.detach(), a, torch.Generator().manual_seed(0))
    # A plan of four steps has as many left as were not yet taken; a newer one replaces it.
    assert [trace.shape for trace in traces] == [(9, length, 2) for length in (5, 4, 5, 4, 5, 4, 3)]
    np.testing.assert_allclose(traces[0][:, 0], readout(z[:1].detach()).expand(9, -1), atol=1e-5)
    assert np.isfinite(traces[0]).all()


def test_a_model_that_imagines_exactly_shows_no_error(attempted):
    """Curves say what they are named after: an exact model's open loop has no error, and distances
    are those of positions.
    """

    class Still(GaussianDynamics):
        def _step(self, z, inputs, context):
            return z

    model = model_of_states()
    model.dynamics = Still(4, 2, hidden=8, std_hidden=8).eval()
    _, _, details = attempted
    held = Details(
        pairs=details.pairs,
        attempts=attempt_goals(
            make_vec("gjwm/two-room-v0", 5, **SETTINGS), details.pairs, HoldActor(2), steps=6
        ),
    )
    filming = films_of(model, TASK, held)
    recording = play_again(filming.env, held.pairs, held.attempts.actions, 1)
    z = model.encode(torch.from_numpy(recording.observations)).detach()
    samples = z.expand(3, -1, -1)
    distance, loop = filming._curves(1, recording, z, z, samples)
    assert np.ptp(distance.lines[0][2]) == 0 and distance.level == 0.05
    np.testing.assert_allclose(loop.lines[0][2], 0, atol=1e-6)
    np.testing.assert_allclose(loop.lines[1][2], 0, atol=1e-6)


def test_the_gallery_begins_with_the_worst_and_replaces_an_older_one(attempted, tmp_path):
    _, _, details = attempted
    (tmp_path / "attempt-099.mp4").write_bytes(b"old")
    rows = gallery(tmp_path, films(attempted), worst=2, typical=1)
    closest = details.attempts.distance[:, 1:].min(1)
    assert [row["attempt"] for row in rows[:2]] == np.argsort(-closest, kind="stable")[:2].tolist()
    assert [row["kind"] for row in rows] == ["worst", "worst", "typical"]
    assert {path.name for path in tmp_path.iterdir()} == {
        row[k] for row in rows for k in ("file", "poster")
    }


def test_a_small_film_turns_green_for_good(attempted):
    filming = films(attempted)
    filming.details.attempts.distance[2] = [0.01, 0.3, 0.04, 0.3, 0.3, 0.3, 0.3]
    frames, reached = filming.small(2)
    assert reached.tolist() == [False, False, True, True, True, True, True]
    assert frames.shape == (7, 48, 48, 3)  # three quarters of a film's 64 pixels


def test_pictures_are_enlarged_to_a_readable_size_and_shrunk_to_a_bearable_one(attempted):
    filming = films(attempted)
    assert filming._size(16, 16) == (64, 64)  # scale 4
    assert filming._size(128, 128) == (256, 256) and filming._size(500, 1000) == (160, 320)
    model, _, details = attempted
    by_itself = films_of(model, TASK, details)
    assert [by_itself._size(n, n)[0] for n in (16, 64, 96, 200)] == [192, 192, 192, 200]


def test_a_world_without_pictures_is_named(attempted):
    model, _, details = attempted
    with pytest.raises(ValueError, match="cannot be filmed"):
        films_of(model, Task(TASK.env_id, {**SETTINGS, "size": 3}, None), details)


@pytest.mark.slow
def test_a_model_is_filmed_where_it_comes_from(tmp_path):
    model = model_of_states()
    model.origin = Origin(env_id="gjwm/two-room-v0", env_kwargs=SETTINGS, length=10)
    settings = Evaluation(length=10, steps=4, horizon=3)
    planner = CEM(samples=8, iterations=1, elites=2)
    path = film(model, tmp_path / "goals.gif", settings, shown=2, planner=planner)
    assert path == tmp_path / "goals.gif" and path.stat().st_size > 1000


def test_what_cannot_be_filmed_is_refused_before_anything_is_collected(tmp_path, monkeypatch):
    def collecting(*args, **options):
        raise AssertionError("collected first")

    monkeypatch.setattr("gjwm.reporting.films.held_out_episodes", collecting)
    model = model_of_states()
    with pytest.raises(ValueError, match=r"gjwm.film's model must be .*WorldModel, got 'x'"):
        film("x", tmp_path / "goals.mp4")
    with pytest.raises(ValueError, match=r"gjwm.film's settings must be .*Evaluation, got 3"):
        film(model, tmp_path / "goals.mp4", 3)
    with pytest.raises(ValueError, match="does not say which: set"):
        film(model, tmp_path / "goals.mp4")
    with pytest.raises(ValueError, match=r"\.mp4 or \.gif, got 'goals.txt'"):
        film(model, tmp_path / "goals.txt")
    model.origin = Origin(env_id=TASK.env_id, env_kwargs={**SETTINGS, "render_size": 3})
    with pytest.raises(ValueError, match="cannot be filmed"):
        film(model, tmp_path / "goals.mp4")


class Dark(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}


class DarkWithState(Dark):
    get_state = None


class Blank(Dark):
    def __init__(self, render_mode=None):
        self.render_mode = render_mode


@pytest.mark.filterwarnings("ignore:.*render")
@pytest.mark.parametrize("made", [Dark, DarkWithState, Blank])
def test_an_environment_that_draws_nothing_is_told_so(made, monkeypatch):
    monkeypatch.setitem(gymnasium.registry, "Dark-v0", EnvSpec("Dark-v0", made))
    with pytest.raises(ValueError, match="cannot be filmed") as error:
        camera("Dark-v0", {})
    assert str(error.value) == (
        "Dark-v0 cannot be filmed: it draws no pictures; give its class the argument render_mode "
        "and render()."
    )


@pytest.mark.parametrize(
    ("made", "takes"), [(Dark, "action_repeat, frame"), (DarkWithState, "none.")]
)
def test_who_cannot_draw_is_not_said_to_take_a_render_mode(made, takes, monkeypatch):
    monkeypatch.setitem(gymnasium.registry, "Dark-v0", EnvSpec("Dark-v0", made))
    with pytest.raises(ValueError, match="cannot be made with render_mode='rgb_array'") as error:
        make_env("Dark-v0", render_mode="rgb_array")
    taken = str(error.value).partition("; it takes ")[2]
    assert taken.startswith(takes) and "render_mode" not in taken
