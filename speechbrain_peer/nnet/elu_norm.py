"""An ELU and an instance norm of maps, made for speed.

Maps are channels-last, `(batch, frames, bins, channels)`, contiguous. In this layout
PyTorch's norms take longer than the convolutions between them, and they know of no
padding. So on CPUs there are two passes over memory in each direction, in C; the
backward pass computes the ELU anew. Elsewhere, and without a C compiler, it is PyTorch.
"""

import ctypes

import torch
from torch.nn import functional as F

from speechbrain_peer.nnet.kernels import load_kernels

NORM_EPS = 1e-5
"""Added to the variance."""


def instance_norm(x, frame_mask):
    """Norms each channel of each item over its true frames and all bins.

    Arguments
    ---------
    x : torch.Tensor
        (batch, frames, bins, channels).
    frame_mask : torch.Tensor
        1 for true frames, 0 for padding, (batch, frames).

    Returns
    -------
    torch.Tensor
        A tensor of the shape and type of x, zero in the padding.

    Example
    -------
    >>> maps, mask = torch.randn(1, 3, 4, 2), torch.tensor([[1.0, 1.0, 0.0]])
    >>> instance_norm(maps, mask)[:, 2].abs().max()
    tensor(0.)
    """
    values = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    mask = frame_mask[..., None, None]
    count = mask.sum(1, keepdim=True) * x.shape[2]
    mean = (values * mask).sum((1, 2), keepdim=True) / count
    centred = (values - mean) * mask
    variance = centred.square().sum((1, 2), keepdim=True) / count
    return (centred * torch.rsqrt(variance + NORM_EPS)).to(x.dtype)


def elu_norm(x, frame_mask):
    """`instance_norm(elu(x))`.

    Arguments
    ---------
    x : torch.Tensor
        (batch, frames, bins, channels).
    frame_mask : torch.Tensor
        1 for true frames, 0 for padding, (batch, frames).

    Returns
    -------
    torch.Tensor
        A tensor of the shape and type of x, zero in the padding.

    Example
    -------
    >>> maps, mask = torch.randn(1, 3, 4, 2), torch.tensor([[1.0, 1.0, 0.0]])
    >>> normed = elu_norm(maps, mask)
    >>> torch.allclose(normed[:, :2], elu_norm(maps[:, :2], mask[:, :2]), atol=1e-6)
    True
    """
    if x.device.type == "cpu" and not torch.compiler.is_exporting():
        if load_kernels("elu_norm", x.dtype) is not None:
            return _FastEluNorm.apply(x, frame_mask)
    return plain_elu_norm(x, frame_mask)


def plain_elu_norm(x, frame_mask):
    """`elu_norm` in plain PyTorch."""
    return instance_norm(F.elu(x), frame_mask)


class _Kernels:
    """The C kernels on maps, see elu_norm.c."""

    class _Maps(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_void_p) for name in ("x", "mask")),
            *((name, ctypes.c_int64) for name in ("batch", "frames")),
            *((name, ctypes.c_int64) for name in ("bins", "channels")),
        )

    def __init__(self, x, frame_mask):
        self.library = load_kernels("elu_norm", x.dtype)
        # Kept, as the structure holds their addresses only.
        self.tensors = (x, frame_mask)
        self.maps = self._Maps(x.data_ptr(), frame_mask.data_ptr(), *x.shape)
        rows = ctypes.c_int64.in_dll(self.library, "chunk_rows").value
        self.slots = (len(x), -(-x.shape[1] * x.shape[2] // rows), 2, x.shape[3])

    def sums(self, name, *tensors):
        """The two sums over rows that a kernel gives, (batch, channels)."""
        slots = torch.empty(self.slots)
        self(name, *tensors, slots)
        return slots.sum(1).unbind(1)

    def __call__(self, name, *tensors):
        addresses = (ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)
        getattr(self.library, name)(ctypes.byref(self.maps), *addresses)


class _FastEluNorm(torch.autograd.Function):
    """`plain_elu_norm` in few passes. The names are those of elu_norm.c."""

    @staticmethod
    def forward(ctx, x, frame_mask):
        x, frame_mask = x.contiguous(), frame_mask.float().contiguous()
        kernels = _Kernels(x, frame_mask)
        count = frame_mask.sum(1, keepdim=True) * x.shape[2]
        mean, power = (total / count for total in kernels.sums("moments"))
        rstd = torch.rsqrt((power - mean.square()).clamp(min=0) + NORM_EPS)
        y = torch.empty_like(x)
        kernels("normalize", rstd, -mean * rstd, y)
        ctx.save_for_backward(x, frame_mask, count, mean, rstd)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, frame_mask, count, mean, rstd = ctx.saved_tensors
        kernels, dy = _Kernels(x, frame_mask), dy.contiguous()
        total, product = kernels.sums("grad_sums", dy)
        # What the variance and the mean add: f factor + offset.
        factor = -(rstd**3) * (product - mean * total) / count
        offset = -rstd * total / count - factor * mean
        dx = torch.empty_like(x)
        kernels("input_grad", dy, rstd, factor, offset, dx)
        return dx, None
