"""Matrix products over rows, through the faster of PyTorch's two libraries on CPUs.

`F.linear` and `@` call MKL. On AMD's processors with AVX-512 it makes no use of that in
fp32: 216 to 236 GFLOP/s on two cores of a Zen 5, where oneDNN, which PyTorch has for
convolutions, reaches 490 to 550 in forward products (gradients have not been measured
there). A Zen 4, whose AVX-512 is made of halves of 256 bits, has less to lose: with two
threads oneDNN is ahead (120 to 190 GFLOP/s against 90 to 170, on the shapes of a block
and 6000 rows), with one thread MKL is (55 to 83 against 47 to 81). On Intel's, and on
AMD's without AVX-512, both are alike. Where oneDNN is the faster, and there alone,
products go through a 1 x 1 convolution of the same memory, channels last.

The choice is a rule by processor and threads. A measurement at first use could fall the
one way in one process and the other way in the next, and their results differ in the
last bits: a run that is resumed would not be the run that goes through.
"""

import functools
import re

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_peer.utils import runtime

LEAST_ROWS = 64
"""Below, calling a convolution takes longer than it saves."""
ROWS = 16
"""For weights' gradients, oneDNN shares out multiples of these rows among threads."""
ZEN_4 = 25
"""The family of AMD's processors with AVX-512 in halves; later ones have it whole."""


def linear(x, weight, bias=None):
    """`F.linear`.

    It is also the gradient of its own input, `linear(grad, weight.T)`.

    Arguments
    ---------
    x : torch.Tensor
        (..., channels). It is not copied if its rows lie one after the other.
    weight : torch.Tensor
        (outputs, channels).
    bias : torch.Tensor or None
        (outputs,).

    Returns
    -------
    torch.Tensor
        (..., outputs), contiguous.

    Example
    -------
    >>> linear(torch.ones(2, 3, 4), torch.ones(5, 4)).shape
    torch.Size([2, 3, 5])
    """
    product = linear_by_convolution if _by_convolution(x, weight) else F.linear
    return product(x, weight, bias)


def linear_by_convolution(x, weight, bias=None):
    """`linear` by way of oneDNN."""
    return _Convolution.apply(x, weight, bias)


class _Convolution(torch.autograd.Function):
    """Its own gradient would leave threads idle, see `ROWS`."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        y = F.conv2d(_as_image(x), weight[:, :, None, None], bias)
        return y.permute(0, 2, 3, 1).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            linear_by_convolution(grad, weight.T) if of_x else None,
            weight_grad_by_convolution(grad, x) if of_weight else None,
            grad.flatten(0, -2).sum(0) if of_bias else None,
        )


def weight_grad(grad, x):
    """The gradient of `linear`'s weight.

    Arguments
    ---------
    grad : torch.Tensor
        Of the product, (..., outputs).
    x : torch.Tensor
        (..., channels).

    Returns
    -------
    torch.Tensor
        (outputs, channels).

    Example
    -------
    >>> weight_grad(torch.ones(2, 3, 5), torch.ones(2, 3, 4)).unique()
    tensor([6.])
    """
    if _by_convolution(x, grad):
        return weight_grad_by_convolution(grad, x)
    return grad.flatten(0, -2).T @ x.flatten(0, -2)


def weight_grad_by_convolution(grad, x):
    """`weight_grad` by way of oneDNN."""
    grad, x = grad.flatten(0, -2), x.flatten(0, -2)
    shape = (grad.shape[-1], x.shape[-1], 1, 1)
    shared = len(x) - len(x) % ROWS
    images = _as_image(x[:shared]), _as_image(grad[:shared])
    most = nn.grad.conv2d_weight(images[0], shape, images[1])[..., 0, 0]
    return most.addmm(grad[shared:].T, x[shared:])


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`.

    Example
    -------
    >>> Linear(4, 5)(torch.rand(2, 3, 4)).shape
    torch.Size([2, 3, 5])
    """

    def forward(self, x):
        """(..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias)

    def blocks(self):
        """Views of its maps: one, as `band_split.BandLinear` has several.

        Returns
        -------
        list of (torch.Tensor, torch.Tensor or None)
            Weight (maps, outputs, places, channels) and bias (maps, outputs) of those
            of one shape.
        """
        bias = None if self.bias is None else self.bias[None]
        return [(self.weight[None, :, None], bias)]


def _as_image(x):
    """A view with the rows for width: (1, channels, 1, rows), channels last."""
    return x.contiguous().view(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)


def _by_convolution(*operands):
    """Whether the rule says so. Compilers and exporters get to see the product."""
    return (
        not torch.compiler.is_compiling()
        and operands[0].shape[:-1].numel() >= LEAST_ROWS
        and all(
            operand.device.type == "cpu" and operand.dtype == torch.float32
            for operand in operands
        )
        and not torch.is_autocast_enabled("cpu")
        and _prefers_convolution(torch.get_num_threads())
    )


@functools.cache
def _prefers_convolution(threads):
    """Whether oneDNN's fp32 products are the faster ones on this processor."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    text = runtime.processor_text()
    avx512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if not avx512 or "AuthenticAMD" not in text:
        return False
    family = re.search(r"^cpu family\s*: (\d+)$", text, re.MULTILINE)
    return threads > 1 or family is None or int(family[1]) > ZEN_4
