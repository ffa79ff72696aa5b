"""The listening page: what it computes and tells, and the page in a real browser."""

import io
import shutil
import sys
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from tiny_model import export

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli import listening_page
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.cli.listening_page import (
    build_page,
    describe_match,
    extract_and_draw,
    launch_page,
)
from speechbrain_peer.inference.match import MatchScorer
from speechbrain_peer.packaging.export import add_match_scorer

RATE = 16000
LONGEST = 120_000  # milliseconds, on a busy machine
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MIXTURE, VOICE = "Recording of several talkers", "Voice of one of them, alone"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A model that finds a match of 93 % everywhere."""
    folder = tmp_path_factory.mktemp("models") / "model"
    export(folder)
    scorer = MatchScorer(16)
    scorer.bias.fill_(2.6)
    return str(add_match_scorer(folder, scorer))


@pytest.fixture(scope="module")
def model(model_folder):
    return TargetSpeechExtraction.from_hparams(model_folder)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder with recordings; only to read."""
    folder = tmp_path_factory.mktemp("recordings")
    noise = 0.1 * np.random.default_rng(0).standard_normal((2 * RATE, 2))
    soundfile.write(folder / "meeting.wav", noise, RATE)
    soundfile.write(folder / "loud.wav", 1000 * noise, RATE, "FLOAT")
    soundfile.write(folder / "voice.wav", noise[:RATE, 0], RATE)
    soundfile.write(folder / "silent.wav", 0 * noise, RATE)
    soundfile.write(folder / "short.wav", noise[:100], RATE)
    (folder / "broken.wav").write_bytes(b"no audio")
    return folder


def test_what_is_extracted_is_written_drawn_and_told(model, recordings, tmp_path):
    paths = recordings / "meeting.wav", recordings / "voice.wav"
    output = tmp_path / "out.wav"
    match, figure, caption = extract_and_draw(model, *paths, output)
    estimate, rate = soundfile.read(output)
    assert rate == RATE
    assert estimate == pytest.approx(model.extract_file(*paths).numpy(), abs=1e-4)
    assert match == "Match: 93 % - likely this voice"
    assert [axes.get_title() for axes in figure.axes[:2]] == ["mixture", "extracted"]
    assert figure.axes[0].get_xlim() == (0, 2)
    assert caption == ""


def test_only_the_start_is_drawn(model, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(listening_page, "LONGEST_DRAWN", 1.0)
    output = tmp_path / "out.wav"
    paths = recordings / "meeting.wav", recordings / "voice.wav"
    _, figure, caption = extract_and_draw(model, *paths, output)
    assert soundfile.info(output).duration == 2
    assert figure.axes[1].get_xlim() == (0, 1)
    assert caption == "Only the first 1 s are drawn."


def test_speech_beyond_full_scale_is_kept_and_told(model, recordings, tmp_path):
    output = tmp_path / "out.wav"
    paths = recordings / "loud.wav", recordings / "voice.wav"
    _, _, caption = extract_and_draw(model, *paths, output)
    peak = np.abs(soundfile.read(output)[0]).max()
    assert peak > 1
    assert f"exceeds full scale by {20 * np.log10(peak):.1f} dB" in caption


def test_a_silent_mixture_is_no_match_and_drawn_dark(model, recordings, tmp_path):
    paths = recordings / "silent.wav", recordings / "voice.wav"
    match, figure, _ = extract_and_draw(model, *paths, tmp_path / "out.wav")
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
    assert describe_match(match) == text


def test_without_gradio_the_command_tells_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--model", "any"]) == 1
    assert 'pip install "speechbrain-peer[page]"' in capsys.readouterr().err


@pytest.fixture(scope="module")
def address(model, tmp_path_factory):
    """Where the page is served."""
    pytest.importorskip("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        page = build_page(model)
        yield launch_page(page)
        page.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of the browsers {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as started:
        # Its sandbox needs rights that containers have not.
        yield started.chromium.launch(executable_path=path, args=["--no-sandbox"])


def block(tab, label):
    return tab.locator(".block").filter(has_text=label).last


def give(tab, label, path):
    """Uploads a file, in place of the one before."""
    place = block(tab, label)
    if place.get_by_label("Clear").count():
        place.get_by_label("Clear").click()
    place.locator("input[type=file]").set_input_files(path)
    place.get_by_label("Download").wait_for()


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
