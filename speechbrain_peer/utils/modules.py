"""What is done to modules, whatever they compute."""

import hashlib
from contextlib import contextmanager

import torch
from torch.nn.parallel import DistributedDataParallel


def unwrapped(module):
    """The module inside of DDP, data-parallel and compiled ones."""
    if isinstance(module, (DistributedDataParallel, torch.nn.DataParallel)):
        return unwrapped(module.module)
    return getattr(module, "_orig_mod", module)


def mark_of(modules, sample_rate):
    """A mark of networks and the rate they hear at: other weights have another.

    Arguments
    ---------
    modules : Mapping
        Of modules, in an order.
    sample_rate : int
        In Hz.

    Returns
    -------
    str
        64 hexadecimal digits.

    Example
    -------
    >>> layer = torch.nn.Linear(2, 2)
    >>> mark = mark_of({"layer": layer}, 8000)
    >>> len(mark), mark == mark_of({"layer": layer}, 16000)
    (64, False)
    """
    mark = hashlib.sha256(str(sample_rate).encode())
    for stage, module in modules.items():
        for name, weight in sorted(module.state_dict().items()):
            mark.update(f"{stage}.{name}{tuple(weight.shape)}".encode())
            mark.update(weight.detach().cpu().float().numpy().tobytes())
    return mark.hexdigest()


@contextmanager
def evaluating(modules):
    """Modules as they compute at evaluation, in the middle of a training step.

    Arguments
    ---------
    modules : Mapping
        Of modules, wrapped or not.

    Yields
    ------
    dict
        The modules, unwrapped: processes need not all compute with them. Nothing that
        they compute has a gradient. Afterwards they are in training or not, as before.

    Example
    -------
    >>> layer = torch.nn.BatchNorm1d(1)
    >>> with evaluating({"layer": layer}) as modules:
    ...     modules["layer"](torch.ones(1, 1)).requires_grad, modules["layer"].training
    (False, False)
    >>> layer.training
    True
    """
    modules = {name: unwrapped(module) for name, module in modules.items()}
    in_training = {name: module.training for name, module in modules.items()}
    try:
        for module in modules.values():
            module.eval()
        with torch.no_grad():
            yield modules
    finally:
        for name, module in modules.items():
            module.train(in_training[name])
