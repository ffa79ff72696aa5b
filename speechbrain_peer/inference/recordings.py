"""Recordings as people have them: any format, rate, number of channels and length.

Audio passes through as blocks, arrays of shape (samples, channels), one after the
other: a file of hours is never whole in memory.
"""

import io
import math
import os
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from scipy.signal import resample_poly
from speechbrain.utils.logger import get_logger

from speechbrain_peer.utils.audio import LOUDEST, AudioError
from speechbrain_peer.utils.files import whole_file

logger = get_logger(__name__)

BLOCK = 1 << 16
"""Samples that are read at once."""

ALIASES = {
    ".aif": ("AIFF", None),
    ".aifc": ("AIFF", None),
    ".bwf": ("WAV", None),
    ".oga": ("OGG", None),
    ".opus": ("OGG", "OPUS"),
    ".snd": ("AU", None),
    ".sph": ("NIST", None),
    ".wave": ("WAV", None),
}
"""Format and encoding by suffix, where the suffix is not the format's name in
soundfile; None stands for the format's usual encoding."""

UNLIMITED = ("FLOAT", "DOUBLE")
LOSSLESS = ("PCM_16", "PCM_24", "PCM_32", *UNLIMITED)


class Recording(NamedTuple):
    """An audio file that has been read through once."""

    path: str | os.PathLike
    """The file."""
    length: int
    """Samples of a channel, counted: headers may not tell or be wrong."""
    sample_rate: int
    """In Hz."""
    channels: int
    """How many."""
    subtype: str
    """Encoding of the samples, as soundfile names it."""

    @classmethod
    def open(cls, path):
        """Reads a file through.

        Arguments
        ---------
        path : str or pathlib.Path
            Any format that libsndfile knows.

        Returns
        -------
        Recording

        Raises
        ------
        AudioError
            If the file is missing, unreadable or empty, or holds samples that are NaN
            or beyond `utils.audio.LOUDEST`; the message tells where.

        Example
        -------
        >>> path = getfixture("tmp_path") / "stereo.wav"
        >>> soundfile.write(path, np.zeros((4, 2)), samplerate=44100)
        >>> Recording.open(path)[1:]
        (4, 44100, 2, 'PCM_16')
        """
        with _opened(path) as file:
            length = sum(len(block) for block in _blocks(file, path))
            return cls(path, length, file.samplerate, file.channels, file.subtype)

    def blocks(self):
        """Yields float32 blocks, (samples, channels)."""
        with _opened(self.path) as file:
            yield from _blocks(file, self.path)


def audio_suffixes():
    """Tells which suffixes files of audio may have.

    Returns
    -------
    dict
        Format and usual encoding, as soundfile names them, by lower-case suffix.

    Example
    -------
    >>> audio_suffixes()[".opus"], audio_suffixes()[".aif"]
    (('OGG', 'OPUS'), ('AIFF', 'PCM_16'))
    """
    # A RAW file would not tell its rate.
    formats = soundfile.available_formats().keys() - {"RAW"}
    table = {f".{name.lower()}": (name, None) for name in formats} | ALIASES
    return {
        suffix: (format, subtype or soundfile.default_subtype(format))
        for suffix, (format, subtype) in table.items()
        # Older builds of libsndfile have fewer.
        if format in formats and soundfile.check_format(format, subtype)
    }


def read_start(path, seconds):
    """Reads the start of an audio file; several channels are averaged.

    Arguments
    ---------
    path : str or pathlib.Path
        Any format that libsndfile knows.
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
    with _opened(path) as file:
        left, blocks = round(seconds * file.samplerate), []
        for block in average_channels(_blocks(file, path)):
            blocks.append(block[:left])
            left -= len(block)
            if left <= 0:
                break
        return blocks, file.samplerate


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


def resampled_length(length, from_rate, to_rate):
    """Samples of a resampled recording, rounded up.

    After a way there and back it is at least as long as before.

    Example
    -------
    >>> resampled_length(44101, from_rate=44100, to_rate=8000)
    8001
    """
    return -(-length * to_rate // from_rate)


def resample_blocks(blocks, from_rate, to_rate):
    """Changes the sample rate, with a polyphase filter, without seams.

    The result is that of `scipy.signal.resample_poly` on the whole recording: each
    block is resampled together with the samples on both sides that the filter reaches.

    Arguments
    ---------
    blocks : iterable of np.ndarray
        (samples, channels), of any lengths.
    from_rate : int
        In Hz.
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
    divisor = math.gcd(from_rate, to_rate)
    up, down = to_rate // divisor, from_rate // divisor
    # The filter's reach, in whole periods of `down` samples, which become `up`.
    periods = -(-(10 * max(up, down) + up) // (up * down))
    reach, cut = periods * down, periods * up
    held = None
    for block in blocks:
        if held is None:
            held = np.zeros((reach, block.shape[1]), block.dtype)
        held = np.concatenate((held, block))
        ready = (len(held) - 2 * reach) // down
        if ready > 0:
            resampled = resample_poly(held[: ready * down + 2 * reach], up, down)
            yield resampled[cut : cut + ready * up]
            held = held[ready * down :]
    if held is not None:
        left = resampled_length(len(held) - reach, down, up)
        held = np.concatenate((held, np.zeros_like(held[:reach])))
        yield resample_poly(held, up, down)[cut : cut + left]


class Encoding(NamedTuple):
    """How a file keeps audio."""

    format: str
    """Of the file, as soundfile names it."""
    subtype: str
    """Of the samples."""
    sample_rate: int
    """In Hz."""
    channels: int
    """How many."""


def check_output(path, inputs):
    """Refuses, before any work, a file that could not be or must not be written.

    Arguments
    ---------
    path : str or pathlib.Path
        The file to write.
    inputs : list of (str or pathlib.Path)
        Files to keep.

    Raises
    ------
    AudioError
        If the suffix is of no audio format, or `path` is an input or a folder.
    """
    _usual_encoding(path)
    if os.path.isdir(path):
        raise AudioError(f"{path}: is a folder; give the name of a file")
    for file in inputs:
        if (
            os.path.exists(path)
            and os.path.exists(file)
            and os.path.samefile(path, file)
        ):
            raise AudioError(f"{path}: is an input; give the output another name")


def choose_encoding(path, recording, channels):
    """Chooses the encoding of a file that is made of a recording.

    The format is that of the suffix, the encoding that of the recording where the
    format has it and loses nothing, else the format's usual one.

    Arguments
    ---------
    path : str or pathlib.Path
        The file to write.
    recording : Recording
        What it is made of.
    channels : int
        How many it has.

    Returns
    -------
    Encoding

    Raises
    ------
    AudioError
        If the format has not this rate or number of channels.
    """
    (format, usual), subtype = _usual_encoding(path), recording.subtype
    if subtype not in LOSSLESS or not soundfile.check_format(format, subtype):
        subtype = usual
    # A WAV header counts up to 4 GiB; RF64 is the same with more digits.
    size = recording.length * channels * (8 if subtype == "DOUBLE" else 4)
    if format == "WAV" and size > (1 << 32) - BLOCK:
        format = "RF64"
    encoding = Encoding(format, subtype, recording.sample_rate, channels)
    try:
        _writer(io.BytesIO(), encoding).close()
    except soundfile.SoundFileError as error:
        raise AudioError(
            f"{path}: {format} cannot hold {channels} channel(s) at "
            f"{recording.sample_rate} Hz ({error}); write a .wav file"
        ) from error
    return encoding


def write_blocks(path, blocks, encoding):
    """Writes an audio file, whole or not at all, and never clipped.

    Samples beyond full scale are written as floating point where the format has that;
    where it has not, the whole recording is attenuated, with a warning.

    Arguments
    ---------
    path : str or pathlib.Path
        The file; folders above it are made.
    blocks : callable
        Returns an iterator over the blocks, (samples, channels); called twice where
        the peak has to be known.
    encoding : Encoding
        Of the file.

    Example
    -------
    >>> path = getfixture("tmp_path") / "loud.wav"
    >>> encoding = Encoding("WAV", "PCM_16", sample_rate=8000, channels=1)
    >>> write_blocks(path, lambda: [np.full((100, 1), 2.0)] * 3, encoding)
    >>> soundfile.info(path).frames, soundfile.info(path).subtype
    (300, 'FLOAT')
    """
    gain = 1.0
    if encoding.subtype not in UNLIMITED:
        peak = max(np.abs(block).max(initial=0.0) for block in blocks())
        if peak > 1 and soundfile.check_format(encoding.format, "FLOAT"):
            encoding = encoding._replace(subtype="FLOAT")
        elif peak > 1:
            logger.warning(
                f"{path}: attenuated by {20 * np.log10(peak):.1f} dB, because "
                f"{encoding.format} would clip it; a .wav file keeps the level."
            )
            gain = 1 / peak
    with whole_file(path) as temporary, _Sink(temporary, "w") as sink:
        with _writer(sink, encoding) as file:
            for block in blocks():
                file.write(gain * block)
                sink.check()
        sink.check()


class _Sink(io.FileIO):
    """What libsndfile writes to: it would not tell of a full disk in every format."""

    error = None

    def write(self, data):
        """Writes all of it, or keeps the error."""
        rest = memoryview(data)
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return len(data)

    def check(self):
        """Raises the error."""
        if self.error is not None:
            raise self.error


def _writer(file, encoding):
    format, subtype, sample_rate, channels = encoding
    return soundfile.SoundFile(file, "w", sample_rate, channels, subtype, format=format)


@contextmanager
def _opened(path):
    """Opens a file for reading, with every complaint as an AudioError."""
    if not os.path.exists(path):
        raise AudioError(f"{path}: no such file")
    try:
        with soundfile.SoundFile(path) as file:
            yield file
    except (soundfile.SoundFileError, TypeError) as error:
        # A TypeError is a headerless .raw file.
        raise AudioError(
            f"{path}: cannot be read as audio ({error}); convert it to WAV or FLAC"
        ) from error


def _blocks(file, path):
    """Yields the blocks of an open file, checked."""
    position = 0
    while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
        sound = (np.abs(block) <= LOUDEST).all(axis=1)  # NaN is not
        if not sound.all():
            seconds = (position + sound.argmin()) / file.samplerate
            raise AudioError(
                f"{path}: holds NaN, infinite samples or some beyond {LOUDEST:g}, the "
                f"first at {seconds:.3f} s; full scale is 1"
            )
        yield block
        position += len(block)
    if not position:
        raise AudioError(f"{path}: has no samples")


def _usual_encoding(path):
    """Format and encoding that the suffix of a file to write stands for."""
    known = audio_suffixes()
    suffix = Path(path).suffix.lower()
    if suffix not in known:
        raise AudioError(
            f"{path}: no audio format has this suffix; use one of "
            f"{', '.join(sorted(known))}"
        )
    return known[suffix]
