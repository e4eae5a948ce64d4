"""The one OpenGL context of a process and the MuJoCo render contexts that live in it."""

from __future__ import annotations

import copy
import os
import zlib
from functools import cache

import mujoco
import numpy as np

from .camera import Quality
from .gl_backend import select_gl_backend
from .mesh_decimation import with_decimated_meshes

# Scenes of a robot and a few objects have about 70 geoms: with room for richer ones.
_MAX_GEOMS = 2000

# Fewer triangles for balls, cylinders and capsules than MuJoCo's 28 and 16: still as round as small pictures can show.
_SLICES, _STACKS = 20, 10

# Of a model's attributes, all arrays of meshes, textures, height fields, skins and flexes
_UPLOADED_ARRAYS = tuple(
    name
    for name in dir(mujoco.MjModel)
    if name.startswith(("mesh_", "tex_", "hfield_", "skin_", "flex_")) and isinstance(getattr(mujoco.MjModel, name), property)
)


class RenderContext:
    """
    What MuJoCo has uploaded to OpenGL for one model (meshes, textures, off-screen buffer), and a scene to draw.

    :param gl: The process's OpenGL context
    :param model: The model to upload
    :param quality: See :class:`SceneRenderer`
    :raises ImportError: If the quality is ``"fast"`` and fast-simplification is not installed
    """

    def __init__(self, gl: SharedGLContext, model: mujoco.MjModel, quality: Quality) -> None:
        self._gl = gl
        uploaded = _model_to_upload(model, quality)
        gl.make_current()
        self.mjr = mujoco.MjrContext(uploaded, mujoco.mjtFontScale.mjFONTSCALE_100)
        self.scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)

    def make_current(self, height: int, width: int) -> None:
        """
        Direct OpenGL at this context's off-screen buffer, grown to hold a picture.

        :param height: Height of the picture in pixels
        :param width: Width of the picture in pixels
        """
        self._gl.make_current()
        if height > self.mjr.offHeight or width > self.mjr.offWidth:
            mujoco.mjr_resizeOffscreen(max(width, self.mjr.offWidth), max(height, self.mjr.offHeight), self.mjr)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.mjr)


class SharedGLContext:
    """
    The OpenGL context that all renderers of a process share, never freed: freeing one OSMesa context silently corrupts
    the pictures of every other. MuJoCo's uploads are shared between models with the same meshes and textures: a process
    holds one per scene and quality, however many environments it has.
    """

    def __init__(self) -> None:
        self._context = _create_gl_context(select_gl_backend())
        self._render_contexts: dict[tuple[int, Quality], RenderContext] = {}

    def make_current(self) -> None:
        """Make this the thread's OpenGL context: other libraries in the process may have contexts of their own."""
        self._context.make_current()

    def render_context(self, model: mujoco.MjModel, quality: Quality) -> RenderContext:
        """
        The render context for a model, created on first use.

        :param model: The model to draw
        :param quality: See :class:`SceneRenderer`
        :return: The context of this model or of one with the same meshes and textures
        """
        key = _fingerprint(model), quality
        if key not in self._render_contexts:
            self._render_contexts[key] = RenderContext(self, model, quality)
        return self._render_contexts[key]


def shared_gl_context() -> SharedGLContext:
    """
    The OpenGL context of this process, created on first use.

    :return: The context
    :raises RuntimeError: If no OpenGL library is installed
    """
    return _context_of(os.getpid())


# By process: a forked child must not draw with its parent's context.
@cache
def _context_of(pid: int) -> SharedGLContext:
    return SharedGLContext()


def _model_to_upload(model: mujoco.MjModel, quality: Quality) -> mujoco.MjModel:
    """What OpenGL gets of a model; the model itself, which belongs to the simulation, stays as it is."""
    if quality == "full":
        return model
    uploaded = with_decimated_meshes(model) if quality == "fast" else copy.copy(model)
    vis = uploaded.vis.quality
    vis.offsamples, vis.shadowsize = 0, 0  # neither multisampling nor shadow maps
    if quality == "fast":
        vis.numslices, vis.numstacks, vis.numquads = _SLICES, _STACKS, 1
        # A plane's third size is the spacing of its grid: 0.1 makes 3,500 triangles of a usual floor.
        planes = uploaded.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
        uploaded.geom_size[planes, 2] = uploaded.geom_size[planes, :2].max(axis=1) / 2
    return uploaded


def _create_gl_context(backend: str):  # type: ignore[no-untyped-def]  # MuJoCo's context classes share no base class
    if backend == "egl":
        from mujoco.egl import GLContext
    elif backend == "osmesa":
        # One thread a process: Mesa's default of one more for each core makes small pictures slower, and worker processes
        # share the cores already. Read when the context is made.
        os.environ.setdefault("LP_NUM_THREADS", "0")
        from mujoco.osmesa import GLContext
    else:
        from mujoco.gl_context import GLContext
    # The size is that of the window MuJoCo never draws to: pictures go to off-screen buffers.
    return GLContext(64, 64)


def _fingerprint(model: mujoco.MjModel) -> int:
    """A checksum of everything that MuJoCo uploads to OpenGL, and of what a scene has room for."""
    planes = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    uploaded = [model.geom_size[planes], model.mat_texid, model.mat_texrepeat, np.array(model.stat.extent)]
    uploaded += [getattr(model, name) for name in _UPLOADED_ARRAYS]
    for settings in (model.vis.quality, model.vis.map):
        numbers = (getattr(settings, name) for name in dir(settings) if not name.startswith("_"))
        uploaded.append(np.array([number for number in numbers if isinstance(number, (int, float))]))
    checksum = 0
    for array in uploaded:
        checksum = zlib.crc32(str(array.shape).encode() + array.tobytes(), checksum)
    return checksum
