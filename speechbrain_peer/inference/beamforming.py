"""A beamformer led by what a model extracts, for microphones of one room.

Filters let the target through as one microphone hears it, and as little of the rest as
can be (Souden, Benesty and Affes, 2010). They need no more than to know where and when
the target is; that tell the estimates. The frame before of each microphone counts as
that of a further one (as in multi-frame MVDR, Huang and Benesty, 2012): a room rings
for longer than a window.
"""

import numpy as np
import torch
from torch import nn

WINDOW, HOP = 0.128, 0.032  # seconds; a room rings for longer than usual windows

SAME = 0.1
"""Share of the energy that the rests of two recordings have in common, from which on
they hold the same others. On 24 dev mixtures it is up to 0.06 in 95 % of recordings in
which others talk over the target, from 0.11 on in 95 % between phones in a room, and
from 0.62 on in all on one device."""

LEAST = 1e-3
"""Share of a recording's energy that its rest has to have."""


def beamform(mixtures, estimates, sample_rate, references=(0,)):
    """The minimum variance distortionless response beamformer of Souden et al.

    A mask for each microphone tells which share of the energy the estimate has; their
    geometric mean, which is low where one of them is, gives the covariances of the
    talker and of the rest.

    Arguments
    ---------
    mixtures : np.ndarray
        (microphones, time).
    estimates : np.ndarray
        Each microphone's own, at the level in the mixture, (microphones, time).
    sample_rate : int
        In Hz.
    references : iterable of int
        The microphones whose target is let through, by one beam each.

    Returns
    -------
    np.ndarray
        What these hear of the talker, float32, (references, time); up to 4 dB quieter,
        as of two frames it is not quite one signal.
    """
    from torchaudio.functional import apply_beamforming, mvdr_weights_souden

    heard, found = (_spectra(x, sample_rate) for x in (mixtures, estimates))
    energy, rest = found.abs().square(), (heard - found).abs().square()
    shares = energy / (energy + rest).clamp(min=1e-12)
    mask = shares.prod(0) ** (1 / len(shares))
    before = nn.functional.pad(heard, (1, 0))[..., :-1]
    seen = torch.cat((heard, before))
    talker, others = (
        torch.einsum("cft,dft->fcd", share * seen, seen.conj())
        for share in (mask, 1 - mask)
    )
    filters = (mvdr_weights_souden(talker, others, k) for k in references)
    beams = torch.stack([apply_beamforming(weights, seen) for weights in filters])
    length = mixtures.shape[-1]
    return torch.istft(beams, **_stft(sample_rate), length=length).float().numpy()


def hold_the_same(mixtures, estimates, sample_rate):
    """Tells which recordings hold the same others as the first: microphones of a room.

    There a filter makes some of one's rest of the other's, where they come from one
    talker by two ways; of different talkers it makes nothing.

    Arguments
    ---------
    mixtures : np.ndarray
        (recordings, time).
    estimates : np.ndarray
        Of the target, at the level in the mixture, (recordings, time).
    sample_rate : int
        In Hz.

    Returns
    -------
    np.ndarray
        bool, (recordings,), True for the first.

    Example
    -------
    >>> first, second = np.random.default_rng(0).standard_normal((2, 16000))
    >>> mixtures = np.stack((first, np.roll(first, 9), second))
    >>> hold_the_same(mixtures, 0 * mixtures, 8000)
    array([ True,  True, False])
    """
    first = np.arange(len(mixtures)) == 0
    if mixtures.shape[-1] < WINDOW * sample_rate:
        return first
    spectra = _spectra(mixtures - estimates, sample_rate)
    cross = (spectra[0] * spectra.conj()).mean(-1).abs().square()
    energies = spectra.abs().square().mean(-1)
    shared = (cross / energies.clamp(min=1e-12)).sum(-1)
    rests = energies.sum(-1)
    # Of unlike ones, too, a filter makes as much as few windows leave it free to.
    by_chance = WINDOW * sample_rate / mixtures.shape[-1]
    same = shared > (SAME + by_chance) * rests[0]
    # Else there is nothing that a beam could take away.
    whole = _spectra(mixtures, sample_rate).abs().square().mean(-1).sum(-1)
    same &= (rests > LEAST * whole) & (rests[0] > LEAST * whole[0])
    return same.numpy() | first


def _stft(sample_rate):
    size = round(WINDOW * sample_rate)
    window = torch.hann_window(size, dtype=torch.double)
    return {"n_fft": size, "hop_length": round(HOP * sample_rate), "window": window}


def _spectra(signals, sample_rate):
    signals = torch.from_numpy(np.float64(signals))
    return torch.stft(signals, **_stft(sample_rate), return_complex=True)
