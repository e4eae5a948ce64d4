"""Augmentation of pictures."""

import torch as th


def random_shift(images: th.Tensor, max_shift: int, generator: th.Generator) -> th.Tensor:
    """
    Shift each image by its own whole number of pixels; the border is repeated.

    :param images: ``(batch, channels, height, width)`` uint8
    :param max_shift: Largest shift in pixels, to either side
    :param generator: Source of randomness (on the CPU)
    :return: Of the same shape and dtype
    """
    batch, channels, height, width = images.shape
    shifts = th.randint(-max_shift, max_shift + 1, (2, batch, 1), generator=generator).to(images.device)
    rows = (th.arange(height, device=images.device) + shifts[0]).clamp(0, height - 1)
    columns = (th.arange(width, device=images.device) + shifts[1]).clamp(0, width - 1)
    pixels = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).flatten(start_dim=1)  # (batch, height * width)
    # A flat gather is several times as fast as indexing by rows and columns
    return images.flatten(start_dim=2).gather(2, pixels.unsqueeze(1).expand(-1, channels, -1)).view_as(images)
