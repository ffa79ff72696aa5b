"""The mask head: the last stage before the decoder."""

import torch
from torch import nn

from speechbrain_peer.nnet.around import around
from speechbrain_peer.nnet.band_split import BandLinear
from speechbrain_peer.nnet.conv_block import prelu
from speechbrain_peer.nnet.products import Linear


class Combining:
    """Where peer learning enters: e + C r, with a linear map C into the space of e.

    Folded (see `peer_learning.predictors`) it is a linear map of e alone, and of what
    is lent. It goes before the class of the map, and has the attributes `kernel_size`
    and `lent`, and a method `folded`.
    """

    def forward(self, e, r=None, lent=None):
        """Combines.

        Arguments
        ---------
        e : torch.Tensor
            (batch, frames, channels).
        r : torch.Tensor or None
            (batch, frames, filters); None if folded.
        lent : torch.Tensor or None
            If folded, the e of a peer, whose p this branch is lent; None: its own.

        Returns
        -------
        torch.Tensor
            (batch, frames, channels).
        """
        if r is not None:
            return e + super().forward(r)
        combined = super().forward(around(e, self.kernel_size))
        if lent is None:
            return combined
        return combined + self.lent(around(lent - e, self.kernel_size))


class Combination(Combining, Linear):
    """`Combining` of all channels of a frame.

    Arguments
    ---------
    in_channels : int
        Channels of r, or of e if folded.
    out_channels : int
        Channels of e.
    lends : bool
        Whether a folded one has the map of what is lent.
    kernel_size : int
        Frames that a folded one sees, an odd number.
    """

    def __init__(self, in_channels, out_channels, lends=False, kernel_size=1):
        seen = kernel_size * in_channels
        super().__init__(seen, out_channels)
        self.kernel_size = kernel_size
        self.lent = Linear(seen, out_channels, bias=False) if lends else None

    def folded(self, kernel_size):
        """Another, of e alone."""
        sizes = (self.out_features, self.out_features)
        return Combination(*sizes, lends=True, kernel_size=kernel_size)


class BandCombination(Combining, BandLinear):
    """`Combining` of the channels of each band.

    Arguments
    ---------
    bands : list of (int, int)
        How many bands, of how many bins each, from the lowest on.
    in_channels : int
        Channels of a bin of r, or of a band of e if folded.
    out_channels : int
        Channels of a band of e.
    lends : bool
        Whether it is folded, and has the map of what is lent.
    kernel_size : int
        Frames that a folded one sees, an odd number.
    """

    def __init__(self, bands, in_channels, out_channels, lends=False, kernel_size=1):
        seen = kernel_size * in_channels
        super().__init__(bands, seen, out_channels, of_bins=not lends)
        self.kernel_size, self.out_features = kernel_size, out_channels
        self.lent = None
        if lends:
            self.lent = BandLinear(bands, seen, out_channels, bias=False)

    def folded(self, kernel_size):
        """Another, of e alone."""
        sizes = (self.out_features, self.out_features)
        return BandCombination(self.bands, *sizes, True, kernel_size)


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
    lends : bool
        Whether r has been folded so that other recordings can still lend theirs.
    kernel_size : int
        Frames of e that a folded r is made of.

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

    def __init__(
        self,
        channels,
        n_filters,
        refined_size=None,
        prelu=True,
        lends=False,
        kernel_size=1,
    ):
        super().__init__()
        self.combine = None
        if refined_size is not None:
            self.combine = Combination(refined_size, channels, lends, kernel_size)
        self.slope = nn.Parameter(torch.full((1,), 0.25)) if prelu else None
        self.linear = Linear(channels, n_filters)

    def forward(self, e, r, representation, lent=None):
        """Masks.

        Arguments
        ---------
        e : torch.Tensor
            (batch, frames, channels).
        r : torch.Tensor or None
            (batch, frames, filters); None without predictors.
        representation : torch.Tensor
            W, (batch, frames, filters).
        lent : torch.Tensor or None
            The e of a peer, see `Combination`.

        Returns
        -------
        torch.Tensor
            M * W, (batch, frames, filters).
        """
        if self.combine is not None:
            e = self.combine(e, r, lent)
        if self.slope is not None:
            e = prelu(e, self.slope)
        return torch.relu(self.linear(e)) * representation
