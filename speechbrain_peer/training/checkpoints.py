"""Checkpoints that survive a kill while they are written."""

import logging
import shutil

from speechbrain.utils.checkpoints import CKPT_PREFIX, Checkpointer
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

# SpeechBrain lists folders that begin with "CKPT" only, so this hides one.
UNFINISHED_PREFIX = "unfinished+"


class SafeCheckpointer(Checkpointer):
    """SpeechBrain's checkpointer, with checkpoints that exist whole or not at all.

    The base class fills a checkpoint in place, its ``CKPT.yaml`` first: killed
    meanwhile, it leaves a newest checkpoint that looks valid and cannot be loaded.
    Here it is written under another name and renamed once complete. What a kill
    leaves behind is never listed, and the next save removes it.

    Loading insists on every recoverable, except those that were added with
    ``optional_load``: the base class passes over missing data loaders with a warning.

    Arguments
    ---------
    *args, **kwargs
        As for ``speechbrain.utils.checkpoints.Checkpointer``.

    Example
    -------
    >>> import torch
    >>> model = torch.nn.Linear(1, 1)
    >>> checkpointer = SafeCheckpointer(getfixture("tmpdir"), {"model": model})
    >>> for loss in [-3.0, -5.0, -4.0]:
    ...     checkpointer.save_and_keep_only(meta={"loss": loss}, min_keys=["loss"])
    >>> sorted(ckpt.meta["loss"] for ckpt in checkpointer.list_checkpoints())
    [-5.0, -4.0]
    """

    def save_checkpoint(self, *args, verbosity=logging.INFO, **kwargs):
        """Save a checkpoint, as in the base class, then give it its name.

        Arguments
        ---------
        *args : tuple
            As for ``Checkpointer.save_checkpoint``.
        verbosity : int
            Logging level.
        **kwargs : dict
            As for ``Checkpointer.save_checkpoint``.

        Returns
        -------
        Checkpoint
            The saved checkpoint; None on other than the main process.
        """
        if if_main_process():
            self._remove_unfinished()
        checkpoint = super().save_checkpoint(*args, verbosity=logging.DEBUG, **kwargs)
        if if_main_process():
            checkpoint = self._publish(checkpoint)
            logger.log(verbosity, f"Saved a checkpoint in {checkpoint.path}")
        # No rank may list the checkpoints before the new one has its name.
        ddp_barrier()
        return checkpoint

    def save_and_keep_only(self, *args, importance_keys=(), **kwargs):
        """Save a checkpoint and delete the least important ones.

        Arguments
        ---------
        *args : tuple
            As for ``Checkpointer.save_and_keep_only``.
        importance_keys : list
            Key functions; for each, the best ``num_to_keep`` checkpoints are kept.
        **kwargs : dict
            As for ``Checkpointer.save_and_keep_only``.
        """
        # The base class appends to its default list, so every save of a run would
        # list the checkpoints once more than the one before.
        super().save_and_keep_only(
            *args, importance_keys=list(importance_keys), **kwargs
        )

    def load_checkpoint(self, checkpoint):
        """Load all recoverables from a checkpoint.

        Arguments
        ---------
        checkpoint : Checkpoint
            One of ``list_checkpoints()``.

        Raises
        ------
        RuntimeError
            If the checkpoint lacks the file of a recoverable.
        """
        missing = [
            name
            for name in self.recoverables
            if name not in checkpoint.paramfiles
            and not self.optional_recoverables.get(name, False)
        ]
        if missing and not self.allow_partial_load:
            raise RuntimeError(
                f"The checkpoint {checkpoint.path} holds nothing for: "
                f"{', '.join(missing)}. It is broken or of another configuration; "
                "move it away to go on from the one before."
            )
        super().load_checkpoint(checkpoint)

    def _new_checkpoint_dirpath(self):
        return _unfinished(super()._new_checkpoint_dirpath())

    def _custom_checkpoint_dirpath(self, name):
        return _unfinished(super()._custom_checkpoint_dirpath(name))

    def _publish(self, checkpoint):
        """Rename a complete checkpoint; one of the same name makes way for it."""
        unfinished = checkpoint.path
        final = unfinished.with_name(unfinished.name.removeprefix(UNFINISHED_PREFIX))
        if final.exists():
            final.rename(unfinished.with_name(unfinished.name + "+replaced"))
        unfinished.rename(final)
        paramfiles = {
            name: final / path.name for name, path in checkpoint.paramfiles.items()
        }
        return checkpoint._replace(path=final, paramfiles=paramfiles)

    def _remove_unfinished(self):
        pattern = f"{UNFINISHED_PREFIX}{CKPT_PREFIX}+*"
        for folder in self.checkpoints_dir.glob(pattern):
            shutil.rmtree(folder)


def _unfinished(path):
    return path.with_name(UNFINISHED_PREFIX + path.name)
