"""Long short-term memory along one dimension of a grid of frames and bands.

PyTorch's LSTM writes all gates of all steps out, copies sequences into its own order,
and knows of no padding but by sorting. So on CPUs it is in C (lstm.c): a block of
sequences goes through all steps while it is in the cache, from where it lies.
Under autocast its products are of bf16 values, summed up in fp32, as are the cells;
without AVX-512's instructions for bf16 autocast makes no difference. On other devices,
and without a C compiler, it is PyTorch's.
"""

import ctypes

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_peer.nnet.kernels import load_kernels
from speechbrain_peer.utils.runtime import multiplies_bf16_vectors

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
        self._packed = _Packed()

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
            (outer, steps, inner, directions * hidden_channels); under autocast bf16,
            where the CPU multiplies it.
        """
        state = self.init_state(x.shape[0], x.shape[2])
        return run_lstm(x, mask, state, *self._weights(), self._kept())[0]

    def init_state(self, outer, inner):
        """Memory of sequences that have not begun: two of (outer, inner, hidden)."""
        weight = self.weight_hh
        like = {"dtype": weight.dtype, "device": weight.device}
        zeros = torch.zeros(outer, inner, weight.shape[-1], **like)
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
        return run_lstm(x, None, state, *self._weights(), self._kept())

    def train(self, mode=True):
        """As for any module."""
        # Fused optimizers change weights without a trace.
        self._packed = _Packed()
        return super().train(mode)

    def _kept(self):
        return None if self.training else self._packed

    def _apply(self, *arguments, **options):
        # Weights that are converted may come to lie where the old ones were.
        self._packed = _Packed()
        return super()._apply(*arguments, **options)

    def _weights(self):
        return self.weight_ih, self.weight_hh, self.bias


class _Packed:
    """Weights in the order of the C kernels, kept until they change."""

    def __init__(self):
        self._of = self._kept = None

    def __call__(self, kernels, *weights):
        if any(weight.is_inference() for weight in weights):
            return kernels.to_gates(*weights)  # they do not tell when they change
        state = [(weight.data_ptr(), weight._version) for weight in weights]
        state.append(kernels.dtype)
        if state != self._of:
            self._of, self._kept = state, kernels.to_gates(*weights)
        return self._kept


def run_lstm(x, mask, state, weight_ih, weight_hh, bias, packed=None):
    """An LSTM in one or both directions, as fast as there is.

    Arguments
    ---------
    x : torch.Tensor
        (outer, steps, inner, inputs).
    mask : torch.Tensor or None
        1 for true steps, 0 for padding at the end, (outer, steps).
    state : tuple of torch.Tensor
        The memory before the first step, of both directions, two of
        (outer, inner, hidden).
    weight_ih : torch.Tensor
        (directions, 4 * hidden, inputs).
    weight_hh : torch.Tensor
        (directions, 4 * hidden, hidden).
    bias : torch.Tensor
        (directions, 4 * hidden).
    packed : _Packed or None
        Of these weights, for many calls without gradients.

    Returns
    -------
    y : torch.Tensor
        (outer, steps, inner, directions * hidden); anything in the padding.
    state : tuple of torch.Tensor
        That of the first direction after the last step.
    """
    weights = (weight_ih, weight_hh, bias)
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # bf16 has nothing to gain there, and oneDNN has no such LSTM for AVX2 alone.
        if not multiplies_bf16_vectors():
            with torch.autocast("cpu", enabled=False):
                return run_lstm(x.float(), mask, state, *weights, packed)
    dtype = _fast_dtype(x, weights)
    if dtype is not None:
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights)):
            if not any(part.requires_grad for part in state):
                y, *state = _FastLstm.apply(x, mask, *state, *weights, dtype)
                return y, tuple(state)
        else:
            x = x.to(dtype)
            return _run(x, mask, state, *weights, packed=packed or _Packed())[:2]
    return plain_lstm(x, mask, state, *weights)


def plain_lstm(x, mask, state, weight_ih, weight_hh, bias):
    """`run_lstm` by way of PyTorch's."""
    outer, _, inner, _ = x.shape
    directions, gates = bias.shape
    if mask is not None and directions == 2:
        # One more channel closes the input gate in the padding: the way back arrives
        # at the last true step with the empty memory that it began with.
        padding = (1 - mask)[:, :, None, None].expand(*x.shape[:3], 1)
        of_input, others = weight_ih.tensor_split((gates // 4,), dim=1)
        of_input = F.pad(of_input, (0, 1), value=CLOSED)
        weight_ih = torch.cat((of_input, F.pad(others, (0, 1))), dim=1)
        x = torch.cat((x, padding.to(x)), dim=-1)
    sequences = x.transpose(0, 1).flatten(1, 2).contiguous()
    memory = [
        part.flatten(0, 1).expand(directions, -1, -1).to(sequences).contiguous()
        for part in state
    ]
    layer = _onnx_layer if torch.compiler.is_exporting() else _layer
    y, *memory = layer(sequences, memory, weight_ih, weight_hh, bias)
    state = tuple(part[0].unflatten(0, (outer, inner)) for part in memory)
    return y.unflatten(1, (outer, inner)).transpose(0, 1), state


def _layer(sequences, memory, weight_ih, weight_hh, bias):
    """PyTorch's LSTM on (steps, batch, inputs)."""
    no_bias = torch.zeros_like(bias)
    parameters = [
        parameter[direction]
        for direction in range(len(bias))
        for parameter in (weight_ih, weight_hh, bias, no_bias)
    ]
    return torch.lstm(
        sequences,
        memory,
        parameters,
        has_biases=True,
        num_layers=1,
        dropout=0.0,
        train=False,  # of dropout alone
        bidirectional=len(bias) == 2,
        batch_first=False,
    )


def _onnx_layer(sequences, memory, weight_ih, weight_hh, bias):
    """The same as a node of an ONNX graph: `torch.export` unrolls PyTorch's."""

    def its_order(parameter):
        # Input, output, forget and cell gate.
        # By an index, which is worked out once, unlike chunks.
        order = torch.tensor([0, 3, 1, 2])
        return parameter.unflatten(1, (4, -1))[:, order].flatten(1, 2)

    weights = [its_order(parameter) for parameter in (weight_ih, weight_hh, bias)]
    weights[2] = F.pad(weights[2], (0, bias.shape[1]))  # with second biases
    steps, batch, _ = sequences.shape
    directions, _, hidden = weight_hh.shape
    y, *memory = torch.onnx.ops.symbolic_multi_out(
        "::LSTM",
        (sequences, *weights, None, *memory),
        {
            "hidden_size": hidden,
            "direction": "bidirectional" if directions == 2 else "forward",
        },
        dtypes=[torch.float32] * 3,
        shapes=[(steps, directions, batch, hidden)] + [(directions, batch, hidden)] * 2,
    )
    return y.transpose(1, 2).flatten(2), *memory


def _fast_dtype(x, weights):
    """What the C kernels compute in; None where they cannot be used."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return None
    if any(tensor.device.type != "cpu" for tensor in (x, *weights)):
        return None
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.float32
    if any(weight.dtype != dtype for weight in weights):
        return None
    if autocast:
        dtype = torch.get_autocast_dtype("cpu")
    if x.dtype not in (torch.float32, dtype) or load_kernels("lstm", dtype) is None:
        return None
    return dtype


class _Kernels:
    """The C kernels on sequences, see lstm.c."""

    class _Sequences(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_void_p) for name in ("x", "mask")),
            *((name, ctypes.c_int64) for name in ("outer", "steps", "inner")),
            *((name, ctypes.c_int64) for name in ("inputs", "hidden", "directions")),
        )

    def __init__(self, x, mask, weight_hh):
        self.dtype = x.dtype
        self.library = load_kernels("lstm", x.dtype)
        self.block, self.lanes, self.tile, self.pair = (
            ctypes.c_int64.in_dll(self.library, name).value
            for name in ("chunk_rows", "lanes", "tile", "pair")
        )
        directions, _, hidden = weight_hh.shape
        # Kept, as the structure holds their addresses only.
        self.tensors = (x, mask)
        mask = None if mask is None else mask.data_ptr()
        sizes = (*x.shape, hidden, directions)
        self.sequences = self._Sequences(x.data_ptr(), mask, *sizes)
        self.filling = -hidden % self.lanes

    def gates_first(self, weight_ih, weight_hh, to):
        """(directions, 4, units, inputs + hidden), the last filled up."""
        weight = torch.cat((weight_ih, weight_hh), dim=-1).unflatten(1, (4, -1))
        return F.pad(weight, (0, -weight.shape[-1] % to, 0, self.filling))

    def to_gates(self, weight_ih, weight_hh, bias):
        """Weights and biases as `run` has them."""
        weight = self.gates_first(weight_ih, weight_hh, self.pair)
        weight = weight.unflatten(3, (-1, self.pair)).unflatten(2, (-1, self.lanes))
        weight = weight.permute(0, 2, 4, 1, 3, 5)
        bias = F.pad(bias.unflatten(1, (4, -1)), (0, self.filling))
        bias = bias.unflatten(2, (-1, self.lanes)).transpose(1, 2)
        return weight.to(self.dtype).contiguous(), bias.contiguous()

    def to_z(self, weight_ih, weight_hh):
        """Weights as `run_back` has them."""
        weight = self.gates_first(weight_ih, weight_hh, self.tile).flatten(1, 2)
        weight = weight.unflatten(2, (-1, self.tile)).unflatten(1, (-1, self.pair))
        return weight.permute(0, 3, 1, 4, 2).to(self.dtype).contiguous()

    def __call__(self, name, *arguments):
        """Calls one of them with addresses of tensors, which may be missing."""
        arguments = (
            ctypes.c_void_p(None if a is None else a.data_ptr())
            if a is None or isinstance(a, torch.Tensor)
            else ctypes.c_int64(a)
            for a in arguments
        )
        function = getattr(self.library, name)
        function.restype = ctypes.c_int64
        if not function(ctypes.byref(self.sequences), *arguments):
            raise MemoryError("no memory for an LSTM")


def _run(x, mask, state, weight_ih, weight_hh, bias, packed, keep=False):
    """`run_lstm` in C, in the type of x; also what the gradient needs."""
    x = x.contiguous()
    mask = None if mask is None else mask.float().contiguous()
    kernels = _Kernels(x, mask, weight_hh)
    outer, steps, inner, _ = x.shape
    directions, _, hidden = weight_hh.shape
    # Copies, which the kernel changes.
    h, c = (
        part.flatten(0, 1)
        .to(dtype)
        .expand(directions, -1, -1)
        .clone(memory_format=torch.contiguous_format)
        for part, dtype in zip(state, (x.dtype, torch.float32), strict=True)
    )
    y = x.new_empty(outer, steps, inner, directions * hidden)
    rows, block, kept = outer * inner, kernels.block, None
    if keep:
        units = hidden + kernels.filling
        kept = x.new_empty(directions, -(-rows // block), steps, block, 5 * units)
    else:
        # As many blocks as there are threads.
        block = min(block, -(-rows * directions // torch.get_num_threads()))
    gates = packed(kernels, weight_ih, weight_hh, bias)
    kernels("run", *gates, h, c, y, kept, block)
    # A copy, as a view would keep both directions.
    state = tuple(
        part[0].float().clone().unflatten(0, (outer, inner)) for part in (h, c)
    )
    return y, state, kept


class _FastLstm(torch.autograd.Function):
    """`run_lstm` with its gradient, but for that of the state after the last step."""

    @staticmethod
    def forward(ctx, x, mask, h, c, weight_ih, weight_hh, bias, dtype):
        weights, ctx.x_dtype = (weight_ih, weight_hh), x.dtype
        x = x.to(dtype)
        y, state, kept = _run(x, mask, (h, c), *weights, bias, _Packed(), keep=True)
        ctx.save_for_backward(x, mask, *weights, y, kept)
        ctx.mark_non_differentiable(*state)
        return y, *state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, *_):
        x, mask, weight_ih, weight_hh, y, kept = ctx.saved_tensors
        x, dy = x.contiguous(), dy.contiguous()
        mask = None if mask is None else mask.float().contiguous()
        kernels = _Kernels(x, mask, weight_hh)
        weight = kernels.to_z(weight_ih, weight_hh)
        directions, blocks = kept.shape[:2]
        inputs, hidden = x.shape[-1], weight_hh.shape[-1]
        units, width = hidden + kernels.filling, weight.shape[1] * kernels.tile
        dx = weight_hh.new_empty(directions, *x.shape)
        dweights = weight_hh.new_zeros(directions, blocks, 4, units, width)
        dbiases = weight_hh.new_zeros(directions, blocks, 4, units)
        kernels("run_back", weight, y, kept, dy, dx, dweights, dbiases)
        dweight = dweights.sum(1)[:, :, :hidden].flatten(1, 2)
        dbias = dbiases.sum(1)[:, :, :hidden].flatten(1)
        of_ih, of_hh, _ = dweight.split((inputs, hidden, width - inputs - hidden), -1)
        of_weights = (of_ih, of_hh, dbias)
        return dx.sum(0).to(ctx.x_dtype), None, None, None, *of_weights, None
