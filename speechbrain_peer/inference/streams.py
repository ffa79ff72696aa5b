"""Extraction from streams: mixtures whose samples come bit by bit.

A model can do that if its encoder, separator and decoder can: each then has

- `init_state(batch)`: the state of streams that have not begun, or None if it cannot;
- `step(x, state)`, for the separator `step(x, embedding, state)`: what `forward` makes
  of the next samples or frames, and the next state.

The encoder's `finish(state)` returns the frames that only the end of the mixture makes
whole, the decoder's the samples after those of the last frame. States are nested tuples
of tensors whose first dimension is the batch: to be saved, copied, moved, put together.
Predictors and mask head work frame by frame and need none; a model whose second
predictor sees the frames around cannot extract from streams.
"""

import torch
from torch.nn import functional as F

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


def _extract_frames(modules, W, embeddings, states):
    """`extract` from the encoder on, with the separator's and the decoder's state."""
    separator, decoder = states
    e, separator = modules["separator"].step(W, embeddings, separator)
    p = modules["predictor1"](e) if "predictor1" in modules else None
    r = None if p is None else modules["predictor2"](torch.cat((p, p), dim=-1))
    masked = modules["mask_head"](e, r, W)
    estimates, decoder = modules["decoder"].step(masked, decoder)
    return estimates[:, 0], (separator, decoder)
