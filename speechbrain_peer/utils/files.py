"""Files that are either whole or absent, and the error for data that is wrong."""

import os
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = "unfinished-"


class DataError(ValueError):
    """Data that cannot be used; the message names the file and the cure."""


@contextmanager
def whole_file(path):
    """Gives a temporary path that becomes `path` once it is completely written.

    The temporary file has a name of its own, so of several that write one file at
    once, one leaves its whole. It reaches the disk before it takes the place of
    `path`, and goes if anything fails; only a killed process leaves it behind, see
    `remove_unfinished`.

    Arguments
    ---------
    path : str or Path
        The file to make; absent folders above it are made too.

    Yields
    ------
    temporary : Path
        An empty file to write to, in the same folder as `path`.

    Example
    -------
    >>> path = getfixture("tmp_path") / "new folder" / "notes.txt"
    >>> with whole_file(path) as temporary:
    ...     _ = temporary.write_text("all of it", encoding="utf-8")
    ...     path.exists()
    False
    >>> path.read_text(encoding="utf-8")
    'all of it'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{UNFINISHED}{secrets.token_hex(8)}")
    try:
        # Exclusively: a file or link that somebody put there is not written to. Unlike
        # `tempfile.mkstemp`, this leaves the permissions to the umask.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        # A full disk is reported without a file name; the temporary one tells nothing.
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_unfinished(folder):
    """Removes the files and folders that killed processes have left unfinished.

    Arguments
    ---------
    folder : str or Path
        Where nobody else writes; it is searched with all folders below.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / ".unfinished-0123456789abcdef").touch()
    >>> (folder / ".model.unfinished-0123456789abcdef").mkdir()
    >>> remove_unfinished(folder)
    >>> list(folder.iterdir())
    []
    """
    for path in list(Path(folder).rglob(f".*{UNFINISHED}*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
