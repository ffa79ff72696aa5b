"""TD-SpeakerBeam with a cue for every frame, in place of one embedding.

The network is `td_speakerbeam`'s. It is not told who the speaker is, but, for every
frame of the mixture, what of the enrollment is like it (`nnet.tf_map`), so there is no
speaker network. Others make such a map of spectra. Ours is over the learned filterbank
that the separator works on: it has one encoder, one frame rate and no further latency,
and the filters are learned for the cue, too. A filter of a few milliseconds responds to
a low tone now more, now less, with the phase; so what is compared are magnitudes
averaged over some frames.
"""

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_peer.nnet.tcn import TemporalConvNet
from speechbrain_peer.nnet.tf_map import TfMap, unit_frames


class SpeakerEncoder(nn.Module):
    """Turns an enrollment into frames of its speaker's sounds, a, without parameters.

    They are magnitudes of the mixture's filterbank, averaged over groups of frames: a
    25 s enrollment at 8 kHz and stride 16 is then 1563 frames to look through, not
    12 499.

    Arguments
    ---------
    n_filters : int
        N of the mixture's encoder.
    cue_frames : int
        Frames of a group, as many as `Separator` averages.

    Example
    -------
    >>> from speechbrain_peer.nnet.filterbank import Encoder
    >>> encoder, speaker_encoder = Encoder(32, 16, 8), SpeakerEncoder(32, 8)
    >>> voice = speaker_encoder(torch.rand(2, 4000), mixture_encoder=encoder)
    >>> voice.features.shape
    torch.Size([2, 63, 32])
    """

    def __init__(self, n_filters, cue_frames):
        super().__init__()
        self.frame_size, self.cue_frames = n_filters, cue_frames

    def forward(self, enrollments, enrollment_lens=None, mixture_encoder=None):
        """Embeds.

        Arguments
        ---------
        enrollments : torch.Tensor
            (batch, time).
        enrollment_lens : torch.Tensor or None
            Relative lengths (batch,).
        mixture_encoder : Encoder
            Analyses enrollments too.

        Returns
        -------
        Frames
            (batch, frames, filters).
        """
        representation, mask = mixture_encoder(enrollments, enrollment_lens)
        magnitudes = representation.abs() * mask[..., None]
        # The last group may be smaller, or hold padding: frames get unit length.
        groups = F.avg_pool1d(
            magnitudes.transpose(1, 2), self.cue_frames, ceil_mode=True
        ).transpose(1, 2)
        mask = F.max_pool1d(mask[:, None], self.cue_frames, ceil_mode=True)[:, 0]
        return unit_frames(groups, mask)


class Separator(nn.Module):
    """Turns a mixture's representation and its map into the one before the mask, e.

    The map, what of the enrollment is like each frame, goes into the network beside
    the mixture, as further channels.

    Arguments
    ---------
    n_filters : int
        N, channels of the mixture's representation, and of the map.
    channels : int
        B, channels of residual and skip connections, and of e.
    hidden_channels : int
        H.
    n_blocks : int
        X, blocks in a repeat.
    n_repeats : int
        R.
    cue_frames : int
        Frames, up to the one in question, whose magnitudes are averaged for the cue.
    temperature : float
        Of the map; see `TfMap`.
    learned_temperature : bool
        Whether it is learned, from this value on.
    causal : bool
        Whether a frame depends on the mixture up to it only, for live use.

    Example
    -------
    >>> separator = Separator(32, 8, 16, 3, 2, cue_frames=8)
    >>> voice = unit_frames(torch.rand(2, 70, 32), torch.ones(2, 70))
    >>> separator(torch.rand(2, 50, 32), voice, torch.ones(2, 50)).shape
    torch.Size([2, 50, 8])
    """

    def __init__(
        self,
        n_filters,
        channels,
        hidden_channels,
        n_blocks,
        n_repeats,
        cue_frames,
        temperature=1.0,
        learned_temperature=False,
        causal=False,
    ):
        super().__init__()
        self.n_filters, self.cue_frames = n_filters, cue_frames
        self.tf_map = TfMap(temperature, learned_temperature)
        self.tcn = TemporalConvNet(
            2 * n_filters,
            channels,
            hidden_channels,
            channels,
            n_blocks,
            n_repeats,
            causal,
        )

    def forward(self, representation, voice, frame_mask):
        """Separates.

        Arguments
        ---------
        representation : torch.Tensor
            W, (batch, frames, filters).
        voice : Frames
            a, from `SpeakerEncoder`, of (batch, ...).
        frame_mask : torch.Tensor
            (batch, frames).

        Returns
        -------
        torch.Tensor
            e, (batch, frames, channels).
        """
        silence = self._silence(representation.shape[0], representation)
        features, _ = self._with_map(representation, voice, silence)
        return self.tcn(features, frame_mask)

    def init_state(self, batch):
        """What a causal separator remembers of streams that have not begun.

        Arguments
        ---------
        batch : int
            How many streams.

        Returns
        -------
        tuple or None
            Nested, of tensors with the batch first; None unless it is causal.
        """
        if not self.tcn.causal:
            return None
        return self._silence(batch, self.tcn.gamma), self.tcn.init_state(batch)

    def step(self, representation, voice, state):
        """Separates the next frames of streams, of a causal separator.

        Arguments
        ---------
        representation : torch.Tensor
            W, (batch, frames, filters); there may be no frame at all.
        voice : Frames
            a, of (batch, ...).
        state : tuple
            From `init_state` or the step before; it is not changed.

        Returns
        -------
        e : torch.Tensor
            (batch, frames, channels).
        state : tuple
            For the next step.
        """
        before, of_tcn = state
        features, before = self._with_map(representation, voice, before)
        e, of_tcn = self.tcn.step(features, of_tcn)
        return e, (before, of_tcn)

    def _silence(self, batch, like):
        """The magnitudes before the first frame."""
        return like.new_zeros(batch, self.cue_frames - 1, self.n_filters)

    def _with_map(self, representation, voice, before):
        """The network's input, and the last magnitudes, for the frames that follow."""
        n_frames = representation.shape[1]
        magnitudes = torch.cat((before, representation.abs()), dim=1)
        averages = sum(magnitudes[:, k : k + n_frames] for k in range(self.cue_frames))
        found = self.tf_map(averages / self.cue_frames, voice)
        # A copy, as a view would keep all frames.
        return torch.cat((representation, found), dim=-1), magnitudes[
            :, n_frames:
        ].clone()
