"""Frames seen with their neighbours."""

import torch


def around(frames, kernel_size):
    """Joins every frame's channels with those of its neighbours.

    Beyond the ends, the first and the last frame stand for what is not there: a linear
    map of frames and this can swap places, with its bias.

    Arguments
    ---------
    frames : torch.Tensor
        (batch, frames, ..., channels).
    kernel_size : int
        How many frames, an odd number; 1 changes nothing.

    Returns
    -------
    torch.Tensor
        (batch, frames, ..., kernel_size * channels), the earliest frame first.

    Example
    -------
    >>> around(torch.tensor([1, 2, 3]).view(1, 3, 1), kernel_size=3).tolist()
    [[[1, 1, 2], [1, 2, 3], [2, 3, 3]]]
    """
    if kernel_size == 1:
        return frames
    reach, last = kernel_size // 2, frames.shape[1] - 1
    here = torch.arange(frames.shape[1], device=frames.device)
    shifts = range(-reach, reach + 1)
    return torch.cat([frames[:, (here + k).clamp(0, last)] for k in shifts], dim=-1)


def hold_last(frames, frame_mask):
    """Puts the last true frame in place of the padding.

    Then `around` gives a padded item what it gives it alone.

    Arguments
    ---------
    frames : torch.Tensor
        (batch, frames, ...).
    frame_mask : torch.Tensor
        1 for true frames, which come first, (batch, frames).

    Returns
    -------
    torch.Tensor
        Of the same shape.

    Example
    -------
    >>> hold_last(torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, 1.0, 0.0]]))
    tensor([[1, 2, 2]])
    """
    here = torch.arange(frames.shape[1], device=frames.device)
    last = frame_mask.sum(1).long() - 1
    index = torch.minimum(here, last[:, None])
    return frames[torch.arange(len(frames), device=frames.device)[:, None], index]
