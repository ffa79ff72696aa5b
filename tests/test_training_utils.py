"""Checkpoints survive kills, and schedules are right for a loss below zero."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.nnet import schedulers as speechbrain_schedulers
from speechbrain.nnet.schedulers import update_learning_rate
from speechbrain.utils import epoch_loop as speechbrain_epochs
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_peer.training.brain import SafeBrain
from speechbrain_peer.training.checkpoints import UNFINISHED_PREFIX, SafeCheckpointer
from speechbrain_peer.training.launch import locked
from speechbrain_peer.training.schedules import (
    EpochCounterWithStopper,
    LinearDecay,
    ReduceLROnPlateau,
)
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.messages import one_line
from speechbrain_peer.utils.totals import EpochTotals


class Killer(torch.nn.Module):
    """A recoverable in the middle of a save: ends the process, or raises."""

    def __init__(self, how=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.how = how

    def state_dict(self):
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "raise":
            raise OSError("No space left on device")
        return super().state_dict()


def model_with(value):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, value)
    return model


def interrupted_save(checkpointer_class, folder, how):
    """One good checkpoint of weight 1, then a save of weight 2 that breaks off."""
    checkpointer = checkpointer_class(
        folder,
        {"before": model_with(1.0), "killer": Killer(), "model": model_with(1.0)},
    )
    checkpointer.save_checkpoint()
    checkpointer.add_recoverable("before", model_with(2.0))
    checkpointer.add_recoverable("model", model_with(2.0))
    checkpointer.add_recoverable("killer", Killer(how))
    if how == "raise":
        with pytest.raises(DataError, match="space"):
            checkpointer.save_checkpoint()
        return
    child = os.fork()
    if child == 0:
        checkpointer.save_checkpoint()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("how", ["kill", "raise"])
def test_interrupted_save_leaves_the_checkpoint_before(tmp_path, how):
    interrupted_save(SafeCheckpointer, tmp_path, how)
    before, model = model_with(0.0), model_with(0.0)
    recoverables = {"before": before, "killer": Killer(), "model": model}
    checkpointer = SafeCheckpointer(tmp_path, recoverables)
    assert checkpointer.recover_if_possible() is not None
    assert before.weight.item() == model.weight.item() == 1.0

    # After an error the space is free again at once.
    left = list(tmp_path.glob(f"{UNFINISHED_PREFIX}*"))
    assert bool(left) == (how == "kill")
    checkpointer.save_checkpoint()
    assert not list(tmp_path.glob(f"{UNFINISHED_PREFIX}*"))
    assert len(checkpointer.list_checkpoints()) == 2


def test_interrupted_save_breaks_a_plain_checkpointer(tmp_path):
    """Why SafeCheckpointer exists; if this fails, SpeechBrain has mended it."""
    interrupted_save(Checkpointer, tmp_path, "kill")
    recoverables = {"before": model_with(0), "killer": Killer(), "model": model_with(0)}
    with pytest.raises((KeyError, RuntimeError)):
        Checkpointer(tmp_path, recoverables).recover_if_possible()


def test_best_last_and_newest_intra_epoch_checkpoints_are_kept(tmp_path):
    model = model_with(0.0)
    checkpointer = SafeCheckpointer(tmp_path, {"model": model})

    def save_epoch(loss):
        torch.nn.init.constant_(model.weight, loss)
        checkpointer.save_and_keep_only(meta={"loss": loss}, min_keys=["loss"])

    def save_within_epoch():  # as Brain does
        checkpointer.save_and_keep_only(
            end_of_epoch=False,
            num_to_keep=1,
            ckpt_predicate=lambda ckpt: INTRA_EPOCH_CKPT_FLAG in ckpt.meta,
            meta={INTRA_EPOCH_CKPT_FLAG: True},
        )

    for loss in (-1.0, -5.0, -3.0):
        save_epoch(loss)
    for _ in range(3):
        save_within_epoch()
    ends = [ckpt.meta["end-of-epoch"] for ckpt in checkpointer.find_checkpoints()]
    assert ends == [False, False, True, True]

    save_epoch(-4.0)
    save_epoch(-2.0)
    losses = [ckpt.meta["loss"] for ckpt in checkpointer.find_checkpoints()]
    assert losses == [-2.0, -4.0, -5.0]
    checkpointer.recover_if_possible(min_key="loss")
    assert model.weight.item() == -5.0


def test_saved_checkpoint_is_returned_with_its_final_paths(tmp_path):
    model = model_with(1.0)
    checkpointer = SafeCheckpointer(tmp_path, {"model": model})
    for value in (1.0, 2.0):
        torch.nn.init.constant_(model.weight, value)
        saved = checkpointer.save_checkpoint(name="milestone")
    assert saved.path == tmp_path / "CKPT+milestone"
    assert saved.paramfiles["model"].exists()
    torch.nn.init.zeros_(model.weight)
    checkpointer.load_checkpoint(saved)
    assert model.weight.item() == 2.0


def test_nothing_is_skipped_when_a_checkpoint_is_loaded(tmp_path):
    model = model_with(1.0)
    SafeCheckpointer(tmp_path, {"model": model}).save_checkpoint()
    torch.nn.init.zeros_(model.weight)
    checkpointer = SafeCheckpointer(
        tmp_path, {"model": model, "dataloader-TRAIN": model_with(0), "curves": model}
    )
    with pytest.raises(DataError, match=r"dataloader-TRAIN, curves.*move it away"):
        checkpointer.recover_if_possible()
    assert model.weight.item() == 0.0

    optional = SafeCheckpointer(tmp_path, {"model": model})
    optional.add_recoverable("scaler", model_with(0.0), optional_load=True)
    with pytest.warns(UserWarning, match="scaler"):
        optional.recover_if_possible()
    assert model.weight.item() == 1.0


def three_epochs(folder):
    """A checkpointer after losses of -1, -3 (the best) and -2, as weights too."""
    model = model_with(0.0)
    checkpointer = SafeCheckpointer(folder, {"model": model})
    for loss in (-1.0, -3.0, -2.0):
        torch.nn.init.constant_(model.weight, loss)
        checkpointer.save_and_keep_only(meta={"loss": loss}, min_keys=["loss"])
    return checkpointer


def damage(path, how):
    content = path.read_bytes()
    kept = {"empty": b"", "truncated": content[: len(content) // 2], "text": b"text"}
    path.write_bytes(kept[how])


@pytest.mark.parametrize("how", ["empty", "truncated", "text"])
@pytest.mark.parametrize("name", ["model.ckpt", "CKPT.yaml"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path, caplog, name, how
):
    broken = three_epochs(tmp_path).find_checkpoint().path
    damage(broken / name, how)
    model = model_with(0.0)
    checkpointer = SafeCheckpointer(tmp_path, {"model": model})
    assert checkpointer.recover_if_possible().meta["loss"] == -3.0
    assert model.weight.item() == -3.0
    (warning,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert f"{broken}: cannot be read" in warning.message
    assert "\n" not in warning.message

    # It stands in the way of no other, and does not stay.
    checkpointer.save_and_keep_only(meta={"loss": 0.0}, min_keys=["loss"])
    left = SafeCheckpointer(tmp_path).find_checkpoints()
    assert [checkpoint.meta["loss"] for checkpoint in left] == [0.0, -3.0]
    assert len(list(tmp_path.glob("CKPT*"))) == 2


def test_a_damaged_best_checkpoint_falls_back_to_the_second_best(tmp_path):
    best = three_epochs(tmp_path).find_checkpoint(min_key="loss").path
    damage(best / "model.ckpt", "truncated")
    model = model_with(0.0)
    checkpointer = SafeCheckpointer(tmp_path, {"model": model})
    assert checkpointer.recover_if_possible(min_key="loss").meta["loss"] == -2.0


def test_training_does_not_begin_anew_over_checkpoints_that_cannot_be_read(tmp_path):
    for checkpoint in three_epochs(tmp_path).list_checkpoints():
        damage(checkpoint.path / "model.ckpt", "empty")
    checkpointer = SafeCheckpointer(tmp_path, {"model": model_with(0.0)})
    with pytest.raises(DataError, match=r"can be read .*EOFError"):
        checkpointer.recover_if_possible()
    assert len(list(tmp_path.glob("CKPT*"))) == 2


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, names = [], {}

    def sync(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append(os.path.basename(path))
        names[synced[-1]] = sorted(os.listdir(tmp_path))

    monkeypatch.setattr(os, "fsync", sync)
    checkpointer = SafeCheckpointer(tmp_path, {"model": model_with(1.0)})
    saved = checkpointer.save_checkpoint().path.name
    unfinished = UNFINISHED_PREFIX + saved
    assert sorted(synced[:2]) == ["CKPT.yaml", "model.ckpt"]
    assert synced[2:] == [unfinished, tmp_path.name]
    assert names[unfinished] == [unfinished]
    assert names[tmp_path.name] == [saved]


def test_modules_of_other_sizes_are_refused_as_they_are(tmp_path):
    checkpointer = three_epochs(tmp_path)
    checkpointer.check_fit({"model": model_with(7.0)})
    damage(checkpointer.find_checkpoint().path / "model.ckpt", "truncated")
    larger = torch.nn.Linear(2, 1)
    before = larger.weight.clone()
    with pytest.raises(DataError) as error:
        SafeCheckpointer(tmp_path).check_fit({"model": larger})
    assert "model.weight is (1, 1) there and (1, 2) here" in str(error.value)
    assert "model.bias is absent there and (1,) here" in str(error.value)
    assert torch.equal(larger.weight, before)
    with pytest.raises(DataError, match=r"head\.bias is absent there"):
        checkpointer.check_fit({"head": larger})


HOLD = """
import sys, time
from speechbrain_peer.training.launch import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_one_trainings_until_its_process_ends(tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):  # asking does not change the answer
            with pytest.raises(DataError) as error, locked(tmp_path):
                pass
            assert f"in use by process {holder.pid} on" in str(error.value)
        holder.kill()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_ranks_share_the_lock_of_the_first(tmp_path, monkeypatch):
    with locked(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with locked(tmp_path):
            pass


@pytest.mark.parametrize(
    ("gradients", "finite"),
    [
        ([1.0, -2.0], True),
        ([1.0, np.nan], False),
        ([np.inf, 1.0], False),
        ([], True),
        # Their norm is infinite, and they are not.
        ([3e38, 1.0], True),
        ([3e38, np.nan], False),
    ],
)
def test_gradients_that_are_not_finite_are_dropped(gradients, finite):
    layers = torch.nn.ParameterList(torch.zeros(2) for _ in range(3))
    for weight, value in zip(layers, gradients, strict=False):
        weight.grad = torch.full((2,), value)
    brain = SimpleNamespace(modules=layers, zero_grad=layers.zero_grad)
    SafeBrain.check_gradients(brain)
    assert brain.gradients_are_finite == finite
    kept = [weight for weight in layers if weight.grad is not None]
    assert len(kept) == (len(gradients) if finite else 0)


def test_totals_go_on_in_mid_epoch_only(tmp_path):
    totals = EpochTotals()
    totals.add(loss=torch.tensor(-2.5), batches=1)
    checkpointer = SafeCheckpointer(tmp_path, {"totals": totals})
    checkpointer.save_checkpoint(end_of_epoch=False)
    resumed = EpochTotals()
    resumed.add(loss=100.0)
    checkpointer.add_recoverable("totals", resumed)
    checkpointer.recover_if_possible()
    assert resumed.of_all() == {"loss": -2.5, "batches": 1}
    checkpointer.save_checkpoint()
    checkpointer.recover_if_possible()
    assert resumed.of_all() == {}


def test_one_line_of_an_error_in_a_loaders_process(tmp_path):
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise DataError(f"{tmp_path}/a: b.wav: no such file")

    with pytest.raises(DataError) as error:
        next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1)))
    assert one_line(error.value) == f"{tmp_path}/a: b.wav: no such file"


def test_a_save_costs_the_same_at_the_end_of_a_run(tmp_path):
    listings = []

    class Counting(SafeCheckpointer):
        def list_checkpoints(self):
            listings[-1] += 1
            return super().list_checkpoints()

    checkpointer = Counting(tmp_path, {"model": model_with(0.0)})
    for _ in range(5):
        listings.append(0)
        checkpointer.save_and_keep_only()
    assert len(set(listings)) == 1


def run_epochs(counter, losses):
    """Runs until the counter stops; the last loss stands for all that follow."""
    epoch = 0
    for epoch in counter:
        counter.update_metric(losses[min(epoch, len(losses)) - 1])
    return epoch


def make_counter():
    return EpochCounterWithStopper(
        limit=200, limit_to_stop=20, limit_warmup=0, direction="min"
    )


@pytest.mark.parametrize(
    ("losses", "last_epoch"),
    [
        ([-10.0], 21),  # flat
        ([0.0], 21),
        ([-10.0 + 0.1 * epoch for epoch in range(200)], 21),  # worse and worse
        ([-10.0 + 1e-9 * epoch for epoch in range(200)], 21),
        ([-0.1 * epoch for epoch in range(200)], 200),  # better and better
        ([-1.0, -2.0, -3.0, -3.0], 23),
        ([5.0, -5.0], 22),
        ([float("nan")], 20),
        ([-3.0, float("nan")], 21),
    ],
)
def test_training_stops_after_20_epochs_without_a_better_loss(losses, last_epoch):
    assert run_epochs(make_counter(), losses) == last_epoch


def test_stopper_also_maximizes():
    counter = EpochCounterWithStopper(100, 3, 0, "max")
    assert run_epochs(counter, [1.0, 2.0, 2.0]) == 5


def test_speechbrains_stopper_never_stops_on_a_flat_negative_loss():
    """Why ours exists."""
    counter = speechbrain_epochs.EpochCounterWithStopper(200, 20, 0, "min")
    assert run_epochs(counter, [-10.0]) == 200


def halvings(scheduler, losses):
    """Epochs after which the learning rate is lower."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    epochs = []
    for epoch, loss in enumerate(losses, start=1):
        old_lr, new_lr = scheduler([optimizer], epoch, loss)
        optimizer.param_groups[0]["lr"] = new_lr
        if new_lr < old_lr:
            assert new_lr == old_lr / 2
            epochs.append(epoch)
    return epochs


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([-10.0] * 20, [6, 11, 16]),
        ([-10.0 + 0.1 * epoch for epoch in range(12)], [6, 11]),
        ([-0.1 * epoch for epoch in range(30)], []),
        # A better loss in the fifth epoch starts the count anew.
        ([-1.0, 0.0, 0.0, 0.0, 0.0, -2.0] + [-1.5] * 6, [11]),
        # The best so far counts, not the loss before.
        ([-5.0, -1.0, -2.0, -3.0, -4.0, -4.5], [6]),
        ([-5.0] + [float("nan")] * 5, [6]),
    ],
)
def test_rate_is_halved_after_5_epochs_without_a_better_loss(losses, expected):
    assert halvings(ReduceLROnPlateau(), losses) == expected


def test_speechbrains_scheduler_never_halves_on_a_flat_loss():
    """Why ours exists."""
    scheduler = speechbrain_schedulers.ReduceLROnPlateau(
        patience=5, dont_halve_until_epoch=0
    )
    assert halvings(scheduler, [-10.0] * 50) == []


def test_rate_stays_above_its_minimum():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.5e-8)
    scheduler = ReduceLROnPlateau(lr_min=1e-8, patience=1)
    scheduler([optimizer], 1, -1.0)
    assert scheduler([optimizer], 2, -1.0) == (1.5e-8, 1e-8)


@pytest.mark.parametrize("end_of_epoch", [True, False])
def test_schedules_go_on_exactly_after_a_resume(tmp_path, end_of_epoch):
    """Also when the losses come as tensors or NumPy numbers."""
    losses = [-1.0, -2.0] + [-2.0] * 30
    yaml = """
    stopper: !new:speechbrain_peer.training.schedules.EpochCounterWithStopper
        limit: 100
        limit_to_stop: 20
        limit_warmup: 0
        direction: min
    scheduler: !new:speechbrain_peer.training.schedules.ReduceLROnPlateau
        patience: 5
    """

    def epochs(hparams, first_losses):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        rates = []
        # The losses first: the counter must not begin an epoch without one.
        for loss, epoch in zip(first_losses, hparams["stopper"], strict=False):
            rates.append((epoch, hparams["scheduler"]([optimizer], epoch, loss)[1]))
            hparams["stopper"].update_metric(loss)
        return rates

    straight = epochs(load_hyperpyyaml(yaml), losses)
    assert straight[-1][0] == 22

    first = load_hyperpyyaml(yaml)
    started = epochs(first, [*torch.tensor(losses[:2]), *np.float32(losses[2:4])])
    if not end_of_epoch:
        next(first["stopper"])  # and killed within the fifth epoch
    SafeCheckpointer(tmp_path, first).save_checkpoint(end_of_epoch=end_of_epoch)
    second = load_hyperpyyaml(yaml)
    SafeCheckpointer(tmp_path, second).recover_if_possible()
    assert started + epochs(second, losses[4:]) == straight
    # A finished run stays finished.
    SafeCheckpointer(tmp_path, second).save_checkpoint()
    third = load_hyperpyyaml(yaml)
    SafeCheckpointer(tmp_path, third).recover_if_possible()
    assert list(third["stopper"]) == []


def test_linear_decay_may_be_checkpointed(tmp_path):
    """As in a YAML whose schedule is overridden by it."""
    for found in (False, True):
        checkpointer = SafeCheckpointer(tmp_path, {"decay": LinearDecay(1.0, 7, 10)})
        assert (checkpointer.recover_if_possible() is not None) == found
        checkpointer.save_and_keep_only()


def test_what_cannot_be_saved_is_told_before_the_training(tmp_path):
    schedule = speechbrain_schedulers.LinearScheduler(1.0, 0.1, 10)
    checkpointer = SafeCheckpointer(tmp_path, {"lr_scheduler": schedule})
    with pytest.raises(DataError, match="lr_scheduler is a LinearScheduler, which"):
        checkpointer.recover_if_possible()


def test_linear_decay_holds_the_rate_and_ends_near_zero():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    decay = LinearDecay(lr=1.0, start=7, end=10)
    rates = []
    for epoch in range(1, 11):
        current, following = decay([optimizer], epoch, None)
        rates.append(current)
        update_learning_rate(optimizer, following)
    assert rates == [1.0] * 7 + [0.75, 0.5, 0.25]
