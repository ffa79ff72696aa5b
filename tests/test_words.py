"""What recognition gains: `tse evaluate --asr`."""

import csv
import json
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from conftest import write_corpus
from tiny_model import export
from tiny_recogniser import write_recogniser

from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.data.prepare import prepare_librimix
from speechbrain_peer.data.transcripts import Transcript, read_transcripts
from speechbrain_peer.evaluation import words
from speechbrain_peer.evaluation.recognition import Recogniser
from speechbrain_peer.evaluation.trials import Trial, read_trials
from speechbrain_peer.utils.files import DataError

RATE = 8000


class Settings(NamedTuple):
    sample_rate: int = RATE


class GivesHalf:
    """Extracts a signal that the fake recogniser knows: half of the mixture."""

    hparams = Settings()

    def encode_speaker(self, enrollment):
        return enrollment[:, :4]

    def extract_batch(self, mixture, embeddings):
        return 0.5 * mixture


class Heard:
    """A recogniser that hears what it is told, of each trial in turn."""

    name, sample_rate = "a fake", 16000

    def __init__(self, *texts):
        self.texts = iter(texts)

    def __call__(self, signals, sample_rate):
        assert (signals.shape[0], sample_rate) == (3, RATE)
        mixture, estimate, _ = signals
        np.testing.assert_allclose(estimate, 0.5 * mixture)
        return list(next(self.texts))


def make_trial(name, speaker, seconds=1.0):
    rng = np.random.default_rng(0)
    target, interferer, enrollment = rng.standard_normal(
        (3, round(seconds * RATE)), dtype=np.float32
    )
    return Trial(
        id=name,
        speakers=(speaker, "other"),
        target=target,
        interferers=(interferer,),
        noise=np.zeros_like(target),
        enrollment=enrollment,
        utterance=f"{speaker}-1",
    )


TRIALS = [make_trial("a", "ann"), make_trial("b", "ann"), make_trial("c", "bob")]
TRANSCRIPTS = {
    "ann-1": Transcript("THE OLD FARMER SANG", 1.0),
    "bob-1": Transcript("IT'S A LONG STORY ABOUT A STRANGER", 1.5),
}
HEARD = (
    ("the young farmer sang a song", "The old farmer.", "the old farmer sang"),
    ("", "the old farmer sang", "the cold farmer sang"),
    ("a short story", "it’s a long story", "it's a long story"),  # noqa: RUF001
)


def test_words_are_counted_as_they_are_known():
    result = words.evaluate(GivesHalf(), TRIALS, Heard(*HEARD), TRANSCRIPTS)
    assert (result["n_items"], result["n_cut"]) == (3, 1)
    transcript, own = result["transcript"], result["own"]
    # Of ann's two trials; bob's target lacks the end of what is written.
    assert (transcript["items"], transcript["words"]) == (2, 8)
    assert transcript["mixture"] == [100 * (3 + 4) / 8, 0.0]
    assert transcript["estimate"] == [100 * (1 + 0) / 8, 0.0]
    assert transcript["target"] == [100 * (0 + 1) / 8, 0.0]
    assert transcript["gain"] == [100 * 6 / 8, 0.0]
    assert (own["items"], own["words"]) == (3, 12)
    assert own["mixture"][0] == pytest.approx(100 * (3 + 4 + 2) / 12)
    assert own["estimate"][0] == pytest.approx(100 * (1 + 1 + 0) / 12)
    assert own["target"] == [0.0, 0.0]
    row = result["items"][2]
    assert row["transcript"] is None and row["transcript_words"] is None
    assert row["heard_in_estimate"] == "IT'S A LONG STORY"
    assert row["own_mixture_errors"] == 2
    text = words.markdown(result)
    assert (
        "| transcript, of whole utterances | 2 | 8 | 87.5 ± 0.0 | 12.5 ± 0.0 |" in text
    )
    assert "1 of 3 targets are cut where their mixture ends" in text


def test_without_transcripts_the_clean_target_tells():
    result = words.evaluate(GivesHalf(), TRIALS, Heard(*HEARD))
    assert result["transcript"]["items"] == 0
    text = words.markdown(result)
    assert "whole utterances" not in text and "Without transcripts" in text
    silent = words.evaluate(GivesHalf(), TRIALS[:1], Heard(("a", "", "")))
    assert silent["own"]["mixture"] is None
    assert "| 1 | 0 | - | - | - | - |" in words.markdown(silent)


def test_the_error_is_that_of_a_ratio_over_speakers():
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 40, 30)
    errors = rng.binomial(counts, rng.uniform(0.1, 0.6, 30))
    rate, error = words.error_rate(errors, counts, range(30))
    assert rate == pytest.approx(100 * errors.sum() / counts.sum())
    draws = rng.integers(0, 30, (20000, 30))
    bootstrap = errors[draws].sum(1) / counts[draws].sum(1)
    assert error == pytest.approx(100 * bootstrap.std(), rel=0.1)
    # Items of one speaker are not independent.
    together = words.error_rate([*errors] * 2, [*counts] * 2, [*range(30)] * 2)
    assert together == pytest.approx((rate, error))


def transcribe(librispeech_folder):
    """Writes the transcripts of a corpus; returns them by utterance."""
    texts = {}
    for k, path in enumerate(sorted(librispeech_folder.glob("*/*/*/*.flac"))):
        texts[path.stem] = ("THE FARMER SANG", "A STRANGER HEARD IT")[k % 2]
        chapter = path.stem.rpartition("-")[0]
        with open(path.with_name(f"{chapter}.trans.txt"), "a") as file:
            file.write(f"{path.stem} {texts[path.stem]}\n")
    return texts


@pytest.fixture
def transcribed(own_corpus):
    """A corpus with transcripts, and these."""
    return own_corpus, transcribe(own_corpus.librispeech_folder)


def test_transcripts_are_read_with_lengths(transcribed):
    corpus, texts = transcribed
    read = read_transcripts(corpus.librispeech_folder, texts)
    assert {name: transcript.words for name, transcript in read.items()} == texts
    (path,) = corpus.librispeech_folder.glob("*/*/*/300-7-0001.flac")
    assert read["300-7-0001"].seconds == soundfile.info(path).duration


@pytest.mark.parametrize("utterance", ["300-7-0009", "999-7-0001", "anna"])
def test_an_utterance_without_a_transcript_is_told(transcribed, utterance):
    folder = transcribed[0].librispeech_folder
    with pytest.raises(DataError, match=f"no transcript of the utterance {utterance}"):
        read_transcripts(folder, [utterance])


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("sample_rate", [8000, 16000])
def test_whole_targets_are_told_from_cut_ones(transcribed, tmp_path, mode, sample_rate):
    corpus, texts = transcribed
    prepared = prepare_librimix(
        tmp_path / "prepared",
        **corpus._asdict(),
        subsets=["test"],
        mode=mode,
        sample_rate=sample_rate,
    )
    trials = read_trials(prepared.manifests["test"], prepared.data_root, RATE)
    transcripts = read_transcripts(corpus.librispeech_folder, texts)
    heard = [("", "", "")] * len(trials)
    result = words.evaluate(GivesHalf(), trials, Heard(*heard), transcripts)
    cut = sum(
        transcripts[target].seconds > transcripts[interferer].seconds
        for target, interferer in (trial.id.split("_")[:2] for trial in trials)
    )
    assert 0 < cut < len(trials)
    assert result["n_cut"] == (cut if mode == "min" else 0)


@pytest.fixture(scope="module")
def recogniser_folder(tmp_path_factory):
    return write_recogniser(tmp_path_factory.mktemp("asr") / "asr")


def test_a_recogniser_hears_at_its_own_rate(recogniser_folder):
    recogniser = Recogniser(recogniser_folder)
    assert recogniser.sample_rate == 16000
    time = np.arange(2 * 16000) / 16000
    sound = sum(np.sin(2 * np.pi * f * time) / f for f in (200, 500, 1300))
    sound = np.stack((sound, 0.1 * sound)).astype(np.float32)
    heard = recogniser(sound, 16000)
    assert all(text for text in heard)
    assert recogniser(sound[:, ::2], 8000) == heard
    tokens, _ = recogniser.model.transcribe_batch(
        torch.from_numpy(sound), torch.ones(2)
    )
    assert tokens == heard


def test_what_is_no_recogniser_is_told(recogniser_folder, tmp_path):
    with pytest.raises(DataError, match=r"none: cannot be loaded as SpeechBrain's"):
        Recogniser(tmp_path / "none")
    (tmp_path / "hyperparams.yaml").write_text(
        (recogniser_folder / "hyperparams.yaml")
        .read_text()
        .replace("    decoder: !ref <decoder>", "    other: !ref <decoder>")
    )
    for name in ("asr.ckpt", "tokenizer.ckpt"):
        (tmp_path / name).symlink_to(recogniser_folder / name)
    with pytest.raises(DataError, match="it lacks decoder"):
        Recogniser(tmp_path)


def test_the_command(tmp_path, recogniser_folder, capsys):
    sizes = {"n_speakers": 2, "n_utterances": 2}
    corpus = write_corpus(tmp_path / "corpus", parts=["test-clean"], **sizes)
    texts = transcribe(corpus.librispeech_folder)
    prepared = prepare_librimix(
        tmp_path / "prepared", **corpus._asdict(), subsets=["test"]
    )
    export(tmp_path / "model")
    command = ["evaluate", tmp_path / "model", prepared.manifests["test"]]
    command += ["--asr", recogniser_folder]
    folder = ["--librispeech_folder", corpus.librispeech_folder]
    assert main(list(map(str, [*command, *folder, "-o", tmp_path / "out"]))) == 0
    text = (tmp_path / "out/words.md").read_text()
    assert text in capsys.readouterr().out
    assert text.startswith(f"{recogniser_folder} (16000 Hz) listens to 4 mixtures")
    result = json.loads((tmp_path / "out/words.json").read_text())
    with open(tmp_path / "out/words.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["n_items"] == 4
    assert 0 < result["n_cut"] < 4
    whole = [row for row in rows if row["transcript"]]
    assert len(whole) == result["transcript"]["items"] == 4 - result["n_cut"]
    for row in whole:
        assert row["transcript"] == texts[row["item"].split("_")[0]]
    # Whatever a network with random weights hears, it is what is scored.
    (estimate, _) = result["own"]["estimate"]
    errors = sum(int(row["own_estimate_errors"]) for row in rows)
    assert estimate == pytest.approx(100 * errors / result["own"]["words"])
    assert main(list(map(str, command))) == 0
    assert "Without transcripts" in capsys.readouterr().out


def test_what_cannot_be_is_told(tmp_path, prepared, corpus, capsys):
    export(tmp_path / "model")
    command = ["evaluate", tmp_path / "model", prepared.manifests["test"]]
    folder = ["--librispeech_folder", corpus.librispeech_folder]
    with pytest.raises(SystemExit):
        main(list(map(str, [*command, *folder])))
    assert "--librispeech_folder is for --asr" in capsys.readouterr().err
    assert main(list(map(str, [*command, *folder, "--asr", tmp_path]))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no transcript of the utterance 300-7-0000" in line
    assert main(list(map(str, [*command, "--asr", tmp_path / "none"]))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tse: error: {tmp_path}/none: cannot be loaded")
