"""Resemblyzer's speaker encoder, from the weights that its package holds.

The package itself is not imported: it would need librosa, numba and a compiler for
`webrtcvad`. What it computes is small: mel spectra, three LSTM layers, a linear one
(GE2E, https://arxiv.org/abs/1710.10467), over windows of 1.6 s.
"""

import math
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks

from speechbrain_peer.utils.files import DataError

SAMPLE_RATE = 16000
SIZE = 256
"""Of an embedding."""

N_FFT, HOP, N_MELS = 400, 160, 40
WINDOW = 160
"""Frames that the network hears at once."""
WINDOW_HOP = 77
"""Frames from one window to the next: 1.3 in a second."""
LEAST_COVERAGE = 0.75
"""Of a last window: one that would be emptier is left out."""
LEVEL_DB = -30.0
"""Of what is heard, below full scale; the spectra are no logarithms."""

INSTALL = "pip install --no-deps resemblyzer"


def load_resemblyzer():
    """Loads the encoder; no code of the package is run.

    Returns
    -------
    VoiceEncoder

    Raises
    ------
    ImportError
        If the package is not installed.
    DataError
        If its weights are not those of the encoder.
    """
    spec = find_spec("resemblyzer")
    if spec is None or spec.origin is None:
        raise ImportError(
            "the judge resemblyzer needs the package of this name, of which only the "
            f"weights are read: {INSTALL}"
        )
    path = Path(spec.origin).with_name("pretrained.pt")
    encoder = VoiceEncoder()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        weights = content["model_state"]
        encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    # Whatever a damaged or another file raises.
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read as the weights of Resemblyzer 0.1: {INSTALL}"
        ) from error
    return encoder.eval()


class VoiceEncoder(nn.Module):
    """The network, with the names of its weights.

    Example
    -------
    >>> VoiceEncoder()(torch.randn(1, 40000)).shape
    torch.Size([1, 256])
    """

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(N_MELS, SIZE, 3, batch_first=True)
        self.linear = nn.Linear(SIZE, SIZE)
        scale = dict.fromkeys(("norm", "mel_scale"), "slaney")
        bank = melscale_fbanks(
            N_FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, N_MELS, SAMPLE_RATE, **scale
        )
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)

    def forward(self, waveforms):
        """Embeds speech.

        Arguments
        ---------
        waveforms : torch.Tensor
            (batch, time), at `SAMPLE_RATE`, of any level.

        Returns
        -------
        torch.Tensor
            (batch, embedding), of length 1.
        """
        waveforms = waveforms.to(self.window)
        starts = window_starts(waveforms.shape[1])
        missing = (starts[-1] + WINDOW) * HOP - waveforms.shape[1]
        spectra = self.spectra(F.pad(_set_level(waveforms), (0, max(0, missing))))
        windows = [spectra[:, start : start + WINDOW] for start in starts]
        _, (states, _) = self.lstm(torch.cat(windows))
        embeddings = F.normalize(F.relu(self.linear(states[-1])), dim=1)
        embeddings = embeddings.unflatten(0, (len(starts), -1)).mean(0)
        return F.normalize(embeddings, dim=1)

    def spectra(self, waveforms):
        """Mel spectra as librosa makes them, (batch, frames, mels)."""
        spectra = torch.stft(
            waveforms,
            N_FFT,
            HOP,
            window=self.window,
            pad_mode="constant",
            return_complex=True,
        )
        return spectra.abs().square().transpose(1, 2) @ self.bank


def window_starts(samples):
    """The frames at which windows begin.

    Arguments
    ---------
    samples : int
        Of the waveform.

    Returns
    -------
    list of int

    Example
    -------
    >>> window_starts(16000), window_starts(4 * 16000)
    ([0], [0, 77, 154, 231])
    """
    frames = math.ceil((samples + 1) / HOP)
    starts = list(range(0, max(1, frames - WINDOW + WINDOW_HOP + 1), WINDOW_HOP))
    coverage = (samples / HOP - starts[-1]) / WINDOW
    return starts[:-1] if coverage < LEAST_COVERAGE and len(starts) > 1 else starts


def _set_level(waveforms):
    """Silence stays silent."""
    rms = waveforms.square().mean(1, keepdim=True).sqrt()
    wanted = 10 ** (LEVEL_DB / 20)
    return waveforms * torch.where(rms > 0, wanted / rms, 0.0)
