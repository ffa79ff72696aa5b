"""One-channel audio files: reading by seek with checks, writing them whole."""

import io
import os
from contextlib import contextmanager

import numpy as np
import soundfile

from speechbrain_peer.utils.files import DataError, whole_file

LOUDEST = 1e5
"""Samples beyond it, where full scale is 1, are refused: none was recorded so loud, and
far beyond it the networks' energies leave what fp32 holds."""


class AudioError(DataError):
    """An audio file that cannot be used; the message names it and the cure."""


def read_audio(path, start=0, frames=-1, sample_rate=None, check_finite=True):
    """Reads a segment of a one-channel audio file by seek.

    Arguments
    ---------
    path : str or Path
        The file: WAV, FLAC or anything else that libsndfile reads.
    start : int
        First sample to read.
    frames : int
        How many samples to read; fewer come back where the file ends earlier.
        -1 reads to the end.
    sample_rate : int, optional
        The rate in Hz that the file must have.
    check_finite : bool
        Whether NaN and infinite samples are an error.

    Returns
    -------
    samples : np.ndarray
        float32, (time,).

    Raises
    ------
    AudioError
        If the file is missing, unreadable, empty, not of one channel, of another
        rate, shorter than `start`, or holds samples that are not finite.

    Example
    -------
    >>> path = getfixture("tmp_path") / "speech.wav"
    >>> write_audio(path, np.linspace(-0.5, 0.5, 8000), sample_rate=8000)
    >>> read_audio(path, start=6000, frames=1000, sample_rate=8000).shape
    (1000,)
    """
    with _opened(path, sample_rate) as file:
        if start >= file.frames:
            raise AudioError(
                f"{path}: has {file.frames} samples, but sample {start} was asked for; "
                "the file has changed since the manifest was written: prepare the "
                "data again"
            )
        available = file.frames - start
        expected = available if frames < 0 else min(frames, available)
        file.seek(start)
        samples = file.read(expected, dtype="float32")
    if len(samples) < expected:
        raise AudioError(f"{path}: is cut short; get or make this file again")
    if check_finite and not np.isfinite(samples).all():
        raise AudioError(
            f"{path}: holds NaN or infinite samples; get or make this file again"
        )
    return samples


def audio_length(path, sample_rate=None):
    """Tells the length of a one-channel audio file from its header.

    Arguments
    ---------
    path : str or Path
        The file.
    sample_rate : int, optional
        The rate in Hz that the file must have.

    Returns
    -------
    length : int
        Number of samples.
    """
    with _opened(path, sample_rate) as file:
        return file.frames


def write_audio(path, samples, sample_rate):
    """Writes a 16-bit PCM WAV file, whole or not at all.

    Arguments
    ---------
    path : str or Path
        The file; absent folders above it are made too.
    samples : np.ndarray
        (time,), full scale at -1 and 1; what is beyond is clipped.
    sample_rate : int
        In Hz.
    """
    # Encoded in memory, because libsndfile does not report a full disk.
    wav = io.BytesIO()
    soundfile.write(wav, samples, sample_rate, format="WAV", subtype="PCM_16")
    with whole_file(path) as temporary:
        temporary.write_bytes(wav.getbuffer())


@contextmanager
def _opened(path, sample_rate):
    """Opens an audio file for reading, with every complaint as an AudioError."""
    try:
        with soundfile.SoundFile(path) as file:
            _check_header(path, file, sample_rate)
            yield file
    except soundfile.SoundFileError as error:
        if not os.path.exists(path):
            raise AudioError(
                f"{path}: no such file; correct the path or make the file again"
            ) from None
        raise AudioError(
            f"{path}: cannot be read as audio ({error}); get or make this file again"
        ) from error


def _check_header(path, file, sample_rate):
    """Raises AudioError unless the open file is one we can use."""
    if file.frames == 0:
        raise AudioError(f"{path}: has no samples; get or make this file again")
    if file.channels != 1:
        raise AudioError(
            f"{path}: has {file.channels} channels; give a file of one channel"
        )
    if sample_rate is not None and file.samplerate != sample_rate:
        raise AudioError(
            f"{path}: its sample rate is {file.samplerate} Hz, but {sample_rate} Hz is "
            "needed; put the file at that rate in its place"
        )
