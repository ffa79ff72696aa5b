"""TD-SpeakerBeam: a Conv-TasNet whose separator adapts to an enrolled speaker.

Delcroix et al., "Improving speaker discrimination of target speech extraction with
time-domain SpeakerBeam", ICASSP 2020. Encoder and decoder are in `filterbank`, the
mask head, which peer learning extends, in `mask`.
"""

import torch
from torch import nn

from speechbrain_peer.nnet.adaptation import Adaptation
from speechbrain_peer.nnet.conv_block import prelu
from speechbrain_peer.nnet.filterbank import Encoder
from speechbrain_peer.nnet.tcn import TemporalConvNet


class Separator(nn.Module):
    """Turns a mixture's representation into the one before the mask, e.

    Arguments
    ---------
    n_filters : int
        N, channels of the mixture's representation.
    channels : int
        B, channels of residual and skip connections, and of e.
    hidden_channels : int
        H.
    n_blocks : int
        X, blocks in a repeat.
    n_repeats : int
        R.
    adapted_block : int
        The block, counted from 0, whose connections are adapted.
    adaptation : str
        `mul`, `muladd` or `concat`.
    embedding_size : int
        Channels of the embedding for each of the two connections.
    causal : bool
        Whether a frame depends on the mixture up to it only, for live use.

    Raises
    ------
    ValueError
        If there is no such block, which would ignore the enrollment.

    Example
    -------
    >>> separator = Separator(32, 8, 16, 3, 2, 2, "mul", embedding_size=8)
    >>> mask = torch.ones(2, 50)
    >>> separator(torch.rand(2, 50, 32), torch.rand(2, 16), mask).shape
    torch.Size([2, 50, 8])
    """

    def __init__(
        self,
        n_filters,
        channels,
        hidden_channels,
        n_blocks,
        n_repeats,
        adapted_block,
        adaptation,
        embedding_size,
        causal=False,
    ):
        super().__init__()
        if not 0 <= adapted_block < n_blocks * n_repeats:
            raise ValueError(
                f"adapted_block {adapted_block} is none of the "
                f"{n_blocks * n_repeats} blocks: the enrollment would be ignored"
            )
        self.adapted_block = adapted_block
        self.tcn = TemporalConvNet(
            n_filters,
            channels,
            hidden_channels,
            channels,
            n_blocks,
            n_repeats,
            causal,
        )
        self.adaptation = Adaptation(adaptation, channels, embedding_size)

    def forward(self, representation, embedding, frame_mask):
        """Separates.

        Arguments
        ---------
        representation : torch.Tensor
            W, (batch, frames, filters).
        embedding : torch.Tensor
            a, (batch, 2 * embedding_size).
        frame_mask : torch.Tensor
            (batch, frames).

        Returns
        -------
        torch.Tensor
            e, (batch, frames, channels).
        """

        return self.tcn(representation, frame_mask, self._adaptation_to(embedding))

    def init_state(self, batch):
        """As `TemporalConvNet.init_state`: None unless the separator is causal."""
        return self.tcn.init_state(batch)

    def step(self, representation, embedding, state):
        """Separates the next frames of streams, of a causal separator.

        Arguments
        ---------
        representation : torch.Tensor
            W, (batch, frames, filters); there may be no frame at all.
        embedding : torch.Tensor
            a, (batch, 2 * embedding_size).
        state : tuple
            From `init_state` or the step before; it is not changed.

        Returns
        -------
        e : torch.Tensor
            (batch, frames, channels).
        state : tuple
            For the next step.
        """
        return self.tcn.step(representation, state, self._adaptation_to(embedding))

    def _adaptation_to(self, embedding):
        def adapt(index, residual, skip):
            if index != self.adapted_block:
                return residual, skip
            return self.adaptation(residual, skip, embedding)

        return adapt


class SpeakerEncoder(nn.Module):
    """Turns an enrollment into the embedding of its speaker, a.

    It has a filterbank of its own and one repeat of blocks, whose output is
    averaged over the true frames.

    Arguments
    ---------
    n_filters : int
        N of its filterbank.
    kernel_size : int
        Samples of a frame.
    stride : int
        Samples between frames.
    channels : int
        B.
    hidden_channels : int
        H.
    n_blocks : int
        X.
    embedding_size : int
        Channels for each of the two connections that are adapted.

    Example
    -------
    >>> speaker_encoder = SpeakerEncoder(32, 16, 8, 8, 16, 3, embedding_size=8)
    >>> speaker_encoder(torch.rand(2, 4000)).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        n_filters,
        kernel_size,
        stride,
        channels,
        hidden_channels,
        n_blocks,
        embedding_size,
    ):
        super().__init__()
        self.encoder = Encoder(n_filters, kernel_size, stride)
        self.tcn = TemporalConvNet(
            n_filters, channels, hidden_channels, channels, n_blocks, n_repeats=1
        )
        self.slope = nn.Parameter(torch.full((1,), 0.25))
        self.linear = nn.Linear(channels, 2 * embedding_size)
        self.embedding_size = self.linear.out_features

    def forward(self, enrollments, enrollment_lens=None, mixture_encoder=None):
        """Embeds.

        Arguments
        ---------
        enrollments : torch.Tensor
            (batch, time).
        enrollment_lens : torch.Tensor or None
            Relative lengths (batch,).
        mixture_encoder : object
            Not used: it has a filterbank of its own.

        Returns
        -------
        torch.Tensor
            (batch, 2 * embedding_size).
        """
        representation, mask = self.encoder(enrollments, enrollment_lens)
        features = prelu(self.tcn(representation, mask), self.slope)
        # The linear layer and the mean swap places: it then runs on one row an item.
        mean = (features * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.linear(mean)
