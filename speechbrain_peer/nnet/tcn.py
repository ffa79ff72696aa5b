"""The temporal convolutional network of Conv-TasNet, made for speed.

Layout, stated once: activations are channels-last, `(batch, frames, channels)`,
contiguous. Pointwise convolutions then are matrix products over rows, and the
depthwise convolution is three shifted multiply-adds over rows.

What limits a block is not arithmetic but memory traffic, so the block is written
to be fused: global layer norms are never written out. The first is applied where
the depthwise convolution reads; the second goes through the linear layer behind it
(`norm_linear`). `compile_blocks` lets `torch.compile` do the fusing.

Padded frames do not leak: they count in no statistic and are zero where the
depthwise convolution reads them, so that a padded item has the outputs of the
same item unpadded.
"""

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

NORM_EPS = 1e-8


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
        fp32, (batch, 1, 1).
    """
    # Rows first: short sums keep fp32 exact over minutes of frames.
    x = x.float()
    count = frame_mask.sum(1) * x.shape[-1]
    mean = (x.sum(-1) * frame_mask).sum(1) / count
    power = (x.square().sum(-1) * frame_mask).sum(1) / count
    rstd = torch.rsqrt((power - mean * mean).clamp(min=0) + NORM_EPS)
    return mean[:, None, None], rstd[:, None, None]


def norm_linear(x, frame_mask, gamma, beta, weight, bias):
    """`linear(global_layer_norm(x))` without writing the normalized x.

    (rstd (x - mean) gamma + beta) W' + b = rstd (x W_g') - rstd mean W_g 1
    + W beta + b, where W_g is W with its columns scaled by gamma.
    """
    mean, rstd = moments(x, frame_mask)
    product = F.linear(x, weight * gamma).float()
    return rstd * product - (rstd * mean) * (weight @ gamma) + (weight @ beta + bias)


def prelu(x, slope):
    """PReLU with one slope."""
    return torch.where(x > 0, x, slope.to(x.dtype) * x)


def conv_block(
    x,
    frame_mask,
    in_weight,
    in_bias,
    in_slope,
    in_gamma,
    in_beta,
    depth_weight,
    depth_bias,
    out_slope,
    out_gamma,
    out_beta,
    out_weight,
    out_bias,
    reach,
):
    """One block: widen, PReLU, norm, depthwise convolution, PReLU, norm, project.

    `reach` is the frames between the first and the last tap, twice the dilation.
    (The dilation itself would be 1 in some blocks, and `torch.compile` makes a
    separate graph of every size that is 0 or 1.)
    """
    dilation, frames = reach // 2, x.shape[1]
    hidden = prelu(F.linear(x, in_weight, in_bias), in_slope)
    mean, rstd = moments(hidden, frame_mask)
    normed = (hidden.float() - mean) * rstd * in_gamma + in_beta
    normed = (normed * frame_mask[..., None]).to(hidden.dtype)
    padded = F.pad(normed, (0, 0, dilation, dilation))
    taps = (
        padded[:, :frames] * depth_weight[0]
        + padded[:, dilation : dilation + frames] * depth_weight[1]
        + padded[:, reach : reach + frames] * depth_weight[2]
    )
    hidden = prelu(taps + depth_bias, out_slope).to(hidden.dtype)
    return norm_linear(hidden, frame_mask, out_gamma, out_beta, out_weight, out_bias)


_run_block = conv_block


def compile_blocks():
    """Compiles the block for the rest of the process, if a compiler is found.

    Compilation takes about a minute the first time and is cached on disk. Without
    a C++ compiler (CPU) or Triton (GPU) the plain version stays in use.
    """
    global _run_block
    try:
        torch.compile(lambda x: x * 2)(torch.ones(8))
    except Exception as error:  # the compiler's own errors have no common class
        reason = str(error).splitlines()[0]
        logger.warning("No compiler for the fast path, running without: %s", reason)
    else:
        _run_block = torch.compile(conv_block, dynamic=True)


class ConvBlock(nn.Module):
    """Residual block with a depthwise convolution of three taps.

    Arguments
    ---------
    channels : int
        B, bottleneck channels.
    hidden_channels : int
        H.
    skip_channels : int
        Sc.
    dilation : int
        Frames between taps.

    Example
    -------
    >>> block = ConvBlock(channels=8, hidden_channels=16, skip_channels=8, dilation=2)
    >>> residual, skip = block(torch.rand(2, 50, 8), torch.ones(2, 50))
    >>> residual.shape, skip.shape
    (torch.Size([2, 50, 8]), torch.Size([2, 50, 8]))
    """

    def __init__(self, channels, hidden_channels, skip_channels, dilation):
        super().__init__()
        self.channels, self.dilation = channels, dilation
        self.in_proj = nn.Linear(channels, hidden_channels)
        self.in_slope = nn.Parameter(torch.full((1,), 0.25))
        self.in_gamma = nn.Parameter(torch.ones(hidden_channels))
        self.in_beta = nn.Parameter(torch.zeros(hidden_channels))
        self.depth_weight = nn.Parameter(torch.empty(3, hidden_channels))
        self.depth_bias = nn.Parameter(torch.empty(hidden_channels))
        bound = 3**-0.5  # nn.Conv1d's for three inputs a channel
        nn.init.uniform_(self.depth_weight, -bound, bound)
        nn.init.uniform_(self.depth_bias, -bound, bound)
        self.out_slope = nn.Parameter(torch.full((1,), 0.25))
        self.out_gamma = nn.Parameter(torch.ones(hidden_channels))
        self.out_beta = nn.Parameter(torch.zeros(hidden_channels))
        # Residual and skip in one product. The last block's residual is unused;
        # sharing one weight keeps its gradient zero instead of missing (DDP).
        self.out_proj = nn.Linear(hidden_channels, channels + skip_channels)

    def forward(self, x, frame_mask):
        """x (batch, frames, channels) to residual and skip of the same shape."""
        out = _run_block(
            x,
            frame_mask,
            self.in_proj.weight,
            self.in_proj.bias,
            self.in_slope,
            self.in_gamma,
            self.in_beta,
            self.depth_weight,
            self.depth_bias,
            self.out_slope,
            self.out_gamma,
            self.out_beta,
            self.out_proj.weight,
            self.out_proj.bias,
            2 * self.dilation,
        )
        return out[..., : self.channels], out[..., self.channels :]


class TemporalConvNet(nn.Module):
    """Norm, bottleneck and repeats of blocks with dilations 1, 2, 4 ...

    Arguments
    ---------
    in_channels : int
        N.
    channels : int
        B, bottleneck channels.
    hidden_channels : int
        H.
    skip_channels : int
        Sc, channels of the output.
    n_blocks : int
        X, blocks in a repeat.
    n_repeats : int
        R.

    Example
    -------
    >>> tcn = TemporalConvNet(32, 8, 16, 8, n_blocks=3, n_repeats=2)
    >>> tcn(torch.rand(2, 50, 32), torch.ones(2, 50)).shape
    torch.Size([2, 50, 8])
    """

    def __init__(
        self, in_channels, channels, hidden_channels, skip_channels, n_blocks, n_repeats
    ):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(in_channels))
        self.beta = nn.Parameter(torch.zeros(in_channels))
        self.bottleneck = nn.Linear(in_channels, channels)
        self.blocks = nn.ModuleList(
            ConvBlock(channels, hidden_channels, skip_channels, 2**block)
            for _ in range(n_repeats)
            for block in range(n_blocks)
        )

    def forward(self, representation, frame_mask, adapt=None):
        """Runs the network.

        Arguments
        ---------
        representation : torch.Tensor
            (batch, frames, in_channels).
        frame_mask : torch.Tensor
            (batch, frames).
        adapt : callable or None
            Called after every block as adapt(index, residual, skip) and returns
            the two, adapted.

        Returns
        -------
        torch.Tensor
            Sum of the skip connections, (batch, frames, skip_channels).
        """
        x = norm_linear(
            representation,
            frame_mask,
            self.gamma,
            self.beta,
            self.bottleneck.weight,
            self.bottleneck.bias,
        )
        skips = 0
        for index, block in enumerate(self.blocks):
            residual, skip = block(x, frame_mask)
            if adapt is not None:
                residual, skip = adapt(index, residual, skip)
            x, skips = x + residual, skips + skip
        return skips
