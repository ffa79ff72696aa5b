"""Does the talker speak? Told for every second, by models with a level of their own.

Such a model is silent where the talker is, so that the level of its output against that
of the mixture tells.
"""

import numpy as np
import torch
from torch.nn import functional as F

PRESENT_DB = -20.0
"""Of the mixture: an output that is louder is taken for speech of the talker.

It is where the loss of absent talkers ends (`utils.signal.level_snr`): an output below
it is as good as silent.
"""

TENTHS = 10
"""Tenths of a second, in which the last one of a stream is heard."""


def tell_presence(estimates, mixtures):
    """Tells where there is an estimate.

    Arguments
    ---------
    estimates : np.ndarray or torch.Tensor
        Energy in every second, of any shape.
    mixtures : np.ndarray or torch.Tensor
        The same of the mixtures.

    Returns
    -------
    np.ndarray or torch.Tensor
        bool, True where the estimate is louder than `PRESENT_DB` of the mixture; in
        silence nobody is present.

    Example
    -------
    >>> tell_presence(np.array([1.0, 0.02, 0.0]), np.array([2.0, 2.0, 0.0])).tolist()
    [True, False, False]
    """
    return estimates > 10 ** (PRESENT_DB / 10) * mixtures


def present_share(presence):
    """Share of the seconds in which the talker speaks, in any channel.

    Arguments
    ---------
    presence : torch.Tensor
        bool, (seconds,) or (channels, seconds).

    Returns
    -------
    float

    Example
    -------
    >>> present_share(torch.tensor([[True, False], [True, False]]))
    0.5
    """
    return presence.reshape(-1, presence.shape[-1]).any(0).double().mean().item()


def second_energies(waveforms, sample_rate):
    """Energies of every second of what is whole in memory.

    Arguments
    ---------
    waveforms : torch.Tensor
        (..., time).
    sample_rate : int
        In Hz.

    Returns
    -------
    torch.Tensor
        In double precision, (..., seconds); the last second may be shorter.

    Example
    -------
    >>> second_energies(torch.tensor([[1.0, 1.0, 2.0, 0.0, 3.0]]), sample_rate=2)
    tensor([[2., 4., 9.]], dtype=torch.float64)
    """
    rest = -waveforms.shape[-1] % sample_rate
    padded = F.pad(waveforms.double(), (0, rest))
    return padded.square().unflatten(-1, (-1, sample_rate)).sum(-1)


def new_energies(*batch):
    """What `recent_energies` remembers of streams that have not begun."""
    return torch.zeros(*batch, 0, dtype=torch.float64), torch.zeros(*batch, 0)


def recent_energies(waveforms, before, sample_rate):
    """Energies of the last second of streams, in its tenths.

    Arguments
    ---------
    waveforms : torch.Tensor
        The next samples, (..., time).
    before : tuple of torch.Tensor
        What this gave before, or `new_energies`; it is not changed.
    sample_rate : int
        In Hz.

    Returns
    -------
    energies : torch.Tensor
        Of up to ten whole tenths, in double precision, (..., tenths).
    begun : torch.Tensor
        The samples after them, (..., time).

    Example
    -------
    >>> energies, begun = recent_energies(torch.ones(1, 5), new_energies(1), 20)
    >>> energies.tolist(), begun.tolist()
    ([[2.0, 2.0]], [[1.0]])
    """
    energies, begun = before
    size = sample_rate // TENTHS
    waveforms = torch.cat((begun, waveforms), dim=-1)
    whole = waveforms.shape[-1] // size * size
    tenths = waveforms[..., :whole].double().square().unflatten(-1, (-1, size)).sum(-1)
    energies = torch.cat((energies, tenths), dim=-1)[..., -TENTHS:]
    # Copies, as views would keep what is forgotten.
    return energies.clone(), waveforms[..., whole:].clone()


class Seconds:
    """Sums the energies of every second of a stream.

    Arguments
    ---------
    sample_rate : int
        In Hz.

    Example
    -------
    >>> seconds = Seconds(sample_rate=2)
    >>> for block in ([1.0], [1.0, 2.0, 0.0], [3.0]):
    ...     seconds.append(np.array(block)[:, None])
    >>> seconds.energies()[:, 0].tolist()
    [2.0, 4.0, 9.0]
    """

    def __init__(self, sample_rate):
        self.sample_rate = sample_rate
        self._whole, self._begun, self._samples = [], 0.0, 0

    def append(self, block):
        """Adds the next samples, (samples, channels)."""
        energies = np.square(block, dtype=np.float64)
        while len(energies):
            now, energies = np.split(energies, [self.sample_rate - self._samples])
            self._begun = self._begun + now.sum(axis=0)
            self._samples += len(now)
            if self._samples == self.sample_rate:
                # Numbers: arrays between the blocks would keep malloc from closing up.
                self._whole.append(self._begun.tolist())
                self._begun, self._samples = 0.0, 0

    def energies(self):
        """Of all seconds, of which the last may be shorter, (seconds, channels)."""
        rest = [self._begun] if self._samples else []
        return np.array([*self._whole, *rest])
