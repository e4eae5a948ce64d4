"""A few letters that tell weights apart."""

import hashlib
from collections.abc import Iterable

import torch as th

_N_FIRST = 16


def fingerprint(tensors: Iterable[tuple[str, th.Tensor]]) -> str:
    """
    :param tensors: Tensors and their names, in an order of their own
    :return: Letters that differ for other names, shapes or values: of the first ones of each tensor, as all of a large model's
        would take half a minute
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        # Exact in bfloat16 whatever a checkpoint's precision is
        digest.update(tensor.flatten()[:_N_FIRST].to("cpu", th.bfloat16).view(th.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
