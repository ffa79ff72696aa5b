"""What one server gives at most: sizes, sessions, time, and voices in memory."""

import contextlib
import secrets
import time
from typing import NamedTuple

# Codes that WebSockets close with.
DONE, UNUSABLE, REFUSED, FULL = 1000, 1007, 1008, 1013


class Limits(NamedTuple):
    """What one server gives at most."""

    sessions: int = 4
    """Streams and files at once."""
    seconds: float = 7200.0
    """Of a stream or a file."""
    bytes: int = 200 << 20
    """Of a file."""
    message: int = 1 << 20
    """Bytes of a message of samples."""
    idle: float = 60.0
    """Seconds without a message, after which a stream ends."""
    voices: int = 1000
    """In memory; the one that was not used for longest makes room."""
    voice_seconds: float = 3600.0
    """After which a voice that is not used is forgotten."""
    channels: int = 8
    """Of a stream."""


class Refusal(Exception):
    """A request that is refused.

    Arguments
    ---------
    status : int
        Of HTTP.
    code : int
        Of a WebSocket.
    reason : str
        In one line.
    """

    def __init__(self, status, code, reason):
        super().__init__(reason)
        self.status, self.code, self.reason = status, code, reason


class Places:
    """Counts sessions.

    Arguments
    ---------
    most : int
        How many there may be.

    Example
    -------
    >>> places = Places(1)
    >>> with places.take():
    ...     places.used
    1
    >>> places.used
    0
    """

    def __init__(self, most):
        self.most, self.used = most, 0

    @contextlib.contextmanager
    def take(self):
        """A place, for as long as the context lasts."""
        if self.used >= self.most:
            raise Refusal(503, FULL, f"all {self.most} sessions are in use; try later")
        self.used += 1
        try:
            yield
        finally:
            self.used -= 1


class Voices:
    """Voices by the names that clients know, in memory.

    Arguments
    ---------
    limits : Limits

    Example
    -------
    >>> voices = Voices(Limits(voices=1))
    >>> first, second = voices.add("Anna's"), voices.add("Ben's")
    >>> voices.get(second), first in voices
    ("Ben's", False)
    """

    def __init__(self, limits):
        self.limits, self._voices = limits, {}

    def __contains__(self, name):
        return name in self._voices

    def __len__(self):
        return len(self._voices)

    def add(self, voice):
        """Keeps a voice; returns a name that nobody guesses."""
        self._forget()
        while len(self._voices) >= self.limits.voices:
            del self._voices[next(iter(self._voices))]
        name = secrets.token_urlsafe(16)
        self._voices[name] = voice, time.monotonic()
        return name

    def get(self, name):
        """The voice of that name, which has been used now."""
        self._forget()
        voice, _ = self._pop(name)
        self._voices[name] = voice, time.monotonic()
        return voice

    def delete(self, name):
        """Forgets it."""
        self._pop(name)

    def _pop(self, name):
        if name not in self._voices:
            raise Refusal(404, REFUSED, "no such voice: give its recording first")
        return self._voices.pop(name)

    def _forget(self):
        # The order is that of use.
        before = time.monotonic() - self.limits.voice_seconds
        for name, (_, used) in list(self._voices.items()):
            if used > before:
                break
            del self._voices[name]
