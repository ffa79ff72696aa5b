"""What branches teach each other in the loss, beside what they lend.

A teacher has no gradient of it: the worse learns from the better, not the other way.
"""

import math

import torch

from speechbrain_peer.peer_learning.measure import Measure

EPS = 1e-8


def best_other(scores):
    """Finds for each branch the best of the others.

    Arguments
    ---------
    scores : torch.Tensor
        (peers, batch).

    Returns
    -------
    best : torch.Tensor
        Its score, (peers, batch); -inf where there is no other, NaN where one of them
        has none.
    who : torch.Tensor
        Its index, (peers, batch).

    Example
    -------
    >>> best, who = best_other(torch.tensor([[3.0], [5.0], [4.0]]))
    >>> best.flatten(), who.flatten()
    (tensor([5., 4., 5.]), tensor([1, 2, 1]))
    """
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    # Of whom, from whom.
    others = scores.expand(len(scores), -1, -1).masked_fill(own[..., None], -math.inf)
    best, who = others.max(1)
    return best, who


def likeness(estimates, si_snrs, threshold, measure=None, mixtures=None, lens=None):
    """How like a branch's estimate is to the best other's, where that one is good.

    Arguments
    ---------
    estimates : torch.Tensor
        (peers, batch, time).
    si_snrs : torch.Tensor
        Of the estimates against the target in dB, (peers, batch); NaN of absent
        talkers, of whom nobody can teach.
    threshold : float
        From which SI-SNR on an estimate teaches.
    measure : Measure or None
        Of the estimate with the other one as its target; by default SI-SNR.
    mixtures : torch.Tensor or None
        For the measure, (peers, batch, time).
    lens : torch.Tensor or None
        Relative lengths (batch,).

    Returns
    -------
    torch.Tensor
        In dB, (peers, batch); 0 and without gradient where the other is not that good.

    Example
    -------
    >>> estimates = torch.tensor([[[1.0, -1.0, 1.0, -1.0]], [[1.1, -0.9, 0.9, -1.1]]])
    >>> likeness(estimates, torch.tensor([[10.0], [20.0]]), 15.0).round()
    tensor([[20.],
            [ 0.]])
    """
    best, who = best_other(si_snrs)
    items = torch.arange(estimates.shape[1], device=estimates.device)
    teachers = estimates.detach()[who, items]
    found = (measure or Measure())(estimates, teachers, mixtures, lens)
    return torch.where(best >= threshold, found, 0)


@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def imitation_errors(p, q, frame_mask):
    """How far what the branches represent is from what the better one does, in fp32.

    Arguments
    ---------
    p : torch.Tensor
        Predicted representations, (peers, batch, frames, ...).
    q : torch.Tensor
        How good they are, (peers, batch); see `measure.Measure`.
    frame_mask : torch.Tensor
        1 for true frames, (peers, batch, frames).

    Returns
    -------
    torch.Tensor
        ||p - p*||^2 / ||p*||^2 over true frames with p* of the better branch, which has
        no gradient; the mean over the other branches, (batch,).

    Example
    -------
    >>> p = torch.tensor([4.0, 2.0, 1.0]).view(3, 1, 1, 1)
    >>> imitation_errors(p, torch.tensor([[5.0], [9.0], [7.0]]), torch.ones(3, 1, 1))
    tensor([0.6250])
    """
    p = p.float().flatten(3) * frame_mask[..., None]
    items = torch.arange(p.shape[1], device=p.device)
    better = p.detach()[q.argmax(0), items]
    errors = (p - better).square().sum((-2, -1))
    relative = errors / (better.square().sum((-2, -1)) + EPS)
    # That of the better one itself is zero.
    return relative.sum(0) / max(1, len(p) - 1)
