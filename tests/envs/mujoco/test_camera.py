import pytest

from sb3_vla_envs import Camera
from sb3_vla_envs.mujoco.camera import as_cameras


def test_every_description_of_a_camera():
    given = [Camera("a", 10, 20, fovy=30.0), "b", {"name": "c", "height": 5}]
    assert as_cameras(given) == (Camera("a", 10, 20, 30.0), Camera("b", 96, 96, None), Camera("c", 5, 96, None))


@pytest.mark.parametrize(
    ("cameras", "error", "message"),
    [
        ("corner4", TypeError, "put it in a list"),
        ([3], TypeError, "got 3"),
        ([{"name": "a", "size": 3}], TypeError, "size"),
        ([], ValueError, "At least one camera"),
        (["a", Camera("a", 5, 5)], ValueError, r"each only once, got \['a', 'a'\]"),
        ([{"name": "a", "height": 0}], ValueError, "Camera 'a': height must be at least 1, got 0"),
        ([{"name": "a", "fovy": 180}], ValueError, r"Camera 'a': fovy \(degrees\) must be below 180, got 180"),
    ],
)
def test_bad_descriptions(cameras, error, message):
    with pytest.raises(error, match=message):
        as_cameras(cameras)
