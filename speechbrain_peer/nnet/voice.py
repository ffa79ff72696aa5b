"""The voice: what a speaker encoder makes of an enrollment.

It is a vector for each talker, (batch, E), or frames of the enrollment, `Frames`. A
speaker encoder says which: it has the attribute `embedding_size`, E, or `frame_size`,
F. Only the stages of a backbone look inside; all others take a voice as a whole, by the
functions here.
"""

from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence


class Frames(NamedTuple):
    """A voice of frames: what the talkers sounded like at each moment."""

    features: torch.Tensor
    """Zero where the mask is, (batch, frames, F)."""
    mask: torch.Tensor
    """1 for true frames and 0 for padding, (batch, frames)."""


def features_of(voice):
    """The tensor that holds a voice; its first dimension is the batch.

    Arguments
    ---------
    voice : torch.Tensor or Frames

    Returns
    -------
    torch.Tensor
        (batch, E) or (batch, frames, F).
    """
    return voice.features if isinstance(voice, Frames) else voice


def map_voice(function, voice):
    """Does the same to every tensor of a voice.

    Arguments
    ---------
    function : callable
        Takes and returns a tensor whose first dimension is the batch.
    voice : torch.Tensor or Frames

    Returns
    -------
    torch.Tensor or Frames

    Example
    -------
    >>> voice = Frames(torch.rand(3, 50, 8), torch.ones(3, 50))
    >>> map_voice(lambda tensor: tensor[:1], voice).features.shape
    torch.Size([1, 50, 8])
    """
    if isinstance(voice, Frames):
        return Frames(*map(function, voice))
    return function(voice)


def repeat_voice(voice, times):
    """Repeats a whole batch: for peers, which are extracted from with one voice.

    Arguments
    ---------
    voice : torch.Tensor or Frames
        Of (batch, ...).
    times : int
        How often.

    Returns
    -------
    torch.Tensor or Frames
        Of (times * batch, ...).

    Example
    -------
    >>> repeat_voice(torch.tensor([[1.0], [2.0]]), times=2).flatten()
    tensor([1., 2., 1., 2.])
    """
    return map_voice(
        lambda tensor: tensor.repeat(times, *(1 for _ in tensor.shape[1:])), voice
    )


def join_voices(voices):
    """Makes one voice of several enrollments of the same talkers.

    Arguments
    ---------
    voices : list of torch.Tensor or Frames
        All of one kind and batch.

    Returns
    -------
    torch.Tensor or Frames
        The mean of vectors; frames one after the other.

    Example
    -------
    >>> join_voices([torch.tensor([[1.0]]), torch.tensor([[2.0]])])
    tensor([[1.5000]])
    >>> long, short = (Frames(torch.rand(1, n, 8), torch.ones(1, n)) for n in (50, 20))
    >>> join_voices([long, short]).features.shape
    torch.Size([1, 70, 8])
    """
    if isinstance(voices[0], Frames):
        return Frames(*(torch.cat(tensors, 1) for tensors in zip(*voices, strict=True)))
    return torch.stack(voices).mean(0)


def stack_voices(voices):
    """Makes a batch of the voices of several batches of talkers.

    Arguments
    ---------
    voices : list of torch.Tensor or Frames
        All of one kind.

    Returns
    -------
    torch.Tensor or Frames
        Of all talkers; frames are padded to the most.

    Example
    -------
    >>> long, short = (Frames(torch.rand(1, n, 8), torch.ones(1, n)) for n in (50, 20))
    >>> stack_voices([long, short]).mask.sum(1)
    tensor([50., 20.])
    """
    if not isinstance(voices[0], Frames):
        return torch.cat(voices)
    return Frames(
        *(
            pad_sequence([row for rows in parts for row in rows], batch_first=True)
            for parts in zip(*voices, strict=True)
        )
    )


def summarize_voice(voice):
    """One vector for each talker, whatever the kind of the voice.

    Arguments
    ---------
    voice : torch.Tensor or Frames

    Returns
    -------
    torch.Tensor
        A vector as it is, (batch, E); the mean of true frames, (batch, F).

    Example
    -------
    >>> features = torch.tensor([[[1.0], [3.0], [0.0]]])
    >>> summarize_voice(Frames(features, mask=torch.tensor([[1.0, 1.0, 0.0]])))
    tensor([[2.]])
    """
    if not isinstance(voice, Frames):
        return voice
    return voice.features.sum(1) / voice.mask.sum(1, keepdim=True)
