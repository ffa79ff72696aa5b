"""Rendering equals the LibriMix script's, survives interruptions and bad input."""

import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from conftest import read_table, write_corpus, write_table
from scipy.signal import resample_poly

from speechbrain_peer.data.librimix import (
    check_sources,
    find_metadata,
    read_metadata,
    render_subset,
)
from speechbrain_peer.utils.audio import AudioError
from speechbrain_peer.utils.files import DataError


def render(corpus, folder, subset="dev", **options):
    """Renders a subset in this process unless told otherwise."""
    rows = read_metadata(find_metadata(corpus.librimix_metadata, subset))
    check_sources(rows, corpus.librispeech_folder)
    options = {"n_processes": 1, **options}
    render_subset(rows, corpus.librispeech_folder, folder, **options)
    return rows


def librimix_samples(folder, row, sample_rate, mode):
    """What the LibriMix script computes for the sources of one row."""
    sources = []
    for path, gain in zip(row.paths, row.gains, strict=True):
        speech, _ = soundfile.read(folder / path, dtype="float32")
        sources.append(resample_poly(speech * gain, sample_rate, 16000))
    length = (min if mode == "min" else max)(map(len, sources))
    return [np.pad(s, (0, max(0, length - len(s))))[:length] for s in sources]


@pytest.mark.parametrize("n_sources", [2, 3])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("sample_rate", [8000, 16000])
def test_samples_are_those_of_the_librimix_script(
    tmp_path, n_sources, mode, sample_rate
):
    corpus = write_corpus(tmp_path, n_sources, n_utterances=1, parts=["dev-clean"])
    rows = render(corpus, tmp_path / "out", sample_rate=sample_rate, mode=mode)
    for row in rows:
        sources = librimix_samples(corpus.librispeech_folder, row, sample_rate, mode)
        expected = {f"s{k}": source for k, source in enumerate(sources, start=1)}
        expected["mix_clean"] = np.sum(sources, axis=0)
        for name, samples in expected.items():
            soundfile.write(tmp_path / "expected.wav", samples, sample_rate)
            rendered = tmp_path / "out" / name / f"{row.mixture_id}.wav"
            assert rendered.read_bytes() == (tmp_path / "expected.wav").read_bytes()


def test_real_speech_has_the_reference_hashes(mini_librimix, tse_reference, tmp_path):
    rows = read_metadata(find_metadata(mini_librimix / "metadata/Libri2Mix", "dev"))
    render_subset(rows, mini_librimix / "LibriSpeech", tmp_path)
    expected = read_table(tse_reference / "librimix" / "dev_sha256.csv")
    assert len(expected) == 200
    for row in expected:
        for name in ("mix_clean", "s1", "s2"):
            path = tmp_path / name / f"{row['mixture_ID']}.wav"
            samples, _ = soundfile.read(path, dtype="int16")
            assert hashlib.sha256(samples.tobytes()).hexdigest()[:32] == row[name]


def modification_times(folder):
    """{file: time} of all files, hidden ones too."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def contents(folder):
    """{relative path: bytes} of all files, hidden ones too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_second_run_renders_only_what_is_missing(corpus, tmp_path):
    render(corpus, tmp_path)
    before = modification_times(tmp_path)
    removed = sorted((tmp_path / "s2").iterdir())[3]
    removed.unlink()
    render(corpus, tmp_path)
    after = modification_times(tmp_path)
    assert after.keys() == before.keys()
    changed = {path for path in before if before[path] != after[path]}
    assert changed == set(tmp_path.rglob(removed.name))


def test_killed_run_leaves_whole_files_and_goes_on(tmp_path):
    corpus = write_corpus(
        tmp_path, n_utterances=15, seconds=(6, 8), parts=["dev-clean"]
    )
    render(corpus, tmp_path / "uninterrupted")
    expected = contents(tmp_path / "uninterrupted")

    folder = tmp_path / "killed"
    script = (
        "import sys; from speechbrain_peer.data.librimix import *;"
        "render_subset(read_metadata(sys.argv[1]), *sys.argv[2:], n_processes=2)"
    )
    arguments = [corpus.metadata_file("dev-clean"), corpus.librispeech_folder, folder]
    running = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE
    )
    while running.poll() is None and not list(folder.glob("mix_clean/*.wav")):
        time.sleep(0.001)
    running.kill()
    # Its workers hold the pipe too: this returns when they have ended by themselves.
    running.communicate(timeout=30)

    left = {
        name: data for name, data in contents(folder).items() if name.suffix == ".wav"
    }
    assert 0 < len(left) < len(expected)
    assert left == {name: expected[name] for name in left}
    before = modification_times(folder)
    render(corpus, folder)
    assert contents(folder) == expected
    after = modification_times(folder)
    for mixture in left:
        if mixture.parent.name == "mix_clean":
            assert after[folder / mixture] == before[folder / mixture]


def test_bad_source_stops_the_workers_and_keeps_what_is_done(own_corpus, tmp_path):
    rows = read_metadata(own_corpus.metadata_file("dev-clean"))
    spoiled = own_corpus.librispeech_folder / rows[-1].paths[0]
    good = spoiled.read_bytes()
    soundfile.write(spoiled, np.full(9, np.nan), 16000, format="WAV", subtype="FLOAT")
    folder = tmp_path / "out"
    with pytest.raises(AudioError, match="NaN") as caught:
        render(own_corpus, folder, n_processes=2)
    assert str(spoiled) in str(caught.value)
    kept = modification_times(folder)
    assert len(kept) > 3
    assert {path.suffix for path in kept} == {".wav", ".sha256"}
    spoiled.write_bytes(good)
    render(own_corpus, folder)
    assert kept.items() <= modification_times(folder).items()
    assert len(list((folder / "mix_clean").iterdir())) == 12


def _softer(row):
    return row._replace(gains=[gain / 10 for gain in row.gains])


def _from_other_files(row):
    return row._replace(paths=[path.replace("/7/", "/8/") for path in row.paths])


def render_rows(rows, corpus, folder):
    """Renders rows, in this process."""
    render_subset(rows, corpus.librispeech_folder, folder, n_processes=1)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: [_softer(row) for row in rows],
        lambda rows: [*rows[:-1], _softer(rows[-1])],
        lambda rows: [*rows[:-1], _from_other_files(rows[-1])],
        lambda rows: rows[:-1],
    ],
)
def test_audio_of_other_metadata_is_not_reused(corpus, tmp_path, change):
    rows = render(corpus, tmp_path / "out")
    before = modification_times(tmp_path)
    with pytest.raises(DataError, match=r"other metadata.*prepared_folder") as caught:
        render_rows(change(rows), corpus, tmp_path / "out")
    assert str(tmp_path / "out") in str(caught.value)
    assert modification_times(tmp_path) == before


def test_interrupted_rendering_does_not_go_on_with_other_metadata(corpus, tmp_path):
    rows = read_metadata(corpus.metadata_file("dev-clean"))
    with pytest.raises(AudioError):
        render_rows([*rows[:-1], _from_other_files(rows[-1])], corpus, tmp_path)
    assert len(list((tmp_path / "mix_clean").iterdir())) == 11
    with pytest.raises(DataError, match="other metadata"):
        render_rows(rows, corpus, tmp_path)


def test_moved_librispeech_and_sorted_metadata_are_not_other_ones(own_corpus, tmp_path):
    rows = render(own_corpus, tmp_path / "out")
    before = modification_times(tmp_path / "out")
    moved = own_corpus._replace(librispeech_folder=tmp_path / "moved")
    own_corpus.librispeech_folder.rename(moved.librispeech_folder)
    render(moved, tmp_path / "out")
    render_rows(rows[::-1], moved, tmp_path / "out")
    assert modification_times(tmp_path / "out") == before


def test_audio_without_a_record_is_taken_as_made_from_the_first_metadata(
    corpus, tmp_path
):
    rows = render(corpus, tmp_path)
    (record,) = tmp_path.glob("*.sha256")
    recorded = record.read_text()
    record.unlink()
    before = modification_times(tmp_path)
    render_rows(rows, corpus, tmp_path)
    assert record.read_text() == recorded
    assert before.items() <= modification_times(tmp_path).items()
    with pytest.raises(DataError, match="other metadata"):
        render_rows(rows[1:], corpus, tmp_path)


@pytest.mark.parametrize(
    ("samples", "sample_rate", "reason"),
    [(np.zeros(800), 8000, "8000 Hz"), (np.zeros(0), 16000, "no samples")],
)
def test_bad_source_is_named(own_corpus, tmp_path, samples, sample_rate, reason):
    row = read_metadata(own_corpus.metadata_file("dev-clean"))[0]
    spoiled = own_corpus.librispeech_folder / row.paths[1]
    soundfile.write(spoiled, samples, sample_rate, format="WAV")
    with pytest.raises(AudioError, match=reason) as caught:
        render(own_corpus, tmp_path / "out")
    assert str(spoiled) in str(caught.value)


def test_absent_source_is_named_with_its_row(own_corpus):
    csv_path = own_corpus.metadata_file("dev-clean")
    rows = read_metadata(csv_path)
    absent = own_corpus.librispeech_folder / rows[2].paths[0]
    absent.unlink()
    with pytest.raises(DataError) as caught:
        check_sources(rows, own_corpus.librispeech_folder)
    first = next(k for k, row in enumerate(rows) if absent.name in str(row.paths))
    for part in (str(absent), f"{csv_path}, line {first + 2}", rows[first].mixture_id):
        assert part in str(caught.value)


def _drop_column(rows):
    return [{k: v for k, v in row.items() if k != "source_2_gain"} for row in rows]


def _one_source(rows):
    return [{k: v for k, v in row.items() if "source_2" not in k} for row in rows]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_drop_column, "no column source_2_gain"),
        (_one_source, "no column source_2_path, source_2_gain"),
        (lambda rows: [*rows, rows[1]], "line 14: .*line 3"),
        (lambda rows: [{**rows[0], "source_1_gain": "loud"}], "line 2: a gain"),
        (lambda rows: [{**rows[0], "source_1_gain": "nan"}], "line 2: a gain"),
        (lambda rows: [{**rows[0], "source_2_gain": "0"}], "line 2: a gain"),
        (lambda rows: [{**rows[0], "source_2_gain": "-0.5"}], "line 2: a gain"),
        (lambda rows: [{**rows[0], "source_2_gain": "1e30"}], "line 2: a gain"),
        (lambda rows: [{**rows[0], "source_1_path": ""}], "line 2: a path is empty"),
        (
            lambda rows: [{**rows[0], "source_1_path": "/a.flac"}],
            "line 2: .* leads out",
        ),
        (lambda rows: [{**rows[0], "source_1_path": "a/../../b"}], "line 2: .* out"),
        (lambda rows: [{**rows[0], "mixture_ID": "a_b_c"}], "line 2: .*2 utterances"),
        (lambda rows: [{**rows[0], "mixture_ID": "../../a_b"}], "line 2: .*has '/'"),
        (lambda rows: [{**rows[0], "mixture_ID": "{a}_b"}], "line 2: .*has '{'"),
        (lambda rows: [{**rows[0], "mixture_ID": ".._b"}], "line 2: .*a dot"),
        (lambda rows: [{**rows[0], "mixture_ID": "-1_b"}], "line 2: .*no speaker"),
        (lambda rows: [{**rows[0], "mixture_ID": "a" * 300 + "_b"}], "200 bytes"),
        (lambda rows: [{**rows[0], "mixture_ID": "a\tb_c"}], r"line 2: .*has '\\t'"),
    ],
)
def test_bad_metadata_is_named_with_the_reason(corpus, tmp_path, spoil, reason):
    path = tmp_path / "libri2mix_dev-clean.csv"
    write_table(path, spoil(read_table(corpus.metadata_file("dev-clean"))))
    with pytest.raises(DataError, match=reason) as caught:
        read_metadata(path)
    assert str(path) in str(caught.value)


def test_all_bad_rows_are_told_at_once(corpus, tmp_path):
    header, *lines = corpus.metadata_file("dev-clean").read_text().splitlines()
    path = tmp_path / "libri2mix_dev-clean.csv"
    short = [line.rpartition(",")[0] for line in lines]
    path.write_text("\n".join([header, *short, f"{lines[0]},more", lines[1]]))
    with pytest.raises(DataError, match="14 rows cannot be used") as caught:
        read_metadata(path)
    assert str(caught.value).count("has more or fewer cells") == 10
    assert str(caught.value).endswith("and 4 more")


def test_metadata_without_rows_or_text_or_file(tmp_path):
    path = tmp_path / "libri2mix_dev-clean.csv"
    with pytest.raises(DataError, match="0 files libri"):
        find_metadata(tmp_path, "dev")
    with pytest.raises(DataError, match="cannot be read"):
        read_metadata(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_metadata(path)
    path.write_text(
        "mixture_ID,source_1_path,source_1_gain,source_2_path,source_2_gain"
    )
    with pytest.raises(DataError, match="no rows"):
        read_metadata(path)
