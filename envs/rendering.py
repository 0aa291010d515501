"""Headless MuJoCo pictures: which OpenGL to use, a fast renderer that asks it for no more than
small images need, and a faithful one that draws what dm_control draws."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from functools import cache
from importlib import import_module

import numpy as np

_BACKENDS = ("egl", "osmesa")
_INSTALL = (
    "install EGL or OSMesa (Debian and Ubuntu: apt install libegl1 libgl1-mesa-dri, or libosmesa6)"
)
LOCK = threading.RLock()  # simulators read their OpenGL from environment variables, on import
_OFF = ("disable", "disabled", "off", "false", "0")


def choose_backend() -> str:
    """Name the OpenGL backend in MUJOCO_GL (EGL, then OSMesa) and return it. Call before dm_control
    is imported.

    A MUJOCO_GL that the user set is tried, and nothing else.

    Raises:
        RuntimeError: when neither library works on this machine, or MUJOCO_GL forbids both or names
            what does not work."""
    with LOCK:
        return _chosen()


def _chosen() -> str:
    # OpenGL without a graphics card: its threads cost small pictures more than they bring (64x64:
    # half of the time), and worker processes share the cores. At 480x480 they would save a third.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen in _OFF:
        raise RuntimeError(
            f"MUJOCO_GL={chosen} leaves no OpenGL to draw with: unset it and {_INSTALL}; "
            f"obs='state' needs neither."
        )
    # mujoco itself picks an OpenGL on import and fails where that one is missing; it is not needed,
    # each backend is a module.
    _import_without_opengl("mujoco")
    if chosen:
        if _works(chosen):
            return chosen
        raise RuntimeError(
            f"MUJOCO_GL={chosen} does not work here: unset it or {_INSTALL}; obs='state' needs "
            f"neither."
        )
    for name in _BACKENDS:
        if _works(name):
            os.environ["MUJOCO_GL"] = name
            return name
    raise RuntimeError(
        f"no headless OpenGL was found, so pixel observations cannot be drawn: {_INSTALL}; "
        f"obs='state' needs none."
    )


def prepare_backend(draws: bool, simulator: str = "mujoco") -> None:
    """`choose_backend`, where a machine without OpenGL is an error only if something is to be
    drawn.

    Simulators try OpenGL on import, and such a machine must still serve state vectors: there,
    `simulator`, a module, is imported without any."""
    with LOCK:
        try:
            choose_backend()
        except RuntimeError:
            if draws:
                raise
            _import_without_opengl(simulator)


def _import_without_opengl(module: str) -> None:
    if module in sys.modules:
        return
    with _environment(MUJOCO_GL="disable"):
        import_module(module)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Environment variables set for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@cache
def _works(backend: str) -> bool:
    """Whether PyOpenGL can load this platform and make a context on it that MuJoCo can draw in."""
    if backend not in (*_BACKENDS, "glfw"):
        return False
    previous = os.environ.get("PYOPENGL_PLATFORM")
    if backend in _BACKENDS:
        os.environ["PYOPENGL_PLATFORM"] = backend
    try:
        context = import_module(f"mujoco.{backend}").GLContext(16, 16)
        context.make_current()
        if backend == "glfw":  # without a display it makes a context that is none, and says nothing
            mujoco = import_module("mujoco")
            model = mujoco.MjModel.from_xml_string("<mujoco/>")
            mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50).free()
        context.free()
    # Loaders raise ImportError, AttributeError, RuntimeError or OpenGL's own: all mean "not here".
    except Exception:
        os.environ.pop("PYOPENGL_PLATFORM", None)
        if previous is not None:
            os.environ["PYOPENGL_PLATFORM"] = previous
        for name in list(sys.modules):
            if name == "OpenGL" or name.startswith(("OpenGL.", f"mujoco.{backend}")):
                del sys.modules[name]  # PyOpenGL keeps the platform of its first import
        return False
    return True


class FastRenderer:
    """Square pictures without shadows, reflections, skybox and multisampling.

    `FaithfulRenderer`, with those four, takes 9 to 27 times as long at 64x64. The OpenGL context is
    made at the first picture, so an environment can be sent to another process before. It takes a
    fifth of a second, so copies of an environment share one renderer; it is freed with the last of
    them, or at the interpreter's exit.

    Args:
        size: side of the picture, pixels.
        camera: id of a fixed camera, or -1 for the free one."""

    def __init__(self, size: int, camera: int):
        self.size, self.camera_id = size, camera
        self._gl = None
        self._terrain = np.empty(0)  # what was last sent to OpenGL

    def _open(self, model) -> None:
        backend = choose_backend()
        import mujoco

        quality, screen = model.vis.quality, model.vis.global_
        # Read when the context is made: no multisample buffer, no shadow map, a buffer just as
        # large as the picture.
        quality.offsamples, quality.shadowsize = 0, 0
        screen.offwidth, screen.offheight = self.size, self.size
        # Not mujoco.GLContext: that one was fixed when mujoco was first imported, perhaps before
        # the choice.
        self._gl = import_module(f"mujoco.{backend}").GLContext(self.size, self.size)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=max(1000, 2 * model.ngeom))
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "FOG", "HAZE"):
            self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self._option, self._perturb = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        if self.camera_id >= 0:
            self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            self._camera.fixedcamid = self.camera_id
        else:
            mujoco.mjv_defaultFreeCamera(model, self._camera)
        self._rectangle = mujoco.MjrRect(0, 0, self.size, self.size)
        self._pixels = np.empty((self.size, self.size, 3), np.uint8)
        _free_with(self, self._gl, self._context)

    def picture(self, model, data) -> np.ndarray:
        """The scene of a `mujoco.MjModel` and its `mujoco.MjData` -> fresh uint8 (3, size, size).

        All calls must come with one model or copies of it: meshes and textures are the first's."""
        import mujoco

        if self._gl is None:
            self._open(model)
        self._gl.make_current()
        # Redrawn at resets, and by copies that share this renderer; the graphics card has a copy of
        # its own.
        if not np.array_equal(model.hfield_data, self._terrain):
            for terrain in range(model.nhfield):
                mujoco.mjr_uploadHField(model, self._context, terrain)
            self._terrain = np.array(model.hfield_data)
        everything, seen = mujoco.mjtCatBit.mjCAT_ALL, (self._option, self._perturb, self._camera)
        mujoco.mjv_updateScene(model, data, *seen, everything, self._scene)
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._context)
        # OpenGL's first row is the lowest
        return np.ascontiguousarray(self._pixels[::-1].transpose(2, 0, 1))


class FaithfulRenderer:
    """dm_control's own picture, equal to `physics.render` in every bit: shadows, reflections,
    skybox, multisampling. Arguments and OpenGL's life are those of `FastRenderer`."""

    def __init__(self, size: int, camera: int):
        self.size, self.camera_id = size, camera
        self._contexts = None
        self._terrain = np.empty(0)

    def picture(self, physics) -> np.ndarray:
        """The scene of a `dm_control.mujoco.Physics`, one or copies of it, as `FastRenderer`."""
        choose_backend()
        import mujoco

        # read when the context is made, which is at the first `physics.contexts`
        screen = physics.model.vis.global_
        screen.offwidth = max(screen.offwidth, self.size)
        screen.offheight = max(screen.offheight, self.size)
        # dm_control opens one context per physics, and it may be shut off by NoContexts; ours is
        # lent for the picture.
        before, physics._contexts = physics._contexts, self._contexts
        try:
            contexts = physics.contexts
            if self._contexts is None:
                self._contexts = contexts
                _free_with(self, contexts.gl, contexts.mujoco)
            with contexts.gl.make_current() as thread:
                # dm_control remembers which of its contexts is current, and does not know of those
                # of FastRenderer.
                thread.call(contexts.gl._platform_make_current)
                terrain = physics.model.hfield_data
                if not np.array_equal(terrain, self._terrain):
                    for i in range(physics.model.nhfield):
                        model, context = physics.model.ptr, contexts.mujoco.ptr
                        thread.call(mujoco.mjr_uploadHField, model, context, i)
                    self._terrain = np.array(terrain)
            pixels = physics.render(self.size, self.size, camera_id=self.camera_id)
        finally:
            physics._contexts = before
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class NoContexts:
    """In the place of a physics' OpenGL contexts: what is sent to them goes nowhere, and none is
    ever opened.

    A task that redraws its terrain sends it to OpenGL at every reset, also where nothing is drawn;
    renderers here read the terrain from the model themselves."""

    ptr = None
    gl = mujoco = property(lambda self: self)

    @contextlib.contextmanager
    def make_current(self):
        """A thread's stand-in, whose `call` does nothing."""
        yield self

    def call(self, *_: object) -> None:
        """Nothing."""

    def free(self) -> None:
        """Nothing."""


_finalizers: set[weakref.finalize] = set()  # of the OpenGL contexts that are open


def _free_with(renderer: object, gl, context) -> None:
    """Free an OpenGL context with its renderer, or at the interpreter's exit before the OpenGL
    library goes down.

    The exit has its own entry: a finalizer's turn there is that of the first finalizer of all,
    which torch makes on import."""
    if not _finalizers:
        atexit.register(_free_all)
    _finalizers.difference_update([finalizer for finalizer in _finalizers if not finalizer.alive])
    _finalizers.add(weakref.finalize(renderer, _free, gl, context))


def _free_all() -> None:
    for finalizer in _finalizers:
        finalizer()


def _free(gl, context) -> None:
    # a driver that is going down may refuse; there is nothing left to save
    with contextlib.suppress(Exception):
        current = gl.make_current()
        if current is not None:
            # dm_control's, which does not know of FastRenderer's contexts: it would delete what has
            # these numbers in one of them.
            with current as thread:
                thread.call(gl._platform_make_current)
        context.free()
        gl.free()
