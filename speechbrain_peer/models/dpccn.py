"""sDPCCN: a U-Net on complex spectra that listens for an enrolled speaker.

Han, Long, Burget and Cernocky, "DPCCN: Densely-connected pyramid complex
convolutional network for robust speech separation and extraction", ICASSP 2022.
Real and imaginary part of the STFT of the mixture, at unit power, are two channels.
Convolutions with stride 2 along frequency halve the bins until one is left, where
dilated convolutions run along time; transposed convolutions and skip connections lead
back. Dense blocks work at the finer scales, pyramid pooling adds means over larger and
larger patches, and the last layer maps to the target's real and imaginary part: there
is no mask. ELU and instance norm, which has neither parameters nor running statistics,
follow the convolutions. The features of the first dense block are multiplied, channel
by channel, by the embedding of the speaker. Ours, not the paper's, are

- the speaker network, see `SpeakerEncoder`;
- the last layer. In the paper it is a transposed 3 x 3 convolution to two channels.
  Here that convolution keeps its channels and gives e, at all bins, and `MappingHead`
  maps e to the two, bin by bin: there peer learning enters.

Padded frames do not leak: they are zero before every convolution over frames, and count
in no statistic and in no pooled mean.
"""

import itertools

import torch
from torch import nn

from speechbrain_peer.nnet.conv_block import prelu
from speechbrain_peer.nnet.mask import MaskHead
from speechbrain_peer.nnet.tcn import TemporalConvNet
from speechbrain_peer.nnet.unet import (
    Conv2d,
    ConvTranspose2d,
    DenseBlock,
    DilatedBlock,
    Down,
    PyramidPooling,
    Up,
    zero_padding,
)

FLOOR = 1e-4
"""Of an enrollment's spectrum, as a share of its mean power: -40 dB."""
SILENCE = 1e-12
"""Power of a bin that counts as silence, far below one step of 16-bit audio."""


class Separator(nn.Module):
    """Turns a mixture's spectrum into the features before the last layer, e.

    Arguments
    ---------
    window : int
        Samples of the STFT's window, a power of two. Strides have to lead from
        window / 2 + 1 bins to one: log2(window) - 2 of them.
    channels : int
        Channels at the full resolution, and of the embedding.
    dense_channels : int
        Channels at the scales with a dense block below the full resolution.
    n_dense : int
        Number of these scales.
    dense_layers : int
        Convolutions of a dense block.
    deep_channels : list of int
        Channels at the scales below, without dense blocks.
    tcn_channels : int
        Channels at the last scale, with one bin.
    n_blocks : int
        Dilated blocks in a repeat.
    n_repeats : int
        Repeats of them.
    pool_sizes : list of int
        Frames and bins of the patches that are averaged.
    pool_channels : int
        That each size of patches gives.
    out_channels : int
        C, channels of e.

    Raises
    ------
    ValueError
        If the strides do not lead to one bin.

    Example
    -------
    >>> sizes = {"channels": 4, "dense_channels": 8, "n_dense": 1}
    >>> separator = Separator(32, **sizes, deep_channels=[8], n_blocks=2)
    >>> mask = torch.ones(2, 50)
    >>> separator(torch.rand(2, 50, 17, 2), torch.rand(2, 4), mask).shape
    torch.Size([2, 50, 17, 32])
    """

    def __init__(
        self,
        window=512,
        channels=16,
        dense_channels=32,
        n_dense=4,
        dense_layers=5,
        deep_channels=(64, 128),
        tcn_channels=384,
        n_blocks=10,
        n_repeats=2,
        pool_sizes=(4, 8, 16, 32),
        pool_channels=8,
        out_channels=32,
    ):
        super().__init__()
        widths = [channels, *[dense_channels] * n_dense, *deep_channels, tcn_channels]
        strides = len(widths) - 1
        if window != 2 ** (strides + 2):
            raise ValueError(
                f"{strides} strides, of n_dense, deep_channels and tcn_channels, lead "
                f"to one bin from a window of {2 ** (strides + 2)} samples, not "
                f"{window}"
            )
        self.in_conv = Conv2d(2, channels, 3, padding=(1, 0))
        self.in_dense = DenseBlock(*[channels] * 3, dense_layers)
        self.downs = nn.ModuleList()
        self.ups = nn.ModuleList()
        for scale, (finer, width) in enumerate(itertools.pairwise(widths)):
            dense = dense_layers if scale < n_dense else 0
            one_bin = scale == strides - 1
            self.downs.append(Down(finer, width, dense, one_bin))
            self.ups.insert(0, Up(width, finer, dense, one_bin))
        self.blocks = nn.ModuleList(
            DilatedBlock(tcn_channels, 2**block)
            for _ in range(n_repeats)
            for block in range(n_blocks)
        )
        sizes = (2 * channels, channels, 2 * channels)
        self.out_dense = DenseBlock(*sizes, dense_layers)
        self.pyramid = PyramidPooling(
            2 * channels, pool_sizes, pool_channels, out_channels
        )
        self.out_conv = ConvTranspose2d(out_channels, out_channels, 3, padding=(1, 0))

    def forward(self, representation, embedding, frame_mask):
        """Separates.

        Arguments
        ---------
        representation : torch.Tensor
            W, zero in padded frames, (batch, frames, bins, 2).
        embedding : torch.Tensor
            a, (batch, channels).
        frame_mask : torch.Tensor
            (batch, frames).

        Returns
        -------
        torch.Tensor
            e, (batch, frames, bins, C).
        """
        power = _mean_power(representation, frame_mask) + SILENCE
        maps = self.in_conv(representation * torch.rsqrt(power))
        maps = zero_padding(maps, frame_mask)
        maps = self.in_dense(maps, frame_mask)
        skips = [maps * embedding[:, None, None]]
        for down in self.downs:
            skips.append(down(skips[-1], frame_mask))
        maps = skips[-1]
        for block in self.blocks:
            maps = block(maps, frame_mask)
        maps = zero_padding(maps, frame_mask)
        for up in self.ups:
            maps = up(torch.cat((skips.pop(), maps), dim=-1), frame_mask)
        maps = self.out_dense(torch.cat((skips.pop(), maps), dim=-1), frame_mask)
        maps = zero_padding(self.pyramid(maps, frame_mask), frame_mask)
        return self.out_conv(maps)


class SpeakerEncoder(nn.Module):
    """Turns an enrollment into the embedding of its speaker, a.

    One repeat of TD-SpeakerBeam's blocks over the logarithm of the power spectrum,
    which has a floor 40 dB below its mean; the output is averaged over true frames. As
    the network begins with a global layer norm, the enrollment's level plays no part.

    Arguments
    ---------
    window : int
        Samples of the STFT's window.
    channels : int
        B, of the blocks.
    hidden_channels : int
        H.
    n_blocks : int
        X.
    embedding_size : int
        Channels that the separator multiplies.

    Example
    -------
    >>> from speechbrain_peer.nnet.stft import StftEncoder
    >>> speaker_encoder = SpeakerEncoder(512, 8, 16, 3, embedding_size=16)
    >>> encoder = StftEncoder(window=512, hop=128)
    >>> speaker_encoder(torch.rand(2, 8000), mixture_encoder=encoder).shape
    torch.Size([2, 16])
    """

    def __init__(self, window, channels, hidden_channels, n_blocks, embedding_size):
        super().__init__()
        bins = window // 2 + 1
        self.tcn = TemporalConvNet(
            bins, channels, hidden_channels, channels, n_blocks, n_repeats=1
        )
        self.slope = nn.Parameter(torch.full((1,), 0.25))
        self.linear = nn.Linear(channels, embedding_size)
        self.embedding_size = self.linear.out_features

    def forward(self, enrollments, enrollment_lens=None, mixture_encoder=None):
        """Embeds.

        Arguments
        ---------
        enrollments : torch.Tensor
            (batch, time).
        enrollment_lens : torch.Tensor or None
            Relative lengths (batch,).
        mixture_encoder : StftEncoder
            Analyses enrollments too.

        Returns
        -------
        torch.Tensor
            (batch, embedding_size).
        """
        spectrum, frame_mask = mixture_encoder(enrollments, enrollment_lens)
        floor = FLOOR * _mean_power(spectrum, frame_mask)[..., 0] + SILENCE
        power = torch.log(spectrum.square().sum(-1) + floor)
        features = prelu(self.tcn(power, frame_mask), self.slope)
        # The linear layer and the mean swap places: it then runs on one row an item.
        total = (features * frame_mask[..., None]).sum(1)
        return self.linear(total / frame_mask.sum(1, keepdim=True))


def _mean_power(spectrum, frame_mask):
    """Mean power of a bin over true frames, (batch, 1, 1, 1)."""
    # Frames first: short sums keep fp32 exact over minutes of frames.
    frames = spectrum.square().sum((2, 3))
    power = frames.sum(1) / (frame_mask.sum(1) * spectrum.shape[2])
    return power[:, None, None, None]


class MappingHead(MaskHead):
    """Maps to the target's spectrum: linear(PReLU(e + C r)) at the level of W.

    Without predictors it has no C.

    Arguments
    ---------
    channels : int
        C, channels of e.
    refined_size : int or None
        Channels of r, 2, or C where r has been folded into e; None without predictors.
    lends, kernel_size : bool, int
        See `MaskHead`.

    Example
    -------
    >>> head, mixture = MappingHead(8, refined_size=2), torch.rand(2, 50, 31, 2)
    >>> head(torch.rand(2, 50, 31, 8), torch.rand(2, 50, 31, 2), mixture).shape
    torch.Size([2, 50, 31, 2])
    """

    def __init__(self, channels, refined_size=None, lends=False, kernel_size=1):
        super().__init__(channels, 2, refined_size, True, lends, kernel_size)

    def forward(self, e, r, representation, lent=None):
        """Maps.

        Arguments
        ---------
        e : torch.Tensor
            (batch, frames, bins, channels).
        r : torch.Tensor or None
            (batch, frames, bins, 2); None without predictors.
        representation : torch.Tensor
            W, zero in padded frames, (batch, frames, bins, 2).
        lent : torch.Tensor or None
            The e of a peer, see `Combination`.

        Returns
        -------
        torch.Tensor
            (batch, frames, bins, 2).
        """
        if self.combine is not None:
            e = self.combine(e, r, lent)
        # The separator has taken the level away. Without it, the parts of a long file
        # would not fit together. It is a mean weighted by power, as padding has none.
        frames = representation.square().sum((2, 3))
        power = frames.square().sum(1) / (frames.sum(1) + SILENCE)
        level = torch.sqrt(power)[:, None, None, None]
        return self.linear(prelu(e, self.slope)) * level
