"""What inference accepts: clear errors instead of NaN and silent nonsense."""

import numpy as np
import torch

from speechbrain_peer.nnet.voice import Frames
from speechbrain_peer.utils.audio import LOUDEST
from speechbrain_peer.utils.signal import SHORTEST_ENROLLMENT, sample_mask


def as_tensor(name, values):
    """Makes a tensor of what may be an array or a list.

    Arguments
    ---------
    name : str
        What it is, for errors.
    values : torch.Tensor, np.ndarray or list
        Numbers.

    Returns
    -------
    torch.Tensor

    Raises
    ------
    ValueError
        If they are no numbers, or the rows of a list have several lengths.

    Example
    -------
    >>> as_tensor("mixtures", np.zeros((2, 3))[:, ::-1]).shape
    torch.Size([2, 3])
    """
    if isinstance(values, torch.Tensor):
        return values
    try:
        # PyTorch takes neither reversed arrays nor those of another byte order.
        array = np.asarray(values)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), "C"))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be a tensor, or an array or list to make one of: {error}"
        ) from error


def check_waveforms(name, waveforms, lens, device):
    """Checks a batch of waveforms and moves it to the model.

    Arguments
    ---------
    name : str
        What they are, for errors.
    waveforms : torch.Tensor, np.ndarray or list
        (batch, time).
    lens : torch.Tensor, np.ndarray, list or None
        Relative lengths (batch,), in (0, 1].
    device : torch.device
        Where the model is.

    Returns
    -------
    waveforms : torch.Tensor
        fp32, zero in the padding, whatever was there, (batch, time).
    lens : torch.Tensor or None
        fp32, (batch,).

    Raises
    ------
    ValueError
        If they have another shape, are no floats, hold NaN or samples beyond
        `utils.audio.LOUDEST`, or the lengths are not relative.
    """
    waveforms = as_tensor(name, waveforms)
    if waveforms.dim() != 2 or not waveforms.numel():
        raise ValueError(
            f"{name} must be (batch, time), but have shape {tuple(waveforms.shape)}"
        )
    if not waveforms.is_floating_point():
        raise ValueError(
            f"{name} must be floating point, full scale at 1, not {waveforms.dtype}"
        )
    waveforms = waveforms.to(device, torch.float32)
    if lens is not None:
        lens = as_tensor(f"The lengths of {name}", lens).to(device, torch.float32)
        if lens.shape != waveforms.shape[:1] or not ((lens > 0) & (lens <= 1)).all():
            raise ValueError(
                f"The lengths of {name} must be {len(waveforms)} numbers in (0, 1], "
                f"but are {lens.tolist()}"
            )
        padding = sample_mask(lens, waveforms.shape[1], waveforms) == 0
        waveforms = waveforms.masked_fill(padding, 0.0)
    _check_finite(name, waveforms)
    return waveforms, lens


def check_enrollments(enrollments, lens, sample_rate):
    """Checks that there is something to enroll.

    Arguments
    ---------
    enrollments : torch.Tensor
        (batch, time).
    lens : torch.Tensor or None
        Relative lengths (batch,).
    sample_rate : int
        In Hz.

    Raises
    ------
    ValueError
        If one is too short or silent.
    """
    mask = sample_mask(lens, enrollments.shape[1], enrollments)
    seconds = mask.sum(1).min().item() / sample_rate
    if seconds < SHORTEST_ENROLLMENT:
        raise ValueError(
            f"An enrollment of {seconds:.3f} s is too short: "
            f"give at least {SHORTEST_ENROLLMENT} s, better 3 s or more"
        )
    silent = (enrollments * mask).eq(0).all(1).nonzero().flatten().tolist()
    if silent:
        where = f" (in the batch: {silent})" if len(enrollments) > 1 else ""
        raise ValueError(f"The enrollment is silent{where}")


def check_embeddings(embeddings, count, speaker_encoder, weight, name="mixtures"):
    """Checks voices and moves them to the model.

    Arguments
    ---------
    embeddings : torch.Tensor, Frames, np.ndarray or list
        Voices, of (batch, ...).
    count : int
        The batch size they must have.
    speaker_encoder : torch.nn.Module
        The model's, which tells of what kind and size they must be: `embedding_size`
        or `frame_size`.
    weight : torch.Tensor
        One of the model, whose device and type they get.
    name : str
        What they are for, for errors.

    Returns
    -------
    torch.Tensor or Frames
        Of (batch, ...); frames are zero in the padding, whatever was there.

    Raises
    ------
    ValueError
        If they are of the other kind, not one for each mixture, of another size, hold
        no true frame, or hold NaN or values beyond `utils.audio.LOUDEST`.
    """
    frame_size = getattr(speaker_encoder, "frame_size", None)
    if isinstance(embeddings, Frames) != (frame_size is not None):
        given, wanted = "a vector for each talker", "frames (`nnet.voice.Frames`)"
        if frame_size is None:
            given, wanted = wanted, given
        raise ValueError(
            f"embeddings are {given}, but this model knows a voice by {wanted}: give "
            "what its own `encode_speaker` returns"
        )
    if frame_size is not None:
        return _check_frames(embeddings, count, frame_size, weight, name)
    embeddings = as_tensor("embeddings", embeddings)
    _check_shape(embeddings, (count, speaker_encoder.embedding_size), name)
    embeddings = embeddings.to(weight)
    _check_finite("embeddings", embeddings)
    return embeddings


def _check_frames(voice, count, size, weight, name):
    """`check_embeddings` of frames."""
    features, mask = (
        as_tensor(f"The {part} of embeddings", values)
        for part, values in zip(Frames._fields, voice, strict=True)
    )
    # Of frames there may be any number.
    frames = features.shape[1] if features.dim() == 3 else 1
    _check_shape(features, (count, frames, size), name)
    mask = mask.to(weight)
    is_mask = mask.shape == (count, frames) and ((mask == 0) | (mask == 1)).all()
    if not (is_mask and mask.any(1).all()):
        raise ValueError(
            "The mask of embeddings must be 1 for true frames, of which there is at "
            f"least one, and 0 for padding, ({count}, {frames})"
        )
    features = features.to(weight).masked_fill(mask[..., None] == 0, 0.0)
    _check_finite("embeddings", features.flatten(1))
    return Frames(features, mask)


def _check_shape(embeddings, shape, name):
    if embeddings.shape != shape:
        raise ValueError(
            f"Give as many enrollments or embeddings as {name}: embeddings must have "
            f"shape {shape}, but have {tuple(embeddings.shape)}"
        )


def _check_finite(name, batch):
    bad = (~(batch.abs() <= LOUDEST).all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{name} hold NaN, infinite values or some beyond {LOUDEST:g} (in the "
            f"batch: {bad})"
        )
