"""The model that comes with the package."""

import io
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hyperpyyaml import load_hyperpyyaml

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.data.manifests import read_manifest
from speechbrain_peer.data.prepare import prepare_librimix
from speechbrain_peer.evaluation.metrics import si_sdr
from speechbrain_peer.packaging.loading import bundled_models
from speechbrain_peer.training.fine_tuning import start_from

NAME = "small-8k"


def test_the_default_model_is_there_and_tells_a_match():
    assert NAME in bundled_models()
    model = TargetSpeechExtraction.from_hparams(NAME)
    assert model.hparams.sample_rate == 8000
    assert model.tells_match


def test_a_folder_of_its_name_comes_first(tmp_path, monkeypatch):
    (tmp_path / NAME).mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="not an exported model"):
        TargetSpeechExtraction.from_hparams(NAME)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match=f"this package: .*{NAME}"):
        TargetSpeechExtraction.from_hparams("large-48k")


def test_the_command_needs_no_model(tmp_path, capsys):
    noise = np.random.default_rng(0).standard_normal((2, 8000)) * 0.1
    for name, samples in zip(("mixture", "voice"), noise, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", samples, 8000)
    files = [str(tmp_path / f"{name}.wav") for name in ("mixture", "voice", "out")]
    assert main(["extract", files[0], "-e", files[1], "-o", files[2]]) == 0
    printed = capsys.readouterr()
    assert re.fullmatch(r".*out\.wav\t[01]\.\d\d\n", printed.out)
    assert "below 0.27 the person may be absent" in printed.err
    assert main(["info", NAME]) == 0
    assert "CC BY 4.0" in capsys.readouterr().out


def examples_of(text, language):
    """The fenced examples that a card shows."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_what_its_description_shows_runs_as_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).standard_normal((2, 8000)) * 0.1
    for name, samples in zip(("mixture", "enrollment"), noise, strict=True):
        soundfile.write(f"{name}.wav", samples, 8000)
    assert main(["info", NAME]) == 0
    text = capsys.readouterr().out
    ours, theirs = examples_of(text, "python")
    exec(ours, {})
    assert soundfile.info("target.wav").frames == 8000
    names = {}
    exec(theirs, names)
    assert names["model"].hparams.sample_rate == 8000


def test_a_training_starts_from_it_as_its_description_shows(capsys):
    assert main(["info", NAME]) == 0
    (example,) = examples_of(capsys.readouterr().out, "bash")
    _, script, yaml, *options = shlex.split(example.replace("\\\n", ""))
    root = Path(__file__).parents[1]
    assert (root / script).is_file()
    with open(root / yaml, encoding="utf-8") as stream:
        hparams = load_hyperpyyaml(stream)
    start_from(
        hparams["modules"],
        options[options.index("--start_from") + 1],
        hparams["sample_rate"],
    )


def test_of_several_recordings_the_command_needs_no_model_either(tmp_path, capsys):
    rng = np.random.default_rng(0)
    shared, voice = 0.1 * rng.standard_normal((2, 16000))
    files = [str(tmp_path / f"{name}.wav") for name in ("one", "two", "voice", "out")]
    for path in files[:2]:
        soundfile.write(path, shared + 0.05 * rng.standard_normal(16000), 8000)
    soundfile.write(files[2], voice, 8000)
    command = ["extract", *files[:2], "--together", "-e", files[2], "-o", files[3]]
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "model peers-8k, 8000 Hz" in told
    assert f"{files[1]}: begins at +0.000 s" in told
    assert soundfile.info(files[3]).frames == 16000


def test_live_the_command_needs_no_model_either(tmp_path, capsysbinary, monkeypatch):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "voice.wav", 0.1 * rng.standard_normal(16000), 16000)
    samples = np.int16(1000 * rng.standard_normal(16000))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(samples.tobytes())))
    command = ["live", "-", "-e", str(tmp_path / "voice.wav"), "--rate", "16000"]
    assert main(command) == 0
    printed = capsysbinary.readouterr()
    assert b"model small-live-16k, 16000 Hz" in printed.err
    assert len(printed.out) == len(samples.tobytes())


def test_it_extracts_from_real_speech(mini_librimix, tmp_path):
    """On speakers that neither training nor the choice of the checkpoint has seen."""
    prepared = prepare_librimix(
        tmp_path,
        librispeech_folder=mini_librimix / "LibriSpeech",
        librimix_metadata=mini_librimix / "metadata/Libri2Mix",
        enrollment_maps=mini_librimix / "metadata/enrollment",
        subsets=["test"],
    )
    model = TargetSpeechExtraction.from_hparams(NAME)
    rows = list(read_manifest(prepared.manifests["test"], prepared.data_root).values())
    improvements = []
    for row in rows[::15]:
        estimate = model.extract_file(row["mixture"], row["enrollment"]).numpy()
        mixture, target = (
            soundfile.read(path)[0] for path in (row["mixture"], row["target"]["path"])
        )
        improvements.append(si_sdr(estimate, target) - si_sdr(mixture, target))
    assert np.mean(improvements) > 4
