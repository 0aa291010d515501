"""What reaching a goal means in each domain of the control suite: a position, computed from joint
positions, and a radius.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_BALL, _FREE, _HINGE = 1, 0, 3  # mujoco.mjtJoint


@dataclass(frozen=True)
class GoalSpace:
    """A position computed from a `mujoco.MjModel` and joint positions, and how near counts as
    there.
    """

    position: Callable[[Any, np.ndarray], np.ndarray]  # model, qpos (..., nq) -> (..., P)
    radius: float
    units: str


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
    base, elbow, tip = (
        model.body("upper_arm").pos,
        model.body("lower_arm").pos[2],
        model.site("tip").pos[2],
    )
    upper, lower = qpos[..., 0], qpos[..., 0] + qpos[..., 1]
    return base[[0, 2]] + np.stack(
        [elbow * np.sin(upper) + tip * np.sin(lower), elbow * np.cos(upper) + tip * np.cos(lower)],
        -1,
    )


def joint_positions(model, qpos: np.ndarray) -> np.ndarray:
    """Joint positions (..., nq) without jumps: hinges as cosine and sine, rotations with a positive
    real part.
    """
    parts = []
    for kind, at in zip(model.jnt_type, model.jnt_qposadr):
        if kind == _HINGE:
            parts += _circle(qpos[..., at])
        elif kind in (_FREE, _BALL):
            rotation = at + 3 * (kind == _FREE)
            parts += [qpos[..., i] for i in range(at, rotation)]
            sign = np.where(qpos[..., rotation] < 0, -1.0, 1.0)
            parts += [sign * qpos[..., i] for i in range(rotation, rotation + 4)]
        else:
            parts.append(qpos[..., at])
    return np.stack(parts, -1)


_GOALS = {
    "reacher": GoalSpace(_fingertip, 0.02, "m, fingertip xy"),
    "point_mass": GoalSpace(lambda model, q: q[..., :2], 0.02, "m, mass xy"),
    "ball_in_cup": GoalSpace(lambda model, q: q[..., 2:4], 0.02, "m, ball xz"),
    "cartpole": GoalSpace(
        lambda model, q: np.stack([q[..., 0], *_circle(q[..., 1])], -1), 0.1, "cart m, cos, sin"
    ),
    "pendulum": GoalSpace(lambda model, q: np.stack(_circle(q[..., 0]), -1), 0.1, "cos, sin"),
    "acrobot": GoalSpace(_acrobot_tip, 0.2, "m, tip xz"),
    "finger": GoalSpace(lambda model, q: np.stack(_circle(q[..., 2]), -1), 0.1, "spinner cos, sin"),
}
_ANY = GoalSpace(joint_positions, 0.1, "m, cos, sin and quaternions of all joints")
