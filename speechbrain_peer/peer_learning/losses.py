"""The training loss: negative SI-SNR of the estimates and of both predictions."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from speechbrain_peer.utils.signal import si_snr


class PeerSiSnr(NamedTuple):
    """SI-SNR in dB of all branches, (peers, batch)."""

    mask: torch.Tensor
    predictor: torch.Tensor | None = None
    refined: torch.Tensor | None = None


class PeerLoss:
    """Negative SI-SNR of the estimates, and weighted of decoder(p) and decoder(r).

    With a speaker classifier also its weighted cross entropy.

    The paper names only negative SI-SNR; the terms for p and r, which make the
    predictors representations that the decoder understands, are our reading.

    Arguments
    ---------
    scale_weights : list of float
        Weight of each of the decoder's scales, the estimate first; the same for
        decoder(p) and decoder(r).
    predictor_weight : float
        Weight of the loss of decoder(p).
    refined_weight : float
        Weight of the loss of decoder(r).
    speaker_weight : float
        Weight of the cross entropy of the speaker classifier's logits.

    Example
    -------
    >>> from speechbrain_peer.peer_learning.exchange import Outputs
    >>> targets = torch.randn(4, 8000)
    >>> estimates = targets.repeat(2, 1) + 0.1 * torch.randn(8, 8000)
    >>> loss, si_snrs = PeerLoss()(Outputs(estimates[:, None]), targets)
    >>> si_snrs.mask.shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        scale_weights=(1.0,),
        predictor_weight=1.0,
        refined_weight=1.0,
        speaker_weight=0.0,
    ):
        self.scale_weights = scale_weights
        self.predictor_weight = predictor_weight
        self.refined_weight = refined_weight
        self.speaker_weight = speaker_weight

    def __call__(self, outputs, targets, lens=None, speakers=None):
        """Computes the loss.

        Arguments
        ---------
        outputs : speechbrain_peer.peer_learning.exchange.Outputs
            Waveforms (peers * batch, scales, time).
        targets : torch.Tensor
            (peers, batch, time), or (batch, time), the same for all peers.
        lens : torch.Tensor or None
            Relative lengths (batch,).
        speakers : torch.Tensor or None
            Indices of the target speakers, for the classifier, (batch,).

        Returns
        -------
        loss : torch.Tensor
            Mean over peers and items.
        si_snrs : PeerSiSnr
            Without gradient, for the curves.
        """

        def score(waveforms):
            """SI-SNR of the main scale, and the weighted mean loss of all scales."""
            peers = waveforms.unflatten(0, (-1, targets.shape[-2]))
            scales = si_snr(
                peers.movedim(2, 0), targets, lens
            )  # (scales, peers, batch)
            weighted = zip(self.scale_weights, scales, strict=True)
            return scales[0].detach(), -sum(w * scale.mean() for w, scale in weighted)

        mask, loss = score(outputs.estimate)
        if outputs.speaker_logits is not None:
            logits = outputs.speaker_logits.float()
            loss = loss + self.speaker_weight * F.cross_entropy(logits, speakers)
        if outputs.predicted is None:
            return loss, PeerSiSnr(mask)
        predictor, predictor_loss = score(outputs.predicted)
        refined, refined_loss = score(outputs.refined)
        loss = loss + self.predictor_weight * predictor_loss
        loss = loss + self.refined_weight * refined_loss
        return loss, PeerSiSnr(mask, predictor, refined)
