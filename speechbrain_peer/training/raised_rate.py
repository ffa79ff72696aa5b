"""A start at twice the sampling rate from a network with learned filterbanks.

Its filters are interpolated: in a signal of the higher rate they find what they found
in the lower half of its band. New ones beside them, windowed sines, take the upper
half; the network does not listen to them yet, and what they give is masked as the
others are on average, as a talker's high and low sounds come at the same times. So a
model that has been trained for long at 8 kHz extracts at 16 kHz before its first step.
"""

import math

import torch
from scipy.signal import resample_poly
from torch.nn import functional as F

ANALYSIS = "encoder.weight"
SYNTHESIS = "decoder.weight"


def raise_rate(theirs, ours, stride):
    """Makes weights of half the rate fit a training.

    Weights of other shapes than its filters explain are left as they are.

    Arguments
    ---------
    theirs : dict
        The trained weights by name, those of filterbanks (filters, kernel); changed.
    ours : mapping of str to torch.Tensor
        Those of the training: filters of twice the samples, and as many or more.
    stride : int
        Samples between the training's frames.

    Raises
    ------
    ValueError
        If there are no learned filterbanks, or not such ones.

    Example
    -------
    >>> theirs = {
    ...     "encoder.weight": torch.ones(5, 8),
    ...     "decoder.weight": torch.ones(5, 8),
    ... }
    >>> ours = {name: torch.ones(7, 16) for name in theirs}
    >>> raise_rate(theirs, ours, stride=8)
    >>> theirs["decoder.weight"].shape
    torch.Size([7, 16])
    """
    old = [theirs[name].shape for name in (ANALYSIS, SYNTHESIS) if name in theirs]
    new = [ours[name].shape for name in (ANALYSIS, SYNTHESIS) if name in ours]
    if len(old) < 2 or old[0] != old[1] or len(new) < 2 or new[0] != new[1]:
        raise ValueError(
            "only models with a learned filterbank can start at twice theirs"
        )
    (n_old, old_kernel), (n_new, kernel) = old[0], new[0]
    if kernel != 2 * old_kernel or n_new < n_old:
        raise ValueError(
            f"twice the rate takes filters of twice the samples ({2 * old_kernel}, "
            f"here {kernel}) and no fewer of them ({n_old}, here {n_new})"
        )
    upper = upper_band(n_new - n_old, kernel)
    loudness = theirs[ANALYSIS].norm(dim=1).mean()
    for name, weight in theirs.items():
        if name.endswith((ANALYSIS, SYNTHESIS)):  # the speaker encoder's, too
            filters = torch.from_numpy(resample_poly(weight.numpy(), 2, 1, axis=1))
            if name == SYNTHESIS:
                added = 2 * stride / kernel / loudness * upper
            else:  # has twice the samples to sum up
                filters, added = filters / 2, loudness * upper
            theirs[name] = torch.cat((filters, added))
        elif name in ours:
            theirs[name] = _with_more_filters(weight, ours[name].shape, n_old, n_new)


def upper_band(n_filters, kernel):
    """Windowed sines and cosines of the upper half of a band.

    With half as many as samples, and frames half a kernel apart, they synthesize what
    they analyse: the upper half of a signal's band comes out as it is.

    Arguments
    ---------
    n_filters : int
        How many.
    kernel : int
        Samples of each.

    Returns
    -------
    torch.Tensor
        (filters, kernel).
    """
    pairs = -(-n_filters // 2)
    times = torch.arange(kernel) + 0.5
    frequencies = (1 + (torch.arange(pairs) + 0.5) / max(pairs, 1)) / 4
    phases = 2 * math.pi * frequencies[:, None] * times
    waves = torch.stack((phases.cos(), phases.sin()), dim=1).flatten(0, 1)[:n_filters]
    return waves * (math.pi * times / kernel).sin() * math.sqrt(1 / max(2 * pairs, 1))


def _with_more_filters(weight, shape, n_old, n_new):
    """What there is for each filter: rows for new ones are as the others on average.

    Columns are zero, so that nothing changes for what takes filters in.
    """
    grown = [
        n_new if size == n_old != wanted else size
        for size, wanted in zip(weight.shape, shape, strict=False)
    ]
    if len(shape) != weight.dim() or tuple(grown) != tuple(shape):
        return weight
    rows = shape[0] - len(weight)
    weight = torch.cat(
        (weight, weight.mean(0, keepdim=True).expand(rows, *weight.shape[1:]))
    )
    return F.pad(weight, (0, shape[-1] - weight.shape[-1]))
