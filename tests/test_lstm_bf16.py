"""The LSTM in C under bf16 autocast, beside PyTorch's in bf16 and ours in fp32."""

import pytest
import torch

from speechbrain_peer.nnet.kernels import load_kernels
from speechbrain_peer.nnet.lstm import Lstm, plain_lstm, run_lstm
from speechbrain_peer.utils.runtime import multiplies_bf16_vectors

pytestmark = pytest.mark.skipif(
    not multiplies_bf16_vectors() or load_kernels("lstm", torch.bfloat16) is None,
    reason="no AVX-512 instructions for bf16, or no C compiler that knows them",
)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


def results(run, lstm, x, mask, grad):
    """Output and gradients, in fp32."""
    x = x.clone().requires_grad_()
    state = lstm.init_state(x.shape[0], x.shape[2])
    y, _ = run(x, mask, state, *lstm.parameters())
    true = mask[:, :, None, None]
    grads = torch.autograd.grad(y, (x, *lstm.parameters()), (grad * true).to(y.dtype))
    return [(y * true).float(), *grads]


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("inner", [1, 5, 23])
@pytest.mark.parametrize("sizes", [(5, 7), (16, 32), (48, 96), (33, 17)], ids=str)
def test_it_errs_no_more_than_pytorchs(sizes, inner, both_ways):
    """Forward and backward, also of odd numbers of rows and where items are padded."""
    torch.manual_seed(0)
    lstm = Lstm(*sizes, both_ways)
    mask = (torch.arange(40) < torch.tensor([40, 13, 1])[:, None]).float()
    x = noise(3, 40, inner, sizes[0])
    grad = noise(3, 40, inner, sizes[1] * (1 + both_ways), seed=1)
    exact = results(run_lstm, lstm, x, mask, grad)
    with bf16():
        ours = results(run_lstm, lstm, x, mask, grad)
        theirs = results(plain_lstm, lstm, x, mask, grad)
    for value, of_ours, of_theirs in zip(exact, ours, theirs, strict=True):
        assert of_ours.dtype == torch.float32
        error, bound = (value - of_ours).norm(), (value - of_theirs).norm()
        assert 0 < error < 1.5 * bound
    assert not ours[1][1, 13:].any()


def test_it_runs_on_bf16_and_fp32_alike():
    lstm, x = Lstm(6, 8, both_ways=True), noise(2, 9, 3, 6).bfloat16()
    half, single = x.clone().requires_grad_(), x.float().requires_grad_()
    with bf16():
        ys = [lstm(half), lstm(single)]
    assert ys[0].dtype == torch.bfloat16
    assert "FastLstm" in ys[0].grad_fn.name()
    torch.testing.assert_close(*ys, rtol=0, atol=0)
    sum(y.float().square().sum() for y in ys).backward()
    assert half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(half.grad, single.grad.bfloat16(), rtol=0, atol=0)


@torch.no_grad()
def test_steps_of_any_length_are_the_whole():
    lstm, x = Lstm(5, 20, both_ways=False), noise(2, 30, 4, 5)
    state, parts = lstm.init_state(2, 4), []
    with bf16():
        whole = lstm(x)
        for part in x.split([1, 0, 2, 17, 10], dim=1):
            y, state = lstm.step(part, state)
            parts.append(y.bfloat16())
    assert {memory.dtype for memory in state} == {torch.float32}
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=0)


@torch.no_grad()
def test_weights_are_packed_anew_when_they_or_the_precision_change():
    lstm, x = Lstm(5, 7, both_ways=True), noise(2, 9, 3, 5)
    single = lstm(x)
    with bf16():
        before = lstm(x)
        lstm.weight_hh.mul_(2)
        after = lstm(x)
        again = Lstm(5, 7, both_ways=True)
        again.load_state_dict(lstm.state_dict())
        torch.testing.assert_close(after, again(x), rtol=0, atol=0)
    assert not torch.equal(before, after)
    torch.testing.assert_close(before.float(), single, rtol=0, atol=0.02)
    torch.testing.assert_close(after.float(), lstm(x), rtol=0, atol=0.02)


def test_gradients_do_not_depend_on_the_number_of_threads():
    lstm, x, mask = (
        Lstm(12, 16, both_ways=True),
        noise(4, 11, 30, 12),
        torch.ones(4, 11),
    )
    grad, n_threads = noise(4, 11, 30, 32, seed=1), torch.get_num_threads()
    with bf16():
        try:
            torch.set_num_threads(1)
            one = results(run_lstm, lstm, x, mask, grad)
            torch.set_num_threads(2)
            two = results(run_lstm, lstm, x, mask, grad)
        finally:
            torch.set_num_threads(n_threads)
    for alone, shared in zip(one, two, strict=True):
        torch.testing.assert_close(alone, shared, rtol=0, atol=0)


def test_what_is_not_a_number_stays_so():
    x = noise(1, 6, 1, 5)
    x[0, 3] = torch.nan
    with bf16(), torch.no_grad():
        y = Lstm(5, 7, both_ways=False)(x)
    assert y[0, :3].isfinite().all()
    assert y[0, 3:].isnan().all()
