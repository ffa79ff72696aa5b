"""Parts of a U-Net on spectra.

Maps are channels-last, `(batch, frames, bins, channels)`: in this layout, 3 x 3
convolutions in bf16 are four times as fast on CPUs. What these parts get is zero in
padded frames, and these count in no statistic and in no pooled mean.
"""

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_peer.nnet.elu_norm import elu_norm, instance_norm
from speechbrain_peer.nnet.products import Linear


def _stride(one_bin):
    # From three bins to one any stride does. There, the strided bf16 convolution of
    # PyTorch 2.11 on CPUs with AMX reads memory that nobody has written: NaN at times.
    return (1, 1) if one_bin else (1, 2)


class Conv2d(nn.Conv2d):
    """A convolution of maps.

    Example
    -------
    >>> Conv2d(2, 8, 3, padding=1)(torch.rand(2, 50, 31, 2)).shape
    torch.Size([2, 50, 31, 8])
    """

    def forward(self, x):
        """(batch, frames, bins, in_channels) to (..., out_channels)."""
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


class ConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution of maps.

    Example
    -------
    >>> ConvTranspose2d(8, 2, 3, padding=1)(torch.rand(2, 50, 31, 8)).shape
    torch.Size([2, 50, 31, 2])
    """

    def forward(self, x):
        """(batch, frames, bins, in_channels) to (..., out_channels)."""
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


def zero_padding(x, frame_mask):
    """Makes maps zero in padded frames, as convolutions need them.

    Arguments
    ---------
    x : torch.Tensor
        (batch, frames, bins, channels).
    frame_mask : torch.Tensor
        1 for true frames, 0 for padding, (batch, frames).

    Returns
    -------
    torch.Tensor
        A tensor of the shape and type of x.

    Example
    -------
    >>> zero_padding(torch.ones(1, 3, 1, 1), torch.tensor([[1.0, 1, 0]])).flatten()
    tensor([1., 1., 0.])
    """
    return x * frame_mask[..., None, None].to(x.dtype)


class DenseBlock(nn.Module):
    """3 x 3 convolutions, each of which gets the outputs of all before it.

    Arguments
    ---------
    in_channels : int
        Channels of the input.
    growth : int
        Channels that each convolution but the last adds.
    out_channels : int
        Channels of the last convolution, which is the output.
    n_layers : int
        Convolutions.

    Example
    -------
    >>> DenseBlock(8, 4, 16)(torch.rand(2, 50, 31, 8), torch.ones(2, 50)).shape
    torch.Size([2, 50, 31, 16])
    """

    def __init__(self, in_channels, growth, out_channels, n_layers=5):
        super().__init__()
        widths = [growth] * (n_layers - 1) + [out_channels]
        self.convs = nn.ModuleList(
            Conv2d(in_channels + index * growth, width, 3, padding=1)
            for index, width in enumerate(widths)
        )

    def forward(self, x, frame_mask):
        """x (batch, frames, bins, in_channels) to (..., out_channels)."""
        for conv in self.convs[:-1]:
            x = torch.cat((x, elu_norm(conv(x), frame_mask)), dim=-1)
        return elu_norm(self.convs[-1](x), frame_mask)


class Down(nn.Module):
    """Halves the bins, 2n + 1 to n, then a dense block if there is one.

    Arguments
    ---------
    in_channels : int
        Channels of the finer scale.
    out_channels : int
        Channels of the coarser scale.
    dense_layers : int
        Layers of the dense block; 0 if there is none.
    one_bin : bool
        Whether the coarser scale has one bin only.

    Example
    -------
    >>> Down(8, 16, dense_layers=5)(torch.rand(2, 50, 31, 8), torch.ones(2, 50)).shape
    torch.Size([2, 50, 15, 16])
    """

    def __init__(self, in_channels, out_channels, dense_layers, one_bin=False):
        super().__init__()
        self.conv = Conv2d(
            in_channels, out_channels, 3, stride=_stride(one_bin), padding=(1, 0)
        )
        self.dense = None
        if dense_layers:
            self.dense = DenseBlock(*[out_channels] * 3, dense_layers)

    def forward(self, x, frame_mask):
        """x (batch, frames, 2n + 1, in_channels) to (..., n, out_channels)."""
        x = elu_norm(self.conv(x), frame_mask)
        return x if self.dense is None else self.dense(x, frame_mask)


class Up(nn.Module):
    """A dense block if there is one, then doubles the bins, n to 2n + 1.

    Arguments
    ---------
    channels : int
        Channels of the coarser scale; the input has twice as many, with the skip's.
    out_channels : int
        Channels of the finer scale.
    dense_layers : int
        Layers of the dense block; 0 if there is none.
    one_bin : bool
        Whether the coarser scale has one bin only.

    Example
    -------
    >>> Up(16, 8, dense_layers=5)(torch.rand(2, 50, 15, 32), torch.ones(2, 50)).shape
    torch.Size([2, 50, 31, 8])
    """

    def __init__(self, channels, out_channels, dense_layers, one_bin=False):
        super().__init__()
        both = 2 * channels
        self.dense = None
        if dense_layers:
            self.dense = DenseBlock(both, channels, both, dense_layers)
        self.conv = ConvTranspose2d(
            both, out_channels, 3, stride=_stride(one_bin), padding=(1, 0)
        )

    def forward(self, x, frame_mask):
        """x (batch, frames, n, 2 channels) to (..., 2n + 1, out_channels)."""
        if self.dense is not None:
            x = self.dense(x, frame_mask)
        return elu_norm(self.conv(x), frame_mask)


class DilatedBlock(nn.Module):
    """Norm, ELU, depthwise convolution along time, norm, ELU, linear; residual.

    Arguments
    ---------
    channels : int
        Channels of input and output.
    dilation : int
        Frames between the three taps.

    Example
    -------
    >>> DilatedBlock(8, dilation=4)(torch.rand(2, 50, 1, 8), torch.ones(2, 50)).shape
    torch.Size([2, 50, 1, 8])
    """

    def __init__(self, channels, dilation):
        super().__init__()
        self.dilation = dilation
        self.taps = nn.Parameter(torch.empty(3, channels))
        self.tap_bias = nn.Parameter(torch.empty(channels))
        bound = 3**-0.5  # nn.Conv1d's for three inputs a channel
        nn.init.uniform_(self.taps, -bound, bound)
        nn.init.uniform_(self.tap_bias, -bound, bound)
        self.linear = Linear(channels, channels)

    def forward(self, x, frame_mask):
        """x (batch, frames, bins, channels) to the same shape."""
        hidden = F.elu(instance_norm(x, frame_mask))
        # Shifted products: depthwise convolutions are slow on CPUs, above all in bf16.
        padded = F.pad(hidden, (0, 0, 0, 0, self.dilation, self.dilation))
        hidden = self.tap_bias
        for tap, weight in enumerate(self.taps):
            start = tap * self.dilation
            hidden = hidden + padded[:, start : start + x.shape[1]] * weight
        return x + self.linear(F.elu(instance_norm(hidden, frame_mask)))


class PyramidPooling(nn.Module):
    """Adds to each map means over patches of several sizes, then maps linearly.

    Means are over true frames, and between the patches' centres they are interpolated
    from patches that have any.

    Arguments
    ---------
    in_channels : int
        Channels of the input.
    sizes : list of int
        Frames and bins of the patches.
    pool_channels : int
        That each size gives.
    out_channels : int
        Channels of the output.

    Example
    -------
    >>> pyramid = PyramidPooling(8, [4, 32], pool_channels=2, out_channels=8)
    >>> pyramid(torch.rand(2, 50, 31, 8), torch.ones(2, 50)).shape
    torch.Size([2, 50, 31, 8])
    """

    def __init__(self, in_channels, sizes, pool_channels, out_channels):
        super().__init__()
        self.sizes = sizes
        self.linears = nn.ModuleList(Linear(in_channels, pool_channels) for _ in sizes)
        self.out_linear = Linear(in_channels + len(sizes) * pool_channels, out_channels)

    def forward(self, x, frame_mask):
        """x (batch, frames, bins, in_channels), zero in the padding, to (..., out)."""
        frames, bins = x.shape[1:3]
        mask = frame_mask[..., None, None].to(x.dtype)
        maps = [x]
        for size, linear in zip(self.sizes, self.linears, strict=True):
            # Parts of the patches that hold true frames, and whether there are any.
            share = _pool(mask, (size, 1))
            true = (share > 0).to(x.dtype)
            pooled = linear(_pool(x, (size, size)) / share.clamp(min=1 / size))
            spread = _interpolate(pooled * true, (size, size))[:, :frames, :bins]
            # A true frame's own patch has half of the weights or more.
            weights = _interpolate(true, (size, 1))[:, :frames].clamp(min=0.5)
            maps.append((spread / weights).to(x.dtype))
        return self.out_linear(torch.cat(maps, dim=-1))


def _pool(x, size):
    return F.avg_pool2d(x.movedim(-1, 1), size, ceil_mode=True).movedim(1, -1)


def _interpolate(x, scale):
    maps = F.interpolate(x.movedim(-1, 1), scale_factor=scale, mode="bilinear")
    return maps.movedim(1, -1)
