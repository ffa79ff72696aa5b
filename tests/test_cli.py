"""The command `tse`, as a shell runs it, in this process."""

import numpy as np
import pytest
import soundfile
from tiny_model import build, export, write_run

from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.training.checkpoints import SafeCheckpointer

RATE = 8000


@pytest.fixture
def model(tmp_path):
    """The folder of an exported model."""
    export(tmp_path / "ein Modell")
    return str(tmp_path / "ein Modell")


def write_noise(path, seconds, seed, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).standard_normal(round(seconds * rate))
    soundfile.write(path, 0.1 * noise, rate)
    return str(path)


@pytest.fixture
def enrollments(tmp_path):
    return [write_noise(tmp_path / f"voice {seed}.wav", 0.5, seed) for seed in (1, 2)]


def test_a_file(model, enrollments, tmp_path, capsys):
    mixture = write_noise(tmp_path / "Gespräch.wav", 1.0, seed=3, rate=16000)
    output = tmp_path / "neu" / "out.wav"
    arguments = ["extract", mixture, "-m", model, "-o", str(output), "-e"]
    assert main([*arguments, *enrollments]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    both, rate = soundfile.read(output)
    assert both.shape == (16000,) and rate == 16000 and both.any()
    assert main([*arguments, enrollments[0]]) == 0
    one, _ = soundfile.read(output)
    assert not np.allclose(one, both)


def test_a_folder_keeps_names_apart_and_goes_on_after_an_error(
    model, enrollments, tmp_path, capsys
):
    for name, seed in (("a/x.wav", 3), ("b/x.wav", 4), ("b/c/y.flac", 5)):
        write_noise(tmp_path / "mixtures" / name, 0.5, seed)
    (tmp_path / "mixtures/broken.wav").write_bytes(b"no audio")
    (tmp_path / "mixtures/notes.txt").write_text("no audio")
    arguments = ["extract", str(tmp_path / "mixtures"), "-m", model, "-e", *enrollments]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 1
    errors = capsys.readouterr().err
    assert "broken.wav: cannot be read as audio" in errors and "1 of 4 files" in errors
    written = {
        str(path.relative_to(tmp_path / "out")): soundfile.read(path)[0]
        for path in (tmp_path / "out").rglob("*.*")
    }
    assert written.keys() == {"a/x.wav", "b/x.wav", "b/c/y.flac"}
    assert not np.allclose(written["a/x.wav"], written["b/x.wav"])
    # Not into what it reads from.
    assert main([*arguments, "-o", str(tmp_path / "mixtures/out")]) == 1
    assert "lies in the folder of recordings" in capsys.readouterr().err


def test_a_folder_gives_all_that_can_be_read_and_tells_the_rest(
    model, enrollments, tmp_path, capsys
):
    folder, output = tmp_path / "mixtures", tmp_path / "out"
    write_noise(folder / "a.wav", 0.5, seed=3)
    noise, _ = soundfile.read(folder / "a.wav")
    soundfile.write(folder / "b.opus", noise, RATE, format="OGG", subtype="OPUS")
    soundfile.write(folder / "c.AIF", noise, RATE, format="AIFF")
    for number in range(12):
        (folder / f"notes {number:02}.txt").write_text("no audio")
    arguments = ["extract", str(folder), "-m", model, "-e", *enrollments]
    assert main([*arguments, "-o", str(output)]) == 0
    kinds = {path.name: soundfile.info(path).subtype for path in output.iterdir()}
    assert kinds == {"a.wav": "PCM_16", "b.opus": "OPUS", "c.AIF": "PCM_16"}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tse: skipped as not audio: notes 00.txt, notes 01.txt,")
    assert line.endswith("notes 09.txt and 2 more")


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_told_first(device, capsys):
    arguments = ["extract", "absent.wav", "-e", "absent.wav", "-o", "out.wav"]
    assert main([*arguments, "--device", device]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tse: error: --device {device}: PyTorch has no such device")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture": "absent.wav"}, "absent.wav: no such file"),
        ({"enrollment": "silent.wav"}, "silent.wav: The enrollment is silent"),
        ({"enrollment": "short.wav"}, "short.wav: An enrollment of 0.010 s is too"),
        ({"output": "mixture.wav"}, "mixture.wav: is an input"),
        ({"output": "voice 1.wav"}, "voice 1.wav: is an input"),
        ({"output": "out.mp9"}, "out.mp9: no audio format has this suffix"),
        ({"model": "no model"}, "no model: no such folder"),
        ({"mixture": "empty"}, "empty: holds no audio files"),
    ],
)
def test_errors_are_told_and_nothing_is_written(
    change, message, model, enrollments, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_noise(tmp_path / "mixture.wav", 0.5, seed=3)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "short.wav", np.ones(80), RATE)
    (tmp_path / "empty").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.glob("*.wav")}
    given = {"mixture": "mixture.wav", "output": "out.wav", "model": model}
    given |= {"enrollment": enrollments[0]} | change
    arguments = ["extract", given["mixture"], "-m", given["model"]]
    arguments += ["-e", given["enrollment"], "-o", given["output"]]
    assert main(arguments) == 1
    assert f"tse: error: {message}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.glob("*.wav")} == before


def test_wrong_options_end_with_2(capsys):
    with pytest.raises(SystemExit) as error:
        main(["extract", "mixture.wav"])
    assert error.value.code == 2
    assert "-e/--enrollment" in capsys.readouterr().err


def test_export_and_info(tmp_path, capsys):
    run = tmp_path / "results/tiny/7"
    write_run(run)
    checkpointer = SafeCheckpointer(run / "save", dict(build().items()))
    checkpointer.save_checkpoint(meta={"valid_loss": 0.0})
    folder = str(tmp_path / "my-model")
    assert main(["export", str(run), "-o", folder, "--license", "cc-by-4.0"]) == 0
    assert main(["info", folder]) == 0
    text = capsys.readouterr().out
    assert "8000 Hz" in text and "# my-model" in text and "license: cc-by-4.0" in text
    assert main(["export", str(tmp_path), "-o", folder]) == 1
    assert "is not the folder of a run" in capsys.readouterr().err
