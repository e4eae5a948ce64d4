"""From the buffers, which are NumPy arrays, to the device that learns."""

from collections.abc import Collection

import numpy as np
import torch as th


def to_device(array: np.ndarray, device: th.device | str) -> th.Tensor:
    """
    :param array: An array of the caller's own: on the CPU it is not copied
    :param device: Where the tensor shall be
    :return: The tensor; a GPU gets it out of pinned memory, so that nobody waits for the copy
    """
    tensor = th.from_numpy(array)
    if th.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def observations_to_device(
    arrays: dict[str, np.ndarray], device: th.device | str, host_keys: Collection[str] = ()
) -> dict[str, th.Tensor]:
    """
    :param arrays: A dictionary observation, arrays of the caller's own
    :param device: Where the tensors shall be
    :param host_keys: Those that stay on the CPU
    :return: The tensors
    """
    return {key: to_device(array, "cpu" if key in host_keys else device) for key, array in arrays.items()}
