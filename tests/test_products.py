"""Products by way of a convolution are those of F.linear, on the same memory."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_peer.models.spex_plus import SpeakerEncoder
from speechbrain_peer.nnet import products
from speechbrain_peer.nnet.products import LEAST_ROWS, Linear, linear, weight_grad
from speechbrain_peer.nnet.tcn import TemporalConvNet
from speechbrain_peer.utils import runtime

CHANNELS, OUTPUTS = 24, 40


@pytest.fixture
def by_convolution(monkeypatch):
    """What a processor has on which oneDNN is the faster one."""
    monkeypatch.setattr(products, "_prefers_convolution", lambda threads: True)


@pytest.fixture
def images(monkeypatch):
    """The images that convolutions get, and what they give."""
    seen, conv2d = [], F.conv2d

    def watch(image, *arguments):
        output = conv2d(image, *arguments)
        seen.append((image, output))
        return output

    monkeypatch.setattr(F, "conv2d", watch)
    return seen


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(tensor, expected):
    """The largest deviation, relative to the largest value."""
    return ((tensor - expected).abs().max() / expected.abs().max()).item()


LAYOUTS = {
    "a batch": lambda: noise(3, 50, CHANNELS),
    "rows": lambda: noise(100, CHANNELS),
    "maps": lambda: noise(2, 9, 11, CHANNELS),
    "channels first": lambda: noise(3, CHANNELS, 50).mT,
    "every second channel": lambda: noise(3, 50, 2 * CHANNELS)[..., ::2],
    "overlapping frames": lambda: noise(2, 500).unfold(-1, CHANNELS, 4),
    "overlapping frames of one item": lambda: noise(1, 500).unfold(-1, CHANNELS, 4),
    "the same rows": lambda: noise(3, 1, CHANNELS).expand(-1, 50, -1),
    "the same rows in one item": lambda: noise(1, 1, CHANNELS).expand(-1, 150, -1),
    "channels first in one item": lambda: noise(1, CHANNELS, 150).mT,
    "the end of a batch": lambda: noise(3, 90, CHANNELS)[:, 20:],
}


@pytest.mark.usefixtures("by_convolution")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_both_ways_give_one_product(make, bias):
    weight = noise(OUTPUTS, CHANNELS, seed=1).requires_grad_()
    inputs = [make().requires_grad_(), weight]
    inputs += [noise(OUTPUTS, seed=2).requires_grad_()] if bias else []
    grad = noise(*inputs[0].shape[:-1], OUTPUTS, seed=3)
    results = []
    for product in (linear, F.linear):
        y = product(*inputs)
        results.append((y, *torch.autograd.grad(y, inputs, grad)))
    assert results[0][0].is_contiguous()
    for tensor, expected in zip(*results, strict=True):
        assert tensor.shape == expected.shape
        assert error(tensor, expected) < 1e-5
    x, weight = inputs[0].detach(), weight.detach()
    assert error(weight_grad(grad, x), results[1][2]) < 1e-5
    assert error(linear(grad, weight.T), results[1][1]) < 1e-5


@pytest.mark.usefixtures("by_convolution")
def test_activations_are_not_copied(images):
    """The image is the same memory, in the format that oneDNN works in."""
    x, weight = noise(3, 50, CHANNELS), noise(OUTPUTS, CHANNELS)
    views = (x, x[1:], x.flatten(0, 1), x.unflatten(1, (10, 5)), x[:, None])
    for rows in views:
        images.clear()
        y = linear(rows, weight)
        ((image, output),) = images
        assert image.data_ptr() == rows.data_ptr()
        assert output.data_ptr() == y.data_ptr() and y.is_contiguous()
        for tensor in (image, output):
            assert tensor.is_contiguous(memory_format=torch.channels_last)
            channels, _, n_rows = tensor.shape[1:]
            assert tensor.stride()[1:] == (1, channels * n_rows, channels)


@pytest.mark.usefixtures("by_convolution")
def test_what_the_rule_is_not_made_for_stays_with_mkl(images):
    x, layer = noise(2, 50, CHANNELS), Linear(CHANNELS, OUTPUTS)
    layer(x[:, : LEAST_ROWS // 2 - 1])
    layer(x[:, :0])
    layer.double()(x.double())
    layer.bfloat16()(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(x).dtype == torch.bfloat16
    layer.to("meta")(x.to("meta"))
    assert not images
    layer = Linear(CHANNELS, OUTPUTS)
    layer(x[:, : LEAST_ROWS // 2])
    assert len(images) == 1


@pytest.mark.usefixtures("by_convolution")
def test_compilers_and_exporters_see_a_product():
    layer, x = Linear(CHANNELS, OUTPUTS), noise(2, 50, CHANNELS)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, backend=keep, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)
    graphs.append(torch.export.export(layer, (x,), strict=False).graph_module)
    assert len(graphs) == 2
    for graph in graphs:
        targets = [str(node.target) for node in graph.graph.nodes]
        assert any("linear" in target for target in targets)
        assert not any("conv" in target for target in targets)


@pytest.mark.usefixtures("by_convolution")
def test_gradients_of_gradients():
    x = noise(70, CHANNELS).double().requires_grad_()
    weight = noise(OUTPUTS, CHANNELS).double().requires_grad_()
    inputs = (x, weight, noise(OUTPUTS).double().requires_grad_())
    product = products.linear_by_convolution
    assert torch.autograd.gradcheck(product, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(product, inputs, fast_mode=True)


def test_a_layer_is_nn_linear():
    """The same parameters, by name, shape and draw."""
    torch.manual_seed(0)
    theirs = nn.Linear(CHANNELS, OUTPUTS)
    torch.manual_seed(0)
    ours = Linear(CHANNELS, OUTPUTS)
    ours_state, state = ours.state_dict(), theirs.state_dict()
    assert list(ours_state) == list(state)
    assert all(torch.equal(ours_state[name], state[name]) for name in state)
    x = noise(2, 50, CHANNELS)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def tcn_and_inputs():
    torch.manual_seed(0)
    network = TemporalConvNet(32, 8, 24, 8, n_blocks=3, n_repeats=2)
    return network, (noise(2, 90, 32), torch.ones(2, 90))


def speaker_encoder_and_inputs():
    torch.manual_seed(0)
    network = SpeakerEncoder(32, channels=8, embedding_size=4)
    representation = noise(2, 108, 32), torch.ones(2, 108)
    return network, (None, None, lambda waveforms, lens: representation)


@pytest.mark.parametrize("make", [tcn_and_inputs, speaker_encoder_and_inputs])
def test_networks_give_the_same_both_ways(make, monkeypatch, images):
    results = []
    for prefers in (True, False):
        images.clear()
        monkeypatch.setattr(
            products, "_prefers_convolution", lambda threads, x=prefers: x
        )
        network, inputs = make()
        y = network(*inputs)
        y.backward(noise(*y.shape, seed=5))
        results.append([y, *(parameter.grad for parameter in network.parameters())])
        assert bool(images) == prefers
    for tensor, expected in zip(*results, strict=True):
        if expected is not None:
            # What a sum rounds by goes with its terms, also where it is near zero.
            atol = max(1e-5, 1e-6 * float(expected.abs().max()))
            torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(
    ("vendor", "family", "instructions", "one_thread", "two_threads"),
    [
        ("AuthenticAMD", 26, "AVX512", True, True),
        ("AuthenticAMD", 25, "AVX512", False, True),
        ("AuthenticAMD", 25, "AVX2", False, False),
        ("GenuineIntel", 6, "AVX512", False, False),
        ("", "", "DEFAULT", False, False),
    ],
)
def test_the_rule(vendor, family, instructions, one_thread, two_threads, monkeypatch):
    text = f"vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t: 17\n"
    monkeypatch.setattr(runtime, "processor_text", lambda: text)
    cpu = torch.backends.cpu
    monkeypatch.setattr(cpu, "get_cpu_capability", lambda: instructions)
    for library in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(library, "is_available", lambda: True)
    rule = products._prefers_convolution.__wrapped__
    assert (rule(1), rule(2)) == (one_thread, two_threads)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not rule(1) and not rule(2)
