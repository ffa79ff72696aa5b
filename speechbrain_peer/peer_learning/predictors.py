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
from speechbrain_peer.nnet.mask import Combination
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

    Raises
    ------
    ValueError
        If the kernel has no middle.

    Example
    -------
    >>> Predictor(8, 32)(torch.rand(2, 50, 8)).shape
    torch.Size([2, 50, 32])
    """

    def __init__(self, in_channels, out_channels, kernel_size=1):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size}: give an odd number of frames")
        self.kernel_size = kernel_size
        self.linear = Linear(kernel_size * in_channels, out_channels)

    def forward(self, representation):
        """(batch, frames, in_channels) to (batch, frames, out_channels)."""
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
        and isinstance(getattr(modules["mask_head"], "combine", None), Combination)
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
    # In double precision, so that the folded model is as exact as the unfolded one.
    p_map, p_bias = first.weight.double(), first.bias.double()
    # A matrix for every frame that predictor2 sees: (outputs, frames, inputs).
    kernel_size = modules["predictor2"].kernel_size
    seen = second.weight.double().unflatten(1, (kernel_size, -1))
    own, lent = seen.chunk(2, dim=2)
    c_map = combine.weight.double()
    both = own + lent
    r_bias = both.sum(1) @ p_bias + second.bias.double()
    e_map, lent_map = (c_map @ x.transpose(0, 1) @ p_map for x in (both, lent))
    e_map[kernel_size // 2] += torch.eye(e_map.shape[-1]).to(e_map)

    folded = Combination(
        first.in_features, first.in_features, lends=True, kernel_size=kernel_size
    )
    folded.weight = nn.Parameter(e_map.transpose(0, 1).flatten(1).float())
    folded.bias = nn.Parameter((c_map @ r_bias + combine.bias.double()).float())
    folded.lent.weight = nn.Parameter(lent_map.transpose(0, 1).flatten(1).float())
    mask_head = copy.deepcopy(modules["mask_head"])
    mask_head.combine = folded
    stages = {name: stage for name, stage in modules.items() if name not in PREDICTORS}
    return stages | {"mask_head": mask_head}
