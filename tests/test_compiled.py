"""Blocks as GPUs run them, compiled: here by PyTorch's compiler for CPUs.

Its code in C++ takes a minute, so most tests run the graphs behind it as they are.
"""

import shutil

import pytest
import torch
from test_conv_block import error, make_input, make_parameters, run
from torch import nn

from benchmark.model import TrainingStep, build
from benchmark.sizes import QUICK
from speechbrain_peer.nnet import compiled as module
from speechbrain_peer.nnet import conv_block as block_module
from speechbrain_peer.nnet.compiled import CompiledOnGpus
from speechbrain_peer.nnet.conv_block import (
    BlockParameters,
    conv_block,
    plain_conv_block,
)
from speechbrain_peer.nnet.tcn import TemporalConvNet

LENGTHS = [(131, 65, 3), (90, 12, 33), (131, 65), (257, 8, 30, 200)]


@pytest.fixture
def as_on_gpus(monkeypatch):
    """Nothing is compiled yet, and what would be on GPUs is."""
    monkeypatch.delenv("TSE_NO_KERNELS", raising=False)
    monkeypatch.setattr(block_module, "fast_dtype", lambda x, parameters: None)
    monkeypatch.setattr(module, "is_on_gpu", lambda x: True)
    block = CompiledOnGpus(plain_conv_block)
    monkeypatch.setattr(block_module, "compiled_conv_block", block)
    module.logger.warning_once.cache_clear()
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def with_backend(backend):
    return torch.compiler.set_stance(force_backend=backend)


def counting(calls, backend="eager"):
    """Counts what is compiled, but into no code."""
    compiler = torch._dynamo.lookup_backend(backend)

    def compile_(graph, inputs):
        calls.append(graph)
        return compiler(graph, inputs)

    return with_backend(compile_)


def lines_in(caplog):
    records = (r for r in caplog.records if r.name == module.__name__)
    return [record.getMessage() for record in records]


def parameters_of_a_module():
    return BlockParameters(*(nn.Parameter(t.detach()) for t in make_parameters()))


def check(lengths, dilation, causal):
    """Outputs and gradients are those of the plain block."""
    parameters = parameters_of_a_module()
    output, grads = run(conv_block, lengths, dilation, parameters, causal)
    expected, right = run(plain_conv_block, lengths, dilation, parameters, causal)
    assert error(output, expected) < 1e-5
    assert all(map(lambda *pair: error(*pair) < 1e-4, grads, right))


@pytest.mark.usefixtures("as_on_gpus")
@pytest.mark.parametrize("causal", [False, True])
def test_one_compilation_serves_all_lengths_and_dilations(causal):
    calls = []
    with counting(calls, backend="aot_eager"):  # with gradients
        for power in range(8):
            for lengths in LENGTHS:
                check(lengths, 2**power, causal)
    assert len(calls) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.usefixtures("as_on_gpus")
@pytest.mark.parametrize("causal", [False, True])
def test_a_compiled_block_is_the_plain_one(causal):
    check((131, 65, 3), 1, causal)
    check((257, 8, 30, 200), 64, causal)


@pytest.mark.usefixtures("as_on_gpus")
@pytest.mark.parametrize("causal", [False, True])
def test_a_network_is_compiled_once_for_training_and_twice_for_extraction(causal):
    """Of several items, and of one."""
    tcn = TemporalConvNet(12, 6, 16, 6, n_blocks=8, n_repeats=2, causal=causal)
    calls = []

    def forward(batch, frames):
        return tcn(torch.randn(batch, frames, 12), torch.ones(batch, frames))

    with counting(calls):
        for shape in ((2, 50), (4, 300), (3, 41)):
            forward(*shape).sum().backward()
        assert len(calls) == 1
        with torch.inference_mode():
            for shape in ((2, 50), (1, 70), (5, 300), (1, 300)):
                forward(*shape)
    assert len(calls) == 3


@pytest.mark.usefixtures("as_on_gpus")
def test_compiled_bf16_is_plain_bf16():
    lengths, parameters = (131, 65, 3), parameters_of_a_module()
    with (
        torch.autocast("cpu", torch.bfloat16),
        with_backend("aot_eager"),
    ):
        output, grads = run(conv_block, lengths, 4, parameters)
        expected, right = run(plain_conv_block, lengths, 4, parameters)
    assert error(output, expected) < 2**-7
    for grad, plain in zip(grads, right, strict=True):
        assert grad.dtype == plain.dtype and error(grad, plain) < 2**-5


@pytest.mark.usefixtures("as_on_gpus")
def test_where_compiling_fails_plain_pytorch_runs_after_one_line(caplog):
    calls = []

    def fail(graph, inputs):
        calls.append(graph)
        raise ImportError("no Triton")

    with with_backend(fail):
        for dilation in (1, 2):
            check((70, 9), dilation, causal=False)
    assert len(calls) == 1
    (line,) = lines_in(caplog)
    assert "no Triton" in line and "\n" not in line


@pytest.mark.usefixtures("as_on_gpus")
def test_wrong_arguments_are_no_failure_to_compile(caplog):
    (x, mask), parameters, calls = make_input((70, 9)), parameters_of_a_module(), []
    messages = []
    with counting(calls):
        for block in (plain_conv_block, conv_block):
            with pytest.raises(RuntimeError) as raised:
                block(x[..., :5], mask, parameters, 1)
            messages.append(str(raised.value))
        assert len(set(messages)) == 1
        conv_block(x, mask, parameters, 1)
    assert len(calls) == 1 and not lines_in(caplog)


@pytest.mark.usefixtures("as_on_gpus")
@pytest.mark.parametrize("compiled", [True, False])
def test_kernels_turned_off_and_the_benchmark_do_without(compiled, monkeypatch):
    calls = []
    step = TrainingStep(
        build(QUICK, "better"), "better", "fp32", "cpu", QUICK, compiled
    )
    with counting(calls):
        step()
        assert bool(calls) == compiled
        monkeypatch.setenv("TSE_NO_KERNELS", "1")
        calls.clear()
        torch.compiler.reset()
        step()
    assert not calls


@pytest.mark.usefixtures("as_on_gpus")
def test_stages_that_are_compiled_whole_are_the_same_stages():
    """SpeechBrain's `--compile`; here the stages' graphs alone, each in one piece."""
    weights = []
    for whole in (False, True):
        torch.manual_seed(0)
        stages = build(QUICK, "better")
        if whole:
            for stage in stages.values():
                stage.compile(backend="eager", fullgraph=True)
        TrainingStep(stages, "better", "fp32", "cpu", QUICK, compiled=whole)()
        weights.append(stages.state_dict())
    for name, plain in weights[0].items():
        torch.testing.assert_close(weights[1][name], plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stance", ["default", "force_eager"])
def test_a_gpu_never_waits(causal, stance):
    """No value is copied to the host: the processor may run ahead."""
    tcn = TemporalConvNet(64, 32, 128, 32, n_blocks=4, n_repeats=2, causal=causal)
    tcn = tcn.cuda()
    x, mask = torch.randn(2, 500, 64).cuda(), torch.ones(2, 500).cuda()
    mask[1, 300:] = 0
    before = torch.cuda.get_sync_debug_mode()
    with torch.compiler.set_stance(stance):
        tcn(x, mask).sum().backward()  # compiles
        tcn.zero_grad()
        torch.cuda.set_sync_debug_mode("error")
        try:
            output = tcn(x, mask)
            output.sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    with torch.no_grad():
        expected = tcn.cpu()(x.cpu(), mask.cpu())
    true = mask.cpu()[..., None]
    torch.testing.assert_close(
        output.detach().cpu() * true, expected * true, atol=1e-3, rtol=1e-3
    )
