"""Curves of the training set: how the peers' branches do, as in the paper's Fig. 4."""

import math

import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process, is_distributed_initialized

COLUMNS = (
    "better_mask",
    "worse_mask",
    "better_predictor",
    "worse_predictor",
    "refined",
    "agreement",
)


@register_checkpoint_hooks
class PeerCurves:
    """Means over an epoch's training items of the SI-SNR of both peers.

    A recoverable: saved in mid-epoch, it goes on with the exact sums; with several
    processes `gather` comes before saving. SpeechBrain
    calls `on_stage_start` after it recovered a checkpoint, so a reset belongs to
    the end of the training stage, after `means`.

    Example
    -------
    >>> curves = PeerCurves()
    >>> mask = torch.tensor([[4.0, 1.0], [2.0, 5.0]])
    >>> predictor = torch.tensor([[1.0, 3.0], [0.0, 2.0]])
    >>> curves.update(mask, predictor, refined=predictor + 2)
    >>> curves.means()["better_mask"], curves.means()["agreement"]
    (4.5, 0.5)
    """

    def __init__(self):
        self.reset()

    def reset(self):
        """Forgets all items."""
        # Sums of COLUMNS and the number of items.
        self._totals = torch.zeros(len(COLUMNS) + 1, dtype=torch.float64)

    @torch.no_grad()
    def update(self, mask, predictor=None, refined=None):
        """Adds the items of one batch; does not wait for the device.

        Arguments
        ---------
        mask : torch.Tensor
            SI-SNR of the estimates in dB, (peers, batch). Of a single mixture,
            (1, batch), the better and the worse peer are the same.
        predictor : torch.Tensor, optional
            SI-SNR of Decoder(p) in dB, (peers, batch).
        refined : torch.Tensor, optional
            SI-SNR of Decoder(r) in dB, (peers, batch).
        """
        mask = mask.double()
        absent = torch.full_like(mask, math.nan)
        predictor = absent if predictor is None else predictor.double()
        refined = absent if refined is None else refined.double()
        agreement = (mask.argmax(0) == predictor.argmax(0)).double()
        agreement[predictor.isnan().any(0)] = math.nan
        per_item = (
            mask.amax(0),
            mask.amin(0),
            predictor.amax(0),
            predictor.amin(0),
            refined.mean(0),
            agreement,
            torch.ones_like(agreement),
        )
        self._totals = self._totals.to(mask.device) + torch.stack(per_item).sum(1)

    def means(self):
        """Means over the items of all processes, which must all call this.

        Returns
        -------
        dict
            By the names in `COLUMNS`: SI-SNR in dB, and the share of items (0..1)
            of which both branches prefer the same peer. NaN: never given.
        """
        *sums, n_items = self._totals_of_all().tolist()
        if not n_items:
            return dict.fromkeys(COLUMNS, math.nan)
        return {name: s / n_items for name, s in zip(COLUMNS, sums, strict=True)}

    def gather(self):
        """Moves the sums of all processes, which must all call this, to the main one.

        To be called before a checkpoint is saved in mid-epoch: only the main process
        saves.
        """
        totals = self._totals_of_all()
        self.reset()
        if if_main_process():
            self._totals = totals

    def _totals_of_all(self):
        if not is_distributed_initialized():
            return self._totals.cpu()
        # As objects, because NCCL does not take the CPU tensor of a fresh start.
        each = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(each, self._totals.tolist())
        return torch.tensor(each, dtype=torch.float64).sum(0)

    @mark_as_saver
    def _save(self, path):
        torch.save(self._totals.cpu(), path)

    @mark_as_loader
    def _recover(self, path, end_of_epoch):
        self.reset()
        # The file holds the sums of all processes: one of them goes on with it.
        if if_main_process() and not end_of_epoch:
            self._totals = torch.load(path, map_location="cpu", weights_only=True)
