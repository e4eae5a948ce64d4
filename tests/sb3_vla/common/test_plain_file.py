import itertools

import numpy as np
import pytest
import torch as th

from sb3_vla.common.plain_file import load_plain, save_plain

VALUE = {
    "numbers": [1, 2.5, 2**100, None, True],
    "random": np.random.default_rng(0).bit_generator.state,
    "arrays": (np.arange(6, dtype=np.uint32).reshape(2, 3), np.zeros((0, 4)), np.float64(np.pi)),
    "tensors": {"half": th.tensor([1.5], dtype=th.bfloat16), "scalar": th.tensor(3)},
}


def test_values_come_back_with_their_types(tmp_path):
    save_plain(tmp_path / "file", VALUE)
    loaded = load_plain(tmp_path / "file")
    assert loaded["numbers"] == VALUE["numbers"] and loaded["random"] == VALUE["random"]
    for ours, theirs in zip(loaded["arrays"], VALUE["arrays"], strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_array_equal(ours, theirs)
    for name, tensor in VALUE["tensors"].items():
        assert loaded["tensors"][name].dtype == tensor.dtype and th.equal(loaded["tensors"][name], tensor)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_arrays_keep_their_layout_in_memory(axes, tmp_path):
    array = np.arange(24).reshape(2, 3, 4).transpose(axes)
    save_plain(tmp_path / "file", {"array": array})
    loaded = load_plain(tmp_path / "file")["array"]
    np.testing.assert_array_equal(loaded, array)
    assert loaded.strides == array.strides


def test_each_flipped_bit_and_each_length_is_noticed(tmp_path):
    path = tmp_path / "file"
    save_plain(path, {"x": np.arange(3.0), "text": "abc"})
    content = path.read_bytes()
    damaged = [content[:n] for n in range(len(content))]
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << (at % 8)
        damaged.append(bytes(changed))
    for each in damaged:
        path.write_bytes(each)
        try:
            loaded = load_plain(path)
        except ValueError as error:
            assert "file' is truncated, damaged or no file of sb3-vla" in str(error)
        else:  # a bit of the header that changes nothing
            assert loaded["text"] == "abc" and loaded["x"].tolist() == [0.0, 1.0, 2.0]


def test_what_no_file_can_hold_is_an_error_and_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        save_plain(tmp_path / "file", {"x": object()})
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_called_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_plain(tmp_path / "nothing")
