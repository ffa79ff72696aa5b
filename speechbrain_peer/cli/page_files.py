"""Keeps what is on the disk to the pages that are open."""

import os
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

UPLOADS = "GRADIO_TEMP_DIR"
"""Tells gradio where to keep what is uploaded."""


class ShownFiles:
    """The recordings that open pages show; others are deleted at once.

    Example
    -------
    >>> path = getfixture("tmp_path") / "voice.wav"
    >>> path.touch()
    >>> shown = ShownFiles()
    >>> shown.show("a page", "voice", [path])
    >>> shown.show("another page", "voice", [path])
    >>> shown.show("a page", "voice", [])
    >>> path.exists()
    True
    >>> shown.close("another page")
    >>> path.exists()
    False
    """

    def __init__(self):
        self._places = {}
        self._lock = threading.Lock()

    def show(self, page, place, paths):
        """Keeps files, and forgets those that were in the same place before.

        Arguments
        ---------
        page : str
            Tells open pages apart.
        place : str
            Where on it.
        paths : iterable of (str or pathlib.Path)
            What is there now.
        """
        with self._lock:
            before = self._places.get((page, place), set())
            self._places[page, place] = {Path(path) for path in paths}
            self._delete(before)

    def close(self, page):
        """Forgets all files of a page."""
        with self._lock:
            mine = [key for key in self._places if key[0] == page]
            self._delete(set().union(*map(self._places.pop, mine)))

    def _delete(self, paths):
        # Uploads of the same content are one file.
        for path in paths.difference(*self._places.values()):
            path.unlink(missing_ok=True)


def without_folders(message, *paths):
    """Names files as the user does, without the folders they were uploaded to.

    Arguments
    ---------
    message : str
        What to tell.
    *paths : str or None
        Of the files that it may name.

    Returns
    -------
    str

    Example
    -------
    >>> without_folders("/tmp/1b/anna.wav: is silent", "/tmp/1b/anna.wav")
    'anna.wav: is silent'
    """
    for path in filter(None, paths):
        message = message.replace(path, Path(path).name)
    return message


@contextmanager
def temporary_files_inside():
    """Keeps all temporary files in one new folder of this user, gone in the end.

    Yields
    ------
    pathlib.Path
        The folder.
    """
    before = tempfile.tempdir, os.environ.get(UPLOADS)
    # A file that is being written may come into it while it is cleared.
    with tempfile.TemporaryDirectory(
        prefix="tse-page-", ignore_cleanup_errors=True
    ) as folder:
        tempfile.tempdir, os.environ[UPLOADS] = folder, f"{folder}/uploads"
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before[0]
            del os.environ[UPLOADS]
            if before[1] is not None:
                os.environ[UPLOADS] = before[1]
