import numpy as np
import torch as th

from sb3_vla.common.device_transfer import observations_to_device, to_device


def test_on_the_cpu_nothing_is_copied():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    tensor = to_device(array, "cpu")
    array[0, 0] = 7
    assert tensor.dtype == th.uint8 and tensor.tolist() == [[7, 1, 2], [3, 4, 5]]


def test_elsewhere_it_is_there():
    assert to_device(np.zeros(3, np.float32), "meta").device.type == "meta"


def test_what_is_read_on_the_cpu_stays_there():
    observations = {"image": np.zeros((2, 3), np.uint8), "instruction": np.zeros((2, 4), np.uint8)}
    tensors = observations_to_device(observations, "meta", ("instruction",))
    assert {key: tensor.device.type for key, tensor in tensors.items()} == {"image": "meta", "instruction": "cpu"}
    assert observations_to_device(observations, "meta")["instruction"].device.type == "meta"
