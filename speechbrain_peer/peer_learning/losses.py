"""The training loss: negative quality of the estimates and of both predictions."""

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

from speechbrain_peer.data.settings import Settings
from speechbrain_peer.peer_learning.measure import Measure
from speechbrain_peer.peer_learning.teaching import imitation_errors, likeness
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.signal import has_signal, si_snr


class PeerSiSnr(NamedTuple):
    """SI-SNR in dB of all branches, (peers, batch); NaN of absent talkers."""

    mask: torch.Tensor
    predictor: torch.Tensor | None = None
    refined: torch.Tensor | None = None


class PeerLoss:
    """The negative measure of the estimates, and weighted of decoder(p) and decoder(r).

    With a speaker classifier also its weighted cross entropy, and with a weight for it
    what branches teach each other.

    The paper names only negative SI-SNR of the estimates; the terms for p and r, which
    make the predictors representations that the decoder understands, are our reading.

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
    measure : Measure or None
        Of the quality; by default SI-SNR.
    mutual_weight : float
        Weight of selective mutual learning: the estimate of the best other branch,
        where that is good, is a further target of a branch's estimate.
    mutual_threshold : float
        From which SI-SNR on, in dB, an estimate is good.
    imitation_weight : float
        Weight of the error of p against that of the better branch; see
        `teaching.imitation_errors`.

    Raises
    ------
    DataError
        If such a weight or the threshold cannot be.

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
        measure=None,
        mutual_weight=0.0,
        mutual_threshold=15.0,
        imitation_weight=0.0,
    ):
        self.scale_weights = scale_weights
        self.predictor_weight = predictor_weight
        self.refined_weight = refined_weight
        self.speaker_weight = speaker_weight
        self.measure = measure or Measure()
        number = Settings("loss").number
        self.mutual_weight = number("mutual_weight", mutual_weight, 0, 1000)
        self.mutual_threshold = number("mutual_threshold", mutual_threshold, -100, 100)
        self.imitation_weight = number("imitation_weight", imitation_weight, 0, 1000)

    def check(self, peers, exchange):
        """Checks that branches have whom, and what, they are to learn from.

        Arguments
        ---------
        peers : str
            What an item's peers are: `off`, `listed`, `drawn` or `microphones`.
        exchange : str
            One of `exchange.EXCHANGES`.

        Raises
        ------
        DataError
            If there is one branch only, or no p.
        """
        for name in ("mutual_weight", "imitation_weight"):
            if getattr(self, name) and peers == "off":
                raise DataError(f"loss: {name} needs peers: give --peers drawn")
        if self.imitation_weight and exchange == "none":
            raise DataError(
                "loss: imitation_weight needs predictors: give --exchange itself"
            )

    def __call__(self, outputs, targets, lens=None, speakers=None):
        """Computes the loss.

        Arguments
        ---------
        outputs : speechbrain_peer.peer_learning.exchange.Outputs
            Waveforms (peers * batch, scales, time).
        targets : torch.Tensor
            (batch, time), the same for all peers, or (peers, batch, time); zero where
            the talker is absent.
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

        peers = (-1, targets.shape[-2])
        mixtures = outputs.mixtures
        if mixtures is not None:
            mixtures = mixtures.unflatten(0, peers)
        active = has_signal(targets, lens)

        def score(waveforms):
            """SI-SNR and measure of the main scale, and the mean loss of all."""
            scales = waveforms.unflatten(0, peers).movedim(2, 0)
            main = si_snr(scales[0].detach(), targets, lens)
            # Of each scale (peers, batch).
            values = self.measure(scales, targets, mixtures, lens)
            weighted = zip(self.scale_weights, values, strict=True)
            loss = -sum(weight * value.mean() for weight, value in weighted)
            return torch.where(active, main, math.nan), values[0].detach(), loss

        mask, _, loss = score(outputs.estimate)
        if self.mutual_weight:
            alike = likeness(
                outputs.estimate.unflatten(0, peers)[:, :, 0],
                mask,
                self.mutual_threshold,
                self.measure,
                mixtures,
                lens,
            )
            loss = loss - self.mutual_weight * alike.mean()
        if outputs.speaker_logits is not None:
            logits = outputs.speaker_logits.float()
            loss = loss + self.speaker_weight * F.cross_entropy(logits, speakers)
        if outputs.predicted is None:
            return loss, PeerSiSnr(mask)
        predictor, q, predictor_loss = score(outputs.predicted)
        refined, _, refined_loss = score(outputs.refined)
        loss = loss + self.predictor_weight * predictor_loss
        loss = loss + self.refined_weight * refined_loss
        if self.imitation_weight:
            p, frame_mask = outputs.branches.p, outputs.branches.frame_mask
            errors = imitation_errors(
                p.unflatten(0, peers), q, frame_mask.unflatten(0, peers)
            )
            # There is nothing to represent of an absent talker.
            errors = torch.where(predictor.isnan().any(0), 0, errors)
            loss = loss + self.imitation_weight * errors.mean()
        return loss, PeerSiSnr(mask, predictor, refined)
