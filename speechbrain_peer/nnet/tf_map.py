"""A cue for every frame: what of the enrollment is like this moment of the mixture.

Wang et al., WeSep v0.1, call it a TF-map. Every frame of the mixture looks through all
frames of the enrollment, and gets a mean of them in which those count most whose
spectrum is like its own. It needs no speaker network: the talker's own sounds are the
cue.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_peer.nnet.voice import Frames


def unit_frames(magnitudes, frame_mask):
    """Makes a voice of an enrollment's magnitudes.

    Arguments
    ---------
    magnitudes : torch.Tensor
        (batch, frames, F), not negative.
    frame_mask : torch.Tensor
        (batch, frames).

    Returns
    -------
    Frames
        The magnitudes of every frame, at unit length over F: loud and soft ones count
        alike. A silent one stays zero.

    Example
    -------
    >>> unit_frames(torch.tensor([[[3.0, 4.0]]]), torch.ones(1, 1)).features
    tensor([[[0.6000, 0.8000]]])
    """
    features = F.normalize(magnitudes, dim=-1) * frame_mask[..., None]
    return Frames(features, frame_mask)


class TfMap(nn.Module):
    """Finds, for every frame of a mixture, what of the enrollment is like it.

    It is the mean of the enrollment's frames, weighted by a softmax over the cosines
    between them and the mixture's, at unit length, times the mixture's share in that
    direction. A frame of the mixture depends on no other, so streams need no state.

    Arguments
    ---------
    temperature : float
        Factor of the cosines. They differ by less than 1, so with 1 all frames count
        nearly alike, and the larger, the more those count that are most alike.
    learned : bool
        Whether it is learned, from this value on.

    Raises
    ------
    ValueError
        If the temperature is not positive.

    Example
    -------
    >>> voice = unit_frames(torch.rand(2, 70, 33), torch.ones(2, 70))
    >>> TfMap(temperature=20.0)(torch.rand(2, 50, 33), voice).shape
    torch.Size([2, 50, 33])
    """

    def __init__(self, temperature=1.0, learned=False):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature {temperature}: give a positive one")
        self.temperature = float(temperature)
        self.log_temperature = None
        if learned:
            # Its logarithm: a step of the optimizer changes it by a share of itself.
            start = torch.full((1,), math.log(temperature))
            self.log_temperature = nn.Parameter(start)

    def forward(self, magnitudes, voice):
        """Looks up.

        Arguments
        ---------
        magnitudes : torch.Tensor
            Of the mixture, (batch, frames, F).
        voice : Frames
            Of the enrollment, from `unit_frames`, (batch, frames of its own, F).

        Returns
        -------
        torch.Tensor
            fp32, at the level of the mixture, (batch, frames, F).
        """
        # In fp32 also under autocast: bf16 tells large cosines apart by 0.004 only.
        with torch.autocast(magnitudes.device.type, enabled=False):
            magnitudes, features = magnitudes.float(), voice.features.float()
            cosines = F.normalize(magnitudes, dim=-1) * self._temperature()
            # One head; the weights of all pairs of frames are never in memory at once.
            found = F.scaled_dot_product_attention(
                cosines[:, None],
                features[:, None],
                features[:, None],
                attn_mask=voice.mask[:, None, None] > 0,
                scale=1.0,
            )
            found = F.normalize(found[:, 0], dim=-1)
            return found * (magnitudes * found).sum(-1, keepdim=True)

    def _temperature(self):
        if self.log_temperature is None:
            return self.temperature
        return self.log_temperature.exp()
