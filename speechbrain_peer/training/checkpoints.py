"""Checkpoints that survive a kill while they are written."""

import logging
import shutil

from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    DEFAULT_SAVE_HOOKS,
    Checkpointer,
    get_default_hook,
    torch_patched_state_dict_load,
)
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.folders import sync
from speechbrain_peer.utils.messages import one_line

logger = get_logger(__name__)

# SpeechBrain lists folders that begin with "CKPT" only, so this hides one.
UNFINISHED_PREFIX = "unfinished+"

MAX_LISTED = 10
"""Weights of which a message gives the names."""


class SafeCheckpointer(Checkpointer):
    """SpeechBrain's checkpointer, with checkpoints that exist whole or not at all.

    The base class fills a checkpoint in place, its ``CKPT.yaml`` first: killed
    meanwhile, it leaves a newest checkpoint that looks valid and cannot be loaded.
    Here it is written under another name, synced to the disk, and renamed once
    complete. What a kill leaves behind is never listed, and the next save removes it.

    The two last checkpoints are kept, besides the best: where the newest one cannot be
    read, because a disk has failed, training goes on from the one before. Loading
    insists on every recoverable, except those that were added with ``optional_load``:
    the base class passes over missing data loaders with a warning.

    Arguments
    ---------
    *args, **kwargs
        As for ``speechbrain.utils.checkpoints.Checkpointer``.

    Example
    -------
    >>> import torch
    >>> model = torch.nn.Linear(1, 1)
    >>> checkpointer = SafeCheckpointer(getfixture("tmpdir"), {"model": model})
    >>> for loss in [-5.0, -3.0, -2.0, -4.0]:
    ...     checkpointer.save_and_keep_only(meta={"loss": loss}, min_keys=["loss"])
    >>> [ckpt.meta["loss"] for ckpt in checkpointer.find_checkpoints()]
    [-4.0, -2.0, -5.0]
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Why, by folder.
        self._unreadable = {}

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

        Raises
        ------
        DataError
            If it cannot be written; nothing of it is left.
        """
        if if_main_process():
            self._remove_broken()
        self._unreadable.clear()
        try:
            checkpoint = super().save_checkpoint(
                *args, verbosity=logging.DEBUG, **kwargs
            )
            if if_main_process():
                checkpoint = self._publish(checkpoint)
        # PyTorch tells of a full disk by a RuntimeError, without a reason.
        except (OSError, RuntimeError) as error:
            self._remove_broken()
            raise DataError(
                f"{self.checkpoints_dir}: a checkpoint could not be written "
                f"({one_line(error)}); is there space on the disk? The same command "
                "then goes on from the one before"
            ) from error
        if if_main_process():
            logger.log(verbosity, f"Saved a checkpoint in {checkpoint.path}")
        # No rank may list the checkpoints before the new one has its name.
        ddp_barrier()
        return checkpoint

    def save_and_keep_only(self, *args, importance_keys=(), **kwargs):
        """Save a checkpoint and delete the least important ones but the one before.

        Arguments
        ---------
        *args : tuple
            As for ``Checkpointer.save_and_keep_only``.
        importance_keys : list
            Key functions; for each, the best ``num_to_keep`` checkpoints are kept.
        **kwargs : dict
            As for ``Checkpointer.save_and_keep_only``.
        """
        before = self.find_checkpoint(ckpt_predicate=kwargs.get("ckpt_predicate"))

        def is_one_before(checkpoint):
            return before is not None and checkpoint.path == before.path

        # Always a list of its own: the base class appends to its default one, so every
        # save of a run would list the checkpoints once more than the one before.
        super().save_and_keep_only(
            *args, importance_keys=[*importance_keys, is_one_before], **kwargs
        )

    def list_checkpoints(self):
        """List the checkpoints that can be read, as far as it is known.

        Returns
        -------
        list of Checkpoint
        """
        checkpoints = []
        for folder in self._list_checkpoint_dirs():
            if folder in self._unreadable:
                continue
            try:
                (checkpoint,) = self._construct_checkpoint_objects([folder])
                # Both are in every file that has been written whole. All of it are
                # numbers, to be compared.
                checkpoint.meta["unixtime"], checkpoint.meta["end-of-epoch"]
                sum(checkpoint.meta.values())
                checkpoints.append(checkpoint)
            # A damaged file raises errors of many classes.
            except Exception as error:
                self._set_aside(folder, error)
        return checkpoints

    def recover_if_possible(self, *args, **kwargs):
        """Load the best or newest checkpoint that can be read.

        Arguments
        ---------
        *args : tuple
            As for ``Checkpointer.find_checkpoints``.
        **kwargs : dict
            As for ``Checkpointer.find_checkpoints``.

        Returns
        -------
        Checkpoint or None
            The one that has been loaded; None where there is none.

        Raises
        ------
        DataError
            If it does not fit the recoverables, none of the checkpoints can be read, or
            one of the recoverables cannot be saved.
        """
        self._check_can_save()
        for checkpoint in self.find_checkpoints(*args, **kwargs):
            try:
                self.load_checkpoint(checkpoint)
            except DataError:
                raise
            # A damaged file raises errors of many classes.
            except Exception as error:
                self._set_aside(checkpoint.path, error)
            else:
                return checkpoint
        # To begin anew would, in the end, delete what may be mended.
        for folder, reason in self._unreadable.items():
            raise DataError(
                f"{self.checkpoints_dir}: none of its checkpoints can be read "
                f"({folder.name}: {reason}); move them away to begin anew"
            )
        logger.info("There is no checkpoint yet.")
        return None

    def check_fit(self, modules):
        """Refuse modules that are not those of the newest checkpoint.

        Arguments
        ---------
        modules : mapping of str to torch.nn.Module
            Recoverables by name. They stay as they are.

        Raises
        ------
        DataError
            Names the weights that differ in size or are missing.
        """
        checkpoint = self.find_checkpoint()
        if checkpoint is None:
            return
        saved, ours = {}, {}
        for name, module in modules.items():
            ours |= {f"{name}.{key}": w for key, w in module.state_dict().items()}
            if name in checkpoint.paramfiles:
                try:
                    weights = torch_patched_state_dict_load(checkpoint.paramfiles[name])
                except Exception as error:
                    self._set_aside(checkpoint.path, error)
                    return self.check_fit(modules)
                saved |= {f"{name}.{key}": w for key, w in weights.items()}
        differences = differing_weights(saved, ours)
        if differences:
            raise DataError(
                f"{self.checkpoints_dir}: is of another model. {differences}. Give the "
                "sizes of that training, or another output_folder"
            )

    def load_checkpoint(self, checkpoint):
        """Load all recoverables from a checkpoint.

        Arguments
        ---------
        checkpoint : Checkpoint
            One of ``list_checkpoints()``.

        Raises
        ------
        DataError
            If the checkpoint lacks the file of a recoverable.
        """
        missing = [
            name
            for name in self.recoverables
            if name not in checkpoint.paramfiles
            and not self.optional_recoverables.get(name, False)
        ]
        if missing and not self.allow_partial_load:
            raise DataError(
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
        for path in (*unfinished.iterdir(), unfinished):
            sync(path)
        final = unfinished.with_name(unfinished.name.removeprefix(UNFINISHED_PREFIX))
        if final.exists():
            final.rename(unfinished.with_name(unfinished.name + "+replaced"))
        unfinished.rename(final)
        sync(self.checkpoints_dir)
        paramfiles = {
            name: final / path.name for name, path in checkpoint.paramfiles.items()
        }
        return checkpoint._replace(path=final, paramfiles=paramfiles)

    def _check_can_save(self):
        """Before any work: the base class finds out when it saves."""
        for name, recoverable in self.recoverables.items():
            hook = get_default_hook(recoverable, DEFAULT_SAVE_HOOKS)
            if hook is None and name not in self.custom_save_hooks:
                kind = type(recoverable).__name__
                raise DataError(
                    f"checkpointer: {name} is a {kind}, which cannot be saved: give it "
                    "SpeechBrain's checkpoint hooks, or take it out of `recoverables`"
                )

    def _set_aside(self, folder, error):
        """Lists a checkpoint no more; the next save removes it."""
        reason = self._unreadable[folder] = f"{type(error).__name__}: {one_line(error)}"
        logger.warning(
            f"{folder}: cannot be read and is passed over for the one before ({reason})"
        )

    def _remove_broken(self):
        pattern = f"{UNFINISHED_PREFIX}{CKPT_PREFIX}+*"
        for folder in (*self.checkpoints_dir.glob(pattern), *self._unreadable):
            shutil.rmtree(folder, ignore_errors=True)


def differing_weights(theirs, ours):
    """Compares the names and sizes of weights.

    Arguments
    ---------
    theirs : mapping of str to torch.Tensor
        By name.
    ours : mapping of str to torch.Tensor
        By name.

    Returns
    -------
    str
        The first differences, or nothing.

    Example
    -------
    >>> import torch
    >>> differing_weights({"bias": torch.zeros(2)}, {"bias": torch.zeros(3)})
    'bias is (2,) there and (3,) here'
    """
    return listed(
        [
            f"{name} is {shape_of(theirs.get(name))} there and "
            f"{shape_of(ours.get(name))} here"
            for name in {**ours, **theirs}
            if shape_of(ours.get(name)) != shape_of(theirs.get(name))
        ]
    )


def shape_of(weight):
    """The shape of a tensor as a tuple; `absent` of None."""
    return "absent" if weight is None else tuple(weight.shape)


def listed(differences):
    """The first of many differences in one line, and how many more there are."""
    more = len(differences) - MAX_LISTED
    ending = f"; and {more} more" if more > 0 else ""
    return "; ".join(differences[:MAX_LISTED]) + ending


def _unfinished(path):
    return path.with_name(UNFINISHED_PREFIX + path.name)
