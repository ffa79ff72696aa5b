"""Recordings as people have them: any format, rate, number of channels and length.

Audio passes through as blocks, arrays of shape (samples, channels), one after the
other: a file of hours is never whole in memory.
"""

import math
import os
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soxr

from speechbrain_peer.utils.audio import AudioError, check_samples, open_audio
from speechbrain_peer.utils.decoding import DECODED, decode

BLOCK = 1 << 16
"""Samples that are read at once, of all channels together."""


class Recording(NamedTuple):
    """An audio file that has been read through once."""

    path: str | os.PathLike
    """The file, or what messages call it."""
    length: int
    """Samples of a channel, counted: headers may not tell or be wrong."""
    sample_rate: int
    """In Hz."""
    channels: int
    """How many."""
    subtype: str | None
    """Encoding of the samples, as soundfile names it; None where ffmpeg decoded it."""
    file: BinaryIO | None = None
    """What holds it, where it is not the file of that name."""

    @classmethod
    def open(cls, path, file=None):
        """Reads a file through.

        Arguments
        ---------
        path : str or pathlib.Path
            Any format that libsndfile knows, or one of `decoding.DECODED`.
        file : binary file object, optional
            What to read instead, such as `decoding.spool` gives; messages still name
            `path`.

        Returns
        -------
        Recording

        Raises
        ------
        AudioError
            If the file is missing, no regular file, unreadable or empty, has a rate
            outside `audio.SAMPLE_RATES`, or holds samples that are NaN, infinite or
            beyond `audio.LOUDEST`; the message tells where.

        Example
        -------
        >>> import soundfile
        >>> path = getfixture("tmp_path") / "stereo.wav"
        >>> soundfile.write(path, np.zeros((4, 2)), samplerate=44100)
        >>> Recording.open(path)[1:5]
        (4, 44100, 2, 'PCM_16')
        """
        with ExitStack() as stack:
            given = file is not None
            if not given:
                file = stack.enter_context(_decoded(path))
            with open_audio(path, file) as audio:
                length = sum(len(block) for block in _blocks(audio, path))
                subtype = audio.subtype if given or file is None else None
                properties = length, audio.samplerate, audio.channels, subtype
            stack.pop_all()
        return cls(path, *properties, file)

    def close(self):
        """Closes what holds it, where that is not the file of that name."""
        if self.file is not None:
            self.file.close()

    def blocks(self, channels=None):
        """Yields float32 blocks, (samples, channels); of 1 channel, their average."""
        with open_audio(self.path, self.file) as audio:
            blocks = _blocks(audio, self.path)
            yield from average_channels(blocks) if channels == 1 else blocks


def read_start(path, seconds):
    """Reads the start of an audio file; several channels are averaged.

    Arguments
    ---------
    path : str or pathlib.Path
        Any format that `Recording.open` takes.
    seconds : float
        How much to read at most.

    Returns
    -------
    blocks : list of np.ndarray
        float32, (samples, 1).
    sample_rate : int
        In Hz.

    Raises
    ------
    AudioError
        As `Recording.open`.
    """
    with _decoded(path) as file, open_audio(path, file) as audio:
        left, blocks = round(seconds * audio.samplerate), []
        for block in average_channels(_blocks(audio, path)):
            blocks.append(block[:left])
            left -= len(block)
            if left <= 0:
                break
        return blocks, audio.samplerate


def lowest_rate(recordings):
    """Tells the lowest sample rate of recordings, which are not read for it.

    Arguments
    ---------
    recordings : iterable of (str, pathlib.Path or Recording)
        In any format that `Recording.open` takes.

    Returns
    -------
    int or None
        In Hz, of those that can be read; None where none can.

    Example
    -------
    >>> import soundfile
    >>> paths = [getfixture("tmp_path") / f"{rate}.wav" for rate in (44100, 16000)]
    >>> for path in paths:
    ...     soundfile.write(path, np.zeros(4), samplerate=int(path.stem))
    >>> lowest_rate([*paths, "absent.wav"])
    16000
    """
    rates = []
    for recording in recordings:
        with suppress(AudioError):
            rates.append(_rate_of(recording))
    return min(rates, default=None)


def _rate_of(recording):
    if isinstance(recording, Recording):
        return recording.sample_rate
    with _decoded(recording, seconds=0.1) as file, open_audio(recording, file) as audio:
        return audio.samplerate


def average_channels(blocks):
    """Makes one channel of several.

    Arguments
    ---------
    blocks : iterable of np.ndarray
        (samples, channels).

    Yields
    ------
    np.ndarray
        (samples, 1).
    """
    for block in blocks:
        yield block.mean(axis=1, keepdims=True)


def subtract_blocks(blocks, others):
    """Subtracts a stream from another, cut in another way; it ends with either.

    Arguments
    ---------
    blocks : iterable of np.ndarray
        (samples, channels).
    others : iterable of np.ndarray
        What to subtract, (samples, channels).

    Yields
    ------
    np.ndarray
        (samples, channels), cut as `blocks` are.

    Example
    -------
    >>> blocks = [np.array([[5], [5]]), np.array([[5]])]
    >>> others = [np.array([[1]]), np.array([[2], [3]])]
    >>> [block[:, 0].tolist() for block in subtract_blocks(blocks, others)]
    [[4, 3], [2]]
    """
    others, held = iter(others), None
    for block in blocks:
        held = np.zeros_like(block[:0]) if held is None else held
        while len(held) < len(block):
            other = next(others, None)
            if other is None:
                yield block[: len(held)] - held
                return
            held = np.concatenate((held, other))
        yield block - held[: len(block)]
        held = held[len(block) :]


def resampled_length(length, from_rate, to_rate):
    """Samples of a resampled recording, rounded up.

    After a way there and back it is at least as long as before.

    Example
    -------
    >>> resampled_length(44101, from_rate=44100, to_rate=8000)
    8001
    """
    return int(-(-length * to_rate // from_rate))


def resample_blocks(blocks, from_rate, to_rate):
    """Changes the sample rate, without seams and without a delay.

    `soxr` does it, at its quality HQ, in constant memory. A sample depends on what
    comes up to 0.2 s later, so that blocks come out that much later than they go in;
    none is shifted in time. How the recording is cut into blocks changes nothing.

    Below 0.4 of the lower rate the result is that of `scipy.signal.resample_poly`,
    which renders the data to train on, within -58 dB; between 0.45 and 0.5 that filter
    falls slowly and aliases, and soxr's does not. On speech that comes to -31 dB.

    Arguments
    ---------
    blocks : iterable of np.ndarray
        float32 or float64, (samples, channels), of any lengths.
    from_rate : int or float
        In Hz; with a fraction where a clock is not exact.
    to_rate : int
        In Hz.

    Yields
    ------
    np.ndarray
        (samples, channels), `resampled_length` samples in all.

    Example
    -------
    >>> blocks = resample_blocks([np.zeros((3, 1)), np.zeros((41, 1))], 44100, 8000)
    >>> sum(len(block) for block in blocks)
    8
    """
    if from_rate == to_rate:
        yield from blocks
        return
    resampler, taken, given = None, 0, 0
    for block in blocks:
        if resampler is None:
            rates = from_rate, to_rate
            resampler = soxr.ResampleStream(*rates, block.shape[1], block.dtype)
        resampled = resampler.resample_chunk(block)
        taken, given = taken + len(block), given + len(resampled)
        yield resampled
    if resampler is not None:
        # soxr rounds the length to the nearest: one more sample, if cut again, is up.
        more = np.zeros_like(
            block, shape=(math.ceil(from_rate / to_rate), block.shape[1])
        )
        left = resampled_length(taken, from_rate, to_rate) - given
        yield resampler.resample_chunk(more, last=True)[:left]


def _decoded(path, seconds=None):
    """A context with what ffmpeg makes of a file; with None, if it can be read."""
    decoded = Path(path).suffix.lower() in DECODED
    return decode(path, seconds) if decoded else nullcontext()


def _blocks(audio, path):
    """Yields the blocks of an open file, checked."""
    position, size = 0, max(1, BLOCK // audio.channels)
    while len(block := audio.read(size, dtype="float32", always_2d=True)):
        check_samples(path, block, position, audio.samplerate)
        yield block
        position += len(block)
    if not position:
        raise AudioError(f"{path}: has no samples")
