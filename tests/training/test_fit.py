"""What a fit does about steps that are NaN or infinite."""

import math

import pytest
import torch
from torch import nn

from gjwm._core.checkpoint import Checkpoints
from gjwm._core.fit import BAD_STEPS, Optimiser, fit


def subject():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def batches(steps):
    return torch.randn(steps + 1, 8, 3, generator=torch.Generator().manual_seed(1))


def copied(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def fitted(net, data, bad=(), *, steps, seen=None, clip=1.0, **options):
    """Fit to batches; those at `bad` hold NaN, and those at -`bad` have an infinite gradient."""

    def loss(step):
        if seen is not None:
            seen[step] = copied(net)  # as the step before left it
        x = data[step] * (math.nan if step in bad else 1.0)
        value = net(x).square().mean()
        if -step in bad:  # a finite loss
            value = value + (net[0].weight.sum() - net[0].weight.sum().detach()).abs().sqrt()
        return {"loss": value}

    return fit([net], loss, Optimiser(lr=1e-2, clip=clip), steps=steps, log_every=1, **options)


@pytest.mark.parametrize("bad", [3, -3], ids=["loss", "gradient"])
def test_a_bad_step_is_skipped_and_changes_nothing(bad):
    net, seen, rows = subject(), {}, []
    log = lambda row, step: rows.append(row)  # noqa: E731
    last = fitted(net, batches(6), {bad}, steps=6, seen=seen, log=log)
    assert same(seen[3], seen[4]) and not same(seen[4], seen[5])
    assert all(value.isfinite().all() for value in net.state_dict().values())
    assert [row.get("skipped") for row in rows] == [None, None, 1, 1, 1, 1]
    # its schedule did not go on either, and the row shows the last good losses
    assert rows[2]["lr"] == rows[1]["lr"] != rows[3]["lr"] and rows[2]["loss"] == rows[1]["loss"]
    assert last["skipped"] == 1 and not net.training


def test_a_fit_fails_after_bad_steps_in_a_row_with_the_last_good_parameters():
    net, seen = subject(), {}
    bad = set(range(4, 20))
    said = f"the loss became nan at step {3 + BAD_STEPS} \\(bad steps in a row: {BAD_STEPS}\\)"
    with pytest.raises(FloatingPointError, match=said):
        fitted(net, batches(20), bad, steps=20, seen=seen)
    assert same(seen[4], net.state_dict()) and not net.training
    # as many, but not in a row
    last = fitted(subject(), batches(20), set(range(2, 20, 2)), steps=20 - 1)
    assert last["skipped"] == 9


def test_a_last_step_that_is_bad_costs_no_more_than_itself():
    net, data, seen = subject(), batches(6), {}
    assert fitted(net, data, {6}, steps=6, seen=seen)["skipped"] == 1
    assert same(seen[6], net.state_dict())
    # a fit without a good step has fitted nothing
    with pytest.raises(FloatingPointError, match=r"at step 2 \(bad steps in a row: 2\)"):
        fitted(subject(), data, {1, 2}, steps=2)


def test_what_was_skipped_goes_with_the_state(tmp_path):
    class Killed(Exception):
        pass

    class Net:
        """The network's weights, as `fit` keeps them."""

        def __init__(self, net):
            self.net = net

        def state(self):
            return {"net": self.net.state_dict()}

        def restore(self, state):
            self.net.load_state_dict(state["net"])

    bad, data = {2, 4, 5, 6}, batches(9)
    whole = subject()
    expected = fitted(whole, data, bad, steps=9)

    def kill(row, step):
        if step == 6:
            raise Killed

    net = subject()
    options = dict(steps=9, checkpoints=Checkpoints(tmp_path, every=5), state=Net(net))
    with pytest.raises(Killed):
        fitted(net, data, bad, log=kill, **options)
    net = subject()
    options["state"] = Net(net)
    last = fitted(net, data, bad, **options)
    assert same(whole.state_dict(), net.state_dict()) and last["skipped"] == 4
    assert {k: v for k, v in last.items() if k != "steps_per_second"} == {
        k: v for k, v in expected.items() if k != "steps_per_second"
    }
    # a row of bad steps goes on over an interruption
    with pytest.raises(Killed):
        fitted(subject(), data, {4, 5, 6, 7, 8}, log=kill, **_fresh(tmp_path / "row"))
    with pytest.raises(FloatingPointError, match=r"at step 8 \(bad steps in a row: 5\)"):
        fitted(subject(), data, {4, 5, 6, 7, 8}, **_fresh(tmp_path / "row"))


def _fresh(folder):
    return dict(steps=9, checkpoints=Checkpoints(folder, every=5))
