"""Noise from a folder of recordings, drawn and mixed into speech.

A draw is plain data and a function of the generator alone; files are opened when they
are read. So a folder of any size is ready as soon as its names are listed.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
from tqdm import tqdm

from speechbrain_peer.data.checks import refuse_rows
from speechbrain_peer.utils.any_audio import read_channels, read_header
from speechbrain_peer.utils.audio import AudioError
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.formats import find_sounds

# The folders of a subset in WHAM!'s noise (wham_noise/tr), and in others.
SUBSET_FOLDERS = {
    "train": ("tr", "train"),
    "dev": ("cv", "dev"),
    "test": ("tt", "test"),
}
CROSS_FADE = 0.01  # seconds, from the end of a short clip to its start
FRAME = 256  # samples of one value of power: 32 ms at 8 kHz, 16 ms at 16 kHz
INACTIVE = 1e-4  # of the power of the loudest frame: 40 dB below it
SILENCE = 1e-14  # power, where full scale is 1: less than the noise of 24 bits


class NoiseCut(NamedTuple):
    """A piece of noise that has been drawn."""

    file: str
    """Relative to the folder."""
    place: float
    """Where it begins: 0 for the first place in the file, up to 1 for the last."""
    frames: int
    """Its samples, at the rate it is read at."""


class NoiseFolder:
    """Noise of any format, rate, number of channels and length.

    Of several channels the first is taken, as LibriMix does with WHAM!'s noise: the
    mean would be coloured where the channels differ by delays.

    Arguments
    ---------
    folder : str or Path
        Files of libsndfile's formats, in folders of any depth.
    sample_rate : int
        What noise is read at, in Hz; files of another rate are resampled.
    subset : str, optional
        "train", "dev" or "test": only that part of a folder that is laid out in parts,
        as WHAM!'s `tr`, `cv` and `tt` or `train`, `dev` and `test`. A folder without
        parts is one for every subset.

    Raises
    ------
    DataError
        If there is no audio, or no such part.

    Example
    -------
    >>> from speechbrain_peer.utils.audio import write_audio
    >>> folder = getfixture("tmp_path")
    >>> rain = np.random.default_rng(0).normal(size=48000)
    >>> write_audio(folder / "rain.wav", 0.1 * rain, sample_rate=48000)
    >>> noise = NoiseFolder(folder, sample_rate=8000)
    >>> cut = noise.draw(frames=4000, rng=np.random.default_rng(1))
    >>> cut
    NoiseCut(file='rain.wav', place=0.51..., frames=4000)
    >>> noise.read(cut).shape
    (4000,)
    """

    def __init__(self, folder, sample_rate, subset=None):
        self.folder = _subset_folder(Path(folder), subset)
        self.sample_rate = sample_rate
        self.files = find_sounds(self.folder)
        if not self.files:
            raise DataError(
                f"{self.folder}: holds no audio files; give a folder of noise"
            )

    def check(self):
        """Opens all files, with a progress bar if that takes long.

        Raises
        ------
        DataError
            If some cannot be read or are empty; lists them.
        """
        problems = []
        for name in tqdm(self.files, desc="Checking noise", unit="file", delay=2):
            try:
                read_header(self.folder / name)
            except AudioError as error:
                problems.append(str(error))
        refuse_rows(self.folder, problems, "replace or remove them", what="files")

    def draw(self, frames, rng):
        """Draws a file, each equally likely, and a place in it.

        Arguments
        ---------
        frames : int
            How many samples to read later.
        rng : np.random.Generator
            The draw is a function of it and of the names of all files.

        Returns
        -------
        NoiseCut
        """
        name = self.files[rng.integers(len(self.files))]
        return NoiseCut(name, float(rng.random()), frames)

    def read(self, cut):
        """Reads what has been drawn.

        A file that is shorter is repeated, with a cross-fade of 10 ms.

        Arguments
        ---------
        cut : NoiseCut
            What `draw` returns.

        Returns
        -------
        np.ndarray
            float32, (frames,).

        Raises
        ------
        AudioError
            If the file cannot be used; names it.
        """
        path = self.folder / cut.file
        length, rate, _ = read_header(path)
        needed = math.ceil(cut.frames * rate / self.sample_rate)
        if length < needed:
            clip = self._resample(*read_channels(path))
            fade = round(CROSS_FADE * self.sample_rate)
            return repeat(clip, cut.frames, cut.place, fade)
        start = int(cut.place * (length - needed + 1))
        noise = self._resample(*read_channels(path, start, needed))
        # Exactly as many, whatever the resampler's rounding.
        return np.resize(noise, cut.frames)

    def _resample(self, samples, rate):
        return soxr.resample(samples[:, 0], rate, self.sample_rate)


def repeat(clip, frames, place, fade):
    """Repeats a clip without clicks, at constant power where it is noise.

    Arguments
    ---------
    clip : np.ndarray
        (time,), at least one sample.
    frames : int
        How many samples to make.
    place : float
        Where in the clip to begin, from 0 (its start) to 1 (its end).
    fade : int
        Over how many samples the end goes over into the start; half of the clip at
        most.

    Returns
    -------
    np.ndarray
        (frames,).

    Example
    -------
    >>> repeat(np.array([1.0, 2.0, 3.0]), frames=7, place=0.4, fade=0)
    array([2., 3., 1., 2., 3., 1., 2.])
    """
    fade = min(fade, len(clip) // 2)
    period = clip[: len(clip) - fade].copy()
    angle = np.pi / 2 * (np.arange(fade) + 0.5) / max(fade, 1)
    end = clip[len(clip) - fade :]
    period[:fade] = np.sin(angle) * period[:fade] + np.cos(angle) * end
    return np.resize(np.roll(period, -int(place * len(period))), frames)


def at_snr(noise, speech, snr_db):
    """Scales noise to a level below speech.

    The level of each is the power of its active parts: of the frames within 40 dB of
    its loudest one. So neither pauses of the speech nor silence at the end of a clip
    change it. WHAM! draws -6 to +3 dB against the louder talker, its first one: give
    that talker as `speech`. LibriMix takes WHAM!'s noise at a loudness of its own,
    between -38 and -30 LUFS, which is no SNR.

    Arguments
    ---------
    noise : np.ndarray
        (time,), or (time, microphones), of which the first tells the level.
    speech : np.ndarray
        (time,), or (time, microphones).
    snr_db : float
        Level of the speech above the noise, in dB.

    Returns
    -------
    np.ndarray
        The noise, of the same shape and type; zeros where one of the two is silent, as
        there is no ratio then.

    Example
    -------
    >>> at_snr(np.ones(2), np.ones(2), snr_db=20).round(6)
    array([0.1, 0.1])
    """
    noise_power, speech_power = active_power(noise), active_power(speech)
    if min(noise_power, speech_power) < SILENCE:
        return np.zeros_like(noise)
    gain = math.sqrt(speech_power / noise_power) * 10 ** (-snr_db / 20)
    return noise * noise.dtype.type(gain)


def active_power(samples):
    """The mean power of the frames within 40 dB of the loudest, at the first channel.

    Arguments
    ---------
    samples : np.ndarray
        (time,) or (time, channels).

    Returns
    -------
    float
        0 for silence.

    Example
    -------
    >>> float(active_power(np.concatenate([np.zeros(1024), np.ones(512)])))
    1.0
    """
    first = samples.reshape(len(samples), -1)[:, 0].astype(float)
    starts = np.arange(0, len(first), FRAME)
    lengths = np.diff(starts, append=len(first))
    energies = np.add.reduceat(np.square(first), starts)
    active = energies / lengths >= INACTIVE * np.max(energies / lengths)
    return energies[active].sum() / lengths[active].sum()


def _subset_folder(folder, subset):
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder of noise")
    parts = {
        name: folder / part
        for name, parts in SUBSET_FOLDERS.items()
        for part in parts
        if (folder / part).is_dir()
    }
    if subset is None or not parts:
        return folder
    if subset not in parts:
        raise DataError(
            f"{folder}: has folders for {' and '.join(parts)}, but none for {subset} "
            f"({' or '.join(SUBSET_FOLDERS[subset])}); make it, or give a folder "
            "without such parts"
        )
    return parts[subset]
