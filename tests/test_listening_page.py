"""The listening page: what it computes and tells, and the page in a real browser."""

import http.client
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from in_browser import LONGEST, block, give, open_browser
from tiny_model import export

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli import recording_tab
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.cli.access import LARGEST_UPLOAD
from speechbrain_peer.cli.listening_page import (
    Named,
    PageModels,
    describe,
    serve_page,
)
from speechbrain_peer.cli.recording_tab import describe_match, extract_and_draw
from speechbrain_peer.inference.match import MatchScorer
from speechbrain_peer.packaging.export import add_scorers

RATE = 16000
MIXTURE, VOICE = "Recording of several talkers", "Voice of one of them, alone"
MORE = "More recordings of this voice (optional)"
OTHERS = "More recordings of the same moment (optional)"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A model that finds a match of 93 % everywhere."""
    folder = tmp_path_factory.mktemp("models") / "model"
    export(folder)
    scorer = MatchScorer(16)
    scorer.bias.fill_(2.6)
    return str(add_scorers(folder, match_scorer=scorer))


@pytest.fixture(scope="module")
def model(model_folder):
    return TargetSpeechExtraction.from_hparams(model_folder)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder with recordings; only to read."""
    folder = tmp_path_factory.mktemp("recordings")
    noise = 0.1 * np.random.default_rng(0).standard_normal((2 * RATE, 2))
    soundfile.write(folder / "meeting.wav", noise, RATE)
    soundfile.write(folder / "later.wav", noise[RATE // 4 :], RATE)
    soundfile.write(folder / "loud.wav", 1000 * noise, RATE, "FLOAT")
    soundfile.write(folder / "voice.wav", noise[:RATE, 0], RATE)
    soundfile.write(folder / "silent.wav", 0 * noise, RATE)
    soundfile.write(folder / "short.wav", noise[:100], RATE)
    (folder / "broken.wav").write_bytes(b"no audio")
    return folder


def test_what_is_extracted_is_written_drawn_and_told(model, recordings, tmp_path):
    paths = recordings / "meeting.wav", recordings / "voice.wav"
    output = tmp_path / "out.wav"
    match, figure, caption = extract_and_draw(model, paths[:1], paths[1], output)
    estimate, rate = soundfile.read(output)
    assert rate == RATE
    assert estimate == pytest.approx(model.extract_file(*paths).numpy(), abs=1e-4)
    assert match == "Match: 93 % - likely this voice"
    assert [axes.get_title() for axes in figure.axes[:2]] == ["mixture", "extracted"]
    assert figure.axes[0].get_xlim() == (0, 2)
    # The model's rate is 8 kHz, the recording's 16.
    assert figure.axes[0].get_ylim() == (0, 4)
    assert caption.startswith("The model works up to 4 kHz: above, the recording")


def test_several_recordings_are_extracted_together(model, recordings, tmp_path):
    paths = [recordings / "meeting.wav", recordings / "later.wav"]
    voice, output = recordings / "voice.wav", tmp_path / "out.wav"
    told, *_ = extract_and_draw(model, paths, voice, output)
    estimate, _ = soundfile.read(output)
    assert estimate == pytest.approx(model.extract_file(paths, voice).numpy(), abs=1e-4)
    match, found = told.split("\n\n")
    assert match.startswith("Match: 93 %")
    assert found.startswith(f"{recordings}/later.wav: begins at +0.250 s")


def test_only_the_start_is_drawn(model, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(recording_tab, "LONGEST_DRAWN", 1.0)
    output = tmp_path / "out.wav"
    paths = recordings / "meeting.wav", recordings / "voice.wav"
    _, figure, caption = extract_and_draw(model, paths[:1], paths[1], output)
    assert soundfile.info(output).duration == 2
    assert figure.axes[1].get_xlim() == (0, 1)
    assert "Only the first 1 s are drawn." in caption


def test_speech_beyond_full_scale_is_kept_and_told(model, recordings, tmp_path):
    output = tmp_path / "out.wav"
    paths = recordings / "loud.wav", recordings / "voice.wav"
    _, _, caption = extract_and_draw(model, paths[:1], paths[1], output)
    peak = np.abs(soundfile.read(output)[0]).max()
    assert peak > 1
    assert f"exceeds full scale by {20 * np.log10(peak):.1f} dB" in caption


def test_a_silent_mixture_is_no_match_and_drawn_dark(model, recordings, tmp_path):
    paths = recordings / "silent.wav", recordings / "voice.wav"
    output = tmp_path / "out.wav"
    match, figure, _ = extract_and_draw(model, paths[:1], paths[1], output)
    assert match.startswith("Match: 0 % - low")
    for axes in figure.axes[:2]:
        (image,) = axes.images
        assert image.get_array().max() < image.get_clim()[0]


@pytest.mark.parametrize(
    ("match", "text"),
    [
        (None, "Match: unknown - this model tells no match score"),
        (0.12, "Match: 12 % - low: the voice may not be in this recording"),
        (0.5, "Match: 50 % - likely this voice"),
    ],
)
def test_the_score_in_words(match, text):
    assert describe_match(match, threshold=0.5) == text


def test_without_gradio_the_command_tells_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--model", "any"]) == 1
    assert 'pip install "speechbrain-peer[page]"' in capsys.readouterr().err


@pytest.fixture(scope="module")
def page(model, tmp_path_factory):
    """The address of a page, and the folder of its files."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        with serve_page(PageModels(*[Named("my model", model)] * 3)) as address:
            yield address, folder
        assert not list(folder.iterdir())


@pytest.fixture
def address(page):
    return page[0]


def ask(address, method="GET", path="/", **headers):
    """Asks as a browser does, with other headers; gives the status."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    headers = {"Host": urlsplit(address).netloc, **headers}
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def test_the_page_is_for_its_own_computer(address):
    """A site can point its name here, and any site can send requests."""
    port = urlsplit(address).port
    assert ask(address) == 200
    assert ask(address, Host=f"localhost:{port}") == 200
    for host in ("evil.example", f"evil.example:{port}", "192.168.0.1", "", "["):
        assert ask(address, Host=host) == 403
    own = f"http://127.0.0.1:{port}"
    assert ask(address, Origin=own) == 200
    for origin in ("http://evil.example", "null", own.replace("http", "https")):
        assert ask(address, Origin=origin) == 403
    assert ask(address, Origin=f"http://127.0.0.1:{port + 1}") == 403


def test_uploads_have_a_limit(address):
    upload = "/gradio_api/upload"
    large = str(LARGEST_UPLOAD + 1)
    assert ask(address, "POST", upload, Content_Length=large) == 413
    assert ask(address, "POST", upload, Transfer_Encoding="chunked") == 411
    assert ask(address, "POST", upload, Content_Length="-1") in (400, 413)


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


def uploads(page):
    """Names of the recordings that are on the disk."""
    return sorted(path.name for path in page[1].rglob("uploads/*/*") if path.is_file())


def wait_for_uploads(page, names):
    until = time.monotonic() + LONGEST / 1000
    while uploads(page) != sorted(names):
        assert time.monotonic() < until, uploads(page)
        time.sleep(0.1)


def extract(tab):
    tab.get_by_role("button", name="Extract").click()


def test_extraction_in_the_browser(address, browser, model, recordings):
    tab = browser.new_page()
    tab.set_default_timeout(LONGEST)
    requests = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(address)
    give(tab, MIXTURE, recordings / "meeting.wav")
    give(tab, VOICE, recordings / "voice.wav")
    extract(tab)
    tab.get_by_text("Match: 93 % - likely this voice").wait_for()
    image = tab.locator("img")
    image.wait_for()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)")
    link = block(tab, "Extracted").get_by_role("link").get_attribute("href")
    assert link.endswith("/meeting_extracted.wav")
    audio, rate = soundfile.read(io.BytesIO(tab.request.get(link).body()))
    estimate = model.extract_file(recordings / "meeting.wav", recordings / "voice.wav")
    assert rate == RATE and audio == pytest.approx(estimate.numpy(), abs=1e-4)
    # The player could decode it.
    block(tab, "Extracted").get_by_text("0:02").wait_for()
    # Data and blob URLs have no host.
    assert {urlsplit(url).hostname for url in requests} - {None} == {"127.0.0.1"}
    tab.close()


def test_several_recordings_in_the_browser(address, browser, recordings):
    tab = browser.new_page()
    tab.set_default_timeout(LONGEST)
    tab.goto(address)
    give(tab, MIXTURE, recordings / "meeting.wav")
    others = block(tab, OTHERS).locator("input[type=file]")
    others.set_input_files([recordings / "later.wav"])
    give(tab, VOICE, recordings / "voice.wav")
    extract(tab)
    found = tab.get_by_text("later.wav: begins at +0.250 s")
    found.wait_for()
    assert "uploads" not in found.inner_text()
    tab.close()


def test_a_model_that_cannot_lend_takes_one_recording(browser):
    pytest.importorskip("gradio")
    alone = Named("small-8k", TargetSpeechExtraction.from_hparams("small-8k"))
    with serve_page(PageModels(alone, alone, alone)) as at:
        tab = browser.new_page()
        tab.set_default_timeout(LONGEST)
        tab.goto(at)
        tab.get_by_text(MORE).wait_for()
        assert not tab.get_by_text(OTHERS).is_visible()
        tab.close()


def test_a_model_for_each_use(browser, model, recordings):
    pytest.importorskip("gradio")
    alone = Named("small-8k", TargetSpeechExtraction.from_hparams("small-8k"))
    models = PageModels(alone, Named("my model", model), alone)
    told = describe(models).split("  \n")
    assert told[0].startswith("Model **small-8k**, 8000 Hz")
    assert told[1].startswith("Model **my model** for several recordings, 8000 Hz")
    with serve_page(models) as at:
        tab = browser.new_page()
        tab.set_default_timeout(LONGEST)
        tab.goto(at)
        give(tab, MIXTURE, recordings / "meeting.wav")
        give(tab, VOICE, recordings / "voice.wav")
        extract(tab)
        tab.get_by_text("Match:").wait_for()
        # That of `my model` is the same everywhere.
        assert not tab.get_by_text("Match: 93 %").is_visible()
        others = block(tab, OTHERS).locator("input[type=file]")
        others.set_input_files([recordings / "later.wav"])
        extract(tab)
        tab.get_by_text("Match: 93 %").wait_for()
        tab.close()


def test_errors_are_told_in_the_browser_and_it_goes_on(address, browser, recordings):
    tab = browser.new_page()
    tab.set_default_timeout(LONGEST)
    tab.goto(address)

    def fail(message):
        extract(tab)
        error = tab.get_by_test_id("toast-body")
        error.get_by_text(message).wait_for()
        assert str(recordings) not in error.inner_text()
        assert "uploads" not in error.inner_text()
        error.get_by_label("Close").click()

    tab.get_by_role("button", name="Extract").wait_for()
    fail("The recording of several talkers is missing")
    give(tab, MIXTURE, recordings / "meeting.wav")
    fail("The recording of the voice is missing")
    give(tab, VOICE, recordings / "silent.wav")
    fail("silent.wav: The enrollment is silent")
    give(tab, VOICE, recordings / "short.wav")
    fail("short.wav: An enrollment of 0.006 s is too short")
    give(tab, VOICE, recordings / "broken.wav")
    fail("broken.wav: cannot be read as audio")
    give(tab, VOICE, recordings / "voice.wav")
    extract(tab)
    tab.get_by_text("Match: 93 %").wait_for()
    tab.close()


def test_a_port_that_is_taken_is_told(address, model_folder, capsys):
    port = str(urlsplit(address).port)
    assert main(["demo", "--model", model_folder, "--port", port]) == 1
    assert port in capsys.readouterr().err


def test_recordings_go_when_they_are_replaced_or_the_page_is_closed(
    page, browser, recordings
):
    tab, other = browser.new_page(), browser.new_page()
    for opened in (tab, other):
        opened.set_default_timeout(LONGEST)
        opened.goto(page[0])
    give(tab, MIXTURE, recordings / "meeting.wav")
    give(other, MIXTURE, recordings / "meeting.wav")
    give(tab, VOICE, recordings / "voice.wav")
    more = block(tab, MORE).locator("input[type=file]")
    more.set_input_files([recordings / "loud.wav"])
    wait_for_uploads(page, ["meeting.wav", "voice.wav", "loud.wav"])
    extract(tab)
    tab.get_by_text("Match: 93 %").wait_for()
    give(tab, MIXTURE, recordings / "silent.wav")
    other.close()
    wait_for_uploads(page, ["silent.wav", "voice.wav", "loud.wav"])
    assert [*page[1].rglob("meeting_extracted.wav")]
    tab.close()
    wait_for_uploads(page, [])
    assert not [*page[1].rglob("meeting_extracted.wav")]


def test_an_example_to_click(address, browser):
    pytest.importorskip("espeakng_loader")
    tab = browser.new_page()
    tab.set_default_timeout(LONGEST)
    tab.goto(address)
    tab.get_by_text("my model, 8000 Hz").wait_for()
    for _ in range(2):
        tab.get_by_role("button", name="Take the example").click()
        block(tab, VOICE).get_by_label("Download").wait_for()
        extract(tab)
        tab.get_by_text("Match: 93 %").wait_for()
        tab.get_by_text("The model works up to 4 kHz").wait_for()
        block(tab, VOICE).get_by_label("Clear").click()
    tab.close()


def test_nothing_is_left_when_the_page_is_terminated(model_folder, tmp_path):
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "speechbrain_peer.cli", "demo", "-m", model_folder]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        (folder,) = tmp_path.glob("tse-page-*")
        (folder / "uploads").mkdir(exist_ok=True)
        (folder / "uploads/voice.wav").write_bytes(b"a voice")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("tse-page-*"))
