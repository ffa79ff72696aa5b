"""Extraction from hours of audio: chunk by chunk, in bounded memory.

A mixture is cut into chunks. A model that extracts from streams goes on from one to the
next. For others the chunks overlap, and the estimates of neighbours are cross-faded in
the middle of the overlap, so that nothing is used of what is near the edge of a chunk,
where the network lacks context. A level that the mixture gives is one for the whole and
known at its end only; until then the estimate is kept in a file.
"""

import math
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_peer.inference.match import PIECE, find_loudest
from speechbrain_peer.inference.presence import Seconds, tell_presence
from speechbrain_peer.inference.recordings import (
    BLOCK,
    resample_blocks,
    resampled_length,
)
from speechbrain_peer.nnet.voice import features_of
from speechbrain_peer.peer_learning import streams
from speechbrain_peer.peer_learning.exchange import extract

# In seconds. Longer chunks take more memory, and no better estimates come of it.
CHUNK = 12.0
OVERLAP = 3.0
FADE = 1.0
# In samples. Chunks start at its multiples, which usual strides divide: frames of a
# chunk then are frames of the whole.
GRID = 1280

# Fewer chunks show no progress bar.
MANY_CHUNKS = 6


def chunk_bounds(length, sample_rate):
    """Cuts a signal into chunks.

    They have one length, but for a shorter last one, so that the memory that one chunk
    has left fits the next.

    Arguments
    ---------
    length : int
        Samples of the signal.
    sample_rate : int
        In Hz.

    Returns
    -------
    list of (int, int)
        Start and end of each chunk; neighbours have `OVERLAP` seconds in common.

    Example
    -------
    >>> chunk_bounds(length=20 * 8000, sample_rate=8000)
    [(0, 93120), (69120, 160000)]
    """
    chunk, overlap = round(CHUNK * sample_rate), round(OVERLAP * sample_rate)
    alone = length - overlap
    n_chunks = max(1, math.ceil(alone / (chunk - overlap)))
    # The last chunk of few is not much shorter than the others.
    hop = math.ceil(alone / n_chunks / GRID) * GRID
    starts = range(0, alone, hop) if n_chunks > 1 else (0,)
    return [(start, min(start + hop + overlap, length)) for start in starts]


def cut_chunks(blocks, bounds):
    """Cuts a stream into chunks.

    Arguments
    ---------
    blocks : iterable of np.ndarray
        (samples, channels), of any lengths.
    bounds : list of (int, int)
        Start and end of each chunk, in order.

    Yields
    ------
    np.ndarray
        (samples, channels).

    Example
    -------
    >>> blocks = [np.array([[1], [2]]), np.array([[3], [4], [5]])]
    >>> [chunk[:, 0].tolist() for chunk in cut_chunks(blocks, [(0, 3), (2, 5)])]
    [[1, 2, 3], [3, 4, 5]]
    """
    blocks, held, position = iter(blocks), [], 0
    for start, end in bounds:
        while position < end:
            held.append(next(blocks))
            position += len(held[-1])
        samples = np.concatenate(held)[start - position :]
        yield samples[: end - start]
        held = [samples]


def extract_chunks(modules, blocks, embedding, length, sample_rate, channels):
    """Extracts one talker from every channel of a stream.

    Arguments
    ---------
    modules : Mapping
        The stages.
    blocks : iterable of np.ndarray
        float32, (samples, channels), of any lengths.
    embedding : torch.Tensor or Frames
        The voice, of (1, ...).
    length : int
        Samples of the stream.
    sample_rate : int
        In Hz.
    channels : int
        How many there are.

    Yields
    ------
    mixture : np.ndarray
        The next samples of the stream, (samples, channels).
    estimate : np.ndarray
        Theirs, as the network gives it.
    """
    state = streams.init_state(modules, batch=1)
    if state is None:
        yield from _overlap(modules, blocks, embedding, length, sample_rate)
    else:
        states = [state] * channels
        yield from _go_on(modules, blocks, embedding, length, sample_rate, states)


def cross_fade(blocks, length, sample_rate, extract_from):
    """Extracts from chunks that overlap, and fades from one to the next.

    Arguments
    ---------
    blocks : iterable of np.ndarray
        float32, (samples, channels), of any lengths.
    length : int
        Samples of the stream.
    sample_rate : int
        In Hz.
    extract_from : callable
        Makes the estimate of a chunk, (samples, any channels), of the chunk and of the
        sample at which it begins.

    Yields
    ------
    mixture : np.ndarray
        The next samples of the stream, (samples, channels).
    estimate : np.ndarray
        Theirs.
    """
    bounds = chunk_bounds(length, sample_rate)
    overlap = round(OVERLAP * sample_rate)
    weights = _fade_in(overlap, round(FADE * sample_rate))
    last = None
    for chunk, (start, end) in zip(_shown(blocks, bounds), bounds, strict=True):
        estimate = extract_from(chunk, start)
        if last is not None:
            estimate[:overlap] = last + weights * (estimate[:overlap] - last)
        done = len(chunk) if end == length else len(chunk) - overlap
        yield chunk[:done], estimate[:done]
        last = estimate[done:]


def _overlap(modules, blocks, embedding, length, sample_rate):
    """`extract_chunks` with neighbours that are cross-faded."""

    def extract_from(chunk, _):
        # One channel after the other: a chunk's memory is that of one.
        waveforms = _as_waveforms(chunk, embedding)
        estimates = [_as_samples(extract(modules, x, embedding)) for x in waveforms]
        return np.concatenate(estimates, axis=1)

    return cross_fade(blocks, length, sample_rate, extract_from)


def _go_on(modules, blocks, embedding, length, sample_rate, states):
    """`extract_chunks` with a state of each channel's stream."""
    size = round(CHUNK * sample_rate)
    starts = range(0, length, size)
    bounds = [(start, min(start + size, length)) for start in starts]
    late = np.zeros((0, len(states)), np.float32)
    for chunk in _shown(blocks, bounds):
        estimates = []
        for channel, waveform in enumerate(_as_waveforms(chunk, embedding)):
            stepped = streams.step(modules, waveform, embedding, states[channel])
            estimate, states[channel] = stepped
            estimates.append(_as_samples(estimate))
        estimate = np.concatenate(estimates, axis=1)
        late = np.concatenate((late, chunk))
        yield late[: len(estimate)], estimate
        late = late[len(estimate) :]
    rests = (streams.finish(modules, embedding, state, len(late)) for state in states)
    yield late, np.concatenate([_as_samples(rest) for rest in rests], axis=1)


def _shown(blocks, bounds):
    """The chunks, with a progress bar if they are many."""
    return tqdm(
        cut_chunks(blocks, bounds),
        desc="Extracting",
        total=len(bounds),
        unit="chunk",
        disable=len(bounds) < MANY_CHUNKS,
    )


def _as_waveforms(chunk, embedding):
    """Yields each channel of (samples, channels) as (1, samples), on the device."""
    device = features_of(embedding).device
    for channel in chunk.T:
        yield torch.from_numpy(channel.copy())[None].to(device)


def _as_samples(estimate):
    """(1, samples) as (samples, 1)."""
    return estimate.float().cpu().numpy().T


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


def _fade_in(overlap, fade):
    """Weights of the second of two neighbours in their overlap, (overlap, 1)."""
    position = np.arange(overlap) - (overlap - fade) / 2 + 0.5
    progress = np.clip(position / fade, 0, 1)[:, None]
    return np.square(np.sin(np.pi / 2 * progress)).astype(np.float32)
