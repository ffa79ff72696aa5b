"""Folds the predictors away for extraction, where they are linear maps in a row.

With one mixture p* is p. So r = P2 [p ; p] and p = P1 e are linear in e, and what the
mask head gets, e + C r, is A e + b with one D x D matrix A: the same outputs, without
the predictors' parameters and products.
"""

import copy

import torch
from torch import nn

from speechbrain_peer.nnet.mask import Combination
from speechbrain_peer.peer_learning.exchange import Predictor


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
    stages = {"predictor1", "predictor2", "mask_head"}
    return (
        stages <= set(modules.keys())
        and all(
            type(modules[name]) is Predictor and modules[name].linear is not None
            for name in ("predictor1", "predictor2")
        )
        and isinstance(getattr(modules["mask_head"], "combine", None), Combination)
    )


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
    ...     "mask_head": MaskHead(8, 32, exchange="better"),
    ... }
    >>> list(fold_predictors(modules))
    ['mask_head']
    """
    first, second = modules["predictor1"].linear, modules["predictor2"].linear
    combine = modules["mask_head"].combine
    # In double precision, so that the folded model is as exact as the unfolded one.
    p_map, p_bias = first.weight.double(), first.bias.double()
    own, lent = second.weight.double().chunk(2, dim=1)
    r_map = (own + lent) @ p_map
    r_bias = (own + lent) @ p_bias + second.bias.double()
    e_map = combine.weight.double() @ r_map
    e_bias = combine.weight.double() @ r_bias + combine.bias.double()

    folded = Combination(first.in_features, first.in_features)
    folded.weight = nn.Parameter((e_map + torch.eye(len(e_map)).to(e_map)).float())
    folded.bias = nn.Parameter(e_bias.float())
    mask_head = copy.deepcopy(modules["mask_head"])
    mask_head.combine = folded
    stages = {
        name: stage
        for name, stage in modules.items()
        if name not in ("predictor1", "predictor2")
    }
    return stages | {"mask_head": mask_head}
