"""Extraction from streams: any cut gives the whole, and the state is only tensors."""

import copy
import io

import numpy as np
import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from tiny_model import TRAINING_YAML, build

from speechbrain_peer.models import dpccn, sepformer, spex_plus
from speechbrain_peer.nnet.tcn import TemporalConvNet
from speechbrain_peer.peer_learning import streams
from speechbrain_peer.peer_learning.exchange import extract
from speechbrain_peer.peer_learning.predictors import (
    fold_predictors,
    without_predictors,
)

LENGTH = 3007


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def causal():
    text = TRAINING_YAML.replace("adaptation: mul", "adaptation: mul\n    causal: True")
    return torch.nn.ModuleDict(load_hyperpyyaml(text)["modules"])


@pytest.fixture(scope="module", params=[dict, without_predictors, fold_predictors])
def modules(request):
    """With predictors, without any, and with folded ones."""
    return torch.nn.ModuleDict(request.param(causal()))


@torch.no_grad()
def push(modules, pieces, embeddings, state):
    """The estimates of the pieces one by one, and the state after them."""
    estimates = []
    for piece in pieces:
        estimate, state = streams.step(modules, piece, embeddings, state)
        estimates.append(estimate)
    return estimates, state


@torch.no_grad()
def in_pieces(modules, mixtures, embeddings, cuts, state=None):
    """The whole estimate of mixtures that are cut."""
    state = state or streams.init_state(modules, len(mixtures))
    pieces = mixtures.tensor_split(cuts, dim=1)
    estimates, state = push(modules, pieces, embeddings, state)
    left = mixtures.shape[1] - sum(estimate.shape[1] for estimate in estimates)
    estimates.append(streams.finish(modules, embeddings, state, left))
    return torch.cat(estimates, dim=1)


@torch.no_grad()
def in_one(modules, mixtures, embeddings):
    return extract(modules, mixtures, embeddings)


def assert_near(estimates, expected):
    assert estimates.shape == expected.shape
    assert (estimates - expected).abs().max() < 1e-5 * expected.abs().max()


def random_cuts(length, seed):
    rng = np.random.default_rng(seed)
    return sorted(rng.integers(0, length + 1, size=rng.integers(1, 60)).tolist())


@pytest.mark.parametrize("seed", range(5))
def test_any_cut_gives_the_whole(modules, seed):
    mixtures, embeddings = noise(2, LENGTH), noise(2, 16, seed=1)
    estimates = in_pieces(modules, mixtures, embeddings, random_cuts(LENGTH, seed))
    assert_near(estimates, in_one(modules, mixtures, embeddings))


@pytest.mark.parametrize("size", [1, 7, 8, 16, 80, LENGTH])
def test_pieces_of_one_size_give_the_whole(size):
    modules, length = causal(), 500 if size == 1 else LENGTH
    mixtures, embeddings = noise(1, length), noise(1, 16, seed=1)
    estimates = in_pieces(modules, mixtures, embeddings, list(range(0, length, size)))
    assert_near(estimates, in_one(modules, mixtures, embeddings))


@pytest.mark.parametrize("length", [1, 8, 15, 16, 17, 23, 24, 25])
def test_streams_around_a_frame(modules, length):
    mixtures, embeddings = noise(2, length), noise(2, 16, seed=1)
    estimates = in_pieces(modules, mixtures, embeddings, list(range(length)))
    expected = in_one(modules, mixtures, embeddings)
    torch.testing.assert_close(estimates, expected, rtol=0, atol=1e-6)


def test_a_stream_without_samples_has_no_estimate(modules):
    estimates = in_pieces(modules, noise(1, 0), noise(1, 16), [])
    assert estimates.shape == (1, 0)


def test_level_changes_and_hours_of_frames_leave_the_norms_exact():
    """Cumulative norms of a stream whose level falls by 60 dB."""
    modules = causal()
    mixtures = noise(1, 80000) * torch.logspace(0, -3, 80000)
    embeddings = noise(1, 16, seed=1)
    estimates = in_pieces(modules, mixtures, embeddings, list(range(0, 80000, 777)))
    expected = in_one(modules, mixtures, embeddings)
    assert_near(estimates, expected)
    assert_near(estimates[:, -8000:], expected[:, -8000:])


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def moved(state):
    if isinstance(state, torch.Tensor):
        return state.to("cpu", copy=True)
    return tuple(map(moved, state))


@pytest.mark.parametrize("copy_state", [saved, copy.deepcopy, moved])
def test_a_copy_of_the_state_goes_on_alike(modules, copy_state):
    mixtures, embeddings = noise(1, LENGTH), noise(1, 16, seed=1)
    start, rest = mixtures.split((1234, LENGTH - 1234), dim=1)
    state = streams.init_state(modules, 1)
    _, state = push(modules, [start], embeddings, state)
    other = copy_state(state)
    # Another end of the stream, in between, changes nothing.
    push(modules, [noise(1, 500, seed=5)], embeddings, state)
    first, after = push(modules, [rest], embeddings, state)
    second, other_after = push(modules, [rest], embeddings, other)
    assert torch.equal(first[0], second[0])
    assert flat(after)[0].shape == flat(other_after)[0].shape
    assert all(map(torch.equal, flat(after), flat(other_after)))


def flat(state):
    """All tensors of a nested tuple."""
    if isinstance(state, torch.Tensor):
        return [state]
    assert type(state) is tuple
    return [tensor for part in state for tensor in flat(part)]


def stacked(*states):
    """Streams put together."""
    if isinstance(states[0], torch.Tensor):
        return torch.cat(states)
    return tuple(stacked(*parts) for parts in zip(*states, strict=True))


def test_a_batch_of_streams_is_its_streams_one_by_one(modules):
    """Also put together in the middle, when one has heard more than the other."""
    mixtures, embeddings = noise(2, LENGTH), noise(2, 16, seed=1)
    cuts = random_cuts(LENGTH, seed=9)
    together = in_pieces(modules, mixtures, embeddings, cuts)
    alone = [in_pieces(modules, mixtures[[k]], embeddings[[k]], cuts) for k in (0, 1)]
    assert_near(together, torch.cat(alone))

    begun, states = streams.init_state(modules, 1), []
    for k, heard in enumerate((800, 2400)):
        states += push(modules, [noise(1, heard, seed=k)], embeddings[[k]], begun)[1:]
    (estimates,), _ = push(modules, [mixtures], embeddings, stacked(*states))
    for k, state in enumerate(states):
        expected, _ = push(modules, [mixtures[[k]]], embeddings[[k]], state)
        assert_near(estimates[[k]], expected[0])


def test_no_output_before_its_inputs(modules):
    """What has been given does not change, and it is less than a frame late."""
    embeddings, mixtures = noise(1, 16, seed=1), noise(1, LENGTH)
    whole = in_one(modules, mixtures, embeddings)
    for heard in (1, 15, 16, 100, 1000):
        state = streams.init_state(modules, 1)
        (start,), _ = push(modules, [mixtures[:, :heard]], embeddings, state)
        assert heard - 16 < start.shape[1] <= heard
        # The frames that were heard reach on by a frame's overlap at most.
        expected = whole[:, : start.shape[1]]
        torch.testing.assert_close(start, expected, rtol=0, atol=1e-5)
        later = torch.cat((mixtures[:, :heard], noise(1, 500, seed=7)), dim=1)
        other = in_one(modules, later, embeddings)[:, : start.shape[1]]
        torch.testing.assert_close(start, other, rtol=0, atol=1e-5)


def test_the_state_does_not_grow():
    modules, embeddings = causal(), noise(1, 16)
    sizes = set()
    state = streams.init_state(modules, 1)
    for _ in range(20):
        _, state = push(modules, [noise(1, 400)], embeddings, state)
        # Nor is it a view of something larger.
        sizes.add(sum(tensor.untyped_storage().nbytes() for tensor in flat(state)))
    assert len(sizes) == 1


def test_gradients_of_a_step_reach_the_model():
    modules = causal()
    state = streams.init_state(modules, 1)
    estimates, _ = streams.step(modules, noise(1, 800), noise(1, 16), state)
    estimates.square().sum().backward()
    assert modules["separator"].tcn.blocks[0].in_proj.weight.grad.abs().max() > 0


def test_what_looks_ahead_has_no_streams():
    assert streams.init_state(build(), batch=1) is None
    sizes = (16, 8, 12, 8)
    assert TemporalConvNet(*sizes, n_blocks=2, n_repeats=1).init_state(1) is None
    for backbone in (dpccn, sepformer, spex_plus):
        assert not hasattr(backbone.Separator, "init_state")


def test_steps_follow_parameters_that_change():
    """What is prepared of them is kept, until they are other ones."""
    modules, mixtures, embeddings = causal(), noise(1, 400), noise(1, 16)
    block = modules["separator"].tcn.blocks[1]
    in_pieces(modules, mixtures, embeddings, [100])
    block.out_proj.weight.data = 2 * block.out_proj.weight.data
    with torch.no_grad():
        block.in_slope.fill_(0.9)
    estimates = in_pieces(modules, mixtures, embeddings, [100])
    assert_near(estimates, in_one(modules, mixtures, embeddings))


def test_steps_follow_a_fused_optimizer():
    """Which changes weights without counting it, as other optimizers do."""
    modules, mixtures, embeddings = causal(), noise(1, 400), noise(1, 16)
    in_pieces(modules.eval(), mixtures, embeddings, [100])
    optimizer = torch.optim.Adam(modules.parameters(), lr=0.01, fused=True)
    extract(modules.train(), mixtures, embeddings).square().sum().backward()
    optimizer.step()
    for mode in (True, False):
        estimates = in_pieces(modules.train(mode), mixtures, embeddings, [100])
        assert_near(estimates, in_one(modules, mixtures, embeddings))
