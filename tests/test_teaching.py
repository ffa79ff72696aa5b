"""What branches teach each other in the loss: who, whom, and when."""

import math

import pytest
import torch

from speechbrain_peer.peer_learning.exchange import Branches, Outputs
from speechbrain_peer.peer_learning.losses import PeerLoss
from speechbrain_peer.peer_learning.measure import Measure
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.signal import si_snr

BATCH, TIME = 4, 800
LENS = torch.tensor([1.0, 0.5, 0.75, 1.0])
THRESHOLD = 15.0


def noise(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def estimates_of(qualities, targets):
    """Estimates (peers * batch, 1, time) of about these SI-SNRs (peers, batch)."""
    peers = len(qualities)
    errors = noise(peers, BATCH, TIME, seed=1)
    levels = 10 ** (-torch.tensor(qualities) / 20)[..., None]
    # An item is scored as in training, whatever its scale.
    estimates = 3 * (targets + levels * errors)
    return estimates.flatten(0, 1)[:, None].requires_grad_()


@pytest.fixture
def targets():
    return noise(BATCH, TIME, seed=0)


def added_by(estimates, targets, **options):
    """What the options add to the loss, and its gradient at each (peers, batch)."""
    outputs = Outputs(estimates, mixtures=noise(*estimates[:, 0].shape, seed=5))
    measure = options.pop("measure", None)
    losses = [
        PeerLoss(measure=measure, **chosen)(outputs, targets, LENS)[0]
        for chosen in (options, {})
    ]
    added = losses[0] - losses[1]
    (grad,) = torch.autograd.grad(added, estimates)
    return added.detach(), grad.abs().amax((1, 2)).unflatten(0, (-1, BATCH))


TWO = [[20.0, 20.0, 5.0, 5.0], [20.0, 5.0, 20.0, 5.0]]
"""Of four items in which both, one and none of the peers are good."""


def test_the_good_teach_and_learn_only_from_the_good(targets):
    added, grad = added_by(
        estimates_of(TWO, targets), targets, mutual_weight=0.5, mutual_threshold=15
    )
    # Who is taught; that a branch teaches gives it no gradient.
    taught = [[True, False, True, False], [True, True, False, False]]
    assert (grad > 1e-4).tolist() == taught
    assert not grad[~torch.tensor(taught)].any()
    # Each alone, against the other.
    first, second = estimates_of(TWO, targets).detach()[:, 0].unflatten(0, (2, -1))
    alike = si_snr(first, second, LENS), si_snr(second, first, LENS)
    expected = sum(
        alike[peer][item]
        for peer in range(2)
        for item in range(BATCH)
        if taught[peer][item]
    )
    torch.testing.assert_close(added, -0.5 * expected / (2 * BATCH))


def test_of_several_the_best_other_teaches(targets):
    qualities = [[25.0] * 4, [20.0] * 4, [16.0] * 4]
    estimates = estimates_of(qualities, targets)
    added, grad = added_by(estimates, targets, mutual_weight=1.0)
    assert (grad > 1e-4).all()
    best, second, third = estimates.detach()[:, 0].unflatten(0, (3, -1))
    pairs = (best, second), (second, best), (third, best)
    expected = torch.stack([si_snr(*pair, LENS) for pair in pairs]).mean()
    torch.testing.assert_close(added, -expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("level", ["mixture", "network"])
def test_nobody_teaches_of_an_absent_talker(targets, level):
    estimates = estimates_of([[20.0] * 4] * 2, targets)
    targets[1] = 0
    options = {"mutual_weight": 1.0, "mutual_threshold": -100}
    added, grad = added_by(estimates, targets, measure=Measure(level), **options)
    assert math.isfinite(added)
    assert (grad > 0).all(0).tolist() == [True, False, True, True]
    assert not grad[:, 1].any()


def test_one_branch_has_nobody_to_learn_from(targets):
    estimates = estimates_of([[20.0] * 4], targets)
    added, grad = added_by(estimates, targets, mutual_weight=1.0)
    assert added == 0 and not grad.any()


@pytest.mark.parametrize("name", ["mutual_weight", "imitation_weight"])
def test_what_cannot_be_taught_is_told(name):
    PeerLoss().check("off", "none")
    loss = PeerLoss(**{name: 0.001})
    loss.check("drawn", "itself")
    with pytest.raises(DataError, match=f"{name} needs peers: give --peers drawn"):
        loss.check("off", "itself")


def test_imitation_needs_predictors():
    PeerLoss(mutual_weight=1).check("drawn", "none")
    with pytest.raises(DataError, match="needs predictors: give --exchange itself"):
        PeerLoss(imitation_weight=1).check("drawn", "none")


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ({"mutual_weight": -0.1}, "loss: mutual_weight is -0.1, not from 0 to 1000"),
        ({"mutual_weight": "x"}, "loss: mutual_weight is 'x', not a number"),
        ({"imitation_weight": True}, "imitation_weight is True, not a number"),
        ({"mutual_threshold": math.nan}, "mutual_threshold is nan, not from -100"),
    ],
)
def test_weights_that_cannot_be(option, complaint):
    with pytest.raises(DataError, match=complaint):
        PeerLoss(**option)


FRAMES = (9, 4, 6, 9)
BETTER = (0, 1, 1, 0)


def represented(shape, targets, qualities, seed=2):
    """Outputs of two peers whose p is noise, and decodes to these qualities."""
    p = noise(2 * BATCH, max(FRAMES), *shape, seed=seed).requires_grad_()
    mask = (torch.arange(max(FRAMES)) < torch.tensor(FRAMES)[:, None]).float()
    branches = Branches(p, mask.repeat(2, 1), p, p)
    waveforms = estimates_of(qualities, targets)
    return Outputs(waveforms, waveforms, waveforms, branches=branches)


@pytest.mark.parametrize("shape", [(5,), (3, 2)])  # also of bins
def test_the_worse_imitates_what_the_better_represents(targets, shape):
    qualities = [[9.0 if b == peer else 1.0 for b in BETTER] for peer in range(2)]
    outputs = represented(shape, targets, qualities)
    losses = [
        PeerLoss(imitation_weight=weight)(outputs, targets, LENS)[0]
        for weight in (0.0, 0.5)
    ]
    (grad,) = torch.autograd.grad(losses[1], outputs.branches.p)
    grad, p = (x.detach().unflatten(0, (2, -1)) for x in (grad, outputs.branches.p))
    expected = 0
    for item, better in enumerate(BETTER):
        # The teacher learns nothing, and padding is of no account.
        assert not grad[better, item].any()
        assert grad[1 - better, item, : FRAMES[item]].all()
        assert not grad[1 - better, item, FRAMES[item] :].any()
        taught, teacher = (
            p[peer, item, : FRAMES[item]] for peer in (1 - better, better)
        )
        expected += (taught - teacher).norm() ** 2 / teacher.norm() ** 2 / BATCH
    torch.testing.assert_close(losses[1] - losses[0], 0.5 * expected)


def test_of_an_absent_talker_nothing_is_imitated(targets):
    """Whose representation goes to zero, and relative errors to infinity."""
    targets[1] = 0
    outputs = represented((5,), targets, [[9.0] * 4, [1.0] * 4])
    outputs.branches.p.data[1] *= 1e-9  # of the first peer, whose estimate is quieter
    loss, _ = PeerLoss(imitation_weight=1.0, measure=Measure("network"))(
        outputs._replace(mixtures=noise(2 * BATCH, TIME, seed=5)), targets, LENS
    )
    (grad,) = torch.autograd.grad(loss, outputs.branches.p)
    assert loss.isfinite() and grad.abs().max() < 1
    assert not grad[[1, 5]].any() and grad[[4, 6, 7]].any()


def test_imitation_of_one_branch_is_nothing(targets):
    outputs = represented((5,), targets, [[9.0] * 4, [1.0] * 4])
    alone = Outputs(
        *(waveforms[:BATCH] for waveforms in outputs[:3]),
        branches=Branches(*(x[:BATCH] for x in outputs.branches)),
    )
    losses = [
        PeerLoss(imitation_weight=weight)(alone, targets, LENS)[0]
        for weight in (0.0, 1.0)
    ]
    assert torch.equal(*losses)
