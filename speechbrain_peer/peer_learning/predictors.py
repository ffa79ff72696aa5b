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
"""

import copy

import torch
from torch import nn

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

    Example
    -------
    >>> Predictor(8, 32)(torch.rand(2, 50, 8)).shape
    torch.Size([2, 50, 32])
    """

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.linear = Linear(in_channels, out_channels)

    def forward(self, representation):
        """(batch, frames, in_channels) to (batch, frames, out_channels)."""
        return self.linear(representation)


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
    own, lent = second.weight.double().chunk(2, dim=1)
    r_map = (own + lent) @ p_map
    r_bias = (own + lent) @ p_bias + second.bias.double()
    e_map = combine.weight.double() @ r_map
    e_bias = combine.weight.double() @ r_bias + combine.bias.double()

    lent_map = combine.weight.double() @ lent @ p_map

    folded = Combination(first.in_features, first.in_features, lends=True)
    folded.weight = nn.Parameter((e_map + torch.eye(len(e_map)).to(e_map)).float())
    folded.bias = nn.Parameter(e_bias.float())
    folded.lent.weight = nn.Parameter(lent_map.float())
    mask_head = copy.deepcopy(modules["mask_head"])
    mask_head.combine = folded
    stages = {name: stage for name, stage in modules.items() if name not in PREDICTORS}
    return stages | {"mask_head": mask_head}
