"""Own recordings: from a folder of voices to manifests, mixtures and a report."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import read_table
from made_voices import pause, speak, write, write_voices
from rows import HPARAMS
from test_train import load_script, tiny

from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.data.dataset import drawn_set
from speechbrain_peer.data.fixed_mixtures import count_possible, draw_mixtures
from speechbrain_peer.data.manifests import find_data_root, read_manifest
from speechbrain_peer.data.mixing import Mixing
from speechbrain_peer.data.mixing_metadata import draw_gains
from speechbrain_peer.data.own_data import open_prepared, prepare_voices
from speechbrain_peer.data.speakers import LONGEST_NAME, safe_names, split_speakers
from speechbrain_peer.data.speech_table import SpeechTable, Utterance
from speechbrain_peer.utils.any_audio import read_at_rate
from speechbrain_peer.utils.files import DataError

FEW = {"dev": 4, "test": 6}


def prepare(voices, output, **options):
    """Prepares few mixtures, in this process."""
    options = {"n_processes": 1, "n_mixtures": FEW, **options}
    return prepare_voices(voices, output, **options)


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Nine speakers of three recordings; only to read."""
    return write_voices(tmp_path_factory.mktemp("own") / "meine Stimmen")


@pytest.fixture(scope="module")
def prepared(voices):
    """Of these, beside them."""
    return prepare(voices, voices.parent / "data")


def contents(folder):
    """All files but those whose order is that of the clock."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "scan" and path.suffix != ".png"
    }


def test_the_table_leads_to_the_speech(voices, prepared):
    table = SpeechTable(prepared.manifests["train"])
    assert table.speakers == sorted(table.speakers) and len(table.speakers) == 3
    assert table.single_speakers() == []
    for index in range(len(table)):
        row = table[index]
        assert Path(row.path).resolve().is_relative_to(voices)
        assert row.utterance.startswith(f"{row.speaker}-")
        speech = read_at_rate(row.path, row.start, row.length, 8000)
        assert np.abs(speech).max() > 0.05 and row.rate == 16000
        assert -40 < row.loudness < -10


def test_mixtures_of_dev_and_test(prepared):
    speakers = {}
    for subset in ("dev", "test"):
        rows = read_manifest(prepared.manifests[subset], prepared.data_root)
        assert len(rows) == FEW[subset]
        speakers[subset] = set()
        for row in rows.values():
            sources = [row["target"], *row["interferers"]]
            mixture, rate = soundfile.read(row["mixture"])
            parts = [soundfile.read(source["path"])[0] for source in sources]
            assert rate == 8000 and len(mixture) == row["length"]
            np.testing.assert_allclose(mixture, sum(parts), atol=1e-4)
            present = {source["speaker"] for source in sources}
            assert len(present) == 2
            speakers[subset] |= present
            folder, name = Path(row["enrollment"]).parts[-2:]
            utterance = name.removesuffix(".wav").split("_")[int(folder[1:]) - 1]
            assert utterance.startswith(f"{row['target']['speaker']}-")
            assert utterance != row["target"]["utterance"]
            folder, name = Path(row["absent_enrollment"]).parts[-2:]
            absent = name.removesuffix(".wav").split("_")[int(folder[1:]) - 1]
            assert absent.split("-")[0] not in present
            assert (
                soundfile.info(row["absent_enrollment"]).frames
                == (row["absent_enrollment_length"])
            )
    train = set(SpeechTable(prepared.manifests["train"]).speakers)
    assert not train & speakers["dev"] | train & speakers["test"]
    assert not speakers["dev"] & speakers["test"]


def test_gains_are_librimixs(prepared):
    """A rendered source is the piece that the table of mixtures names."""
    folder = Path(prepared.data_root)
    for row in read_table(folder / "manifests/dev_mixtures.csv"):
        pieces = [
            read_at_rate(
                row[f"source_{k}_path"].replace("{data_root}", str(folder)),
                int(row[f"source_{k}_start"]),
                int(row[f"source_{k}_length"]),
                8000,
            )
            for k in (1, 2)
        ]
        gains = draw_gains(pieces, random.Random(f"1234 {row['mixture_ID']}"), 8000)
        length = min(map(len, pieces))
        for k, (piece, gain) in enumerate(zip(pieces, gains, strict=True), start=1):
            path = folder / f"wav8k/min/dev/s{k}/{row['mixture_ID']}.wav"
            written, _ = soundfile.read(path)
            np.testing.assert_allclose(written, gain * piece[:length], atol=1e-4)


def test_what_is_said_of_the_data(voices, prepared):
    assert prepared.corpus.startswith("meine Stimmen: test (6 mixtures of 2 speakers")
    assert "trained on 3 other speakers" in prepared.corpus
    report = (voices.parent / "data/report.md").read_text()
    assert "27 utterances of 9 speakers" in report and "| train | 3 | 9 |" in report
    assert (voices.parent / "data/report.png").stat().st_size > 10_000
    assert open_prepared(voices.parent / "data", 8000) == prepared
    with pytest.raises(DataError, match="8000 Hz, not 16000 Hz"):
        open_prepared(voices.parent / "data", 16000)
    with pytest.raises(DataError, match="tse prepare VOICES"):
        open_prepared(voices, 8000)


def test_several_corpora_have_weights(voices, prepared, tmp_path):
    prepare(voices, tmp_path / "more", seed=2)
    here = str(voices.parent / "data")
    folders = [[here, 3], [str(tmp_path / "more"), 1]]
    both = open_prepared(folders, 8000)
    assert both.manifests["test"] == prepared.manifests["test"]
    assert list(both.manifests["train"].values()) == [3, 1]
    assert both.corpus.endswith("other speakers, 0.00 hours, and on more.")
    dataset, items = drawn_set(both.manifests["train"], 0.5, 8000, 1, Mixing(), "off")
    # Three speakers train in each, with other paths to them.
    assert items.n_speakers == 6
    assert all(item["mixture_sig"].any() for item in dataset)
    for wrong in ([[here, 0]], [[here, "much"]], [[here, True]], [here, here]):
        with pytest.raises(DataError, match="is no list of folders and weights"):
            open_prepared(wrong, 8000)


def test_the_same_again_and_anywhere(voices, prepared, tmp_path):
    before = contents(Path(prepared.data_root))
    times = [path.stat().st_mtime_ns for path in voices.parent.rglob("*.wav")]
    assert prepare(voices, voices.parent / "data") == prepared
    assert contents(Path(prepared.data_root)) == before
    # Audio is not written again.
    assert [p.stat().st_mtime_ns for p in voices.parent.rglob("*.wav")] == times
    # Both move together.
    moved = shutil.copytree(voices.parent, tmp_path / "anderswo")
    manifests = moved / "data/manifests"
    assert Path(SpeechTable(manifests / "train.arrow")[0].path).is_file()
    rows = read_manifest(manifests / "dev.json", find_data_root(manifests / "dev.json"))
    assert all(Path(row["mixture"]).is_relative_to(moved) for row in rows.values())
    other = prepare(voices, tmp_path / "other", seed=5)
    assert contents(Path(other.data_root)) != before


def test_other_recordings_need_another_folder(voices, prepared, tmp_path):
    shutil.copytree(voices.parent, tmp_path, dirs_exist_ok=True)
    own = tmp_path / "meine Stimmen"
    write(own / "voice 9" / "0.wav", speak(2, seed=77))
    shutil.rmtree(own / "voice 3")
    shutil.rmtree(own / "voice 4")
    for k in range(2):
        write(own / "voice 10" / f"{k}.wav", speak(2, seed=k))
        write(own / "voice 11" / f"{k}.wav", speak(2, seed=k))
    with pytest.raises(DataError, match="delete this one to render it anew"):
        prepare(own, tmp_path / "data")
    for subset in FEW:
        shutil.rmtree(tmp_path / "data/wav8k/min" / subset)
    prepare(own, tmp_path / "data")


def spoil(folder, n_files):
    """Spoils every so many of the files; returns their names."""
    paths = sorted(folder.rglob("*.wav"))[:: max(1, n_files // 20)][:20]
    for k, path in enumerate(paths):
        if k % 5 == 0:
            path.write_bytes(path.read_bytes()[:30000])
        elif k % 5 == 1:
            path.write_bytes(b"")
        elif k % 5 == 2:
            soundfile.write(path, np.zeros(16000), 16000)
        elif k % 5 == 3:
            soundfile.write(path, np.full(16000, np.nan), 16000, subtype="FLOAT")
        else:
            content = bytearray(path.read_bytes())
            content[24:28] = (400).to_bytes(4, "little")
            path.write_bytes(content)
    return [path.relative_to(folder).as_posix() for path in paths]


@pytest.mark.parametrize("n_files", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_broken_files_are_all_listed_before_anything_is_written(
    tmp_path, capsys, n_files
):
    voices = write_voices(tmp_path / "voices", 10, n_files // 10, seconds=1.2)
    broken = spoil(voices, n_files)
    command = ["prepare", str(voices), "-o", str(tmp_path / "data"), "--n_dev=4"]
    command += ["--n_test=4", "--n_processes=1"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert f"{len(broken)} files cannot be used" in error
    assert "--on-error skip" in error and "report.md lists all" in error
    report = (tmp_path / "data/report.md").read_text()
    assert all(f"| {name} |" in report for name in broken)
    written = {path.name for path in (tmp_path / "data").iterdir()}
    assert written == {".prepare.lock", "scan", "report.md", "report.png"}
    assert main([*command, "--on-error", "skip"]) == 0
    report = (tmp_path / "data/report.md").read_text()
    assert all(f"| {name} |" in report for name in broken) and "## Subsets" in report
    table = SpeechTable(tmp_path / "data/manifests/train.arrow")
    paths = {os.path.relpath(Path(table[k].path).resolve(), voices) for k in range(9)}
    assert not paths & set(broken)


def test_remarks(tmp_path):
    voices = write_voices(tmp_path / "voices", n_files=3)
    path = voices / "voice 1/0.wav"
    samples = speak(1.5, 8000)
    write(path, np.stack((samples, -samples), axis=1), 8000)
    write(voices / "alone/a.wav", speak(1.5))
    write(voices / "voice 2/room.wav", pause(3))
    (voices / "voice 2/notes.txt").touch()
    prepare(voices, tmp_path / "data", sample_rate=16000)
    report = (tmp_path / "data/report.md").read_text()
    for remark in (
        "have the rate of these; they are used:\n\n- voice 1/0.wav (8000 Hz)\n",
        "The rate of these is below 16000 Hz",
        "cancel each other, so the loudest is taken:\n\n- voice 1/0.wav\n",
        "Speakers with a single utterance, who are interferers only:\n\n- alone\n",
        "These hold no usable speech:\n\n- voice 2/room.wav\n",
        "Not looked at, as they are no recordings:\n\n- 1 .txt",
        "| nothing stands out from the noise | 1 | 0.1 |",
    ):
        assert remark in report
    table = SpeechTable(tmp_path / "data/manifests/train.arrow")
    assert table.single_speakers() == ["alone"]


def test_one_conversation_of_kaldi(tmp_path):
    """Nine speakers in one file, each in two segments."""
    parts, lines, speakers = [], [], []
    for k in range(18):
        parts += [speak(1.5, pitch=90 + 25 * (k % 9), seed=k), pause(0.5)]
        lines.append(f"utt{k} talk {2 * k} {2 * k + 1.9}")
        speakers.append(f"utt{k} spk{k % 9}")
    kaldi = tmp_path / "kaldi"
    audio = write(tmp_path / "audio" / "talk.flac", np.concatenate(parts))
    kaldi.mkdir()
    (kaldi / "wav.scp").write_text(f"talk {audio}\n")
    (kaldi / "segments").write_text("\n".join(lines))
    (kaldi / "utt2spk").write_text("\n".join(speakers))
    prepared = prepare(kaldi, tmp_path / "data")
    table = SpeechTable(prepared.manifests["train"])
    assert len(table) == 6 and table[0].path == str(audio)


def test_given_speakers(voices, tmp_path):
    lists = {}
    for subset, numbers in {"dev": "012", "test": "345"}.items():
        lists[subset] = tmp_path / f"{subset}.txt"
        lists[subset].write_text("".join(f"voice {n}\n" for n in numbers))
    command = ["prepare", str(voices), "-o", str(tmp_path / "data"), "--n_dev=2"]
    command += ["--n_test=2", "--n_processes=1", f"--dev_speakers={lists['dev']}"]
    with pytest.raises(SystemExit):
        main(command)
    assert main([*command, f"--test_speakers={lists['test']}"]) == 0
    table = SpeechTable(tmp_path / "data/manifests/train.arrow")
    assert table.speakers == ["voice+6", "voice+7", "voice+8"]
    lists["test"].write_text("voice 3\nvoice 4\nsomebody\n")
    with pytest.raises(DataError, match="no speech of speaker 'somebody'"):
        prepare(voices, tmp_path / "data", speaker_lists=lists)
    lists["test"].write_text("voice 3\nvoice 4\nvoice 0\n")
    with pytest.raises(DataError, match=r"speaker 'voice 0' is in .*dev.txt too"):
        prepare(voices, tmp_path / "data", speaker_lists=lists)
    lists["test"].write_text("voice 3\nvoice 4\n")
    with pytest.raises(DataError, match="test has 2 speakers, but each subset needs 3"):
        prepare(voices, tmp_path / "data", speaker_lists=lists)


def test_options_of_librimix_are_refused(voices, corpus, tmp_path, capsys):
    command = ["prepare", str(voices), "-o", str(tmp_path / "data"), "--mode", "max"]
    with pytest.raises(SystemExit):
        main(command)
    assert "--mode says nothing about own recordings" in capsys.readouterr().err
    speech = ["--librispeech_folder", str(corpus.librispeech_folder)]
    with pytest.raises(SystemExit):
        main(["prepare", *speech, "-o", str(tmp_path / "data"), "--on-error", "skip"])
    assert "--on-error says nothing about LibriMix" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_too_few_speakers(tmp_path):
    voices = write_voices(tmp_path / "voices", n_speakers=5, n_files=2)
    with pytest.raises(DataError, match=r"9 speakers with two .* but there are 5"):
        prepare(voices, tmp_path / "data")
    assert "## Rates" in (tmp_path / "data/report.md").read_text()


def test_not_into_the_voices(voices):
    with pytest.raises(DataError, match="lies in the folder of voices"):
        prepare(voices, voices / "data")


def test_a_split_keeps_its_speakers_when_one_comes():
    counts = {f"s{k}": 3 for k in range(200)}
    before = split_speakers(counts, seed=1)
    after = split_speakers(counts | {"new": 3}, seed=1)
    assert {name: len(part) for name, part in before.items()} == {
        "train": 160,
        "dev": 20,
        "test": 20,
    }
    kept = [set(before[name]) & set(after[name]) for name in ("dev", "test")]
    assert all(len(part) >= 18 for part in kept)
    assert split_speakers(counts, seed=2) != before


def test_names_are_safe_and_unique():
    rng = random.Random(0)
    letters = "aA1_-. /{}ñß日\n\u0301"
    speakers = {"".join(rng.choices(letters, k=rng.randint(1, 60))) for _ in range(999)}
    names = safe_names(speakers)
    assert len({name.casefold() for name in names.values()}) == len(speakers)
    for name in names.values():
        assert name and len(name.encode()) <= LONGEST_NAME
        assert name.replace("+", "").isalnum() and not name.startswith("+")


def utterances(**counts):
    return [
        Utterance("a.wav", name, f"{name}-{k}", 0, 16000, 16000, -30.0)
        for name, count in counts.items()
        for k in range(count)
    ]


def test_drawn_mixtures_are_balanced_and_can_be_enrolled():
    pool = utterances(ann=9, bob=3, cid=20, dan=2, eve=1)
    for number in (2, 3, 7, 40, count_possible(pool)):
        mixtures = draw_mixtures(pool, number, seed=1)
        pairs = {frozenset(row.utterance for row in x.sources) for x in mixtures}
        assert len(pairs) == len(mixtures) == number
        targets = [x.sources[0] for x in mixtures]
        used = {row.utterance for x in mixtures for row in x.sources}
        for target in targets:
            own = {name for name in used if name.startswith(target.speaker)}
            assert target.speaker != "eve" and len(own) > 1
        if number == 40:
            uses = [sum(x.speaker == s for x in targets) for s in ("ann", "dan")]
            assert uses == [10, 10]
    with pytest.raises(DataError, match=f"{count_possible(pool)} mixtures"):
        draw_mixtures(pool, count_possible(pool) + 1, seed=1)


def test_a_killed_preparation_goes_on_with_the_same_result(voices, prepared, tmp_path):
    own = shutil.copytree(voices, tmp_path / voices.name)
    command = [sys.executable, "-m", "speechbrain_peer.cli", "prepare", str(own)]
    command += ["-o", str(tmp_path / "data"), "--n_dev=4", "--n_test=6"]
    command += ["--n_processes=1"]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (tmp_path / "data/wav8k").exists():
        assert running.poll() is None
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.wait()
    prepare(own, tmp_path / "data")
    assert contents(tmp_path / "data") == contents(Path(prepared.data_root))


def test_the_description_is_written_last(prepared):
    folder = Path(prepared.data_root)
    description = json.loads((folder / "prepared.json").read_text())
    assert description == {"corpus": prepared.corpus, "sample_rate": 8000}


def test_a_training_from_recordings_to_an_extraction(tmp_path, capsys):
    voices = write_voices(tmp_path / "Our voices", n_files=2, rate=22050)
    data = str(tmp_path / "data")
    command = ["prepare", str(voices), "-o", data, "--n_dev=3", "--n_test=3"]
    assert main([*command, "--n_processes=1"]) == 0
    settings = tiny("own_data") | {
        "prepared": data,
        "results_folder": tmp_path / "results",
        "mixing": "{items_per_epoch: 6}",
    }
    options = [f"--{key}={value}" for key, value in settings.items()]
    row = str(HPARAMS / "own_data.yaml")
    brain = load_script().main([row, "--device=cpu", "--noprogressbar", *options])
    folder = Path(brain.hparams.output_folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["items"] == 3 and np.isfinite(metrics["means"]["si_sdr"])
    assert metrics["corpus"].startswith("Our voices: test (3 mixtures of 2 speakers")
    assert "Our voices" in (folder / "metrics.md").read_text()
    assert soundfile.info(folder / "extracted.wav").frames > 8000
    capsys.readouterr()
    mixture = str(next((tmp_path / "data/wav8k/min/test/mix_clean").iterdir()))
    voice = str(voices / "voice 1/0.wav")
    model = ["--model", str(folder / "model"), "-o", str(tmp_path / "only.wav")]
    assert main(["extract", mixture, "--enrollment", voice, *model]) == 0
    assert (tmp_path / "only.wav").is_file()


def test_a_training_without_data_is_told_how_to_prepare_it(tmp_path):
    arguments = [str(HPARAMS / "own_data.yaml"), f"--results_folder={tmp_path}"]
    with pytest.raises(DataError, match="and give --prepared"):
        load_script().main(arguments)
