"""The convolutional block of a temporal convolutional network, made for speed.

Layout, stated once: activations are channels-last, `(batch, frames, channels)`,
contiguous. Pointwise convolutions then are matrix products over rows, for which
PyTorch has the fastest code there is, and everything between the products is limited
by memory traffic. So there are as few passes over memory as possible, each in C:
layer norms are never written out. The first is applied where the depthwise convolution
reads, the second goes through the product behind it:

    linear(norm(v)) = rstd (v G') - rstd mean (G 1) + (W beta + b),  G = W diag(gamma)

The backward pass computes everything but the first product and the statistics anew.
Norms are global, over a whole item, or in causal blocks cumulative, up to a frame.

Padded frames do not leak: they count in no statistic and are zero where the depthwise
convolution reads them, so that a padded item has the outputs of the same item alone.
`plain_conv_block` says the same in PyTorch; it runs without a C compiler and, compiled
by PyTorch, on GPUs.

A causal block also takes the frames of streams as they come: see `conv_stream`.
"""

import ctypes
from typing import NamedTuple

import torch
from torch.nn import functional as F

from speechbrain_peer.nnet.compiled import CompiledOnGpus
from speechbrain_peer.nnet.kernels import load_kernels
from speechbrain_peer.nnet.norms import (
    NORM_EPS,
    LayerNorm,
    moments,
    new_totals,
    norm_linear,
)
from speechbrain_peer.nnet.products import linear, weight_grad


class BlockParameters(NamedTuple):
    """Parameters of a block with H hidden channels and O = B + Sc outputs.

    It has B input channels, or more, of which the others have no residual.
    """

    in_weight: torch.Tensor
    """(H, B)"""
    in_bias: torch.Tensor
    """(H,)"""
    slope1: torch.Tensor
    """(1,), of the first PReLU"""
    gamma1: torch.Tensor
    """(H,)"""
    beta1: torch.Tensor
    """(H,)"""
    taps: torch.Tensor
    """(3, H), of the depthwise convolution"""
    tap_bias: torch.Tensor
    """(H,)"""
    slope2: torch.Tensor
    """(1,)"""
    gamma2: torch.Tensor
    """(H,)"""
    beta2: torch.Tensor
    """(H,)"""
    out_weight: torch.Tensor
    """(O, H)"""
    out_bias: torch.Tensor
    """(O,)"""


def conv_block(x, frame_mask, parameters, dilation, causal=False, eps=NORM_EPS):
    """One block: widen, PReLU, norm, depthwise convolution, PReLU, norm, project.

    Under autocast the products and the activations between them are bf16, the
    statistics and sums fp32.

    Arguments
    ---------
    x : torch.Tensor
        (batch, frames, B).
    frame_mask : torch.Tensor
        1 for true frames, 0 for padding, (batch, frames).
    parameters : BlockParameters
        fp32 on the fast path.
    dilation : int
        Frames between taps.
    causal : bool
        Whether a frame depends on itself and those before it only: the taps' last one
        reads the frame, and norms are cumulative.
    eps : float
        Added to the variance by both norms.

    Returns
    -------
    residual : torch.Tensor
        (batch, frames, B).
    skip : torch.Tensor
        (batch, frames, Sc).
    """
    dtype = fast_dtype(x, parameters)
    if dtype is None:
        return compiled_conv_block(x, frame_mask, parameters, dilation, causal, eps)
    constant = (dilation, causal, eps, dtype)
    return _FastConvBlock.apply(x, frame_mask, *constant, *parameters)


def plain_conv_block(x, frame_mask, parameters, dilation, causal=False, eps=NORM_EPS):
    """`conv_block` in plain PyTorch."""
    state = new_block_state(x.shape[0], parameters, dilation) if causal else None
    outputs, _ = plain_block(x, frame_mask, parameters, dilation, eps, state)
    return outputs


compiled_conv_block = CompiledOnGpus(plain_conv_block)
"""`plain_conv_block`, on GPUs compiled: once for all blocks, frames and dilations."""


def new_block_state(batch, parameters, dilation):
    """The state of a causal block on streams that have not begun.

    Arguments
    ---------
    batch : int
        How many streams.
    parameters : BlockParameters
        The state is on their device.
    dilation : int
        Frames between taps.

    Returns
    -------
    past : torch.Tensor
        Frames that the depthwise convolution still reads, (batch, 2 * dilation, H).
    totals1, totals2 : torch.Tensor
        The norms', see `norms`.
    """
    taps = parameters.taps
    past = taps.new_zeros(batch, 2 * dilation, taps.shape[1])
    return past, new_totals(batch, taps), new_totals(batch, taps)


def out_product(p, dtype):
    """The second product's weight with the norm's factor, its row sums, its shift."""
    # The rounded weight's row sums, as the mean in z has to cancel exactly.
    weight = (p.out_weight * p.gamma2).to(dtype)
    return weight, weight.float().sum(1), p.out_weight @ p.beta2 + p.out_bias


def plain_block(x, frame_mask, parameters, dilation, eps, state):
    """The outputs and, of a causal block, which has one, the next state."""
    p = parameters
    past, *totals = state or (None,) * 3
    norm1, norm2 = (_norm(frame_mask, p, eps, before) for before in totals)
    hidden = prelu(linear(x, p.in_weight, p.in_bias), p.slope1)
    mean, rstd = moments(hidden, norm1)
    normed = ((hidden - mean) * rstd * p.gamma1 + p.beta1) * frame_mask[..., None]
    if state is None:
        padded = F.pad(normed, (0, 0, dilation, dilation))
    else:
        padded = torch.cat((past, normed), dim=1)
    frames = x.shape[1]
    convolved = p.tap_bias
    for tap in range(3):
        start = tap * dilation
        convolved = convolved + padded[:, start : start + frames] * p.taps[tap]
    hidden = prelu(convolved, p.slope2).to(hidden.dtype)
    out = norm_linear(hidden, norm2, p.gamma2, p.beta2, p.out_weight, p.out_bias)
    outputs = out.split(split(x, p), dim=-1)
    if state is None:
        return outputs, None
    return outputs, (tail(padded, frames), norm1.totals, norm2.totals)


def _norm(frame_mask, parameters, eps, past):
    return LayerNorm(frame_mask, parameters.taps.shape[1], eps, past)


def contiguous(parameters):
    return BlockParameters(*(parameter.contiguous() for parameter in parameters))


def tail(rows, start):
    """A copy, as a view would keep all that it is a part of."""
    return rows[:, start:].clone()


def fast_dtype(x, parameters):
    """The type of the activations on the fast path; None if that cannot be taken."""
    if x.device.type != "cpu" or not x.dtype == parameters.taps.dtype == torch.float32:
        return None
    dtype = _activation_dtype(x)
    if torch.compiler.is_exporting() or load_kernels("conv_block", dtype) is None:
        return None
    return dtype


def prelu(x, slope):
    """PReLU with one slope."""
    return F.prelu(x, slope.to(x.dtype))


def split(x, parameters):
    """How many of the outputs are the residual's, and how many the skip's."""
    outputs = len(parameters.out_bias)
    residuals = min(x.shape[-1], outputs)
    return residuals, outputs - residuals


def _activation_dtype(x):
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


class Kernels:
    """The C kernels on one block's tensors, see conv_block.c."""

    class _Block(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_void_p) for name in ("a", "mask", "mean", "rstd")),
            *((name, ctypes.c_void_p) for name in ("in_bias", "gamma", "beta")),
            *((name, ctypes.c_void_p) for name in ("taps", "tap_bias")),
            *((name, ctypes.c_float) for name in ("slope1", "slope2")),
            *((name, ctypes.c_int64) for name in ("batch", "frames", "channels")),
            *((name, ctypes.c_int64) for name in ("first", "dilation")),
        )

    def __init__(self, a, frame_mask, statistics, p, taps_at, slopes=None):
        self.library = load_kernels("conv_block", a.dtype)
        # Kept, as the structure holds their addresses only.
        self.tensors = (
            *(a, frame_mask, *statistics),
            *(p.in_bias, p.gamma1, p.beta1, p.taps, p.tap_bias),
        )
        addresses = (tensor.data_ptr() for tensor in self.tensors)
        slopes = slopes or (p.slope1.item(), p.slope2.item())
        self.block = self._Block(*addresses, *slopes, *a.shape, *taps_at)
        rows = ctypes.c_int64.in_dll(self.library, "chunk_rows").value
        self.chunks = (a.shape[0], -(-a.shape[1] // rows))

    def slots(self, *shape):
        """Room for sums of every chunk, (batch, chunks, *shape), to be summed up."""
        return torch.empty(*self.chunks, *shape)

    def __call__(self, name, *arguments):
        converted = (_CONVERTERS[type(argument)](argument) for argument in arguments)
        getattr(self.library, name)(ctypes.byref(self.block), *converted)


_CONVERTERS = {
    torch.Tensor: lambda tensor: ctypes.c_void_p(tensor.data_ptr()),
    int: ctypes.c_int64,
    float: ctypes.c_double,
}


def _fast_block(x, norms, p, taps_at, dtype):
    """A forward pass: residual and skip, and what the backward pass needs.

    The names are those of conv_block.c.
    """
    frame_mask = norms[0].frame_mask
    with torch.autocast("cpu", enabled=False):
        x, in_weight = x.to(dtype), p.in_weight.to(dtype)
        a = linear(x, in_weight)
        constant = (p, taps_at)
        rows = frame_mask.shape

        def of_frames(statistics):
            return tuple(value.expand(rows).contiguous() for value in statistics)

        sums = torch.empty(*rows, 2)
        unknown = (frame_mask.new_empty(0),) * 2
        Kernels(a, frame_mask, unknown, *constant)("moments", sums)
        statistics1 = of_frames(norms[0].statistics(sums))
        v = torch.empty_like(a)
        kernels = Kernels(a, frame_mask, statistics1, *constant)
        kernels("convolve", v, sums)
        statistics2 = of_frames(norms[1].statistics(sums))

        weight, row_sums, shift = out_product(p, dtype)
        z = linear(v, weight)
        residuals, skips = split(x, p)
        residual, skip = torch.empty(*rows, residuals), torch.empty(*rows, skips)
        sizes = (residuals, residuals + skips)
        kernels("project", z, *statistics2, row_sums, shift, *sizes, residual, skip)
    products = (x, in_weight, a, z, weight, row_sums)
    return (residual, skip), (*statistics1, *statistics2, *products)


class _FastConvBlock(torch.autograd.Function):
    """`plain_conv_block` in few passes."""

    @staticmethod
    def forward(ctx, x, frame_mask, dilation, causal, eps, dtype, *parameters):
        p = contiguous(parameters)
        past = new_totals(x.shape[0], x) if causal else None
        ctx.norm = _norm(frame_mask.float().contiguous(), p, eps, past)
        ctx.taps_at = (-2 * dilation if causal else -dilation, dilation)
        norms = (ctx.norm, ctx.norm)
        outputs, saved = _fast_block(x, norms, p, ctx.taps_at, dtype)
        ctx.save_for_backward(*saved, *p)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, residual_grad, skip_grad):
        *statistics, x, in_weight, a, z, weight, row_sums = ctx.saved_tensors[:10]
        statistics1, statistics2 = statistics[:2], statistics[2:]
        p, norm = BlockParameters(*ctx.saved_tensors[10:]), ctx.norm
        kernels = Kernels(a, norm.frame_mask, statistics1, p, ctx.taps_at)
        channels, split, outputs = a.shape[-1], residual_grad.shape[-1], z.shape[-1]
        frame_sums = torch.empty(*norm.frame_mask.shape, 2)

        # Projection and second norm
        dz, sums = torch.empty_like(z), kernels.slots(2, outputs)
        grads = (residual_grad.contiguous(), skip_grad.contiguous())
        of_z = (z, *statistics2, row_sums, *grads, split, outputs)
        kernels("project_backward", *of_z, dz, sums, frame_sums)
        bias_grad, mean_shifts = sums.sum((0, 1))
        statistics_grad = norm.input_grad(frame_sums, *statistics2)
        dc, v, slopes = torch.empty_like(a), torch.empty_like(a), kernels.slots()
        dv, sums = linear(dz, weight.T), kernels.slots(7, channels)
        kernels("convolve_backward", dv, *statistics_grad, dc, v, slopes, sums)
        slope2_grad = slopes.sum().view(1)
        normed_grad = weight_grad(dz, v).float() - mean_shifts[:, None]
        out_weight_grad = torch.outer(bias_grad, p.beta2) + normed_grad * p.gamma2
        gamma2_grad = (normed_grad * p.out_weight).sum(0)
        beta2_grad = bias_grad @ p.out_weight

        # Depthwise convolution and first norm
        products, total, unread = sums.sum(1).split((3, 1, 3), dim=1)
        # Of dc n and of dc, both where a tap reads a true frame: (2, batch, 3, H)
        of_taps = torch.stack((products, total - unread))
        gamma1_grad, beta1_grad = (of_taps.sum(1) * p.taps).sum(1)
        gamma1_beta1 = torch.stack((p.gamma1, p.beta1))[:, None]
        tap_grads = (of_taps.sum(1) * gamma1_beta1).sum(0)
        if norm.past is None:  # statistics of whole items take whole sums
            statistics1 = mean, rstd = [values[:, :1] for values in statistics1]
            product, grad = (of_taps * p.taps * p.gamma1).sum((2, 3))[..., None]
            frame_sums = torch.stack((grad, product / rstd + mean * grad), dim=-1)
        else:
            kernels("normed_grads", dc, frame_sums)
        statistics_grad = norm.input_grad(frame_sums, *statistics1)
        da, sums = v, kernels.slots(channels)  # v has done its duty
        kernels("input_backward", dc, *statistics_grad, da, sums, slopes)
        slope1_grad, in_bias_grad = slopes.sum().view(1), sums.sum((0, 1))
        in_weight_grad = weight_grad(da, x).float()
        parameter_grads = BlockParameters(
            in_weight_grad,
            in_bias_grad,
            slope1_grad,
            gamma1_grad,
            beta1_grad,
            tap_grads,
            total.sum((0, 1)),
            slope2_grad,
            gamma2_grad,
            beta2_grad,
            out_weight_grad,
            bias_grad,
        )
        return linear(da, in_weight.T).float(), *[None] * 5, *parameter_grads
