"""Extraction from hours of audio: chunk by chunk, in bounded memory.

A mixture is cut into chunks. A model that extracts from streams goes on from one to the
next. For others the chunks overlap, and the estimates of neighbours are cross-faded in
the middle of the overlap, so that nothing is used of what is near the edge of a chunk,
where the network lacks context. `estimates` keeps what comes out.
"""

import math

import numpy as np
import torch
from tqdm import tqdm

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
            block = next(blocks)
            position += len(block)
            if position > start:  # else it is in no chunk
                held.append(block)
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


def _fade_in(overlap, fade):
    """Weights of the second of two neighbours in their overlap, (overlap, 1)."""
    position = np.arange(overlap) - (overlap - fade) / 2 + 0.5
    progress = np.clip(position / fade, 0, 1)[:, None]
    return np.square(np.sin(np.pi / 2 * progress)).astype(np.float32)
