"""One loop steps environments with whoever acts."""

from types import SimpleNamespace

import numpy as np

from gjwm.data.acting import play


class Lanes:
    """Two lanes that count; the first ends at step 2 and at every step after it."""

    def __init__(self, autoreset):
        self.autoreset, self.t = autoreset, 0

    def step(self, a):
        self.t += 1
        ended = np.array([self.t >= 2, False])
        o = np.full((2, 1), float(self.t))
        return o, a[:, 0], ended, np.zeros(2, bool), {}


def moves(autoreset):
    seen = SimpleNamespace(resets=[], steps=[])

    def act(o, info):
        seen.steps.append((info.step, o[0, 0]))
        return np.full((2, 1), 0.5)

    actor = SimpleNamespace(act=act, reset=lambda mask=None: seen.resets.append(mask.tolist()))
    steps = list(play(Lanes(autoreset), actor, np.zeros((2, 1)), 4))
    return seen, steps


def test_an_actor_sees_each_observation_once_and_every_transition_is_handed_out():
    seen, steps = moves(True)
    assert seen.steps == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    assert [step.o_next[0, 0] for step in steps] == [1.0, 2.0, 3.0, 4.0]
    assert all((step.r == 0.5).all() and step.valid.all() for step in steps)


def test_an_actor_begins_anew_where_an_episode_does_and_nowhere_else():
    assert moves(True)[0].resets == [[True, False]] * 3
    # An attempt goes on past an end, with the plan that is under way.
    assert moves(False)[0].resets == []
