"""Does the estimate speak with the enrolled voice? A score that is a probability.

A network trained to extract always gives something, also where the talker is absent
or was mistaken for another. The model's own speaker network listens to the estimate,
and a logistic regression turns the similarity to the enrollment into a probability. It
is fitted on mixtures of held-out speakers, half of them with the enrollment of
somebody who is not there. Of an estimate, here as there, the loudest piece is heard.

Where the network took one talker for another, it is asked about its own mistake. A
judge (`inference.judges`) is a network that did not make it; the regression then takes
what this one hears in the estimate and in the rest of the mixture.
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
FALSE_ALARMS = 0.05
"""Share of right estimates, of those a score is fitted on, below its threshold."""


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
            estimate[loudest_slice(estimate[:length], sample_rate)]
            for estimate, length in zip(estimates, samples, strict=True)
        ]
        estimates = pad_sequence(pieces, batch_first=True)
        lens = estimates.new_tensor([len(piece) for piece in pieces])
        lens = lens / estimates.shape[1]
    return summarize_voice(embed(modules, estimates, lens))


def loudest_slice(estimate, sample_rate):
    """Where the loudest piece of an estimate is.

    Arguments
    ---------
    estimate : torch.Tensor
        (time,).
    sample_rate : int
        In Hz.

    Returns
    -------
    slice
        Of its samples, which are `PIECE` seconds or less.

    Example
    -------
    >>> loudest_slice(torch.ones(20), sample_rate=1)
    slice(0, 12, None)
    """
    energies = second_energies(estimate, sample_rate)
    start = find_loudest(energies[:, None])[0] * sample_rate
    return slice(start, min(start + PIECE * sample_rate, len(estimate)))


class _Scorer(nn.Module):
    """A logistic regression on similarities of embeddings.

    It is built of plain arguments, which the YAML of a model holds (`arguments`), and
    buffers, which are fitted, not trained: no optimizer may move them.
    """

    N_FEATURES = 2

    def __init__(self, embedding_size, threshold):
        super().__init__()
        self.threshold = float(threshold)
        self.register_buffer("center", torch.zeros(embedding_size))
        self.register_buffer("weight", torch.zeros(self.N_FEATURES))
        self.register_buffer("bias", torch.zeros(()))

    @property
    def arguments(self):
        """What builds it anew."""
        return {"embedding_size": len(self.center), "threshold": self.threshold}

    def _score(self, features):
        """(batch, features) to (batch,)."""
        return torch.sigmoid(features @ self.weight + self.bias)

    def _fit(self, features, matches, counts):
        """Fits weights, bias and threshold; `counts` is what each trial counts."""
        features, matches = features.double(), matches.double()
        weights = torch.zeros(self.N_FEATURES + 1, dtype=torch.double)
        weights.requires_grad_()
        optimizer = torch.optim.LBFGS([weights], max_iter=200)

        def loss():
            optimizer.zero_grad()
            logits = features @ weights[:-1] + weights[-1]
            value = F.binary_cross_entropy_with_logits(logits, matches, counts)
            value = value + RIDGE * weights[:-1].square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        self.weight.copy_(weights[:-1].detach())
        self.bias.copy_(weights[-1].detach())
        right = self._score(features.float())[matches.bool()]
        self.threshold = round(right.quantile(FALSE_ALARMS).item(), 4)


class MatchScorer(_Scorer):
    """Turns the embeddings of enrollment and estimate into a match score.

    Arguments
    ---------
    embedding_size : int
        Values of an embedding.
    threshold : float
        An estimate whose score is lower is to be doubted.

    Example
    -------
    >>> scorer = MatchScorer(embedding_size=4)
    >>> scorer(torch.randn(2, 4), torch.randn(2, 4))
    tensor([0.5000, 0.5000])
    """

    def __init__(self, embedding_size, threshold=0.5):
        super().__init__(embedding_size, threshold)
        self.register_buffer("spread", torch.ones(embedding_size))

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
        return self._score(self.features(enrolled, estimated))

    def features(self, enrolled, estimated):
        """Cosine similarity and distance of standardized embeddings, (batch, 2)."""
        enrolled, estimated = (
            (embedding.float() - self.center) / self.spread
            for embedding in (enrolled, estimated)
        )
        distance = (enrolled - estimated).square().mean(1).sqrt()
        return torch.stack((F.cosine_similarity(enrolled, estimated), distance), dim=1)

    def fit(self, enrolled, estimated, matches):
        """Fits center, spread, weights, bias and threshold.

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
        features = self.features(enrolled, estimated)
        self._fit(features, matches, count_alike(matches))


class JudgeScorer(_Scorer):
    """Turns what a judge hears into a match score.

    Arguments
    ---------
    embedding_size : int
        Values of the judge's embeddings.
    judge : str
        Its name, to be told.
    mark : str
        Its mark: the score means nothing to another judge.
    threshold : float
        An estimate whose score is lower is to be doubted.

    Example
    -------
    >>> scorer = JudgeScorer(embedding_size=4, judge="somebody", mark="c0ffee")
    >>> scorer(torch.randn(2, 3, 4))
    tensor([0.5000, 0.5000])
    """

    def __init__(self, embedding_size, judge, mark, threshold=0.5):
        super().__init__(embedding_size, threshold)
        self.judge, self.mark = str(judge), str(mark)

    @property
    def arguments(self):
        """What builds it anew."""
        return {**super().arguments, "judge": self.judge, "mark": self.mark}

    def forward(self, heard):
        """Scores.

        Arguments
        ---------
        heard : torch.Tensor
            Embeddings of the enrollment, of the estimate and of the rest of the
            mixture, (batch, 3, embedding).

        Returns
        -------
        torch.Tensor
            (batch,), in [0, 1].
        """
        return self._score(self.features(heard))

    def features(self, heard):
        """How like the enrollment are estimate and rest? Cosines, (batch, 2)."""
        enrolled, *others = (heard.float() - self.center).unbind(1)
        cosines = [F.cosine_similarity(enrolled, other) for other in others]
        return torch.stack(cosines, dim=1)

    def fit(self, heard, matches, absent):
        """Fits center, weights, bias and threshold.

        Arguments
        ---------
        heard : torch.Tensor
            (trials, 3, embedding), see `forward`.
        matches : torch.Tensor
            1 where the estimate is the enrolled talker, else 0, (trials,).
        absent : torch.Tensor
            1 where that talker is not in the mixture, else 0, (trials,).
        """
        self.center.copy_(heard[:, 0].mean(0))
        self._fit(self.features(heard), matches, count_alike(matches, absent))


def count_alike(matches, absent=None):
    """What each trial counts, so that both kinds count alike, however many of each.

    Arguments
    ---------
    matches : torch.Tensor
        1 where the estimate is the enrolled talker, else 0, (trials,).
    absent : torch.Tensor, optional
        1 where that talker is not in the mixture: then the others that do not match,
        which are few, together count as much as these.

    Returns
    -------
    torch.Tensor
        (trials,), in double precision; the mean is 1.

    Example
    -------
    >>> count_alike(torch.tensor([1, 0, 0, 0]))
    tensor([2.0000, 0.6667, 0.6667, 0.6667], dtype=torch.float64)
    >>> count_alike(torch.tensor([1, 0, 0, 0]), torch.tensor([0, 0, 1, 1]))
    tensor([2.0000, 1.0000, 0.5000, 0.5000], dtype=torch.float64)
    """
    matches = matches.bool()
    doubtful = [~matches]
    if absent is not None:
        doubtful = [~matches & ~absent.bool(), ~matches & absent.bool()]
        doubtful = [kind for kind in doubtful if kind.any()]
    counts = matches / (2 * matches.double().mean())
    for kind in doubtful:
        counts = counts + kind / (2 * len(doubtful) * kind.double().mean())
    return counts
