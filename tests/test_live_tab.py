"""The page's live tab: what it streams, its limits, and the tab in a real browser."""

import gc
import json
import logging
import re
import time
import weakref
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import soundfile
from in_browser import LONGEST, block, give, open_browser
from scipy.signal import correlate, resample_poly
from tiny_model import export, export_causal

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli import live_session
from speechbrain_peer.cli.limits import Limits
from speechbrain_peer.cli.listening_page import (
    Named,
    PageModels,
    build_page,
    serve_page,
)
from speechbrain_peer.cli.live_tab import LiveTab
from speechbrain_peer.utils.pcm import decode_pcm

for name in ("gradio", "websockets"):
    pytest.importorskip(name)

RATE = 48000
VOICE = "Voice of this person"
PLAYER = "document.querySelector('audio[aria-label=Live]')"
# The last samples of what the player is given.
LISTEN = """() => new Promise((resolve) => {
  const context = new AudioContext();
  const analyser = new AnalyserNode(context, { fftSize: 32768 });
  const { srcObject } = PLAYER;
  context.createMediaStreamSource(srcObject).connect(analyser);
  setTimeout(() => {
    const samples = new Float32Array(32768);
    analyser.getFloatTimeDomainData(samples);
    resolve([...samples]);
  }, 1500);
})""".replace("PLAYER", PLAYER)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    return TargetSpeechExtraction.from_hparams(export_causal(folder))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """One of the voice, and one that the microphone hears again and again."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    soundfile.write(folder / "anna.wav", 0.1 * rng.standard_normal(RATE), RATE)
    # Up to 4 kHz, as the model.
    heard = resample_poly(0.1 * rng.standard_normal(8000 * 8), 6, 1)
    soundfile.write(folder / "heard.wav", heard, RATE)
    return folder


@pytest.fixture
def streams(monkeypatch):
    """The streams that there were."""
    seen = []

    class Watched(live_session.Session):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            seen.append(weakref.ref(self.stream))

    monkeypatch.setattr(live_session, "Session", Watched)
    return seen


@pytest.fixture(scope="module")
def address(model):
    with serve_page(PageModels(*[Named("my model", model)] * 3)) as address:
        yield address


def expected(model, recordings, rate, blocks):
    """What `model.stream` gives of 16-bit blocks, as floats at 32768."""
    voice = model.encode_speaker_files(recordings / "anna.wav")
    stream = model.stream(voice=voice, rate=rate)
    outputs = [stream.push(decode_pcm(block, "s16le")[0]).numpy() for block in blocks]
    return (32768 * np.concatenate(outputs)).clip(-32768, 32767)


def refusal(address):
    """Why a stream is not begun; empty if it is."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    with connect(address) as socket:
        try:
            socket.recv()
            return ""
        except ConnectionClosed as closed:
            return closed.rcvd.reason


def wait_until(holds):
    until = time.monotonic() + LONGEST / 1000
    while not holds():
        gc.collect()
        assert time.monotonic() < until
        time.sleep(0.1)


def joined(blocks):
    return np.frombuffer(b"".join(blocks), "<i2")


@pytest.fixture
def logged(caplog):
    """What the server logs."""
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_blocks_as_a_browser_sends_them(address, model, recordings, streams, logged):
    """The page enrolls, then come blocks of a microphone's rate; without a browser."""
    from gradio_client import Client, handle_file
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    page = Client(address, verbose=False)
    voice = page.predict(handle_file(recordings / "anna.wav"), api_name="/enroll")
    live = f"{address.replace('http', 'ws')}live?voice={voice}&rate={RATE}"
    with pytest.raises(InvalidStatus, match="403"):
        connect(live, origin="http://evil.example")
    heard, _ = soundfile.read(recordings / "heard.wav", 20000, dtype="int16")
    blocks = [heard[start : start + 1024].tobytes() for start in range(0, 20000, 1024)]
    outputs, texts = [], []
    with connect(live, origin=address.rstrip("/")) as socket:
        texts.append(json.loads(socket.recv()))
        for block in blocks:
            socket.send(block)
            while isinstance(output := socket.recv(), str):
                texts.append(json.loads(output))
            outputs.append(output)
    assert texts[0]["rate"] == RATE and {"presence": [True]} in texts[1:]
    np.testing.assert_allclose(
        joined(outputs), expected(model, recordings, RATE, blocks), atol=1
    )
    with connect(live) as socket:
        socket.recv()
        socket.send(bytes(1 << 18))  # and is gone before the answer
    wait_until(lambda: not any(stream() for stream in streams))
    # Those of HTTP clients come, too, where an earlier test has asked for all.
    assert not [r for r in logged.records if r.name.startswith("uvicorn")]
    page.predict(None, api_name="/enroll")
    assert "no such voice" in refusal(live)
    page.close()


def test_the_limits_hold(model):
    from fastapi import FastAPI
    from starlette.testclient import TestClient
    from starlette.websockets import WebSocketDisconnect

    tab = LiveTab(model, Limits(sessions=1, seconds=0.1))
    client = TestClient(FastAPI(routes=tab.routes()))
    path = f"/live?voice={tab.voices.add(model.encode_speaker(np.ones((1, 8000))))}"
    with client.websocket_connect(path) as socket:
        socket.receive_json()
        with client.websocket_connect(path) as other:
            with pytest.raises(WebSocketDisconnect) as full:
                other.receive_json()
        socket.send_bytes(bytes(2 * 801))
        with pytest.raises(WebSocketDisconnect) as ended:
            socket.receive_json()
    assert "sessions are in use" in full.value.reason
    assert "up to 0.1 s" in ended.value.reason
    assert tab.places.used == 0


def test_a_model_that_looks_ahead_has_a_line_that_says_so(tmp_path):
    export(tmp_path / "model")
    model = TargetSpeechExtraction.from_hparams(tmp_path / "model")
    models = PageModels(*[Named("my model", model)] * 3)
    page = build_page(models, tmp_path, LiveTab(model))
    texts = [component["props"].get("value") for component in page.config["components"]]
    (told,) = [text for text in texts if text and "live streams" in text]
    assert "--causal True" in told
    assert not [one for one in page.config["components"] if one["type"] == "html"]


@pytest.fixture(scope="module")
def browser(recordings):
    """Its microphone hears a file."""
    with open_browser(
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={recordings / 'heard.wav'}",
    ) as opened:
        yield opened


@pytest.fixture
def tab(browser, address):
    tab = browser.new_page()
    tab.set_default_timeout(LONGEST)
    tab.goto(address)
    tab.get_by_role("tab", name="Live").click()
    yield tab
    tab.close()


def button(tab, name):
    return tab.get_by_role("button", name=name, exact=True)


def similarity(samples, signal):
    """The highest correlation coefficient of pieces with any part of a signal."""
    pieces = samples[: len(samples) // 2048 * 2048].reshape(-1, 2048)
    energies = correlate(np.square(signal), np.ones(2048), "valid") + 1e-6

    def of_piece(piece):
        products = correlate(signal, piece, "valid")
        return (products / np.sqrt(energies * np.square(piece).sum())).max()

    # Where nothing is played, nothing is compared.
    return max(of_piece(piece) for piece in pieces if np.square(piece).min() > 0)


def test_live_in_the_browser(tab, model, recordings, streams):
    sent, answered, addresses = [], [], []

    def watch(socket):
        addresses.append(socket.url)
        socket.on("framesent", lambda data: sent.append(data))
        socket.on("framereceived", lambda data: answered.append(data))

    tab.on("websocket", watch)
    tab.on("request", lambda request: addresses.append(request.url))
    button(tab, "Start").wait_for()
    assert button(tab, "Start").is_disabled()
    give(tab, VOICE, recordings / "anna.wav")
    tab.locator(".start:enabled").click()
    # Both are told once a second has passed.
    tab.get_by_text("present", exact=True).wait_for()
    tab.get_by_text(re.compile(r"\d+ ms late, of which .* the model's")).wait_for()
    played = tab.evaluate(LISTEN)
    button(tab, "Stop").click()
    button(tab, "Start").wait_for()
    assert tab.evaluate(f"{PLAYER}.srcObject") is None

    sent = [data for data in sent if isinstance(data, bytes)]
    received = joined([data for data in answered if isinstance(data, bytes)])
    (live,) = [url for url in addresses if url.startswith("ws:")]
    rate = int(parse_qs(urlsplit(live).query)["rate"][0])
    # The estimate is that of the samples that were sent.
    assert len(received) > rate
    estimate = expected(model, recordings, rate, sent)[: len(received)]
    np.testing.assert_allclose(received, estimate, atol=1)
    # They are those of the microphone, and what is played is the estimate: some pieces
    # of them, as the browser loses others where the machine is busy.
    heard, _ = soundfile.read(recordings / "heard.wav")
    heard = resample_poly(np.tile(heard, 2), rate, RATE)
    assert similarity(joined(sent)[:rate] / 32768, heard) > 0.95
    assert similarity(np.array(played), received / 32768) > 0.95
    # Data and blob URLs have no host.
    assert {urlsplit(url).hostname for url in addresses} - {None} == {"127.0.0.1"}
    wait_until(lambda: not any(stream() for stream in streams))


def test_a_recorded_voice_and_a_page_that_is_closed(tab, streams):
    voice = block(tab, VOICE)
    voice.get_by_label("Record audio").click()
    button(tab, "Record").click()
    tab.wait_for_timeout(1000)
    button(tab, "Stop").click()
    with tab.expect_websocket() as opened:
        tab.locator(".start:enabled").click()
    address = opened.value.url
    tab.locator(".late:not(:empty)").wait_for()
    button(tab, "Stop").click()
    with tab.expect_websocket():
        button(tab, "Start").click()  # at once again
    tab.locator(".late:not(:empty)").wait_for()
    assert tab.evaluate(f"{PLAYER}.srcObject !== null")
    assert not refusal(address)
    tab.close()
    wait_until(lambda: "no such voice" in refusal(address))
    wait_until(lambda: not any(stream() for stream in streams))
