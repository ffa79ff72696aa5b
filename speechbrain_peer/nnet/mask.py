"""The mask head: the last stage before the decoder."""

import torch
from torch import nn

from speechbrain_peer.nnet.conv_block import prelu
from speechbrain_peer.nnet.products import Linear


class Combination(Linear):
    """Where peer learning enters: e + C r, with a linear map C into the space of e.

    Folded (see `peer_learning.predictors`) it is a linear map of e alone.
    """

    def forward(self, e, r=None):
        """e (batch, frames, channels), r (batch, frames, filters) or None if folded."""
        return super().forward(e) if r is None else e + super().forward(r)


class MaskHead(nn.Module):
    """Masks the mixture's representation: ReLU(linear(PReLU(e + C r))) * W.

    Without predictors it has no C.

    Arguments
    ---------
    channels : int
        D, channels of e.
    n_filters : int
        N, channels of W.
    refined_size : int or None
        Channels of r, or of e where r has been folded into it; None without
        predictors.
    prelu : bool
        Whether there is a PReLU.

    Example
    -------
    >>> head = MaskHead(channels=8, n_filters=32, refined_size=32)
    >>> e, r, mixture = (
    ...     torch.rand(2, 50, 8),
    ...     torch.rand(2, 50, 32),
    ...     torch.rand(2, 50, 32),
    ... )
    >>> head(e, r, mixture).shape
    torch.Size([2, 50, 32])
    """

    def __init__(self, channels, n_filters, refined_size=None, prelu=True):
        super().__init__()
        self.combine = None
        if refined_size is not None:
            self.combine = Combination(refined_size, channels)
        self.slope = nn.Parameter(torch.full((1,), 0.25)) if prelu else None
        self.linear = Linear(channels, n_filters)

    def forward(self, e, r, representation):
        """Masks.

        Arguments
        ---------
        e : torch.Tensor
            (batch, frames, channels).
        r : torch.Tensor or None
            (batch, frames, filters); None without predictors.
        representation : torch.Tensor
            W, (batch, frames, filters).

        Returns
        -------
        torch.Tensor
            M * W, (batch, frames, filters).
        """
        if self.combine is not None:
            e = self.combine(e, r)
        if self.slope is not None:
            e = prelu(e, self.slope)
        return torch.relu(self.linear(e)) * representation
