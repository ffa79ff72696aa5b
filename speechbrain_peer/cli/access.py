"""Who may ask a server: this computer's browser alone, or those who know a token."""

import hmac
from urllib.parse import parse_qs, urlsplit

from speechbrain_peer.cli.limits import REFUSED

LARGEST_UPLOAD = 1 << 30
"""Bytes: an hour and a half of stereo at 44.1 kHz as 16-bit WAV."""

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
    largest : int
        Bytes of an upload.
    """

    def __init__(self, app, largest=LARGEST_UPLOAD):
        self.app, self.largest = app, largest

    async def __call__(self, scope, receive, send):
        """Serves, or refuses with a status and a reason."""
        refusal = None
        if scope["type"] in ("http", "websocket"):
            refusal = _refusal(scope, self.largest)
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
            await send({"type": "websocket.close", "code": REFUSED})


def _refusal(scope, largest):
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
        if int(length) > largest:
            return 413, f"Files may have up to {largest >> 20} MiB."
    return None


def _name(address):
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


class OnlyWithToken:
    """ASGI middleware that serves those who know the token.

    It is the `Authorization: Bearer` of a request, or, as browsers cannot set that for
    a WebSocket, its query's `token`.

    Arguments
    ---------
    app : callable
        The ASGI application.
    token : str

    Raises
    ------
    ValueError
        If it is empty, as it would be known to everybody.
    """

    def __init__(self, app, token):
        if not token:
            raise ValueError("the token is empty")
        self.app, self.token = app, token.encode()

    async def __call__(self, scope, receive, send):
        """Serves, or refuses."""
        if scope["type"] == "lifespan" or self._knows(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
            start = {"type": "http.response.start", "status": 401, "headers": headers}
            await send(start)
            await send({"type": "http.response.body", "body": b"The token is missing."})
        else:
            await send({"type": "websocket.close", "code": REFUSED})

    def _knows(self, scope):
        given = dict(scope["headers"]).get(b"authorization", b"")
        given = given.removeprefix(b"Bearer ")
        if scope["type"] == "websocket" and not given:
            query = parse_qs(scope["query_string"].decode("latin-1"))
            given = query.get("token", [""])[0].encode()
        return hmac.compare_digest(given, self.token)
