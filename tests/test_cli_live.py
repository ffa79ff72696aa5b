"""`tse live`: raw samples through a pipe, and devices that a test makes."""

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from tiny_model import export, export_causal

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.cli.live_devices import Meters, bar
from speechbrain_peer.peer_learning import streams

RATE = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(export_causal(tmp_path_factory.mktemp("models") / "model"))


@pytest.fixture(scope="module")
def model(folder):
    return TargetSpeechExtraction.from_hparams(folder)


@pytest.fixture(scope="module")
def anna(tmp_path_factory):
    path = tmp_path_factory.mktemp("voices") / "anna.wav"
    noise = np.random.default_rng(0).standard_normal(2 * RATE) / 10
    soundfile.write(path, noise, RATE)
    return str(path)


@pytest.fixture(scope="module")
def mixture():
    return np.random.default_rng(1).standard_normal((2, 5001)).astype(np.float32) / 10


@pytest.fixture
def pipe(monkeypatch, folder, anna):
    """Runs `tse live -`; gives exit code and output."""

    def run(data, *options, model=folder):
        output = SimpleNamespace(buffer=io.BytesIO())
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        monkeypatch.setattr(sys, "stdout", output)
        arguments = ["live", "-", "-e", anna, "-m", model, "--precision", "fp32"]
        return main([*arguments, *options]), output.buffer.getvalue()

    return run


def expected(model, anna, mixture, rate=None):
    stream = model.stream(voice=model.encode_speaker_files(anna), rate=rate)
    return torch.cat((stream.push(mixture), stream.flush()), dim=1).numpy()


def test_a_pipe_of_floats(pipe, model, anna, mixture, tmp_path):
    """Two channels at another rate, and a recording of what comes out."""
    path = tmp_path / "new/out.wav"
    options = ["--format", "f32le", "--channels", "2", "--rate", str(RATE)]
    code, output = pipe(mixture.T.tobytes(), *options, "--record", str(path))
    assert code == 0
    outputs = np.frombuffer(output, np.float32).reshape(-1, 2)
    np.testing.assert_allclose(
        outputs.T, expected(model, anna, mixture, RATE), atol=1e-6
    )
    recorded, rate = soundfile.read(path)
    assert rate == RATE
    np.testing.assert_array_equal(recorded, outputs)


def test_a_pipe_of_16_bits_at_the_models_rate(pipe, model, anna, mixture):
    given = np.rint(mixture[:1] * 32768).astype("<i2")
    code, output = pipe(given.tobytes())
    assert code == 0
    outputs = np.frombuffer(output, "<i2") / 32768
    assert len(outputs) == given.shape[1]
    exact = expected(model, anna, (given / 32768).astype(np.float32))[0]
    np.testing.assert_allclose(outputs, exact, atol=1 / 32768)


def test_what_is_clipped_is_told(pipe, mixture, tmp_path, capsys):
    model = str(export_causal(tmp_path / "model", gain=1e4))
    loud = mixture[0] / np.abs(mixture).max()
    code, output = pipe(loud.tobytes(), "--format", "f32le", model=model)
    assert code == 0 and np.abs(np.frombuffer(output, "<f4")).max() > 1
    assert "clipped" not in capsys.readouterr().err
    code, output = pipe((32767 * loud).astype("<i2").tobytes(), model=model)
    assert code == 0 and np.frombuffer(output, "<i2").max() == 32767
    assert "samples exceeded full scale and were clipped" in capsys.readouterr().err


def test_an_empty_pipe(pipe):
    assert pipe(b"") == (0, b"")


def test_a_rate_that_no_audio_has(pipe, capsys):
    assert pipe(b"", "--rate", "7")[0] == 1
    assert "rate 7: audio has 1000 to 768000 Hz" in capsys.readouterr().err


def test_half_a_sample_at_the_end(pipe, mixture, capsys):
    code, output = pipe(mixture[0].astype("<i2").tobytes() + b"x")
    assert code == 1
    assert "ends within a sample; are they s16le of 1" in capsys.readouterr().err
    assert output  # what was complete before


def test_not_finite(pipe, capsys):
    assert pipe(np.full(9, np.nan, "<f4").tobytes(), "--format", "f32le")[0] == 1
    assert "NaN" in capsys.readouterr().err


def test_a_model_that_looks_ahead(pipe, tmp_path, capsys):
    export(tmp_path / "model")
    assert pipe(b"", model=str(tmp_path / "model"))[0] == 1
    assert "looks ahead" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give -e FILE or --enroll SECONDS"),
        (["-", "--enroll", "5"], "are for devices, not for a pipe"),
        (["--enroll", "5", "--channels", "2"], "--channels is for a pipe"),
        (["--enroll", "0"], "'0' is not a number above zero"),
        (["-", "--enroll", "5", "-e", "x.wav"], "x.wav: no such file"),
        (["--enroll", "5", "--rate", "0"], "'0' is not a whole number of 1 or more"),
    ],
)
def test_options_that_do_not_go_together(options, message, capsys):
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(["live", *options]))
    assert ended.value.code in (1, 2)
    assert message in capsys.readouterr().err


def test_samples_come_out_as_they_go_in(folder, anna, mixture):
    """A real process, which answers before its input ends."""
    command = [sys.executable, "-m", "speechbrain_peer.cli", "live", "-"]
    command += ["-e", anna, "-m", folder, "--format", "f32le", "--precision", "fp32"]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdin.write(mixture[0, :800].tobytes())
        process.stdin.flush()
        first = process.stdout.read(4 * (800 - 15))
        process.stdin.close()
        rest = process.stdout.read()
        assert process.wait() == 0
    assert len(first + rest) == 4 * 800


class Devices:
    """Takes the place of sounddevice: a microphone with a recording, a loudspeaker."""

    class PortAudioError(Exception):
        pass

    def __init__(self, recording, overflows=(), underflows=()):
        self.recording, self.played, self.opened = recording, [], []
        self.overflows, self.underflows = overflows, underflows

    def query_devices(self, device=None, kind=None):
        if device == "nowhere":
            raise self.PortAudioError("No input device matching\n'nowhere'")
        return {"default_samplerate": 16000.0} if kind else "0 a microphone"

    def Stream(self, **settings):
        self.opened.append(settings)
        return OpenStream(self)

    InputStream = Stream


class OpenStream:
    def __init__(self, devices):
        self.devices, self.position = devices, 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.devices.opened.append("closed")

    def read(self, frames):
        start, self.position = self.position, self.position + frames
        if self.position > len(self.devices.recording):
            raise KeyboardInterrupt
        overflowed = start // frames in self.devices.overflows
        return self.devices.recording[start : self.position, None], overflowed

    def write(self, block):
        self.devices.played.append(block)
        return len(self.devices.played) in self.devices.underflows


@pytest.fixture
def live(monkeypatch, folder):
    def run(devices, *options):
        monkeypatch.setitem(sys.modules, "sounddevice", devices)
        return main(["live", "-m", folder, "--precision", "fp32", *options])

    return run


def test_from_microphone_to_loudspeaker(live, model, anna, mixture, tmp_path, capsys):
    devices = Devices(mixture[0], overflows=(3,), underflows=(1, 5, 6))
    path = tmp_path / "heard.wav"
    options = ["--block", "10", "--input", "2", "--output", "Cable"]
    # Ctrl+C is the way to end it.
    assert live(devices, "-e", anna, "--record", str(path), *options) == 0
    settings, closed = devices.opened
    assert closed == "closed"
    assert settings["device"] == (2, "Cable")
    assert (settings["samplerate"], settings["blocksize"]) == (RATE, 160)
    assert [len(block) for block in devices.played] == [160] * (1 + 5001 // 160)
    played = np.concatenate(devices.played)[160:]
    stream = model.stream(voice=model.encode_speaker_files(anna), rate=RATE, block=160)
    pieces = torch.from_numpy(mixture[0]).split(160)[:-1]
    expected = torch.cat([stream.push(piece) for piece in pieces])
    np.testing.assert_allclose(played[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(soundfile.read(path)[0], played[:, 0], atol=1e-6)
    told = capsys.readouterr().err
    late = (stream.latency + 320) / RATE * 1000
    assert f"tse: 16000 Hz, {late:.1f} ms late" in told
    assert "0.3 s, load" in told
    assert "1 times input was lost, 2 times there was nothing to play" in told


def test_the_voice_is_enrolled_at_the_microphone(live, model, mixture, capsys):
    recording = np.tile(mixture[0], 8)
    devices = Devices(recording)
    assert live(devices, "--enroll", "0.5", "--rate", "8000") == 0
    assert "speak now, alone, for 0.5 s" in capsys.readouterr().err
    stream = model.stream(torch.from_numpy(recording[None, :4000]), block=160)
    expected = stream.push(recording[:160])
    np.testing.assert_allclose(devices.played[1][:, 0], expected, atol=1e-6)


def test_a_silent_enrollment_is_told(live, capsys):
    assert live(Devices(np.zeros(99999, np.float32)), "--enroll", "1") == 1
    assert "The enrollment is silent" in capsys.readouterr().err


def test_devices_that_are_not_there(live, anna, monkeypatch, mixture, capsys):
    assert live(Devices(mixture[0]), "-e", anna, "--input", "nowhere") == 1
    told = capsys.readouterr().err
    assert "No input device matching 'nowhere'; see --list-devices" in told
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(["live", "--list-devices"]) == 1
    assert 'pip install "speechbrain-peer[live]"' in capsys.readouterr().err


def test_the_list_of_devices(live, mixture, capsys):
    assert live(Devices(mixture[0]), "--list-devices") == 0
    assert capsys.readouterr().out == "0 a microphone\n"


def test_the_meters_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Meters(1000, tells_presence=True) as meters:
        for _ in range(3):
            loud, quiet = np.full((100, 1), 0.5), np.full((100, 1), 0.001)
            meters.add(loud, quiet, 0.03, False, True)
            meters.show(torch.tensor([True]))
    told = capsys.readouterr().err
    assert told.count("\r") == 1
    line = "in ###########.   -6 dB  out ............  -60 dB  present  load  30%"
    assert f"\r{line}  under-runs 2\n" in told
    assert bar(3.0) == "############" and bar(-90.0) == "............"


def test_ctrl_c_keeps_the_start_of_a_file_if_asked(
    folder, anna, mixture, tmp_path, monkeypatch, capsys
):
    step, chunks = streams.step, []

    def count(*arguments):
        chunks.append(None)
        if len(chunks) == 2:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(streams, "step", count)
    path, output = tmp_path / "a.wav", tmp_path / "b.wav"
    soundfile.write(path, np.tile(mixture[0], 64), RATE)
    arguments = ["extract", str(path), "-e", anna, "-m", folder, "-o", str(output)]
    assert main([*arguments, "--keep-partial"]) == 130
    assert soundfile.info(output).duration == pytest.approx(12, abs=0.01)
    assert "tse: interrupted" in capsys.readouterr().err
