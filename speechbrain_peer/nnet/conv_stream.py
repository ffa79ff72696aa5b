"""The causal convolutional block on streams, made for steps of few frames.

There the calls count, not the passes over memory: what depends on parameters alone is
prepared once, and between the products there is one call of C. The state, what a block
has to remember, is a tuple of tensors with the batch first; `conv_block` makes it.
"""

from typing import NamedTuple

import torch

from speechbrain_peer.nnet.conv_block import (
    BlockParameters,
    Kernels,
    contiguous,
    fast_dtype,
    out_product,
    plain_block,
    split,
    tail,
)
from speechbrain_peer.nnet.norms import NORM_EPS
from speechbrain_peer.nnet.products import linear


def step_conv_block(x, state, parameters, dilation, eps=NORM_EPS, prepare=None):
    """A causal `conv_block` on the next frames of streams.

    Arguments
    ---------
    x : torch.Tensor
        (batch, frames, B); there may be no frame at all.
    state : tuple
        From `new_block_state` or the step before; it is not changed.
    parameters : BlockParameters
        fp32 on the fast path.
    dilation : int
        Frames between taps.
    eps : float
        Added to the variance by both norms.
    prepare : callable or None
        Gives what `prepare_block` does, maybe of an earlier step.

    Returns
    -------
    outputs : tuple of torch.Tensor
        Residual and skip: of all steps together those of `conv_block`.
    state : tuple
        For the next step.
    """
    wants_grad = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (x, *parameters)
    )
    dtype = fast_dtype(x, parameters)
    if wants_grad or dtype is None:
        frame_mask = x.new_ones(x.shape[:2])
        return plain_block(x, frame_mask, parameters, dilation, eps, state)
    return _fast_step(
        x, state, (prepare or prepare_block)(parameters, dtype), dilation, eps
    )


class PreparedBlock(NamedTuple):
    """What a step makes of a block's parameters: the same for all steps."""

    parameters: BlockParameters
    """Contiguous."""
    slopes: tuple
    """Of both PReLUs, numbers."""
    in_weight: torch.Tensor
    """In the type of the products, (H, B)."""
    out_weight: torch.Tensor
    """The same, with the second norm's factor, (O, H)."""
    row_sums: torch.Tensor
    """Of that, (O,)."""
    shift: torch.Tensor
    """What the second norm's offset and the bias add, (O,)."""


def prepare_block(parameters, dtype):
    """Prepares a block for steps.

    Arguments
    ---------
    parameters : BlockParameters
        Of the block.
    dtype : torch.dtype
        Of the products.

    Returns
    -------
    PreparedBlock
    """
    p = contiguous(parameters)
    with torch.autocast("cpu", enabled=False):
        weight, *rest = out_product(p, dtype)
        slopes = p.slope1.item(), p.slope2.item()
        return PreparedBlock(p, slopes, p.in_weight.to(dtype), weight, *rest)


def _fast_step(x, state, prepared, dilation, eps):
    """`step_conv_block` in one call of C between the products."""
    past, *totals = state
    p, frames = prepared.parameters, x.shape[1]
    # They are changed in place.
    totals = [before.clone() for before in totals]
    with torch.autocast("cpu", enabled=False):
        a = linear(x.to(prepared.in_weight.dtype), prepared.in_weight)
        v, y = torch.empty_like(a), torch.cat((past, torch.empty(a.shape)), dim=1)
        mean, rstd = torch.empty(2, *a.shape[:2])
        # There is no padding, and the first norm's statistics are not kept.
        taps_at = (-2 * dilation, dilation)
        kernels = Kernels(a, mean, (mean, rstd), p, taps_at, prepared.slopes)
        kernels("stream", eps, *totals, y, v, mean, rstd)
        z = linear(v, prepared.out_weight)
        residuals, skips = split(x, p)
        residual = x.new_empty(*a.shape[:2], residuals)
        skip = x.new_empty(*a.shape[:2], skips)
        of_z = (z, mean, rstd, prepared.row_sums, prepared.shift)
        kernels("project", *of_z, residuals, residuals + skips, residual, skip)
    return (residual, skip), (tail(y, frames), *totals)
