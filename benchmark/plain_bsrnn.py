"""BSRNN in plain PyTorch, as it is usually written: the peer of ours.

Channels come first, (batch, channels, bands, frames). Bands are modules in a loop, each
LSTM is `nn.LSTM` on a permuted copy, each norm `nn.GroupNorm`. It takes the place of
our separator and mask head, and computes the same function; encoder, decoder and what
becomes of the enrollment are ours.
"""

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_peer.nnet.band_split import SILENCE
from speechbrain_peer.nnet.norms import NORM_EPS


def band_widths(bands):
    """The bins of every band.

    Example
    -------
    >>> band_widths([(2, 3), (1, 8)])
    [3, 3, 8]
    """
    return [width for count, width in bands for _ in range(count)]


class PlainSeparator(nn.Module):
    """Our `models.bsrnn.Separator` with cue `map`, not causal.

    Arguments
    ---------
    bands : list of (int, int)
        How many bands, of how many bins each, from the lowest on.
    channels : int
        n, channels of a band.
    hidden_channels : int
        Of an LSTM's direction.
    n_blocks : int
        Blocks of two LSTMs.
    temperature : float
        Of the map.
    """

    def __init__(self, bands, channels, hidden_channels, n_blocks, temperature):
        super().__init__()
        self.widths, self.temperature = band_widths(bands), temperature
        self.split = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, 3 * width, eps=SILENCE, affine=False),
                nn.Conv1d(3 * width, channels, 1),
            )
            for width in self.widths
        )
        sizes = (channels, hidden_channels)
        self.over_time = nn.ModuleList(PlainLstm(*sizes) for _ in range(n_blocks))
        self.over_bands = nn.ModuleList(PlainLstm(*sizes) for _ in range(n_blocks))
        self.norm = nn.GroupNorm(1, channels, eps=NORM_EPS, affine=False)

    def forward(self, representation, voice, frame_mask):
        """(batch, frames, bins, 2) to (batch, frames, bands, channels)."""
        magnitudes = torch.linalg.vector_norm(representation, dim=-1)
        frames = F.normalize(magnitudes, dim=-1)
        cosines = frames @ voice.features.transpose(1, 2)
        weights = torch.softmax(self.temperature * cosines, dim=-1)
        found = F.normalize(weights @ voice.features, dim=-1)
        found = found * (magnitudes * found).sum(-1, keepdim=True)
        features = torch.cat((representation, found[..., None]), dim=-1)
        features = features.permute(0, 2, 3, 1)  # (batch, bins, 3, frames)
        bands = features.split(self.widths, dim=1)
        bands = [
            split(band.flatten(1, 2))
            for split, band in zip(self.split, bands, strict=True)
        ]
        x = torch.stack(bands, dim=2)
        for over_time, over_bands in zip(self.over_time, self.over_bands, strict=True):
            x = over_time(x)
            x = over_bands(x.transpose(2, 3)).transpose(2, 3)
        return self.norm(x).permute(0, 3, 2, 1)


class PlainLstm(nn.Module):
    """Norm, LSTM along the last dimension, linear map, and residual.

    Arguments
    ---------
    channels : int
    hidden_channels : int
        Of a direction.
    """

    def __init__(self, channels, hidden_channels):
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=NORM_EPS, affine=False)
        self.lstm = nn.LSTM(
            channels, hidden_channels, batch_first=True, bidirectional=True
        )
        self.linear = nn.Linear(2 * hidden_channels, channels)

    def forward(self, x):
        """(batch, channels, sequences, steps) to the same shape."""
        batch, channels, sequences, steps = x.shape
        y = self.norm(x).permute(0, 2, 3, 1).reshape(-1, steps, channels)
        y = self.linear(self.lstm(y)[0])
        return x + y.view(batch, sequences, steps, channels).permute(0, 3, 1, 2)


class PlainMaskHead(nn.Module):
    """Our `models.bsrnn.MaskHead` without predictors.

    Arguments
    ---------
    bands : list of (int, int)
        How many bands, of how many bins each, from the lowest on.
    channels : int
        n, channels of a band.
    hidden_channels : int
        Of a band.
    """

    def __init__(self, bands, channels, hidden_channels):
        super().__init__()
        self.masks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(channels, hidden_channels),
                nn.Tanh(),
                nn.Linear(hidden_channels, 4 * width),
            )
            for width in band_widths(bands)
        )

    def forward(self, e, r, representation, lent=None):
        """(batch, frames, bins, 2)."""
        masks = [mask(e[:, :, band]) for band, mask in enumerate(self.masks)]
        mask = torch.cat(masks, dim=-1).unflatten(-1, (-1, 4))
        mask = torch.view_as_complex(F.glu(mask.float(), dim=-1).contiguous())
        return torch.view_as_real(mask * torch.view_as_complex(representation))
