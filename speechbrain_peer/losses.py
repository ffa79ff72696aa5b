"""The training loss: negative SI-SNR of the estimates and of both predictions."""

from typing import NamedTuple

import torch

from speechbrain_peer.signal import si_snr


class PeerSiSnr(NamedTuple):
    """SI-SNR in dB of all branches, (peers, batch)."""

    mask: torch.Tensor
    predictor: torch.Tensor | None = None
    refined: torch.Tensor | None = None


class PeerLoss:
    """Negative SI-SNR of the estimates, and weighted of decoder(p) and decoder(r).

    The paper names only negative SI-SNR; the terms for p and r, which make the
    predictors representations that the decoder understands, are our reading.

    Arguments
    ---------
    scale_weights : list of float
        Weight of each of the decoder's scales, the estimate first.
    predictor_weight : float
        Of decoder(p).
    refined_weight : float
        Of decoder(r).

    Example
    -------
    >>> from speechbrain_peer.peer_learning import Outputs
    >>> targets = torch.randn(4, 8000)
    >>> estimates = targets.repeat(2, 1) + 0.1 * torch.randn(8, 8000)
    >>> loss, si_snrs = PeerLoss()(Outputs(estimates[:, None]), targets)
    >>> si_snrs.mask.shape
    torch.Size([2, 4])
    """

    def __init__(self, scale_weights=(1.0,), predictor_weight=1.0, refined_weight=1.0):
        self.scale_weights = scale_weights
        self.predictor_weight = predictor_weight
        self.refined_weight = refined_weight

    def __call__(self, outputs, targets, lens=None):
        """Computes the loss.

        Arguments
        ---------
        outputs : speechbrain_peer.peer_learning.Outputs
            Waveforms (peers * batch, scales, time).
        targets : torch.Tensor
            (batch, time).
        lens : torch.Tensor or None
            Relative lengths (batch,).

        Returns
        -------
        loss : torch.Tensor
            Mean over peers and items.
        si_snrs : PeerSiSnr
            Without gradient, for the curves.
        """

        def score(waveforms):
            peers = waveforms.unflatten(0, (-1, len(targets)))
            return si_snr(peers.movedim(2, 0), targets, lens)

        scales = score(outputs.estimate)  # (scales, peers, batch)
        loss = -sum(
            weight * scale.mean()
            for weight, scale in zip(self.scale_weights, scales, strict=True)
        )
        if outputs.predicted is None:
            return loss, PeerSiSnr(scales[0].detach())
        predictor, refined = score(outputs.predicted)[0], score(outputs.refined)[0]
        loss = loss - self.predictor_weight * predictor.mean()
        loss = loss - self.refined_weight * refined.mean()
        return loss, PeerSiSnr(scales[0].detach(), predictor.detach(), refined.detach())
