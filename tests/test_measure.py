"""What is trained for: talkers and the absent, with a level or without."""

import math

import pytest
import torch
from tiny_model import build

from speechbrain_peer.peer_learning.curves import PeerCurves
from speechbrain_peer.peer_learning.exchange import Outputs, PeerLearning
from speechbrain_peer.peer_learning.losses import PeerLoss
from speechbrain_peer.peer_learning.measure import Measure
from speechbrain_peer.utils.signal import level_snr, si_snr

BATCH, TIME = 3, 400
LENS = torch.tensor([1.0, 0.25, 0.5])
EMBEDDING = 16


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decibels(ratio):
    return 10 * math.log10(ratio)


@pytest.mark.parametrize("gain", [0.0, 0.5, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("loudness", [1e-2, 1.0, 1e2])
def test_of_the_present_the_level_counts(gain, loudness):
    target, interferer = loudness * noise(2, 1, 8000)
    value = level_snr(gain * target, target, target + interferer).item()
    assert value == pytest.approx(decibels(1 / ((1 - gain) ** 2 + 1e-3)), abs=1e-3)


@pytest.mark.parametrize("gain", [0.0, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("loudness", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("length", [800, 80000])
def test_of_the_absent_it_is_the_attenuation(gain, loudness, length):
    mixture = loudness * noise(1, length)
    value = level_snr(gain * mixture, 0 * mixture, mixture).item()
    assert value == pytest.approx(decibels(1 / (gain**2 + 1e-2)), abs=1e-3)


def test_with_any_leading_dimensions_and_true_lengths():
    estimates, mixtures = noise(2, 3, BATCH, TIME), noise(3, BATCH, TIME, seed=1)
    targets = noise(BATCH, TIME, seed=2)
    targets[1] = 0
    targets[1, 100:] = 1.0  # in the padding: the talker is absent all the same
    values = level_snr(estimates, targets, mixtures, LENS)
    assert values.shape == (2, 3, BATCH)
    for item, length in enumerate(round(TIME * share) for share in LENS.tolist()):
        alone = level_snr(
            estimates[..., item, :length],
            targets[item, :length],
            mixtures[..., item, :length],
        )
        torch.testing.assert_close(values[..., item], alone)


@pytest.mark.parametrize("level", ["mixture", "network"])
def test_no_signal_gives_nan_or_a_huge_gradient(level):
    speech = 0.05 * noise(1, 8000)
    whisper = 1e-7 * speech
    nothing = torch.zeros(1, 8000)
    measure = Measure(level)
    for target in (nothing, speech):
        for mixture in (nothing, speech):
            for start in (nothing, whisper, speech, 1e3 * speech):
                estimate = start.clone().requires_grad_()
                value = measure(estimate, target, mixture)
                (grad,) = torch.autograd.grad(value.sum(), estimate)
                assert value.isfinite().all() and grad.isfinite().all()
                if not target.any() and mixture.any():
                    assert grad.norm() < 100


def test_to_si_snr_the_absent_are_nothing():
    targets, estimates = noise(BATCH, TIME), noise(BATCH, TIME, seed=1)
    values = Measure("mixture")(estimates, targets, None, LENS)
    assert torch.equal(values, si_snr(estimates, targets, LENS))
    targets[1] = 0
    estimates.requires_grad_()
    again = Measure("mixture")(estimates, targets, None, LENS)
    assert again[1] == 0 and torch.equal(again[[0, 2]], values[[0, 2]])
    (grad,) = torch.autograd.grad(again.sum(), estimates)
    assert not grad[1].any() and grad[[0, 2]].any(1).all()


def test_a_level_that_there_is_not():
    with pytest.raises(ValueError, match="'loud': choose one of mixture, network"):
        Measure("loud")


@pytest.mark.parametrize("level", ["mixture", "network"])
def test_targets_of_each_peer_or_one_for_all(level):
    """In the exchange and in the loss."""
    stages = PeerLearning("better").stages(build())
    del stages["speaker_classifier"]
    mixtures, embeddings = noise(2 * BATCH, TIME), noise(BATCH, EMBEDDING, seed=1)
    targets = noise(BATCH, TIME, seed=2)
    measure = Measure(level)
    results = []
    for given in (targets, targets.expand(2, -1, -1)):
        outputs = PeerLearning("better", measure=measure)(
            stages, mixtures, embeddings, given, LENS
        )
        loss, si_snrs = PeerLoss(measure=measure)(outputs, given, LENS)
        results.append((loss, *outputs[:3], *si_snrs))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    # Each peer is scored by its own target.
    both = torch.stack((targets, noise(BATCH, TIME, seed=3)))
    _, si_snrs = PeerLoss(measure=measure)(outputs, both, LENS)
    waveforms = outputs.estimate.unflatten(0, (2, BATCH))[:, :, 0]
    for peer in range(2):
        expected = si_snr(waveforms[peer], both[peer], LENS)
        torch.testing.assert_close(si_snrs.mask[peer], expected)


def test_of_an_absent_talker_the_quieter_peer_lends():
    """Quieter against its own mixture: louder mixtures leave more behind."""
    stages = PeerLearning("better").stages(build())
    del stages["speaker_classifier"]
    # The network does not get louder as the mixture does.
    mixtures, embeddings = noise(2 * BATCH, TIME), noise(BATCH, EMBEDDING, seed=1)
    mixtures[BATCH:] *= torch.tensor([[0.1], [1.0], [10.0]])
    absent = torch.zeros(BATCH, TIME)
    lens = torch.ones(BATCH)
    better = PeerLearning("better", measure=Measure("network"))(
        stages, mixtures, embeddings, absent, lens
    )
    heard = better.predicted[:, 0].square().sum(-1) / mixtures.square().sum(-1)
    quieter = heard.unflatten(0, (2, BATCH)).argmin(0)
    assert len(set(quieter.tolist())) == 2  # so that no fixed choice passes
    anyway = PeerLearning("anyway")(stages, mixtures, embeddings, absent, lens, quieter)
    assert torch.equal(better.estimate, anyway.estimate)


def test_the_loss_of_a_batch_with_somebody_absent():
    targets, mixtures = noise(BATCH, TIME), noise(2 * BATCH, TIME, seed=1)
    targets[1] = 0
    estimates = [noise(2 * BATCH, 1, TIME, seed=seed) for seed in (2, 3, 4)]
    measure = Measure("network")
    loss, si_snrs = PeerLoss((1.0,), 0.3, 0.7, measure=measure)(
        Outputs(*estimates, mixtures=mixtures), targets, LENS
    )
    expected = -sum(
        weight
        * measure(
            waveforms[:, 0].unflatten(0, (2, BATCH)),
            targets,
            mixtures.unflatten(0, (2, BATCH)),
            LENS,
        ).mean()
        for weight, waveforms in zip((1.0, 0.3, 0.7), estimates, strict=True)
    )
    torch.testing.assert_close(loss, expected)
    # The curves are SI-SNR of those who are there.
    for values in si_snrs:
        assert values[:, 1].isnan().all() and values[:, [0, 2]].isfinite().all()
    curves, present = PeerCurves(), PeerCurves()
    curves.update(*si_snrs)
    present.update(*(values[:, [0, 2]] for values in si_snrs))
    assert curves.means() == present.means()
    curves.update(*(values[:, 1:2] for values in si_snrs))  # nobody at all
    assert curves.means() == present.means()


def test_training_with_level_learns_level_and_silence():
    """A gain alone: one for the present, none for the absent."""
    mixtures = noise(4, TIME)
    targets = 0.5 * mixtures * torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    gains = torch.ones(4, 1, requires_grad=True)
    optimizer = torch.optim.Adam([gains], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        outputs = Outputs((gains * mixtures)[:, None], mixtures=mixtures)
        loss, _ = PeerLoss(measure=Measure("network"))(outputs, targets)
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(
        gains.detach()[:, 0], torch.tensor([0.5, 0.5, 0.0, 0.0]), rtol=0, atol=0.02
    )
