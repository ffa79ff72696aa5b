"""Extraction from hours of audio: chunk by chunk, in bounded memory.

A mixture is cut into chunks that overlap. The estimates of neighbours are cross-faded
in the middle of the overlap, so that nothing is used of what is near the edge of a
chunk, where the network lacks context. The level of the estimate is one for the whole
mixture and known at its end only; until then the estimate is kept in a file.
"""

import math
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from speechbrain_peer.inference.recordings import (
    BLOCK,
    average_channels,
    resample_blocks,
    resampled_length,
)
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


class RunningSums(TorchFunctionMode):
    """Lets running sums over frames go on from chunk to chunk.

    The cumulative norms of a causal network then have the statistics of the whole
    signal up to a frame. In the frames that a chunk has in common with the one before,
    the sums are those of that one, whose first frames have not lacked context.

    Arguments
    ---------
    context : int
        How many frames neighbours have in common.

    Example
    -------
    >>> sums, frames = RunningSums(context=2), torch.ones(1, 10)
    >>> with sums:
    ...     frames[:, :6].cumsum(1)
    tensor([[1., 2., 3., 4., 5., 6.]])
    >>> with sums:
    ...     frames[:, 4:].cumsum(1)
    tensor([[ 5.,  6.,  7.,  8.,  9., 10.]])
    """

    def __init__(self, context):
        super().__init__()
        self.context = context
        self.before, self.now = [], []

    def __enter__(self):
        """Starts a chunk."""
        self.before, self.now = self.now, []
        return super().__enter__()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Calls a function of PyTorch."""
        sums = func(*args, **(kwargs or {}))
        if func not in (torch.cumsum, torch.Tensor.cumsum):
            return sums
        if self.before:
            # The network calls the same functions in the same order every time.
            past = self.before[len(self.now)]
            context = self.context
            sums = sums - sums[:, context - 1 : context] + past[:, -1:]
            sums[:, :context] = past
        self.now.append(sums[:, -self.context :].clone())
        return sums


def extract_chunks(modules, blocks, embedding, length, sample_rate, channels):
    """Extracts one talker from every channel of a stream.

    Arguments
    ---------
    modules : Mapping
        The stages.
    blocks : iterable of np.ndarray
        float32, (samples, channels), of any lengths.
    embedding : torch.Tensor
        (1, embedding).
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
        Theirs, without a level.
    """
    bounds = chunk_bounds(length, sample_rate)
    overlap = round(OVERLAP * sample_rate)
    weights = _fade_in(overlap, round(FADE * sample_rate))
    memories = [nullcontext()] * channels
    if len(bounds) > 1 and _is_causal(modules["separator"]):
        silence = torch.zeros(1, overlap, device=embedding.device)
        context = modules["encoder"](silence, None)[0].shape[1]
        memories = [RunningSums(context) for _ in range(channels)]
    chunks = tqdm(
        cut_chunks(blocks, bounds),
        desc="Extracting",
        total=len(bounds),
        unit="chunk",
        disable=len(bounds) < MANY_CHUNKS,
    )
    last = None
    for chunk, (_, end) in zip(chunks, bounds, strict=True):
        # One channel after the other: a chunk's memory is that of one.
        estimate = np.empty_like(chunk)
        for channel, memory in enumerate(memories):
            waveform = torch.from_numpy(chunk[:, channel].copy())[None]
            with memory:
                extracted = extract(modules, waveform.to(embedding.device), embedding)
            estimate[:, channel] = extracted[0].float().cpu().numpy()
        if last is not None:
            estimate[:overlap] = last + weights * (estimate[:overlap] - last)
        done = len(chunk) if end == length else len(chunk) - overlap
        yield chunk[:done], estimate[:done]
        last = estimate[done:]


@torch.no_grad()
def extract_recording(modules, recording, embedding, channels, sample_rate, file):
    """Extracts one talker from a recording of any rate and length.

    Arguments
    ---------
    modules : Mapping
        The stages.
    recording : speechbrain_peer.inference.recordings.Recording
        The mixture.
    embedding : torch.Tensor
        (1, embedding).
    channels : int
        To extract from: all of the recording's, or 1 for their average.
    sample_rate : int
        Of the model, in Hz.
    file : binary file object
        Where to keep the estimate.

    Returns
    -------
    blocks : callable
        Returns an iterator over the estimate from its start, (samples, channels), at
        the recording's rate and of its length.
    loudest : np.ndarray
        The piece of the estimate with the most energy, of up to a chunk, with its
        level, at the model's rate, (samples, channels).
    """
    rates = recording.sample_rate, sample_rate
    mixture = recording.blocks()
    if channels < recording.channels:
        mixture = average_channels(mixture)
    mixture = resample_blocks(mixture, *rates)
    length = resampled_length(recording.length, *rates)
    estimate = Estimate(file, channels)
    for pieces in extract_chunks(
        modules, mixture, embedding, length, sample_rate, channels
    ):
        estimate.append(*pieces)

    def blocks():
        left = recording.length
        for block in resample_blocks(estimate.blocks(), *rates[::-1]):
            yield block[:left]
            left = max(left - len(block), 0)

    return blocks, estimate.loudest * estimate.scale()


class Estimate:
    """An estimate on its way: kept in a file, until its level is known.

    Every channel has the level that makes it the mixture's projection on it, as
    `signal.match_level` for what is whole in memory.

    Arguments
    ---------
    file : binary file object
        Where to keep it.
    channels : int
        How many.

    Example
    -------
    >>> import io
    >>> target, interferer = np.float32([[1, 1], [1, -1]])[..., None]
    >>> estimate = Estimate(io.BytesIO(), channels=1)
    >>> estimate.append(target + interferer, 7 * target)
    >>> [block[:, 0].tolist() for block in estimate.blocks()]
    [[1.0, 1.0]]
    """

    def __init__(self, file, channels):
        self.file = file
        self.energy, self.shared = np.zeros(channels), np.zeros(channels)
        self.loudest, self.highest = None, -1.0

    def append(self, mixture, estimate):
        """Adds the next samples, float32, (samples, channels)."""
        precise = estimate.astype(np.float64)
        energy = np.square(precise).sum(axis=0)
        if energy.sum() > self.highest:
            self.loudest, self.highest = estimate, energy.sum()
        self.energy += energy
        self.shared += (mixture * precise).sum(axis=0)
        self.file.write(estimate.tobytes())

    def scale(self):
        """What gives each channel its level, and its sign, (channels,)."""
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


def _is_causal(separator):
    return any(getattr(module, "causal", False) for module in separator.modules())
