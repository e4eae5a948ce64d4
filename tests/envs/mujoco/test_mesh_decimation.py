import copy
import sys
from collections import Counter
from pathlib import Path

import mujoco
import numpy as np
import pytest

from sb3_vla_envs import Camera, SceneRenderer
from sb3_vla_envs.mujoco import mesh_decimation
from sb3_vla_envs.mujoco.mesh_decimation import cache_directory, decimate, vertex_normals, with_decimated_meshes


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def ball(n=40, stretch=1.0):
    """A unit ball of 4 * n * (n - 1) triangles, stretched along z: vertices and faces."""
    polar, azimuth = np.meshgrid(np.pi * np.arange(1, n) / n, np.pi * np.arange(2 * n) / n, indexing="ij")
    rings = np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], axis=-1)
    vertices = np.concatenate([rings.reshape(-1, 3), [[0, 0, 1], [0, 0, -1]]]) * [1, 1, stretch]
    index = np.arange((n - 1) * 2 * n).reshape(n - 1, 2 * n)
    right = np.roll(index, -1, axis=1)
    top, bottom = len(vertices) - 2, len(vertices) - 1
    faces = [
        *np.stack([index[:-1], index[1:], right[1:]], axis=-1).reshape(-1, 3),
        *np.stack([index[:-1], right[1:], right[:-1]], axis=-1).reshape(-1, 3),
        *((top, index[0, k], right[0, k]) for k in range(2 * n)),
        *((bottom, right[-1, k], index[-1, k]) for k in range(2 * n)),
    ]
    return vertices.astype(np.float32), np.array(faces, dtype=np.int32)


def volume(vertices, faces):
    """Of a closed mesh: positive if its triangles are counter-clockwise from outside."""
    return np.linalg.det(vertices[faces].astype(float)).sum() / 6


def edges(faces):
    """How many triangles have each edge."""
    return Counter(tuple(sorted((int(face[k - 1]), int(face[k])))) for face in faces for k in range(3))


def model_of(**meshes):
    """A model of meshes ``name=(vertices, faces, texture coordinates or None)``, one unit apart from each other."""

    def text(array):
        return " ".join(map(str, np.asarray(array).ravel()))

    assets, geoms = "", ""
    for place, (name, (vertices, faces, texture)) in enumerate(meshes.items()):
        coordinates = "" if texture is None else f'texcoord="{text(texture)}"'
        assets += f'<mesh name="{name}" vertex="{text(vertices)}" face="{text(faces)}" {coordinates}/>'
        geoms += f'<geom type="mesh" mesh="{name}" pos="{3 * place} 0 0"/>'
    camera = '<camera name="front" pos="3 -9 0" xyaxes="1 0 0 0 0 1" fovy="60"/>'
    return mujoco.MjModel.from_xml_string(
        f"<mujoco><asset>{assets}</asset><worldbody>{camera}<body>{geoms}<joint/></body></worldbody></mujoco>"
    )


def everything(model):
    """A model as the bytes of its file."""
    content = np.empty(mujoco.mj_sizeModel(model), dtype=np.uint8)
    mujoco.mj_saveModel(model, None, content)
    return content.tobytes()


def test_fewer_triangles_have_the_same_shape():
    vertices, faces = ball()
    few_vertices, few_faces = decimate(vertices, faces)
    assert len(few_faces) <= 0.15 * len(faces)
    np.testing.assert_allclose(np.linalg.norm(few_vertices, axis=1), 1, atol=0.02)
    assert volume(few_vertices, few_faces) == pytest.approx(4 / 3 * np.pi, rel=0.03)
    assert set(edges(few_faces).values()) == {2}  # closed


def test_slit_between_two_patches_stays_closed():
    vertices, faces = ball()
    upper = vertices[faces].mean(axis=1)[:, 2] > 0
    # Each half has vertices of its own at the seam, 0.0002 apart.
    halves = np.concatenate([vertices, vertices + np.float32([2e-4, 0, 0])])
    slit = np.where(upper[:, None], faces, faces + len(vertices))
    assert 1 in edges(slit).values()
    assert set(edges(decimate(halves, slit)[1]).values()) == {2}


def test_normals_are_means_weighted_by_area():
    # Two right triangles with a common edge along y: one in the plane z = 0 of area 1, one upright of area 3.
    vertices = np.float32([[0, 0, 0], [0, 2, 0], [-1, 0, 0], [0, 0, -3], [9, 9, 9]])
    faces = np.int32([[0, 1, 2], [0, 3, 1]])
    normals = vertex_normals(vertices, faces)
    common = np.array([3, 0, 1]) / np.sqrt(10)
    np.testing.assert_allclose(normals, [common, common, [0, 0, 1], [1, 0, 0], [0, 0, 0]], atol=1e-6)


def test_large_meshes_are_decimated_in_a_copy_and_nothing_else_is():
    vertices, faces = ball()
    model = model_of(
        small=(*ball(n=10), None),
        large=(vertices, faces, None),
        textured=(vertices, faces, vertices[:, :2]),
        last=(*ball(n=12), None),
    )
    before = everything(model)
    decimated = with_decimated_meshes(model)
    assert everything(model) == before
    small, large, textured, last = decimated.mesh_facenum
    assert (small, textured, last) == (360, len(faces), 528)
    assert large <= 0.15 * len(faces)

    def mesh_of(model, name):
        i = model.mesh(name).id
        vertices = model.mesh_vert[model.mesh_vertadr[i] :][: model.mesh_vertnum[i]]
        return vertices, model.mesh_face[model.mesh_faceadr[i] :][: model.mesh_facenum[i]]

    for name in ("small", "textured", "last"):
        for left, right in zip(mesh_of(decimated, name), mesh_of(model, name), strict=True):
            np.testing.assert_array_equal(left, right)
    assert volume(*mesh_of(decimated, "large")) == pytest.approx(volume(*mesh_of(model, "large")), rel=0.03)
    corners = mesh_of(decimated, "large")[0]
    normals = decimated.mesh_normal[decimated.mesh_normaladr[1] :][: len(corners)]
    assert ((normals * corners).sum(axis=1) > 0.95).all()  # those of a ball point away from its centre


def test_picture_is_nearly_the_same():
    model = model_of(left=(*ball(stretch=1.4), None), middle=(*ball(stretch=0.6), None), right=(*ball(n=10), None))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    fast, plain = (SceneRenderer(model, [Camera("front")], quality).render(data).astype(int) for quality in ("fast", "plain"))
    assert plain.std() > 10
    assert 0 < np.abs(fast - plain).mean() < 1


def test_mesh_is_decimated_once_and_then_read_from_the_cache(monkeypatch):
    model = model_of(large=(*ball(), None))
    first = with_decimated_meshes(model)
    (file,) = cache_directory().iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(mesh_decimation, "decimate", lambda *_: pytest.fail("decimated again"))
        assert everything(with_decimated_meshes(copy.copy(model))) == everything(first)
    with_decimated_meshes(model_of(other=(*ball(stretch=1.1), None)))
    assert len(list(cache_directory().iterdir())) == 2
    for content in (file.read_bytes()[:1000], b"no archive", b""):
        file.write_bytes(content)
        assert everything(with_decimated_meshes(model)) == everything(first)
        assert len(file.read_bytes()) > 1000  # mended


@pytest.mark.parametrize("home", [True, False])
def test_cache_that_cannot_be_written_does_no_harm(home, tmp_path, monkeypatch):
    if home:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        (tmp_path / "file").touch()
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "expanduser", lambda _: (_ for _ in ()).throw(RuntimeError("no home")))
    vertices, faces = ball()
    assert with_decimated_meshes(model_of(large=(vertices, faces, None))).mesh_facenum[0] <= 0.15 * len(faces)


def test_missing_library_names_the_extra_and_the_way_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    model = model_of(large=(*ball(stretch=1.2), None))
    with pytest.raises(ImportError, match=r"pip install fast-simplification.*quality=\"plain\""):
        SceneRenderer(model, [Camera("front")])
    SceneRenderer(model, [Camera("front")], "plain")
    SceneRenderer(model_of(small=(*ball(n=10), None)), [Camera("front")])  # nothing to decimate
