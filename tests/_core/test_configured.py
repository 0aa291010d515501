"""Claims about modules that remember how they were built."""

import copy

import pytest
import torch
from torch import nn

from gjwm._core.configured import Configured, describe, rebuild
from gjwm.models import EnsembleDynamics, GaussianDynamics, MLPEncoder
from gjwm.models.dynamics import with_static


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
        with_static(EnsembleDynamics, 4, 2, 1),
    ],
)
def test_a_description_builds_the_same_module(module):
    again = rebuild(describe(module), "a file")
    again.load_state_dict(module.state_dict())
    assert describe(again) == describe(module)


def test_what_cannot_be_rebuilt_is_named():
    for name, said in (
        ("gjwm.models:Nothing", "a file needs gjwm.models:Nothing"),
        ("math:sqrt", "not a torch module"),
    ):
        with pytest.raises(ValueError, match=said):
            rebuild({"class": name, "config": {}}, "a file")
    with pytest.raises(ValueError, match=r"a file has arguments that .* refuses"):
        rebuild(
            describe(GaussianDynamics(4, 2)) | {"config": dict(latent_dim=0, action_dim=1)},
            "a file",
        )
    with pytest.raises(TypeError, match="unexpected keyword argument 'wide'"):
        Base(1, wide=2)
