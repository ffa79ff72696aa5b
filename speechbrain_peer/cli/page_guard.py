"""Keeps the listening page to its user: who may ask, and what stays on the disk."""

import os
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

LARGEST_UPLOAD = 1 << 30
"""Bytes: an hour and a half of stereo at 44.1 kHz as 16-bit WAV."""

UPLOADS = "GRADIO_TEMP_DIR"
"""Tells gradio where to keep what is uploaded."""

HOSTS = ("localhost", "127.0.0.1", "::1")


class LocalOnly:
    """ASGI middleware that serves the browser of this computer, and pages of its own.

    A web site can give its name the address 127.0.0.1, and any can send requests to
    it. Browsers tell the name as `Host`, and the site that a request comes from as
    `Origin`.

    Arguments
    ---------
    app : callable
        The ASGI application.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        """Serves, or refuses with a status and a reason."""
        refusal = _refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            status, reason = refusal
            headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
            await send(
                {"type": "http.response.start", "status": status, "headers": headers}
            )
            await send({"type": "http.response.body", "body": reason.encode()})
        else:
            await send({"type": "websocket.close", "code": 1008})


def _refusal(scope):
    """Status and reason, or None for what is served."""
    headers = dict(scope["headers"])
    host = headers.get(b"host", b"").decode("latin-1")
    origin = headers.get(b"origin", f"http://{host}".encode("latin-1"))
    if _name(f"http://{host}") not in HOSTS:
        return 403, "This page is for its own computer alone."
    if origin.decode("latin-1") != f"http://{host}":
        return 403, "Other sites may not ask this page."
    if scope.get("method") == "POST":
        length = headers.get(b"content-length")
        if length is None:
            return 411, "The length is missing."
        if int(length) > LARGEST_UPLOAD:
            return 413, f"Files may have up to {LARGEST_UPLOAD >> 20} MiB."
    return None


def _name(address):
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


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
