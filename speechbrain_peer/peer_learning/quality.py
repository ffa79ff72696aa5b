"""How good recordings of one target are, told without the target, and what follows.

Recordings lend as far as they agree: where the estimates of two, each alone, are not
alike, they hear the talker too differently (from another corner of the room, or with a
delay that was not found), or one hears somebody else. How good each is tells what the
estimates then leave of it: the ratio of the energies of estimate and rest, an estimated
signal-to-noise ratio. By that they lend once more, and count in what is made of them,
which asks for more: the mean is for those alone whose estimates are nearly the same.
Recordings that agree and are equally good lend as in training.
"""

import torch

from speechbrain_peer.peer_learning.exchange import check_lends, estimate, represent

MARGIN = 2.0
"""By how much a recording has to be better than all others together to keep its own."""

LEND = 0.4, 0.5
"""Cosines of the estimates of two recordings between which they begin to lend."""

AVERAGE = 0.7, 0.9
"""Those between which estimates, lent already, begin to be averaged."""


def extract_by_quality(modules, mixtures, embeddings, present=None):
    """Extracts one estimate from recordings, which lend by how good they are.

    Arguments
    ---------
    modules : Mapping
        The stages of a model for peer learning; see `predictors.can_lend`.
    mixtures : torch.Tensor
        With the same target at the same time, (peers, time).
    embeddings : torch.Tensor or Frames
        The voice, of (1, ...), from `exchange.embed`.
    present : torch.Tensor or None
        How far each recording is there at a time, 0 to 1, (peers, time).

    Returns
    -------
    torch.Tensor
        What the first hears of the target, (time,), without a level; see
        `exchange.extract`.

    Raises
    ------
    ValueError
        If the model was trained without peers.
    """
    check_lends(modules)
    branches = represent(modules, mixtures, embeddings)
    # With folded predictors e stands for p, of which it is a linear map.
    own = branches.e if branches.p is None else branches.p
    present = torch.ones_like(mixtures) if present is None else present

    def estimates_by(lent):
        estimates, _ = estimate(modules, branches, lent, mixtures.shape[-1])
        return estimates[:, 0].float()

    agreement = agree(estimates_by(own), present, LEND)
    first = estimates_by(lend_by(present, own, agreement))
    weights = estimated_snr(first, mixtures)[:, None] * present
    second = estimates_by(lend_by(weights, own, agreement))
    # Amplitudes: others that are a little worse are still worth something.
    alike = agree(second, present, AVERAGE)[0]
    return mean_by(second, weights.sqrt() * alike[:, None])


def agree(estimates, present, cosines):
    """How far recordings agree, told by their estimates.

    Arguments
    ---------
    estimates : torch.Tensor
        With any level, (peers, time).
    present : torch.Tensor
        How far each recording is there at a time, 0 to 1, (peers, time).
    cosines : (float, float)
        Of estimates that do not agree at all, and of those that do.

    Returns
    -------
    torch.Tensor
        From 0 to 1, (peers, peers); 1 for each with itself.

    Example
    -------
    >>> estimates = torch.tensor([[1.0, 1.0], [2.0, 2.2], [-1.0, 1.0]])
    >>> agree(estimates, torch.ones(3, 2), LEND)
    tensor([[1., 1., 0.],
            [1., 1., 0.],
            [0., 0., 1.]])
    """
    estimates, present = estimates.double(), present.double()
    shared = (present * estimates) @ (present * estimates).T
    energy = (present * estimates.square()) @ present.T
    found = shared / (energy * energy.T).sqrt().clamp(min=1e-30)
    strange, alike = cosines
    agreement = ((found - strange) / (alike - strange)).clamp(0, 1)
    return agreement.fill_diagonal_(1).float()


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


def lend_by(weights, own, agreement):
    """Lends by weights: the mean of the others, and the own where it outweighs them.

    With equal weights it is `exchange.mean_of_others`. What is missing where two do not
    agree is the own, too.

    Arguments
    ---------
    weights : torch.Tensor
        Not negative, (peers, time).
    own : torch.Tensor
        What each has, (peers, frames, ...).
    agreement : torch.Tensor
        From 0 to 1, (peers, peers).

    Returns
    -------
    torch.Tensor
        What each is lent, (peers, frames, ...).

    Example
    -------
    >>> own, all_agree = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1), torch.ones(3, 3)
    >>> lend_by(torch.tensor([[1.0], [1.0], [0.0]]), own, all_agree).flatten()
    tensor([2.0000, 1.0000, 1.5000])
    >>> lend_by(torch.tensor([[1.0], [5.0], [0.0]]), own, all_agree).flatten()
    tensor([2.0000, 1.7500, 1.8333])
    """
    frames = torch.nn.functional.interpolate(weights[None], own.shape[1])[0].to(own)
    others = frames.sum(0) - frames
    kept = (frames - MARGIN * others).clamp(min=0)
    total = torch.where(others > 0, others + kept, 1.0)
    # Of whom, from whom, when.
    shares = frames * (agreement.to(own) - torch.eye(len(own)).to(own))[..., None]
    shares = shares / total[:, None]
    flat = own.flatten(2)
    lent = torch.einsum("bkf,kfc->bfc", shares, flat)
    lent = lent + (1 - shares.sum(1))[..., None] * flat
    return lent.view_as(own)


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
