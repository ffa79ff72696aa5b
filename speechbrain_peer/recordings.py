"""Recordings as people have them: any format, rate and number of channels."""

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from scipy.signal import resample_poly
from speechbrain.utils.logger import get_logger

from speechbrain_peer.data.audio import AudioError
from speechbrain_peer.data.files import whole_file

logger = get_logger(__name__)

LOSSLESS = ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")


class Recording(NamedTuple):
    """One channel of sound, and how its file kept it."""

    samples: np.ndarray
    """float32, (time,)."""
    sample_rate: int
    """In Hz."""
    subtype: str
    """Encoding of the samples, as soundfile names it."""


def read_recording(path):
    """Reads an audio file; several channels are averaged.

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
        If the file is missing, unreadable or empty, or holds NaN or infinite samples.

    Example
    -------
    >>> path = getfixture("tmp_path") / "stereo.wav"
    >>> soundfile.write(path, np.array([[0.25, 0.75]] * 4), samplerate=44100)
    >>> read_recording(path).samples
    array([0.5, 0.5, 0.5, 0.5], dtype=float32)
    """
    if not os.path.exists(path):
        raise AudioError(f"{path}: no such file")
    try:
        with soundfile.SoundFile(path) as file:
            samples = file.read(dtype="float32", always_2d=True)
            rate, subtype = file.samplerate, file.subtype
    except (soundfile.SoundFileError, TypeError) as error:
        # A TypeError is a headerless .raw file.
        raise AudioError(
            f"{path}: cannot be read as audio ({error}); convert it to WAV or FLAC"
        ) from error
    if not len(samples):
        raise AudioError(f"{path}: has no samples")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: holds NaN or infinite samples")
    return Recording(samples.mean(axis=1), rate, subtype)


def resample(samples, from_rate, to_rate):
    """Changes the sample rate, with a polyphase filter.

    Arguments
    ---------
    samples : np.ndarray
        (time,).
    from_rate : int
        In Hz.
    to_rate : int
        In Hz.

    Returns
    -------
    np.ndarray
        (time * to_rate / from_rate,), rounded up: after a way there and back, at
        least as long as before.

    Example
    -------
    >>> resample(np.zeros(44100), from_rate=44100, to_rate=8000).shape
    (8000,)
    """
    if from_rate == to_rate:
        return samples
    # It reduces the fraction itself.
    return resample_poly(samples, to_rate, from_rate)


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
    _format_of(path)
    if os.path.isdir(path):
        raise AudioError(f"{path}: is a folder; give the name of a file")
    for file in inputs:
        if (
            os.path.exists(path)
            and os.path.exists(file)
            and os.path.samefile(path, file)
        ):
            raise AudioError(f"{path}: is an input; give the output another name")


def write_recording(path, recording):
    """Writes an audio file, whole or not at all, and never clipped.

    The format is that of the suffix, the encoding that of the recording where the
    format has it and loses nothing, else the format's usual one. Samples beyond full
    scale are written as floating point where the format has that; where it has not,
    the whole recording is attenuated, with a warning.

    Arguments
    ---------
    path : str or pathlib.Path
        The file; folders above it are made.
    recording : Recording
        What to write.
    """
    format = _format_of(path)
    samples, sample_rate, subtype = recording
    if subtype not in LOSSLESS or not soundfile.check_format(format, subtype):
        subtype = soundfile.default_subtype(format)
    peak = np.abs(samples).max()
    if peak > 1 and subtype not in ("FLOAT", "DOUBLE"):
        if soundfile.check_format(format, "FLOAT"):
            subtype = "FLOAT"
        else:
            logger.warning(
                f"{path}: attenuated by {20 * np.log10(peak):.1f} dB, "
                f"because {format} would clip it; a .wav file keeps the level."
            )
            samples = samples / peak
    # Encoded in memory, because libsndfile does not report a full disk.
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, sample_rate, subtype, format=format)
    with whole_file(path) as temporary:
        temporary.write_bytes(encoded.getbuffer())


def _format_of(path):
    format = Path(path).suffix[1:].upper()
    # A RAW file would not tell its rate.
    known = soundfile.available_formats().keys() - {"RAW"}
    if format not in known:
        raise AudioError(
            f"{path}: no audio format has this suffix; use one of "
            f"{', '.join(f'.{name.lower()}' for name in sorted(known))}"
        )
    return format
