"""How good each recording of one target is, told without the target, and what follows.

Recordings first lend to each other as in training. What the estimates then leave of the
recordings tells: the ratio of the energies of estimate and rest is a recording's
estimated signal-to-noise ratio. By that they lend, a second time, and count in what is
made of them; those that are alike as in training.
"""

import torch

from speechbrain_peer.peer_learning.exchange import check_lends, estimate, represent

MARGIN = 2.0
"""By how much a recording has to be better than all others together to keep its own."""


def extract_by_quality(modules, mixtures, embeddings, present=None):
    """Extracts one estimate from recordings, which lend by how good they are.

    Arguments
    ---------
    modules : Mapping
        The stages of a model for peer learning; see `predictors.can_lend`.
    mixtures : torch.Tensor
        With the same target at the same time, (peers, time).
    embeddings : torch.Tensor
        (1, embedding), from `exchange.embed`.
    present : torch.Tensor or None
        How far each recording is there at a time, 0 to 1, (peers, time).

    Returns
    -------
    torch.Tensor
        (time,), without a level; see `exchange.extract`.

    Raises
    ------
    ValueError
        If the model was trained without peers.
    """
    check_lends(modules)
    branches = represent(modules, mixtures, embeddings)
    # With folded predictors e stands for p, of which it is a linear map.
    own = branches.e if branches.p is None else branches.p
    length = mixtures.shape[-1]

    def estimates_by(weights):
        estimates, _ = estimate(modules, branches, lend_by(weights, own), length)
        return estimates[:, 0].float()

    present = mixtures.new_ones(mixtures.shape) if present is None else present
    first = estimates_by(present)
    weights = estimated_snr(first, mixtures)[:, None] * present
    # Amplitudes: the best alone is not as good, where others are a little worse.
    return mean_by(estimates_by(weights), weights.sqrt())


def estimated_snr(estimates, mixtures):
    """Signal-to-noise ratios of recordings, as their estimates have them.

    Arguments
    ---------
    estimates : torch.Tensor
        With any level, (..., time).
    mixtures : torch.Tensor
        What they are extracted from, (..., time).

    Returns
    -------
    torch.Tensor
        Ratios of energies, up to a million, (...); 0 where either is silent.

    Example
    -------
    >>> talker, rest = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    >>> estimated_snr(7 * talker, talker + 0.5 * rest)
    tensor(4.)
    """
    estimates, mixtures = estimates.double(), mixtures.double()
    energy, whole = estimates.square().sum(-1), mixtures.square().sum(-1)
    shared = (estimates * mixtures).sum(-1).square()
    explained = torch.where(energy > 0, shared / energy.clamp(min=1e-30), 0.0)
    ratio = explained / (whole - explained).clamp(min=1e-6 * whole)
    return torch.where(whole > 0, ratio, 0.0).float()


def lend_by(weights, own):
    """Lends by weights: the mean of the others, and the own where it outweighs them.

    With equal weights it is `exchange.mean_of_others`.

    Arguments
    ---------
    weights : torch.Tensor
        Not negative, (peers, time).
    own : torch.Tensor
        What each has, (peers, frames, ...).

    Returns
    -------
    torch.Tensor
        What each is lent, (peers, frames, ...).

    Example
    -------
    >>> own = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    >>> lend_by(torch.tensor([[1.0], [1.0], [0.0]]), own).flatten()
    tensor([2.0000, 1.0000, 1.5000])
    >>> lend_by(torch.tensor([[1.0], [5.0], [0.0]]), own).flatten()
    tensor([2.0000, 1.7500, 1.8333])
    """
    of_frames = torch.nn.functional.interpolate(weights[None], own.shape[1])[0]
    of_frames = of_frames.reshape(own.shape[:2] + (1,) * (own.ndim - 2)).to(own)
    others = of_frames.sum(0) - of_frames
    kept = (of_frames - MARGIN * others).clamp(min=0)
    # Where nobody else is there.
    kept = torch.where(others > 0, kept, 1.0)
    lent = (of_frames * own).sum(0) - of_frames * own + kept * own
    return lent / (others + kept)


def mean_by(estimates, weights):
    """The weighted mean of estimates, each at the level of the first.

    Arguments
    ---------
    estimates : torch.Tensor
        (peers, time).
    weights : torch.Tensor
        Not negative, (peers, time).

    Returns
    -------
    torch.Tensor
        (time,), the first estimate where none has a weight.

    Example
    -------
    >>> estimates = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> mean_by(estimates, torch.ones(3, 2))
    tensor([1., 1.])
    """
    # Where it is there: a recording may begin later.
    ours, energies = (
        (weights * signals.square()).sum(-1, keepdim=True)
        for signals in (estimates[0], estimates)
    )
    heard = energies > 0
    levels = torch.where(heard, (ours / energies.clamp(min=1e-30)).sqrt(), 0.0)
    weights = weights * heard
    total = weights.sum(0)
    mean = (weights * levels * estimates).sum(0) / total.clamp(min=1e-30)
    return torch.where(total > 0, mean, estimates[0])
