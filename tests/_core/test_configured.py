"""Claims about modules that remember how they were built."""

import copy
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gjwm._core import configured
from gjwm._core.configured import Configured, describe, load_weights, rebuild
from gjwm.models import EnsembleDynamics, GaussianDynamics, MLPEncoder


class Base(Configured, nn.Module):
    def __init__(self, width: int, *, depth: int = 2, sizes=(3, 4)):
        super().__init__()


class Passing(Base):
    def __init__(self, width: int, *, own: float = 0.5, **rest):
        super().__init__(width, **rest)


class Named(Base):
    def __init__(this, width: int):
        super().__init__(width)


def test_the_first_argument_may_have_any_name():
    assert Named(2).config == {"width": 2}


def test_the_config_holds_arguments_and_defaults_of_all_classes_that_get_them():
    assert Base(1).config == {"width": 1, "depth": 2, "sizes": [3, 4]}
    assert Passing(width=1, sizes=torch.Size([5])).config == {
        "width": 1,
        "own": 0.5,
        "depth": 2,
        "sizes": [5],
    }
    assert copy.deepcopy(Passing(1, depth=7)).config["depth"] == 7
    assert "config" not in dict(Passing(1).named_modules()) and not Passing(1).state_dict()


@pytest.mark.parametrize(
    "module",
    [
        MLPEncoder((3,), 4, hidden=(8,)),
        GaussianDynamics(4, 2, hidden=8, backbone="gru", memory_width=4),
        EnsembleDynamics(4, 2, members=2, hidden=8),
    ],
)
def test_a_description_builds_the_same_module(module):
    again = rebuild(describe(module), "a file")
    again.load_state_dict(module.state_dict())
    assert describe(again) == describe(module)


def test_arguments_that_a_class_refuses_are_named():
    for wrong in (dict(latent_dim=0, action_dim=1), dict(latent_dim=4), dict(colour=1)):
        with pytest.raises(ValueError, match=r"a file has arguments that .* refuses"):
            rebuild(describe(GaussianDynamics(4, 2)) | {"config": wrong}, "a file")
    with pytest.raises(TypeError, match="unexpected keyword argument 'wide'"):
        Base(1, wide=2)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "subprocess:Popen",
        "builtins:exec",
        "math:sqrt",
        "torch.nn:Linear",
        "torch.nn.modules.linear:Linear",
        "no_such_module:Thing",
        "gjwm.models:Nothing",
        "gjwm.__main__:main",
        "gjwm._core.configured:Configured",
        "",
        None,
        ["os", "system"],
    ],
)
def test_a_file_names_no_function_and_no_class_of_others(name, monkeypatch):
    with pytest.raises(ValueError, match="a file names"):  # imports our parts, which exec runs
        rebuild({"class": "no_such_module:Thing", "config": {}}, "a file")
    ran = []
    for module, function in (("os", "system"), ("subprocess", "Popen"), ("builtins", "exec")):
        monkeypatch.setattr(f"{module}.{function}", lambda *a, **k: ran.append(a))
    for description in (
        {"class": name, "config": {"command": "true", "in_features": 2, "out_features": 2}},
        describe(Base(1)) | {"config": {"width": {"class": name, "config": {}}}},
    ):
        with pytest.raises(ValueError, match="a file names") as told:
            rebuild(description, "a file")
        assert len(str(told.value).splitlines()) == 1
    assert ran == []


def test_a_file_imports_nothing_that_is_not_ours(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        "import torch\nfrom gjwm.models import Configured\n"
        "class Part(Configured, torch.nn.Module):\n"
        "    def __init__(self, width):\n        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    description = {"class": "theirs:Part", "config": {"width": 3}}
    with pytest.raises(ValueError, match=r"a file names theirs:Part, .*import theirs first"):
        rebuild(description, "a file")
    assert "theirs" not in sys.modules
    importlib.import_module("theirs")
    monkeypatch.delitem(sys.modules, "theirs")  # what was defined stays known
    assert rebuild(description, "a file").config == {"width": 3}


def test_a_class_within_a_function_is_known_once_it_is_defined():
    class Local(Base):
        pass

    assert type(rebuild(describe(Local(3)), "a file")) is Local


def test_the_modules_that_are_imported_define_every_class_of_ours_that_a_file_may_name():
    package, bases = Path(configured.__file__).parents[1], {}
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for name, base in re.findall(r"^class (\w+)\((\w+)", path.read_text(), re.MULTILINE):
            bases[name] = (base, f"{module}:{name}")
    ours = {"Configured"}
    while more := {name for name, (base, _) in bases.items() if base in ours} - ours:
        ours |= more
    code = f"import {', '.join(configured.OWN)}; print(*gjwm._core.configured._CLASSES)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert set(done.stdout.split()) == {bases[name][1] for name in ours - {"Configured"}}, done


def test_a_module_of_no_known_class_is_refused_when_it_is_saved():
    class Foreign(nn.Module):
        config: dict = {}  # noqa: RUF012

    with pytest.raises(ValueError, match=r"Foreign cannot be saved .* gjwm\.models\.Configured"):
        describe(Foreign())


def test_weights_that_do_not_fit_are_one_sentence():
    module = nn.Linear(2, 3)
    whole = {name: value + 1 for name, value in module.state_dict().items()}
    load_weights(module, whole, "a file")
    assert torch.equal(module.bias, whole["bias"])
    for wrong, match in (
        (
            {"bias": whole["bias"]},
            r"^a file lacks weights of the model that it describes: weight\.$",
        ),
        (whole | {"gain": whole["bias"]}, r"^a file has weights that its model does not: gain\.$"),
        (
            whole | {"bias": torch.zeros(4)},
            r"another shape .*: bias is \(4,\) instead of \(3,\)\.$",
        ),
        (whole | {"bias": "text"}, r"another shape .*: bias is str instead of \(3,\)\.$"),
    ):
        with pytest.raises(ValueError, match=match):
            load_weights(module, wrong, "a file")
