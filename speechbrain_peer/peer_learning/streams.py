"""Extraction from streams: mixtures whose samples come bit by bit.

A model can do that if its encoder, separator and decoder can: each then has

- `init_state(batch)`: the state of streams that have not begun, or None if it cannot;
- `step(x, state)`, for the separator `step(x, embedding, state)`: what `forward` makes
  of the next samples or frames, and the next state.

The encoder's `finish(state)` returns the frames that only the end of the mixture makes
whole, the decoder's the samples after those of the last frame. States are nested tuples
of tensors whose first dimension is the batch: to be saved, copied, moved, put together.
Predictors and mask head work frame by frame and need none, and the separator gives a
frame for each that it takes; a model whose second predictor sees the frames around
cannot extract from streams.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from speechbrain_peer.nnet.voice import stack_voices
from speechbrain_peer.peer_learning.predictors import sees_around

STAGES = ("encoder", "separator", "decoder")
"""Those with a state, in the order of a stream's."""


def init_state(modules, batch):
    """Begins streams.

    Arguments
    ---------
    modules : Mapping
        The stages.
    batch : int
        How many streams.

    Returns
    -------
    tuple or None
        None if the model cannot extract from streams.

    Example
    -------
    >>> from speechbrain_peer.nnet.filterbank import Decoder, Encoder
    >>> modules = {"encoder": Encoder(32, 16, 8), "decoder": Decoder(32, 16, 8)}
    >>> modules |= {"separator": torch.nn.LSTM(32, 32), "mask_head": None}
    >>> init_state(modules, batch=1) is None
    True
    """
    stages = [modules[name] for name in STAGES]
    steps = all(hasattr(stage, "init_state") for stage in stages)
    if not steps or sees_around(modules):
        return None
    states = tuple(stage.init_state(batch) for stage in stages)
    return None if any(state is None for state in states) else states


def step(modules, mixtures, embeddings, state):
    """Extracts from the next samples of streams, with the level the network gives.

    Arguments
    ---------
    modules : Mapping
        The stages.
    mixtures : torch.Tensor
        (batch, time), as few as one sample.
    embeddings : torch.Tensor or Frames
        Voices, of (batch, ...).
    state : tuple
        From `init_state` or the step before; it is not changed.

    Returns
    -------
    estimates : torch.Tensor
        The samples that are complete, (batch, time): of all steps and the end together
        what `extract` makes of the whole. They are later than those of the mixtures by
        less than a frame.
    state : tuple
        For the next step.
    """
    encoder, *others = state
    W, encoder = modules["encoder"].step(mixtures, encoder)
    estimates, others = _extract_frames(modules, W, embeddings, others)
    return estimates, (encoder, *others)


def finish(modules, embeddings, state, length):
    """Ends streams.

    Arguments
    ---------
    modules : Mapping
        The stages.
    embeddings : torch.Tensor or Frames
        Voices, of (batch, ...).
    state : tuple
        From the last step.
    length : int
        Samples of the mixtures that have no estimate yet.

    Returns
    -------
    torch.Tensor
        Their estimates, (batch, time).
    """
    encoder, *others = state
    W = modules["encoder"].finish(encoder)
    estimates, (_, decoder) = _extract_frames(modules, W, embeddings, others)
    tail = modules["decoder"].finish(decoder)[:, 0]
    estimates = torch.cat((estimates, tail), dim=1)
    return F.pad(estimates, (0, length - estimates.shape[1]))


class Schedule(NamedTuple):
    """When a model's estimates are complete, counted in samples from the start."""

    first: int
    """Samples of the mixture that the first estimates need."""
    ready: int
    """Estimates that are complete then."""
    hop: int
    """So many more are complete after every so many further samples."""

    def completed(self, taken):
        """How many estimates are complete when so many samples, an int or an array,
        have been heard.

        Example
        -------
        >>> Schedule(first=16, ready=8, hop=8).completed(np.array([15, 16, 23, 24]))
        array([ 0,  8,  8, 16])
        """
        hops = (taken - self.first) // self.hop
        return np.where(hops < 0, 0, self.ready + hops * self.hop)


def outline(state):
    """What states have in common that can go on together: all but the batch.

    Arguments
    ---------
    state : tuple or torch.Tensor
        Of a stream.

    Returns
    -------
    tuple
        Hashable: shapes, and the values of flags.

    Example
    -------
    >>> outline((torch.zeros(2, 5), torch.tensor([True, True])))
    (((5,),), ((), True))
    """
    if isinstance(state, torch.Tensor):
        flags = state[:1].tolist() if state.dtype == torch.bool else ()
        return tuple(state.shape[1:]), *flags
    return tuple(map(outline, state))


def step_together(modules, mixtures, embeddings, states):
    """`step` of several streams at once: of one number of samples and one `outline`.

    Arguments
    ---------
    modules : Mapping
        The stages.
    mixtures : list of torch.Tensor
        Of each, (batch, time).
    embeddings : list of (torch.Tensor or Frames)
        Voices, of (batch, ...).
    states : list of tuple
        From `init_state` or the step before.

    Returns
    -------
    estimates : list of torch.Tensor
        Of each, (batch, time).
    states : list of tuple
    """
    if len(states) == 1:
        estimates, state = step(modules, mixtures[0], embeddings[0], states[0])
        return [estimates], [state]
    sizes = [len(mixture) for mixture in mixtures]
    estimates, state = step(
        modules, torch.cat(mixtures), stack_voices(embeddings), _joined(states)
    )
    return list(estimates.split(sizes)), _parts(state, sizes)


@torch.no_grad()
def measure_schedule(modules):
    """Finds out how late a model's estimates are, from silence, sample by sample.

    Encoder and decoder alone decide that.

    Arguments
    ---------
    modules : Mapping
        The stages, of a model that extracts from streams.

    Returns
    -------
    Schedule

    Example
    -------
    >>> from speechbrain_peer.nnet.filterbank import Decoder, Encoder
    >>> modules = {"encoder": Encoder(32, 16, 8), "decoder": Decoder(32, 16, 8)}
    >>> measure_schedule(modules)
    Schedule(first=16, ready=8, hop=8)
    """
    encoder, decoder = modules["encoder"], modules["decoder"]
    states = encoder.init_state(1), decoder.init_state(1)
    weights = (weight for stage in modules.values() for weight in stage.parameters())
    sample = next(weights).new_zeros(1, 1)
    heard, ready, events = 0, 0, []
    while len(events) < 2:
        heard += 1
        W, state = encoder.step(sample, states[0])
        estimates, tail = decoder.step(W, states[1])
        states = state, tail
        if estimates.shape[-1]:
            ready += estimates.shape[-1]
            events.append((heard, ready))
    (first, ready), (second, _) = events
    return Schedule(first, ready, second - first)


def _extract_frames(modules, W, embeddings, states):
    """`extract` from the encoder on, with the separator's and the decoder's state."""
    separator, decoder = states
    e, separator = modules["separator"].step(W, embeddings, separator)
    p = modules["predictor1"](e) if "predictor1" in modules else None
    r = None if p is None else modules["predictor2"](torch.cat((p, p), dim=-1))
    masked = modules["mask_head"](e, r, W)
    estimates, decoder = modules["decoder"].step(masked, decoder)
    return estimates[:, 0], (separator, decoder)


def _joined(states):
    """One state of those of several streams."""
    if isinstance(states[0], torch.Tensor):
        return torch.cat(states)
    return tuple(map(_joined, zip(*states, strict=True)))


def _parts(state, sizes):
    """A state of each of several streams, of so many rows."""
    if isinstance(state, torch.Tensor):
        # Copies, as views would keep the others.
        return [part.clone() for part in state.split(sizes)]
    parts = [_parts(part, sizes) for part in state]
    return [tuple(part[k] for part in parts) for k in range(len(sizes))]
