"""Audio files: opening them with checks, reading by seek, writing them whole."""

import io
import os
import stat
from contextlib import contextmanager

import numpy as np
import soundfile

from speechbrain_peer.utils.files import DataError, whole_file

LOUDEST = 1e5
"""Samples beyond it, where full scale is 1, are refused: none was recorded so loud, and
far beyond it the networks' energies leave what fp32 holds."""

BLOCK = 1 << 20
"""Samples that memory is asked for at once."""


class AudioError(DataError):
    """An audio file that cannot be used; the message names it and the cure."""


SAMPLE_RATES = range(1000, 768_001)
"""Rates in Hz that audio may have; a header with another one is broken."""


def check_regular(path):
    """Refuses what is no file: a pipe would be waited for, a device never ends.

    Arguments
    ---------
    path : str or Path
        To be opened for reading.

    Raises
    ------
    AudioError
        If there is nothing, or something else.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"{path}: {reason}") from error
    if stat.S_ISDIR(mode):
        raise AudioError(f"{path}: cannot be read as audio, because it is a folder")
    if not stat.S_ISREG(mode):
        raise AudioError(
            f"{path}: cannot be read as audio, because it is a pipe, socket or device; "
            "give a file"
        )


@contextmanager
def open_audio(path, file=None):
    """Opens an audio file for reading.

    Arguments
    ---------
    path : str or Path
        The file: WAV, FLAC or anything else that libsndfile reads.
    file : file object, optional
        What to read instead, which can be rewound; messages still name `path`.

    Yields
    ------
    soundfile.SoundFile

    Raises
    ------
    AudioError
        If it cannot be read, also while the context lasts, or has a rate that no
        audio has.
    """
    if file is None:
        check_regular(path)
    else:
        file.seek(0)
    try:
        source = path if file is None else _lowest(file)
        with _sound_file(source) as audio:
            if audio.samplerate not in SAMPLE_RATES:
                raise AudioError(
                    f"{path}: its header says {audio.samplerate} Hz, but audio has "
                    f"{SAMPLE_RATES[0]} to {SAMPLE_RATES[-1]} Hz; get or make this "
                    "file again"
                )
            yield audio
    except soundfile.SoundFileError as error:
        raise AudioError(
            f"{path}: cannot be read as audio ({error}); convert it to WAV or FLAC, or "
            "get it again"
        ) from error


def check_samples(path, samples, start, sample_rate):
    """Refuses samples that no computation would survive.

    Arguments
    ---------
    path : str or Path
        The file they are from.
    samples : np.ndarray
        float32, (time, ...).
    start : int
        Position of the first one in the file.
    sample_rate : int
        In Hz.

    Raises
    ------
    AudioError
        If some are NaN, infinite or beyond `LOUDEST`; the message tells where.
    """
    # Written so that NaN is found too.
    bad = ~(np.abs(samples) <= LOUDEST).reshape(len(samples), -1).all(axis=1)
    if bad.any():
        seconds = (start + bad.argmax()) / sample_rate
        raise AudioError(
            f"{path}: holds NaN, infinite samples or some beyond {LOUDEST:g}, the "
            f"first at {seconds:.3f} s; full scale is 1"
        )


def read_audio(path, start=0, frames=-1, sample_rate=None):
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

    Returns
    -------
    samples : np.ndarray
        float32, (time,).

    Raises
    ------
    AudioError
        If the file is missing, unreadable, empty, not of one channel, of another
        rate, shorter than `start`, or holds samples as `check_samples` refuses.

    Example
    -------
    >>> path = getfixture("tmp_path") / "speech.wav"
    >>> write_audio(path, np.linspace(-0.5, 0.5, 8000), sample_rate=8000)
    >>> read_audio(path, start=6000, frames=1000, sample_rate=8000).shape
    (1000,)
    """
    with _opened(path, sample_rate) as file:
        return read_segment(path, file, start, frames)[:, 0]


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


def _lowest(file):
    """The operating system's file below a file object, or else that object.

    Python's are slower, and their errors are told past us.
    """
    try:
        return os.dup(file.fileno())
    except (OSError, AttributeError):
        return file


def _sound_file(file):
    if isinstance(file, (str, os.PathLike)) and os.name != "nt":
        file = os.fsencode(file)  # a name may be anything, not UTF-8 alone
    try:
        return soundfile.SoundFile(file)
    except TypeError:
        raise soundfile.SoundFileError("a raw file does not tell its rate") from None


def read_segment(path, file, start, frames):
    """Reads a piece of an open file, and checks it as `read_audio` does.

    Arguments
    ---------
    path : str or Path
        For messages.
    file : soundfile.SoundFile
        Open.
    start : int
        First sample to read.
    frames : int
        How many; -1 reads to the end.

    Returns
    -------
    np.ndarray
        float32, (time, channels).
    """
    if start >= file.frames:
        raise AudioError(
            f"{path}: has {file.frames} samples, but sample {start} was asked for; "
            "the file has changed since the manifest was written: prepare the "
            "data again"
        )
    available = file.frames - start
    expected = available if frames < 0 else min(frames, available)
    file.seek(start)
    samples = _read(file, expected)
    if len(samples) < expected:
        raise AudioError(f"{path}: is cut short; get or make this file again")
    check_samples(path, samples, start, file.samplerate)
    return samples


def _read(file, frames):
    """Reads so many samples, or as many as there are: a header may promise more."""
    blocks = [np.zeros((0, file.channels), "float32")]
    most = BLOCK // file.channels
    while frames and len(
        block := file.read(min(frames, most), dtype="float32", always_2d=True)
    ):
        blocks.append(block)
        frames -= len(block)
    return np.concatenate(blocks)


@contextmanager
def _opened(path, sample_rate):
    """Opens an audio file of one channel for reading."""
    with open_audio(path) as file:
        _check_header(path, file, sample_rate)
        yield file


def _check_header(path, file, sample_rate):
    """Raises AudioError unless the open file is one we can use."""
    check_length(path, file)
    if file.channels != 1:
        raise AudioError(
            f"{path}: has {file.channels} channels; give a file of one channel"
        )
    if sample_rate is not None and file.samplerate != sample_rate:
        raise AudioError(
            f"{path}: its sample rate is {file.samplerate} Hz, but {sample_rate} Hz is "
            "needed; put the file at that rate in its place"
        )


def check_length(path, file):
    """Raises AudioError if an open file has no samples."""
    if file.frames == 0:
        raise AudioError(f"{path}: has no samples; get or make this file again")
