"""A causal start from a network that looks ahead.

The three taps of a block read a frame before its own, its own, and one after it; those
of a causal block, two before and its own. Taken over as they are, every tap would read
something else than it has learned to, and the more blocks there are, the later. So the
tap that reads ahead is left out, and the others go where they read what they did: the
network starts as the trained one that cannot hear what comes.
"""

import torch

from speechbrain_peer.nnet.tcn import ConvBlock


def look_back(weights, trained, modules):
    """Makes weights of blocks that look ahead fit causal ones.

    Arguments
    ---------
    weights : dict
        The trained weights by name; changed.
    trained : torch.nn.Module
        What they are of.
    modules : torch.nn.Module
        The training's.

    Returns
    -------
    bool
        Whether there are such blocks.

    Example
    -------
    >>> block, causal = (ConvBlock(2, 1, 2, 1, causal=x) for x in (False, True))
    >>> weights = {"depth_weight": torch.tensor([[1.0], [2.0], [3.0]])}
    >>> look_back(weights, block, causal), weights["depth_weight"].flatten()
    (True, tensor([0., 1., 2.]))
    """
    theirs = dict(trained.named_modules())
    found = [
        f"{name}.depth_weight".lstrip(".")
        for name, block in modules.named_modules()
        if _is_causal(block) and _is_causal(theirs.get(name)) is False
    ]
    for name in found:
        before, own, _ = weights[name]
        weights[name] = torch.stack((torch.zeros_like(own), before, own))
    return bool(found)


def looking_ahead(modules):
    """Marks stages as those of a network that looks ahead; they get its weights.

    Arguments
    ---------
    modules : torch.nn.Module
        May be causal; changed, and for `look_back` only.

    Returns
    -------
    torch.nn.Module
        The same.
    """
    for module in modules.modules():
        if hasattr(module, "causal"):
            module.causal = False
    return modules


def _is_causal(block):
    """None where it is no such block."""
    return block.causal if isinstance(block, ConvBlock) else None
