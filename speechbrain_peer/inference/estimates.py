"""Estimates on the disk, until their level is known.

A level that the mixture gives is one for the whole and known at its end only. Until
then the estimate of a recording, however long, is kept in a file.
"""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from speechbrain_peer.inference.chunks import cut_chunks, extract_chunks
from speechbrain_peer.inference.match import PIECE, find_loudest
from speechbrain_peer.inference.presence import Seconds, tell_presence
from speechbrain_peer.inference.recordings import (
    BLOCK,
    resample_blocks,
    resampled_length,
)


@torch.no_grad()
def extract_recording(
    modules,
    recording,
    embedding,
    channels,
    sample_rate,
    file,
    level="mixture",
    keep_partial=False,
):
    """Extracts one talker from a recording of any rate and length.

    Arguments
    ---------
    modules : Mapping
        The stages.
    recording : speechbrain_peer.inference.recordings.Recording
        The mixture.
    embedding : torch.Tensor or Frames
        The voice, of (1, ...).
    channels : int
        To extract from: all of the recording's, or 1 for their average.
    sample_rate : int
        Of the model, in Hz.
    file : binary file object
        Where to keep the estimate.
    level : str
        The model's; see `utils.signal.set_level`.
    keep_partial : bool
        Whether Ctrl+C ends it early with what is done, `estimate.interrupted`, if
        there is anything yet.

    Returns
    -------
    Estimate
        At the model's rate; see `Estimate.blocks_of`.
    """
    rates = recording.sample_rate, sample_rate
    mixture = resample_blocks(recording.blocks(channels), *rates)
    length = resampled_length(recording.length, *rates)
    estimate = Estimate(file, channels, sample_rate, level)
    pieces = extract_chunks(modules, mixture, embedding, length, sample_rate, channels)
    estimate.fill(pieces, keep_partial)
    return estimate


class Estimate:
    """An estimate on its way: kept in a file, until its level is known.

    What it does to the level of each channel is what `utils.signal.set_level` does to
    what is whole in memory.

    Arguments
    ---------
    file : binary file object
        Where to keep it.
    channels : int
        How many.
    sample_rate : int
        In Hz.
    level : str
        `mixture`: every channel is made the mixture's projection on it; `network`: it
        stays as it is.

    Example
    -------
    >>> import io
    >>> target, interferer = np.float32([[1, 1], [1, -1]])[..., None]
    >>> estimate = Estimate(io.BytesIO(), channels=1, sample_rate=8000)
    >>> estimate.append(target + interferer, 7 * target)
    >>> [block[:, 0].tolist() for block in estimate.blocks()]
    [[1.0, 1.0]]
    """

    def __init__(self, file, channels, sample_rate, level="mixture"):
        self.file, self.sample_rate, self.level = file, sample_rate, level
        self.samples, self.interrupted = 0, False
        self.energy, self.shared = np.zeros(channels), np.zeros(channels)
        self.seconds, self.mixture_seconds = Seconds(sample_rate), Seconds(sample_rate)

    def append(self, mixture, estimate):
        """Adds the next samples, float32, (samples, channels)."""
        precise = estimate.astype(np.float64)
        self.energy += np.square(precise).sum(axis=0)
        self.shared += (mixture * precise).sum(axis=0)
        self.seconds.append(estimate)
        self.mixture_seconds.append(mixture)
        self.file.write(estimate.tobytes())
        self.samples += len(estimate)

    def fill(self, pieces, keep_partial=False):
        """Adds pieces, mixture and estimate, until they end.

        Arguments
        ---------
        pieces : iterable of (np.ndarray, np.ndarray)
            As `append` takes them.
        keep_partial : bool
            Whether they may end by Ctrl+C, if there is anything yet: `interrupted`.
        """
        try:
            for piece in pieces:
                self.append(*piece)
        except KeyboardInterrupt:
            self.interrupted = keep_partial and self.samples > 0
            if not self.interrupted:
                raise

    def scale(self):
        """What gives each channel its level, and its sign, (channels,)."""
        if self.level == "network":
            return np.ones(len(self.energy), np.float32)
        silent = self.energy == 0
        scale = np.where(silent, 0.0, self.shared / np.where(silent, 1.0, self.energy))
        return scale.astype(np.float32)

    def blocks(self):
        """Yields it from its start, with its level, (samples, channels)."""
        scale = self.scale()
        self.file.seek(0)
        row = scale.nbytes
        while data := self.file.read(BLOCK * row):
            yield np.frombuffer(data, np.float32).reshape(-1, len(scale)) * scale

    def blocks_of(self, recording):
        """Yields it as a recording has it: at that one's rate, of its length."""
        rates, left = (self.sample_rate, recording.sample_rate), recording.length
        for block in resample_blocks(self.blocks(), *rates):
            yield block[:left]
            left = max(left - len(block), 0)

    def loudest(self, blocks=None):
        """Its loudest piece, of its loudest channel: what a match score listens to.

        Arguments
        ---------
        blocks : iterable of np.ndarray, optional
            Of the mixture, at its rate: what is there in place of itself.

        Returns
        -------
        np.ndarray
            float32, with its level, (time,).
        """
        energies = self.seconds.energies() * np.square(self.scale(), dtype=np.float64)
        first, channel = find_loudest(torch.from_numpy(energies))
        start, end = first * self.sample_rate, (first + PIECE) * self.sample_rate
        blocks = self.blocks() if blocks is None else blocks
        (piece,) = cut_chunks(blocks, [(start, min(end, self.samples))])
        return piece[:, channel]

    def presence(self):
        """Whether the talker speaks, bool, (seconds, channels); see `tell_presence`."""
        return tell_presence(self.seconds.energies(), self.mixture_seconds.energies())


@contextmanager
def file_beside(path):
    """Opens an anonymous file on the disk of another, gone when it is closed.

    Arguments
    ---------
    path : str or pathlib.Path
        The other; its folder need not exist.

    Yields
    ------
    binary file object
    """
    folder = next(folder for folder in Path(path).absolute().parents if folder.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            yield file
    except OSError as error:
        # A full disk is reported without a file name.
        error.filename = error.filename or str(path)
        raise
