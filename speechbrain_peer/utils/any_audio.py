"""Audio files of any rate and number of channels: pieces of them, as one needs them."""

from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import soxr

from speechbrain_peer.utils.audio import (
    AudioError,
    check_length,
    open_audio,
    read_segment,
)


class Header(NamedTuple):
    """What the header of an audio file says."""

    length: int
    """Samples of a channel."""
    sample_rate: int
    """In Hz."""
    channels: int
    """How many."""


def read_header(path):
    """Reads the header of an audio file of any rate and number of channels.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    Header

    Raises
    ------
    AudioError
        If the file is missing, unreadable or empty.

    Example
    -------
    >>> import soundfile
    >>> path = getfixture("tmp_path") / "stereo.wav"
    >>> soundfile.write(path, np.zeros((4, 2)), samplerate=44100)
    >>> read_header(path)
    Header(length=4, sample_rate=44100, channels=2)
    """
    with open_audio(path) as file:
        check_length(path, file)
        return Header(file.frames, file.samplerate, file.channels)


def read_channels(path, start=0, frames=-1):
    """Reads a segment of a file of any rate and number of channels by seek.

    Arguments
    ---------
    path : str or Path
        The file: WAV, FLAC or anything else that libsndfile reads.
    start : int
        First sample to read.
    frames : int
        How many samples to read, as for `read_audio`.

    Returns
    -------
    samples : np.ndarray
        float32, (time, channels).
    sample_rate : int
        In Hz.

    Raises
    ------
    AudioError
        As `read_audio`, but for the rate and the channels.
    """
    with open_audio(path) as file:
        check_length(path, file)
        return read_segment(path, file, start, frames), file.samplerate


def mix_down(samples):
    """Makes one channel of several: their mean, or the loudest where that cancels.

    Arguments
    ---------
    samples : np.ndarray
        (time, channels).

    Returns
    -------
    np.ndarray
        (time,).

    Example
    -------
    >>> mix_down(np.array([[1.0, 0.5], [3.0, 2.5]])).tolist()
    [0.75, 2.75]
    >>> mix_down(np.array([[1.0, -1.0], [3.0, -3.0]])).tolist()
    [1.0, 3.0]
    """
    if samples.shape[1] == 1:
        return samples[:, 0]
    mean = samples.mean(axis=1)
    energies = np.square(samples).sum(axis=0)
    # Channels of opposite phase, as after a wrong cable.
    if np.square(mean).sum() < 0.05 * energies.max():
        return samples[:, energies.argmax()]
    return mean


def read_at_rate(path, start, frames, sample_rate, speed=100):
    """Reads a piece of a file of any rate and channels, mixed down and resampled.

    Arguments
    ---------
    path : str or Path
        The file, or the address of one that `fsspec` opens, such as "s3://...".
    start : int
        First sample to read, at the file's rate.
    frames : int
        How many samples to read, at the file's rate.
    sample_rate : int
        The rate in Hz of what is returned.
    speed : int
        In percent; played faster, it is shorter and higher.

    Returns
    -------
    samples : np.ndarray
        float32, (time,).

    Raises
    ------
    AudioError
        If the file cannot be read, ends earlier, or holds samples as `check_samples`
        refuses.

    Example
    -------
    >>> from speechbrain_peer.utils.audio import write_audio
    >>> path = getfixture("tmp_path") / "speech.wav"
    >>> write_audio(path, np.zeros(48000), sample_rate=48000)
    >>> read_at_rate(path, 0, 24000, sample_rate=8000).shape
    (4000,)
    """
    with _stored(path) as file, open_audio(path, file) as audio:
        if start + frames > audio.frames:
            raise AudioError(
                f"{path}: has {audio.frames} samples, but {start + frames} are needed; "
                "it has changed since the data was prepared: prepare it again"
            )
        samples, rate = read_segment(path, audio, start, frames), audio.samplerate
    mono = mix_down(samples)
    source_rate = rate * speed / 100
    if source_rate == sample_rate:
        return mono
    return soxr.resample(mono, source_rate, sample_rate)


@contextmanager
def _stored(path):
    """A file object of what does not lie in a folder, or None."""
    if "://" not in str(path):
        yield None
        return
    import fsspec  # comes with PyTorch; opens slowly

    try:
        with fsspec.open(str(path), "rb") as file:
            yield file
    except (OSError, ImportError, ValueError) as error:
        raise AudioError(f"{path}: cannot be read ({error})") from error
