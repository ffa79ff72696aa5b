import csv
import importlib.util
import os
import random
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechbrain_peer.data.demo_corpus import VOICES, make_demo_corpus
from speechbrain_peer.data.mixing_metadata import (
    draw_gains,
    draw_pairs,
    write_mixing_metadata,
)
from speechbrain_peer.data.transcripts import read_transcripts
from speechbrain_peer.evaluation.words import split_words
from speechbrain_peer.utils.files import DataError

RATE = 16000
SIZES = {
    "n_speakers": {"train": 4, "dev": 2, "test": 2},
    "n_utterances": {"train": 3, "dev": 2, "test": 2},
    "n_mixtures": {"train": 8, "dev": 3, "test": 2},
}
SUBSETS = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}


def needs(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f'{package} is absent: pip install "speechbrain-peer[demo]"',
    )


needs_demo_extra = needs("espeakng_loader")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "two words é"
    return folder, *make_demo_corpus(folder, seed=7, **SIZES)


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_mixtures(metadata_folder, subset):
    with open(metadata_folder / f"libri2mix_{subset}.csv", newline="") as file:
        return list(csv.DictReader(file))


@needs_demo_extra
def test_layout_and_format_are_librispeechs(corpus):
    _, librispeech_folder, _ = corpus
    speakers = []
    for part, subset in SUBSETS.items():
        folders = list((librispeech_folder / subset).iterdir())
        assert len(folders) == SIZES["n_speakers"][part]
        speakers += [folder.name for folder in folders]
        for path in (librispeech_folder / subset).rglob("*.flac"):
            speaker, chapter, utterance = path.stem.split("-")
            assert path.parts[-3:-1] == (speaker, chapter)
            assert utterance.isdigit()
            info = soundfile.info(path)
            assert (info.samplerate, info.channels) == (RATE, 1)
            assert (info.format, info.subtype) == ("FLAC", "PCM_16")
    assert len(set(speakers)) == len(speakers) == 8
    n_files = len(list(librispeech_folder.rglob("*.flac")))
    assert n_files == 4 * 3 + 2 * 2 + 2 * 2


@needs_demo_extra
def test_speech_fills_the_files(corpus):
    for path in corpus[1].rglob("*.flac"):
        samples, _ = soundfile.read(path)
        level = np.abs(samples)
        heard = np.flatnonzero(level > 0.02 * level.max())
        assert 3 < len(samples) / RATE < 7
        assert heard[0] < 0.1 * RATE
        assert len(samples) - heard[-1] < 0.1 * RATE
        assert 0.4 < level.max() < 0.6
        assert np.sqrt(np.mean(samples**2)) > 0.02


@needs_demo_extra
def test_what_is_said_is_written_beside_it(corpus):
    names = [path.stem for path in corpus[1].rglob("*.flac")]
    transcripts = read_transcripts(corpus[1], names)
    assert len({transcript.words for transcript in transcripts.values()}) == len(names)
    for words, seconds in transcripts.values():
        assert split_words(words) == words.split()
        assert 2 < len(words.split()) / seconds < 5


@needs_demo_extra
def test_utterances_of_a_speaker_differ(corpus):
    files = [path.read_bytes() for path in corpus[1].rglob("*.flac")]
    assert len(set(files)) == len(files)


@needs_demo_extra
def test_mixtures_are_of_two_speakers_with_usable_gains(corpus):
    _, librispeech_folder, metadata_folder = corpus
    for part, subset in SUBSETS.items():
        rows = read_mixtures(metadata_folder, subset)
        assert len(rows) == SIZES["n_mixtures"][part]
        assert len({row["mixture_ID"] for row in rows}) == len(rows)
        for row in rows:
            paths = [Path(row[f"source_{k}_path"]) for k in (1, 2)]
            assert row["mixture_ID"] == "_".join(path.stem for path in paths)
            assert len({path.parts[1] for path in paths}) == 2
            for k, path in enumerate(paths, start=1):
                assert path.parts[0] == subset
                assert (librispeech_folder / path).is_file()
                assert 0.01 < float(row[f"source_{k}_gain"]) < 100
            assert (row["noise_path"], row["noise_gain"]) == ("none/silence.wav", "0.0")


@needs_demo_extra
def test_seed_decides_every_byte(corpus, tmp_path):
    make_demo_corpus(tmp_path / "same", seed=7, **SIZES)
    make_demo_corpus(tmp_path / "other", seed=8, **SIZES)
    assert contents(tmp_path / "same") == contents(corpus[0])
    assert contents(tmp_path / "other") != contents(corpus[0])


@needs_demo_extra
def test_finished_corpus_is_not_made_again(corpus):
    folder, *returned = corpus
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert list(make_demo_corpus(folder, seed=7, **SIZES)) == returned
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@needs_demo_extra
def test_corpus_of_other_arguments_is_kept(corpus):
    before = contents(corpus[0])
    with pytest.raises(DataError, match="another folder"):
        make_demo_corpus(corpus[0], seed=8, **SIZES)
    assert contents(corpus[0]) == before


def test_foreign_folder_is_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="another folder"):
        make_demo_corpus(tmp_path, **SIZES)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@needs_demo_extra
def test_killed_run_leaves_no_corpus_and_the_next_makes_it(corpus, tmp_path):
    folder = tmp_path / "corpus"
    code = "import sys; from speechbrain_peer.data import demo_corpus as demo; "
    code += "demo.make_demo_corpus(sys.argv[1])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, folder],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    while not list(tmp_path.rglob("*.flac")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not folder.exists()
    make_demo_corpus(folder, seed=7, **SIZES)
    assert contents(folder) == contents(corpus[0])


def test_every_voice_exists():
    loader = pytest.importorskip("espeakng_loader")
    # eSpeak NG says nothing if a variant is missing, and speaks with the plain voice.
    variants = Path(loader.get_data_path()) / "voices" / "!v"
    assert len(set(VOICES)) == len(VOICES)
    assert set(VOICES) <= {path.name for path in variants.iterdir()}


def test_missing_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r'pip install "speechbrain-peer\[demo\]"'):
        make_demo_corpus(tmp_path / "corpus", **SIZES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("n_speakers", {"train": 99, "dev": 2, "test": 2}, "voices"),
        ("n_speakers", {"train": 4, "dev": 2}, "each of"),
        ("n_utterances", {"train": 3, "dev": 1, "test": 2}, "enrollment"),
        ("n_utterances", {"train": 9999, "dev": 2, "test": 2}, "sentences"),
    ],
)
def test_impossible_sizes_are_refused(name, sizes, message, tmp_path):
    with pytest.raises(DataError, match=message):
        make_demo_corpus(tmp_path / "corpus", **{**SIZES, name: sizes})


def noise(seconds, level, seed):
    generator = np.random.default_rng(seed)
    samples = generator.standard_normal(round(seconds * RATE))
    return (level * samples).astype(np.float32)


def test_gains_bring_sources_to_the_drawn_loudness():
    import pyloudnorm

    sources = [noise(3.0, 0.2, seed=0), noise(3.0, 0.001, seed=1)]
    gains = draw_gains(sources, random.Random(5))
    meter, drawn = pyloudnorm.Meter(RATE), random.Random(5)
    for gain, source in zip(gains, sources, strict=True):
        loudness = meter.integrated_loudness(gain * source)
        assert loudness == pytest.approx(drawn.uniform(-33, -25), abs=0.01)


def test_source_that_would_clip_gets_a_peak_of_0_9():
    clicking = noise(2.0, 0.0001, seed=0)
    clicking[1000] = 0.5
    # The other source is silent where the click is, so the mixture is not limited.
    other = noise(3.0, 0.001, seed=1)
    other[:2000] = 0
    gains = draw_gains([clicking, other], random.Random(0))
    assert gains[0] == pytest.approx(0.9 / 0.5, rel=1e-6)
    alone = draw_gains([other, other], random.Random(0))
    assert gains[1] == pytest.approx(alone[1], rel=1e-6)


def test_mixture_peak_is_limited_and_the_balance_kept():
    first, second = noise(2.0, 0.001, seed=0), noise(3.0, 0.001, seed=1)
    first[1000] = second[1000] = 0.1
    gains = draw_gains([first, second], random.Random(0))
    mixture = gains[1] * second
    mixture[: len(first)] += gains[0] * first
    assert np.abs(mixture).max() == pytest.approx(0.9, abs=1e-5)
    later = [source.copy() for source in (first, second)]
    later[1] = np.roll(later[1], RATE)  # the clicks no longer add up
    unlimited = draw_gains(later, random.Random(0))
    assert gains[0] / gains[1] == pytest.approx(unlimited[0] / unlimited[1], rel=1e-3)


def test_pairs_use_all_utterances_about_equally_often():
    utterances = [Path(f"{speaker}-1-{k}") for speaker in range(10) for k in range(5)]
    pairs = draw_pairs(utterances, 100, random.Random(0))
    assert all(a.stem.split("-")[0] != b.stem.split("-")[0] for a, b in pairs)
    assert len({frozenset(pair) for pair in pairs}) == 100
    uses = [sum(utterance in pair for pair in pairs) for utterance in utterances]
    assert max(uses) - min(uses) <= 4


def make_librispeech(folder, utterances):
    for name, samples in utterances.items():
        path = folder / "dev-clean" / name.split("-")[0] / "1" / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, RATE)


def test_metadata_of_a_made_librispeech(tmp_path):
    names = [f"{speaker}-1-{k:04}" for speaker in (3, 4) for k in range(2)]
    make_librispeech(
        tmp_path, {name: noise(1.0, 0.1, seed=k) for k, name in enumerate(names)}
    )
    tables = []
    for seed in (0, 0, 1):
        path = tmp_path / "metadata" / "libri2mix_dev-clean.csv"
        write_mixing_metadata(tmp_path, "dev-clean", path, n_mixtures=4, seed=seed)
        tables.append(path.read_bytes())
    assert tables[0] == tables[1] != tables[2]
    rows = read_mixtures(tmp_path / "metadata", "dev-clean")
    expected = {frozenset((a, b)) for a in names[:2] for b in names[2:]}
    assert {frozenset(row["mixture_ID"].split("_")) for row in rows} == expected
    for earlier, later in pairwise(rows):
        assert earlier["source_1_gain"] != later["source_1_gain"]


@pytest.mark.parametrize(
    ("utterances", "message"),
    [
        ({}, "no <speaker>"),
        ({"3-1-0000": noise(1.0, 0.1, 0), "3-1-0001": noise(1.0, 0.1, 1)}, "1 speaker"),
        (
            {"3-1-0000": noise(1.0, 0.1, 0), "4-1-0000": np.zeros(RATE)},
            "4-1-0000.*silent",
        ),
        ({"3-1-0000": noise(1.0, 0.1, 0), "4-1-0000": noise(0.3, 0.1, 1)}, "4-1-0000"),
    ],
)
def test_unusable_speech_is_named(utterances, message, tmp_path):
    make_librispeech(tmp_path, utterances)
    path = tmp_path / "libri2mix_dev-clean.csv"
    with pytest.raises(DataError, match=message):
        write_mixing_metadata(tmp_path, "dev-clean", path, n_mixtures=1, seed=0)
    assert not path.exists()
