"""Every observation carries its env, episode and step, so that any mixed-up window shows."""

import json
import threading

import numpy as np
import pytest
import torch
from gymnasium import spaces

from gjwm.data.replay import (
    ReplayBuffer,
    buffer_bytes,
    describe_space,
    rebuild_space,
    residence,
    stack_frames,
)

torch.set_num_threads(1)

STATE = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTION = spaces.Box(-1, 1, (2,), np.float32)


def play(buffer, steps, lengths, seed=0):
    """Step all lanes; o = (lane, episode, step), a = (step, lane) / 1000, r = step. Returns the
    lanes' episode counters.
    """
    n, rng = buffer.num_envs, np.random.default_rng(seed)
    episode, step = np.zeros(n), np.zeros(n)
    length = rng.choice(lengths, n)
    for _ in range(steps):
        o = np.stack([np.arange(n), episode, step], 1).astype(np.float32)
        o_next = o + np.float32([0, 0, 1])
        terminated = step + 1 >= length
        a = np.stack([step, np.arange(n)], 1) / 1000
        buffer.add(o, a, step, terminated, np.zeros(n, bool), o_next)
        step = np.where(terminated, 0, step + 1)
        episode += terminated
        length = np.where(terminated, rng.choice(lengths, n), length)
    return episode


def images(episode, length, channels=1, size=4):
    """(T+1, C, h, w) uint8 frames whose pixels are 16 * episode + step."""
    values = (16 * episode + np.arange(length + 1)).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (length + 1, channels, size, size)).copy()


def assert_same_windows(x, y, length, seed=3):
    """What two buffers give for one generator."""
    a, b = (
        each.sample(64, length, generator=torch.Generator().manual_seed(seed)) for each in (x, y)
    )
    for name in ("o", "a", "r", "terminated", "episode"):
        torch.testing.assert_close(getattr(a, name).cpu(), getattr(b, name).cpu())


def ends(length, last=True):
    return np.arange(length) == (length - 1 if last else -1)


@pytest.mark.parametrize("steps", [40, 500])
def test_windows_stay_within_one_episode_and_line_up(steps):
    # 500 steps wrap the ring of each lane (64 steps) many times, with the write head in the middle
    # of an episode.
    buffer = ReplayBuffer(192, STATE, ACTION, num_envs=3)
    play(buffer, steps, lengths=[3, 7, 12])
    batch = buffer.sample(2000, 3, generator=torch.Generator().manual_seed(0))
    lane, episode, step = batch.o.unbind(-1)
    assert (lane == lane[:, :1]).all() and (episode == episode[:, :1]).all()
    assert (step == step[:, :1] + torch.arange(4)).all()
    torch.testing.assert_close(batch.a, torch.stack([step[:, :-1], lane[:, :-1]], -1) / 1000)
    assert (batch.r == step[:, :-1]).all()
    assert set(lane[:, 0].tolist()) == {0, 1, 2}
    # One number per (lane, episode).
    whose = zip(lane[:, 0].tolist(), episode[:, 0].tolist())
    names = dict(zip(whose, batch.episode.tolist()))
    assert len(set(names.values())) == len(names) == len(set(batch.episode.tolist()))


def test_every_window_is_reachable_and_starts_are_uniform():
    buffer = ReplayBuffer(60, STATE, ACTION)
    play(buffer, 100, lengths=[5, 9])
    sampled = buffer.sample(4000, 2, generator=torch.Generator().manual_seed(1)).o
    starts = {tuple(o[0].tolist()) for o in sampled}
    draws = 40_000
    o = buffer.sample(draws, 2, generator=torch.Generator().manual_seed(2)).o[:, 0]
    _, counts = torch.unique(o, dim=0, return_counts=True)
    assert len(counts) == len(starts)
    expected = draws / len(counts)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = len(counts) - 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("steps", [40, 500])
def test_windows_of_few_episodes_are_spread_over_those_episodes(steps):
    buffer = ReplayBuffer(192, STATE, ACTION, num_envs=3)
    play(buffer, steps, lengths=[3, 7, 12])
    every = buffer.sample(4000, 2, generator=torch.Generator().manual_seed(1)).o[:, 0]
    for seed in range(20):
        batch = buffer.sample(300, 2, generator=torch.Generator().manual_seed(seed), episodes=4)
        names, counts = batch.episode.unique(return_counts=True)
        assert 1 <= len(names) <= 4 and counts.min() >= 75
        _, episode, step = batch.o.unbind(-1)
        assert (episode == episode[:, :1]).all() and (step == step[:, :1] + torch.arange(3)).all()
        if steps == 500:
            continue  # an episode that the ring's end cuts in two counts as two
        for name in names:  # every window of a drawn episode turns up
            mine = batch.o[batch.episode == name][:, 0]
            same = (every[:, :2] == mine[0, :2]).all(1)
            assert set(mine[:, 2].tolist()) == set(every[same][:, 2].tolist())
    with pytest.raises(ValueError, match="episodes >= 1"):
        buffer.sample(4, 2, episodes=0)


def test_the_last_frame_of_an_episode_is_kept_with_its_termination():
    buffer = ReplayBuffer(100, STATE, ACTION)
    play(buffer, 20, lengths=[5])
    batch = buffer.sample(200, 5, generator=torch.Generator().manual_seed(0))
    assert (batch.o[:, :, 2] == torch.arange(6)).all()
    assert (batch.terminated == torch.tensor([False] * 4 + [True])).all()


def test_truncation_ends_an_episode_without_terminating_it():
    buffer = ReplayBuffer(100, STATE, ACTION)
    for t in range(4):
        o = np.array([[0, 0, t]], np.float32)
        buffer.add(o, np.zeros((1, 2)), [0.0], [False], [t == 3], o + np.float32([0, 0, 1]))
    assert not buffer.sample(10, 4).terminated.any()
    with pytest.raises(ValueError, match="nothing to sample yet"):
        buffer.sample(1, 5)


def test_an_abandoned_episode_is_not_joined_to_the_next():
    buffer = ReplayBuffer(100, STATE, ACTION)
    for e in range(2):
        for t in range(3):  # neither terminated nor truncated
            o = np.array([[0, e, t]], np.float32)
            buffer.add(o, np.zeros((1, 2)), [0.0], [False], [False], o + np.float32([0, 0, 1]))
    o = buffer.sample(100, 3).o
    assert (o[:, :, 1] == o[:, :1, 1]).all()
    with pytest.raises(ValueError, match="nothing to sample yet"):
        buffer.sample(1, 4)


def test_masked_envs_are_left_alone():
    buffer = ReplayBuffer(100, STATE, ACTION, num_envs=2)
    o = np.zeros((2, 3), np.float32)
    no = [False, False]
    buffer.add(o, np.zeros((2, 2)), [1.0, 1.0], no, no, o + 1, mask=[True, False])
    assert len(buffer) == 1


@pytest.mark.parametrize("length", [1, 10, 300])
def test_nothing_is_lost_until_capacity_and_never_more_is_kept(length):
    buffer = ReplayBuffer(600, STATE, ACTION, num_envs=2)
    play(buffer, 300, lengths=[length])
    assert len(buffer) == 600
    o = buffer.sample(20_000, 1, generator=torch.Generator().manual_seed(0)).o
    assert len(o.unique(dim=0)) == 600
    play(buffer, 301, lengths=[length])
    assert len(buffer) == 600


def test_the_oldest_steps_make_room_for_the_newest():
    buffer = ReplayBuffer(20, STATE, ACTION)
    episodes = play(buffer, 100, lengths=[10])
    o = buffer.sample(500, 1, generator=torch.Generator().manual_seed(0)).o
    assert set(o[:, 0, 1].tolist()) == {episodes[0] - 1, episodes[0] - 2}


def test_whole_episodes_and_single_steps_store_the_same():
    by_step, by_episode = (ReplayBuffer(50, STATE, ACTION) for _ in range(2))
    play(by_step, 100, lengths=[10])
    for e in range(10):
        t = np.arange(11, dtype=np.float32)
        o = np.stack([0 * t, 0 * t + e, t], 1)
        a = np.stack([t, 0 * t], 1)[:10] / 1000
        by_episode.add_episode(o, a, t[:10], ends(10), ends(10, last=False))
    assert_same_windows(by_step, by_episode, 4)


@pytest.mark.parametrize("steps_at_once", [True, False])
def test_frame_stacks_are_rebuilt_as_the_env_showed_them(steps_at_once):
    k, space = 3, spaces.Box(0, 255, (6, 4, 4), np.uint8)
    # Small enough to wrap in the middle of an episode, whose first remaining stacks then cannot be
    # rebuilt.
    buffer = ReplayBuffer(25, space, ACTION, frame_stack=k)
    for e in range(6):
        stacked = stack_frames(images(e, 10, channels=2), k)
        if steps_at_once:
            buffer.add_episode(stacked, np.zeros((10, 2)), np.zeros(10), ends(10, False), ends(10))
        else:
            for t in range(10):
                o = stacked[t : t + 2]
                buffer.add(o[:1], np.zeros((1, 2)), [0.0], [False], [t == 9], o[1:])
    batch = buffer.sample(500, 2, generator=torch.Generator().manual_seed(0))
    assert batch.o.shape == (500, 3, 6, 4, 4) and batch.o.dtype == torch.uint8
    newest = batch.o[:, :, -1, 0, 0].long()
    episode, step = newest // 16, newest % 16
    for e, t, o in zip(episode[:, 0].tolist(), step[:, 0].tolist(), batch.o.numpy()):
        np.testing.assert_array_equal(o, stack_frames(images(e, 10, channels=2), k)[t : t + 3])
    assert step[:, 0].min() == 0


def test_stack_frames_repeats_the_first_and_ends_with_the_newest():
    stacked = stack_frames(np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1), 3)
    assert stacked[:, :, 0, 0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]


def test_dict_observations_stack_images_and_not_vectors():
    space = spaces.Dict({"pixels": spaces.Box(0, 255, (2, 4, 4), np.uint8), "state": STATE})
    buffer = ReplayBuffer(50, space, ACTION, frame_stack=2)
    state = np.arange(11, dtype=np.float32)[:, None].repeat(3, 1)
    observed = {"pixels": stack_frames(images(0, 10), 2), "state": state}
    buffer.add_episode(observed, np.zeros((10, 2)), np.zeros(10), ends(10, False), ends(10))
    o = buffer.sample(50, 2).to("cpu").o
    before, now = o["pixels"][..., 0, 0].float().unbind(-1)
    torch.testing.assert_close(now, o["state"][..., 0])
    torch.testing.assert_close(before, (o["state"][..., 0] - 1).clamp(min=0))


@pytest.mark.parametrize("steps", [30, 300])
def test_a_saved_buffer_gives_the_same_windows_and_goes_on(tmp_path, steps):
    space = spaces.Box(np.array([-np.inf, 0, 0], np.float32), np.array([1, np.inf, 9], np.float32))
    buffer = ReplayBuffer(100, space, ACTION, num_envs=2)
    play(buffer, steps, lengths=[7, 9])
    buffer.save(tmp_path / "buffer.pt")
    loaded = ReplayBuffer.load(tmp_path / "buffer.pt")
    assert len(loaded) == len(buffer) and loaded.observation_space == space
    for _ in range(2):
        assert_same_windows(buffer, loaded, 3)
        play(buffer, 30, lengths=[5])
        play(loaded, 30, lengths=[5])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_buffer_on_the_gpu_gives_the_windows_of_one_on_the_cpu(tmp_path):
    cpu, cuda = (
        ReplayBuffer(100, STATE, ACTION, num_envs=2, device=device) for device in ("cpu", "cuda")
    )
    play(cpu, 150, lengths=[7, 9])
    play(cuda, 150, lengths=[7, 9])
    cuda.save(tmp_path / "buffer.pt")
    for other in (cuda, ReplayBuffer.load(tmp_path / "buffer.pt", device="cuda")):
        batch = other.sample(4, 3, generator=torch.Generator("cuda").manual_seed(0))
        assert batch.o.is_cuda and batch.a.is_cuda and batch.episode.is_cuda
        assert_same_windows(cpu, other, 3)


def test_a_damaged_file_is_one_sentence(tmp_path):
    (tmp_path / "buffer.pt").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a readable replay buffer"):
        ReplayBuffer.load(tmp_path / "buffer.pt")
    with pytest.raises(FileNotFoundError, match="no replay buffer"):
        ReplayBuffer.load(tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"config": None},
        {"o": "text"},
        {"lanes": {}},
        {"rows": {}},
        {"next_episode": None},
        {"action_space": "{"},
        {"action_space": '{"type": "os:system"}'},
        {"config": {"capacity": "many"}},
    ],
    ids=str,
)
def test_contents_that_do_not_fit_are_one_sentence(change, tmp_path):
    path = tmp_path / "replay.pt"
    space = spaces.Box(-1, 1, (3,))
    ReplayBuffer(40, observation_space=space, action_space=space).save(path)
    ReplayBuffer.load(path)
    payload = torch.load(path, weights_only=True) | change
    torch.save({name: value for name, value in payload.items() if value is not None}, path)
    with pytest.raises(ValueError, match=r"replay\.pt is a replay buffer whose contents do not"):
        ReplayBuffer.load(path)


def test_wrong_input_is_named():
    buffer = ReplayBuffer(10, STATE, ACTION)
    good = dict(obs=np.zeros((1, 3)), action=np.zeros((1, 2)), next_obs=np.zeros((1, 3)))
    good |= dict(reward=[0.0], terminated=[False], truncated=[False])
    for change, match in [
        (dict(obs=np.zeros(3)), "obs has shape"),
        (dict(obs=np.full((1, 3), np.nan)), "obs contains NaN"),
        (dict(action=np.zeros((1, 3))), "action has shape"),
        (dict(action=np.full((1, 2), np.nan)), "action contains NaN"),
        (dict(reward=[np.nan]), "reward contains NaN"),
        (dict(terminated=[0.5]), "terminated has"),
        (dict(next_obs={"state": np.zeros((1, 3))}), "next_obs is an array of objects"),
    ]:
        with pytest.raises(ValueError, match=match):
            buffer.add(**(good | change))
    assert len(buffer) == 0
    with pytest.raises(ValueError, match="nothing to sample yet"):
        buffer.sample(4, 2)
    with pytest.raises(ValueError, match="raise the capacity"):
        buffer.sample(4, 11)
    with pytest.raises(ValueError, match="does not fit a lane"):
        buffer.add_episode(np.zeros((12, 3)), np.zeros((11, 2)), np.zeros(11), ends(11), ends(11))
    with pytest.raises(ValueError, match="ends on step 0"):
        o, a, no = np.zeros((3, 3)), np.zeros((2, 2)), [False, False]
        buffer.add_episode(o, a, np.zeros(2), [True, False], no)
    with pytest.raises(ValueError, match="num_envs <= capacity"):
        ReplayBuffer(1, STATE, ACTION, num_envs=2)
    with pytest.raises(ValueError, match="expected a Box"):
        ReplayBuffer(10, spaces.Discrete(3), ACTION)
    with pytest.raises(ValueError, match="action space"):
        ReplayBuffer(10, STATE, spaces.Discrete(3))


def test_images_must_be_uint8_and_start_at_rest():
    buffer = ReplayBuffer(20, spaces.Box(0, 255, (2, 4, 4), np.uint8), ACTION, frame_stack=2)
    args = np.zeros((3, 2)), np.zeros(3), ends(3, False), ends(3)
    with pytest.raises(ValueError, match="convert it first"):
        buffer.add_episode(np.zeros((4, 2, 4, 4), np.float32), *args)
    with pytest.raises(ValueError, match="first frame repeated"):
        buffer.add_episode(stack_frames(images(0, 6), 2)[3:], *args)
    with pytest.raises(ValueError, match="cannot hold 2 frames"):
        ReplayBuffer(20, spaces.Box(0, 255, (3, 4, 4), np.uint8), ACTION, frame_stack=2)


def test_a_buffer_larger_than_memory_is_refused_before_it_is_allocated():
    with pytest.raises(MemoryError, match="lower the capacity"):
        ReplayBuffer(10**10, spaces.Box(0, 255, (3, 64, 64), np.uint8), ACTION)
    stacked = spaces.Box(0, 255, (9, 64, 64), np.uint8)
    assert ReplayBuffer(1000, stacked, ACTION, frame_stack=3).nbytes < 2.1e3 * 13e3


def test_spaces_survive_json():
    low = np.array([[-np.inf, 0.1], [-2, -3]], np.float32)
    vector = spaces.Box(low, low + 9, dtype=np.float32)
    space = spaces.Dict({"a": vector, "b": spaces.Box(0, 255, (3, 2, 2), np.uint8)})
    text = json.dumps(describe_space(space), allow_nan=False)
    assert rebuild_space(json.loads(text)) == space


# -- threads, devices ------------------------------------------------------------------


def test_one_thread_may_add_while_another_samples():
    buffer = ReplayBuffer(300, STATE, ACTION, num_envs=3)
    play(buffer, 50, lengths=[7])
    enough, errors = threading.Event(), []

    def collect():
        try:
            seed = 0
            while not enough.is_set() or seed < 2:  # it adds as long as the other samples
                play(buffer, 60, lengths=[3, 7, 12], seed=seed)
                seed += 1
        except Exception as error:
            errors.append(error)

    collector = threading.Thread(target=collect)
    collector.start()
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        batch = buffer.sample(64, 2, generator=g)
        lane, _, step = batch.o.unbind(-1)
        assert (lane == lane[:, :1]).all() and (step == step[:, :1] + torch.arange(3)).all()
        torch.testing.assert_close(batch.a[..., 0] * 1000, step[:, :-1])
    enough.set()
    collector.join()
    assert not errors


@pytest.mark.parametrize(("free", "expected"), [(2.6, "cuda"), (2.4, "cpu")])
def test_rows_live_on_the_gpu_if_that_leaves_room_for_the_model(monkeypatch, free, expected):
    needed = ReplayBuffer(1000, STATE, ACTION).nbytes
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    memory = (int(free * needed), 10**12)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: memory)
    assert residence("auto", needed).type == expected
    assert residence("cpu", needed).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert residence("auto", needed).type == "cpu"


def test_stacked_pictures_cost_one_frame_per_step():
    def arguments(stack):
        space = spaces.Box(0, 255, (3 * stack, 64, 64), np.uint8)
        return dict(capacity=800, observation_space=space, action_space=ACTION, frame_stack=stack)

    one, three = (ReplayBuffer(**arguments(stack)) for stack in (1, 3))
    assert one.nbytes == three.nbytes == buffer_bytes(**arguments(3))
    # a row for each step, and one for the last frame of each of a hundred episodes
    few = buffer_bytes(**arguments(3), episodes=100)
    assert few == pytest.approx(900 * 64 * 64 * 3, rel=0.005)
