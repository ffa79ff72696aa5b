"""Where recordings of one moment lie in time: start, clock and delay.

Devices start at different times, their clocks drift apart, and a talker reaches each
microphone after another way. Start and clock are found in what the recordings have in
common, all talkers; the delay of one talker only in the estimates of that talker.
Delays are found by generalized cross-correlation: where every frequency counts alike,
the direct sound is a peak and reverberation is not.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.stats import theilslopes

from speechbrain_peer.inference.chunks import cut_chunks
from speechbrain_peer.inference.recordings import resample_blocks, resampled_length
from speechbrain_peer.utils.files import DataError

# In seconds.
LATEST_START = 30.0
SEARCHED = 90.0  # of the beginning of recordings, for where they start
PIECE = 10.0  # drift does not blur a peak
WANDERING = 2.0  # by which drift moves a piece at most: 55 ppm in 10 hours
EXPLAINED = 0.01  # by which talkers' places may move a piece without any drift

# A peak against the effective value of a correlation: noise reaches 7.
CLEAR = 10.0
FEWEST_PIECES, MOST_PIECES = 6, 600


class Clock(NamedTuple):
    """How a recording's time runs against the first one's."""

    offset: float = 0.0
    """Seconds after the beginning of the first recording at which this one begins."""
    drift: float = 0.0
    """By how many parts per million its clock is fast; 0 where that is not seen."""

    def rate_of(self, recording):
        """The true sample rate of a recording, in Hz, by the first one's clock."""
        rate = recording.sample_rate
        return rate * (1 + self.drift * 1e-6) if self.drift else rate


def find_delay(reference, other, most, fineness=1, whitening=1.0):
    """Finds by how much a signal is late.

    Arguments
    ---------
    reference : np.ndarray
        (time,).
    other : np.ndarray
        (time,), of any length.
    most : int
        Samples by which it may be late or early at most.
    fineness : int
        Points for each sample at which the correlation is computed; with more than
        one, a parabola between them gives fractions of a sample.
    whitening : float
        1: every frequency counts alike; 0: as loud as it is in both.

    Returns
    -------
    delay : float
        Samples; negative if `other` is early.
    clarity : float
        The peak against the correlation's effective value. It is worth something from
        `CLEAR` on, and 0 where a signal is silent.

    Example
    -------
    >>> noise = np.random.default_rng(0).standard_normal(8000)
    >>> delay, clarity = find_delay(noise, shift(noise, 2.3), most=50, fineness=16)
    >>> round(delay, 2), clarity > CLEAR
    (2.3, True)
    """
    size = next_fast_len(len(reference) + len(other), real=True)
    spectrum = np.conj(rfft(reference, size)) * rfft(other, size)
    height = np.abs(spectrum)
    if not height.any():
        return 0.0, 0.0
    # What is far below the mean are bands in which nothing was recorded.
    spectrum /= (height + 0.01 * height.mean()) ** whitening
    fine = size * fineness
    correlation = irfft(spectrum, fine) * fineness
    effective = np.sqrt(np.square(correlation).mean())
    least, most = -min(most, len(reference) - 1), min(most, len(other) - 1)
    lags = np.arange(least * fineness, most * fineness + 1)
    near = correlation[lags]
    top = near.argmax()
    place = lags[top]
    if fineness > 1 and 0 < top < len(near) - 1:
        before, peak, after = near[top - 1 : top + 2]
        place += (before - after) / (2 * (before - 2 * peak + after))
    return float(place / fineness), float(near[top] / effective)


def shift(signal, delay):
    """Delays a signal by any fraction of a sample.

    Arguments
    ---------
    signal : np.ndarray
        (time,).
    delay : float
        Samples; negative to advance it. Silence comes in.

    Returns
    -------
    np.ndarray
        (time,), of the signal's type.

    Example
    -------
    >>> shift(np.array([0.0, 1.0, 0.0, 0.0]), 2).round(6)
    array([0., 0., 0., 1.])
    """
    whole = int(np.rint(delay))
    signal_in = np.zeros_like(signal)
    if abs(whole) < len(signal):
        first, last = max(whole, 0), len(signal) + min(whole, 0)
        signal_in[first:last] = signal[max(-whole, 0) : len(signal) - max(whole, 0)]
    fraction = delay - whole
    if not fraction:
        return signal_in
    # Odd, so that no frequency is its own mirror; the ends do not meet.
    size = next_fast_len(len(signal) + 512, real=True) | 1
    turns = np.arange(size // 2 + 1) / size
    spectrum = rfft(signal_in.astype(float), size)
    shifted = irfft(spectrum * np.exp(-2j * np.pi * turns * fraction), size)
    return shifted[: len(signal)].astype(signal.dtype)


def find_start(reference, other, sample_rate):
    """Finds where a recording begins on the time line of another.

    Arguments
    ---------
    reference : np.ndarray
        The beginning of the other recording, (time,).
    other : np.ndarray
        The beginning of this one, (time,).
    sample_rate : int
        Of both, in Hz.

    Returns
    -------
    start : int
        Samples, within `LATEST_START` seconds; negative if it begins earlier.
    clarity : float
        See `find_delay`; the recordings have nothing in common below `CLEAR`.
    """
    piece, latest = round(PIECE * sample_rate), round(LATEST_START * sample_rate)
    found = []
    for begin in range(0, max(1, len(reference) - piece // 2), piece):
        # What was at `begin` is in `other` between begin - latest and begin + latest.
        least = max(0, begin - latest)
        window = other[least : begin + piece + latest]
        if len(window):
            part = reference[begin : begin + piece]
            delay, clarity = find_delay(part, window, max(latest, len(window)))
            found.append((clarity, -(round(delay) + least - begin)))
    clarity, start = max(found, default=(0.0, 0))
    return (start, clarity) if abs(start) <= latest else (0, 0.0)


def compare_clocks(reference, other, sample_rate):
    """Finds when a recording began, and how its clock drifts, against another.

    Drift is only told where it moves the recording further than talkers in different
    places do: below that it cannot be told from them, and `find_delay` on estimates of
    one talker, chunk by chunk, is enough.

    Arguments
    ---------
    reference : Recording
        The one whose time line counts.
    other : Recording
        The other.
    sample_rate : int
        To compare at, in Hz.

    Returns
    -------
    Clock

    Raises
    ------
    DataError
        If they have nothing in common, within `LATEST_START` seconds.
    """
    begins = [_beginning(recording, sample_rate) for recording in (reference, other)]
    for recording, begin in zip((reference, other), begins, strict=True):
        if not begin.any():
            raise DataError(
                f"{recording.path}: its first {SEARCHED:.0f} s are silent, so that it "
                "cannot be aligned with the other recordings; leave it out"
            )
    start, clarity = find_start(*begins, sample_rate)
    if clarity < CLEAR:
        raise DataError(
            f"{other.path}: has nothing in common with {reference.path}, within "
            f"{LATEST_START:.0f} s of each other's beginning; give recordings of one "
            "moment, cut so that they begin at about the same time"
        )
    return _fit(*_follow(reference, other, start, sample_rate), start, sample_rate)


def on_the_time_line(blocks, start, length):
    """Puts a stream on the time line of another.

    Arguments
    ---------
    blocks : iterable of np.ndarray
        (samples, channels), of any lengths.
    start : int
        Sample of the time line at which it begins; what comes before sample 0 is
        dropped.
    length : int
        Samples of the time line: what is missing is silent.

    Yields
    ------
    np.ndarray
        (samples, channels).

    Example
    -------
    >>> blocks = [np.array([[1], [2]]), np.array([[3]])]
    >>> [b.ravel().tolist() for b in on_the_time_line(blocks, start=1, length=5)]
    [[0], [1, 2], [3], [0]]
    >>> [b.ravel().tolist() for b in on_the_time_line(blocks, start=-1, length=1)]
    [[2]]
    """
    drop, left, silent = max(0, -start), length, None
    for block in blocks:
        if silent is None:
            silent = np.zeros_like(block[:1])
            yield from _silence(silent, min(start, length))
            left -= max(0, min(start, length))
        drop, block = max(0, drop - len(block)), block[drop:][:left]
        left -= len(block)
        if len(block):
            yield block
        if not left:
            return
    yield from _silence(silent, left)


def _silence(like, length):
    """Yields so many samples of silence, not all at once."""
    for begin in range(0, length, 1 << 16):
        yield np.repeat(like, min(1 << 16, length - begin), axis=0)


def read_at_rate(recording, channels, sample_rate, own_rate=None):
    """Yields blocks of a recording at another rate.

    Arguments
    ---------
    recording : Recording
    channels : int
        See `Recording.blocks`.
    sample_rate : int
        Wanted, in Hz.
    own_rate : float, optional
        What the recording has; by default what it says.
    """
    own_rate = own_rate or recording.sample_rate
    return resample_blocks(recording.blocks(channels), own_rate, sample_rate)


def _beginning(recording, sample_rate):
    """The first `SEARCHED` seconds of a recording, (time,)."""
    length, blocks = round(SEARCHED * sample_rate), []
    for block in read_at_rate(recording, 1, sample_rate):
        blocks.append(block[:length, 0])
        length -= len(blocks[-1])
        if not length:
            break
    return np.concatenate(blocks)


def _follow(reference, other, start, sample_rate):
    """Times and delays, in samples, of pieces all over two recordings."""
    length = resampled_length(reference.length, reference.sample_rate, sample_rate)
    piece, around = round(PIECE * sample_rate), round(WANDERING * sample_rate)
    begins = range(0, length - piece + 1, piece)
    if len(begins) < FEWEST_PIECES:
        return [], []
    begins = begins[:: math.ceil(len(begins) / MOST_PIECES)]
    bounds = [(begin, begin + piece) for begin in begins]
    wider = [(max(0, a - around), min(length, b + around)) for a, b in bounds]
    blocks = on_the_time_line(read_at_rate(other, 1, sample_rate), start, length)
    parts = cut_chunks(read_at_rate(reference, 1, sample_rate), bounds)
    times, delays = [], []
    for part, (begin, end), window, (least, _) in zip(
        parts, bounds, cut_chunks(blocks, wider), wider, strict=True
    ):
        delay, clarity = find_delay(part[:, 0], window[:, 0], 2 * around)
        if clarity >= CLEAR:
            times.append((begin + end) / 2)
            delays.append(delay - (begin - least))
    return times, delays


def _fit(times, delays, start, sample_rate):
    """The clock of a recording, of the delays of pieces, in samples."""
    drift = 0.0
    if len(times) >= FEWEST_PIECES:
        slope, late, least, most = theilslopes(delays, times)
        moved = abs(slope) * (times[-1] - times[0])
        if least * most > 0 and moved > EXPLAINED * sample_rate:
            drift, start = slope, (start - late) / (1 + slope)
    return Clock(start / sample_rate, drift * 1e6)
