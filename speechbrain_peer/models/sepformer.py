"""SepFormer's dual-path transformer as a separator that listens for one speaker.

Subakan et al., "Attention is all you need in speech separation", ICASSP 2021, with
SpeechBrain's transformers. Each frame lies in two overlapping chunks; transformers
within the chunks and across them take turns. The embedding multiplies what comes out
of the first turn. The other stages are those of TD-SpeakerBeam.
"""

import torch
from speechbrain.lobes.models.dual_path import SBTransformerBlock
from speechbrain.lobes.models.transformer.Transformer import PositionalEncoding
from torch import nn
from torch.nn import functional as F

from speechbrain_peer.nnet.filterbank import overlap_add
from speechbrain_peer.nnet.norms import LayerNorm, norm_linear
from speechbrain_peer.nnet.products import linear


def segment(x, chunk_size):
    """Cuts into chunks that overlap by half; each frame is in two of them.

    Arguments
    ---------
    x : torch.Tensor
        (batch, frames, channels).
    chunk_size : int
        Frames of a chunk, even.

    Returns
    -------
    torch.Tensor
        (batch, chunks, chunk_size, channels), zero before and after the frames.

    Example
    -------
    >>> segment(torch.tensor([[[1.0], [2.0], [3.0]]]), chunk_size=4)[..., 0]
    tensor([[[0., 0., 1., 2.],
             [1., 2., 3., 0.],
             [3., 0., 0., 0.]]])
    """
    frames, channels = x.shape[1:]
    hop = chunk_size // 2
    x = F.pad(x, (0, 0, hop, hop + -frames % hop))
    chunks = x.flatten(1).unfold(1, chunk_size * channels, hop * channels)
    return chunks.unflatten(-1, (chunk_size, channels))


def merge(chunks, frames):
    """Adds up the two values of every frame.

    Arguments
    ---------
    chunks : torch.Tensor
        (batch, chunks, chunk_size, channels), from `segment`.
    frames : int
        Frames that were cut.

    Returns
    -------
    torch.Tensor
        (batch, frames, channels).

    Example
    -------
    >>> merge(segment(torch.tensor([[[1.0], [2.0], [3.0]]]), 4), frames=3)[..., 0]
    tensor([[2., 4., 6.]])
    """
    n_chunks, chunk_size, channels = chunks.shape[1:]
    hop = chunk_size // 2
    length = (n_chunks + 1) * hop * channels
    x = overlap_add(chunks.flatten(2), hop * channels, length)
    return x.unflatten(1, (-1, channels))[:, hop : hop + frames]


class Transformer(SBTransformerBlock):
    """SpeechBrain's transformer block for padded sequences of any length.

    Its own `forward` passes no padding on, its table of positions ends at 2500, and it
    asks for the attention's weights, which are then written out for every head.

    Arguments
    ---------
    channels : int
        D, even.
    n_layers : int
        Layers, each of attention and feed-forward network.
    n_heads : int
        Attention heads, a divisor of D.
    ffn_channels : int
        Hidden channels of the feed-forward networks.

    Example
    -------
    >>> transformer = Transformer(channels=8, n_layers=1, n_heads=2, ffn_channels=16)
    >>> x, padding = torch.rand(2, 5, 50, 8), torch.zeros(2, 5, 50, dtype=torch.bool)
    >>> transformer(x, padding).shape
    torch.Size([2, 5, 50, 8])
    """

    def __init__(self, channels, n_layers, n_heads, ffn_channels):
        super().__init__(
            n_layers, channels, n_heads, ffn_channels, dropout=0.0, norm_before=True
        )

    def forward(self, x, padding):
        """Transforms each sequence.

        Arguments
        ---------
        x : torch.Tensor
            (batch, sequences, positions, channels).
        padding : torch.Tensor
            True where nothing attends to, (batch, sequences, positions).

        Returns
        -------
        torch.Tensor
            (batch, sequences, positions, channels).
        """
        sequences, padding = x.flatten(0, 1), padding.flatten(0, 1)
        # Nobody reads a sequence that is all padding, but attention to nothing is NaN.
        padding = padding & ~padding.all(-1, keepdim=True)
        with x.device:
            table = PositionalEncoding(x.shape[-1], max_len=x.shape[-2])
        y, attended = sequences + table(sequences), ~padding[:, None, None]
        for layer in self.mdl.layers:
            y = y + _attend(layer.self_att.att, layer.norm1(y), attended)
            widen, activation, _, narrow = layer.pos_ffn.ffn
            hidden = activation(linear(layer.norm2(y), widen.weight, widen.bias))
            y = y + linear(hidden, narrow.weight, narrow.bias)
        return self.mdl.norm(y).view(x.shape)


def _attend(attention, x, attended):
    """nn.MultiheadAttention of x to itself, where `attended` is true.

    (sequences, positions, channels) to the same shape.
    """
    projected = linear(x, attention.in_proj_weight, attention.in_proj_bias)
    heads = projected.unflatten(-1, (3, attention.num_heads, -1)).transpose(1, 3)
    mixed = F.scaled_dot_product_attention(*heads.unbind(2), attn_mask=attended)
    projection = attention.out_proj
    return linear(mixed.transpose(1, 2).flatten(2), projection.weight, projection.bias)


class DualPathBlock(nn.Module):
    """A transformer within the chunks, then one across them, each with a skip.

    SpeechBrain's `Dual_Computation_Block` has no way to tell them what is padding.

    Arguments
    ---------
    channels : int
        D, even.
    n_layers : int
        Layers of each transformer.
    n_heads : int
        Attention heads, a divisor of D.
    ffn_channels : int
        Hidden channels of the feed-forward networks.

    Example
    -------
    >>> block = DualPathBlock(channels=8, n_layers=1, n_heads=2, ffn_channels=16)
    >>> chunks, padding = torch.rand(2, 5, 50, 8), torch.zeros(2, 5, 50) > 0
    >>> block(chunks, padding).shape
    torch.Size([2, 5, 50, 8])
    """

    def __init__(self, channels, n_layers, n_heads, ffn_channels):
        super().__init__()
        sizes = (channels, n_layers, n_heads, ffn_channels)
        self.intra, self.inter = Transformer(*sizes), Transformer(*sizes)

    def forward(self, chunks, padding):
        """Chunks to chunks, (batch, chunks, chunk_size, channels).

        Arguments
        ---------
        chunks : torch.Tensor
            (batch, chunks, chunk_size, channels).
        padding : torch.Tensor
            True where they hold no true frame, (batch, chunks, chunk_size).
        """
        chunks = chunks + self.intra(chunks, padding)
        across = self.inter(chunks.transpose(1, 2), padding.transpose(1, 2))
        return chunks + across.transpose(1, 2)


class Separator(nn.Module):
    """Turns a mixture's representation into the one before the mask, e.

    Arguments
    ---------
    n_filters : int
        N, channels of the mixture's representation.
    channels : int
        D, channels of the transformers, of e and of the embedding; even.
    chunk_size : int
        Frames of a chunk, even.
    n_blocks : int
        Dual-path blocks.
    n_layers : int
        Layers of each of a block's two transformers.
    n_heads : int
        Attention heads, a divisor of D.
    ffn_channels : int
        Hidden channels of the feed-forward networks.

    Raises
    ------
    ValueError
        If chunks cannot overlap by half.

    Example
    -------
    >>> separator = Separator(
    ...     32, 8, 20, n_blocks=2, n_layers=1, n_heads=2, ffn_channels=16
    ... )
    >>> separator(torch.rand(2, 50, 32), torch.rand(2, 8), torch.ones(2, 50)).shape
    torch.Size([2, 50, 8])
    """

    def __init__(
        self, n_filters, channels, chunk_size, n_blocks, n_layers, n_heads, ffn_channels
    ):
        super().__init__()
        if chunk_size < 2 or chunk_size % 2:
            raise ValueError(f"chunk_size {chunk_size} is not even")
        self.chunk_size = chunk_size
        self.gamma = nn.Parameter(torch.ones(n_filters))
        self.beta = nn.Parameter(torch.zeros(n_filters))
        self.bottleneck = nn.Linear(n_filters, channels)
        self.blocks = nn.ModuleList(
            DualPathBlock(channels, n_layers, n_heads, ffn_channels)
            for _ in range(n_blocks)
        )

    def forward(self, representation, embedding, frame_mask):
        """Separates.

        Arguments
        ---------
        representation : torch.Tensor
            W, (batch, frames, filters).
        embedding : torch.Tensor
            a, (batch, channels).
        frame_mask : torch.Tensor
            (batch, frames).

        Returns
        -------
        torch.Tensor
            e, (batch, frames, channels).
        """
        x = norm_linear(
            representation,
            LayerNorm(frame_mask, representation.shape[-1]),
            self.gamma,
            self.beta,
            self.bottleneck.weight,
            self.bottleneck.bias,
        )
        chunks = segment(x, self.chunk_size)
        padding = segment(frame_mask[..., None], self.chunk_size)[..., 0] == 0
        for index, block in enumerate(self.blocks):
            chunks = block(chunks, padding)
            if index == 0:
                chunks = chunks * embedding[:, None, None]
        return merge(chunks, x.shape[1])
