"""Changes the sample rate of streams with a delay of about a millisecond.

`soxr`, which resamples files, gives its samples in bursts: they lag 80 to 175 ms behind
between 8 and 48 kHz, measured at its quality HQ, and its state cannot be copied. This
one is the polyphase filter of `scipy.signal.resample_poly`, which also renders the data
to train on, with its state in the open.
"""

import math

import numpy as np
import torch
from scipy.signal import firwin, upfirdn

from speechbrain_peer.utils.audio import SAMPLE_RATES

HALF_WIDTH = 10
"""Samples of the lower rate that the filter reads ahead, as `resample_poly` does."""

KAISER_BETA = 5.0
"""The filter's window, `resample_poly`'s."""

LARGEST_RATIO = 10_000
"""Between a stream's rate and the model's, as a fraction of whole numbers; 44.1 and 16
kHz have 441. What resamples is as long."""


def check_rate(model_rate, rate):
    """Refuses rates that no audio has, or that take a filter of seconds to resample.

    Arguments
    ---------
    model_rate : int
        In Hz.
    rate : int or float
        Of a stream, in Hz.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If it cannot be the rate of a stream.

    Example
    -------
    >>> check_rate(16000, 44100.0)
    44100
    """
    if rate not in SAMPLE_RATES:
        raise ValueError(
            f"rate {rate}: audio has {SAMPLE_RATES[0]} to {SAMPLE_RATES[-1]} Hz"
        )
    rate = int(rate)
    if max(rate, model_rate) // math.gcd(rate, model_rate) > LARGEST_RATIO:
        raise ValueError(
            f"rate {rate}: it has no simple ratio to the {model_rate} Hz of the model; "
            "use a common one, such as 16000, 44100 or 48000 Hz"
        )
    return rate


class StreamResampler:
    """Changes the sample rate of streams whose samples come bit by bit.

    No sample is shifted in time; it comes out once the `HALF_WIDTH` samples of the
    lower rate after it are there. The result is that of `scipy.signal.resample_poly`.

    Arguments
    ---------
    from_rate : int
        In Hz.
    to_rate : int
        In Hz.

    Example
    -------
    >>> resampler = StreamResampler(48000, 8000)
    >>> state = resampler.init_state(batch=1)
    >>> resampled, state = resampler.step(torch.zeros(1, 480), state)
    >>> resampled.shape, resampler.finish(state).shape
    (torch.Size([1, 70]), torch.Size([1, 10]))
    """

    def __init__(self, from_rate, to_rate):
        divisor = math.gcd(from_rate, to_rate)
        self.up, self.down = to_rate // divisor, from_rate // divisor
        most = max(self.up, self.down)
        self.reach = HALF_WIDTH * most
        window = ("kaiser", KAISER_BETA)
        taps = self.up * firwin(2 * self.reach + 1, 1 / most, window=window)
        # `upfirdn` computes every `down`-th sample: so the filter's delay is one.
        lead = -self.reach % self.down
        self.taps = np.pad(taps, (lead, 0)).astype(np.float32)
        self.delay = (self.reach + lead) // self.down

    def completed(self, taken):
        """How many samples are out when so many, an int or an array, are in."""
        return np.maximum(0, -((self.reach - taken * self.up) // self.down))

    def init_state(self, batch):
        """The state of streams that have not begun.

        Arguments
        ---------
        batch : int
            How many streams.

        Returns
        -------
        held : torch.Tensor
            Samples that the filter still reads, (batch, time).
        start : int
            Position of the first of them.
        given : int
            Samples that have come out.
        """
        return torch.zeros(batch, 0), 0, 0

    def step(self, waveforms, state):
        """Resamples the next samples of streams.

        Arguments
        ---------
        waveforms : torch.Tensor
            fp32 on the CPU, (batch, time).
        state : tuple
            From `init_state` or the step before; it is not changed.

        Returns
        -------
        waveforms : torch.Tensor
            (batch, time), as many as have become complete.
        state : tuple
            For the next step.
        """
        held, start, given = state
        held = torch.cat((held, waveforms), dim=1)
        ready = int(self.completed(start + held.shape[1]))
        if ready == given:
            return held[:, :0], (held, start, given)
        first = given + self.delay - start // self.down * self.up
        filtered = upfirdn(self.taps, held.numpy(), self.up, self.down)
        resampled = filtered[:, first : first + ready - given]
        # What the next sample reads, from a position that `upfirdn` begins at.
        needed = -((self.reach - ready * self.down) // self.up)
        after = max(start, needed // self.down * self.down)
        # Copies, as views would keep all of the samples.
        held = held[:, after - start :].clone()
        return torch.from_numpy(resampled.copy()), (held, after, ready)

    def finish(self, state):
        """The last samples: in all as many as `resampled_length` tells, (batch, time).

        Arguments
        ---------
        state : tuple
            From the last step.
        """
        held, start, given = state
        taken = start + held.shape[1]
        left = -(-taken * self.up // self.down) - given
        silence = held.new_zeros(len(held), (self.reach + self.down) // self.up + 1)
        return self.step(silence, state)[0][:, :left]
