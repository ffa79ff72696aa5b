"""The server's application: what it answers, what it refuses, and that it forgets.

    GET    /               what is served, and how much of it is in use
    POST   /voices         an audio file of one talker -> {"voice": ID}
    DELETE /voices/ID
    POST   /extract?voice=ID   an audio file -> that talker's speech as WAV
    WS     /live?voice=ID&rate=16000&format=s16le&channels=1   see `live_session`

It is made with FastAPI, an optional extra. Files are kept in a folder of temporary
files, each for as long as one request; voices in memory, until they are deleted or not
used for an hour; of streams nothing is kept.
"""

import asyncio
import contextlib
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speechbrain_peer.cli.access import LARGEST_UPLOAD, LocalOnly, OnlyWithToken
from speechbrain_peer.cli.limits import (
    REFUSED,
    UNUSABLE,
    Limits,
    Places,
    Refusal,
    Voices,
)
from speechbrain_peer.cli.live_session import live_endpoint
from speechbrain_peer.inference.recordings import Recording
from speechbrain_peer.utils.messages import one_line

CHUNK = 1 << 16  # bytes of a file that are sent at once


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
        That extract from streams; files have one of their own.

    Returns
    -------
    fastapi.FastAPI
    """
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, StreamingResponse
    from starlette.middleware import Middleware

    guard = (
        Middleware(LocalOnly, largest=max(limits.bytes, LARGEST_UPLOAD))
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
    pool = ThreadPoolExecutor(threads, thread_name_prefix="streams")
    # An hour of a file must not stop the streams: files are done by one thread more.
    file_pool = ThreadPoolExecutor(1, thread_name_prefix="files")

    async def run(function, *arguments, pool=pool):
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, function, *arguments)

    async def run_on_file(function, *arguments):
        return await run(_named, function, *arguments, pool=file_pool)

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
                voice = await run_on_file(model.encode_speaker_files, path)
        return {"voice": voices.add(voice)}

    @app.delete("/voices/{name}", status_code=204)
    async def delete_voice(name: str):
        voices.delete(name)

    @app.post("/extract")
    async def extract(request: Request, voice: str):
        found = voices.get(voice)
        with places.take():
            async with _uploaded(request, limits) as path:
                file = await run_on_file(_extract_file, path, model, found, limits)
        return StreamingResponse(_chunks(file), media_type="audio/wav")

    app.websocket("/live")(live_endpoint(model, voices, places, run, threads))
    return app


@contextlib.asynccontextmanager
async def _uploaded(request, limits):
    """The file that a request holds, gone when the context ends."""
    from starlette.requests import ClientDisconnect

    with tempfile.TemporaryDirectory(prefix="tse-serve-") as folder:
        path, size = Path(folder, "recording"), 0
        with open(path, "wb") as file:
            try:
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > limits.bytes:
                        told = f"files have up to {limits.bytes >> 20} MiB"
                        raise Refusal(413, REFUSED, told)
                    file.write(chunk)
            except ClientDisconnect:
                raise Refusal(400, UNUSABLE, "the upload has ended early") from None
        yield path


def _named(function, path, *arguments):
    """Calls a function on an upload, which the client does not know by its path."""
    try:
        return function(path, *arguments)
    except (ValueError, OSError) as error:
        told = one_line(str(error)).replace(str(path), "the recording")
        raise Refusal(400, UNUSABLE, told) from error


def _extract_file(path, model, voice, limits):
    """The estimate in an anonymous file, gone when it is closed."""
    output = path.with_name("estimate.wav")
    with contextlib.closing(Recording.open(path)) as recording:
        if recording.length > limits.seconds * recording.sample_rate:
            raise Refusal(413, REFUSED, f"files have up to {limits.seconds:g} s")
        model.extract_file(recording, embeddings=voice, output_path=output)
    file = tempfile.TemporaryFile()
    with open(output, "rb") as written:
        shutil.copyfileobj(written, file)
    file.seek(0)
    return file


def _chunks(file):
    """Yields a file's bytes, and closes it."""
    with file:
        while chunk := file.read(CHUNK):
            yield chunk
