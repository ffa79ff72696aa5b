"""Files that recordings are written to: formats, encodings, never clipped, whole."""

import io
import math
import os
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from speechbrain.utils.logger import get_logger

from speechbrain_peer.inference.recordings import BLOCK
from speechbrain_peer.utils.audio import AudioError
from speechbrain_peer.utils.files import whole_file
from speechbrain_peer.utils.formats import sound_formats

logger = get_logger(__name__)

UNLIMITED = ("FLOAT", "DOUBLE")
LOSSLESS = ("PCM_16", "PCM_24", "PCM_32", *UNLIMITED)

LONGEST_WAV = (1 << 32) - BLOCK
"""Bytes that a WAV header counts up to, with room for the header."""

UNREADABLE = ("SD2", "SDS", "XI")
"""Formats of libsndfile that do not come back as they were written: one keeps its
header in another file, the others change the rate or the length."""


def output_suffixes():
    """Tells which suffixes files to write may have.

    Returns
    -------
    dict
        Format and usual encoding, as soundfile names them, by lower-case suffix.

    Example
    -------
    >>> output_suffixes()[".opus"], output_suffixes()[".aif"]
    (('OGG', 'OPUS'), ('AIFF', 'PCM_16'))
    """
    return {
        suffix: (format, subtype)
        for suffix, (format, subtype) in sound_formats().items()
        if format not in UNREADABLE
    }


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
        If the suffix is of no audio format, or `path` is an input or a folder, or lies
        in a file.
    """
    _usual_encoding(path)
    if os.path.isdir(path):
        raise AudioError(f"{path}: is a folder; give the name of a file")
    above = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if not above.is_dir():
        raise AudioError(f"{path}: {above} is a file, not a folder")
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
    # RF64 is the same with more digits.
    size = recording.length * channels * (8 if subtype == "DOUBLE" else 4)
    if format == "WAV" and size > LONGEST_WAV:
        format = "RF64"
    encoding = Encoding(format, subtype, recording.sample_rate, channels)
    _check_encoding(path, encoding)
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


@contextmanager
def record_blocks(path, sample_rate, channels):
    """Opens an audio file to be written as a live signal comes.

    It appears, whole, when the context ends, also by an error or Ctrl+C, and on a full
    disk with what that holds: a live signal does not come again. Samples are floating
    point where the format has that; elsewhere those beyond full scale are clipped.

    Arguments
    ---------
    path : str or pathlib.Path
        The file; folders above it are made.
    sample_rate : int
        In Hz.
    channels : int
        How many.

    Yields
    ------
    callable
        Takes the next samples, (samples, channels).

    Raises
    ------
    AudioError
        If the format has not this rate or number of channels, or is full.

    Example
    -------
    >>> path = getfixture("tmp_path") / "live.wav"
    >>> with record_blocks(path, sample_rate=8000, channels=1) as write:
    ...     for _ in range(3):
    ...         write(np.zeros((100, 1)))
    >>> soundfile.info(path).frames
    300
    """
    format, subtype = _usual_encoding(path)
    if soundfile.check_format(format, "FLOAT"):
        subtype = "FLOAT"
    encoding = Encoding(format, subtype, sample_rate, channels)
    _check_encoding(path, encoding)
    left = LONGEST_WAV // (channels * 4) if format == "WAV" else math.inf
    ended, full = None, False
    with whole_file(path) as temporary, _Sink(temporary, "w") as sink:
        with _writer(sink, encoding) as file:

            def write(block):
                nonlocal left
                left -= len(block)
                if left < 0:
                    raise AudioError(f"{path}: a .wav file holds 4 GiB: it is full")
                file.write(block)
                sink.check()

            try:
                yield write
            except BaseException as error:
                ended, full = error, sink.error is not None
        # What a full disk holds is kept; for the header, which is there, it has room.
        if not full:
            sink.check()
    if ended is not None:
        raise ended


class _Sink(io.FileIO):
    """What libsndfile writes to: it would not tell of a full disk in every format."""

    error = None

    def write(self, data):
        """Writes all of it, or keeps the first error."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = self.error or error
        return len(data)

    def check(self):
        """Raises the error."""
        if self.error is not None:
            raise self.error


def _check_encoding(path, encoding):
    reason = _try(encoding)
    if reason:
        raise AudioError(
            f"{path}: {encoding.format} cannot hold {encoding.channels} channel(s) at "
            f"{encoding.sample_rate} Hz ({reason}); write a .wav file"
        )


def _try(encoding):
    """Tells why a format cannot hold it; None if it can."""
    file = io.BytesIO()
    try:
        with _writer(file, encoding) as sound:
            sound.write(np.zeros((1, encoding.channels)))
        file.seek(0)
        with soundfile.SoundFile(file) as sound:
            rate = sound.samplerate
    except soundfile.SoundFileError as error:
        return error
    return None if rate == encoding.sample_rate else f"it would say {rate} Hz"


def _writer(file, encoding):
    format, subtype, sample_rate, channels = encoding
    return soundfile.SoundFile(file, "w", sample_rate, channels, subtype, format=format)


def _usual_encoding(path):
    """Format and encoding that the suffix of a file to write stands for."""
    known = output_suffixes()
    suffix = Path(path).suffix.lower()
    if suffix not in known:
        raise AudioError(
            f"{path}: no audio format has this suffix; use one of "
            f"{', '.join(sorted(known))}"
        )
    return known[suffix]
