"""The server's application: what it answers, what it refuses, and that it forgets.

    GET    /               what is served, and how much of it is in use
    POST   /voices         an audio file of one talker -> {"voice": ID}
    DELETE /voices/ID
    POST   /extract?voice=ID   an audio file -> that talker's speech as WAV
    WS     /live?voice=ID&rate=16000&format=s16le&channels=1

Over the WebSocket go binary messages of raw samples, and as many samples come back,
each as soon as it is complete. The first message back is text, `{"latency": samples,
"rate": Hz}`, and so is every change of the presence. The text `end` brings the rest.

It is made with FastAPI, an optional extra. Files are kept in a folder of temporary
files, each for as long as one request; voices in memory, until they are deleted or not
used for an hour; of streams nothing is kept.
"""

import asyncio
import contextlib
import hmac
import json
import secrets
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from speechbrain_peer.cli.page_guard import LocalOnly
from speechbrain_peer.inference.recordings import Recording
from speechbrain_peer.utils.messages import one_line
from speechbrain_peer.utils.pcm import FORMATS, decode_pcm, encode_pcm, frame_size

# Codes that WebSockets close with.
DONE, UNUSABLE, REFUSED, FULL = 1000, 1007, 1008, 1013
LONGEST_REASON = 120  # bytes


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
            raise Refusal(404, REFUSED, "no such voice: post its recording to /voices")
        return self._voices.pop(name)

    def _forget(self):
        # The order is that of use.
        before = time.monotonic() - self.limits.voice_seconds
        for name, (_, used) in list(self._voices.items()):
            if used > before:
                break
            del self._voices[name]


def import_server():
    """Imports what serves.

    Returns
    -------
    module
        uvicorn.

    Raises
    ------
    ImportError
        If the extra is not installed; the message tells how to install it.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn
        import websockets  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'the server needs {error.name}: pip install "speechbrain-peer[serve]"'
        ) from error
    return uvicorn


class OnlyWithToken:
    """ASGI middleware that serves those who know the token.

    It is the `Authorization: Bearer` of a request, or, as browsers cannot set that for
    a WebSocket, its query's `token`.

    Arguments
    ---------
    app : callable
        The ASGI application.
    token : str
    """

    def __init__(self, app, token):
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
        from urllib.parse import parse_qs

        given = dict(scope["headers"]).get(b"authorization", b"")
        given = given.removeprefix(b"Bearer ")
        if scope["type"] == "websocket" and not given:
            query = parse_qs(scope["query_string"].decode("latin-1"))
            given = query.get("token", [""])[0].encode()
        return hmac.compare_digest(given, self.token)


def build_app(model, limits=Limits(), token=None, threads=1):  # noqa: B008
    """Builds the application.

    Arguments
    ---------
    model : speechbrain_peer.TargetSpeechExtraction
        What extracts; `/live` needs a causal one.
    limits : Limits
    token : str or None
        Without one, the browser of this computer and programs on it are served alone.
    threads : int
        That extract.

    Returns
    -------
    fastapi.FastAPI
    """
    from fastapi import FastAPI, Request, Response, WebSocket
    from fastapi.responses import JSONResponse
    from starlette.middleware import Middleware

    guard = (
        Middleware(LocalOnly)
        if token is None
        else Middleware(OnlyWithToken, token=token)
    )
    # Its pages of documentation would load scripts from other servers.
    app = FastAPI(
        title="Target speech extraction",
        docs_url=None,
        redoc_url=None,
        middleware=[guard],
    )
    places, voices = Places(limits.sessions), Voices(limits)
    app.state.places, app.state.voices = places, voices
    pool = ThreadPoolExecutor(threads, thread_name_prefix="extract")

    async def run(function, *arguments):
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, function, *arguments)

    @app.exception_handler(Refusal)
    async def refuse(request, refusal):
        return JSONResponse({"error": refusal.reason}, refusal.status)

    @app.get("/")
    async def describe():
        return {
            "sample_rate": model.hparams.sample_rate,
            "tells_presence": model.tells_presence,
            "sessions": places.used,
            "voices": len(voices),
            "limits": limits._asdict(),
        }

    @app.post("/voices", status_code=201)
    async def add_voice(request: Request):
        with places.take():
            async with _uploaded(request, limits) as path:
                voice = await run(_named, model.encode_speaker_files, path)
        return {"voice": voices.add(voice)}

    @app.delete("/voices/{name}", status_code=204)
    async def delete_voice(name: str):
        voices.delete(name)

    @app.post("/extract")
    async def extract(request: Request, voice: str):
        found = voices.get(voice)
        with places.take():
            async with _uploaded(request, limits) as path:
                output = path.with_name("estimate.wav")
                await run(_named, _extract_file, path, model, found, output, limits)
                content = output.read_bytes()
        return Response(content, media_type="audio/wav")

    @app.websocket("/live")
    async def live(
        websocket: WebSocket,
        voice: str,
        rate: int | None = None,
        format: str = "s16le",
        channels: int = 1,
    ):
        await websocket.accept()
        try:
            with places.take():
                found = voices.get(voice)
                session = Session(model, found, rate, format, channels, limits)
                await session.serve(websocket, run)
        except Refusal as refusal:
            reason = refusal.reason.encode()[:LONGEST_REASON].decode(errors="ignore")
            # It may have gone meanwhile.
            with contextlib.suppress(RuntimeError):
                await websocket.close(refusal.code, reason)

    return app


class Session:
    """One live stream over a WebSocket.

    Arguments
    ---------
    model : speechbrain_peer.TargetSpeechExtraction
    voice : torch.Tensor or Frames
    rate : int or None
        In Hz; by default the model's.
    format : str
        One of `pcm.FORMATS`.
    channels : int
        Interleaved.
    limits : Limits
    """

    def __init__(self, model, voice, rate, format, channels, limits):
        if format not in FORMATS:
            raise Refusal(400, REFUSED, f"format: choose one of {', '.join(FORMATS)}")
        if not 1 <= channels <= limits.channels:
            raise Refusal(400, REFUSED, f"channels: 1 to {limits.channels}")
        try:
            self.stream = model.stream(voice=voice, rate=rate)
        except ValueError as error:
            raise Refusal(400, REFUSED, one_line(str(error))) from error
        self.format, self.channels, self.limits = format, channels, limits
        self.seconds, self.presence = 0.0, None

    async def serve(self, websocket, run):
        """Serves until either side ends it; `run` calls a function in a thread."""
        stream = self.stream
        told = {"latency": stream.latency, "rate": stream.rate}
        await websocket.send_text(json.dumps(told))
        while True:
            try:
                message = await asyncio.wait_for(websocket.receive(), self.limits.idle)
            except asyncio.TimeoutError:
                told = f"no message for {self.limits.idle:g} s"
                raise Refusal(408, REFUSED, told) from None
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") == "end":
                await websocket.send_bytes(await run(self._end))
                await websocket.close(DONE)
                return
            if message.get("bytes") is None:
                raise Refusal(400, UNUSABLE, "messages are samples, or the text end")
            samples = self._samples(message["bytes"])
            await websocket.send_bytes(await run(self._push, samples))
            await self._tell_presence(websocket)

    def _samples(self, data):
        if len(data) > self.limits.message:
            raise Refusal(413, REFUSED, f"messages have up to {self.limits.message} B")
        size = frame_size(self.format, self.channels)
        if len(data) % size:
            raise Refusal(400, UNUSABLE, f"{len(data)} bytes end within a sample")
        self.seconds += len(data) // size / self.stream.rate
        if self.seconds > self.limits.seconds:
            raise Refusal(413, REFUSED, f"streams have up to {self.limits.seconds:g} s")
        return decode_pcm(data, self.format, self.channels)

    def _push(self, samples):
        try:
            outputs = self.stream.push(samples)
        except ValueError as error:
            raise Refusal(400, UNUSABLE, one_line(str(error))) from error
        return encode_pcm(outputs.numpy(), self.format)

    def _end(self):
        rest = self.stream.flush().numpy()
        return encode_pcm(rest.reshape(self.channels, -1), self.format)

    async def _tell_presence(self, websocket):
        presence = self.stream.presence
        presence = None if presence is None else presence.tolist()
        if presence != self.presence:
            self.presence = presence
            await websocket.send_text(json.dumps({"presence": presence}))


@contextlib.asynccontextmanager
async def _uploaded(request, limits):
    """The file that a request holds, gone when the context ends."""
    with tempfile.TemporaryDirectory(prefix="tse-serve-") as folder:
        path, size = Path(folder, "recording"), 0
        with open(path, "wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.bytes:
                    told = f"files have up to {limits.bytes >> 20} MiB"
                    raise Refusal(413, REFUSED, told)
                file.write(chunk)
        yield path


def _named(function, path, *arguments):
    """Calls a function on an upload, which the client does not know by its path."""
    try:
        return function(path, *arguments)
    except (ValueError, OSError) as error:
        told = one_line(str(error)).replace(str(path), "the recording")
        raise Refusal(400, UNUSABLE, told) from error


def _extract_file(path, model, voice, output, limits):
    with contextlib.closing(Recording.open(path)) as recording:
        if recording.length > limits.seconds * recording.sample_rate:
            raise Refusal(413, REFUSED, f"files have up to {limits.seconds:g} s")
        model.extract_file(recording, embeddings=voice, output_path=output)
