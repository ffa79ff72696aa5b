"""The command `tse`, as a shell runs it."""

import functools
import itertools
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import read_table, write_corpus, write_table
from test_onnx_export import export_small
from tiny_model import build, export, write_run

from speechbrain_peer import __version__
from speechbrain_peer.cli.__main__ import COMMANDS, build_parser, main
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
    arguments = ["demo"]
    with pytest.raises(SystemExit) as error:
        main([*arguments, "--device", device])
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument --device: {device}: PyTorch has no such device" in line


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["extract", "mixture.wav"],
            "extract: error: one of the arguments -e/--enrollment --voice is req",
        ),
        (["extract", "--loud"], "the following arguments are required"),
        (["demo", "--port", "0"], "'0' is not a whole number from 1 to 65535"),
        (["demo", "--port", "http"], "'http' is not a whole number from 1 to 65535"),
        (["export", "run"], "tse export: error: give -o/--output or --onnx, or both"),
        (["dance"], "tse: error: argument COMMAND: invalid choice: 'dance'"),
        ([], "tse: error: the following arguments are required: COMMAND"),
    ],
)
def test_wrong_options_end_with_2_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def run_python(code, *arguments):
    """Runs Python in a process of its own; returns what it wrote."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_help_comes_without_pytorch():
    code = """
import sys
from speechbrain_peer.cli.__main__ import COMMANDS, main
for command in ([], *([name] for name in COMMANDS)):
    try:
        main([*command, "--help"])
    except SystemExit as end:
        assert end.code == 0
print(sorted({"torch", "speechbrain", "numpy", "scipy"} & set(sys.modules)))
"""
    text = run_python(code)
    assert text.endswith("\n[]\n")
    assert text.count("usage: ") == 1 + len(COMMANDS)


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"tse {__version__}\n"


def test_examples_of_the_help_are_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, command in COMMANDS.items():
        for example in command.EXAMPLES:
            program, *arguments = shlex.split(example)
            for path in map(Path, arguments):
                if path.suffix:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
            options = build_parser().parse_args(arguments)
            assert (program, options.command) == ("tse", name)


def test_messages_of_others_are_not_shown_unless_they_are_errors():
    code = """
import logging, warnings
from speechbrain_peer.utils.messages import hide_warnings_of_others
hide_warnings_of_others()
theirs = logging.getLogger("speechbrain.utils.train_logger")
theirs.setLevel(logging.INFO)
theirs.info("fetching")
theirs.warning("no torchvision")
warnings.warn("will change", FutureWarning)
logging.getLogger("speechbrain.core").error("theirs")
logging.getLogger("speechbrain_peer.data").info("ours")
warnings.warn_explicit("ours, too", UserWarning, "x.py", 1, "speechbrain_peer.nnet")
"""
    theirs, ours, ours_too = run_python(code).splitlines()
    assert (theirs, ours) == ("theirs", "ours")
    assert "ours, too" in ours_too


def interrupt(arguments, until):
    """Presses Ctrl+C, which all processes hear, once a command has written a text."""
    command = [sys.executable, "-m", "speechbrain_peer.cli", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # Where the tests run in the background, a shell has it ignored.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    written = b""
    while until not in written:
        block = os.read(process.stdout.fileno(), 1000)
        assert block, written
        written += block
    os.killpg(process.pid, signal.SIGINT)
    rest = process.communicate(timeout=300)[0]
    return process.returncode, rest.decode()


def test_ctrl_c_ends_a_command_and_its_processes_in_one_line(tmp_path):
    corpus = write_corpus(tmp_path, seconds=(5, 6), parts=["dev-clean"])
    table = corpus.metadata_file("dev-clean")
    paths = [row["source_1_path"] for row in read_table(table)]
    rows = [
        {
            "mixture_ID": "_".join(Path(path).stem for path in pair),
            **{f"source_{k}_path": path for k, path in enumerate(pair, start=1)},
            **{f"source_{k}_gain": 1.0 for k in (1, 2)},
        }
        for pair in itertools.permutations(paths, 2)
    ]
    write_table(table, rows)
    arguments = ["prepare", "--librispeech_folder", corpus.librispeech_folder]
    arguments += ["--librimix_metadata", corpus.librimix_metadata, "--subsets", "dev"]
    arguments += ["-o", tmp_path / "out", "--n_processes", 2]
    code, rest = interrupt(arguments, until=b"Rendering")
    assert code == 130
    # After the line of the progress bar.
    assert rest.splitlines()[-1] == "tse: interrupted"
    assert "Traceback" not in rest and "Error" not in rest


def test_ctrl_c_ends_the_page(model):
    pytest.importorskip("gradio")
    code, rest = interrupt(["demo", "-m", model], until=b"(Ctrl+C ends it)\n")
    assert (code, rest) == (130, "tse: interrupted\n")


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


def test_export_to_onnx(tmp_path, capsys):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    model = str(export_small(tmp_path / "model", n_blocks=1))
    assert main(["export", model, "--onnx", str(tmp_path / "graphs")]) == 0
    told = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [Path(path).parent for path, _ in told] == [tmp_path / "graphs"] * 2
    assert all(size.endswith(" MB") for _, size in told)
    written = {path.name for path in (tmp_path / "graphs").iterdir()}
    assert written == {"speaker_encoder.onnx", "extractor.onnx"}


def test_a_missing_extra_is_told_in_one_line(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", model, "--onnx", str(tmp_path / "graphs")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert 'pip install "speechbrain-peer[onnx]"' in line


def test_a_card_cannot_command_the_terminal(model, capsys):
    Path(model, "README.md").write_text("# Model\x1b]0;title\x07\x1b[2J\tgood\r\n")
    assert main(["info", model]) == 0
    assert capsys.readouterr().out.endswith("\n\n# Model]0;title[2J\tgood\n")


def test_a_wrong_model_is_told_in_one_line(model, capsys):
    Path(model, "hyperparams.yaml").write_text("modules: [\n")
    for name, message in (
        (model, "is not valid YAML"),
        ("a\x1b[2Jb", "no such folder"),
    ):
        assert main(["info", name]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("tse: error: ") and message in line
        assert "\x1b" not in line


OWN_LAYER = """
from speechbrain_peer.nnet.mask import MaskHead


class OwnHead(MaskHead):
    pass
"""


def test_models_of_own_code_need_trust(
    model, enrollments, prepared, tmp_path, capsys, monkeypatch
):
    (tmp_path / "own.py").write_text(OWN_LAYER)
    monkeypatch.syspath_prepend(tmp_path)
    yaml = Path(model, "hyperparams.yaml")
    text = yaml.read_text()
    yaml.write_text(text.replace("speechbrain_peer.nnet.mask.MaskHead", "own.OwnHead"))
    output = str(tmp_path / "out.wav")
    for command in (
        ["extract", enrollments[0], "-m", model, "-e", enrollments[1], "-o", output],
        ["evaluate", model, prepared.manifests["test"]],
        ["calibrate", model, prepared.manifests["dev"]],
        ["info", model],
    ):
        capsys.readouterr()  # progress bars
        assert main(command) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "own.OwnHead is not allowed" in line
        assert main([*command, "--trust"]) == 0
    assert "own.OwnHead" in capsys.readouterr().out
