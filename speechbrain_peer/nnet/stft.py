"""The short-time Fourier transform and its inverse as encoder and decoder stages.

Representations are `(batch, frames, bins, 2)`: real and imaginary part.
"""

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_peer.nnet.filterbank import overlap_add
from speechbrain_peer.utils.signal import sample_mask

MIN_ENVELOPE = 1e-3
"""Least sum of squared windows to divide a sample by, against the tails of signals."""


class _Stft(nn.Module):
    """Frames of `window` samples, `hop` samples apart, under square roots of Hann's."""

    def __init__(self, window, hop):
        super().__init__()
        if window % (2 * hop):
            raise ValueError(f"window {window} is no multiple of twice the hop {hop}")
        self.hop = hop
        # Known from its length, so that no checkpoint holds it.
        self.register_buffer(
            "window", torch.hann_window(window).sqrt(), persistent=False
        )


class StftEncoder(_Stft):
    """Analyses waveforms; it has no parameters.

    Arguments
    ---------
    window : int
        Samples of a frame, a multiple of twice the hop.
    hop : int
        Samples between frames.

    Example
    -------
    >>> encoder = StftEncoder(window=512, hop=128)
    >>> representation, mask = encoder(torch.rand(2, 8000))
    >>> representation.shape
    torch.Size([2, 63, 257, 2])
    """

    def forward(self, waveforms, lens=None):
        """Analyses waveforms.

        Arguments
        ---------
        waveforms : torch.Tensor
            (batch, time). Zeros are supposed before and after.
        lens : torch.Tensor or None
            Relative lengths (batch,).

        Returns
        -------
        representation : torch.Tensor
            fp32, zero in padded frames, (batch, frames, window / 2 + 1, 2).
        frame_mask : torch.Tensor
            1 for frames whose centre lies in the true signal or at its end, 0 for the
            others, (batch, frames). The frames of a padded signal that it marks are
            those of the same signal unpadded.
        """
        batch, length = waveforms.shape
        reach = len(self.window) // 2
        representation = self._analyse(F.pad(waveforms, (reach, reach)))
        samples = sample_mask(lens, length, representation).sum(1, keepdim=True)
        centres = torch.arange(representation.shape[1], device=waveforms.device)
        frame_mask = (centres * self.hop <= samples).to(representation.dtype)
        frame_mask = frame_mask.expand(batch, -1)
        return representation * frame_mask[..., None, None], frame_mask

    def init_state(self, batch):
        """The samples before streams that have not begun: zeros, (batch, time)."""
        return self.window.new_zeros(batch, len(self.window) // 2)

    def step(self, waveforms, state):
        """Analyses the next samples of streams.

        Arguments
        ---------
        waveforms : torch.Tensor
            (batch, time), as few as one sample.
        state : torch.Tensor
            From `init_state` or the step before; it is not changed.

        Returns
        -------
        representation : torch.Tensor
            The frames that have become whole, (batch, frames, window / 2 + 1, 2);
            maybe none.
        state : torch.Tensor
            The samples of the frame that is not whole yet, (batch, time).
        """
        held = torch.cat((state, waveforms), dim=1)
        size = len(self.window)
        if held.shape[1] < size:
            return held.new_zeros(len(held), 0, size // 2 + 1, 2), held
        representation = self._analyse(held)
        done = representation.shape[1] * self.hop
        # A copy, as a view would keep all of the samples.
        return representation, held[:, done:].clone()

    def finish(self, state):
        """The frames at the end of streams, whose second half is not all there."""
        return self._analyse(F.pad(state, (0, len(self.window) // 2)))

    def _analyse(self, samples):
        frames = samples.unfold(-1, len(self.window), self.hop)
        # In fp32 also under autocast: bf16 has too few bits for a waveform.
        with torch.autocast(samples.device.type, enabled=False):
            spectra = torch.fft.rfft(frames.float() * self.window)
        return torch.view_as_real(spectra)


def magnitude(spectra):
    """The magnitudes of spectra, fp32.

    Arguments
    ---------
    spectra : torch.Tensor
        (..., bins, 2).

    Returns
    -------
    torch.Tensor
        (..., bins).

    Example
    -------
    >>> magnitude(torch.tensor([[3.0, -4.0]]))
    tensor([5.])
    """
    return torch.linalg.vector_norm(spectra.float(), dim=-1)


class StftDecoder(_Stft):
    """Synthesizes waveforms, the inverse of `StftEncoder`; it has no parameters.

    Arguments
    ---------
    window : int
        Samples of a frame, a multiple of twice the hop.
    hop : int
        Samples between frames.

    Example
    -------
    >>> encoder, decoder = StftEncoder(512, 128), StftDecoder(512, 128)
    >>> waveforms = torch.randn(2, 8001)
    >>> again = decoder(*encoder(waveforms)[:1], length=8001)
    >>> torch.allclose(again[:, 0], waveforms, atol=1e-5)
    True
    """

    def forward(self, representation, length, frame_mask=None):
        """Synthesizes waveforms.

        Arguments
        ---------
        representation : torch.Tensor
            (batch, frames, window / 2 + 1, 2).
        length : int
            Samples of the output.
        frame_mask : torch.Tensor or None
            (batch, frames), the encoder's.

        Returns
        -------
        torch.Tensor
            fp32, (batch, scales, time) with one scale.
        """
        size = len(self.window)
        frames = self._synthesize(representation)
        windows = self.window.square().expand(1, frames.shape[1], -1)
        if frame_mask is not None:
            frames = frames * frame_mask[..., None]
            # What a sample is divided by counts true frames only, as alone.
            windows = windows * frame_mask[..., None]
        # The first frame's centre is the first sample.
        padded = size // 2 + length
        waveforms = overlap_add(frames, self.hop, padded)
        envelope = overlap_add(windows, self.hop, padded).clamp(min=MIN_ENVELOPE)
        return (waveforms / envelope)[:, None, size // 2 :]

    def init_state(self, batch):
        """The tails of streams that have not begun.

        A tail begins with the next sample of the output and ends with the last frame:
        that of the first is half a window earlier than that of later ones.

        Arguments
        ---------
        batch : int
            How many streams.

        Returns
        -------
        frames, windows : torch.Tensor
            What later frames add to: samples and squared windows, (batch, time).
        """
        zeros = self.window.new_zeros(batch, len(self.window) // 2 - self.hop)
        return zeros, zeros

    def step(self, representation, state):
        """Synthesizes from the next frames of streams.

        Arguments
        ---------
        representation : torch.Tensor
            (batch, frames, window / 2 + 1, 2); there may be no frame at all.
        state : tuple
            From `init_state` or the step before; it is not changed.

        Returns
        -------
        waveforms : torch.Tensor
            The samples that are complete, (batch, scales, time) with one scale.
        state : tuple
            For the next step.
        """
        if not representation.shape[1]:
            return representation.new_zeros(len(representation), 1, 0), state
        frames = self._synthesize(representation)
        done = frames.shape[1] * self.hop
        length = done + len(self.window) - self.hop
        # Before the first sample there is nothing to give.
        ahead = length - done - state[0].shape[1]
        done = max(done, ahead)
        windows = self.window.square().expand_as(frames)
        samples, envelope = (
            overlap_add(parts, self.hop, length)[:, ahead:]
            + F.pad(tail, (0, length - ahead - tail.shape[1]))
            for parts, tail in zip((frames, windows), state, strict=True)
        )
        done -= ahead
        waveforms = samples[:, :done] / envelope[:, :done].clamp(min=MIN_ENVELOPE)
        tails = samples[:, done:].clone(), envelope[:, done:].clone()
        return waveforms[:, None], tails

    def finish(self, state):
        """The samples up to the end of the last frame, (batch, scales, time)."""
        samples, envelope = state
        return (samples / envelope.clamp(min=MIN_ENVELOPE))[:, None]

    def _synthesize(self, representation):
        with torch.autocast(representation.device.type, enabled=False):
            spectra = torch.view_as_complex(representation.float().contiguous())
            return torch.fft.irfft(spectra, len(self.window)) * self.window
