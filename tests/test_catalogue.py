"""Models that come with the package: which there are, and which one is taken."""

import contextlib
import io
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile
from tiny_model import export, export_causal

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.packaging import loading
from speechbrain_peer.packaging.catalogue import choose_bundled, list_bundled
from speechbrain_peer.peer_learning import streams
from speechbrain_peer.peer_learning.predictors import can_lend

CARD = """\
| | SI-SDR (dB) | SI-SDRi (dB) | wrong speaker (%) |
|---|---:|---:|---:|
| mixture | -0.65 | - | - |
| estimate | 9.35 | 10.00 ± 0.21 | 1.0 |
"""

FIGURES = {
    "peers-8k": "6.76",
    "phones-8k": "6.32",
    "small-16k": "7.46",
    "small-8k": "7.59",
    "small-live-16k": "4.51",
}
"""SI-SDRi in dB, as docs/results.md and the pages of evaluations have it."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models beside small-8k: two at 16 kHz, for files and for streams, and one that
    lets recordings lend."""
    made, folder = (tmp_path_factory.mktemp(name) for name in ("made", "bundled"))
    for name in ("base-16k", "small-8k"):
        shutil.copytree(loading.BUNDLED / "small-8k", folder / name)
    export_causal(made / "live-16k", n_blocks=1)
    export(made / "peers-8k")
    for name in ("live-16k", "peers-8k"):
        shutil.copytree(made / name, folder / name)
    for name in ("base-16k", "live-16k"):
        hparams = folder / name / loading.HPARAMS_FILE
        text = hparams.read_text().replace("sample_rate: 8000", "sample_rate: 16000")
        hparams.write_text(text)
    (folder / "base-16k" / loading.CARD_FILE).write_text(CARD, encoding="utf-8")
    return folder


@pytest.fixture
def four(models, monkeypatch):
    """The package comes with four models."""
    monkeypatch.setattr(loading, "BUNDLED", models)


def test_what_is_told_of_models_is_what_they_are(four):
    told = list_bundled()
    names = ["base-16k", "live-16k", "peers-8k", "small-8k"]
    assert [model.name for model in told] == names
    assert [model.si_sdri for model in told[:3]] == ["10.00 ± 0.21", "-", "-"]
    for entry in told:
        model = TargetSpeechExtraction.from_hparams(entry.name)
        assert entry.sample_rate == model.hparams.sample_rate
        assert entry.causal == (streams.init_state(model.mods, 1) is not None)
        assert entry.lends == can_lend(model.mods)


def test_what_is_told_of_the_package_s_own_is_what_they_are():
    for entry in list_bundled():
        modules, hparams = loading.load_model(entry.name)
        assert entry.sample_rate == hparams["sample_rate"]
        assert entry.causal == (streams.init_state(modules, 1) is not None)
        assert entry.lends == can_lend(modules)
        assert entry.si_sdri == FIGURES[entry.name]
        assert entry.megabytes < 8


@pytest.mark.parametrize(
    ("rate", "live", "name"),
    [
        (4000, False, "small-8k"),
        (8000, False, "small-8k"),
        (11025, False, "small-8k"),
        (16000, False, "base-16k"),
        (44100, False, "base-16k"),
        (None, False, "base-16k"),
        (48000, True, "live-16k"),
        (8000, True, "live-16k"),
        (None, True, "live-16k"),
    ],
)
def test_the_rate_decides(four, rate, live, name):
    assert choose_bundled(rate, live).name == name


def test_recordings_of_one_moment_need_one_that_lets_them_lend(four):
    assert choose_bundled(44100, together=True).name == "peers-8k"
    assert choose_bundled(8000).name == "small-8k"


def test_of_one_rate_the_largest_is_taken(four, models):
    larger = models / "the-larger-one-8k"
    shutil.copytree(models / "small-8k", larger)
    try:
        with open(larger / "weights.ckpt", "ab") as file:
            file.write(b"0")  # by a byte it is not larger
        assert choose_bundled(8000).name == choose_bundled(4000).name == "small-8k"
        with open(larger / "weights.ckpt", "ab") as file:
            file.write(bytes(200_000))
        assert choose_bundled(8000).name == choose_bundled(4000).name == larger.name
    finally:
        shutil.rmtree(larger)


def test_a_package_without_causal_models_says_so_when_one_is_used(models, tmp_path):
    shutil.copytree(models / "small-8k", tmp_path / "small-8k")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "BUNDLED", tmp_path)
        assert choose_bundled(16000, live=True).name == "small-8k"


def test_info_lists_them(four, capsys):
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        *("name", "rate", "(Hz)", "causal", "together"),
        *("weights", "(MB)", "SI-SDRi", "(dB)"),
    ]
    rows = [re.split(r"  +", line.strip()) for line in lines[1:5]]
    assert rows[0][:4] == ["base-16k", "16000", "no", "no"]
    assert rows[0][5] == "10.00 ± 0.21"
    assert rows[1][:3] == ["live-16k", "16000", "yes"] and rows[1][5] == "-"
    assert rows[2][:4] == ["peers-8k", "8000", "no", "yes"]
    assert rows[3][:5] == ["small-8k", "8000", "no", "no", "2.7"]
    assert "tse info NAME" in lines[-1]


@pytest.fixture
def files(tmp_path):
    """Noise as recordings of three rates, and a voice."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    for rate in (8000, 16000, 44100):
        soundfile.write(tmp_path / f"{rate}.wav", noise, rate)
    soundfile.write(tmp_path / "voice.flac", noise, 16000)
    return tmp_path


@pytest.mark.parametrize(
    ("recordings", "name"),
    [
        (["8000"], "small-8k, 8000 Hz"),
        (["44100"], "base-16k, 16000 Hz"),
        (["16000", "44100"], "base-16k, 16000 Hz"),
        (["44100", "8000"], "small-8k, 8000 Hz"),
    ],
)
def test_extraction_takes_the_one_that_fits(four, files, capsys, recordings, name):
    paths = [str(files / f"{rate}.wav") for rate in recordings]
    output = files / ("out" if len(paths) > 1 else "out.wav")
    options = ["-e", str(files / "voice.flac"), "-o", str(output)]
    assert main(["extract", *paths, *options]) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"tse: model {name} (--model chooses another)"
    assert main(["extract", *paths, *options, "-m", "base-16k"]) == 0
    assert "tse: model" not in capsys.readouterr().err


def test_extraction_together_takes_one_that_lends(four, files, capsys):
    again = shutil.copy(files / "44100.wav", files / "again.wav")
    paths = [str(files / "44100.wav"), str(again)]
    options = ["-e", str(files / "voice.flac"), "-o", str(files / "out.wav")]
    assert main(["extract", *paths, "--together", *options]) == 0
    assert "tse: model peers-8k," in capsys.readouterr().err


@pytest.mark.parametrize(("rate", "name"), [(8000, "small-8k"), (44100, "base-16k")])
def test_standard_input_has_a_rate_too(four, files, capsys, monkeypatch, rate, name):
    stream = io.BytesIO((files / f"{rate}.wav").read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
    options = ["-e", str(files / "voice.flac"), "-o", str(files / "out.wav")]
    assert main(["extract", "-", *options]) == 0
    assert f"model {name}," in capsys.readouterr().err
    assert soundfile.info(files / "out.wav").samplerate == rate


def test_what_ffmpeg_decodes_has_a_rate_too(four, files, capsys):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    video = files / "44100.m4a"
    command = ["ffmpeg", "-v", "error", "-i", files / "44100.wav", video]
    subprocess.run(command, check=True)
    options = ["-e", str(files / "voice.flac"), "-o", str(files / "out.wav")]
    assert main(["extract", str(video), *options]) == 0
    assert "model base-16k," in capsys.readouterr().err


def test_a_recording_that_cannot_be_read_chooses_nothing(four, files, capsys):
    (files / "broken.wav").write_bytes(b"RIFF")
    paths = [str(files / name) for name in ("broken.wav", "8000.wav")]
    options = ["-e", str(files / "voice.flac"), "-o", str(files / "out")]
    assert main(["extract", *paths, *options]) == 1
    told = capsys.readouterr().err
    assert "model small-8k," in told and "broken.wav: " in told


def test_live_extraction_takes_a_causal_one(four, files, capsysbinary, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(3200))))
    command = ["live", "-", "-e", str(files / "voice.flac"), "--precision", "fp32"]
    assert main([*command, "--rate", "48000"]) == 0
    printed = capsysbinary.readouterr()
    assert b"model live-16k, 16000 Hz" in printed.err
    assert len(printed.out) == 3200


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ["base-16k", "peers-8k", "live-16k"]),
        (["--model", "small-8k"], ["small-8k"] * 3),
    ],
)
def test_the_page_takes_one_for_each_use(four, monkeypatch, options, names):
    page = pytest.importorskip("speechbrain_peer.cli.listening_page")
    taken = []

    @contextlib.contextmanager
    def serve_page(models, port):
        taken.extend(models)
        yield "http://127.0.0.1"

    monkeypatch.setattr(page, "import_gradio", lambda: None)
    monkeypatch.setattr(page, "serve_page", serve_page)
    monkeypatch.setattr(threading.Event, "wait", lambda self: None)
    main(["demo", *options])
    assert [name for name, _ in taken] == names
    rates = [16000 if name.endswith("16k") else 8000 for name in names]
    assert [model.hparams.sample_rate for _, model in taken] == rates
    assert len({id(model) for _, model in taken}) == len(set(names))
