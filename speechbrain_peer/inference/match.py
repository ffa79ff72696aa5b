"""Does the estimate speak with the enrolled voice? A score that is a probability.

A network trained to extract always gives something, also where the talker is absent
or was mistaken for another. The model's own speaker network listens to the estimate,
and a logistic regression turns the similarity to the enrollment into a probability. It
is fitted on mixtures of held-out speakers, half of them with the enrollment of
somebody who is not there. Of an estimate, here as there, the loudest piece is heard.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from speechbrain_peer.inference.presence import second_energies
from speechbrain_peer.nnet.voice import summarize_voice
from speechbrain_peer.peer_learning.exchange import embed
from speechbrain_peer.utils.signal import sample_mask

# Seconds of the piece: more takes memory and tells little.
PIECE = 12
# Pulls the weights to zero: a perfect separation has no finite ones.
RIDGE = 1e-4
# Of a value that is the same for all voices.
SMALLEST_SPREAD = 1e-6


def find_loudest(energies):
    """Finds the piece with the most energy.

    Arguments
    ---------
    energies : torch.Tensor
        Of every second of every channel, (seconds, channels).

    Returns
    -------
    first : int
        The second at which the piece begins; it lasts `PIECE` seconds or less.
    channel : int
        Its channel.

    Example
    -------
    >>> energies = torch.zeros(60, 2)
    >>> energies[40, 1] = 1.0
    >>> find_loudest(energies)
    (29, 1)
    """
    sums = energies.unfold(0, min(PIECE, len(energies)), 1).sum(-1)
    return divmod(sums.argmax().item(), energies.shape[1])


def listen(modules, estimates, lens, sample_rate):
    """Summarizes the voice in the loudest piece of each estimate.

    Arguments
    ---------
    modules : Mapping
        The stages.
    estimates : torch.Tensor
        (batch, time).
    lens : torch.Tensor or None
        Relative lengths (batch,).
    sample_rate : int
        In Hz.

    Returns
    -------
    torch.Tensor
        (batch, embedding).
    """
    if estimates.shape[1] > PIECE * sample_rate:
        samples = sample_mask(lens, estimates.shape[1], estimates).sum(1).long()
        samples = samples.expand(len(estimates)).tolist()
        pieces = [
            _loudest_piece(estimate[:length], sample_rate)
            for estimate, length in zip(estimates, samples, strict=True)
        ]
        estimates = pad_sequence(pieces, batch_first=True)
        lens = estimates.new_tensor([len(piece) for piece in pieces])
        lens = lens / estimates.shape[1]
    return summarize_voice(embed(modules, estimates, lens))


def _loudest_piece(estimate, sample_rate):
    """(time,) to (time,)."""
    energies = second_energies(estimate, sample_rate)
    start = find_loudest(energies[:, None])[0] * sample_rate
    return estimate[start : start + PIECE * sample_rate]


class MatchScorer(nn.Module):
    """Turns the embeddings of enrollment and estimate into a match score.

    Arguments
    ---------
    embedding_size : int
        Values of an embedding.

    Example
    -------
    >>> scorer = MatchScorer(embedding_size=4)
    >>> scorer(torch.randn(2, 4), torch.randn(2, 4))
    tensor([0.5000, 0.5000])
    """

    N_FEATURES = 2

    def __init__(self, embedding_size):
        super().__init__()
        # Fitted, not trained: no optimizer may move them.
        self.register_buffer("center", torch.zeros(embedding_size))
        self.register_buffer("spread", torch.ones(embedding_size))
        self.register_buffer("weight", torch.zeros(self.N_FEATURES))
        self.register_buffer("bias", torch.zeros(()))

    def forward(self, enrolled, estimated):
        """Scores.

        Arguments
        ---------
        enrolled : torch.Tensor
            Embeddings of the enrollments, (batch, embedding).
        estimated : torch.Tensor
            Of the estimates, (batch, embedding).

        Returns
        -------
        torch.Tensor
            (batch,), in [0, 1].
        """
        features = self.features(enrolled, estimated)
        return torch.sigmoid(features @ self.weight + self.bias)

    def features(self, enrolled, estimated):
        """Cosine similarity and distance of standardized embeddings, (batch, 2)."""
        enrolled, estimated = (
            (embedding.float() - self.center) / self.spread
            for embedding in (enrolled, estimated)
        )
        distance = (enrolled - estimated).square().mean(1).sqrt()
        return torch.stack((F.cosine_similarity(enrolled, estimated), distance), dim=1)

    def fit(self, enrolled, estimated, matches):
        """Fits center, spread, weights and bias.

        Arguments
        ---------
        enrolled : torch.Tensor
            Embeddings of the enrollments, (trials, embedding).
        estimated : torch.Tensor
            Of the estimates, (trials, embedding).
        matches : torch.Tensor
            1 where the estimate is the enrolled talker, else 0, (trials,).
        """
        self.center.copy_(enrolled.mean(0))
        self.spread.copy_(enrolled.std(0).clamp(min=SMALLEST_SPREAD))
        features = self.features(enrolled, estimated).double()
        matches = matches.double()
        weights = torch.zeros(self.N_FEATURES + 1, dtype=torch.double)
        weights.requires_grad_()
        # Both kinds count alike, however many there are of each.
        share = matches.mean()
        balance = matches / (2 * share) + (1 - matches) / (2 * (1 - share))
        optimizer = torch.optim.LBFGS([weights], max_iter=200)

        def loss():
            optimizer.zero_grad()
            logits = features @ weights[:-1] + weights[-1]
            value = F.binary_cross_entropy_with_logits(logits, matches, balance)
            value = value + RIDGE * weights[:-1].square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        self.weight.copy_(weights[:-1].detach())
        self.bias.copy_(weights[-1].detach())
