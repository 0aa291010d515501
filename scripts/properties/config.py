"""Command lines: any overrides are accepted, or refused in one sentence that leaves no folder."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from pathlib import Path
from unittest import mock

import torch
from hypothesis import strategies as st
from omegaconf import DictConfig

from gjwm.cli.app import main
from gjwm.cli.config import load_config
from properties import one_sentence, register
from properties.files import laid_out

COMMANDS = ("collect", "train", "online", "evaluate", "video", "report", "study")
# Where a command begins to work, in place of which it is counted as accepted.
WORK = (
    "gjwm.cli.collect.collect_dataset",
    "gjwm.cli.train.train",
    "gjwm.cli.online.learn",
    "gjwm.cli.evaluate.held_out_episodes",
    "gjwm.cli.study.run_local",
    "gjwm.study.sweep.Sweep.execute",
)
VALUES = (
    *("-1", "0", "1", "2", "7", "1000000", "99999999999999999999", "0.5", "-0.0", "1e400", "nan"),
    *("inf", "true", "false", "null", "''", "abc", "a-b", "[]", "[1]", "[1,2]", "[-1,x]", "{}"),
    *("{a: 1}", "[[1]]", "'1'", '"a, b"', "${name}", "${nope}", "${", "1,2", "range(3)", "é", " "),
    *("cpu", "cuda:99", "sigreg", "gjwm.models.Nope", "os.path.join", "none/at/all", "=", "x=y"),
)
EXTRA = ("nope", "train", "train.nope", "env.nope", "a.b.c", "", ".", "name", "dataset", "@x", "é")


@functools.cache
def settings() -> list[str]:
    """The names of all settings of two experiments, sorted."""

    def leaves(cfg: DictConfig, before: str = "") -> list[str]:
        names = []
        for key in cfg:
            part = cfg._get_node(key)
            inner = isinstance(part, DictConfig) and not part._is_none()
            names += leaves(part, f"{before}{key}.") if inner else [f"{before}{key}"]
        return names

    found = {*leaves(load_config(["experiment=suite"])), *leaves(load_config([]))}
    # threads would be those of this very process
    return sorted(found - {"threads"})


overrides = st.lists(
    st.tuples(
        st.sampled_from(["", "", "", "", "+", "++", "~"]),
        st.integers(0, 400) | st.sampled_from(EXTRA),
        st.sampled_from(VALUES) | st.text(max_size=6),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


class Accepted(BaseException):
    """Raised where a command would begin to work."""


def accept(*args, **kwargs):
    """Instead of work."""
    raise Accepted


@register(command=st.sampled_from(COMMANDS), given=overrides)
def a_command_is_accepted_or_refused_in_a_sentence(command, given):
    """No traceback, status 1 (2 for wrong usage), one line of errors, and no folder left."""
    names = settings()
    words = []
    for sign, name, value, bare in given:
        key = names[name % len(names)] if isinstance(name, int) else name
        words.append(f"{sign}{key}" if bare and sign == "~" else f"{sign}{key}={value}")
    words = [word.replace("\0", "") for word in words]
    here, said = Path.cwd(), io.StringIO()
    with laid_out({}) as folder, contextlib.ExitStack() as stack:
        stack.callback(os.chdir, here)
        os.chdir(folder)
        for place in WORK:
            stack.enter_context(mock.patch(place, accept))
        stack.enter_context(contextlib.redirect_stderr(said))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        try:
            status = main([command, *words])
        except Accepted:
            return
        finally:
            torch.set_num_threads(1)
        if status == 0:
            return
        lines = said.getvalue().strip().splitlines()
        assert status in (1, 2) and len(lines) == 1, f"{status}: {lines}"
        one_sentence(lines[0])
        assert not list(folder.rglob("*")), f"left {list(folder.rglob('*'))}"
