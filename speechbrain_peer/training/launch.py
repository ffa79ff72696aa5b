"""How a training starts: its ranks, and its folder for it alone."""

import os
import platform
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from speechbrain.utils.distributed import ddp_init_group, get_rank

from speechbrain_peer.utils.files import DataError, remove_unfinished
from speechbrain_peer.utils.messages import one_line


def init_ranks(run_opts):
    """Joins the processes that `torchrun` has started, if it has.

    Arguments
    ---------
    run_opts : speechbrain.utils.run_opts.RunOptions
        With `distributed_backend`.

    Raises
    ------
    DataError
        If there are fewer GPUs than processes, or no such backend.
    """
    try:
        ddp_init_group(run_opts)
    except ValueError as error:
        raise DataError(
            f"{one_line(error)} To train on CPUs give --distributed_backend gloo"
        ) from error


def rank_and_ranks():
    """This process's number among those that train together, and how many they are.

    Returns
    -------
    rank, ranks : int
    """
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


@contextmanager
def locked(folder):
    """Keeps a folder for one training at a time; its ranks are one training.

    What a killed one has left unfinished there is removed.

    The operating system ends the lock with the process, however that ends; the file
    `.lock` stays and tells who held it last.

    Arguments
    ---------
    folder : str or pathlib.Path
        Made where it does not exist.

    Raises
    ------
    DataError
        If another process holds it; the message says which.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "run"
    >>> with locked(folder), locked(folder):
    ...     pass
    Traceback (most recent call last):
        ...
    speechbrain_peer.utils.files.DataError: ...run: in use by process ... on ...; ...
    """
    if get_rank() not in (None, 0):
        yield
        return
    path = Path(folder, ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        owner = path.read_text(encoding="utf-8") or "another process"
        raise DataError(
            f"{folder}: in use by {owner}; wait for it, or give another folder"
        ) from None
    try:
        path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        remove_unfinished(folder)
        yield
    finally:
        lock.release()
