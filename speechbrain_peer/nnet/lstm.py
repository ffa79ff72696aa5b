"""Long short-term memory along one dimension of a grid of frames and bands."""

import torch
from torch import nn

CLOSED = -1e4
"""Added to an input gate, it lets nothing in."""


class Lstm(nn.Module):
    """An LSTM along the steps of many sequences, which stay where they are in memory.

    Sequences are `(outer, steps, inner, channels)`, one for each pair of an outer and
    an inner place. A norm's factor and offset before it would be a second set of
    weights for the same map.

    Arguments
    ---------
    in_channels : int
        Channels of the input.
    hidden_channels : int
        Channels that each direction gives.
    both_ways : bool
        Whether another LSTM runs from the last step to the first.

    Example
    -------
    >>> lstm = Lstm(8, 16, both_ways=True)
    >>> lstm(torch.rand(2, 50, 5, 8)).shape
    torch.Size([2, 50, 5, 32])
    """

    def __init__(self, in_channels, hidden_channels, both_ways):
        super().__init__()
        directions = 2 if both_ways else 1
        bound = hidden_channels**-0.5  # nn.LSTM's

        def parameter(*shape):
            values = torch.empty(directions, 4 * hidden_channels, *shape)
            return nn.Parameter(values.uniform_(-bound, bound))

        # Input, forget, cell and output gate, as PyTorch has them.
        self.weight_ih = parameter(in_channels)
        self.weight_hh = parameter(hidden_channels)
        self.bias = parameter()

    def forward(self, x, mask=None):
        """Runs along whole sequences.

        Arguments
        ---------
        x : torch.Tensor
            (outer, steps, inner, in_channels).
        mask : torch.Tensor or None
            1 for true steps, 0 for padding at the end, (outer, steps). The way back
            begins at the last true step.

        Returns
        -------
        torch.Tensor
            (outer, steps, inner, directions * hidden_channels).
        """
        weight_ih, padding = self.weight_ih, None
        if mask is not None and len(weight_ih) == 2:
            # One more channel closes the input gate in the padding: the way back
            # arrives at the last true step with the empty memory it began with.
            padding = (1 - mask)[:, :, None, None].expand(*x.shape[:3], 1)
            gates = weight_ih.new_zeros(4, 1)
            gates[0] = CLOSED
            column = gates.repeat_interleave(self.weight_hh.shape[-1], 0)
            weight_ih = torch.cat((weight_ih, column.expand(2, -1, -1)), dim=-1)
            x = torch.cat((x, padding.to(x)), dim=-1)
        y, _ = self._run(x, weight_ih, self.init_state(x.shape[0], x.shape[2]))
        return y

    def init_state(self, outer, inner):
        """Memory of sequences that have not begun: two of (outer, inner, hidden)."""
        hidden = self.weight_hh.shape[-1]
        zeros = self.weight_hh.new_zeros(outer, inner, hidden)
        return zeros, zeros

    def step(self, x, state):
        """Runs one way along the next steps; there may be none.

        Arguments
        ---------
        x : torch.Tensor
            (outer, steps, inner, in_channels).
        state : tuple
            From `init_state` or the step before; it is not changed.

        Returns
        -------
        y : torch.Tensor
            (outer, steps, inner, hidden_channels).
        state : tuple
            For the next step.
        """
        if not x.shape[1]:
            return x.new_zeros(*x.shape[:3], self.weight_hh.shape[-1]), state
        return self._run(x, self.weight_ih, state)

    def _run(self, x, weight_ih, state):
        """PyTorch's, on (steps, sequences, channels)."""
        outer, _, inner, _ = x.shape
        directions = len(weight_ih)
        sequences = x.transpose(0, 1).flatten(1, 2)
        memory = [part.flatten(0, 1).expand(directions, -1, -1) for part in state]
        no_bias = torch.zeros_like(self.bias)
        parameters = [
            parameter[direction]
            for direction in range(directions)
            for parameter in (weight_ih, self.weight_hh, self.bias, no_bias)
        ]
        y, *memory = torch.lstm(
            sequences.contiguous(),
            [part.to(sequences).contiguous() for part in memory],
            parameters,
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=self.training,
            bidirectional=directions == 2,
            batch_first=False,
        )
        state = tuple(part[0].unflatten(0, (outer, inner)) for part in memory)
        return y.unflatten(1, (outer, inner)).transpose(0, 1), state
