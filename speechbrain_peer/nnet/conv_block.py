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
`plain_conv_block` says the same in PyTorch; it runs on GPUs and without a C compiler.
"""

import ctypes
from typing import NamedTuple

import torch
from torch.nn import functional as F

from speechbrain_peer.nnet.kernels import load_kernels

NORM_EPS = 1e-8
"""Added to the variance, unless told otherwise."""


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
    if x.device.type == "cpu" and x.dtype == parameters.taps.dtype == torch.float32:
        dtype = _activation_dtype(x)
        if not torch.compiler.is_exporting() and load_kernels("conv_block", dtype):
            constant = (dilation, causal, eps, dtype)
            return _FastConvBlock.apply(x, frame_mask, *constant, *parameters)
    return plain_conv_block(x, frame_mask, parameters, dilation, causal, eps)


def plain_conv_block(x, frame_mask, parameters, dilation, causal=False, eps=NORM_EPS):
    """`conv_block` in plain PyTorch."""
    p = parameters
    hidden = prelu(F.linear(x, p.in_weight, p.in_bias), p.slope1)
    mean, rstd = moments(hidden, frame_mask, causal, eps)
    normed = (hidden - mean) * rstd * p.gamma1 + p.beta1
    before = -_first_tap(dilation, causal)
    padded = F.pad(
        normed * frame_mask[..., None], (0, 0, before, 2 * dilation - before)
    )
    frames = x.shape[1]
    convolved = p.tap_bias
    for tap in range(3):
        start = tap * dilation
        convolved = convolved + padded[:, start : start + frames] * p.taps[tap]
    hidden = prelu(convolved, p.slope2).to(hidden.dtype)
    out = norm_linear(
        hidden, frame_mask, p.gamma2, p.beta2, p.out_weight, p.out_bias, causal, eps
    )
    return out.split(_split(x, p), dim=-1)


def prelu(x, slope):
    """PReLU with one slope."""
    return F.prelu(x, slope.to(x.dtype))


def moments(x, frame_mask, causal=False, eps=NORM_EPS):
    """Mean and reciprocal deviation over true frames and channels.

    Arguments
    ---------
    x : torch.Tensor
        (batch, frames, channels).
    frame_mask : torch.Tensor
        (batch, frames), 1 for true frames.
    causal : bool
        Whether they are those of every frame and what is before it.
    eps : float
        Added to the variance.

    Returns
    -------
    mean, rstd : torch.Tensor
        At least fp32, (batch, 1, 1), or (batch, frames, 1) if causal.
    """
    if x.dtype == torch.bfloat16 or x.dtype == torch.float16:
        x = x.float()
    # Rows first: short sums keep fp32 exact over minutes of frames.
    sums = torch.stack((x.sum(-1), x.square().sum(-1)), dim=-1)
    statistics = _Norm(frame_mask, x.shape[-1], causal, eps).statistics(sums)
    return tuple(statistic[..., None] for statistic in statistics)


def norm_linear(x, frame_mask, gamma, beta, weight, bias, causal=False, eps=NORM_EPS):
    """`linear(layer_norm(x))` without writing the normalized x."""
    mean, rstd = moments(x, frame_mask, causal, eps)
    product = F.linear(x, weight * gamma).to(mean.dtype)
    return rstd * product - (rstd * mean) * (weight @ gamma) + (weight @ beta + bias)


def _split(x, parameters):
    """How many of the outputs are the residual's, and how many the skip's."""
    outputs = len(parameters.out_bias)
    residuals = min(x.shape[-1], outputs)
    return residuals, outputs - residuals


def _first_tap(dilation, causal):
    """Frames from an output to the input of its first tap."""
    return -2 * dilation if causal else -dilation


class _Norm:
    """A layer norm's statistics from sums over channels, (batch, frames, 2), and back.

    The sums are those of the values and of their squares. Statistics are (batch, 1),
    or of every frame, (batch, frames), if causal.
    """

    def __init__(self, frame_mask, channels, causal, eps):
        self.frame_mask, self.causal, self.eps = frame_mask, causal, eps
        # A first frame that is padding has no values, which is no division by zero.
        self.count = self._up_to_now(frame_mask).clamp(min=1) * channels

    def statistics(self, sums):
        """Mean and reciprocal deviation."""
        sums = self._up_to_now(sums * self.frame_mask[..., None])
        mean, power = (sums / self.count[..., None]).unbind(-1)
        return mean, torch.rsqrt((power - mean * mean).clamp(min=0) + self.eps)

    def input_grad(self, grad_sums, mean, rstd):
        """What the statistics add to the gradient of the input x: offset + factor x.

        `grad_sums` are those of the gradient of the normed value and of its product
        with x. Both results are (batch, frames).
        """
        grad, product = grad_sums.unbind(-1)
        power_grad = -(rstd**3) * (product - mean * grad) / self.count
        offset = -rstd * grad / self.count - power_grad * mean
        return self._from_now(offset), self._from_now(power_grad)

    def _up_to_now(self, rows):
        if not self.causal:
            return rows.sum(1, keepdim=True)
        # In double precision: running sums over minutes of frames.
        return rows.cumsum(1, dtype=torch.float64).to(rows.dtype)

    def _from_now(self, rows):
        if self.causal:
            sums = rows.flip(1).cumsum(1, dtype=torch.float64).flip(1).to(rows.dtype)
        else:
            sums = rows.sum(1, keepdim=True)
        return sums * self.frame_mask


def _activation_dtype(x):
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


class _Kernels:
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

    def __init__(self, a, frame_mask, statistics, parameters, slopes, taps_at):
        self.library = load_kernels("conv_block", a.dtype)
        p = parameters
        # Kept, as the structure holds their addresses only.
        self.tensors = (
            *(a, frame_mask, *statistics),
            *(p.in_bias, p.gamma1, p.beta1, p.taps, p.tap_bias),
        )
        addresses = (tensor.data_ptr() for tensor in self.tensors)
        self.block = self._Block(*addresses, *slopes, *a.shape, *taps_at)
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
    def forward(ctx, x, frame_mask, dilation, causal, eps, dtype, *parameters):
        p = BlockParameters(*(parameter.contiguous() for parameter in parameters))
        with torch.autocast("cpu", enabled=False):
            x, in_weight = x.to(dtype), p.in_weight.to(dtype)
            a = F.linear(x, in_weight)
            frame_mask = frame_mask.float().contiguous()
            norm = _Norm(frame_mask, a.shape[-1], causal, eps)
            slopes = p.slope1.item(), p.slope2.item()
            constant = (p, slopes, (_first_tap(dilation, causal), dilation))
            rows = frame_mask.shape

            def of_frames(statistics):
                return tuple(value.expand(rows).contiguous() for value in statistics)

            sums = torch.empty(*rows, 2)
            unknown = (frame_mask.new_empty(0),) * 2
            _Kernels(a, frame_mask, unknown, *constant)("moments", sums)
            statistics1 = of_frames(norm.statistics(sums))
            v = torch.empty_like(a)
            kernels = _Kernels(a, frame_mask, statistics1, *constant)
            kernels("convolve", v, sums)
            statistics2 = of_frames(norm.statistics(sums))

            # The rounded weight's row sums, as the mean in z has to cancel exactly.
            weight = (p.out_weight * p.gamma2).to(dtype)
            row_sums = weight.float().sum(1)
            shift = p.out_weight @ p.beta2 + p.out_bias
            z = F.linear(v, weight)
            residuals, skips = _split(x, p)
            residual, skip = torch.empty(*rows, residuals), torch.empty(*rows, skips)
            sizes = (residuals, residuals + skips)
            kernels("project", z, *statistics2, row_sums, shift, *sizes, residual, skip)
        ctx.norm, ctx.constant = norm, constant[1:]
        products = (x, in_weight, a, z, weight, row_sums)
        ctx.save_for_backward(*statistics1, *statistics2, *products, *p)
        return residual, skip

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, residual_grad, skip_grad):
        *statistics, x, in_weight, a, z, weight, row_sums = ctx.saved_tensors[:10]
        statistics1, statistics2 = statistics[:2], statistics[2:]
        p, norm = BlockParameters(*ctx.saved_tensors[10:]), ctx.norm
        kernels = _Kernels(a, norm.frame_mask, statistics1, p, *ctx.constant)
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
        kernels("convolve_backward", dz @ weight, *statistics_grad, dc, v, slopes)
        slope2_grad = slopes.sum().view(1)
        weight_grad = (dz.flatten(0, 1).T @ v.flatten(0, 1)).float()
        weight_grad -= mean_shifts[:, None]
        out_weight_grad = torch.outer(bias_grad, p.beta2) + weight_grad * p.gamma2
        gamma2_grad = (weight_grad * p.out_weight).sum(0)
        beta2_grad = bias_grad @ p.out_weight

        # Depthwise convolution and first norm
        sums = kernels.slots(6, channels)
        kernels("parameter_sums", dc, sums, frame_sums)
        gamma1_grad, beta1_grad, *tap_grads, tap_bias_grad = sums.sum((0, 1))
        statistics_grad = norm.input_grad(frame_sums, *statistics1)
        da, sums = v, kernels.slots(channels)  # v has done its duty
        kernels("input_backward", dc, *statistics_grad, da, sums, slopes)
        slope1_grad, in_bias_grad = slopes.sum().view(1), sums.sum((0, 1))
        in_weight_grad = (da.flatten(0, 1).T @ x.flatten(0, 1)).float()
        parameter_grads = BlockParameters(
            in_weight_grad,
            in_bias_grad,
            slope1_grad,
            gamma1_grad,
            beta1_grad,
            torch.stack(tap_grads),
            tap_bias_grad,
            slope2_grad,
            gamma2_grad,
            beta2_grad,
            out_weight_grad,
            bias_grad,
        )
        return (da @ in_weight).float(), *[None] * 5, *parameter_grads
