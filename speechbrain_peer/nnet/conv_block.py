"""The convolutional block of a temporal convolutional network, made for speed.

Layout, stated once: activations are channels-last, `(batch, frames, channels)`,
contiguous. Pointwise convolutions then are matrix products over rows, for which
PyTorch has the fastest code there is, and everything between the products is limited
by memory traffic. So there are as few passes over memory as possible, each in C:
global layer norms are never written out. The first is applied where the depthwise
convolution reads, the second goes through the product behind it:

    linear(norm(v)) = rstd (v G') - rstd mean (G 1) + (W beta + b),  G = W diag(gamma)

The backward pass computes everything but the first product and the statistics anew.

Padded frames do not leak: they count in no statistic and are zero where the depthwise
convolution reads them, so that a padded item has the outputs of the same item alone.
`plain_conv_block` says the same in PyTorch; it runs on GPUs and without a C compiler.
"""

import ctypes
from typing import NamedTuple

import torch
from torch.nn import functional as F

from speechbrain_peer.nnet.kernels import load_kernels

NORM_EPS = 1e-8


class BlockParameters(NamedTuple):
    """Parameters of a block of B channels, H hidden channels and O = B + Sc outputs."""

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


def conv_block(x, frame_mask, parameters, dilation):
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

    Returns
    -------
    residual : torch.Tensor
        (batch, frames, B).
    skip : torch.Tensor
        (batch, frames, Sc).
    """
    if x.device.type == "cpu" and x.dtype == parameters.taps.dtype == torch.float32:
        dtype = _activation_dtype(x)
        if load_kernels("conv_block", dtype) is not None:
            return _FastConvBlock.apply(x, frame_mask, dilation, dtype, *parameters)
    return plain_conv_block(x, frame_mask, parameters, dilation)


def plain_conv_block(x, frame_mask, parameters, dilation):
    """`conv_block` in plain PyTorch."""
    p = parameters
    hidden = prelu(F.linear(x, p.in_weight, p.in_bias), p.slope1)
    mean, rstd = moments(hidden, frame_mask)
    normed = (hidden - mean) * rstd * p.gamma1 + p.beta1
    padded = F.pad(normed * frame_mask[..., None], (0, 0, dilation, dilation))
    frames = x.shape[1]
    convolved = p.tap_bias
    for tap in range(3):
        start = tap * dilation
        convolved = convolved + padded[:, start : start + frames] * p.taps[tap]
    hidden = prelu(convolved, p.slope2).to(hidden.dtype)
    out = norm_linear(hidden, frame_mask, p.gamma2, p.beta2, p.out_weight, p.out_bias)
    return out.split((x.shape[-1], out.shape[-1] - x.shape[-1]), dim=-1)


def prelu(x, slope):
    """PReLU with one slope."""
    return torch.where(x > 0, x, slope.to(x.dtype) * x)


def moments(x, frame_mask):
    """Mean and reciprocal deviation of every item, over true frames and channels.

    Arguments
    ---------
    x : torch.Tensor
        (batch, frames, channels).
    frame_mask : torch.Tensor
        (batch, frames), 1 for true frames.

    Returns
    -------
    mean, rstd : torch.Tensor
        At least fp32, (batch, 1, 1).
    """
    if x.dtype == torch.bfloat16 or x.dtype == torch.float16:
        x = x.float()
    # Rows first: short sums keep fp32 exact over minutes of frames.
    sums = torch.stack((x.sum(-1), x.square().sum(-1)), dim=-1)
    sums = (sums * frame_mask[..., None]).sum(1)
    mean, rstd = _moments_of_sums(sums, frame_mask.sum(1) * x.shape[-1])
    return mean[:, None, None], rstd[:, None, None]


def norm_linear(x, frame_mask, gamma, beta, weight, bias):
    """`linear(global_layer_norm(x))` without writing the normalized x."""
    mean, rstd = moments(x, frame_mask)
    product = F.linear(x, weight * gamma).to(mean.dtype)
    return rstd * product - (rstd * mean) * (weight @ gamma) + (weight @ beta + bias)


def _moments_of_sums(sums, count):
    """Mean and reciprocal deviation from the sums of values and squares, (batch, 2)."""
    mean, power = (sums / count[:, None]).unbind(1)
    return mean, torch.rsqrt((power - mean * mean).clamp(min=0) + NORM_EPS)


def _activation_dtype(x):
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


class _Kernels:
    """The C kernels on one block's tensors, see conv_block.c."""

    class _Block(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_void_p) for name in ("a", "mask", "scale", "shift")),
            *((name, ctypes.c_void_p) for name in ("taps", "tap_bias")),
            *((name, ctypes.c_float) for name in ("slope1", "slope2")),
            *((name, ctypes.c_int64) for name in ("batch", "frames", "channels")),
            ("dilation", ctypes.c_int64),
        )

    def __init__(self, a, frame_mask, scale, shift, taps, tap_bias, slopes, dilation):
        self.library = load_kernels("conv_block", a.dtype)
        # Kept, as the structure holds their addresses only.
        self.tensors = (a, frame_mask, scale, shift, taps, tap_bias)
        addresses = (tensor.data_ptr() for tensor in self.tensors)
        self.block = self._Block(*addresses, *slopes, *a.shape, dilation)
        rows = ctypes.c_int64.in_dll(self.library, "chunk_rows").value
        self.chunks = (a.shape[0], -(-a.shape[1] // rows))

    def slots(self, *shape):
        """Room for sums of every chunk, (batch, chunks, *shape), to be summed up."""
        return torch.empty(*self.chunks, *shape)

    def __call__(self, name, *arguments):
        converted = (
            ctypes.c_void_p(argument.data_ptr())
            if isinstance(argument, torch.Tensor)
            else ctypes.c_int64(argument)
            for argument in arguments
        )
        getattr(self.library, name)(ctypes.byref(self.block), *converted)


class _FastConvBlock(torch.autograd.Function):
    """`plain_conv_block` in few passes. The names are those of conv_block.c."""

    @staticmethod
    def forward(ctx, x, frame_mask, dilation, dtype, *parameters):
        p = BlockParameters(*parameters)
        with torch.autocast("cpu", enabled=False):
            x, in_weight = x.to(dtype), p.in_weight.to(dtype)
            a = F.linear(x, in_weight, p.in_bias.to(dtype))
            slopes = p.slope1.item(), p.slope2.item()
            frame_mask = frame_mask.float().contiguous()
            count = frame_mask.sum(1) * a.shape[-1]

            scale = shift = a.new_empty(0)
            constant = (p.taps, p.tap_bias, slopes, dilation)
            kernels = _Kernels(a, frame_mask, scale, shift, *constant)
            sums = kernels.slots(2)
            kernels("moments", sums)
            mean1, rstd1 = _moments_of_sums(sums.sum(1), count)
            scale = rstd1[:, None] * p.gamma1
            shift = p.beta1 - mean1[:, None] * scale

            kernels = _Kernels(a, frame_mask, scale, shift, *constant)
            v = torch.empty_like(a)
            kernels("convolve", v, sums)
            mean2, rstd2 = _moments_of_sums(sums.sum(1), count)

            # The rounded weight's row sums, as the mean in z has to cancel exactly.
            weight = (p.out_weight * p.gamma2).to(dtype)
            row_sums = weight.float().sum(1)
            z = F.linear(v, weight)
            shift2 = torch.outer(-rstd2 * mean2, row_sums)
            shift2 += p.out_weight @ p.beta2 + p.out_bias
            split, outputs = x.shape[-1], z.shape[-1]
            residual = z.new_empty(*z.shape[:2], split, dtype=torch.float32)
            skip = z.new_empty(*z.shape[:2], outputs - split, dtype=torch.float32)
            kernels("project", z, rstd2, shift2, split, outputs, residual, skip)
        ctx.slopes, ctx.dilation = slopes, dilation
        statistics = (count, mean1, rstd1, mean2, rstd2, scale, shift)
        products = (x, in_weight, a, z, weight, row_sums)
        ctx.save_for_backward(frame_mask, *statistics, *products, *parameters)
        return residual, skip

    @staticmethod
    def backward(ctx, residual_grad, skip_grad):
        frame_mask, *saved = ctx.saved_tensors
        count, mean1, rstd1, mean2, rstd2, scale, shift = saved[:7]
        x, in_weight, a, z, weight, row_sums = saved[7:13]
        p = BlockParameters(*saved[13:])
        constant = (p.taps, p.tap_bias, ctx.slopes, ctx.dilation)
        kernels = _Kernels(a, frame_mask, scale, shift, *constant)
        channels, split, outputs = a.shape[-1], x.shape[-1], z.shape[-1]

        # Projection and second norm
        dz, sums, products = (
            torch.empty_like(z),
            kernels.slots(outputs),
            kernels.slots(),
        )
        grads = (residual_grad.contiguous(), skip_grad.contiguous())
        kernels(
            "project_backward", z, rstd2, *grads, split, outputs, dz, sums, products
        )
        item_sums = sums.sum(1)
        bias_grad = item_sums.sum(0)
        mean_terms = item_sums @ row_sums
        rstd_grad = products.sum(1) - mean2 * mean_terms
        offset, slope = _statistics_grads(
            -rstd2 * mean_terms, rstd_grad, mean2, rstd2, count
        )
        dc, v, slopes = torch.empty_like(a), torch.empty_like(a), kernels.slots()
        kernels("convolve_backward", dz @ weight, offset, slope, dc, v, slopes)
        slope2_grad = slopes.sum().view(1)
        weight_grad = (dz.flatten(0, 1).T @ v.flatten(0, 1)).float()
        weight_grad -= ((rstd2 * mean2) @ item_sums)[:, None]
        out_weight_grad = torch.outer(bias_grad, p.beta2) + weight_grad * p.gamma2
        gamma2_grad = (weight_grad * p.out_weight).sum(0)
        beta2_grad = bias_grad @ p.out_weight

        # Depthwise convolution and first norm
        sums = kernels.slots(6, channels)
        kernels("parameter_sums", dc, sums)
        sums = sums.sum(1)
        shift_grad, scale_grad = sums[:, 0], sums[:, 1]
        taps_grad, tap_bias_grad = sums[:, 2:5].sum(0), sums[:, 5].sum(0)
        centred = scale_grad - mean1[:, None] * shift_grad
        gamma1_grad, beta1_grad = rstd1 @ centred, shift_grad.sum(0)
        offset, slope = _statistics_grads(
            -rstd1 * (shift_grad @ p.gamma1), centred @ p.gamma1, mean1, rstd1, count
        )
        da, sums = v, kernels.slots(channels)  # v has done its duty
        kernels("input_backward", dc, offset, slope, da, sums, slopes)
        slope1_grad, in_bias_grad = slopes.sum().view(1), sums.sum((0, 1))
        in_weight_grad = (da.flatten(0, 1).T @ x.flatten(0, 1)).float()
        parameter_grads = BlockParameters(
            in_weight_grad,
            in_bias_grad,
            slope1_grad,
            gamma1_grad,
            beta1_grad,
            taps_grad,
            tap_bias_grad,
            slope2_grad,
            gamma2_grad,
            beta2_grad,
            out_weight_grad,
            bias_grad,
        )
        return (da @ in_weight).float(), None, None, None, *parameter_grads


def _statistics_grads(mean_grad, rstd_grad, mean, rstd, count):
    """What a norm's statistics add to the gradient of its input x: offset + slope x."""
    power_grad = -(rstd**3) * rstd_grad / count
    return mean_grad / count - power_grad * mean, power_grad
