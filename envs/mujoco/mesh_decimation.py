"""Visual meshes with fewer triangles: the robot's CAD models have 67,000, which a picture of 100 pixels cannot show."""

from __future__ import annotations

import copy
import hashlib
import os
import zipfile
from contextlib import suppress
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from ..durable_files import replacing

_INSTALL_HINT = (
    'quality="fast" needs fast-simplification: pip install fast-simplification, or ask for quality="plain", which '
    "draws the meshes as they are"
)

# Objects to handle have fewer triangles and stay as they are: each is only a few pixels, all of which a policy must see.
_LEFT_ALONE = 2000
# Share of the triangles that stay, and how readily an edge is given up (the library's default of 7 wears corners away).
_KEPT = 0.15
_AGGRESSIVENESS = 3.0
# CAD exports leave slits between patches, which grow when both sides are decimated: vertices this close become one first.
# As a fraction of the mesh's size.
_SLIT = 1e-3

Mesh = tuple[NDArray[np.float32], NDArray[np.int32]]  # vertices (n, 3), and three of them for each triangle (m, 3)


def with_decimated_meshes(model: mujoco.MjModel) -> mujoco.MjModel:
    """
    Copy a model for drawing, with its large meshes decimated.

    Only for :class:`mujoco.MjrContext`, which uploads meshes: each stays in its frame, at its place in the model's arrays,
    which is now larger than needed, so that a scene of the original model refers to it by the same number. Meshes with
    texture coordinates stay as they are.

    :param model: The model, which is left as it is
    :return: The copy
    :raises ImportError: If there is something to decimate and fast-simplification is not installed
    """
    model = copy.copy(model)
    for mesh in range(model.nmesh):
        if model.mesh_facenum[mesh] >= _LEFT_ALONE and model.mesh_texcoordadr[mesh] < 0:
            _decimate_in_place(model, mesh)
    return model


def _decimate_in_place(model: mujoco.MjModel, mesh: int) -> None:
    vertex, n_vertices = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    face, n_faces = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    normal, n_normals = model.mesh_normaladr[mesh], model.mesh_normalnum[mesh]
    original = model.mesh_vert[vertex : vertex + n_vertices], model.mesh_face[face : face + n_faces]
    vertices, faces = _decimated_once(*original)
    if len(vertices) > min(n_vertices, n_normals) or len(faces) >= n_faces:
        return
    model.mesh_vert[vertex : vertex + len(vertices)] = vertices
    model.mesh_normal[normal : normal + len(vertices)] = vertex_normals(vertices, faces)
    model.mesh_face[face : face + len(faces)] = faces
    model.mesh_facenormal[face : face + len(faces)] = faces
    model.mesh_vertnum[mesh] = model.mesh_normalnum[mesh] = len(vertices)
    model.mesh_facenum[mesh] = len(faces)
    model.mesh_graphadr[mesh] = -1  # the convex hull, never drawn, refers to the old vertices


def _decimated_once(vertices: NDArray[np.float32], faces: NDArray[np.int32]) -> Mesh:
    """:func:`decimate`, from the cache of this machine's user where it has been done before."""
    settings = f"{_KEPT} {_AGGRESSIVENESS} {_SLIT} {_import_library().__version__}"
    name = hashlib.sha256(vertices.tobytes() + faces.tobytes() + settings.encode()).hexdigest() + ".npz"
    # A user without a home; a file that is missing, cut short or of another format: decimate again.
    with suppress(RuntimeError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        # Opened here: of a file that is cut short, np.load leaves its own open
        with open(cache_directory() / name, "rb") as file, np.load(file) as cached:
            return cached["vertices"], cached["faces"]
    decimated = decimate(vertices, faces)
    with suppress(RuntimeError, OSError):  # a directory that is not ours to write: do without
        _write(cache_directory() / name, *decimated)
    return decimated


def cache_directory() -> Path:
    """
    Where decimated meshes are kept from one process to the next.

    :return: A directory of the user's cache, which may not exist yet
    :raises RuntimeError: If the user has no home
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "sb3_vla" / "meshes"


def _write(path: Path, vertices: NDArray[np.float32], faces: NDArray[np.int32]) -> None:
    # Whole or not at all: many workers start at once, and none may read what another has half written.
    with replacing(path) as file:
        np.savez(file, vertices=vertices, faces=faces)


def decimate(vertices: NDArray[np.float32], faces: NDArray[np.int32]) -> Mesh:
    """
    Leave out triangles of a mesh where its shape suffers least (quadric error metrics).

    :param vertices: Corners, shape ``(n_vertices, 3)``
    :param faces: Indices of each triangle's corners, shape ``(n_faces, 3)``
    :return: The vertices and faces that are left
    :raises ImportError: If fast-simplification is not installed
    """
    grid = np.round(vertices / (_SLIT * np.ptp(vertices, axis=0).max()))
    _, first, welded = np.unique(grid, axis=0, return_index=True, return_inverse=True)
    corners = welded.reshape(-1)[faces]
    flat = (corners == np.roll(corners, 1, axis=1)).any(axis=1)  # two corners were welded
    points, triangles = _import_library().simplify(
        vertices[first].astype(np.float64),
        corners[~flat].astype(np.int32),
        target_count=min(int(_KEPT * len(faces)), np.count_nonzero(~flat)),
        agg=_AGGRESSIVENESS,
    )
    return points.astype(np.float32), triangles.astype(np.int32)


def vertex_normals(vertices: NDArray[np.float32], faces: NDArray[np.int32]) -> NDArray[np.float32]:
    """
    Mean normal of the triangles at each vertex, weighted by area.

    Hard edges stay hard: MuJoCo draws a corner with its triangle's own normal where that differs by more than 37 degrees.

    :param vertices: Corners, shape ``(n_vertices, 3)``
    :param faces: Indices of each triangle's corners, counter-clockwise from outside, shape ``(n_faces, 3)``
    :return: Unit vectors, shape ``(n_vertices, 3)``; zero for a vertex of no triangle
    """
    first, second, third = (vertices[faces[:, corner]] for corner in range(3))
    face_normals = np.cross(second - first, third - first)  # as long as twice the area
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], face_normals)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return normals / np.maximum(length, np.finfo(np.float32).tiny)


def _import_library():  # type: ignore[no-untyped-def]  # a module
    try:
        import fast_simplification
    except ImportError as error:
        raise ImportError(_INSTALL_HINT) from error
    return fast_simplification
