"""What dm_control's tasks observe, reward and reach, as formulas over a batch of simulators.

dm_control computes observations and rewards in Python for one simulator at a time, which takes
longer than the physics. In numpy these formulas give the same numbers to the last bit
(`tests/envs/test_vector.py` holds them to that); in torch they serve simulators on an accelerator.
Tasks without a formula are asked one by one. All arrays are (N, ...); `xp` is numpy or torch. What
a goal is in each domain, a position and a radius, stands at the end.

Source: dm_control.suite (Tassa et al., 2018, arXiv:1801.00690), whose definitions these are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = Any  # numpy.ndarray or torch.Tensor

XX, XZ, ZZ = 0, 2, 8  # of a row-major rotation matrix


class Simulators(Protocol):
    """What formulas read: fields of N simulators, and of their models, by MuJoCo's names."""

    xp: Any  # numpy or torch

    def data(self, field: str) -> Array:
        """A whole field of mjData, (N, *field)."""

    def of(self, field: str, name: str) -> Array:
        """The row of a named element in a field of mjData or mjModel, (N, *row); a sensor's
        readings under "sensordata"."""


# the kind of a named element, by the first word of a field that has a row for it
ELEMENTS = {"geom": "geom", "site": "site", "xpos": "body", "xmat": "body", "sensordata": "sensor"}


def sensor_rows(model: Any, name: str) -> slice:
    """Where a sensor's readings stand in "sensordata"."""
    sensor = model.sensor(name).id
    return slice(model.sensor_adr[sensor], model.sensor_adr[sensor] + model.sensor_dim[sensor])


class Formula(NamedTuple):
    """A task's observation (N, S), in dm_control's order, and reward (N,)."""

    observe: Callable[[Simulators], list[Array]]  # parts (N, s), side by side
    reward: Callable[[Simulators], Array]


def tolerance(
    xp: Any,
    x: Array,
    bounds: tuple[Any, Any] = (0.0, 0.0),
    margin: Any = 0.0,
    sigmoid: str = "gaussian",
    value_at_margin: float = 0.1,
) -> Array:
    """dm_control's soft indicator: 1 inside `bounds`, falling to `value_at_margin` at a distance of
    `margin`, elementwise.

    x: (N,) for what is one number in dm_control, (N, k) for what is an array there: numpy squares
    the two differently."""
    lower, upper = bounds
    inside = (lower <= x) & (x <= upper)
    if isinstance(margin, float | int) and margin == 0:
        return xp.where(inside, 1.0, 0.0)
    distance = xp.where(x < lower, lower - x, x - upper) / margin
    if sigmoid == "gaussian":
        outside = xp.exp(-0.5 * _square(xp, distance * math.sqrt(-2 * math.log(value_at_margin))))
    elif sigmoid == "linear":
        scaled = distance * (1 - value_at_margin)
        outside = xp.where(abs(scaled) < 1, 1 - scaled, 0.0)
    elif sigmoid == "quadratic":
        scaled = distance * math.sqrt(1 - value_at_margin)
        outside = xp.where(abs(scaled) < 1, 1 - _square(xp, scaled), 0.0)
    else:
        raise ValueError(f"no formula for the sigmoid {sigmoid!r}.")
    return xp.where(inside, 1.0, outside)


def _square(xp: Any, x: Array) -> Array:
    """x^2: of numpy's lone numbers by C's pow, which in one of a thousand differs from the product
    in the last bit."""
    return xp.array([value**2 for value in x.tolist()]) if xp is np and x.ndim == 1 else x * x


def _norm(xp: Any, x: Array) -> Array:
    """Euclidean norm of (N, k), as numpy.linalg.norm of each row: by a product, which may fuse
    multiplication and addition."""
    return xp.sqrt((x[:, None] @ x[:, :, None])[:, 0, 0])


def _frames(s: Simulators) -> Array:
    """Every body's rotation matrix, (N, bodies, 9)."""
    return s.data("xmat").reshape(len(s.data("qpos")), -1, 9)


def _effort(s: Simulators, controls: Array) -> Array:
    """1 for controls (N, k) of 0, falling to 0 at 1."""
    return tolerance(s.xp, controls, margin=1, value_at_margin=0, sigmoid="quadratic")


# -- cartpole --------------------------------------------------------------------------------------


def _cartpole_observe(s: Simulators) -> list[Array]:
    poles = _frames(s)[:, 2:]
    return [s.data("qpos")[:, :1], poles[:, :, [ZZ, XZ]].reshape(len(poles), -1), s.data("qvel")]


def _cartpole_dense(s: Simulators) -> Array:
    xp, cosine = s.xp, _frames(s)[:, 2:, ZZ]
    upright = (cosine + 1) / 2
    centred = (1 + tolerance(xp, s.data("qpos")[:, 0], margin=2)) / 2
    control = _effort(s, s.data("ctrl")[:, :1])[:, 0]
    velocity = xp.amin(tolerance(xp, s.data("qvel")[:, 1:], margin=5), 1)
    return upright.mean(1) * ((4 + control) / 5) * ((1 + velocity) / 2) * centred


def _cartpole_sparse(s: Simulators) -> Array:
    centred = tolerance(s.xp, s.data("qpos")[:, 0], (-0.25, 0.25))
    return centred * tolerance(s.xp, _frames(s)[:, 2:, ZZ], (0.995, 1)).prod(1)


# -- the others ------------------------------------------------------------------------------------


def _pendulum_observe(s: Simulators) -> list[Array]:
    return [s.of("xmat", "pole")[:, [ZZ, XZ]], s.data("qvel")]


def _pendulum_reward(s: Simulators) -> Array:
    return tolerance(s.xp, s.of("xmat", "pole")[:, ZZ], (math.cos(math.radians(8)), 1))


def _to_target(s: Simulators) -> Array:
    return s.of("geom_xpos", "target")[:, :2] - s.of("geom_xpos", "finger")[:, :2]


def _reacher_observe(s: Simulators) -> list[Array]:
    return [s.data("qpos"), _to_target(s), s.data("qvel")]


def _reacher_reward(s: Simulators) -> Array:
    radii = s.of("geom_size", "target")[:, 0] + s.of("geom_size", "finger")[:, 0]
    return tolerance(s.xp, _norm(s.xp, _to_target(s)), (0, radii))


def _cheetah_observe(s: Simulators) -> list[Array]:
    return [s.data("qpos")[:, 1:], s.data("qvel")]


def _cheetah_reward(s: Simulators) -> Array:
    speed = s.of("sensordata", "torso_subtreelinvel")[:, 0]
    return tolerance(s.xp, speed, (10, math.inf), margin=10, value_at_margin=0, sigmoid="linear")


def _coordinates(s: Simulators) -> list[Array]:
    return [s.data("qpos"), s.data("qvel")]


def _cup_reward(s: Simulators) -> Array:
    offset = abs(s.of("site_xpos", "target") - s.of("xpos", "ball"))[:, [0, 2]]
    room = s.of("site_size", "target")[:, [0, 2]] - s.of("geom_size", "ball")[:, :1]
    return (offset < room).all(1) * 1.0


def _point_mass_reward(s: Simulators) -> Array:
    distance = _norm(s.xp, s.of("geom_xpos", "target") - s.of("geom_xpos", "pointmass"))
    size = s.of("geom_size", "target")[:, 0]
    control = _effort(s, s.data("ctrl")).mean(1)
    return tolerance(s.xp, distance, (0, size), margin=size) * ((control + 4) / 5)


def _walker_observe(s: Simulators) -> list[Array]:
    frames = _frames(s)[:, 1:, [XX, XZ]]
    return [frames.reshape(len(frames), -1), s.of("xpos", "torso")[:, 2:], s.data("qvel")]


def _walker_reward(speed: float) -> Callable[[Simulators], Array]:
    def reward(s: Simulators) -> Array:
        height, upright = s.of("xpos", "torso")[:, 2], (1 + s.of("xmat", "torso")[:, ZZ]) / 2
        stand = (3 * tolerance(s.xp, height, (1.2, math.inf), margin=0.6) + upright) / 4
        if speed == 0:
            return stand
        forward = s.of("sensordata", "torso_subtreelinvel")[:, 0]
        bounds, margin = (speed, math.inf), speed / 2
        move = tolerance(s.xp, forward, bounds, margin, "linear", value_at_margin=0.5)
        return stand * (5 * move + 1) / 6

    return reward


_cartpole = Formula(_cartpole_observe, _cartpole_dense)
_cartpole_rare = Formula(_cartpole_observe, _cartpole_sparse)
_reacher = Formula(_reacher_observe, _reacher_reward)
_point_mass = Formula(_coordinates, _point_mass_reward)

FORMULAS: dict[tuple[str, str], Formula] = {
    ("cartpole", "balance"): _cartpole,
    ("cartpole", "balance_sparse"): _cartpole_rare,
    ("cartpole", "swingup"): _cartpole,
    ("cartpole", "swingup_sparse"): _cartpole_rare,
    ("cartpole", "two_poles"): _cartpole,
    ("cartpole", "three_poles"): _cartpole,
    ("pendulum", "swingup"): Formula(_pendulum_observe, _pendulum_reward),
    ("reacher", "easy"): _reacher,
    ("reacher", "hard"): _reacher,
    ("cheetah", "run"): Formula(_cheetah_observe, _cheetah_reward),
    ("ball_in_cup", "catch"): Formula(_coordinates, _cup_reward),
    ("point_mass", "easy"): _point_mass,
    ("point_mass", "hard"): _point_mass,
    ("walker", "stand"): Formula(_walker_observe, _walker_reward(0)),
    ("walker", "walk"): Formula(_walker_observe, _walker_reward(1)),
    ("walker", "run"): Formula(_walker_observe, _walker_reward(8)),
}


# -- goals -----------------------------------------------------------------------------------------

_BALL, _FREE, _HINGE = 1, 0, 3  # mujoco.mjtJoint


class GoalSpace(NamedTuple):
    """A position computed from a `mujoco.MjModel` and joint positions, and how near is there."""

    position: Callable[[Any, np.ndarray], np.ndarray]  # model, qpos (..., nq) -> (..., P)
    radius: float


def goal_space(domain: str) -> GoalSpace:
    """The domain's own goal space; for a domain without one, all its joint positions."""
    return _GOALS.get(domain, _ANY)


def _circle(angle: np.ndarray) -> list[np.ndarray]:
    return [np.cos(angle), np.sin(angle)]


def _fingertip(model, qpos: np.ndarray) -> np.ndarray:
    """Planar two-link forward kinematics: xy of reacher's geom "finger", metres."""
    arm, hand, finger = model.body("arm").pos, model.body("hand").pos, model.body("finger").pos
    tip = finger + model.geom("finger").pos
    shoulder, elbow = qpos[..., 0], qpos[..., 0] + qpos[..., 1]

    def turned(angle: np.ndarray, v: np.ndarray) -> np.ndarray:
        c, s = np.cos(angle), np.sin(angle)
        return np.stack([c * v[0] - s * v[1], s * v[0] + c * v[1]], -1)

    return arm[:2] + turned(shoulder, hand) + turned(elbow, tip)


def _acrobot_tip(model, qpos: np.ndarray) -> np.ndarray:
    """xz of acrobot's site "tip", metres: both links turn about y and point up at angle 0."""
    base, elbow = model.body("upper_arm").pos, model.body("lower_arm").pos[2]
    tip = model.site("tip").pos[2]
    upper, lower = qpos[..., 0], qpos[..., 0] + qpos[..., 1]
    x = elbow * np.sin(upper) + tip * np.sin(lower)
    z = elbow * np.cos(upper) + tip * np.cos(lower)
    return base[[0, 2]] + np.stack([x, z], -1)


def joint_positions(model, qpos: np.ndarray, signed: bool = False) -> np.ndarray:
    """Joint positions (..., nq) with hinges as cosine and sine, and rotations as quaternions: with
    a positive real part, so that they do not jump, or as they are if `signed`."""
    parts = []
    for kind, at in zip(model.jnt_type, model.jnt_qposadr):
        if kind == _HINGE:
            parts += _circle(qpos[..., at])
        elif kind in (_FREE, _BALL):
            rotation = at + 3 * (kind == _FREE)
            parts += [qpos[..., i] for i in range(at, rotation)]
            sign = np.where((qpos[..., rotation] < 0) & (not signed), -1.0, 1.0)
            parts += [sign * qpos[..., i] for i in range(rotation, rotation + 4)]
        else:
            parts.append(qpos[..., at])
    return np.stack(parts, -1)


_GOALS = {
    "reacher": GoalSpace(_fingertip, 0.02),  # m, xy
    "point_mass": GoalSpace(lambda model, q: q[..., :2], 0.02),  # m, mass xy
    "ball_in_cup": GoalSpace(lambda model, q: q[..., 2:4], 0.02),  # m, ball xz
    "cartpole": GoalSpace(lambda model, q: np.stack([q[..., 0], *_circle(q[..., 1])], -1), 0.1),
    "pendulum": GoalSpace(lambda model, q: np.stack(_circle(q[..., 0]), -1), 0.1),
    "acrobot": GoalSpace(_acrobot_tip, 0.2),  # m, xz
    "finger": GoalSpace(lambda model, q: np.stack(_circle(q[..., 2]), -1), 0.1),  # the spinner
}
_ANY = GoalSpace(joint_positions, 0.1)
