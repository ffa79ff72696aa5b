"""Layer norms over true frames and channels, and the linear layers behind them.

A norm is global, over a whole item, or cumulative: of a frame and all before it. What a
cumulative norm has to remember of a stream are its *totals*, (batch, 3): the sum of the
values, the sum of their squares, and the number of frames. They are in double
precision, as sums that run over hours of frames.
"""

import torch
from torch.nn import functional as F

from speechbrain_peer.nnet.products import linear

NORM_EPS = 1e-8
"""Added to the variance, unless told otherwise."""


def new_totals(batch, like):
    """The totals of streams that have not begun.

    Arguments
    ---------
    batch : int
        How many streams.
    like : torch.Tensor
        Its device is used.

    Returns
    -------
    torch.Tensor
        (batch, 3).
    """
    return like.new_zeros(batch, 3, dtype=torch.float64)


class LayerNorm:
    """A layer norm's statistics from sums over channels, (batch, frames, 2), and back.

    The sums are those of the values and of their squares. Statistics are (batch, 1),
    or of every frame, (batch, frames), if the norm is cumulative.

    Arguments
    ---------
    frame_mask : torch.Tensor
        1 for true frames, 0 for padding, (batch, frames).
    channels : int
        Values of a frame.
    eps : float
        Added to the variance.
    past : torch.Tensor or None
        Totals before the first frame, which make it cumulative.
    """

    def __init__(self, frame_mask, channels, eps=NORM_EPS, past=None):
        self.frame_mask, self.channels, self.eps = frame_mask, channels, eps
        self.past, self.totals = past, None

    def statistics(self, sums):
        """Mean and reciprocal deviation; `totals` are those after the last frame."""
        # Written for few calls, which are what the short steps of a stream cost.
        rows = F.pad(sums, (0, 1), value=1.0) * self.frame_mask.unsqueeze(-1)
        if self.past is None:
            totals = rows.sum(1, keepdim=True)
        else:
            totals = torch.cat((self.past.unsqueeze(1), rows), dim=1).cumsum(1)
            # A copy, as a view would keep all frames.
            self.totals, totals = totals[:, -1].clone(), totals[:, 1:].to(rows.dtype)
        total, total_power, frames = totals.unbind(-1)
        # A first frame that is padding has no values, which is no division by zero.
        self.count = frames.detach().clamp(min=1) * self.channels
        mean = total / self.count
        variance = torch.addcmul(total_power / self.count, mean, mean, value=-1)
        return mean, torch.rsqrt(variance.clamp(min=0) + self.eps)

    def input_grad(self, grad_sums, mean, rstd):
        """What the statistics add to the gradient of the input x: offset + factor x.

        `grad_sums` are those of the gradient of the normed value and of its product
        with x. Both results are (batch, frames).
        """
        grad, product = grad_sums.unbind(-1)
        power_grad = -(rstd**3) * (product - mean * grad) / self.count
        offset = -rstd * grad / self.count - power_grad * mean
        return self._from_now(offset), self._from_now(power_grad)

    def _from_now(self, rows):
        if self.past is None:
            sums = rows.sum(1, keepdim=True)
        else:
            sums = rows.flip(1).cumsum(1, dtype=torch.float64).flip(1).to(rows.dtype)
        return sums * self.frame_mask


def moments(x, norm):
    """Mean and reciprocal deviation over true frames and channels.

    Arguments
    ---------
    x : torch.Tensor
        (batch, frames, channels).
    norm : LayerNorm
        Of these frames.

    Returns
    -------
    mean, rstd : torch.Tensor
        At least fp32, (batch, 1, 1), or (batch, frames, 1) if cumulative.
    """
    if x.dtype == torch.bfloat16 or x.dtype == torch.float16:
        x = x.float()
    # Rows first: short sums keep fp32 exact over minutes of frames.
    sums = torch.stack((x.sum(-1), x.square().sum(-1)), dim=-1)
    return tuple(statistic[..., None] for statistic in norm.statistics(sums))


def norm_linear(x, norm, gamma, beta, weight, bias):
    """`linear(layer_norm(x))` without writing the normalized x.

    Arguments
    ---------
    x : torch.Tensor
        (batch, frames, channels).
    norm : LayerNorm
        Of these frames.
    gamma : torch.Tensor
        The norm's factor, (channels,).
    beta : torch.Tensor
        The norm's offset, (channels,).
    weight : torch.Tensor
        The linear layer's, (outputs, channels).
    bias : torch.Tensor
        The linear layer's, (outputs,).

    Returns
    -------
    torch.Tensor
        (batch, frames, outputs).

    Example
    -------
    >>> x, norm = torch.rand(1, 5, 2), LayerNorm(torch.ones(1, 5), channels=2)
    >>> y = norm_linear(x, norm, torch.ones(2), torch.zeros(2), torch.eye(2), 0.0)
    >>> torch.allclose(y, F.layer_norm(x, x.shape[1:], eps=NORM_EPS), atol=1e-5)
    True
    """
    mean, rstd = moments(x, norm)
    product = linear(x, weight * gamma).to(mean.dtype)
    return rstd * product - (rstd * mean) * (weight @ gamma) + (weight @ beta + bias)
