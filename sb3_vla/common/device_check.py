"""Whether PyTorch can compute on a device."""

from typing import Any

import torch as th


def check_device(device: Any) -> None:
    """
    :param device: Where a model is to learn or act, ``"auto"`` for what there is
    :raises TypeError: If it names no device
    :raises ValueError: If PyTorch does not know it, or can't compute there on this machine; SB3 would take the CPU instead
    """
    if not isinstance(device, str | int | th.device) or isinstance(device, bool):
        raise TypeError(f"device must be a name such as 'auto', 'cpu' or 'cuda', or a torch.device, got {device!r:.200}")
    try:
        wanted = th.device("cpu" if device == "auto" else device)
        if wanted.type == "cuda":  # asked without opening it: of several processes each has one of its own later
            is_there = th.cuda.is_available() and (wanted.index or 0) < th.cuda.device_count()
            why = f"torch.cuda finds {th.cuda.device_count()} GPUs"
        else:
            th.zeros(1, device=wanted).item()
            is_there, why = True, ""
    except (AssertionError, RuntimeError) as error:
        is_there, why = False, str(error).splitlines()[0]
    if not is_there:
        raise ValueError(
            f"device is {str(device)!r}, but PyTorch can't compute there on this machine ({why}): give 'auto', 'cpu', or a "
            "GPU that torch.cuda.is_available() finds"
        )
