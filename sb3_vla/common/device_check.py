"""Whether PyTorch can compute on a device."""

import torch as th


def check_device(device: th.device | str) -> None:
    """
    :param device: Where a model is to learn, ``"auto"`` for what there is
    :raises ValueError: If PyTorch can't compute there on this machine; SB3 would take the CPU without a word
    """
    try:
        th.zeros(1, device="cpu" if device == "auto" else device).item()
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"device is {str(device)!r}, but PyTorch can't compute there on this machine ({str(error).splitlines()[0]}): give "
            "'auto', 'cpu', or a GPU that torch.cuda.is_available() finds"
        ) from error
