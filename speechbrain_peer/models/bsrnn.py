"""BSRNN: a band-split recurrent network that listens for an enrolled speaker.

Luo and Yu, "Music source separation with band-split RNN", 2023, with the TF-map of
Wang et al., WeSep v0.1, as the cue. The spectrum of the mixture, and beside it what of
the enrollment is like each of its frames (`nnet.tf_map`), are split into bands, each of
which becomes a vector of n channels. Blocks of two LSTMs, along time and along bands,
lead to e, and a gated network for each band to a complex mask. The cue may also be one
vector, which multiplies what comes out of the first block.

Ours is, where peer learning enters: e is normed over all bands and frames (or those so
far, if causal), so the mask head works frame by frame; a norm of each frame alone would
take away the envelope, which p has to have. Predictors, C and mask head are a map for
each band. Encoder and decoder are in `nnet.stft`.
"""

import torch
from torch import nn

from speechbrain_peer.models import dpccn
from speechbrain_peer.nnet.band_split import (
    BandLinear,
    BandNorm,
    GridBlock,
    GridNorm,
    check_bands,
)
from speechbrain_peer.nnet.mask import BandCombination
from speechbrain_peer.nnet.norms import new_totals
from speechbrain_peer.nnet.stft import magnitude
from speechbrain_peer.nnet.tf_map import TfMap, unit_frames

CUES = ("map", "vector")


def check_cue(cue):
    """Refuses what is no cue.

    Arguments
    ---------
    cue : str
        `map` or `vector`.

    Raises
    ------
    ValueError
        If it is another.
    """
    if cue not in CUES:
        raise ValueError(f"cue '{cue}': choose one of {', '.join(CUES)}")


class SpeakerEncoder(nn.Module):
    """Turns an enrollment into the voice of its speaker, a.

    Arguments
    ---------
    window : int
        Samples of the STFT's window.
    cue : str
        `map`: the voice is the magnitudes of the enrollment's frames, at unit length,
        and there are no parameters. `vector`: it is an embedding, from sDPCCN's speaker
        network.
    channels : int
        B, of the speaker network's blocks.
    hidden_channels : int
        H.
    n_blocks : int
        X.
    embedding_size : int
        Channels that the separator multiplies.

    Raises
    ------
    ValueError
        If there is no such cue.

    Example
    -------
    >>> from speechbrain_peer.nnet.stft import StftEncoder
    >>> encoder, speaker_encoder = StftEncoder(256, 128), SpeakerEncoder(256)
    >>> voice = speaker_encoder(torch.rand(2, 8000), mixture_encoder=encoder)
    >>> voice.features.shape
    torch.Size([2, 63, 129])
    """

    def __init__(
        self,
        window,
        cue="map",
        channels=64,
        hidden_channels=128,
        n_blocks=5,
        embedding_size=64,
    ):
        super().__init__()
        check_cue(cue)
        self.network = None
        if cue == "map":
            self.frame_size = window // 2 + 1
        else:
            sizes = (channels, hidden_channels, n_blocks, embedding_size)
            self.network = dpccn.SpeakerEncoder(window, *sizes)
            self.embedding_size = embedding_size

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
        Frames or torch.Tensor
            (batch, frames, window / 2 + 1), or (batch, embedding_size).
        """
        if self.network is not None:
            return self.network(enrollments, enrollment_lens, mixture_encoder)
        spectra, frame_mask = mixture_encoder(enrollments, enrollment_lens)
        return unit_frames(magnitude(spectra), frame_mask)


class Separator(nn.Module):
    """Turns a mixture's spectrum into the bands before the mask, e.

    Arguments
    ---------
    window : int
        Samples of the STFT's window.
    bands : list of (int, int)
        How many bands, of how many bins each, from the lowest on.
    channels : int
        n, channels of a band, and of the embedding if the cue is a vector.
    hidden_channels : int
        Of an LSTM's direction.
    n_blocks : int
        Blocks of two LSTMs.
    cue : str
        `map` or `vector`; see `SpeakerEncoder`.
    temperature : float
        Of the map; see `TfMap`.
    learned_temperature : bool
        Whether it is learned, from this value on.
    causal : bool
        Whether a frame depends on the mixture up to it only, for live use.

    Raises
    ------
    ValueError
        If there is no such cue, or the bands do not cover the spectrum.

    Example
    -------
    >>> separator = Separator(32, [(5, 2), (1, 7)], 8, 16, n_blocks=2)
    >>> voice = unit_frames(torch.rand(2, 70, 17), torch.ones(2, 70))
    >>> separator(torch.rand(2, 50, 17, 2), voice, torch.ones(2, 50)).shape
    torch.Size([2, 50, 6, 8])
    """

    def __init__(
        self,
        window,
        bands,
        channels,
        hidden_channels,
        n_blocks,
        cue="map",
        temperature=1.0,
        learned_temperature=False,
        causal=False,
    ):
        super().__init__()
        check_cue(cue)
        check_bands(bands, window // 2 + 1)
        self.tf_map = None
        if cue == "map":
            self.tf_map = TfMap(temperature, learned_temperature)
        self.causal = causal
        self.band_norm = BandNorm(bands, causal)
        of_a_bin = 2 if self.tf_map is None else 3
        self.split = BandLinear(bands, of_a_bin, channels, of_bins=True)
        self.blocks = nn.ModuleList(
            GridBlock(channels, hidden_channels, causal) for _ in range(n_blocks)
        )
        self.norm = GridNorm(causal)

    def forward(self, representation, voice, frame_mask):
        """Separates.

        Arguments
        ---------
        representation : torch.Tensor
            W, zero in padded frames, (batch, frames, bins, 2).
        voice : Frames or torch.Tensor
            a, from `SpeakerEncoder`, of (batch, ...).
        frame_mask : torch.Tensor
            (batch, frames).

        Returns
        -------
        torch.Tensor
            e, (batch, frames, bands, channels).
        """
        bins = self.band_norm(self._with_map(representation, voice), frame_mask)
        x = self.split(bins)
        for index, block in enumerate(self.blocks):
            x = self._multiplied(block(x, frame_mask), voice, index)
        return self.norm(x, frame_mask)

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
        if not self.causal:
            return None
        n_bands = len(self.band_norm.widths)
        return (
            self.band_norm.init_state(batch),
            tuple(block.init_state(batch, n_bands) for block in self.blocks),
            new_totals(batch, self.split.weights[0]),
        )

    def step(self, representation, voice, state):
        """Separates the next frames of streams, of a causal separator.

        Arguments
        ---------
        representation : torch.Tensor
            W, (batch, frames, bins, 2); there may be no frame at all.
        voice : Frames or torch.Tensor
            a, of (batch, ...).
        state : tuple
            From `init_state` or the step before; it is not changed.

        Returns
        -------
        e : torch.Tensor
            (batch, frames, bands, channels).
        state : tuple
            For the next step.
        """
        if not representation.shape[1]:
            places = (*representation.shape[:2], len(self.band_norm.widths))
            return representation.new_zeros(
                *places, self.split.weights[0].shape[1]
            ), state
        of_bands, of_blocks, totals = state
        features = self._with_map(representation, voice)
        bins, of_bands = self.band_norm.step(features, of_bands)
        x, after = self.split(bins), []
        for index, block in enumerate(self.blocks):
            x, block_state = block.step(x, of_blocks[index])
            x = self._multiplied(x, voice, index)
            after.append(block_state)
        e, totals = self.norm.step(x, totals)
        return e, (of_bands, tuple(after), totals)

    def _with_map(self, representation, voice):
        """The features of every bin, fp32."""
        representation = representation.float()
        if self.tf_map is None:
            return representation
        found = self.tf_map(magnitude(representation), voice)
        return torch.cat((representation, found[..., None]), dim=-1)

    def _multiplied(self, x, voice, index):
        """After the first block, x times the embedding, if that is the cue."""
        if self.tf_map is not None or index > 0:
            return x
        return x * voice[:, None, None]


class MaskHead(nn.Module):
    """Masks the mixture's spectrum with a complex mask.

    The mask of a band is linear(tanh(linear(e + C r))), gated by sigmoids of as many
    values more. Without predictors there is no C.

    Arguments
    ---------
    bands : list of (int, int)
        How many bands, of how many bins each, from the lowest on.
    channels : int
        n, channels of a band.
    hidden_channels : int
        Of a band.
    refined_size : int or None
        Channels of a bin of r, 2, or n where r has been folded into e; None without
        predictors.
    lends : bool
        Whether r has been folded; see `nnet.mask.MaskHead`.
    kernel_size : int
        Frames of e that a folded r is made of.

    Example
    -------
    >>> head = MaskHead([(5, 2), (1, 7)], channels=8, hidden_channels=32)
    >>> spectrum = torch.rand(2, 50, 17, 2)
    >>> head(torch.rand(2, 50, 6, 8), None, spectrum).shape
    torch.Size([2, 50, 17, 2])
    """

    def __init__(
        self,
        bands,
        channels,
        hidden_channels,
        refined_size=None,
        lends=False,
        kernel_size=1,
    ):
        super().__init__()
        self.combine = None
        if refined_size is not None:
            sizes = (refined_size, channels)
            self.combine = BandCombination(bands, *sizes, lends, kernel_size)
        self.widen = BandLinear(bands, channels, hidden_channels)
        self.mask = BandLinear(bands, hidden_channels, 4, to_bins=True)

    def forward(self, e, r, representation, lent=None):
        """Masks.

        Arguments
        ---------
        e : torch.Tensor
            (batch, frames, bands, channels).
        r : torch.Tensor or None
            (batch, frames, bins, 2); None without predictors.
        representation : torch.Tensor
            W, (batch, frames, bins, 2).
        lent : torch.Tensor or None
            The e of a peer, see `nnet.mask.Combining`.

        Returns
        -------
        torch.Tensor
            M * W, (batch, frames, bins, 2).
        """
        if self.combine is not None:
            e = self.combine(e, r, lent)
        mask, gate = self.mask(torch.tanh(self.widen(e))).float().chunk(2, dim=-1)
        mask = mask * torch.sigmoid(gate)
        real, imaginary = mask.unbind(-1)
        of_real, of_imaginary = representation.unbind(-1)
        return torch.stack(
            (
                real * of_real - imaginary * of_imaginary,
                real * of_imaginary + imaginary * of_real,
            ),
            dim=-1,
        )
