"""Files that are either whole or absent, and the error for data that is wrong."""

import os
from contextlib import contextmanager
from pathlib import Path


class DataError(ValueError):
    """Data that cannot be used; the message names the file and the cure."""


@contextmanager
def whole_file(path):
    """Gives a temporary path that becomes `path` once it is completely written.

    The temporary name depends on `path` alone: what a killed process left behind
    is overwritten by the next one that writes the same file.

    Arguments
    ---------
    path : str or Path
        The file to make; absent folders above it are made too.

    Yields
    ------
    temporary : Path
        Where to write, in the same folder as `path`.

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
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        # A full disk is reported without a file name.
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
