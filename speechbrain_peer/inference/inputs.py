"""What inference accepts: clear errors instead of NaN and silent nonsense."""

import torch

from speechbrain_peer.utils.signal import SHORTEST_ENROLLMENT, sample_mask


def check_waveforms(name, waveforms, lens, device):
    """Checks a batch of waveforms and moves it to the model.

    Arguments
    ---------
    name : str
        What they are, for errors.
    waveforms : torch.Tensor
        (batch, time).
    lens : torch.Tensor or None
        Relative lengths (batch,), in (0, 1].
    device : torch.device
        Where the model is.

    Returns
    -------
    waveforms : torch.Tensor
        fp32, (batch, time).
    lens : torch.Tensor or None
        fp32, (batch,).

    Raises
    ------
    ValueError
        If they have another shape, are no floats, are not finite, or the lengths are
        not relative.
    """
    if waveforms.dim() != 2 or not waveforms.numel():
        raise ValueError(
            f"{name} must be (batch, time), but have shape {tuple(waveforms.shape)}"
        )
    if not waveforms.is_floating_point():
        raise ValueError(
            f"{name} must be floating point, full scale at 1, not {waveforms.dtype}"
        )
    _check_finite(name, waveforms)
    waveforms = waveforms.to(device, torch.float32)
    if lens is None:
        return waveforms, None
    lens = torch.as_tensor(lens, dtype=torch.float32, device=device)
    if lens.shape != waveforms.shape[:1] or not ((lens > 0) & (lens <= 1)).all():
        raise ValueError(
            f"The lengths of {name} must be {len(waveforms)} numbers in (0, 1], "
            f"but are {lens.tolist()}"
        )
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


def check_embeddings(embeddings, shape, weight, name="mixtures"):
    """Checks embeddings and moves them to the model.

    Arguments
    ---------
    embeddings : torch.Tensor
        (batch, embedding).
    shape : tuple of int
        The batch size and embedding size they must have.
    weight : torch.Tensor
        One of the model, whose device and type they get.
    name : str
        What they are for, for errors.

    Returns
    -------
    torch.Tensor
        (batch, embedding).

    Raises
    ------
    ValueError
        If they are not one for each mixture, of another size, or not finite.
    """
    if embeddings.shape != shape:
        raise ValueError(
            f"Give as many enrollments or embeddings as {name}: embeddings must have "
            f"shape {tuple(shape)}, but have {tuple(embeddings.shape)}"
        )
    _check_finite("embeddings", embeddings)
    return embeddings.to(weight)


def _check_finite(name, batch):
    bad = (~batch.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"{name} hold NaN or infinite values (in the batch: {bad})")
