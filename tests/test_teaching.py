"""What branches teach each other in the loss: who, whom, and when."""

import math

import pytest
import torch

from speechbrain_peer.peer_learning.exchange import Outputs
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
    PeerLoss().check("off")
    PeerLoss(mutual_weight=0.001).check("drawn")
    with pytest.raises(DataError, match=r"mutual_weight needs peers .*--peers drawn"):
        PeerLoss(mutual_weight=0.001).check("off")


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ({"mutual_weight": -0.1}, "loss: mutual_weight is -0.1, not from 0 to 1000"),
        ({"mutual_weight": "x"}, "loss: mutual_weight is 'x', not a number"),
        ({"mutual_threshold": math.nan}, "mutual_threshold is nan, not from -100"),
    ],
)
def test_weights_that_cannot_be(option, complaint):
    with pytest.raises(DataError, match=complaint):
        PeerLoss(**option)
