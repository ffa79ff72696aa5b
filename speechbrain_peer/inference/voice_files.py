"""Voices as files: a talker is enrolled once, and no recording of them need be kept.

A file holds tensors only, and a mark of the network that has made the voice: to another
network it would mean nothing, or somebody else.
"""

import io
from pathlib import Path

import torch

from speechbrain_peer.nnet.voice import Frames, map_voice
from speechbrain_peer.utils.files import DataError, whole_file
from speechbrain_peer.utils.modules import mark_of


def save_voice(path, voice, modules, sample_rate):
    """Writes a voice to a file.

    Arguments
    ---------
    path : str or pathlib.Path
        The file; an older one is replaced.
    voice : torch.Tensor or Frames
        Of (batch, ...).
    modules : Mapping
        The stages that have made it.
    sample_rate : int
        The model's, in Hz.

    Example
    -------
    >>> modules = {name: torch.nn.Linear(2, 2) for name in MAKERS}
    >>> path = getfixture("tmp_path") / "anna.voice"
    >>> save_voice(path, torch.ones(1, 2), modules, sample_rate=8000)
    >>> load_voice(path, modules, sample_rate=8000)
    tensor([[1., 1.]])
    """
    names = Frames._fields if isinstance(voice, Frames) else ("embedding",)
    voice = map_voice(lambda tensor: tensor.detach().float().cpu(), voice)
    tensors = voice if isinstance(voice, Frames) else (voice,)
    content = io.BytesIO()
    entries = dict(zip(names, tensors, strict=True))
    torch.save({"maker": _maker(modules, sample_rate), **entries}, content)
    # By way of memory: PyTorch would not tell that a disk is full.
    with whole_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_voice(path, modules, sample_rate):
    """Reads a voice that `save_voice` has written.

    Arguments
    ---------
    path : str or pathlib.Path
    modules : Mapping
        The stages that are to take it.
    sample_rate : int
        The model's, in Hz.

    Returns
    -------
    torch.Tensor or Frames
        On the CPU; whoever uses it checks it as any voice.

    Raises
    ------
    DataError
        If the file is missing or no voice, or another network has made it.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        maker = content.pop("maker")
        voice = Frames(**content) if len(content) > 1 else content["embedding"]
        map_voice(torch.Tensor.float, voice)
    # What is no voice raises errors of many classes, with messages about its insides.
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read as a voice; save it again from the enrollment"
        ) from error
    if maker != _maker(modules, sample_rate):
        raise DataError(
            f"{path}: is a voice that another model has made; save it again with this "
            "one from the enrollment"
        )
    return voice


MAKERS = ("speaker_encoder", "encoder")
"""The stages that a voice comes of."""


def _maker(modules, sample_rate):
    """A mark of what makes voices: other weights make others."""
    return mark_of({stage: modules[stage] for stage in MAKERS}, sample_rate)
