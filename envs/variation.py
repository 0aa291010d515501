"""Seeded visual and physical variation of a MuJoCo scene, for tests of generalisation: one factor
at a time, or several."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np

FACTORS = ("colour", "camera", "light", "mass", "distractors")

# What each factor writes into the model; "mass" also what MuJoCo derives from masses.
_FIELDS = {
    "colour": ("mat_rgba", "geom_rgba", "site_rgba"),
    "camera": ("cam_pos", "cam_pos0", "cam_poscom0", "cam_quat", "cam_mat0", "cam_fovy"),
    "light": ("light_dir", "light_dir0", "light_diffuse"),
    "mass": (
        *("body_mass", "body_inertia", "body_subtreemass", "body_invweight0"),
        *("dof_invweight0", "dof_M0", "tendon_invweight0", "actuator_acc0"),
    ),
    "distractors": (),
}


class Variation:
    """What a seed does to a model. The same seed does the same, and a factor does not depend on
    which others are on.

    - `colour`: materials, and geoms and sites that take theirs from none, take any colour; opacity
      stays
    - `camera`: moves by up to 0.1 of the model's extent along each axis, turns by up to 5 degrees,
      zooms by up to 10%
    - `light`: 0.5 to 2 times as bright in each of red, green and blue, from up to 40 degrees beside
    - `mass`: each body 0.5 to 2 times as heavy, its inertia with it
    - `distractors`: 6 dots, 2 to 6% of the picture's side in radius, drift over it and turn back at
      its edges

    A strength between 0 and 1 narrows the ranges in proportion (for distractors: the number of
    dots).

    Args:
        factors: names, or {name: True, False or a strength from 0 to 1}.
        model: the `mujoco.MjModel` as it is without variation.
        camera: id of the camera that pictures are taken with.

    Raises:
        ValueError: for an unknown factor, a strength outside [0, 1], or variation of the free
            camera."""

    def __init__(
        self, factors: Mapping[str, bool | float] | Iterable[str], model: Any, camera: int
    ):
        self.strength = _strengths(factors)
        if "camera" in self.strength and camera < 0:
            raise ValueError(
                "the free camera (camera=-1) is not part of the model and cannot be varied: name "
                "another."
            )
        self.camera = camera
        names = [name for factor in self.strength for name in _FIELDS[factor]]
        self._base = {name: np.array(getattr(model, name)) for name in names}
        lamp = model.vis.headlight
        self._headlight = {name: np.array(getattr(lamp, name)) for name in ("ambient", "diffuse")}
        self._extent = float(model.stat.extent)
        self._pristine = copy.copy(model) if "mass" in self.strength else None

    def _draws(self, factor: str, word: int) -> np.random.Generator:
        return np.random.default_rng([word, FACTORS.index(factor)])

    def apply(self, model: Any, word: int) -> None:
        """Write the variation of seed `word` into a model or a copy of it, whatever was written
        there before."""
        for factor, strength in self.strength.items():
            change = getattr(self, f"_{factor}", None)
            if change is not None:
                change(model, strength, self._draws(factor, word))

    def _colour(self, model: Any, strength: float, rng: np.random.Generator) -> None:
        for name in _FIELDS["colour"]:
            base = self._base[name]
            colour = (1 - strength) * base[:, :3] + strength * rng.uniform(0.1, 1.0, (len(base), 3))
            own = np.ones(len(base), bool)
            # MuJoCo draws a material's colour only while the geom's or site's is the default
            if name != "mat_rgba":
                material = getattr(model, name.replace("rgba", "matid")) >= 0
                own = ~(material & (base == np.float32([0.5, 0.5, 0.5, 1])).all(1))
            getattr(model, name)[own, :3] = colour[own]

    def _camera(self, model: Any, strength: float, rng: np.random.Generator) -> None:
        import mujoco

        at, base = self.camera, self._base
        shift = 0.1 * strength * self._extent * rng.uniform(-1, 1, 3)
        turn, matrix = _rotation(np.deg2rad(5) * strength * rng.uniform(-1, 1, 3) / np.sqrt(3))
        zoom = 1 + 0.1 * strength * rng.uniform(-1, 1)
        for name in ("cam_pos", "cam_pos0", "cam_poscom0"):
            getattr(model, name)[at] = base[name][at] + shift
        # About the camera's own axes, so that its scene stays in view.
        mujoco.mju_mulQuat(model.cam_quat[at], base["cam_quat"][at], turn)
        model.cam_mat0[at] = (base["cam_mat0"][at].reshape(3, 3) @ matrix).ravel()
        model.cam_fovy[at] = base["cam_fovy"][at] * zoom

    def _light(self, model: Any, strength: float, rng: np.random.Generator) -> None:
        headlight = model.vis.headlight
        for name, base in self._headlight.items():
            getattr(headlight, name)[:] = base * 2 ** (strength * rng.uniform(-1, 1, 3))
        for light, base in enumerate(self._base["light_diffuse"]):
            model.light_diffuse[light] = base * 2 ** (strength * rng.uniform(-1, 1, 3))
            _, turn = _rotation(np.deg2rad(40) * strength * rng.uniform(-1, 1, 3) / np.sqrt(3))
            for name in ("light_dir", "light_dir0"):
                getattr(model, name)[light] = turn @ self._base[name][light]

    def _mass(self, model: Any, strength: float, rng: np.random.Generator) -> None:
        import mujoco

        scale = 2 ** (strength * rng.uniform(-1, 1, len(self._base["body_mass"])))
        # Derived on a copy that no episode has touched, or it would depend on where the last one
        # left its targets.
        pristine = copy.copy(self._pristine)
        pristine.body_mass[:] = self._base["body_mass"] * scale
        pristine.body_inertia[:] = self._base["body_inertia"] * scale[:, None]
        mujoco.mj_setConst(pristine, mujoco.MjData(pristine))
        for name in _FIELDS["mass"]:
            getattr(model, name)[:] = getattr(pristine, name)
        model.stat.meaninertia = pristine.stat.meaninertia

    def draw_over(self, picture: np.ndarray, word: int, time: float) -> np.ndarray:
        """Put the distractors of seed `word` at `time`, seconds, over a picture uint8 (3, size,
        size), in place."""
        strength = self.strength.get("distractors")
        if strength is None:
            return picture
        rng, size = self._draws("distractors", word), picture.shape[-1]
        # sides of the picture, per second
        start, velocity = (rng.uniform(0, 1, (6, 2)), rng.uniform(-0.5, 0.5, (6, 2)))
        radius, colour = rng.uniform(0.02, 0.06, 6), rng.uniform(0, 255, (6, 3))
        path = (start + velocity * time) % 2
        centre = np.where(path > 1, 2 - path, path)
        pixel = (np.arange(size) + 0.5) / size
        for i in range(round(6 * strength)):
            distance = np.hypot(pixel[None, :] - centre[i, 0], pixel[:, None] - centre[i, 1])
            cover = np.clip((radius[i] - distance) * size + 0.5, 0, 1)  # an edge one pixel wide
            picture[:] = np.rint((1 - cover) * picture + cover * colour[i][:, None, None])
        return picture


def _strengths(factors: Mapping[str, bool | float] | Iterable[str]) -> dict[str, float]:
    """Factors that are on, in a fixed order."""
    given = dict(factors) if isinstance(factors, Mapping) else dict.fromkeys(factors, True)
    for name, value in given.items():
        if name not in FACTORS:
            near = get_close_matches(str(name), FACTORS, n=1) or FACTORS
            raise ValueError(
                f"there is no variation {name!r}; the nearest is {', '.join(near)}, of "
                f"{', '.join(FACTORS)}."
            )
        if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
            raise ValueError(
                f"variation {name} must be true, false or a strength from 0 to 1, got {value!r}."
            )
    return {name: float(given[name]) for name in FACTORS if given.get(name)}


def _rotation(vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A rotation vector (3,), rad -> the unit quaternion (4,) and the matrix (3, 3)."""
    import mujoco

    quaternion, matrix, angle = np.empty(4), np.empty(9), np.linalg.norm(vector)
    axis = vector / angle if angle > 0 else np.array([1.0, 0, 0])
    mujoco.mju_axisAngle2Quat(quaternion, axis, angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return quaternion, matrix.reshape(3, 3)
