"""The learned filterbanks between waveforms and representations.

Representations are channels-last, `(batch, frames, filters)`, in every stage:
a linear layer then is one matrix product over contiguous rows.
"""

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_peer.nnet.products import linear
from speechbrain_peer.utils.signal import sample_mask


class _Filterbank(nn.Module):
    """Filters of `kernel_size` samples, `stride` samples apart."""

    def __init__(self, n_filters, kernel_size, stride):
        super().__init__()
        if kernel_size % stride:
            raise ValueError(
                f"kernel_size {kernel_size} is no multiple of stride {stride}"
            )
        self.kernel_size, self.stride = kernel_size, stride
        self.weight = nn.Parameter(torch.empty(n_filters, kernel_size))
        nn.init.xavier_normal_(self.weight)


class Encoder(_Filterbank):
    """Free analysis filterbank without bias or activation.

    Arguments
    ---------
    n_filters : int
        N, channels of the representation.
    kernel_size : int
        Samples of a frame.
    stride : int
        Samples between frames.

    Example
    -------
    >>> encoder = Encoder(n_filters=64, kernel_size=16, stride=8)
    >>> representation, mask = encoder(torch.rand(2, 8000))
    >>> representation.shape
    torch.Size([2, 999, 64])
    """

    def forward(self, waveforms, lens=None):
        """Analyses waveforms.

        Arguments
        ---------
        waveforms : torch.Tensor
            (batch, time). Shorter than one frame is padded to one.
        lens : torch.Tensor or None
            Relative lengths (batch,).

        Returns
        -------
        representation : torch.Tensor
            (batch, frames, filters).
        frame_mask : torch.Tensor
            1 for frames that lie whole in the true signal, 0 for the others,
            (batch, frames). The frames of a padded signal that it marks are
            those of the same signal unpadded.
        """
        batch, length = waveforms.shape
        if length < self.kernel_size:
            waveforms = F.pad(waveforms, (0, self.kernel_size - length))
        representation = self._analyse(waveforms)
        mask = sample_mask(lens, length, representation).expand(batch, -1)
        last = torch.arange(representation.shape[1], device=mask.device) * self.stride
        last = (last + self.kernel_size - 1).clamp(max=length - 1)
        # The first frame always counts: a signal has at least one.
        frame_mask = mask[:, last].index_fill(1, last.new_zeros(1), 1.0)
        return representation, frame_mask

    def init_state(self, batch):
        """The state of streams that have not begun.

        Arguments
        ---------
        batch : int
            How many streams.

        Returns
        -------
        held : torch.Tensor
            Samples of the frame that is not whole yet, (batch, time).
        begun : torch.Tensor
            Whether there has been a frame, (batch,).
        """
        return self.weight.new_zeros(batch, 0), self.weight.new_zeros(batch).bool()

    def step(self, waveforms, state):
        """Analyses the next samples of streams.

        Arguments
        ---------
        waveforms : torch.Tensor
            (batch, time), as few as one sample.
        state : tuple
            From `init_state` or the step before; it is not changed.

        Returns
        -------
        representation : torch.Tensor
            The frames that have become whole, (batch, frames, filters); maybe none.
        state : tuple
            For the next step.
        """
        held, begun = state
        held = torch.cat((held, waveforms), dim=1)
        if held.shape[1] < self.kernel_size:
            return held.new_zeros(len(held), 0, len(self.weight)), (held, begun)
        representation = self._analyse(held)
        done = representation.shape[1] * self.stride
        # A copy, as a view would keep all of the samples.
        return representation, (held[:, done:].clone(), torch.ones_like(begun))

    def finish(self, state):
        """The one frame of streams that are shorter, (batch, 1, filters); or none."""
        held, begun = state
        if begun.any() or not held.shape[1]:
            return held.new_zeros(len(held), 0, len(self.weight))
        return self(held)[0]

    def _analyse(self, waveforms):
        frames = waveforms.unfold(-1, self.kernel_size, self.stride)
        # In fp32 also under autocast: bf16 has too few bits for a waveform.
        with torch.autocast(waveforms.device.type, enabled=False):
            return linear(frames.float(), self.weight.float())


class Decoder(_Filterbank):
    """Synthesis filterbank: overlap-added frames, without bias.

    Arguments
    ---------
    n_filters : int
        N, channels of the representation.
    kernel_size : int
        Samples of a frame, a multiple of the stride.
    stride : int
        Samples between frames.

    Example
    -------
    >>> decoder = Decoder(n_filters=64, kernel_size=16, stride=8)
    >>> decoder(torch.rand(2, 999, 64), length=8000).shape
    torch.Size([2, 1, 8000])
    """

    def forward(self, representation, length, frame_mask=None):
        """Synthesizes waveforms.

        Arguments
        ---------
        representation : torch.Tensor
            (batch, frames, filters).
        length : int
            Samples of the output; what lies past the last frame is zero.
        frame_mask : torch.Tensor or None
            (batch, frames), the encoder's.

        Returns
        -------
        torch.Tensor
            (batch, scales, time) with one scale.
        """
        frames = self._synthesize(representation)
        if frame_mask is not None:
            frames = frames * frame_mask[..., None]
        return overlap_add(frames, self.stride, length)[:, None]

    def init_state(self, batch):
        """The tail of streams that have not begun: zeros."""
        return self.weight.new_zeros(batch, self.kernel_size - self.stride)

    def step(self, representation, state):
        """Synthesizes from the next frames of streams.

        Arguments
        ---------
        representation : torch.Tensor
            (batch, frames, filters); there may be no frame at all.
        state : torch.Tensor
            The tail: samples that later frames add to, (batch, kernel - stride).

        Returns
        -------
        waveforms : torch.Tensor
            The samples that are complete, (batch, scales, frames * stride) with one
            scale.
        state : torch.Tensor
            For the next step.
        """
        frames = self._synthesize(representation)
        done = frames.shape[1] * self.stride
        waveforms = overlap_add(frames, self.stride, done + state.shape[1])
        waveforms = waveforms + F.pad(state, (0, done))
        return waveforms[:, None, :done], waveforms[:, done:].clone()

    def finish(self, state):
        """The samples after the last frame's step, (batch, scales, time)."""
        return state[:, None]

    def _synthesize(self, representation):
        with torch.autocast(representation.device.type, enabled=False):
            return linear(representation.float(), self.weight.float().T)


def overlap_add(frames, stride, length):
    """Adds frames up at their places.

    Arguments
    ---------
    frames : torch.Tensor
        (batch, frames, kernel), the kernel a multiple of the stride.
    stride : int
        Samples between frames.
    length : int
        Samples of the output.

    Returns
    -------
    torch.Tensor
        (batch, time).

    Example
    -------
    >>> overlap_add(torch.ones(1, 3, 4), stride=2, length=9)
    tensor([[1., 1., 2., 2., 2., 2., 1., 1., 0.]])
    """
    batch, n_frames, kernel = frames.shape
    hops = kernel // stride
    # Part k of each frame lies k hops later: shifted rows, then a plain sum.
    parts = frames.view(batch, n_frames, hops, stride).unbind(2)
    rows = [F.pad(part, (0, 0, k, hops - 1 - k)) for k, part in enumerate(parts)]
    waveforms = sum(rows).flatten(1)
    return F.pad(waveforms, (0, length - waveforms.shape[1]))
