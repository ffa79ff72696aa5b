"""LibriMix's other conditions: noise, 16 kHz, max, three talkers, both targets, 360."""

import json
import re
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from conftest import CHUNK_SECONDS, USUAL_PARTS, read_table, write_corpus, write_table
from scipy.signal import resample_poly
from test_train import ROOT, load_script, tiny

from speechbrain_peer.cli.__main__ import main as tse
from speechbrain_peer.data.dataset import training_set
from speechbrain_peer.data.librimix import read_metadata
from speechbrain_peer.data.manifests import read_listed_peers, read_manifest
from speechbrain_peer.data.prepare import prepare_librimix
from speechbrain_peer.evaluation.trials import (
    partial_overlap,
    pink_noise,
    read_trials,
    vary,
)
from speechbrain_peer.utils.audio import read_audio
from speechbrain_peer.utils.files import DataError

WHAM_PARTS = {"train": "tr", "dev": "cv", "test": "tt"}


class NoisyCorpus(NamedTuple):
    """A made corpus whose metadata names noise, as LibriMix's does."""

    librispeech_folder: Path
    librimix_metadata: Path
    wham_folder: Path


def write_noisy_corpus(folder, n_sources=2, noise_seconds=(1.0,), **options):
    """Writes a corpus, and a file of noise with two channels for each mixture."""
    corpus = write_corpus(folder, n_sources, **options)
    rng = np.random.default_rng(1)
    wham = folder / "wham_noise"
    for path in corpus.librimix_metadata.iterdir():
        part = WHAM_PARTS[path.stem.split("_")[1].split("-")[0]]
        (wham / part).mkdir(parents=True, exist_ok=True)
        rows = read_table(path)
        for k, row in enumerate(rows):
            row["noise_path"] = f"{part}/{path.stem}-{k}.wav"
            row["noise_gain"] = rng.uniform(0.3, 2)
            frames = int(16000 * noise_seconds[k % len(noise_seconds)])
            noise = 0.05 * rng.standard_normal((frames, 2))
            soundfile.write(wham / row["noise_path"], noise, 16000)
        write_table(path, rows)
    return NoisyCorpus(*corpus, wham)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Two talkers, also in train-360; only to read."""
    parts = (*USUAL_PARTS, "train-clean-360")
    folder = tmp_path_factory.mktemp("noisy")
    return write_noisy_corpus(folder, n_utterances=2, parts=parts)


@pytest.fixture(scope="module")
def noisy_three(tmp_path_factory):
    """Three talkers; only to read."""
    folder = tmp_path_factory.mktemp("noisy_three")
    return write_noisy_corpus(folder, n_sources=3, n_speakers=5, n_utterances=2)


@pytest.fixture(scope="module")
def noisy_prepared(noisy, tmp_path_factory):
    """The corpus of two talkers after preparation with listed peers; only to read."""
    folder = tmp_path_factory.mktemp("noisy_prepared")
    return prepare_librimix(folder, **noisy._asdict(), condition="both", peers="listed")


# Rendering


def overlap_add(noise, length):
    """Copies of noise, each faded into the next in half a second at 16 kHz."""
    fade = np.sin(0.5 * np.pi * np.arange(8001) / 8000) ** 2
    hop = len(noise) - len(fade)
    n_copies = 1 + max(0, -(-(length - len(noise)) // hop))
    extended = np.zeros(n_copies * hop + len(fade))
    for k in range(n_copies):
        copy = noise.astype(np.float64)
        if k > 0:
            copy[: len(fade)] *= fade
        if k < n_copies - 1:
            copy[-len(fade) :] *= fade[::-1]
        extended[k * hop : k * hop + len(noise)] += copy
    return extended[:length]


@pytest.mark.parametrize(
    ("n_sources", "mode", "sample_rate"),
    [(2, "min", 8000), (2, "max", 16000), (3, "max", 8000)],
)
def test_noisy_samples_are_those_of_the_librimix_script(
    tmp_path, n_sources, mode, sample_rate
):
    corpus = write_noisy_corpus(
        tmp_path,
        n_sources,
        noise_seconds=(1.1, 3.0),
        n_utterances=2,
        seconds=(1.5, 2.5),
        parts=["dev-clean"],
    )
    out = tmp_path / "out"
    options = {"sample_rate": sample_rate, "mode": mode, "subsets": ["dev"]}
    prepare_librimix(out, **corpus._asdict(), condition="both", **options)
    (table,) = corpus.librimix_metadata.iterdir()
    folder = out / f"wav{sample_rate // 1000}k" / mode / "dev"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        *(f"s{k}" for k in range(1, n_sources + 1)),
        *("noise", "mix_both"),
    }
    for row in read_metadata(table, "both"):
        speech = [
            soundfile.read(corpus.librispeech_folder / path, dtype="float32")[0]
            for path in row.paths
        ]
        noise, _ = soundfile.read(corpus.wham_folder / row.noise_path, dtype="float32")
        noise = overlap_add(noise[:, 0], max(map(len, speech)))
        sounds = [
            resample_poly(sound * gain, sample_rate, 16000)
            for sound, gain in zip(
                [*speech, noise], [*row.gains, row.noise_gain], strict=True
            )
        ]
        length = (min if mode == "min" else max)(map(len, sounds))
        sounds = [np.pad(x, (0, max(0, length - len(x))))[:length] for x in sounds]
        names = [*(f"s{k}" for k in range(1, n_sources + 1)), "noise", "mix_both"]
        for name, expected in zip(names, [*sounds, sum(sounds)], strict=True):
            soundfile.write(tmp_path / "expected.wav", expected, sample_rate)
            expected, _ = soundfile.read(tmp_path / "expected.wav", dtype="int32")
            rendered = folder / name / f"{row.mixture_id}.wav"
            samples, rate = soundfile.read(rendered, dtype="int32")
            assert rate == sample_rate and len(samples) == length
            # A sum in another order may be rounded to the next of the 65536 values.
            difference = np.abs(samples - expected) / 2**16
            assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def modification_times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.wav")}


def test_noise_that_is_missing_is_rendered_again(noisy, tmp_path):
    options = {**noisy._asdict(), "subsets": ["dev"], "condition": "both"}
    prepare_librimix(tmp_path, **options)
    before = modification_times(tmp_path)
    removed = next((tmp_path / "wav8k/min/dev/noise").iterdir())
    removed.unlink()
    prepare_librimix(tmp_path, **options)
    after = modification_times(tmp_path)
    assert after.keys() == before.keys()
    changed = {path for path in before if before[path] != after[path]}
    assert {path.name for path in changed} == {removed.name}


def test_both_conditions_share_a_folder_and_have_their_own_manifests(noisy, tmp_path):
    speech = noisy._asdict() | {"wham_folder": None}
    clean = prepare_librimix(tmp_path, **speech, subsets=["dev"])
    both = prepare_librimix(
        tmp_path, **noisy._asdict(), subsets=["dev"], condition="both"
    )
    rows = [read_manifest(x.manifests["dev"], x.data_root) for x in (clean, both)]
    assert rows[0].keys() == rows[1].keys()
    for row, noisy_row in zip(*(x.values() for x in rows), strict=True):
        assert "/mix_clean/" in row["mixture"] and "noise" not in row
        assert "/mix_both/" in noisy_row["mixture"]
        for key in ("target", "interferers", "enrollment", "length"):
            assert row[key] == noisy_row[key]
        clean_mixture = read_audio(row["mixture"])
        mixture, noise = (
            read_audio(noisy_row["mixture"]),
            read_audio(noisy_row["noise"]),
        )
        np.testing.assert_allclose(mixture, clean_mixture + noise, atol=1e-4)


def test_noise_of_other_metadata_is_not_reused(tmp_path):
    corpus = write_noisy_corpus(tmp_path, parts=["dev-clean"])
    options = {**corpus._asdict(), "subsets": ["dev"], "condition": "both"}
    prepare_librimix(tmp_path / "out", **options)
    (table,) = corpus.librimix_metadata.iterdir()
    rows = read_table(table)
    rows[0]["noise_gain"] = 0.1
    write_table(table, rows)
    with pytest.raises(DataError, match=r"wav8k/min/dev: .* other metadata"):
        prepare_librimix(tmp_path / "out", **options)
    # The speech has not changed.
    options |= {"condition": "clean", "wham_folder": None}
    prepare_librimix(tmp_path / "out", **options)


def test_a_generated_folder_gives_the_same_manifests(noisy_prepared, tmp_path, capsys):
    folder = tmp_path / "out"
    arguments = ["--data_folder", noisy_prepared.data_root, "--output", str(folder)]
    assert tse(["prepare", *arguments, "--condition", "both"]) == 0
    paths = capsys.readouterr().out.splitlines()
    assert [Path(path).parent.name for path in paths] == [
        "wav8k_min_first_mix_both"
    ] * 3
    for path, other in zip(paths, noisy_prepared.manifests.values(), strict=True):
        assert Path(path).read_text() == Path(other).read_text()


# Reading


def test_the_peers_of_an_item_have_the_noise_of_its_row(noisy_prepared):
    manifest = noisy_prepared.manifests["train-100"], noisy_prepared.data_root
    rows = read_manifest(*manifest)
    peers = read_listed_peers(noisy_prepared.peers, noisy_prepared.data_root)
    # Chunks are longer than mixtures, so that all begin at 0.
    dataset, _ = training_set(
        *manifest, 10.0, 8000, 1, peers="listed", listed_peers=noisy_prepared.peers
    )
    for k, (item_id, row) in enumerate(rows.items()):
        mixtures, targets = (dataset[k][key] for key in ("mixture_sig", "target_sig"))
        (target, noise, interferer) = (
            torch.from_numpy(read_audio(path))
            for path in (
                row["target"]["path"],
                row["noise"],
                row["interferers"][0]["path"],
            )
        )
        assert float(noise.std()) > 0.01
        assert torch.equal(targets[:, 1], target)
        torch.testing.assert_close(
            mixtures[:, 0], target + noise + interferer, rtol=0, atol=1e-4
        )
        other = torch.from_numpy(read_audio(peers[item_id][0][0]["path"]))
        expected = target + noise
        length = min(len(expected), len(other))
        expected[:length] += other[:length]
        assert torch.equal(mixtures[:, 1], expected)


def test_a_cut_of_an_item_has_the_noise_of_its_place(noisy_prepared):
    manifest = noisy_prepared.manifests["train-100"], noisy_prepared.data_root
    rows = list(read_manifest(*manifest).values())
    dataset, items = training_set(*manifest, 0.2, 8000, 1, peers="off")
    starts = set()
    for epoch in (1, 2):
        items.set_epoch(epoch)
        for k, row in enumerate(rows):
            whole = read_audio(row["mixture"])
            mixture = dataset[k]["mixture_sig"][:, 0].numpy()
            windows = np.lib.stride_tricks.sliding_window_view(whole, len(mixture))
            (found,) = np.nonzero((windows == mixture).all(axis=1))
            starts.add(int(found[0]))
    assert len(starts) > len(rows)


def test_trials_have_the_noise_of_their_mixture(noisy_prepared):
    manifest = noisy_prepared.manifests["test"], noisy_prepared.data_root
    rows = read_manifest(*manifest)
    trials = read_trials(*manifest, 8000)
    for trial in trials:
        mixture = read_audio(rows[trial.id]["mixture"])
        np.testing.assert_allclose(trial.mixture, mixture, atol=1e-4)
        assert np.array_equal(trial.noise, read_audio(rows[trial.id]["noise"]))
    for trial, before in zip(vary(trials, partial_overlap(0.5)), trials, strict=True):
        assert trial.noise[: len(before.noise)].tolist() == before.noise.tolist()
        assert trial.noise[len(before.noise) :].std() > 0.01
    for trial, before in zip(vary(trials, pink_noise(6)), trials, strict=True):
        added = trial.noise - before.noise
        ratio = np.square(trial.target).mean() / np.square(added).mean()
        np.testing.assert_allclose(10 * np.log10(ratio), 6, atol=0.01)


# What is wrong


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"condition": "both"}, "needs wham_folder: get WHAM!'s noise from http"),
        ({"wham_folder": "x"}, "is for noisy .*give condition: both"),
        ({"condition": "noisy"}, "'noisy' is not one of clean, both"),
    ],
)
def test_condition_and_folder_go_together(corpus, tmp_path, given, reason):
    with pytest.raises(DataError, match=reason):
        prepare_librimix(tmp_path, **corpus._asdict(), **given)


def test_generated_mixtures_need_no_noise_folder(noisy_prepared, prepared, tmp_path):
    noisy = {"condition": "both", "subsets": ["dev"]}
    with pytest.raises(DataError, match=r"wham_folder is for .*rendered"):
        prepare_librimix(
            tmp_path, data_folder=noisy_prepared.data_root, wham_folder="x", **noisy
        )
    with pytest.raises(DataError, match=r"mix_both: no mixtures.*'--types mix_both'"):
        prepare_librimix(tmp_path, data_folder=prepared.data_root, **noisy)


def _without_columns(rows, wham):
    return [{k: v for k, v in row.items() if "noise" not in k} for row in rows]


def _silent(rows, wham):
    return [row | {"noise_path": "none/silence.wav", "noise_gain": 0} for row in rows]


def _leading_out(rows, wham):
    return [rows[0] | {"noise_path": "../noise.wav"}, *rows[1:]]


def _absent(rows, wham):
    (wham / rows[0]["noise_path"]).unlink()
    return rows


def _not_augmented(rows, wham):
    path = rows[0]["noise_path"].replace(".wav", "sp08.wav")
    return [rows[0] | {"noise_path": path}, *rows[1:]]


def _of_another_rate(rows, wham):
    soundfile.write(wham / rows[0]["noise_path"], np.ones(8000), 8000)
    return rows


def _short(rows, wham):
    soundfile.write(wham / rows[0]["noise_path"], np.ones(4000), 16000)
    return rows


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_without_columns, "_dev-clean.csv: has no column noise_path, noise_gain"),
        (_silent, r"12 rows(.|\n)*line 2: the mixture has no noise .*condition: clean"),
        (_leading_out, "line 2: path '../noise.wav' leads out of its folder"),
        (_absent, "cv/.*wav: no such file, but .*line 2.*1 noises .*holds cv"),
        (_not_augmented, "sp08.wav: no such file.*augment_train_noise.py"),
        (_of_another_rate, "cv/.*8000 Hz, but 16000 Hz is needed"),
        (_short, "cv/.*has 4000 samples, .*half a second it cannot be repeated"),
    ],
)
def test_noise_that_cannot_be_used_is_named(tmp_path, spoil, reason):
    corpus = write_noisy_corpus(tmp_path, parts=["dev-clean"])
    (table,) = corpus.librimix_metadata.iterdir()
    write_table(table, spoil(read_table(table), corpus.wham_folder))
    options = {"subsets": ["dev"], "n_processes": 1, "condition": "both"}
    with pytest.raises(DataError, match=reason):
        prepare_librimix(tmp_path / "out", **corpus._asdict(), **options)
    # Clean mixtures do not need it.
    options = {**corpus._asdict(), "subsets": ["dev"], "wham_folder": None}
    prepare_librimix(tmp_path / "clean", **options)


# Training


@pytest.fixture(scope="module")
def train():
    """The module recipes/LibriMix/train.py."""
    return load_script()


def run(train, corpus, folder, **overrides):
    """Trains for an epoch; returns what the test says."""
    settings = tiny("td_speakerbeam_pl") | {"n_epochs": 1, "results_folder": folder}
    settings |= {
        "librispeech_folder": corpus.librispeech_folder,
        "librimix_metadata": corpus.librimix_metadata,
        "chunk_seconds": CHUNK_SECONDS,
    }
    if overrides.get("condition") == "both":
        settings["wham_folder"] = corpus.wham_folder
    options = [f"--{key}={value}" for key, value in (settings | overrides).items()]
    row = str(ROOT / "hparams/td_speakerbeam_pl.yaml")
    brain = train.main([row, "--device=cpu", "--noprogressbar", *options])
    return json.loads(Path(brain.hparams.output_folder, "metrics.json").read_text())


CONDITIONS = [
    (
        {"sample_rate": 16000},
        "8 mixtures of 2 .*, first speakers, 16000 Hz, min, clean",
    ),
    ({"mode": "max"}, "8 mixtures of 2 .*, first speakers, 8000 Hz, max, clean"),
    ({"targets": "both"}, "8 mixtures of 2 .*, both speakers, 8000 Hz, min, clean"),
    ({"train_subset": "train-360"}, "min, clean; trained on train-360 .8 mixtures"),
    ({"condition": "both"}, "8 mixtures of 2 .*, first speakers, 8000 Hz, min, noisy"),
]


@pytest.mark.parametrize(
    ("overrides", "corpus"), CONDITIONS, ids=lambda x: next(iter(x)) if x else None
)
def test_every_condition_trains(train, noisy, tmp_path, overrides, corpus):
    metrics = run(train, noisy, tmp_path, **overrides)
    assert np.isfinite(metrics["means"]["si_sdr"])
    assert metrics["items"] == (16 if "targets" in overrides else 8)
    assert re.search(corpus, metrics["corpus"])


def test_three_talkers_train(train, noisy_three, tmp_path):
    metrics = run(train, noisy_three, tmp_path)
    assert "10 mixtures of 3 speakers, 5 speakers in all" in metrics["corpus"]


def test_all_conditions_at_once_train(train, noisy_three, tmp_path):
    settings = {"sample_rate": 16000, "mode": "max", "targets": "both"}
    metrics = run(train, noisy_three, tmp_path, **settings, condition="both")
    assert metrics["items"] == 30
    assert np.isfinite(metrics["means"]["si_sdr"])
    sentence = "of 3 speakers, 5 speakers in all), both speakers, 16000 Hz, max, noisy;"
    assert sentence in metrics["corpus"]


def test_drawn_mixtures_have_noise_of_a_folder(train, noisy, tmp_path):
    settings = {"mixtures": "drawn", "peers": "drawn", "condition": "both"}
    with pytest.raises(DataError, match=r"give --mixing .{noise_folder: FOLDER}"):
        run(train, noisy, tmp_path, **settings)
    mixing = f"{{noise_folder: {noisy.wham_folder}}}"
    metrics = run(train, noisy, tmp_path, **settings, mixing=mixing)
    assert "min, noisy; trained on mixtures drawn from 8 utt" in metrics["corpus"]


# The true size


def write_sounds(folder, suffix, shortest, longest):
    """Writes a handful of files, of so many samples."""
    rng = np.random.default_rng(2)
    folder.mkdir()
    paths = [folder / f"{k}{suffix}" for k in range(7)]
    for path in paths:
        samples = 0.1 * rng.standard_normal(rng.integers(shortest, longest))
        soundfile.write(path, samples, 16000)
    return paths


def link_sounds(names, folder, sounds):
    """Lets every name in a folder be one of a few sounds."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(sounds[zlib.crc32(name.encode()) % len(sounds)])


@pytest.mark.parametrize(
    ("n_sources", "part"),
    [
        (2, 50),
        pytest.param(2, 1, marks=pytest.mark.slow),
        pytest.param(3, 1, marks=pytest.mark.slow),
    ],
)
def test_the_official_tables_are_prepared(mini_librimix, tmp_path, n_sources, part):
    name = f"Libri{n_sources}Mix"
    official = mini_librimix.parent / "librimix_metadata" / name
    if not official.exists():
        pytest.skip(f"{official} is not there")
    speech, noise = set(), set()
    (tmp_path / name).mkdir()
    for path in official.iterdir():
        rows = read_table(path)
        # Sorted, a part of them has few targets, with several utterances each.
        rows = sorted(rows, key=lambda row: row["mixture_ID"])[: len(rows) // part]
        write_table(tmp_path / name / path.name, rows)
        for k in range(1, n_sources + 1):
            speech |= {row[f"source_{k}_path"] for row in rows}
        noise |= {row["noise_path"] for row in rows}
    link_sounds(
        speech, tmp_path / "speech", write_sounds(tmp_path / "a", ".flac", 300, 700)
    )
    # None is repeated: they are longer than any speech.
    link_sounds(
        noise, tmp_path / "noise", write_sounds(tmp_path / "b", ".wav", 700, 900)
    )
    options = {
        "librispeech_folder": tmp_path / "speech",
        "librimix_metadata": tmp_path / name,
        "wham_folder": tmp_path / "noise",
        "condition": "both",
        "peers": "listed",
    }
    for kind in ("rendered", "there already"):
        start = time.perf_counter()
        prepared = prepare_librimix(tmp_path / "out", **options)
        print(f"{kind}: {time.perf_counter() - start:.1f} s")
    counts = {"train-100": {2: 13900, 3: 9300}[n_sources], "dev": 3000, "test": 3000}
    for subset, count in counts.items():
        rows = read_manifest(prepared.manifests[subset])
        assert len(rows) == count // part
        assert {len(row["interferers"]) for row in rows.values()} == {n_sources - 1}
    assert len(read_listed_peers(prepared.peers)) == counts["train-100"] // part
    if part == 1:
        assert prepared.corpus == (
            f"{name} test, first speakers, 8000 Hz, min, noisy; trained on {name} "
            "train-100."
        )
