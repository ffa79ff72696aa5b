"""Spectra as a few bands: maps to them and back, and the blocks between.

Luo and Yu, "Music source separation with band-split RNN". Low bands are narrow, high
ones wide; each becomes a vector of as many channels, by a linear map of its own. Bins
are `(batch, frames, bins, channels)`, bands `(batch, frames, bands, channels)`.

Bands are given as pairs: how many, of how many bins. Bands of one width share a batched
product.
"""

import torch
from torch import nn

from speechbrain_peer.nnet.lstm import Lstm
from speechbrain_peer.nnet.norms import LayerNorm, moments, new_totals
from speechbrain_peer.nnet.products import Linear

SILENCE = 1e-12
"""Variance in a band that counts as silence, far below one step of 16-bit audio."""


def check_bands(bands, n_bins):
    """Checks that bands cover a spectrum.

    Arguments
    ---------
    bands : list of (int, int)
        How many bands, of how many bins each, from the lowest on.
    n_bins : int
        Of the spectrum.

    Raises
    ------
    ValueError
        If they do not.
    """
    covered = sum(count * width for count, width in bands)
    if covered != n_bins:
        raise ValueError(f"bands {bands} cover {covered} bins, but there are {n_bins}")


class BandLinear(nn.Module):
    """A linear map for each band: together a block-diagonal one.

    Arguments
    ---------
    bands : list of (int, int)
        How many bands, of how many bins each, from the lowest on.
    in_channels : int
        Channels of a bin, or of a band.
    out_channels : int
        The same of the output.
    of_bins : bool
        Whether the input is bins; else bands.
    to_bins : bool
        Whether the output is bins; else bands.
    bias : bool
        Whether something is added.

    Example
    -------
    >>> split = BandLinear([(3, 2), (1, 4)], 2, 16, of_bins=True)
    >>> split(torch.rand(2, 50, 10, 2)).shape
    torch.Size([2, 50, 4, 16])
    """

    def __init__(
        self,
        bands,
        in_channels,
        out_channels,
        of_bins=False,
        to_bins=False,
        bias=True,
    ):
        super().__init__()
        self.bands, self.of_bins, self.to_bins = bands, of_bins, to_bins
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for count, width in bands:
            inputs = in_channels * (width if of_bins else 1)
            outputs = out_channels * (width if to_bins else 1)
            bound = inputs**-0.5  # nn.Linear's
            weight = torch.empty(count, outputs, inputs).uniform_(-bound, bound)
            self.weights.append(nn.Parameter(weight))
            if bias:
                values = torch.empty(count, outputs).uniform_(-bound, bound)
                self.biases.append(nn.Parameter(values))

    def forward(self, x):
        """(batch, frames, bins or bands, in) to (batch, frames, bins or bands, out)."""
        places = [count * width for count, width in self.bands]
        counts = [count for count, _ in self.bands]
        outputs = []
        parts = x.split(places if self.of_bins else counts, dim=2)
        for index, (part, count) in enumerate(zip(parts, counts, strict=True)):
            rows = part.reshape(-1, count, self.weights[index].shape[2])
            weight = self.weights[index].transpose(1, 2)
            if len(self.biases):
                bias = self.biases[index][:, None]
                output = torch.baddbmm(bias, rows.transpose(0, 1), weight)
            else:
                output = rows.transpose(0, 1) @ weight
            output = output.transpose(0, 1).unflatten(0, x.shape[:2])
            if self.to_bins:
                _, width = self.bands[index]
                output = output.unflatten(-1, (width, -1)).flatten(2, 3)
            outputs.append(output)
        return torch.cat(outputs, dim=2)

    def blocks(self):
        """Views of the maps of bands of one width; see `products.Linear.blocks`."""
        biases = list(self.biases) or [None] * len(self.bands)
        return [
            (weight.unflatten(2, (width if self.of_bins else 1, -1)), bias)
            for weight, bias, (_, width) in zip(
                self.weights, biases, self.bands, strict=True
            )
        ]


class BandNorm(nn.Module):
    """Takes mean and level out of each band, over all frames or those heard so far.

    It has no parameters: what follows is a linear map.

    Arguments
    ---------
    bands : list of (int, int)
        How many bands, of how many bins each, from the lowest on.
    causal : bool
        Whether a frame counts those before it only.

    Example
    -------
    >>> norm = BandNorm([(3, 2), (1, 4)], causal=False)
    >>> norm(torch.rand(2, 50, 10, 3), torch.ones(2, 50)).shape
    torch.Size([2, 50, 10, 3])
    """

    def __init__(self, bands, causal):
        super().__init__()
        self.causal = causal
        widths = torch.tensor([width for count, width in bands for _ in range(count)])
        self.register_buffer("widths", widths, persistent=False)
        to_band = torch.arange(len(widths)).repeat_interleave(widths)
        self.register_buffer("to_band", to_band, persistent=False)

    def forward(self, x, frame_mask):
        """(batch, frames, bins, channels) to the same shape."""
        past = self.init_state(x.shape[0]) if self.causal else None
        return self._norm(x, frame_mask, past)[0]

    def init_state(self, batch):
        """The totals of streams that have not begun, (batch, bands, 3)."""
        return new_totals(batch * len(self.widths), self.widths).unflatten(
            0, (batch, -1)
        )

    def step(self, x, state):
        """`forward` on the next frames of streams, and the next state."""
        return self._norm(x, x.new_ones(x.shape[:2]), state)

    def _norm(self, x, frame_mask, past):
        batch, frames, _, channels = x.shape
        bands = len(self.widths)
        # Bands are items of a norm: (batch * bands, frames, 2).
        sums = torch.stack((x.sum(-1), x.square().sum(-1)), dim=-1)
        of_bands = x.new_zeros(batch, frames, bands, 2).index_add(2, self.to_band, sums)
        norm = LayerNorm(
            frame_mask.repeat_interleave(bands, 0),
            channels * self.widths.repeat(batch)[:, None],
            eps=SILENCE,
            past=None if past is None else past.flatten(0, 1),
        )
        statistics = norm.statistics(of_bands.transpose(1, 2).flatten(0, 1))
        mean, rstd = (
            statistic.unflatten(0, (batch, bands)).transpose(1, 2)[:, :, self.to_band]
            for statistic in statistics
        )
        totals = norm.totals
        state = None if totals is None else totals.unflatten(0, (batch, bands))
        return (x - mean[..., None]) * rstd[..., None], state


class GridNorm(nn.Module):
    """Takes mean and level out, over all bands and all frames or those so far.

    It has no parameters: what follows is a linear map.

    Arguments
    ---------
    causal : bool
        Whether a frame counts those before it only.

    Example
    -------
    >>> GridNorm(causal=True)(torch.rand(2, 50, 4, 8), torch.ones(2, 50)).shape
    torch.Size([2, 50, 4, 8])
    """

    def __init__(self, causal):
        super().__init__()
        self.causal = causal

    def forward(self, x, frame_mask):
        """(batch, frames, bands, channels) to the same shape."""
        past = new_totals(x.shape[0], x) if self.causal else None
        return self._norm(x, frame_mask, past)[0]

    def step(self, x, totals):
        """`forward` on the next frames of streams, and the next totals."""
        return self._norm(x, x.new_ones(x.shape[:2]), totals)

    def _norm(self, x, frame_mask, past):
        rows = x.flatten(2)
        norm = LayerNorm(frame_mask, rows.shape[-1], past=past)
        mean, rstd = moments(rows, norm)
        # (rows - mean) * rstd, in one pass.
        return torch.addcmul(-mean * rstd, rows, rstd).view(x.shape), norm.totals


class GridBlock(nn.Module):
    """Two LSTMs with norm, linear map and residual: along time, then along bands.

    Arguments
    ---------
    channels : int
        n.
    hidden_channels : int
        Of an LSTM's direction.
    causal : bool
        Whether that along time runs forward only.

    Example
    -------
    >>> block = GridBlock(channels=8, hidden_channels=16, causal=False)
    >>> block(torch.rand(2, 50, 4, 8), torch.ones(2, 50)).shape
    torch.Size([2, 50, 4, 8])
    """

    def __init__(self, channels, hidden_channels, causal):
        super().__init__()
        self.norm = GridNorm(causal)
        self.over_time = Lstm(channels, hidden_channels, both_ways=not causal)
        self.over_bands = Lstm(channels, hidden_channels, both_ways=True)
        ways = 1 if causal else 2
        self.time_linear = Linear(ways * hidden_channels, channels)
        self.band_linear = Linear(2 * hidden_channels, channels)

    def forward(self, x, frame_mask):
        """(batch, frames, bands, channels) to the same shape."""
        y = self.over_time(self.norm(x, frame_mask), frame_mask)
        x = x + self.time_linear(y)
        return x + self._along_bands(self.norm(x, frame_mask))

    def init_state(self, batch, bands):
        """What the block remembers of streams that have not begun."""
        totals = new_totals(batch, self.time_linear.weight)
        return totals, self.over_time.init_state(batch, bands), totals

    def step(self, x, state):
        """`forward` on the next frames of streams, and the next state."""
        before_time, memory, before_bands = state
        normed, before_time = self.norm.step(x, before_time)
        y, memory = self.over_time.step(normed, memory)
        x = x + self.time_linear(y)
        normed, before_bands = self.norm.step(x, before_bands)
        return x + self._along_bands(normed), (before_time, memory, before_bands)

    def _along_bands(self, x):
        # Every frame is a sequence.
        y = self.over_bands(x.flatten(0, 1)[:, :, None])
        return self.band_linear(y.squeeze(2)).unflatten(0, x.shape[:2])
