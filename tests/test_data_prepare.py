"""Preparation: both ways in, its command, and what it says of bad input."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile
from conftest import read_table, write_corpus, write_table
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.data.corpora import describe_speech
from speechbrain_peer.data.enrollments import read_enrollment_map
from speechbrain_peer.data.librimix import read_metadata
from speechbrain_peer.data.manifests import (
    find_data_root,
    read_manifest,
    write_manifest,
)
from speechbrain_peer.data.prepare import prepare_librimix
from speechbrain_peer.data.speech_table import SpeechTable
from speechbrain_peer.utils.audio import audio_length, write_audio
from speechbrain_peer.utils.files import DataError

COMMAND = Path(__file__).parents[1] / "recipes" / "LibriMix" / "prepare_librimix.py"


def test_speechbrain_reads_the_manifests(prepared):
    for subset, manifest in prepared.manifests.items():
        dataset = DynamicItemDataset.from_json(
            manifest, replacements={"data_root": prepared.data_root}
        )
        assert len(dataset) == 12
        for item_id, row in dataset.data.items():
            assert item_id == f"{row['mixture_id']}_s1"
            assert row["length"] == audio_length(row["mixture"], sample_rate=8000)
            assert row["duration"] == row["length"] / 8000
            sources = [row["target"], *row["interferers"]]
            assert "_".join(s["utterance"] for s in sources) == row["mixture_id"]
            for k, source in enumerate(sources, start=1):
                assert Path(source["path"]).parent.name == f"s{k}"
                assert audio_length(source["path"]) == source["length"] == row["length"]
            for key in ("enrollment", "absent_enrollment"):
                assert (key in row) == (subset != "train-100")
    assert list(dataset.data) == sorted(dataset.data)


def test_both_ways_in_give_the_same_manifests(prepared, corpus, tmp_path):
    generated = prepare_librimix(
        tmp_path, data_folder=prepared.data_root, peers="listed"
    )
    assert generated.data_root == prepared.data_root
    assert not (tmp_path / "wav8k").exists()
    files = [*prepared.manifests.values(), prepared.peers]
    again = [*generated.manifests.values(), generated.peers]
    for path, other in zip(files, again, strict=True):
        assert Path(path).read_text() == Path(other).read_text()


def test_of_drawn_mixtures_nothing_is_rendered(corpus, tmp_path):
    subsets = ["train-100", "dev"]
    options = {**corpus._asdict(), "subsets": subsets, "mixtures": "drawn"}
    drawn = prepare_librimix(tmp_path / "out", **options)
    assert not Path(drawn.data_root, "wav8k/min/train-100").exists()
    table = SpeechTable(drawn.manifests["train-100"])
    part = corpus.librispeech_folder / "train-clean-100"
    files = sorted(map(str, part.rglob("*.flac")))
    assert [table[k].path for k in range(len(table))] == files
    for k in (0, 7):
        row = table[k]
        samples, rate = soundfile.read(row.path)
        assert (row.start, row.length, row.rate) == (0, len(samples), rate)
        loudness = pyloudnorm.Meter(rate).integrated_loudness(samples)
        assert row.loudness == pytest.approx(loudness, abs=1e-3)
        assert row.speaker == row.utterance.split("-")[0]
    assert "drawn from 12 utterances of 4 speakers (0.00 hours)" in describe_speech(
        [table[k] for k in range(12)]
    )
    # Measured once: another call does not open the files.
    shutil.copytree(corpus.librispeech_folder, tmp_path / "copy")
    for path in (tmp_path / "copy/train-clean-100").rglob("*.flac"):
        path.write_bytes(b"")
    again = options | {"librispeech_folder": tmp_path / "copy"}
    moved = SpeechTable(
        prepare_librimix(tmp_path / "out", **again).manifests["train-100"]
    )
    assert [row.loudness for row in map(moved.__getitem__, range(12))] == [
        row.loudness for row in map(table.__getitem__, range(12))
    ]


def test_utterances_without_loudness_are_named(own_corpus, tmp_path):
    path = next((own_corpus.librispeech_folder / "train-clean-100").rglob("*.flac"))
    soundfile.write(path, np.zeros(16000), 16000)
    with pytest.raises(DataError, match=rf"{path.name}: is silent or shorter than 0.4"):
        prepare_librimix(
            tmp_path / "out",
            **own_corpus._asdict(),
            subsets=["train-100"],
            mixtures="drawn",
        )


def test_where_the_data_is_stands_beside_the_manifests(prepared, tmp_path):
    manifest = prepared.manifests["dev"]
    assert find_data_root(manifest) == prepared.data_root
    generated = prepare_librimix(
        tmp_path / "out", data_folder=prepared.data_root, subsets=["dev"]
    )
    elsewhere = Path(generated.manifests["dev"])
    assert find_data_root(elsewhere) == prepared.data_root
    # Rendered data and its manifests move together.
    moved = tmp_path / "moved"
    shutil.copytree(Path(manifest).parent, moved / "manifests" / "wav8k_min_first")
    found = find_data_root(moved / "manifests" / "wav8k_min_first" / "dev.json")
    assert found == str(moved)
    record = elsewhere.with_name("data_root.txt")
    record.write_text("/not there\n")
    with pytest.raises(DataError, match="/not there is no folder any more; give data"):
        find_data_root(elsewhere)
    record.unlink()
    with pytest.raises(DataError, match=r"dev\.json: nothing beside it tells where"):
        find_data_root(elsewhere)
    elsewhere.write_text('{"a_b_s1": {"mixture": "/data/a_b.wav"}}')
    assert find_data_root(elsewhere) is None


@pytest.mark.parametrize(
    ("sample_rate", "mode", "n_sources"), [(16000, "max", 2), (8000, "min", 3)]
)
def test_rates_modes_and_talkers(tmp_path, sample_rate, mode, n_sources):
    corpus = write_corpus(tmp_path, n_sources, parts=["dev-clean"])
    prepared = prepare_librimix(
        tmp_path / "out",
        **corpus._asdict(),
        subsets=["dev"],
        sample_rate=sample_rate,
        mode=mode,
        targets="both",
    )
    rows = read_manifest(prepared.manifests["dev"], prepared.data_root)
    assert len(rows) == 12 * n_sources
    for item_id, row in rows.items():
        k = int(item_id[-1])
        assert row["target"]["utterance"] == row["mixture_id"].split("_")[k - 1]
        assert len(row["interferers"]) == n_sources - 1
        assert row["target"] not in row["interferers"]
        assert f"wav{sample_rate // 1000}k/{mode}/dev/s{k}/" in row["target"]["path"]
        assert row["length"] == audio_length(row["mixture"], sample_rate)


def test_given_enrollment_maps_are_used(prepared, corpus, tmp_path):
    drawn = Path(prepared.manifests["dev"]).with_name("dev_enrollment_map.txt")
    given = shutil.copy(drawn, tmp_path / "map_mixture2enrollment_dev-clean.txt")
    options = {"data_folder": prepared.data_root, "subsets": ["dev"], "seed": 5}

    def enrollments(prepared):
        rows = read_manifest(prepared.manifests["dev"])
        return {item_id: row["enrollment"] for item_id, row in rows.items()}

    for maps in (tmp_path, {"dev": given}):
        result = prepare_librimix(tmp_path / "out", **options, enrollment_maps=maps)
        assert enrollments(result) == enrollments(prepared)
    other = prepare_librimix(tmp_path / "out", **options)
    assert enrollments(other) != enrollments(prepared)


def test_summary_counts_what_is_shorter_than_a_chunk(prepared, tmp_path, caplog):
    caplog.set_level("INFO")
    rows = read_manifest(prepared.manifests["dev"])
    durations = sorted(row["duration"] for row in rows.values())
    n_short = sum(duration < durations[5] for duration in durations)
    assert n_short > 0
    prepare_librimix(
        tmp_path,
        data_folder=prepared.data_root,
        subsets=["dev"],
        targets="both",
        chunk_seconds=durations[5],
    )
    assert "dev: 12 mixtures, 24 targets, 4 speakers" in caplog.text
    assert f"{n_short} mixtures and {2 * n_short} sources are" in caplog.text


@pytest.fixture
def generated(prepared, tmp_path):
    """A generated LibriMix to spoil: its root, and the first mixture's name."""
    shutil.copytree(Path(prepared.data_root, "wav8k"), tmp_path / "mix" / "wav8k")
    mixture = next(iter(read_manifest(prepared.manifests["dev"]).values()))
    return tmp_path / "mix", mixture["mixture_id"]


def _move(folder, name):
    folder.rename(folder.with_name(name))


@pytest.mark.parametrize(
    ("spoil", "named", "reason"),
    [
        (lambda dev, name: (dev / "s2" / name).unlink(), "s2/{name}", "no such file"),
        (
            lambda dev, name: write_audio(dev / "s2" / name, np.zeros(99), 8000),
            "s2/{name}",
            "has 99 samples, its mixture",
        ),
        (
            lambda dev, name: write_audio(dev / "s1" / name, np.zeros(99), 16000),
            "s1/{name}",
            "16000 Hz, but 8000 Hz",
        ),
        (lambda dev, name: (dev / "s1" / name).write_text(""), "s1/{name}", "read"),
        (lambda dev, name: _move(dev / "s2", "t2"), "s2", "no such folder"),
        (lambda dev, name: _move(dev / "mix_clean", "mix"), "mix_clean", "no mixtures"),
        (lambda dev, name: (dev / "s3").mkdir(), "min/dev", "remove s3"),
        (
            lambda dev, name: shutil.copy(
                dev / "mix_clean" / name, dev / "mix_clean" / f"{{0}}{name}"
            ),
            "min/dev",
            "has '{' in its name; rename",
        ),
    ],
)
def test_bad_generated_folder_is_named(generated, tmp_path, spoil, named, reason):
    root, mixture_id = generated
    dev = root / "wav8k" / "min" / "dev"
    spoil(dev, f"{mixture_id}.wav")
    with pytest.raises(DataError, match=reason) as caught:
        prepare_librimix(tmp_path / "out", data_folder=root, subsets=["dev"])
    assert named.format(name=f"{mixture_id}.wav") in str(caught.value)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "no data given: give data_folder"),
        ({"librispeech_folder": "x"}, "git clone https://github.com/JorisCos/LibriMix"),
        ({"librimix_metadata": "x"}, "needs librispeech_folder"),
        ({"data_folder": "x", "librispeech_folder": "x"}, "not both"),
        ({"data_folder": "no such"}, "no such.*data_folder has to be"),
        ({"data_folder": "x", "subsets": ["train"]}, "'train' is not one of train-100"),
        ({"data_folder": "x", "sample_rate": 44100}, "44100 is not one of 8000, 16000"),
        ({"data_folder": "x", "peers": "on"}, "'on' is not one of off, listed, drawn"),
        ({"data_folder": "x", "seed": -3}, "seed: -3 is negative; give 0 or more"),
    ],
)
def test_wrong_arguments_are_explained(tmp_path, given, reason):
    with pytest.raises(DataError, match=reason):
        prepare_librimix(tmp_path, **given)


def test_mistakes_show_before_anything_is_rendered(own_corpus, tmp_path):
    next(own_corpus.librispeech_folder.glob("test-clean/*/*/*.flac")).unlink()
    with pytest.raises(DataError, match=r"no such file, but .*_test-clean\.csv"):
        prepare_librimix(tmp_path / "out", **own_corpus._asdict())
    (tmp_path / "map").write_text("one two")
    with pytest.raises(DataError, match="line 1"):
        prepare_librimix(
            tmp_path / "out",
            **own_corpus._asdict(),
            subsets=["train-100", "dev"],
            enrollment_maps={"dev": tmp_path / "map"},
        )
    assert not list((tmp_path / "out").rglob("*.wav"))


def test_changed_gains_show_before_anything_is_rendered(own_corpus, tmp_path):
    out = tmp_path / "out"
    prepare_librimix(out, **own_corpus._asdict(), subsets=["dev"])
    path = own_corpus.metadata_file("dev-clean")
    rows = read_table(path)
    changed = [
        {**row, "source_2_gain": float(row["source_2_gain"]) / 10} for row in rows
    ]
    write_table(path, changed)
    with pytest.raises(DataError, match=r"wav8k/min/dev: .* other metadata"):
        prepare_librimix(out, **own_corpus._asdict(), subsets=["train-100", "dev"])
    assert not (out / "wav8k" / "min" / "train-100").exists()
    shutil.rmtree(out / "wav8k" / "min" / "dev")
    prepare_librimix(out, **own_corpus._asdict(), subsets=["train-100", "dev"])


def test_file_names_with_spaces_and_commas(own_corpus, tmp_path):
    """The drawn map is read again, and so are the manifests."""
    for path in list(own_corpus.librispeech_folder.glob("*/*/7/*.flac")):
        path.rename(path.with_name(path.name.replace("-7-", ", Anna Lena-7-")))
    for path in own_corpus.librimix_metadata.iterdir():
        rows = read_table(path)
        renamed = [
            {key: value.replace("-7-", ", Anna Lena-7-") for key, value in row.items()}
            for row in rows
        ]
        write_table(path, renamed)
    for _ in range(2):
        prepared = prepare_librimix(
            tmp_path / "out", **own_corpus._asdict(), peers="listed"
        )
    rows = read_manifest(prepared.manifests["dev"], prepared.data_root)
    assert len(rows) == 12
    for row in rows.values():
        assert row["target"]["speaker"].endswith(", Anna Lena")
        assert row["enrollment_length"] == audio_length(row["enrollment"])


def test_a_manifest_that_lacks_something_is_told(prepared, tmp_path):
    path = tmp_path / "dev.json"
    with pytest.raises(DataError, match=r"dev\.json: cannot be read, .*no such file"):
        read_manifest(path)
    for text in ("{", "{}", '{"a": "{root}"}', '["a"]', '{"a": 1}'):
        path.write_text(text)
        with pytest.raises(DataError, match=r"dev\.json.*prepare the data again"):
            read_manifest(path)
    rows = read_manifest(prepared.manifests["dev"])
    first, second, third, fourth, fifth, *_ = rows.values()
    del first["mixture"]
    second["target"]["length"] = 0
    third["interferers"] = [{}]
    fourth["enrollment_length"] = None
    del fifth["absent_enrollment_length"]
    write_manifest(path, rows)
    with pytest.raises(DataError, match="5 rows cannot be used") as caught:
        read_manifest(path)
    problems = ("no mixture", "a length of 0", "no path", "no enrollment_length")
    for problem in (*problems, "no absent_enrollment_length"):
        assert problem in str(caught.value)


def test_nothing_waits_for_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for read in (read_manifest, read_metadata, read_enrollment_map):
        with pytest.raises(DataError, match="pipe: cannot be read"):
            read(pipe)


def test_speaker_without_enrollment_is_listed(tmp_path):
    corpus = write_corpus(tmp_path, n_utterances=1, parts=["dev-clean"])
    with pytest.raises(DataError, match="single utterance: 200, 201, 202, 203;"):
        prepare_librimix(tmp_path / "out", **corpus._asdict(), subsets=["dev"])


def run_command(*arguments):
    """Runs the preparation command."""
    return subprocess.run(
        [sys.executable, COMMAND, *arguments], capture_output=True, text=True
    )


def test_command_in_folders_with_spaces_and_unicode(own_corpus, prepared, tmp_path):
    folder = tmp_path / "Größe {0} 音"
    folder.mkdir()
    shutil.move(own_corpus.librispeech_folder, folder / "Libri Speech")
    shutil.move(own_corpus.librimix_metadata, folder / "Libri2Mix é")
    done = run_command(
        *("--librispeech_folder", folder / "Libri Speech"),
        *("--librimix_metadata", folder / "Libri2Mix é"),
        *("--output", folder / "out put"),
        *("--subsets", "train-100", "dev", "--peers", "listed"),
    )
    assert done.returncode == 0, done.stderr
    manifests = "manifests/wav8k_min_first"
    assert done.stdout.splitlines() == [
        str(folder / "out put" / manifests / f"{subset}.json")
        for subset in ("train-100", "dev")
    ]
    assert "train-100: 12 mixtures" in done.stderr
    assert "Rendering" in done.stderr
    for subset in ("train-100", "dev"):
        name = Path(prepared.manifests[subset]).relative_to(prepared.data_root)
        rows = read_manifest(folder / "out put" / name, folder / "out put")
        expected = read_manifest(prepared.manifests[subset], folder / "out put")
        assert rows == expected
        assert all(Path(row["mixture"]).is_file() for row in rows.values())


def test_command_reports_wrong_data_in_one_line(tmp_path):
    failed = run_command("--data_folder", tmp_path, "--output", tmp_path / "out")
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"tse: error: {tmp_path}")
    assert failed.stderr.count("\n") == 1
    assert run_command("--output", tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "argument --seed: '-1' is not a whole number of 0 or more"),
        (["--n_processes", "0"], "argument --n_processes: '0' is not a whole number"),
        (["--sample_rate", "44100"], "argument --sample_rate: invalid choice: 44100"),
        (["--librispeech_folder", "x"], "not allowed with argument --data_folder"),
    ],
)
def test_command_refuses_options_before_any_work(options, message, tmp_path, capsys):
    given = ["prepare", "--data_folder", "x", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        main([*given, *options])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tse prepare: error: ") and message in line
    assert not (tmp_path / "out").exists()
