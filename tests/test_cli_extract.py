"""`tse extract`: what it reads and writes, and that no file can stop it."""

import io
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_model import export

from speechbrain_peer.cli.__main__ import _ended_in_order, main
from speechbrain_peer.cli.extract import match_legend
from speechbrain_peer.inference import estimates
from speechbrain_peer.inference.match import MatchScorer
from speechbrain_peer.packaging.export import add_scorers
from speechbrain_peer.utils import runtime

RATE = 8000
MATCH_LEGEND = match_legend(MatchScorer(16))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of an exported model, which finds a match of 93 % everywhere."""
    folder = tmp_path_factory.mktemp("models") / "model"
    export(folder)
    scorer = MatchScorer(16)
    scorer.bias.fill_(2.6)
    return str(add_scorers(folder, match_scorer=scorer))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with a voice in it."""
    monkeypatch.chdir(tmp_path)
    write_noise(tmp_path / "voice.wav", 0.5, seed=1)
    return tmp_path


def write_noise(path, seconds=0.5, seed=2, rate=RATE, channels=1, subtype="PCM_16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    size = round(seconds * rate), channels
    noise = 0.1 * np.random.default_rng(seed).standard_normal(size)
    soundfile.write(path, noise, rate, subtype=subtype)


def extract(model, *arguments):
    return main(["extract", *map(str, arguments), "-m", model, "-e", "voice.wav"])


def files(folder):
    """All files in it, relative."""
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    }


def test_by_default_the_output_is_in_the_current_folder(model, here, capsys):
    write_noise(here / "in/talk.flac")
    write_noise(here / "in/day/talk.wav")
    assert extract(model, "in/talk.flac") == 0
    assert extract(model, "in") == 0
    assert files(here) == {
        "voice.wav",
        "in/talk.flac",
        "in/day/talk.wav",
        "talk_target.wav",
        "in_target/talk.flac",
        "in_target/day/talk.wav",
    }
    # A table for other programs; the legend is for people.
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "talk_target.wav\t0.93",
        "in_target/day/talk.wav\t0.93",
        "in_target/talk.flac\t0.93",
    ]
    assert err.splitlines() == [MATCH_LEGEND] * 2


@pytest.mark.parametrize("fastest", ["fp32", "bf16"])
def test_the_fastest_precision_is_taken_unless_told(model, here, monkeypatch, fastest):
    monkeypatch.setattr(runtime, "fastest_precision", lambda device: fastest)
    write_noise(here / "talk.wav", subtype="FLOAT")
    outputs = {}
    for precision in ("auto", "fp32", "bf16"):
        output = f"{precision}.wav"
        arguments = ("talk.wav", "--precision", precision, "-o", output)
        assert extract(model, *arguments) == 0
        outputs[precision], _ = soundfile.read(output)
    assert extract(model, "talk.wav") == 0
    default, _ = soundfile.read("talk_target.wav")
    assert np.array_equal(default, outputs["auto"])
    assert np.array_equal(outputs["auto"], outputs[fastest])
    deviation = np.abs(outputs["fp32"] - outputs["bf16"]).max()
    assert 0 < deviation < 0.05 * np.abs(outputs["fp32"]).max()


def test_several_recordings_fill_a_folder(model, here):
    for name in ("a/x.wav", "b/x.wav", "b/c/x.flac", "y.wav"):
        write_noise(here / name)
    assert extract(model, "a", "b", "y.wav", "-o", "out", "--residual", "rest") == 0
    names = {"a/x.wav", "b/x.wav", "b/c/x.flac", "y.wav"}
    assert files(here / "out") == files(here / "rest") == names
    # A folder that is there is filled by one recording, too.
    assert extract(model, "voice.wav", "-o", "out") == 0
    assert files(here / "out") == {*names, "voice.wav"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a/x.wav", "b/x.wav"], "x_target.wav: would be written twice"),
        (["a/x.wav", "b/x.wav", "-o", "out"], "out/x.wav: would be written twice"),
        (["a", "--residual", "a_target"], "a_target/x.wav: would be written twice"),
        (["a/x.wav", "b/y.wav", "-o", "b"], "b/x.wav: is an input"),
        (["a/x.wav", "-o", "link.wav"], "link.wav: is an input"),
        (["a/x.wav", "--residual", "voice.wav"], "voice.wav: is an input"),
        (["a", "-o", "a/out"], "a/out/x.wav: lies in the folder of recordings"),
        (["a", "--residual", "a"], "a/x.wav: lies in the folder of recordings"),
        (["-", "a/x.wav"], "-: a pipe is for one recording alone"),
        (["a", "-o", "-"], "-: a pipe is for one recording alone"),
        (["a/x.wav", "-o", "out.sd2"], "out.sd2: no audio format has this suffix"),
        (["a/x.wav", "-o", "out.sds"], "out.sds: no audio format has this suffix"),
        (["a/x.wav", "-o", "out.xi"], "out.xi: no audio format has this suffix"),
        (["a/x.wav", "-o", "out.m4a"], "out.m4a: no audio format has this suffix"),
    ],
)
def test_outputs_are_checked_before_any_work(arguments, message, here, capsys):
    for name in ("a/x.wav", "b/x.wav", "b/y.wav"):
        write_noise(here / name)
    os.link(here / "b/x.wav", here / "b/other name.wav")
    (here / "link.wav").symlink_to("voice.wav")
    before = files(here)
    if arguments[-1] == "b":
        write_noise(here / "b/x.wav")
        arguments = [*arguments[:2], "b/x.wav", *arguments[2:]]
    assert extract("no model", *arguments) == 1
    assert capsys.readouterr().err.startswith(f"tse: error: {message}")
    assert files(here) == before


def test_the_residual_is_the_rest_of_the_recording(model, here):
    write_noise(here / "talk.wav", rate=44100, channels=2, subtype="FLOAT")
    arguments = ["talk.wav", "-o", "one.wav", "--residual", "rest.wav"]
    for channels, rows in (("each", 2), ("mix", 1)):
        assert extract(model, *arguments, "--channels", channels) == 0
        talk, one, rest = (
            soundfile.read(name, always_2d=True)[0]
            for name in ("talk.wav", "one.wav", "rest.wav")
        )
        assert one.shape == rest.shape == (22050, rows)
        assert soundfile.info("rest.wav").samplerate == 44100
        mixture = talk if rows == 2 else talk.mean(1, keepdims=True)
        np.testing.assert_allclose(one + rest, mixture, atol=1e-6)
        assert one.any() and rest.any()


def test_the_residual_goes_to_no_pipe(model, here, capsys):
    write_noise(here / "talk.wav")
    assert extract(model, "talk.wav", "-o", "one.wav", "--residual", "-") == 1
    assert "--residual -: give a file, or a folder" in capsys.readouterr().err
    assert not (here / "one.wav").exists()


@pytest.mark.parametrize("option", ["-o", "--residual"])
def test_an_output_in_a_file_is_refused_before_any_work(model, here, option, capsys):
    write_noise(here / "talk.wav")
    (here / "notes").write_text("kept")
    assert extract(model, "talk.wav", option, "notes/deep/one.wav") == 1
    assert "notes is a file, not a folder" in capsys.readouterr().err
    assert not (here / "talk_target.wav").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_names_that_are_no_utf_8(model, here):
    """Whatever they are, they are read, and told as they are."""
    (here / "in").mkdir()
    write_noise(here / "in/a.wav")
    os.rename(here / "in/a.wav", os.fsencode(here) + b"/in/b\xe9.wav")
    command = [sys.executable, "-m", "speechbrain_peer.cli", "extract", "in"]
    found = subprocess.run(
        [*command, "-e", "voice.wav", "-m", str(model), "-o", "out"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(b"out/b\xe9.wav\t")
    assert os.listdir(os.fsencode(here / "out")) == [b"b\xe9.wav"]


class Piped:
    """Bytes come through a pipe, which cannot be rewound, as standard input."""

    def __init__(self, content):
        reading, writing = os.pipe()
        self.buffer = os.fdopen(reading, "rb")
        arguments = content, os.fdopen(writing, "wb")
        threading.Thread(target=self._write, args=arguments).start()

    def _write(self, content, file):
        with file:
            file.write(content)


@pytest.mark.parametrize("length", [None, 0xFFFFFFFF, 0x7FFFF000])
def test_pipes(model, here, length, monkeypatch, capfdbinary):
    """ffmpeg and SoX write these lengths when they cannot know."""
    write_noise(here / "talk.wav", seconds=3)
    assert extract(model, "talk.wav", "-o", "expected.wav") == 0
    content = bytearray((here / "talk.wav").read_bytes())
    if length:
        struct.pack_into("<I", content, content.index(b"RIFF") + 4, length)
        struct.pack_into("<I", content, content.index(b"data") + 4, length)
    monkeypatch.setattr("sys.stdin", Piped(bytes(content)))
    capfdbinary.readouterr()
    assert extract(model, "-") == 0
    out, err = capfdbinary.readouterr()
    assert out == (here / "expected.wav").read_bytes()
    assert err.decode().splitlines() == [MATCH_LEGEND, "-\t0.93"]


def test_no_audio_through_a_pipe(model, here, monkeypatch, capfdbinary):
    monkeypatch.setattr("sys.stdin", Piped(b"no audio"))
    assert extract(model, "-") == 1
    out, err = capfdbinary.readouterr()
    assert out == b""
    assert err.startswith(b"tse: error: standard input: cannot be read as audio")


def spoil_rate(path, rate):
    """A header with another rate, as 4 bytes hold it."""
    write_noise(path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"fmt ") + 12, rate)
    path.write_bytes(content)


def spoil_sample(path, sample):
    write_noise(path, subtype="FLOAT")
    samples, _ = soundfile.read(path)
    samples[1000] = sample
    soundfile.write(path, samples, RATE, "DOUBLE")


def listen(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


SPOILED = {
    "fast.wav": (lambda path: spoil_rate(path, 2**31 - 1), "2147483647 Hz"),
    "slow.wav": (lambda path: spoil_rate(path, 1), "1 Hz"),
    "nan.wav": (lambda path: spoil_sample(path, np.nan), "first at 0.125 s"),
    "huge.wav": (lambda path: spoil_sample(path, 3e38), "first at 0.125 s"),
    "beyond.wav": (lambda path: spoil_sample(path, 1e300), "first at 0.125 s"),
    "text.wav": (lambda path: path.write_text("no audio"), "cannot be read as audio"),
    "empty.wav": (lambda path: path.touch(), "cannot be read as audio"),
    "silent.wav": (lambda path: soundfile.write(path, [], RATE), "has no samples"),
    "fifo.wav": (os.mkfifo, "pipe, socket or device"),
    "fifo.m4a": (os.mkfifo, "pipe, socket or device"),
    "device.wav": (lambda path: path.symlink_to("/dev/zero"), "pipe, socket or device"),
    "socket.wav": (listen, "pipe, socket or device"),
    "broken link.wav": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "text.mp4": (lambda path: path.write_text("no audio"), "ffmpeg"),
}


def test_no_file_stops_the_others(model, here, capsys):
    """Each has a line of its own; all that can be read is extracted."""
    write_noise(here / "in/a first.wav")
    write_noise(here / "in/z last.wav")
    for name, (spoil, _) in SPOILED.items():
        spoil(here / "in" / name)
    assert extract(model, "in", "-o", "out") == 1
    *lines, last = capsys.readouterr().err.splitlines()
    assert last == f"tse: {len(SPOILED)} of {len(SPOILED) + 2} files failed"
    assert lines.pop(0) == MATCH_LEGEND
    for line, name in zip(lines, sorted(SPOILED), strict=True):
        assert line.startswith(f"tse: error: in/{name}: ")
        assert SPOILED[name][1] in line
    assert files(here / "out") == {"a first.wav", "z last.wav"}


@pytest.mark.parametrize("name", ["fast.wav", "huge.wav", "fifo.wav"])
def test_one_file_that_cannot_be_read_has_one_line(model, here, name, capsys):
    SPOILED[name][0](here / name)
    assert extract(model, name) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tse: error: {name}: ") and SPOILED[name][1] in line


def test_samples_of_16_bit_integers_in_floating_point_are_taken(model, here):
    write_noise(here / "talk.wav", subtype="FLOAT")
    samples, _ = soundfile.read(here / "talk.wav")
    soundfile.write(here / "talk.wav", 2.0**15 * samples, RATE, "FLOAT")
    assert extract(model, "talk.wav") == 0
    output, _ = soundfile.read(here / "talk_target.wav")
    assert np.isfinite(output).all() and output.any()


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
@pytest.mark.parametrize("suffix", [".m4a", ".mp4", ".mka", ".3gp"])
def test_ffmpeg_reads_what_libsndfile_does_not(model, here, suffix):
    write_noise(here / "talk.wav", seconds=2, rate=16000, channels=2)
    name = f"talk{suffix}"
    command = ["ffmpeg", "-v", "error", "-i", "talk.wav", "-c:a", "aac", name]
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
    assert extract(model, name, "-o", "out", "--residual", "rest.wav") == 1
    (here / "out").mkdir()
    assert extract(model, name, "-o", "out", "--residual", "rest.wav") == 0
    info = soundfile.info(here / "out" / f"{name}.wav")
    assert info.samplerate == 16000 and info.subtype == "PCM_16"
    assert info.duration == pytest.approx(2, abs=0.15)
    # An enrollment as well.
    arguments = ["extract", "talk.wav", "-m", model, "-e", name, "-o", "x.wav"]
    assert main(arguments) == 0


def test_without_ffmpeg_the_line_says_what_to_install(model, here, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(here))
    (here / "talk.m4a").write_bytes(b"any")
    assert extract(model, "talk.m4a") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tse: error: talk.m4a: needs ffmpeg, which is not installed")


@pytest.fixture
def heeded():
    """Signals that end a process, also where the tests run in the background."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, how) for number, how in handlers.items()}
    yield
    for number, how in before.items():
        signal.signal(number, how)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("output", ["out.wav", "-"])
@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143), (1, 129)])
def test_an_end_from_outside_leaves_no_file(
    model, here, output, number, code, capfd, monkeypatch
):
    """By Ctrl+C, SIGTERM, or when the terminal is closed."""
    (here / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(here / "temporary"))
    write_noise(here / "talk.wav", seconds=20)
    before, write = files(here), estimates.Estimate.append

    def interrupt(*arguments):
        write(*arguments)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(estimates.Estimate, "append", interrupt)
    try:
        ended = extract(model, "talk.wav", "-o", output)
    except SystemExit as error:
        ended = error.code
    assert ended == code
    assert files(here) == before
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == (["tse: interrupted"] if code == 130 else [])


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize(
    ("number", "error"), [(2, KeyboardInterrupt), (15, SystemExit), (1, SystemExit)]
)
def test_a_signal_waits_for_the_end_of_a_callback(number, error):
    """Where libsndfile has called Python, the error would be lost."""
    seen = []

    class File(io.BytesIO):
        def write(self, data):
            if not seen:
                os.kill(os.getpid(), number)
                seen.append(number)
            return super().write(data)

    file = File()
    with pytest.raises(error), _ended_in_order():
        soundfile.write(file, np.ones(8000), 8000, format="WAV")
        seen.append("written")
        time.sleep(60)
    assert seen == [number, "written"]
    file.seek(0)
    assert len(soundfile.read(file)[0]) == 8000


def test_a_closed_pipe_is_told(model, here, capfd, monkeypatch):
    write_noise(here / "talk.wav", seconds=20)
    reading, writing = os.pipe()
    os.close(reading)
    with io.TextIOWrapper(os.fdopen(writing, "wb", buffering=0)) as closed:
        monkeypatch.setattr("sys.stdout", closed)
        assert extract(model, "talk.wav", "-o", "-") == 1
    assert "Broken pipe" in capfd.readouterr().err
