"""The training loss, its terms and their weights."""

import pytest
import torch

from speechbrain_peer.peer_learning.exchange import Outputs
from speechbrain_peer.peer_learning.losses import PeerLoss
from speechbrain_peer.utils.signal import si_snr

PEERS, BATCH, TIME = 2, 3, 400


def noisy(targets, scales, seed):
    """Waveforms (peers * batch, scales, time) with different SI-SNRs everywhere."""
    rng = torch.Generator().manual_seed(seed)
    shape = (PEERS * BATCH, scales, TIME)
    levels = 0.1 + torch.rand(*shape[:2], 1, generator=rng)
    disturbance = levels * torch.randn(shape, generator=rng)
    return (targets.repeat(PEERS, 1)[:, None] + disturbance).requires_grad_()


@pytest.fixture
def targets():
    return torch.randn(BATCH, TIME, generator=torch.Generator().manual_seed(0))


def scores_by_hand(waveforms, targets, lens):
    """(scales, peers, batch), each waveform scored alone."""
    samples = [round(TIME * length) for length in lens.tolist()]
    rows = [
        [
            si_snr(
                waveform[None, : samples[index % BATCH]],
                targets[None, index % BATCH, : samples[index % BATCH]],
            )
            for waveform in item
        ]
        for index, item in enumerate(waveforms.detach())
    ]
    return torch.tensor(rows).T.unflatten(1, (PEERS, BATCH))


def test_terms_and_weights(targets):
    lens = torch.tensor([1.0, 0.25, 0.5])
    outputs = Outputs(*(noisy(targets, 3, seed) for seed in range(3)))
    loss, si_snrs = PeerLoss([0.8, 0.1, 0.05], 0.3, 0.7)(outputs, targets, lens)
    scores = [
        scores_by_hand(waveforms, targets, lens)
        for waveforms in outputs
        if waveforms is not None
    ]
    expected = -sum(
        term * weight * scale.mean()
        for term, scales in zip((1.0, 0.3, 0.7), scores, strict=True)
        for weight, scale in zip((0.8, 0.1, 0.05), scales, strict=True)
    )
    torch.testing.assert_close(loss, expected)
    # The curves get the first scale, peers apart, items in order, and no gradient.
    for values, (right, *_) in zip(si_snrs, scores, strict=True):
        torch.testing.assert_close(values, right)
        assert not values.requires_grad


def test_the_speaker_classifier_learns_the_speakers(targets):
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 0.0]], requires_grad=True)
    speakers = torch.tensor([1, 0, 1])
    chances = logits.detach().exp() / logits.detach().exp().sum(1, keepdim=True)
    expected = -chances[range(BATCH), speakers].log().mean()
    outputs = Outputs(noisy(targets, 1, seed=0), speaker_logits=logits)
    loss, _ = PeerLoss(speaker_weight=0.5)(outputs, targets, None, speakers)
    without, _ = PeerLoss()(outputs, targets, None, speakers)
    torch.testing.assert_close(loss - without, 0.5 * expected)


def test_both_peers_and_every_term_learn(targets):
    outputs = Outputs(*(noisy(targets, 1, seed) for seed in range(3)))
    grads = {}
    for weights in ((1.0, 1.0), (0.0, 2.0)):
        loss, _ = PeerLoss([1.0], *weights)(outputs, targets)
        grads[weights] = torch.autograd.grad(loss, outputs[:3])
    assert all(item.any() for grad in grads[1.0, 1.0] for item in grad)
    estimate, predicted, refined = grads[0.0, 2.0]
    torch.testing.assert_close(estimate, grads[1.0, 1.0][0])
    assert not predicted.any()
    torch.testing.assert_close(refined, 2 * grads[1.0, 1.0][2])


def test_without_predictors_only_the_estimates_count(targets):
    estimates = noisy(targets, 1, seed=0)
    loss, si_snrs = PeerLoss()(Outputs(estimates), targets)
    assert si_snrs.predictor is None and si_snrs.refined is None
    assert si_snrs.mask.shape == (PEERS, BATCH)
    torch.testing.assert_close(loss, -si_snrs.mask.mean())


def test_single_mixtures_are_one_peer(targets):
    estimates = noisy(targets, 1, seed=0)
    _, pair_scores = PeerLoss()(Outputs(estimates), targets)
    _, scores = PeerLoss()(Outputs(estimates[BATCH:]), targets)
    assert scores.mask.shape == (1, BATCH)
    torch.testing.assert_close(scores.mask[0], pair_scores.mask[1])


def test_every_scale_has_a_weight(targets):
    with pytest.raises(ValueError, match="zip"):
        PeerLoss([0.8, 0.2])(Outputs(noisy(targets, 3, seed=0)), targets)
