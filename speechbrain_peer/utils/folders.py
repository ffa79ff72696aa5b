"""Folders that are either whole or absent."""

import os
import shutil
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

# Nobody takes longer to fill one: what is older was left by a killed process.
OLD_SECONDS = 3600


@contextmanager
def whole_folder(path):
    """Gives a new folder that takes the place of `path` once it is completely written.

    Whenever the process is killed, the folder before or the new one is there in whole,
    where `whole_one` says. Of a link, the folder it leads to is replaced.

    Arguments
    ---------
    path : str or pathlib.Path
        The folder to make or to replace.

    Yields
    ------
    temporary : pathlib.Path
        Where to write, beside `path`.

    Example
    -------
    >>> path = getfixture("tmp_path") / "model"
    >>> with whole_folder(path) as temporary:
    ...     _ = (temporary / "notes.txt").write_text("all of it", encoding="utf-8")
    ...     path.exists()
    False
    >>> [file.name for file in path.iterdir()]
    ['notes.txt']
    """
    folder = Path(os.path.realpath(path))
    folder.parent.mkdir(parents=True, exist_ok=True)
    restore_folder(folder)
    unfinished = f".{folder.name}.unfinished-"
    for left in folder.parent.iterdir():
        if left.name.startswith(unfinished) and _is_old(left):
            shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(unfinished + uuid.uuid4().hex)
    temporary.mkdir()
    try:
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            sync(written)
        _put_in_place(temporary, folder)
    except OSError as error:
        # A full disk is reported without a file name.
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def whole_one(path):
    """Where a folder is, even if a process was killed while it replaced it.

    Arguments
    ---------
    path : str or pathlib.Path
        The folder.

    Returns
    -------
    pathlib.Path
        The folder itself, or where the one before it has been put aside.
    """
    before = _put_aside(path)
    return before if before.exists() and not os.path.exists(path) else Path(path)


def restore_folder(path):
    """Puts back, or removes, what a process killed while replacing a folder put aside.

    Arguments
    ---------
    path : str or pathlib.Path
        The folder.
    """
    before = _put_aside(path)
    if before.exists():
        if os.path.exists(path):
            shutil.rmtree(before)
        else:
            before.rename(os.path.realpath(path))


def _put_in_place(new, folder):
    before = _put_aside(folder)
    if folder.exists():
        folder.rename(before)
    try:
        new.rename(folder)
    except OSError:
        restore_folder(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def _put_aside(path):
    folder = Path(os.path.realpath(path))
    return folder.with_name(f".{folder.name}.replaced")


def _is_old(path):
    return path.lstat().st_mtime < time.time() - OLD_SECONDS


def sync(path):
    """Writes a file or a folder to the disk: renamed before it, it could be empty.

    Arguments
    ---------
    path : str or pathlib.Path
        Of a folder, the names in it are written, not the files.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
