"""The short-time Fourier transform and its inverse as encoder and decoder stages.

Representations are `(batch, frames, bins, 2)`: real and imaginary part.
"""

import torch
from torch import nn

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
        # In fp32 also under autocast: bf16 has too few bits for a waveform.
        with torch.autocast(waveforms.device.type, enabled=False):
            spectra = torch.stft(
                waveforms.float(),
                len(self.window),
                self.hop,
                window=self.window,
                pad_mode="constant",
                return_complex=True,
            )
        representation = torch.view_as_real(spectra).transpose(1, 2).contiguous()
        samples = sample_mask(lens, length, representation).sum(1, keepdim=True)
        centres = torch.arange(representation.shape[1], device=waveforms.device)
        frame_mask = (centres * self.hop <= samples).to(representation.dtype)
        frame_mask = frame_mask.expand(batch, -1)
        return representation * frame_mask[..., None, None], frame_mask


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
        with torch.autocast(representation.device.type, enabled=False):
            spectra = torch.view_as_complex(representation.float().contiguous())
            frames = torch.fft.irfft(spectra, size) * self.window
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
