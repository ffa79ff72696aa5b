"""Where recordings lie in time: starts, clocks and delays."""

import numpy as np
import pytest
import soundfile
from scipy.signal import fftconvolve

from speechbrain_peer.inference import alignment
from speechbrain_peer.inference.alignment import (
    CLEAR,
    compare_clocks,
    find_delay,
    find_start,
    on_the_time_line,
    shift,
)
from speechbrain_peer.inference.recordings import Recording
from speechbrain_peer.utils.files import DataError

RATE = 8000


def speech_like(seconds, seed=0):
    """Noise with a falling spectrum, loud and silent by turns, float64, (time,)."""
    rng = np.random.default_rng(seed)
    length = round(seconds * RATE)
    noise = fftconvolve(rng.standard_normal(length), 0.8 ** np.arange(40))[:length]
    syllables = np.repeat(rng.uniform(0, 0.2, int(5 * seconds) + 1), RATE // 5)
    return noise * syllables[:length] ** 2 * 10


def tail(seed, seconds=0.3, direct_to_rest=1.0):
    """A response: the direct sound, then a reverberant tail."""
    rng = np.random.default_rng(seed)
    taps = np.arange(round(seconds * RATE))
    rest = rng.standard_normal(len(taps)) * np.exp(-6.9 * taps / len(taps))
    rest[:20] = 0
    rest /= direct_to_rest * np.linalg.norm(rest)
    rest[0] = 1
    return rest


@pytest.mark.parametrize("delay", [0, 0.25, 0.5, -3.7, 101.4, -400])
@pytest.mark.parametrize("whitening", [0.5, 1])
def test_delays_are_found_to_fractions_of_a_sample(delay, whitening):
    signal = speech_like(3)
    found, clarity = find_delay(signal, shift(signal, delay), 400, 16, whitening)
    assert found == pytest.approx(delay, abs=0.02)
    assert clarity > CLEAR


@pytest.mark.parametrize("delay", [0.3, -7.6])
def test_noise_and_reverberation_do_not_move_a_delay_far(delay):
    signal, rng = speech_like(4), np.random.default_rng(1)
    near, far = (
        fftconvolve(signal, tail(seed))[: len(signal)]
        + 0.1 * signal.std() * rng.standard_normal(len(signal))
        for seed in (1, 2)
    )
    found, clarity = find_delay(near, shift(far, delay), 400, 16, 0.5)
    assert found == pytest.approx(delay, abs=0.1)
    assert clarity > CLEAR


def test_what_has_nothing_in_common_is_not_clear():
    ours, others = speech_like(10), speech_like(60, seed=1)
    assert find_delay(ours, others, 30 * RATE)[1] < CLEAR
    assert find_delay(ours, 0 * ours, 100) == (0, 0)


@pytest.mark.parametrize("delay", [0.5, 2.4, -17.3])
def test_a_shift_there_and_back_is_none(delay):
    signal = speech_like(1)
    back = shift(shift(signal, delay), -delay)
    inside = slice(500, -500)
    scale = np.abs(signal).max()
    np.testing.assert_allclose(back[inside], signal[inside], atol=1e-3 * scale)
    assert back.dtype == signal.dtype
    assert shift(np.float32(signal), delay).dtype == np.float32


def test_a_shift_is_that_of_a_tone():
    time = np.arange(4000)
    shifted = shift(np.sin(0.3 * time), 2.37)
    np.testing.assert_allclose(
        shifted[500:-500], np.sin(0.3 * (time - 2.37))[500:-500], atol=1e-3
    )
    assert not shift(np.ones(100), 200).any()


@pytest.mark.parametrize("start", [0, 12345, -54321, 29 * RATE])
def test_starts_are_found_within_half_a_minute(start):
    moment = speech_like(75, seed=3)
    rng = np.random.default_rng(0)
    ours, others = moment[max(0, -start) :], moment[max(0, start) :]
    others = 0.1 * fftconvolve(others, tail(5))
    others = others + 0.3 * others.std() * rng.standard_normal(len(others))
    found, clarity = find_start(ours, others, RATE)
    assert abs(found - start) <= 1
    assert clarity > CLEAR


def test_a_stream_is_put_on_another_time_line():
    stream = np.arange(1, 8)[:, None]
    blocks = [stream[:3], stream[3:]]
    for start, length in ((0, 7), (3, 7), (-2, 7), (9, 4), (-9, 3), (2, 20), (-7, 1)):
        placed = np.concatenate(list(on_the_time_line(blocks, start, length)))
        expected = np.zeros(length)
        for k, value in enumerate(stream[:, 0]):
            if 0 <= k + start < length:
                expected[k + start] = value
        np.testing.assert_array_equal(placed[:, 0], expected)


def write(path, samples, rate=RATE):
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return Recording.open(path)


@pytest.mark.parametrize(("start", "drift"), [(2.5, 200), (-1.25, -180), (0.0, 0)])
def test_drift_between_clocks_is_told(tmp_path, monkeypatch, start, drift):
    monkeypatch.setattr(alignment, "PIECE", 2.0)
    moment = speech_like(80, seed=4)
    theirs = moment[max(0, round(start * RATE)) :]
    ours = moment[max(0, -round(start * RATE)) :]
    # What a clock that is fast counts.
    times = np.arange(int(len(theirs) * (1 + drift * 1e-6))) / (1 + drift * 1e-6)
    theirs = np.interp(times, np.arange(len(theirs)), theirs)
    first, other = write(tmp_path / "a.wav", ours), write(tmp_path / "b.wav", theirs)
    clock = compare_clocks(first, other, RATE)
    assert clock.drift == pytest.approx(drift, abs=8)
    assert clock.offset == pytest.approx(start, abs=2e-3)
    assert clock.rate_of(other) == pytest.approx(RATE * (1 + drift * 1e-6), abs=0.02)


def test_talkers_in_two_places_are_no_drift(tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "PIECE", 2.0)
    moment = speech_like(60, seed=5)
    # One talks in the first half, the other in the second: 5 ms apart.
    half = len(moment) // 2
    theirs = np.concatenate((moment[:half], shift(moment[half:], 40)))
    first, other = write(tmp_path / "a.wav", moment), write(tmp_path / "b.wav", theirs)
    assert compare_clocks(first, other, RATE) == (0, 0)


def test_recordings_that_cannot_be_aligned(tmp_path):
    first = write(tmp_path / "first.wav", speech_like(5))
    other = write(tmp_path / "other.wav", speech_like(5, seed=1))
    silent = write(tmp_path / "silent.wav", np.zeros(RATE))
    with pytest.raises(
        DataError, match=r"other.wav: has nothing in common with .*first"
    ):
        compare_clocks(first, other, RATE)
    with pytest.raises(DataError, match=r"silent.wav: .* silent"):
        compare_clocks(first, silent, RATE)
