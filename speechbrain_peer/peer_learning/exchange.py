"""Peer learning for target speech extraction, from end to end.

Yang, Zhao and Zou, "Peer Learning via Shared Speech Representation Prediction for
Target Speech Separation". A training item is a pair of peers: two mixtures of the
same target segment s with different interferers. For every peer b

    W = encoder(x)                  representation of the mixture
    a = speaker_encoder(enrollment) voice of the target speaker, one per pair
    e = separator(W, a)             representation before the mask
    p = predictor1(e)               linear map into the decoder's input space
    q = measure(decoder(p), s)      which peer's representation is better? (SI-SNR)
    p* = stop_gradient(p of the better peer)
    r = predictor2([p ; p*])        linear
    estimate = decoder(mask_head(e, r, W))

With one mixture, at validation, test and inference, p* is p.

`modules` is the mapping of these stages, by these names: a YAML's `modules:`, a
Brain's or an interface's. Representations are `(peers * batch, frames, channels)`,
all first peers before all second ones; waveforms are `(peers * batch, time)`. Voices,
`embeddings`, are vectors or frames, see `nnet.voice`.
"""

from typing import NamedTuple

import torch

from speechbrain_peer.nnet.around import hold_last
from speechbrain_peer.nnet.voice import features_of, repeat_voice
from speechbrain_peer.peer_learning.measure import Measure
from speechbrain_peer.peer_learning.predictors import (
    can_lend,
    sees_around,
    without_predictors,
)
from speechbrain_peer.utils.files import DataError

EXCHANGES = ("better", "anyway", "itself", "other", "coin", "none")


def has_predictors(exchange):
    """Whether an exchange needs the predictors.

    Raises
    ------
    ValueError
        If there is no such exchange.

    Example
    -------
    >>> has_predictors("better"), has_predictors("none")
    (True, False)
    """
    if exchange not in EXCHANGES:
        raise ValueError(f"exchange '{exchange}': choose one of {', '.join(EXCHANGES)}")
    return exchange != "none"


class Branches(NamedTuple):
    """What every peer has made of its mixture before the exchange."""

    W: torch.Tensor
    """Representation of the mixture, (peers * batch, frames, filters)."""
    frame_mask: torch.Tensor
    """1 for true frames, (peers * batch, frames)."""
    e: torch.Tensor
    """Representation before the mask, (peers * batch, frames, channels)."""
    p: torch.Tensor | None
    """Predicted representation, (peers * batch, frames, filters)."""


class Outputs(NamedTuple):
    """The waveforms of all branches, (peers * batch, scales, time)."""

    estimate: torch.Tensor
    predicted: torch.Tensor | None = None
    """The waveforms of p, decoder(p)."""
    refined: torch.Tensor | None = None
    """The waveforms of r, decoder(r)."""
    speaker_logits: torch.Tensor | None = None
    """What the stage `speaker_classifier` gives, if there is one, (batch, speakers)."""
    mixtures: torch.Tensor | None = None
    """What they are extracted from, (peers * batch, time)."""
    branches: Branches | None = None
    """With predictors, what every peer has made of its mixture."""


def embed(modules, enrollments, enrollment_lens=None):
    """Turns enrollments into the voices of their speakers, a.

    Arguments
    ---------
    modules : Mapping
        The stages.
    enrollments : torch.Tensor
        (batch, time).
    enrollment_lens : torch.Tensor or None
        Relative lengths (batch,).

    Returns
    -------
    torch.Tensor or Frames
        Of (batch, ...).
    """
    # The mixture's encoder goes along: speaker encoders may share it.
    return modules["speaker_encoder"](enrollments, enrollment_lens, modules["encoder"])


def represent(modules, mixtures, embeddings, mixture_lens=None):
    """The shared weights, on all peers as one batch.

    Arguments
    ---------
    modules : Mapping
        The stages.
    mixtures : torch.Tensor
        (peers * batch, time).
    embeddings : torch.Tensor or Frames
        Voices, one for each pair, of (batch, ...).
    mixture_lens : torch.Tensor or None
        Relative lengths (batch,).

    Returns
    -------
    Branches
    """
    n_peers = mixtures.shape[0] // features_of(embeddings).shape[0]
    if mixture_lens is not None:
        mixture_lens = mixture_lens.repeat(n_peers)
    W, frame_mask = modules["encoder"](mixtures, mixture_lens)
    e = modules["separator"](W, repeat_voice(embeddings, n_peers), frame_mask)
    if mixture_lens is not None and sees_around(modules):
        e = hold_last(e, frame_mask)
    p = modules["predictor1"](e) if "predictor1" in modules else None
    return Branches(W, frame_mask, e, p)


def lend(p, scores, exchange, coin=None):
    """Chooses the representation that each branch is lent, p*.

    Arguments
    ---------
    p : torch.Tensor
        Predicted representations, (peers, batch, frames, filters).
    scores : torch.Tensor
        Of decoder(p) in dB, (peers, batch); see `measure.Measure`.
    exchange : str
        `better`: that of the peer with the highest score, item by item; `anyway`:
        that of the peer whom the coin names; `itself`: each branch its own; `other`:
        what a branch does not have, the mean of the others'; `coin`: `itself` in items
        whose coin is 0, else `other`.
    coin : torch.Tensor or None
        Index of a random peer, (batch,); for `anyway` and `coin`.

    Returns
    -------
    torch.Tensor
        p*, without gradient, of the shape of p.

    Example
    -------
    >>> p = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    >>> lend(p, scores=torch.tensor([[5.0], [3.0]]), exchange="better").flatten()
    tensor([1., 1.])
    """
    p = p.detach()
    if exchange == "itself" or len(p) == 1:
        return p
    if exchange == "other":
        return mean_of_others(p)
    if exchange == "coin":
        keeps = (coin == 0).view(-1, *[1] * (p.dim() - 2))
        return torch.where(keeps, p, mean_of_others(p))
    chosen = coin if exchange == "anyway" else scores.argmax(0)
    return p[chosen, torch.arange(p.shape[1], device=p.device)].expand_as(p)


def mean_of_others(p):
    """What a branch does not have: the mean of the other branches', (peers, ...)."""
    return (p.sum(0) - p) / (len(p) - 1) if len(p) > 1 else p


def estimate(modules, branches, p_star, length):
    """Refines with the lent representation, masks and decodes.

    Arguments
    ---------
    modules : Mapping
        The stages.
    branches : Branches
        From `represent`.
    p_star : torch.Tensor or None
        The lent representation, of the shape of `branches.p`; None without
        predictors. Where these are folded, the e of who lends.
    length : int
        Samples of the mixtures.

    Returns
    -------
    estimate : torch.Tensor
        (peers * batch, scales, time).
    r : torch.Tensor or None
        The refined representation, (peers * batch, frames, filters).
    """
    W, frame_mask, e, p = branches
    r, lent = None, ()
    if p is not None:
        r = modules["predictor2"](torch.cat((p, p_star), dim=-1))
    elif p_star is not None:
        lent = (p_star,)
    masked = modules["mask_head"](e, r, W, *lent)
    return modules["decoder"](masked, length, frame_mask), r


class PeerLearning:
    """A training step's forward pass: branches, exchange, estimates.

    Arguments
    ---------
    exchange : str
        What the branches lend each other: `better`, the method (paper, section III);
        `anyway` and `itself`, the ablations of its Table II; `other`, always what a
        branch does not have, and `coin`, either of the two by chance, which are not
        the paper's; `none`, pairs without predictors.
    exchange_epochs : int or None
        The last epoch with exchange; after it each branch keeps its own, as at
        inference. None: they exchange to the end, as in the paper.
    measure : Measure or None
        Tells which peer is better; by default SI-SNR.

    Raises
    ------
    ValueError
        If there is no such exchange.
    """

    def __init__(self, exchange="better", exchange_epochs=None, measure=None):
        self.needs_predictors = has_predictors(exchange)
        self.exchange = exchange
        self.exchange_epochs = exchange_epochs
        self.measure = measure or Measure()

    def stages(self, modules):
        """Returns the stages to train; without an exchange those of the backbone alone.

        Arguments
        ---------
        modules : Mapping
            The stages that a YAML lists.

        Returns
        -------
        dict

        Raises
        ------
        DataError
            If the exchange needs predictors and there are none.
        """
        if not self.needs_predictors:
            return without_predictors(modules)
        missing = {"predictor1", "predictor2"} - modules.keys()
        if missing:
            raise DataError(
                f"exchange '{self.exchange}' needs predictors, but the YAML's modules "
                f"lack {' and '.join(sorted(missing))}; give --exchange none"
            )
        return dict(modules)

    def __call__(
        self, modules, mixtures, embeddings, targets, lens=None, coin=None, epoch=None
    ):
        """Runs all branches.

        Arguments
        ---------
        modules : Mapping
            The stages, from `stages`.
        mixtures : torch.Tensor
            (peers * batch, time); with one peer, it lends to itself.
        embeddings : torch.Tensor or Frames
            Voices, of (batch, ...).
        targets : torch.Tensor
            (batch, time), the same for all peers, or (peers, batch, time).
        lens : torch.Tensor or None
            Relative lengths of mixtures and targets, (batch,).
        coin : torch.Tensor or None
            Index of a random peer for `anyway` and `coin`, (batch,).
        epoch : int or None
            Of the training, from 1 on; needed for `exchange_epochs`.

        Returns
        -------
        Outputs

        Raises
        ------
        ValueError
            If the modules are not those of `stages`.
        """
        length, decoder = mixtures.shape[-1], modules["decoder"]
        logits = None
        if "speaker_classifier" in modules:
            logits = modules["speaker_classifier"](embeddings)
        branches = represent(modules, mixtures, embeddings, lens)
        if self.needs_predictors != (branches.p is not None):
            raise ValueError(
                f"exchange '{self.exchange}' does not fit the model's predictors"
            )
        if branches.p is None:
            estimates, _ = estimate(modules, branches, None, length)
            return Outputs(estimates, speaker_logits=logits, mixtures=mixtures)

        peers = (-1, targets.shape[-2])
        predicted = decoder(branches.p, length, branches.frame_mask)
        heard = predicted[:, 0].detach().unflatten(0, peers)
        q = self.measure(heard, targets, mixtures.unflatten(0, peers), lens)
        p_star = lend(branches.p.unflatten(0, peers), q, self._exchange(epoch), coin)
        estimates, r = estimate(modules, branches, p_star.flatten(0, 1), length)
        refined = decoder(r, length, branches.frame_mask)
        return Outputs(estimates, predicted, refined, logits, mixtures, branches)

    def _exchange(self, epoch):
        """The exchange of an epoch."""
        if self.exchange_epochs is not None and epoch > self.exchange_epochs:
            return "itself"
        return self.exchange


def extract(modules, mixtures, embeddings, mixture_lens=None):
    """Extracts from single mixtures, as the network gives it.

    Arguments
    ---------
    modules : Mapping
        The stages.
    mixtures : torch.Tensor
        (batch, time).
    embeddings : torch.Tensor or Frames
        Voices, of (batch, ...), from `embed`.
    mixture_lens : torch.Tensor or None
        Relative lengths (batch,).

    Returns
    -------
    torch.Tensor
        (batch, time); `speechbrain_peer.utils.signal.set_level` gives them a level.
    """
    branches = represent(modules, mixtures, embeddings, mixture_lens)
    estimates, _ = estimate(modules, branches, branches.p, mixtures.shape[-1])
    return estimates[:, 0]


def extract_together(
    modules, mixtures, embeddings, mixture_lens=None, lend_from=mean_of_others
):
    """Extracts from several recordings of each talker, which lend to each other.

    Arguments
    ---------
    modules : Mapping
        The stages of a model for peer learning; see `predictors.can_lend`.
    mixtures : torch.Tensor
        With the same target at the same time, (peers, batch, time); one peer lends to
        itself.
    embeddings : torch.Tensor or Frames
        Voices, of (batch, ...), from `embed`.
    mixture_lens : torch.Tensor or None
        Relative lengths (batch,).
    lend_from : callable
        Makes what each is lent of what all have, (peers, batch, frames, channels).

    Returns
    -------
    torch.Tensor
        (peers, batch, time), without a level; see `extract`.

    Raises
    ------
    ValueError
        If the model was trained without peers.
    """
    check_lends(modules)
    peers = mixtures.shape[:2]
    branches = represent(modules, mixtures.flatten(0, 1), embeddings, mixture_lens)
    # With folded predictors e stands for p, of which it is a linear map.
    own = branches.e if branches.p is None else branches.p
    lent = lend_from(own.unflatten(0, peers)).flatten(0, 1)
    estimates, _ = estimate(modules, branches, lent, mixtures.shape[-1])
    return estimates[:, 0].unflatten(0, peers)


def check_lends(modules):
    """Raises ValueError if a model was trained without peers."""
    if not can_lend(modules):
        raise ValueError(
            "The model was trained without peer learning: recordings cannot lend to "
            "each other; extract from each alone, or train with an exchange"
        )
