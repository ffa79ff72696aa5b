"""`train.py`, which notes the items and the gradients of the first step of each rank.

The first argument is the folder for notes. Where they are there already, a single
process takes the items of all ranks as one batch, notes its gradients, and ends.
"""

import importlib.util
import os
import sys
from pathlib import Path

import speechbrain as sb
import torch
from processes import TRAIN
from speechbrain.dataio.batch import PaddedBatch

NOTES = Path(sys.argv[1])
RANK = os.environ.get("RANK")

spec = importlib.util.spec_from_file_location("train", TRAIN)
train = importlib.util.module_from_spec(spec)
spec.loader.exec_module(train)


class NotingBrain(train.PeerBrain):
    """Notes the first step."""

    def compute_objectives(self, predictions, batch, stage):
        """Keeps the names of the items."""
        self.ids = batch.id
        return super().compute_objectives(predictions, batch, stage)

    def optimizers_step(self):
        """The ranks have averaged the gradients, and nothing has clipped them yet."""
        self.note(f"rank{RANK}.pt")
        super().optimizers_step()

    def note(self, name):
        """Writes once."""
        if not (NOTES / name).exists():
            parameters = self.modules.parameters()
            gradients = torch.cat([p.grad.flatten() for p in parameters])
            torch.save({"ids": list(self.ids), "gradients": gradients}, NOTES / name)


class OneProcessBrain(NotingBrain):
    """Takes one batch."""

    def fit(self, epoch_counter, train_set, *args, **kwargs):
        """Forward and backward."""
        ids = [
            i for file in sorted(NOTES.glob("rank*")) for i in torch.load(file)["ids"]
        ]
        self.on_fit_start()
        next(iter(epoch_counter))
        self.on_stage_start(sb.Stage.TRAIN, 1)
        batch = PaddedBatch([train_set[train_set.data_ids.index(i)] for i in ids])
        predictions = self.compute_forward(batch, sb.Stage.TRAIN)
        self.compute_objectives(predictions, batch, sb.Stage.TRAIN).backward()
        self.note("one.pt")
        sys.exit()


if __name__ == "__main__":
    train.PeerBrain = OneProcessBrain if RANK is None else NotingBrain
    train.main(sys.argv[2:])
