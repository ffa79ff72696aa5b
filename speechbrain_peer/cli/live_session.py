"""Live streams over a WebSocket, each for as long as its connection.

Binary messages are raw samples, and as many samples come back, each as soon as it is
complete. The first message back is text, `{"latency": samples, "rate": Hz}`, and so is
every change of the presence. The text `end` brings the rest.
"""

import asyncio
import contextlib
import json

from speechbrain_peer.cli.limits import DONE, REFUSED, UNUSABLE, Refusal
from speechbrain_peer.inference.live import push_together
from speechbrain_peer.utils.messages import one_line
from speechbrain_peer.utils.pcm import FORMATS, decode_pcm, encode_pcm, frame_size

LONGEST_REASON = 120  # bytes
MOST_TOGETHER = 32
"""Streams that are computed at once, so that none waits long."""


def live_endpoint(model, voices, places, run, threads):
    """What answers at `/live`, for FastAPI.

    Arguments
    ---------
    model : speechbrain_peer.TargetSpeechExtraction
        A causal one; others are refused at every request.
    voices : speechbrain_peer.cli.limits.Voices
        Whose speech there is to extract; with the limits of a stream.
    places : speechbrain_peer.cli.limits.Places
        Each stream takes one.
    run : callable
        Awaitable; calls a function with its arguments in a thread.
    threads : int
        How many of these there are.

    Returns
    -------
    callable
    """
    from fastapi import WebSocket, WebSocketDisconnect

    pushes = Pushes(run, threads)

    async def live(
        websocket: WebSocket,
        voice: str,
        rate: int | None = None,
        format: str = "s16le",
        channels: int = 1,
    ):
        await websocket.accept()
        try:
            # Who has gone needs no answer.
            with places.take(), contextlib.suppress(WebSocketDisconnect):
                found, limits = voices.get(voice), voices.limits
                session = Session(model, found, rate, format, channels, limits)
                await session.serve(websocket, run, pushes)
        except Refusal as refusal:
            reason = refusal.reason.encode()[:LONGEST_REASON].decode(errors="ignore")
            # It may have gone meanwhile.
            with contextlib.suppress(RuntimeError):
                await websocket.close(refusal.code, reason)

    return live


class Pushes:
    """Computes the pushes of all sessions: those that came meanwhile, at once.

    A lone stream waits for nobody; the more there are, the more are computed together,
    which takes little longer than one.

    Arguments
    ---------
    run : callable
        See `live_endpoint`.
    threads : int
        How many calls of it may be open.
    """

    def __init__(self, run, threads):
        self._run, self._threads = run, threads
        self._waiting, self._workers = [], set()

    async def push(self, stream, samples):
        """What the stream's own `push` gives, or raises."""
        outcome = asyncio.get_running_loop().create_future()
        self._waiting.append((stream, samples, outcome))
        if len(self._workers) < self._threads:
            # Kept, as the loop itself holds tasks weakly.
            self._workers.add(asyncio.create_task(self._work()))
        return await outcome

    async def _work(self):
        while self._waiting:
            now = self._waiting[:MOST_TOGETHER]
            del self._waiting[:MOST_TOGETHER]
            streams, samples, outcomes = zip(*now, strict=True)
            try:
                found = await self._run(push_together, streams, samples)
            # Each session tells its own client.
            except Exception as error:
                found = [error] * len(now)
            for outcome, of_one in zip(outcomes, found, strict=True):
                if outcome.done():  # its session has been ended
                    continue
                if isinstance(of_one, Exception):
                    outcome.set_exception(of_one)
                else:
                    outcome.set_result(of_one)
        self._workers.discard(asyncio.current_task())


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

    async def serve(self, websocket, run, pushes):
        """Serves until either side ends it; see `live_endpoint`."""
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
            try:
                outputs = await pushes.push(stream, samples)
            except ValueError as error:
                raise Refusal(400, UNUSABLE, one_line(str(error))) from error
            await websocket.send_bytes(encode_pcm(outputs.numpy(), self.format))
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

    def _end(self):
        rest = self.stream.flush().numpy()
        return encode_pcm(rest.reshape(self.channels, -1), self.format)

    async def _tell_presence(self, websocket):
        presence = self.stream.presence
        presence = None if presence is None else presence.tolist()
        if presence != self.presence:
            self.presence = presence
            await websocket.send_text(json.dumps({"presence": presence}))
