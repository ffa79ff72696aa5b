"""The temporal convolutional network of Conv-TasNet."""

import torch
from torch import nn

from speechbrain_peer.nnet.conv_block import (
    BlockParameters,
    conv_block,
    new_block_state,
)
from speechbrain_peer.nnet.conv_stream import prepare_block, step_conv_block
from speechbrain_peer.nnet.norms import NORM_EPS, LayerNorm, new_totals, norm_linear


class ConvBlock(nn.Module):
    """Residual block with a depthwise convolution of three taps.

    Arguments
    ---------
    channels : int
        B, bottleneck channels.
    hidden_channels : int
        H.
    skip_channels : int
        Sc.
    dilation : int
        Frames between taps.
    causal : bool
        See `conv_block.conv_block`.
    condition_channels : int
        Further channels of the input, which have no residual.
    eps : float
        Added to the variance in norms.

    Example
    -------
    >>> block = ConvBlock(channels=8, hidden_channels=16, skip_channels=8, dilation=2)
    >>> residual, skip = block(torch.rand(2, 50, 8), torch.ones(2, 50))
    >>> residual.shape, skip.shape
    (torch.Size([2, 50, 8]), torch.Size([2, 50, 8]))
    """

    def __init__(
        self,
        channels,
        hidden_channels,
        skip_channels,
        dilation,
        causal=False,
        condition_channels=0,
        eps=NORM_EPS,
    ):
        super().__init__()
        self.dilation, self.causal, self.eps = dilation, causal, eps
        self._prepared = None
        self.in_proj = nn.Linear(channels + condition_channels, hidden_channels)
        self.in_slope = nn.Parameter(torch.full((1,), 0.25))
        self.in_gamma = nn.Parameter(torch.ones(hidden_channels))
        self.in_beta = nn.Parameter(torch.zeros(hidden_channels))
        self.depth_weight = nn.Parameter(torch.empty(3, hidden_channels))
        self.depth_bias = nn.Parameter(torch.empty(hidden_channels))
        bound = 3**-0.5  # nn.Conv1d's for three inputs a channel
        nn.init.uniform_(self.depth_weight, -bound, bound)
        nn.init.uniform_(self.depth_bias, -bound, bound)
        self.out_slope = nn.Parameter(torch.full((1,), 0.25))
        self.out_gamma = nn.Parameter(torch.ones(hidden_channels))
        self.out_beta = nn.Parameter(torch.zeros(hidden_channels))
        # Residual and skip in one product. The last block's residual is unused;
        # sharing one weight keeps its gradient zero instead of missing (DDP).
        self.out_proj = nn.Linear(hidden_channels, channels + skip_channels)

    def forward(self, x, frame_mask):
        """x (batch, frames, inputs) to residual (..., channels) and skip (..., Sc)."""
        constant = (self.dilation, self.causal, self.eps)
        return conv_block(x, frame_mask, self._block_parameters(), *constant)

    def init_state(self, batch):
        """What the block remembers of streams; None unless it is causal."""
        if not self.causal:
            return None
        return new_block_state(batch, self._block_parameters(), self.dilation)

    def step(self, x, state):
        """`forward` on the next frames: ((residual, skip), state)."""
        constant = (self.dilation, self.eps, self._prepare)
        return step_conv_block(x, state, self._block_parameters(), *constant)

    def train(self, mode=True):
        """As for any module."""
        # Fused optimizers change weights without a trace.
        self._prepared = None
        return super().train(mode)

    def _prepare(self, parameters, dtype):
        """`prepare_block`, once until the parameters change."""
        if self.training:
            return prepare_block(parameters, dtype)
        key = (dtype, *((value.data_ptr(), value._version) for value in parameters))
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = key, prepare_block(parameters, dtype)
        return self._prepared[1]

    def _block_parameters(self):
        return BlockParameters(
            in_weight=self.in_proj.weight,
            in_bias=self.in_proj.bias,
            slope1=self.in_slope,
            gamma1=self.in_gamma,
            beta1=self.in_beta,
            taps=self.depth_weight,
            tap_bias=self.depth_bias,
            slope2=self.out_slope,
            gamma2=self.out_gamma,
            beta2=self.out_beta,
            out_weight=self.out_proj.weight,
            out_bias=self.out_proj.bias,
        )


class TemporalConvNet(nn.Module):
    """Norm, bottleneck and repeats of blocks with dilations 1, 2, 4 ...

    Arguments
    ---------
    in_channels : int
        N.
    channels : int
        B, bottleneck channels.
    hidden_channels : int
        H.
    skip_channels : int
        Sc, channels of the output.
    n_blocks : int
        X, blocks in a repeat.
    n_repeats : int
        R.
    causal : bool
        Whether a frame of the output depends on the frames up to it only; norms are
        then cumulative.

    Example
    -------
    >>> tcn = TemporalConvNet(32, 8, 16, 8, n_blocks=3, n_repeats=2)
    >>> tcn(torch.rand(2, 50, 32), torch.ones(2, 50)).shape
    torch.Size([2, 50, 8])
    """

    def __init__(
        self,
        in_channels,
        channels,
        hidden_channels,
        skip_channels,
        n_blocks,
        n_repeats,
        causal=False,
    ):
        super().__init__()
        self.causal = causal
        self.gamma = nn.Parameter(torch.ones(in_channels))
        self.beta = nn.Parameter(torch.zeros(in_channels))
        self.bottleneck = nn.Linear(in_channels, channels)
        self.blocks = nn.ModuleList(
            ConvBlock(channels, hidden_channels, skip_channels, 2**block, causal)
            for _ in range(n_repeats)
            for block in range(n_blocks)
        )

    def forward(self, representation, frame_mask, adapt=None):
        """Runs the network.

        Arguments
        ---------
        representation : torch.Tensor
            (batch, frames, in_channels).
        frame_mask : torch.Tensor
            (batch, frames).
        adapt : callable or None
            Called after every block as adapt(index, residual, skip) and returns
            the two, adapted.

        Returns
        -------
        torch.Tensor
            Sum of the skip connections, (batch, frames, skip_channels).
        """
        past = None
        if self.causal:
            past = new_totals(representation.shape[0], self.gamma)
        x, _ = self._bottleneck(representation, frame_mask, past)
        return self._run(x, lambda index, x: self.blocks[index](x, frame_mask), adapt)

    def init_state(self, batch):
        """What the network remembers of streams that have not begun.

        Arguments
        ---------
        batch : int
            How many streams.

        Returns
        -------
        tuple or None
            Nested, of tensors with the batch first; None of a network that is not
            causal, which has no `step`.
        """
        if not self.causal:
            return None
        totals = new_totals(batch, self.gamma)
        return totals, tuple(block.init_state(batch) for block in self.blocks)

    def step(self, representation, state, adapt=None):
        """Runs the causal network on the next frames of streams.

        Arguments
        ---------
        representation : torch.Tensor
            (batch, frames, in_channels); there may be no frame at all.
        state : tuple
            From `init_state` or the step before; it is not changed.
        adapt : callable or None
            As for `forward`.

        Returns
        -------
        skips : torch.Tensor
            Of all steps together those of `forward` on the whole streams.
        state : tuple
            For the next step.
        """
        totals, before = state
        frame_mask = representation.new_ones(representation.shape[:2])
        x, totals = self._bottleneck(representation, frame_mask, totals)
        after = []

        def step_block(index, x):
            outputs, block_state = self.blocks[index].step(x, before[index])
            after.append(block_state)
            return outputs

        skips = self._run(x, step_block, adapt)
        return skips, (totals, tuple(after))

    def _run(self, x, run_block, adapt):
        """All blocks, each run as run_block(index, x) -> (residual, skip)."""
        skips = 0
        for index in range(len(self.blocks)):
            residual, skip = run_block(index, x)
            if adapt is not None:
                residual, skip = adapt(index, residual, skip)
            x, skips = x + residual, skips + skip
        return skips

    def _bottleneck(self, representation, frame_mask, past):
        """The blocks' input, and the norm's totals."""
        norm = LayerNorm(frame_mask, representation.shape[-1], past=past)
        linear = self.bottleneck
        of_norm = (self.gamma, self.beta, linear.weight, linear.bias)
        return norm_linear(representation, norm, *of_norm), norm.totals
