"""What makes peer learning: who lends, to whom, and where gradients may go."""

import itertools

import numpy as np
import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from tiny_model import TRAINING_YAML, build
from torch.nn import ModuleDict

from speechbrain_peer.peer_learning.exchange import (
    EXCHANGES,
    PeerLearning,
    extract,
    lend,
    represent,
)
from speechbrain_peer.peer_learning.losses import PeerLoss

# Of four pairs, and of the peers that should lend in them.
LENGTHS = (1200, 803, 1117, 16)
BETTER = (0, 1, 1, 0)
TIME = max(LENGTHS)
LENS = torch.tensor(LENGTHS) / TIME
EMBEDDING = 16


def noise(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build_stages(overrides=None):
    """Those of extraction, without the classifier of a training."""
    hparams = load_hyperpyyaml(TRAINING_YAML, overrides)
    modules = PeerLearning(hparams["exchange"]).stages(hparams["modules"])
    del modules["speaker_classifier"]
    return ModuleDict(modules)


@pytest.fixture(scope="module")
def modules():
    return build_stages()


@pytest.fixture(scope="module")
def backbone():
    """The same weights without predictors."""
    return build_stages({"exchange": "none"})


@pytest.fixture(scope="module")
def pairs(modules):
    """Mixtures, embeddings and targets of pairs in which both peers can be better.

    An untrained network extracts nothing. So the targets are made from what one of
    the peers predicts, with some noise and an offset, which SI-SNR removes from the
    true samples; the other one's prediction is far off.
    """
    true = (torch.arange(TIME) < torch.tensor(LENGTHS)[:, None]).float()
    mixtures = noise(8, TIME, seed=0) * true.repeat(2, 1)
    embeddings = noise(4, EMBEDDING, seed=1)
    with torch.no_grad():
        predicted = predict(modules, mixtures, embeddings)
    chosen = predicted[list(BETTER), range(4)]
    targets = chosen + 0.5 * chosen.std() * noise(4, TIME, seed=2) + 10.0
    return mixtures, embeddings, targets * true


def predict(modules, mixtures, embeddings):
    """decoder(p) of the peers, (2, batch, time)."""
    branches = represent(modules, mixtures, embeddings, LENS)
    waveforms = modules["decoder"](branches.p, TIME, branches.frame_mask)
    return waveforms[:, 0].unflatten(0, (2, -1))


def learn(modules, mixtures, embeddings, targets, lens, exchange, coin=None, **more):
    """A training step's forward pass; `more` is of the epoch."""
    epoch = more.pop("epoch", None)
    peer_learning = PeerLearning(exchange, **more)
    return peer_learning(modules, mixtures, embeddings, targets, lens, coin, epoch)


def si_snr_by_formula(estimate, target):
    estimate, target = (x.double().numpy() for x in (estimate, target))
    estimate, target = estimate - estimate.mean(), target - target.mean()
    target = (estimate @ target) / (target @ target) * target
    return 10 * np.log10(
        (target @ target) / ((estimate - target) @ (estimate - target))
    )


@torch.no_grad()
def estimate_alone(modules, mixtures, embeddings, peer, item, lender):
    """One branch of one pair, unpadded, stage by stage, lent the lender's p."""
    length = LENGTHS[item]
    embedding = embeddings[item, None]
    W, p, e = [], [], []
    for mixture in mixtures.unflatten(0, (2, -1))[:, item, None, :length]:
        representation, mask = modules["encoder"](mixture)
        W.append(representation)
        e.append(modules["separator"](representation, embedding, mask))
        p.append(modules["predictor1"](e[-1]))
    r = modules["predictor2"](torch.cat((p[peer], p[lender]), dim=-1))
    masked = modules["mask_head"](e[peer], r, W[peer])
    return (
        modules["decoder"](waveform, length)[0, 0] for waveform in (masked, p[peer], r)
    )


def check_lenders(modules, pairs, outputs, lenders):
    """`lenders[peer][item]` is who lent to that branch."""
    mixtures, embeddings, _ = pairs
    for peer in range(2):
        for item, length in enumerate(LENGTHS):
            expected = estimate_alone(
                modules, mixtures, embeddings, peer, item, lenders[peer][item]
            )
            for waveforms, right in zip(outputs[:3], expected, strict=True):
                waveform = waveforms[4 * peer + item, 0, :length]
                torch.testing.assert_close(waveform, right, rtol=0, atol=1e-5)


def test_the_peer_of_higher_si_snr_lends_item_by_item(modules, pairs):
    mixtures, embeddings, targets = pairs
    with torch.no_grad():
        predicted = predict(modules, mixtures, embeddings)
    scores = [
        [
            si_snr_by_formula(peer[item, :length], targets[item, :length])
            for item, length in enumerate(LENGTHS)
        ]
        for peer in predicted
    ]
    better = np.argmax(scores, axis=0).tolist()
    assert better == list(BETTER)  # so that no fixed choice passes
    outputs = learn(modules, mixtures, embeddings, targets, LENS, "better")
    check_lenders(modules, pairs, outputs, [better, better])


def test_anyway_lends_both_branches_what_the_coin_says(modules, pairs):
    coin = [1, 1, 0, 0]
    outputs = learn(modules, *pairs, LENS, "anyway", torch.tensor(coin))
    check_lenders(modules, pairs, outputs, [coin, coin])


def test_itself_lends_each_branch_its_own(modules, pairs):
    outputs = learn(modules, *pairs, LENS, "itself")
    check_lenders(modules, pairs, outputs, [[0] * 4, [1] * 4])


def test_other_lends_what_a_branch_does_not_have(modules, pairs):
    outputs = learn(modules, *pairs, LENS, "other")
    check_lenders(modules, pairs, outputs, [[1] * 4, [0] * 4])


def test_by_the_coin_a_branch_keeps_its_own_or_is_lent_the_others(modules, pairs):
    coin = [1, 0, 0, 1]
    outputs = learn(modules, *pairs, LENS, "coin", torch.tensor(coin))
    check_lenders(modules, pairs, outputs, [coin, [1 - side for side in coin]])


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 2)])  # also of bins
@pytest.mark.parametrize("peers", [1, 2, 3])
def test_what_the_coin_lends_is_itself_or_other(peers, shape):
    p = noise(peers, 3, *shape, seed=0)
    lent = lend(p, None, "coin", torch.tensor([0, 1, peers - 1]))
    own, others = (lend(p, None, exchange) for exchange in ("itself", "other"))
    assert torch.equal(lent[:, 0], own[:, 0])
    assert torch.equal(lent[:, 1:], others[:, 1:])


def test_of_three_peers_the_best_lends_or_the_mean_of_the_others():
    p = noise(3, 2, 5, 4, seed=0)  # peers, batch, frames, filters
    scores = torch.tensor([[1.0, 9.0], [3.0, 7.0], [2.0, 8.0]])
    lent = lend(p, scores, "better")
    assert all(torch.equal(lent[k], torch.stack((p[1, 0], p[0, 1]))) for k in range(3))
    means = torch.stack((p[[1, 2]].mean(0), p[[0, 2]].mean(0), p[[0, 1]].mean(0)))
    torch.testing.assert_close(lend(p, scores, "other"), means)


def test_after_the_epochs_of_exchange_each_branch_has_its_own(modules, pairs):
    for epoch, lenders in ((1, [BETTER, BETTER]), (2, [[0] * 4, [1] * 4])):
        outputs = learn(modules, *pairs, LENS, "better", epoch=epoch, exchange_epochs=1)
        check_lenders(modules, pairs, outputs, lenders)


def test_only_the_lent_representation_tells_the_exchanges_apart(modules, pairs):
    """The tests above could not tell, were p* without effect."""
    coin = torch.tensor([1, 0, 0, 1])  # always the worse
    estimates = [
        learn(modules, *pairs, LENS, exchange, coin).estimate
        for exchange in EXCHANGES[:-1]
    ]
    for one, other in itertools.combinations(range(len(estimates)), 2):
        differences = (estimates[one] - estimates[other]).abs().amax(-1)[:, 0]
        assert (differences > 1e-4).any()


def gradient_at(modules, pairs, exchange, item, peer, output):
    """Of one branch's output, with respect to both mixtures of the pair."""
    mixtures, embeddings, targets = pairs
    mixtures = mixtures.clone().requires_grad_()
    coin = torch.tensor(BETTER)
    outputs = learn(modules, mixtures, embeddings, targets, LENS, exchange, coin)
    waveform = getattr(outputs, output)[4 * peer + item]
    weights = noise(*waveform.shape, seed=3)
    (grad,) = torch.autograd.grad((waveform * weights).sum(), mixtures)
    return grad.unflatten(0, (2, 4))


@pytest.mark.parametrize("output", ["refined", "estimate"])
@pytest.mark.parametrize("exchange", ["better", "anyway", "other", "coin"])
def test_no_gradient_reaches_the_lender(modules, pairs, exchange, output):
    for item, better in enumerate(BETTER):
        for peer in (better, 1 - better):
            grad = gradient_at(modules, pairs, exchange, item, peer, output)
            assert grad[peer, item].any()  # its own path
            grad[peer, item] = 0
            assert not grad.any()  # and no other


@pytest.mark.parametrize("exchange", EXCHANGES[:-1])
def test_no_gradient_takes_the_way_through_p_star(pairs, exchange):
    """Also where a branch lends to itself: from an r of p* alone, p learns nothing."""
    modules = build_stages()
    p_columns, p_star_columns = modules["predictor2"].linear.weight.chunk(2, dim=1)
    torch.nn.init.zeros_(p_columns)
    assert p_star_columns.any()
    outputs = learn(modules, *pairs, LENS, exchange, torch.tensor(BETTER))
    weight = modules["predictor1"].linear.weight
    (grad,) = torch.autograd.grad(outputs.refined.square().sum(), weight)
    assert not grad.any()


@pytest.mark.parametrize("exchange", EXCHANGES[:-1])
def test_equal_peers_train_as_inference_extracts(modules, pairs, exchange):
    mixtures, embeddings, targets = pairs
    single = mixtures[:4]
    extracted = extract(modules, single, embeddings, LENS)
    coin = torch.tensor(BETTER)
    for peers in (2, 1):  # `peers: off` has one, which lends to itself
        outputs = learn(
            modules, single.repeat(peers, 1), embeddings, targets, LENS, exchange, coin
        )
        expected = extracted.repeat(peers, 1)
        torch.testing.assert_close(outputs.estimate[:, 0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("exchange", ["better", "itself", "other", "none"])
def test_swapping_the_peers_swaps_the_outputs(modules, backbone, pairs, exchange):
    mixtures, embeddings, targets = pairs
    stages = backbone if exchange == "none" else modules
    outputs, swapped = (
        learn(stages, stacked, embeddings, targets, LENS, exchange)
        for stacked in (mixtures, mixtures.roll(4, 0))
    )
    for one, other in zip(outputs[:3], swapped[:3], strict=True):
        if one is not None:
            torch.testing.assert_close(one.roll(4, 0), other, rtol=0, atol=1e-6)
            assert not torch.allclose(one, other)


def test_none_is_the_backbone(modules, backbone, pairs):
    mixtures, embeddings, targets = pairs
    assert list(backbone) == [name for name in modules if "predictor" not in name]
    outputs = learn(backbone, mixtures, embeddings, targets, LENS, "none")
    assert outputs.predicted is None and outputs.refined is None
    alone = torch.cat(
        [extract(backbone, peer, embeddings, LENS) for peer in mixtures.split(4)]
    )
    torch.testing.assert_close(outputs.estimate[:, 0], alone, rtol=0, atol=1e-6)
    # And with r of no effect, peer learning's model is that backbone.
    neutral = build_stages()
    neutral.load_state_dict(torch.nn.ModuleDict(backbone).state_dict(), strict=False)
    torch.nn.init.zeros_(neutral["mask_head"].combine.weight)
    torch.nn.init.zeros_(neutral["mask_head"].combine.bias)
    outputs = learn(neutral, mixtures, embeddings, targets, LENS, "better")
    torch.testing.assert_close(outputs.estimate[:, 0], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_padded_and_unpadded_items_have_one_loss(modules, backbone, pairs, exchange):
    mixtures, embeddings, targets = pairs
    stages = backbone if exchange == "none" else modules
    coin, loss = torch.tensor([1, 0, 1, 1]), PeerLoss((1.0,), 0.5, 0.25)
    # Whatever is in the padding of the targets, it is not scored.
    noisy = targets + (targets == 0) * noise(4, TIME, seed=4)
    padded, scores = loss(
        learn(stages, mixtures, embeddings, noisy, LENS, exchange, coin),
        noisy,
        LENS,
    )
    alone, alone_scores = [], []
    for item, length in enumerate(LENGTHS):
        chosen = slice(item, item + 1)
        arguments = mixtures[item::4, :length], embeddings[chosen]
        target = targets[chosen, :length]
        outputs = learn(stages, *arguments, target, None, exchange, coin[chosen])
        value, score = loss(outputs, target)
        alone.append(value)
        alone_scores.append(score)
    torch.testing.assert_close(padded, torch.stack(alone).mean(), rtol=0, atol=1e-4)
    expected = torch.cat([score.mask for score in alone_scores], dim=1)
    torch.testing.assert_close(scores.mask, expected, rtol=0, atol=1e-3)


def test_exchanges_that_do_not_exist_or_fit(modules, backbone, pairs):
    with pytest.raises(ValueError, match="exchange 'best': choose one of better, any"):
        PeerLearning("best")
    with pytest.raises(ValueError, match=r"predictor1 and predictor2; give --exchange"):
        PeerLearning("itself").stages(backbone)
    for stages, exchange in ((modules, "none"), (backbone, "better")):
        with pytest.raises(ValueError, match=f"'{exchange}' does not fit the model"):
            learn(stages, *pairs, LENS, exchange)


def test_a_classifier_sees_one_embedding_for_each_pair(pairs):
    modules = build()
    mixtures, embeddings, targets = pairs
    outputs = learn(modules, mixtures, embeddings, targets, LENS, "better")
    expected = modules["speaker_classifier"](embeddings)
    assert torch.equal(outputs.speaker_logits, expected)
    assert len(expected) == len(targets) == len(mixtures) / 2
