"""SI-SNR and the level of estimates against formulas worked out by hand."""

import math

import numpy as np
import pytest
import torch

from speechbrain_peer.utils.signal import match_level, sample_mask, si_snr

LENGTHS = (800, 31, 1, 417)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(lengths):
    """As SpeechBrain's PaddedBatch computes them."""
    return torch.tensor([length / max(lengths) for length in lengths])


def padded(lengths, seed=0):
    """Zero-padded noise, and the same with noise in the padding."""
    full = noise(len(lengths), max(lengths), seed=seed)
    return full * sample_mask(relative(lengths), max(lengths), full), full


def si_snr_by_formula(estimate, target):
    """Le Roux et al., "SDR - half-baked or well done?", equation 2, zero-mean."""
    estimate, target = (np.asarray(x, np.float64) for x in (estimate, target))
    estimate, target = estimate - estimate.mean(), target - target.mean()
    target = (estimate @ target) / (target @ target) * target
    return 10 * np.log10(
        (target @ target) / ((estimate - target) @ (estimate - target))
    )


def test_true_lengths_come_back_from_relative_ones():
    """All of them, whichever way the division has rounded."""
    lengths = list(range(1, 1001))
    mask = sample_mask(relative(lengths), 1000, torch.zeros(1))
    assert torch.equal(mask, torch.ones(1000, 1000).tril())


@pytest.mark.parametrize("db", [-30, 0, 10, 50])
@pytest.mark.parametrize("level", [0.01, 1.0, 100.0])
def test_si_snr_of_orthogonal_noise_is_the_ratio_of_powers(db, level):
    time = torch.arange(8000) / 8000
    target = torch.sin(2 * math.pi * 440 * time)
    disturbance = torch.sin(2 * math.pi * 1000 * time) * 10 ** (-db / 20)
    estimate = level * (target + disturbance) + 0.3 * level  # offsets do not count
    value = si_snr(estimate[None], 0.02 * target[None] - 0.1)
    assert value.item() == pytest.approx(db, abs=0.02)


def test_si_snr_is_that_of_the_formula_with_any_leading_dimensions():
    estimates, targets = noise(3, 2, 4, 500), noise(4, 500, seed=1)
    estimates = 0.5 * estimates + targets
    values = si_snr(estimates, targets)
    assert values.shape == (3, 2, 4)
    for index in np.ndindex(values.shape):
        expected = si_snr_by_formula(estimates[index], targets[index[-1]])
        assert values[index].item() == pytest.approx(expected, abs=1e-3)


def test_padding_is_not_scored():
    targets, _ = padded(LENGTHS)
    _, estimates = padded(LENGTHS, seed=1)  # with noise in the padding
    estimates = targets + 0.5 * estimates + 0.2
    values = si_snr(estimates, targets, relative(LENGTHS))
    for index, length in enumerate(LENGTHS):
        alone = si_snr(estimates[index, None, :length], targets[index, None, :length])
        assert values[index].item() == pytest.approx(alone.item(), abs=1e-4)
    assert not torch.allclose(values, si_snr(estimates, targets), atol=0.1)


@pytest.mark.parametrize("target", [torch.zeros(1, 400), torch.full((1, 400), 0.3)])
@pytest.mark.parametrize("estimate", [torch.zeros(1, 400), noise(1, 400)])
def test_silence_has_a_finite_value_and_gradient(target, estimate):
    estimate = estimate.clone().requires_grad_()
    for reference in (target, noise(1, 400, seed=1)):
        value = si_snr(estimate, reference)
        (grad,) = torch.autograd.grad(value.sum(), estimate)
        assert value.isfinite().all() and grad.isfinite().all()


def test_si_snr_is_computed_in_fp32_whatever_comes_in():
    targets = noise(2, 400)
    estimates = (targets + 0.01 * noise(2, 400, seed=1)).bfloat16()
    expected = si_snr(estimates.float(), targets)
    with torch.autocast("cpu", torch.bfloat16):
        values = si_snr(estimates, targets)
    assert values.dtype == torch.float32
    assert torch.equal(values, expected)


def test_the_level_is_that_of_the_projection_of_the_mixture():
    estimates, mixtures = noise(3, 500), noise(3, 500, seed=1) + noise(3, 500)
    matched = match_level(estimates, mixtures)
    for estimate, mixture, output in zip(estimates, mixtures, matched, strict=True):
        factor = (mixture @ estimate) / (estimate @ estimate)
        torch.testing.assert_close(output, factor * estimate)
        # What is left of the mixture is orthogonal to the estimate.
        assert ((mixture - output) @ output).abs() < 1e-3
    for scale in (1e-4, -3.0, 1e4):  # the estimate has no level or sign of its own
        torch.testing.assert_close(match_level(scale * estimates, mixtures), matched)


def test_the_level_is_one_factor_for_the_true_samples():
    mixtures, _ = padded(LENGTHS)
    _, estimates = padded(LENGTHS, seed=1)
    matched = match_level(estimates, mixtures + estimates, relative(LENGTHS))
    for index, length in enumerate(LENGTHS):
        estimate = estimates[index, None, :length]
        alone = match_level(estimate, mixtures[index, None, :length] + estimate)
        torch.testing.assert_close(matched[index, :length], alone[0])
        assert not matched[index, length:].any()
        factors = matched[index, :length] / estimates[index, :length]
        torch.testing.assert_close(factors, factors[:1].expand(length))


def test_the_level_of_silence_is_zero_and_that_of_nan_is_seen():
    estimates, mixtures = noise(3, 100), noise(3, 100, seed=1)
    estimates[0] = 0
    estimates[1, 7] = float("nan")
    matched = match_level(estimates, mixtures)
    assert not matched[0].any()
    assert matched[1].isnan().any()
    assert matched[2].isfinite().all() and matched[2].any()
