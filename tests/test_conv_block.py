"""The fast block and the plain one against a block written out item by item."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_peer.nnet import conv_block as module
from speechbrain_peer.nnet import conv_stream, kernels, products
from speechbrain_peer.nnet.conv_block import (
    BlockParameters,
    conv_block,
    new_block_state,
    plain_conv_block,
)
from speechbrain_peer.nnet.conv_stream import step_conv_block
from speechbrain_peer.nnet.kernels import load_kernels

CHANNELS, SKIP_CHANNELS, HIDDEN = 6, 5, 37  # no multiples of a vector's length

needs_compiler = pytest.mark.skipif(
    load_kernels("conv_block", torch.float32) is None, reason="no C compiler"
)
PATHS = [pytest.param(conv_block, marks=needs_compiler), plain_conv_block]


def make_parameters(hidden=HIDDEN, slopes=(0.25, 0.1), seed=0):
    """Random parameters of a size at which every one of them matters."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=0.5, mean=0.0):
        return mean + scale * torch.randn(*shape, generator=rng)

    outputs = CHANNELS + SKIP_CHANNELS
    parameters = BlockParameters(
        in_weight=normal(hidden, CHANNELS),
        in_bias=normal(hidden),
        slope1=torch.tensor([slopes[0]]),
        gamma1=normal(hidden, mean=1.0),
        beta1=normal(hidden),
        taps=normal(3, hidden),
        tap_bias=normal(hidden),
        slope2=torch.tensor([slopes[1]]),
        gamma2=normal(hidden, mean=1.0),
        beta2=normal(hidden),
        out_weight=normal(outputs, hidden, scale=hidden**-0.5),
        out_bias=normal(outputs),
    )
    return BlockParameters(*(tensor.requires_grad_() for tensor in parameters))


def make_input(lengths, seed=1):
    """Noise, also in the padding, and the mask of the true frames."""
    frames = max(lengths)
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lengths), frames, CHANNELS, generator=rng)
    mask = (torch.arange(frames) < torch.tensor(lengths)[:, None]).float()
    return x.requires_grad_(), mask


class Reference(nn.Module):
    """The block as the paper draws it, channels first, on one whole item."""

    def __init__(self, parameters, dilation, causal):
        super().__init__()
        self.causal, self.dilation = causal, dilation
        p = BlockParameters(*(tensor.detach().double() for tensor in parameters))
        hidden, channels = p.in_weight.shape
        self.widen = nn.Conv1d(channels, hidden, 1)
        self.depthwise = nn.Conv1d(hidden, hidden, 3, dilation=dilation, groups=hidden)
        self.residual = nn.Conv1d(hidden, CHANNELS, 1)
        self.skip = nn.Conv1d(hidden, SKIP_CHANNELS, 1)
        names = ("widen", "depthwise", "residual", "skip")
        weights = (
            p.in_weight,
            p.taps.T,
            *p.out_weight.split((CHANNELS, SKIP_CHANNELS)),
        )
        biases = (p.in_bias, p.tap_bias, *p.out_bias.split((CHANNELS, SKIP_CHANNELS)))
        for name, weight, bias in zip(names, weights, biases, strict=True):
            layer = getattr(self, name)
            layer.weight = nn.Parameter(weight.reshape(layer.weight.shape))
            layer.bias = nn.Parameter(bias)
        for name in ("slope1", "gamma1", "beta1", "slope2", "gamma2", "beta2"):
            self.register_parameter(name, nn.Parameter(getattr(p, name)))

    def forward(self, x):
        """(channels, frames) to residual and skip of that layout."""
        y = F.prelu(self.widen(x[None]), self.slope1)
        y = self.norm(y, self.gamma1, self.beta1)
        padding = (2, 0) if self.causal else (1, 1)
        y = self.depthwise(F.pad(y, [self.dilation * side for side in padding]))
        y = self.norm(F.prelu(y, self.slope2), self.gamma2, self.beta2)
        return self.residual(y)[0], self.skip(y)[0]

    def norm(self, y, gamma, beta):
        if self.causal:
            seen = [y[..., : frame + 1] for frame in range(y.shape[-1])]
        else:
            seen = [y]
        mean = torch.stack([values.mean() for values in seen])
        variance = torch.stack([values.var(correction=0) for values in seen])
        y = (y - mean) / torch.sqrt(variance + 1e-8)
        return gamma[:, None] * y + beta[:, None]

    def gradients(self):
        """By the names of BlockParameters."""
        outs = (self.residual, self.skip)
        return BlockParameters(
            in_weight=self.widen.weight.grad[..., 0],
            in_bias=self.widen.bias.grad,
            slope1=self.slope1.grad,
            gamma1=self.gamma1.grad,
            beta1=self.beta1.grad,
            taps=self.depthwise.weight.grad[:, 0].T,
            tap_bias=self.depthwise.bias.grad,
            slope2=self.slope2.grad,
            gamma2=self.gamma2.grad,
            beta2=self.beta2.grad,
            out_weight=torch.cat([layer.weight.grad[..., 0] for layer in outs]),
            out_bias=torch.cat([layer.bias.grad for layer in outs]),
        )


def run(path, lengths, dilation, parameters, causal=False):
    """Outputs at true frames, and gradients of a random loss of them."""
    x, mask = make_input(lengths)
    output = torch.cat(path(x, mask, parameters, dilation, causal), dim=-1)
    true = output * mask[..., None]
    grads = torch.autograd.grad((true * loss_weights(true)).sum(), (x, *parameters))
    return true.detach(), grads


def run_reference(lengths, dilation, parameters, causal=False):
    """The same, every item alone and unpadded."""
    reference = Reference(parameters, dilation, causal)
    x, _ = make_input(lengths)
    x = x.detach().double().requires_grad_()
    items = [
        torch.cat(reference(item[:length].T)).T
        for item, length in zip(x, lengths, strict=True)
    ]
    true = nn.utils.rnn.pad_sequence(items, batch_first=True)
    (true * loss_weights(true)).sum().backward()
    return true.detach(), (x.grad, *reference.gradients())


def loss_weights(output):
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(2))


def error(tensor, expected):
    """The largest deviation, relative to the largest value."""
    return ((tensor - expected).abs().max() / expected.abs().max()).item()


def check(path, lengths, dilation, parameters, causal=False):
    output, grads = run(path, lengths, dilation, parameters, causal)
    expected, expected_grads = run_reference(lengths, dilation, parameters, causal)
    assert error(output, expected) < 1e-5
    names = ("x", *BlockParameters._fields)
    for name, grad, right in zip(names, grads, expected_grads, strict=True):
        assert grad.shape == right.shape, name
        assert error(grad, right) < 1e-4, name


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dilation", [2**power for power in range(8)])
def test_padded_batch_is_the_items_alone(path, dilation, causal):
    """Lengths around the rows of a chunk; the shorter items, less than a dilation."""
    check(path, (131, 65, 3), dilation, make_parameters(), causal)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("hidden", [16, 50])
@pytest.mark.parametrize("lengths", [(77,), (1,), (1, 1, 1)])
def test_single_items_and_single_frames(path, lengths, hidden, causal):
    check(path, lengths, 4, make_parameters(hidden), causal)


@pytest.mark.parametrize("path", PATHS)
def test_what_comes_later_does_not_change_a_causal_block(path):
    x, mask = make_input((100,))
    later = torch.cat((x[:, :60], torch.randn(1, 40, CHANNELS)), dim=1)
    outputs = [path(x, mask, make_parameters(), 4, True)[0] for x in (x, later)]
    assert torch.equal(outputs[0][:, :60], outputs[1][:, :60])
    assert not torch.equal(outputs[0][:, 60], outputs[1][:, 60])


def in_steps(x, parameters, dilation, cuts, state=None):
    """Outputs of a causal block, frames between cuts at once, and the last state."""
    state = state or new_block_state(len(x), parameters, dilation)
    outputs = []
    for piece in x.tensor_split(cuts, dim=1):
        before = [tensor.clone() for tensor in state]
        output, after = step_conv_block(piece, state, parameters, dilation)
        assert all(map(torch.equal, state, before))
        outputs.append(torch.cat(output, dim=-1))
        state = after
    return torch.cat(outputs, dim=1), state


@pytest.fixture(params=["fast", "plain"])
def one_path(request, monkeypatch):
    """Steps with the kernels or without."""
    if request.param == "plain":
        for place in (module, conv_stream):
            monkeypatch.setattr(place, "fast_dtype", lambda x, parameters: None)
    elif load_kernels("conv_block", torch.float32) is None:
        pytest.skip("no C compiler")


@pytest.mark.usefixtures("one_path")
@pytest.mark.parametrize("dilation", [1, 4, 64])
@pytest.mark.parametrize("cuts", [[], range(131), [1, 1, 2, 70], [64, 128], [130]])
@torch.no_grad()
def test_steps_are_the_whole(dilation, cuts):
    """Some of the steps have no frame at all."""
    x, mask = make_input((131, 131))
    parameters = make_parameters()
    whole = torch.cat(conv_block(x, mask, parameters, dilation, True), dim=-1)
    steps, _ = in_steps(x, parameters, dilation, list(cuts))
    assert error(steps, whole) < 1e-5


@needs_compiler
@torch.no_grad()
def test_both_paths_have_one_state(monkeypatch):
    """A stream may move to another device, or to a machine without a compiler."""
    (x, _), parameters = make_input((90,)), make_parameters()
    expected, fast_state = in_steps(x, parameters, 4, [40])
    start, state = in_steps(x[:, :40], parameters, 4, [])
    monkeypatch.setattr(conv_stream, "fast_dtype", lambda x, parameters: None)
    rest, state = in_steps(x[:, 40:], parameters, 4, [3], state)
    assert error(torch.cat((start, rest), dim=1), expected) < 1e-5
    for plain, fast in zip(state, fast_state, strict=True):
        assert plain.dtype == fast.dtype
        torch.testing.assert_close(plain, fast, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("one_path")
@torch.no_grad()
def test_steps_in_bf16_are_near_those_in_fp32():
    (x, _), parameters = make_input((131,)), make_parameters()
    exact, state = in_steps(x, parameters, 4, [50])
    with torch.autocast("cpu", torch.bfloat16):
        rounded, rounded_state = in_steps(x, parameters, 4, [50])
    deviation = (rounded - exact).square().mean() / exact.square().mean()
    assert deviation.sqrt() < 6 * 2**-9
    assert [t.dtype for t in rounded_state] == [t.dtype for t in state]


def test_gradients_flow_through_steps():
    (x, mask), parameters = make_input((30,)), make_parameters()
    grads = []
    for output in (
        torch.cat(conv_block(x, mask, parameters, 4, True), dim=-1),
        in_steps(x, parameters, 4, [7, 20])[0],
    ):
        loss = (output * loss_weights(output)).sum()
        grads.append(torch.autograd.grad(loss, (x, *parameters)))
    for steps, whole in zip(*grads, strict=True):
        assert error(steps, whole) < 1e-4


@needs_compiler
def test_gradients_of_gradients_are_refused():
    x, mask = make_input((30,))
    residual, _ = conv_block(x, mask, make_parameters(), 2)
    (grad,) = torch.autograd.grad(residual.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@needs_compiler
@pytest.mark.parametrize("causal", [False, True])
def test_inputs_without_residual_and_no_skip(causal):
    """The outputs are the residual's, of the first of the input's channels."""
    parameters = make_parameters()
    wide = torch.randn(HIDDEN, CHANNELS, generator=torch.Generator().manual_seed(3))
    outputs = CHANNELS
    parameters = parameters._replace(
        in_weight=torch.cat((parameters.in_weight, wide), dim=1).detach(),
        out_weight=parameters.out_weight[:outputs].detach(),
        out_bias=parameters.out_bias[:outputs].detach(),
    )
    parameters = BlockParameters(*(p.detach().requires_grad_() for p in parameters))
    (x, mask), (other, _) = make_input((131, 65)), make_input((131, 65), seed=2)
    x = torch.cat((x, other), dim=-1)
    results = []
    for path in (conv_block, plain_conv_block):
        residual, skip = path(x, mask, parameters, 4, causal, eps=0.1)
        assert residual.shape == (2, 131, CHANNELS) and skip.shape == (2, 131, 0)
        true = residual * mask[..., None]
        loss = (true * loss_weights(true)).sum()
        results.append((true, *torch.autograd.grad(loss, parameters)))
    for fast, plain in zip(*results, strict=True):
        assert error(fast, plain) < 1e-5
    smaller_eps = conv_block(x, mask, parameters, 4, causal)[0]
    assert error(smaller_eps, residual) > 1e-3


@pytest.mark.parametrize("path", PATHS)
def test_mask_and_layout_of_any_kind(path):
    x, mask = make_input((70, 9))
    expected = path(x, mask, make_parameters(), 2)
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    outputs = path(strided, mask.bool(), make_parameters(), 2)
    for output, right in zip(outputs, expected, strict=True):
        assert error(output, right) < 1e-6


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("slopes", [(-0.3, -0.2), (1.5, 2.0)])
def test_slopes_of_prelu_may_be_negative_or_above_one(path, slopes):
    check(path, (70, 9), 2, make_parameters(slopes=slopes))


@needs_compiler
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    """Bitwise, except where PyTorch's own product over all frames splits its sum."""
    # oneDNN's products, which AMD's processors take, may do so, too.
    monkeypatch.setattr(products, "_prefers_convolution", lambda threads: False)
    lengths, parameters = (400, 129, 257), make_parameters(hidden=64)
    of_products = {"in_weight", "out_weight", "gamma2"}
    before = torch.get_num_threads()
    kernels = load_kernels("conv_block", torch.float32)
    if not hasattr(kernels, "omp_get_max_threads"):
        pytest.skip("the compiler has no OpenMP: one thread")
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert kernels.omp_get_max_threads() == threads
            output, grads = run(conv_block, lengths, 8, parameters)
            results.append((output, *grads))
    finally:
        torch.set_num_threads(before)
    names = ("output", "x", *BlockParameters._fields)
    for other in results[1:]:
        for name, tensor, right in zip(names, other, results[0], strict=True):
            if name in of_products:
                assert error(tensor, right) < 1e-5, name
            else:
                assert torch.equal(tensor, right), name


@pytest.mark.parametrize("path", PATHS)
def test_bf16_is_fp32_with_its_roundings(path):
    lengths, parameters = (131, 65, 3), make_parameters()
    exact, exact_grads = run(path, lengths, 4, parameters)
    with torch.autocast("cpu", torch.bfloat16):
        output, grads = run(path, lengths, 4, parameters)
    # bf16 rounds by up to 2**-9: x, two weights and three activations in the output.
    # In the gradients, of values that near to zero PReLU takes the other slope: that
    # share of them is all wrong, so its root is what the root mean square shows.
    for tensor, right, bound in (
        (output, exact, 6 * 2**-9),
        *((*pair, (6 * 2**-9) ** 0.5) for pair in zip(grads, exact_grads, strict=True)),
    ):
        assert tensor.dtype == torch.float32
        deviation = (tensor - right).square().mean() / right.square().mean()
        assert deviation.sqrt() < bound
    assert not torch.equal(output, exact)


@needs_compiler
def test_second_order_gradients_are_refused():
    x, mask = make_input((70, 9))
    residual, _ = conv_block(x, mask, make_parameters(), 2)
    (grad,) = torch.autograd.grad(residual.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_nan_is_not_hidden(path, precision):
    x, mask = make_input((70, 70))
    x = x.detach()
    x[0, 5, 2] = float("nan")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        residual, skip = path(x, mask, make_parameters(), 2)
    assert residual[0].isnan().all() and skip[0].isnan().all()
    assert residual[1].isfinite().all() and skip[1].isfinite().all()


@needs_compiler
@pytest.mark.parametrize(
    ("compiler", "message"),
    [("/nonexistent/cc", "no C compiler: /nonexistent/cc"), ("false", "false: ")],
)
def test_without_compiler_the_plain_path_runs(compiler, message, monkeypatch, caplog):
    expected, expected_grads = run(conv_block, (131, 65), 4, make_parameters())
    monkeypatch.setenv("CC", compiler)
    kernels.logger.warning_once.cache_clear()
    loads = functools.cache(load_kernels.__wrapped__)  # nothing is loaded yet
    monkeypatch.setattr(module, "load_kernels", loads)
    for _ in range(2):
        output, grads = run(conv_block, (131, 65), 4, make_parameters())
    plain, _ = run(plain_conv_block, (131, 65), 4, make_parameters())
    assert torch.equal(output, plain)
    assert error(output, expected) < 1e-5
    assert all(map(lambda *pair: error(*pair) < 1e-4, grads, expected_grads))
    (line,) = (record.getMessage() for record in caplog.records)
    assert message in line and "without the fast kernels" in line
