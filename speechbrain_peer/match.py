"""Does the estimate speak with the enrolled voice? A score that is a probability.

A network trained to extract always gives something, also where the talker is absent
or was mistaken for another. The model's own speaker network listens again: to the
estimate, and to what the estimate leaves of the mixture. A logistic regression turns
the similarities into a probability. It is fitted on mixtures of held-out speakers,
half of them with the enrollment of somebody who is not there.
"""

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_peer.peer_learning import embed
from speechbrain_peer.signal import match_level

# Pulls the weights to zero: a perfect separation has no finite ones.
RIDGE = 1e-4


class MatchScorer(nn.Module):
    """Turns embeddings of estimate, rest and enrollment into a match score.

    Arguments
    ---------
    embedding_size : int
        Values of an embedding.

    Example
    -------
    >>> scorer = MatchScorer(embedding_size=4)
    >>> scorer(*torch.randn(3, 2, 4))
    tensor([0.5000, 0.5000])
    """

    N_FEATURES = 2

    def __init__(self, embedding_size):
        super().__init__()
        # Fitted, not trained: no optimizer may move them.
        self.register_buffer("center", torch.zeros(embedding_size))
        self.register_buffer("weight", torch.zeros(self.N_FEATURES))
        self.register_buffer("bias", torch.zeros(()))

    def forward(self, enrolled, estimated, rest):
        """Scores.

        Arguments
        ---------
        enrolled : torch.Tensor
            Embeddings of the enrollments, (batch, embedding).
        estimated : torch.Tensor
            Of the estimates, (batch, embedding).
        rest : torch.Tensor
            Of the mixtures without the estimates, (batch, embedding).

        Returns
        -------
        torch.Tensor
            (batch,), in [0, 1].
        """
        features = self.features(enrolled, estimated, rest)
        return torch.sigmoid(features @ self.weight + self.bias)

    def features(self, enrolled, estimated, rest):
        """Cosine similarities of the enrollment to estimate and rest, (batch, 2)."""
        enrolled, estimated, rest = (
            (x - self.center).float() for x in (enrolled, estimated, rest)
        )
        return torch.stack(
            (
                F.cosine_similarity(enrolled, estimated),
                F.cosine_similarity(enrolled, rest),
            ),
            dim=1,
        )

    def fit(self, embeddings, matches):
        """Fits center, weights and bias.

        Arguments
        ---------
        embeddings : tuple of torch.Tensor
            Of enrollments, estimates and rests, each (trials, embedding).
        matches : torch.Tensor
            1 where the estimate is the enrolled talker, else 0, (trials,).
        """
        self.center.copy_(embeddings[0].mean(0))
        features, matches = self.features(*embeddings).double(), matches.double()
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


def embed_parts(modules, mixtures, estimates, lens=None):
    """Embeds the voices of estimates, and of what they leave of the mixtures.

    Arguments
    ---------
    modules : Mapping
        The stages.
    mixtures : torch.Tensor
        (batch, time).
    estimates : torch.Tensor
        (batch, time), of any level.
    lens : torch.Tensor or None
        Relative lengths (batch,).

    Returns
    -------
    tuple of torch.Tensor
        Two, each (batch, embedding).
    """
    estimates = match_level(estimates, mixtures, lens)
    return tuple(
        embed(modules, part, lens) for part in (estimates, mixtures - estimates)
    )
