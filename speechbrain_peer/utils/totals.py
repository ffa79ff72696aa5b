"""Sums over an epoch: of all processes, and going on after a resume."""

from collections import Counter

import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process, is_distributed_initialized


@register_checkpoint_hooks
class EpochTotals:
    """Sums by name, of which every process holds its own part.

    A recoverable: saved in mid-epoch, it goes on with the exact sums; with several
    processes `gather` comes before saving. SpeechBrain calls `on_stage_start` after it
    recovered a checkpoint, so a reset belongs to the end of a stage.

    Example
    -------
    >>> totals = EpochTotals()
    >>> totals.add(loss=-3.0, items=2)
    >>> totals.add(loss=-5.0, items=2)
    >>> totals.of_all()
    Counter({'items': 4.0, 'loss': -8.0})
    """

    def __init__(self):
        self.reset()

    def reset(self):
        """Forgets all sums."""
        self._sums = Counter()

    def add(self, **values):
        """Adds to the sums of this process; does not wait for the device.

        Arguments
        ---------
        **values : float or torch.Tensor
            Scalars.
        """
        self._sums.update(values)

    def __getitem__(self, name):
        """One sum of this process."""
        return self._sums[name]

    def of_all(self):
        """Adds up the sums of all processes, which must all call this.

        Returns
        -------
        collections.Counter
            Floats by name.
        """
        own = {name: float(value) for name, value in self._sums.items()}
        if not is_distributed_initialized():
            return Counter(own)
        # As objects, because NCCL does not take the CPU tensor of a fresh start.
        each = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(each, own)
        total = Counter()
        for part in each:
            total.update(part)
        return total

    def gather(self):
        """Moves the sums of all processes, which must all call this, to the main one.

        To be called before a checkpoint is saved in mid-epoch: only the main process
        saves.
        """
        totals = self.of_all()
        self.reset()
        if if_main_process():
            self._sums = totals

    @mark_as_saver
    def _save(self, path):
        torch.save({name: float(value) for name, value in self._sums.items()}, path)

    @mark_as_loader
    def _recover(self, path, end_of_epoch):
        self.reset()
        # The file holds the sums of all processes: one of them goes on with it.
        if if_main_process() and not end_of_epoch:
            self._sums.update(torch.load(path, weights_only=True))
