"""Means over an epoch by hand, through a checkpoint, and in the files."""

import csv
import math
import os

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_peer.evaluation.figures import curves_figure
from speechbrain_peer.peer_learning.curves import COLUMNS, PeerCurves
from speechbrain_peer.training.curves import append_epoch

BATCHES = 6


def batch(seed, peers=2, items=3):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(peers, items, generator=rng) * 10 for _ in range(3)]


def test_means_by_hand():
    curves = PeerCurves()
    # Peer 1 and 2 of three items, in two batches of different size.
    curves.update(
        mask=torch.tensor([[4.0, 1.0], [2.0, 5.0]]),
        predictor=torch.tensor([[1.0, 3.0], [0.0, 2.0]]),
        refined=torch.tensor([[2.0, 2.0], [4.0, 4.0]]),
    )
    curves.update(
        mask=torch.tensor([[0.0], [6.0]]),
        predictor=torch.tensor([[-2.0], [-1.0]]),
        refined=torch.tensor([[9.0], [9.0]]),
    )
    assert curves.means() == pytest.approx(
        {
            "better_mask": (4 + 5 + 6) / 3,
            "worse_mask": (2 + 1 + 0) / 3,
            "better_predictor": (1 + 3 - 1) / 3,
            "worse_predictor": (0 + 2 - 2) / 3,
            "refined": (3 + 3 + 9) / 3,
            "agreement": 2 / 3,
        }
    )


@pytest.mark.parametrize("peers", [1, 2])
def test_without_predictors_there_is_only_the_mask(peers):
    curves = PeerCurves()
    mask = torch.tensor([[4.0, 8.0], [2.0, 4.0]])[:peers]
    curves.update(mask)
    means = curves.means()
    assert means["better_mask"] == 6
    assert means["worse_mask"] == (6 if peers == 1 else 3)
    for name in set(COLUMNS) - {"better_mask", "worse_mask"}:
        assert math.isnan(means[name])


def test_sums_keep_no_graph_and_reset_forgets():
    curves = PeerCurves()
    mask = torch.zeros(2, 3, requires_grad=True)
    curves.update(mask * 1, mask * 1, mask * 1)
    assert curves.means()["refined"] == 0
    assert not curves["refined"].requires_grad
    curves.reset()
    assert math.isnan(curves.means()["better_mask"])


def test_resuming_in_mid_epoch_is_exact(tmp_path):
    whole = PeerCurves()
    for seed in range(BATCHES):
        whole.update(*batch(seed))

    killed = PeerCurves()
    for seed in range(BATCHES // 2):
        killed.update(*batch(seed))
    Checkpointer(tmp_path, {"curves": killed}).save_checkpoint(end_of_epoch=False)

    resumed = PeerCurves()
    resumed.update(*batch(99))
    assert Checkpointer(tmp_path, {"curves": resumed}).recover_if_possible()
    for seed in range(BATCHES // 2, BATCHES):
        resumed.update(*batch(seed))
    assert resumed.means() == whole.means()


def test_a_checkpoint_between_epochs_starts_anew(tmp_path):
    curves = PeerCurves()
    curves.update(*batch(0))
    checkpointer = Checkpointer(tmp_path, {"curves": curves})
    checkpointer.save_checkpoint(end_of_epoch=True)
    checkpointer.recover_if_possible()
    assert math.isnan(curves.means()["better_mask"])


def test_all_processes_count(tmp_path):
    torch.multiprocessing.spawn(_count_with_another_process, (str(tmp_path),), 2)


def _count_with_another_process(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    curves = PeerCurves()
    curves.update(torch.tensor([[3.0 + rank], [1.0]]))
    assert curves.means()["better_mask"] == 3.5
    os.environ["RANK"] = str(rank)
    curves.gather()
    assert curves.means()["better_mask"] == 3.5  # no item counts twice
    assert curves["items"] == (2 if rank == 0 else 0)
    torch.distributed.destroy_process_group()


def read(folder):
    with open(folder / "curves.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_repeated_epoch_replaces_its_row_and_what_came_after(tmp_path):
    folder = tmp_path / "run é"
    for epoch in (1, 2, 3):
        append_epoch(folder, epoch, {"train_loss": -1.0 * epoch, "lr": 1e-3})
    append_epoch(folder, 2, {"train_loss": -2.5, "lr": 5e-4})
    assert [(row["epoch"], row["train_loss"]) for row in read(folder)] == [
        ("1", "-1.0"),
        ("2", "-2.5"),
    ]
    assert sorted(file.name for file in folder.iterdir()) == [
        "curves.csv",
        "curves.png",
    ]


def test_missing_values_are_blank_and_new_columns_are_added(tmp_path):
    append_epoch(tmp_path, 1, {"train_loss": 0.0, **PeerCurves().means()})
    append_epoch(tmp_path, 2, {"train_loss": 0.0, "valid_loss": None, "seconds": 3})
    first, second = read(tmp_path)
    assert first["better_mask"] == "" and first["seconds"] == ""
    assert second["valid_loss"] == "" and second["seconds"] == "3"
    assert second["train_loss"] == "0.0"


def test_the_figure_draws_what_has_values():
    rows = [
        {"epoch": 1, "train_loss": 0.0, "better_mask": 3.0, "agreement": 0.0},
        {"epoch": "2", "train_loss": "-1", "better_mask": "", "refined": ""},
    ]
    peers, losses, agreement = curves_figure(rows).axes
    assert [line.get_label() for line in peers.lines] == ["mask, better peer"]
    assert losses.lines[0].get_ydata().tolist() == [0.0, -1.0]
    assert agreement.lines[0].get_ydata()[0] == 0.0
