"""Ways to make a separator listen for one speaker: adaptation by an embedding."""

import torch
from torch import nn

from speechbrain_peer.nnet.products import Linear


class Adaptation(nn.Module):
    """Adapts the residual and the skip connection of one block to a speaker.

    Arguments
    ---------
    kind : str
        `mul`: each is multiplied by a part of the embedding; `muladd`: multiplied
        by one part and shifted by another; `concat`: concatenated with a part and
        mapped back linearly.
    channels : int
        Channels of the residual and of the skip connection.
    embedding_size : int
        Channels of the embedding that each of the two gets, with `concat`; with
        `mul` it equals the channels and with `muladd` twice the channels.

    Raises
    ------
    ValueError
        If the kind is unknown or the size does not fit it.

    Example
    -------
    >>> adaptation = Adaptation("mul", channels=8, embedding_size=8)
    >>> residual, skip = torch.rand(2, 50, 8), torch.rand(2, 50, 8)
    >>> residual, skip = adaptation(residual, skip, torch.rand(2, 16))
    >>> residual.shape
    torch.Size([2, 50, 8])
    """

    def __init__(self, kind, channels, embedding_size):
        super().__init__()
        sizes = {"mul": channels, "muladd": 2 * channels, "concat": embedding_size}
        if kind not in sizes:
            raise ValueError(f"adaptation '{kind}': choose one of {', '.join(sizes)}")
        if embedding_size != sizes[kind]:
            raise ValueError(
                f"adaptation '{kind}' of {channels} channels needs an embedding of "
                f"{sizes[kind]} for each connection, not {embedding_size}"
            )
        self.kind = kind
        if kind == "concat":
            self.transforms = nn.ModuleList(
                Linear(channels + embedding_size, channels) for _ in range(2)
            )

    def forward(self, residual, skip, embedding):
        """Adapts both connections.

        Arguments
        ---------
        residual : torch.Tensor
            (batch, frames, channels).
        skip : torch.Tensor
            (batch, frames, channels).
        embedding : torch.Tensor
            (batch, 2 * embedding_size): the residual's part, then the skip's.

        Returns
        -------
        residual, skip : torch.Tensor
            (batch, frames, channels).
        """
        parts = embedding[:, None].chunk(2, dim=-1)
        return tuple(
            self._adapt(index, x, part)
            for index, (x, part) in enumerate(zip((residual, skip), parts, strict=True))
        )

    def _adapt(self, index, x, part):
        if self.kind == "mul":
            return x * part
        if self.kind == "muladd":
            scale, shift = part.chunk(2, dim=-1)
            return x * scale + shift
        part = part.expand(-1, x.shape[1], -1)
        return self.transforms[index](torch.cat((x, part), dim=-1))
