"""`tse serve`: what it answers and refuses, and that nothing of a session stays."""

import asyncio
import gc
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_model import export, export_causal

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli import live_session
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.cli.access import OnlyWithToken
from speechbrain_peer.cli.limits import Limits
from speechbrain_peer.cli.server import build_app

for name in ("fastapi", "uvicorn", "websockets", "httpx"):
    pytest.importorskip(name)
TestClient = pytest.importorskip("starlette.testclient").TestClient
WebSocketDisconnect = pytest.importorskip("starlette.websockets").WebSocketDisconnect

HOST = "127.0.0.1:8765"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export_causal(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return TargetSpeechExtraction.from_hparams(folder)


def noise(seconds, seed, rate=16000):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(round(seconds * rate)).astype(np.float32) / 10


def wav(samples, rate=16000):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, "FLOAT", format="WAV")
    return file.getvalue()


ANNA, MEETING = noise(1, 1), noise(0.5, 2)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def client(model, temporary):
    with TestClient(build_app(model), base_url=f"http://{HOST}") as client:
        yield client
        # Nothing is left of anybody.
        assert list(temporary.iterdir()) == []
        assert client.get("/").json()["sessions"] == 0


def limited(model, token=None, **limits):
    return TestClient(
        build_app(model, Limits(**limits), token), base_url=f"http://{HOST}"
    )


def enroll(client, samples=ANNA):
    response = client.post("/voices", content=wav(samples))
    assert response.status_code == 201
    return response.json()["voice"]


def live(client, voice, **settings):
    query = "&".join(f"{key}={value}" for key, value in settings.items())
    return client.websocket_connect(f"ws://{HOST}/live?voice={voice}&{query}")


def binary(socket):
    """The next samples; text between them is of the presence."""
    while "bytes" not in (message := socket.receive()) or message["bytes"] is None:
        if message["type"] == "websocket.close":
            raise WebSocketDisconnect(message["code"], message["reason"])
        assert set(json.loads(message["text"])) <= {"presence", "latency", "rate"}
    return message["bytes"]


def test_a_live_stream(client, model):
    """Two channels in blocks: the samples of `model.stream`, as soon as it has them."""
    voice = enroll(client)
    stream = model.stream(voice=client.app.state.voices.get(voice), rate=16000)
    mixture = np.stack((MEETING, MEETING[::-1]))
    with live(client, voice, rate=16000, format="f32le", channels=2) as socket:
        told = socket.receive_json()
        assert told == {"latency": stream.latency, "rate": 16000}
        for start in range(0, mixture.shape[1], 800):
            block = mixture[:, start : start + 800]
            socket.send_bytes(block.T.tobytes())
            output = np.frombuffer(binary(socket), np.float32).reshape(-1, 2).T
            np.testing.assert_allclose(output, stream.push(block.copy()), atol=1e-6)
        assert client.get("/").json()["sessions"] == 1
        socket.send_text("end")
        rest = np.frombuffer(binary(socket), np.float32).reshape(-1, 2).T
        np.testing.assert_allclose(rest, stream.flush(), atol=1e-6)
        with pytest.raises(WebSocketDisconnect) as ended:
            binary(socket)
        assert ended.value.code == 1000


def test_the_presence_is_told(client):
    with live(client, enroll(client)) as socket:
        socket.receive_json()
        socket.send_bytes(np.zeros(8000, "<i2").tobytes())
        texts = []
        while "text" in (message := socket.receive()):
            texts.append(message["text"])
        assert len(message["bytes"]) == 2 * (8000 - 8)
        assert json.loads(socket.receive()["text"]) == {"presence": [False]}


def test_a_file(client, model, tmp_path_factory):
    voice = enroll(client)
    response = client.post(f"/extract?voice={voice}", content=wav(MEETING))
    assert response.status_code == 200
    samples, rate = soundfile.read(io.BytesIO(response.content))
    assert rate == 16000
    path = tmp_path_factory.mktemp("a file") / "meeting.wav"
    path.write_bytes(wav(MEETING))
    found = client.app.state.voices.get(voice)
    expected = model.extract_file(path, embeddings=found)
    np.testing.assert_allclose(samples, expected, atol=1e-5)


def test_voices_are_forgotten(client, model):
    voice = enroll(client)
    assert client.delete(f"/voices/{voice}").status_code == 204
    for response in (
        client.delete(f"/voices/{voice}"),
        client.post(f"/extract?voice={voice}", content=wav(MEETING)),
    ):
        assert response.status_code == 404
        assert "no such voice" in response.json()["error"]
    with live(client, voice) as socket, pytest.raises(WebSocketDisconnect) as ended:
        binary(socket)
    assert ended.value.code == 1008 and "no such voice" in ended.value.reason
    few = limited(model, voices=2)
    first, second, third = (enroll(few) for _ in range(3))
    assert [name in few.app.state.voices for name in (first, second, third)] == [
        *(False, True, True)
    ]
    short = limited(model, voice_seconds=0.0)
    assert short.delete(f"/voices/{enroll(short)}").status_code == 204
    voice = enroll(short)
    assert short.post(f"/extract?voice={voice}", content=b"").status_code == 404


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"no audio", "the recording: cannot be read as audio"),
        (b"", "the recording: cannot be read as audio"),
        (wav(0 * ANNA), "the recording: The enrollment is silent"),
        (wav(ANNA[:100]), "too short"),
        (wav(np.full(16000, np.nan)), "the recording: holds NaN"),
    ],
)
def test_enrollments_that_cannot_be_used(client, content, told):
    response = client.post("/voices", content=content)
    assert response.status_code == 400
    assert told in response.json()["error"]
    assert "tse-serve" not in response.text


@pytest.mark.parametrize(
    ("settings", "message", "code", "told"),
    [
        ({"rate": 5}, b"", 1008, "audio has 1000 to 768000 Hz"),
        ({"rate": 300007}, b"", 1008, "no simple ratio to the 8000 Hz"),
        ({"format": "mp3"}, b"", 1008, "format: choose one of s16le, f32le"),
        ({"channels": 9}, b"", 1008, "channels: 1 to 8"),
        ({}, b"odd", 1007, "3 bytes end within a sample"),
        ({"format": "f32le"}, np.float32([np.nan]).tobytes(), 1007, "NaN"),
        ({}, "hello", 1007, "messages are samples, or the text end"),
    ],
)
def test_streams_that_cannot_be_used(client, settings, message, code, told):
    with live(client, enroll(client), **settings) as socket:
        if isinstance(message, str):
            socket.send_text(message)
        else:
            socket.send_bytes(message)
        with pytest.raises(WebSocketDisconnect) as ended:
            binary(socket)
    assert ended.value.code == code and told in ended.value.reason


def test_limits(model, temporary):
    client = limited(model, bytes=2000, seconds=0.4, message=1000, idle=0.2)
    big = client.post("/voices", content=wav(ANNA))
    assert (big.status_code, big.json()["error"]) == (413, "files have up to 0 MiB")
    client.app.state.voices._voices["anna"] = torch.rand(1, 16), float("inf")
    long = client.post("/extract?voice=anna", content=wav(MEETING[:450], 1000))
    assert (long.status_code, long.json()["error"]) == (413, "files have up to 0.4 s")
    for message, told in (
        (bytes(1002), "up to 1000 B"),
        (None, "no message for 0.2 s"),
    ):
        with (
            live(client, "anna") as socket,
            pytest.raises(WebSocketDisconnect) as ended,
        ):
            if message:
                socket.send_bytes(message)
            binary(socket)
        assert told in ended.value.reason
    with live(client, "anna", rate=1000) as socket:
        socket.send_bytes(bytes(800))
        binary(socket)
        socket.send_bytes(bytes(2))
        with pytest.raises(WebSocketDisconnect, match=r"up to 0.4 s"):
            binary(socket)
    assert list(temporary.iterdir()) == []


def test_when_it_is_full(model):
    with limited(model, sessions=1) as client:
        voice = enroll(client)
        with live(client, voice) as socket:
            socket.receive_json()
            with live(client, voice) as other:
                with pytest.raises(WebSocketDisconnect) as ended:
                    binary(other)
            assert ended.value.code == 1013
            assert "all 1 sessions are in use" in ended.value.reason
            full = client.post(f"/extract?voice={voice}", content=wav(MEETING))
            assert full.status_code == 503
            # The stream that is there goes on.
            socket.send_bytes(bytes(1600))
            assert binary(socket)
        with live(client, voice) as socket:
            socket.receive_json()


def test_pushes_that_come_meanwhile_are_computed_together(model):
    blocks = noise(0.4, seed=7)[:4000].reshape(5, 800)
    voice = model.encode_speaker(torch.from_numpy(ANNA)[None])
    computed = []

    async def run(function, streams, samples):
        computed.append(len(streams))
        await asyncio.sleep(0.01)
        if len(streams) == 2:
            raise RuntimeError("out of memory")
        return function(streams, samples)

    async def push_all():
        pushes = live_session.Pushes(run, threads=1)
        streams = [model.stream(voice=voice) for _ in blocks]

        async def push(k, samples=None):
            samples = blocks[k] if samples is None else samples
            return await pushes.push(streams[k], samples)

        first = asyncio.create_task(push(0))
        await asyncio.sleep(0)
        ended = asyncio.create_task(push(1))
        others = [asyncio.create_task(push(k)) for k in (2, 3)]
        bad = asyncio.create_task(push(4, np.full(800, np.nan, np.float32)))
        await asyncio.sleep(0.005)
        ended.cancel()
        with pytest.raises(ValueError, match="NaN"):
            await bad
        found = [await task for task in (first, *others)]
        assert computed == [1, 4] and ended.cancelled()
        told = await asyncio.gather(push(0), push(2), return_exceptions=True)
        assert [str(error) for error in told] == ["out of memory"] * 2
        return found, await push(4)

    found, last = asyncio.run(push_all())
    for k, output in zip((0, 2, 3, 4), (*found, last), strict=True):
        expected = model.stream(voice=voice).push(blocks[k])
        np.testing.assert_allclose(output, expected, atol=1e-6)


def test_nothing_of_a_stream_stays(client, monkeypatch):
    streams = []

    class Watched(live_session.Session):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            streams.append(weakref.ref(self.stream))

    monkeypatch.setattr(live_session, "Session", Watched)
    voice = enroll(client)
    for ends in (True, False):
        with live(client, voice) as socket:
            socket.receive_json()
            socket.send_bytes(bytes(1600))
            binary(socket)
            if ends:
                socket.send_text("end")
                binary(socket)
    client.get("/")
    gc.collect()
    assert [stream() for stream in streams] == [None, None]


def test_a_token(model):
    client = limited(model, token="secret")
    for headers, status in (
        ({}, 401),
        ({"Authorization": "Bearer other"}, 401),
        ({"Authorization": "Bearer secret"}, 200),
    ):
        assert client.get("/", headers=headers).status_code == status
    with pytest.raises(WebSocketDisconnect):
        with live(client, "anna") as socket:
            binary(socket)
    with live(client, "anna", token="secret") as socket:
        with pytest.raises(WebSocketDisconnect, match="no such voice"):
            binary(socket)


def test_an_empty_token_is_none(folder, monkeypatch, capsys):
    """As a variable in a compose file is that has not been set."""
    served = []
    monkeypatch.setenv("TSE_TOKEN", "")
    monkeypatch.setattr("uvicorn.run", lambda app, **options: served.append(app))
    assert main(["serve", "-m", str(folder), "--host", "0.0.0.0"]) == 0
    token = capsys.readouterr().out.splitlines()[0].removeprefix("token: ")
    client = TestClient(served[0], base_url=f"http://{HOST}")
    assert client.get("/").status_code == 401
    headers = {"Authorization": f"Bearer {token}"}
    assert client.get("/", headers=headers).status_code == 200
    with pytest.raises(ValueError, match="the token is empty"):
        OnlyWithToken(served[0], "")


def test_streams_go_on_while_a_file_is_extracted(model, monkeypatch):
    """One thread for streams is not taken up by files."""
    client = limited(model)
    voice = enroll(client)
    began, ended = threading.Event(), threading.Event()

    def extract_file(self, recording, **options):
        began.set()
        ended.wait(20)
        raise ValueError("ended")

    monkeypatch.setattr(TargetSpeechExtraction, "extract_file", extract_file)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(
            client.post, f"/extract?voice={voice}", content=wav(MEETING)
        )
        assert began.wait(20)
        with live(client, voice) as socket:
            socket.send_bytes(bytes(640))
            binary(socket)
            assert not reply.done()
        ended.set()
        assert reply.result().status_code == 400


def test_without_a_token_other_sites_may_not_ask(client):
    headers = {"Origin": "http://evil.example"}
    assert client.get("/", headers=headers).status_code == 403
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
    with pytest.raises(WebSocketDisconnect):
        with client.websocket_connect(
            f"ws://{HOST}/live?voice=x", headers=headers
        ) as socket:
            binary(socket)


def test_a_model_that_looks_ahead_serves_files_alone(tmp_path_factory, temporary):
    folder = tmp_path_factory.mktemp("models") / "offline"
    export(folder)
    model = TargetSpeechExtraction.from_hparams(folder)
    client = limited(model)
    voice = enroll(client)
    response = client.post(f"/extract?voice={voice}", content=wav(MEETING))
    assert response.status_code == 200
    with live(client, voice) as socket:
        with pytest.raises(WebSocketDisconnect, match="looks ahead"):
            binary(socket)


def test_the_command(folder, tmp_path):
    """A real server with a token, which leaves nothing when it is ended."""
    import httpx

    command = [sys.executable, "-m", "speechbrain_peer.cli", "serve", "-m", str(folder)]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "TSE_TOKEN": "secret"}
    with subprocess.Popen(
        [*command, "--port", "18765"],
        cwd=Path(__file__).parents[1],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        address = process.stdout.readline().split()[0]
        headers = {"Authorization": "Bearer secret"}
        transport = httpx.HTTPTransport(retries=5)
        with httpx.Client(transport=transport, base_url=address, timeout=60) as client:
            for _ in range(100):
                try:
                    assert client.get("/").status_code == 401
                    break
                except httpx.ConnectError:
                    continue
            response = client.post("/voices", content=wav(ANNA), headers=headers)
            assert response.status_code == 201
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "-m", "any"]) == 1
    assert 'pip install "speechbrain-peer[serve]"' in capsys.readouterr().err
