"""The predictors, and how they are folded away for extraction.

In training predictor1 makes p of e, and predictor2 makes r of p and of what is lent, p*
(paper, section III). A backbone trained without them has neither, nor C in its mask
head.

With one mixture p* is p. So r = P2 [p ; p] and p = P1 e are linear in e, and what the
mask head gets, e + C r, is A e + b with one D x D matrix A: the same outputs, without
the predictors' parameters and products.

With several recordings p* = P1 e* is another's, and what the mask head gets is
A e + b + L (e* - e), with a second D x D matrix L. It is kept too, and does nothing for
one recording.

Where predictor2 sees some frames around, A and L have such a matrix for each of them.
"""

import copy

import torch
from torch import nn

from speechbrain_peer.nnet.around import around
from speechbrain_peer.nnet.band_split import BandLinear
from speechbrain_peer.nnet.mask import Combining
from speechbrain_peer.nnet.products import Linear

PREDICTORS = ("predictor1", "predictor2")


class Predictor(nn.Module):
    """A linear map between representations.

    Arguments
    ---------
    in_channels : int
        Channels of the representation to map.
    out_channels : int
        Channels of the decoder's input.
    kernel_size : int
        Frames that it sees, an odd number, for predictor2 alone: microphones hear a
        talker through paths that differ by more than a delay.
    bands : list of (int, int) or None
        Makes it a map for each band (see `nnet.band_split`), and the channels those of
        a bin; those of a band, if it does not map from bins.
    of_bins : bool
        Whether a map for each band maps from bins, as predictor2's do.

    Raises
    ------
    ValueError
        If the kernel has no middle.

    Example
    -------
    >>> Predictor(8, 32)(torch.rand(2, 50, 8)).shape
    torch.Size([2, 50, 32])
    >>> bands = [(5, 2), (1, 7)]
    >>> Predictor(8, 2, bands=bands)(torch.rand(2, 50, 6, 8)).shape
    torch.Size([2, 50, 17, 2])
    """

    def __init__(
        self, in_channels, out_channels, kernel_size=1, bands=None, of_bins=False
    ):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size}: give an odd number of frames")
        self.kernel_size = kernel_size
        sizes = (kernel_size * in_channels, out_channels)
        if bands is None:
            self.linear = Linear(*sizes)
        else:
            self.linear = BandLinear(bands, *sizes, of_bins, to_bins=True)

    def forward(self, representation):
        """(batch, frames, ..., in_channels) to (batch, frames, ..., out_channels)."""
        return self.linear(around(representation, self.kernel_size))


def without_predictors(modules):
    """Makes a plain backbone of a model for peer learning, in place.

    Arguments
    ---------
    modules : Mapping
        The stages.

    Returns
    -------
    dict
        The stages but the predictors; the mask head has lost C, where it had it.
    """
    if getattr(modules["mask_head"], "combine", None) is not None:
        modules["mask_head"].combine = None
    return {name: stage for name, stage in modules.items() if name not in PREDICTORS}


def can_fold(modules):
    """Whether a model has predictors that are linear, as `fold_predictors` needs.

    Arguments
    ---------
    modules : Mapping
        The stages.

    Returns
    -------
    bool
    """
    return (
        {*PREDICTORS, "mask_head"} <= set(modules.keys())
        and all(type(modules[name]) is Predictor for name in PREDICTORS)
        and modules["predictor1"].kernel_size == 1
        and isinstance(getattr(modules["mask_head"], "combine", None), Combining)
    )


def can_lend(modules):
    """Whether a model was trained for peer learning, and can use what peers lend.

    Arguments
    ---------
    modules : Mapping
        The stages, folded or not.

    Returns
    -------
    bool
    """
    combine = getattr(modules["mask_head"], "combine", None)
    return "predictor1" in modules or getattr(combine, "lent", None) is not None


def sees_around(modules):
    """Whether what a frame becomes depends on e of the frames beside it.

    Arguments
    ---------
    modules : Mapping
        The stages, folded or not.

    Returns
    -------
    bool
    """
    stages = [modules[name] for name in PREDICTORS if name in modules]
    stages.append(getattr(modules["mask_head"], "combine", None))
    return any(getattr(stage, "kernel_size", 1) > 1 for stage in stages)


@torch.no_grad()
def fold_predictors(modules):
    """Makes the stages that extract the same without predictors.

    Arguments
    ---------
    modules : Mapping
        The stages, for which `can_fold` is true.

    Returns
    -------
    dict
        The stages but the predictors, in the same order; the mask head is another.

    Example
    -------
    >>> from speechbrain_peer.nnet.mask import MaskHead
    >>> modules = {
    ...     "predictor1": Predictor(8, 32),
    ...     "predictor2": Predictor(64, 32),
    ...     "mask_head": MaskHead(8, 32, refined_size=32),
    ... }
    >>> list(fold_predictors(modules))
    ['mask_head']
    """
    first, second = (modules[name].linear for name in PREDICTORS)
    combine = modules["mask_head"].combine
    kernel_size = modules["predictor2"].kernel_size
    folded = combine.folded(kernel_size)
    stages_blocks = (first.blocks(), second.blocks(), combine.blocks())
    for into, into_lent, *blocks in zip(
        folded.blocks(), folded.lent.blocks(), *stages_blocks, strict=True
    ):
        _fold_blocks(into, into_lent, *blocks, kernel_size)
    mask_head = copy.deepcopy(modules["mask_head"])
    mask_head.combine = folded
    stages = {name: stage for name, stage in modules.items() if name not in PREDICTORS}
    return stages | {"mask_head": mask_head}


def _fold_blocks(folded, folded_lent, first, second, combine, kernel_size):
    """Fills maps of one shape; see `products.Linear.blocks`."""
    # In double precision, so that the folded model is as exact as the unfolded one.
    (p_map, p_bias), (r_map, r_bias), (c_map, c_bias) = (
        (weight.double(), bias.double()) for weight, bias in (first, second, combine)
    )
    p_map, c_map = p_map.flatten(2), c_map.flatten(2)
    # A matrix for every frame that predictor2 sees: (maps, frames, outputs, inputs).
    seen = r_map.unflatten(3, (kernel_size, -1)).permute(0, 3, 1, 2, 4)
    own, lent = (half.flatten(3) for half in seen.chunk(2, dim=4))
    both = own + lent
    r_bias = r_bias + (both.sum(1) @ p_bias[..., None])[..., 0]
    e_map, lent_map = (c_map[:, None] @ x @ p_map[:, None] for x in (both, lent))
    e_map[:, kernel_size // 2] += torch.eye(e_map.shape[-1]).to(e_map)

    weight, bias = folded
    # One place, a band or a frame, of all channels of the frames that are seen.
    weight[:, :, 0] = e_map.transpose(1, 2).flatten(2).float()
    bias.copy_(c_bias + (c_map @ r_bias[..., None])[..., 0])
    folded_lent[0][:, :, 0] = lent_map.transpose(1, 2).flatten(2).float()
