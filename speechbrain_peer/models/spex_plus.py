"""SpEx+: one filterbank of three scales for the mixture and the enrollment.

Ge et al., "SpEx+: A complete time domain speaker extraction network", Interspeech
2020. W is the representations of all scales side by side, and so are p, r and what
the mask head, `mask.MaskHead`, makes. The classifier of speakers that the loss asks for
is a linear layer on the embedding.
"""

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_peer.nnet.conv_block import prelu
from speechbrain_peer.nnet.filterbank import Decoder, Encoder
from speechbrain_peer.nnet.products import Linear
from speechbrain_peer.nnet.tcn import ConvBlock
from speechbrain_peer.utils.signal import sample_mask

NORM_EPS = 1e-5

# Frames from which the speaker encoder's three poolings of three make one.
GROUP = 27


class MultiScaleEncoder(nn.Module):
    """Analysis filterbanks of several frame lengths, with offset and ReLU.

    The frames of all scales start at the same samples, with the stride of the first
    scale, which says how many there are; where the others reach past the end of the
    signal, they find zeros.

    Arguments
    ---------
    n_filters : int
        N, channels of the representation at each scale.
    kernel_sizes : list of int
        Samples of a frame at each scale, the shortest first.
    stride : int
        Samples between frames.

    Example
    -------
    >>> encoder = MultiScaleEncoder(16, kernel_sizes=[20, 80, 160], stride=10)
    >>> representation, mask = encoder(torch.rand(2, 8000))
    >>> representation.shape
    torch.Size([2, 799, 48])
    """

    def __init__(self, n_filters, kernel_sizes, stride):
        super().__init__()
        self.scales = nn.ModuleList(
            Encoder(n_filters, kernel_size, stride) for kernel_size in kernel_sizes
        )
        self.bias = nn.Parameter(torch.zeros(len(kernel_sizes) * n_filters))

    def forward(self, waveforms, lens=None):
        """Analyses waveforms.

        Arguments
        ---------
        waveforms : torch.Tensor
            (batch, time). Shorter than one frame is padded to one.
        lens : torch.Tensor or None
            Relative lengths (batch,).

        Returns
        -------
        representation : torch.Tensor
            W, (batch, frames, scales * filters).
        frame_mask : torch.Tensor
            1 for frames that lie whole in the true signal at the first scale, 0 for
            the others, (batch, frames).
        """
        first, *longer = self.scales
        # Long frames reach into the padding, which may hold anything.
        waveforms = waveforms * sample_mask(lens, waveforms.shape[1], waveforms)
        representation, frame_mask = first(waveforms, lens)
        representations = [representation]
        for scale in longer:
            tail = scale.kernel_size - first.kernel_size
            representations.append(scale(F.pad(waveforms, (0, tail)))[0])
        return F.relu(torch.cat(representations, dim=-1) + self.bias), frame_mask


class MultiScaleDecoder(nn.Module):
    """Synthesis filterbanks, one for each scale, each with an offset.

    SI-SNR does not see offsets: other than zero they are in public checkpoints only.

    Arguments
    ---------
    n_filters : int
        N, channels of the representation at each scale.
    kernel_sizes : list of int
        Samples of a frame at each scale, multiples of the stride.
    stride : int
        Samples between frames.

    Example
    -------
    >>> decoder = MultiScaleDecoder(16, kernel_sizes=[20, 80, 160], stride=10)
    >>> decoder(torch.rand(2, 799, 48), length=8000).shape
    torch.Size([2, 3, 8000])
    """

    def __init__(self, n_filters, kernel_sizes, stride):
        super().__init__()
        self.scales = nn.ModuleList(
            Decoder(n_filters, kernel_size, stride) for kernel_size in kernel_sizes
        )
        self.bias = nn.Parameter(torch.zeros(len(kernel_sizes)))

    def forward(self, representation, length, frame_mask=None):
        """Synthesizes waveforms.

        Arguments
        ---------
        representation : torch.Tensor
            (batch, frames, scales * filters).
        length : int
            Samples of the output; what lies past the last frame is the offset.
        frame_mask : torch.Tensor or None
            (batch, frames), the encoder's.

        Returns
        -------
        torch.Tensor
            (batch, scales, time).
        """
        parts = representation.chunk(len(self.scales), dim=-1)
        waveforms = [
            scale(part, length, frame_mask)
            for scale, part in zip(self.scales, parts, strict=True)
        ]
        return torch.cat(waveforms, dim=1) + self.bias[:, None]


class Separator(nn.Module):
    """Turns a mixture's representation into the one before the mask, e.

    It is a temporal convolutional network with residual connections only. The first
    block of each repeat also gets the embedding, beside every frame.

    Arguments
    ---------
    n_filters : int
        Channels of the mixture's representation, all scales.
    channels : int
        B, channels of residual connections, and of e.
    hidden_channels : int
        H.
    n_blocks : int
        X, blocks in a repeat.
    n_repeats : int
        R.
    embedding_size : int
        Channels of the embedding.

    Example
    -------
    >>> separator = Separator(48, 8, 16, n_blocks=3, n_repeats=2, embedding_size=4)
    >>> mask = torch.ones(2, 50)
    >>> separator(torch.rand(2, 50, 48), torch.rand(2, 4), mask).shape
    torch.Size([2, 50, 8])
    """

    def __init__(
        self, n_filters, channels, hidden_channels, n_blocks, n_repeats, embedding_size
    ):
        super().__init__()
        self.norm = nn.LayerNorm(n_filters, eps=NORM_EPS)
        self.bottleneck = Linear(n_filters, channels)
        self.repeats = nn.ModuleList(
            nn.ModuleList(
                ConvBlock(
                    channels,
                    hidden_channels,
                    skip_channels=0,
                    dilation=2**block,
                    condition_channels=0 if block else embedding_size,
                    eps=NORM_EPS,
                )
                for block in range(n_blocks)
            )
            for _ in range(n_repeats)
        )

    def forward(self, representation, embedding, frame_mask):
        """Separates.

        Arguments
        ---------
        representation : torch.Tensor
            W, (batch, frames, filters).
        embedding : torch.Tensor
            a, (batch, embedding_size).
        frame_mask : torch.Tensor
            (batch, frames).

        Returns
        -------
        torch.Tensor
            e, (batch, frames, channels).
        """
        x = self.bottleneck(self.norm(representation)).to(representation.dtype)
        embedding = embedding[:, None].expand(-1, x.shape[1], -1)
        for first, *others in self.repeats:
            x = x + first(torch.cat((x, embedding), dim=-1), frame_mask)[0]
            for block in others:
                x = x + block(x, frame_mask)[0]
        return x


class SpeakerEncoder(nn.Module):
    """Turns an enrollment into the embedding of its speaker, a.

    It goes on from the mixture encoder's representation of the enrollment, with three
    residual blocks, each of which pools three frames into one, and a mean over time.
    Only true frames count, in the norms over the batch, too: where 27 of them do not
    fill a group, they are left out, unless they are all there is.

    Arguments
    ---------
    n_filters : int
        Channels of the enrollment's representation, all scales.
    channels : int
        Channels of the first residual block; the others have twice as many.
    embedding_size : int
        Channels of the embedding.

    Example
    -------
    >>> encoder = MultiScaleEncoder(16, kernel_sizes=[20, 80, 160], stride=10)
    >>> speaker_encoder = SpeakerEncoder(48, channels=8, embedding_size=4)
    >>> speaker_encoder(torch.rand(2, 4000), None, encoder).shape
    torch.Size([2, 4])
    """

    def __init__(self, n_filters, channels, embedding_size):
        super().__init__()
        self.norm = nn.LayerNorm(n_filters, eps=NORM_EPS)
        self.bottleneck = Linear(n_filters, channels)
        sizes = (channels, channels, 2 * channels, 2 * channels)
        self.blocks = nn.Sequential(*map(_PooledBlock, sizes[:-1], sizes[1:]))
        self.linear = Linear(2 * channels, embedding_size)
        self.embedding_size = self.linear.out_features

    def forward(self, enrollments, enrollment_lens, mixture_encoder):
        """Embeds.

        Arguments
        ---------
        enrollments : torch.Tensor
            (batch, time).
        enrollment_lens : torch.Tensor or None
            Relative lengths (batch,).
        mixture_encoder : callable
            The stage `encoder`, whose weights stay its own.

        Returns
        -------
        torch.Tensor
            (batch, embedding_size).
        """
        representation, frame_mask = mixture_encoder(enrollments, enrollment_lens)
        x = self.bottleneck(self.norm(representation)) * frame_mask[..., None]
        groups = max(x.shape[1] // GROUP, 1)
        # Negative where the last frames are cut off.
        missing = groups * GROUP - x.shape[1]
        x = F.pad(x, (0, 0, 0, missing)).unflatten(1, (groups, GROUP))
        mask = F.pad(frame_mask, (0, missing)).unflatten(1, (groups, GROUP)).amin(2)
        mask = mask.bool()
        mask[:, 0] = True  # a short enrollment's, which zeros fill up
        if self.training:
            features = self.blocks(x[mask])[:, 0].float()
            sums = features.new_zeros(len(mask), features.shape[1])
            sums = sums.index_add(0, mask.nonzero()[:, 0], features)
        else:
            # No norm is over the batch: groups of padding may go along, and the shapes
            # do not depend on how many there are.
            features = self.blocks(x.flatten(0, 1))[:, 0].unflatten(0, mask.shape)
            sums = (features.float() * mask[..., None]).sum(1)
        # The linear layer and the mean swap places: it then runs on one row an item.
        return self.linear(sums / mask.sum(1, keepdim=True))


class _PooledBlock(nn.Module):
    """Residual block of pointwise layers, whose output is pooled by three."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.linear1 = Linear(in_channels, out_channels, bias=False)
        self.norm1 = nn.BatchNorm1d(out_channels)
        self.slope1 = nn.Parameter(torch.full((1,), 0.25))
        self.linear2 = Linear(out_channels, out_channels, bias=False)
        self.norm2 = nn.BatchNorm1d(out_channels)
        self.slope2 = nn.Parameter(torch.full((1,), 0.25))
        self.shortcut = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = Linear(in_channels, out_channels, bias=False)

    def forward(self, x):
        """(groups, frames, channels) to a third of the frames."""
        rows = x.flatten(0, 1)
        y = prelu(self.norm1(self.linear1(rows)), self.slope1)
        y = self.norm2(self.linear2(y)) + self.shortcut(rows)
        y = prelu(y, self.slope2).unflatten(0, (x.shape[0], -1, 3))
        return y.amax(2)
