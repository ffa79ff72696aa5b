"""Recordings of any kind are looked into once; what is broken is told."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from made_voices import pause, speak, write

from speechbrain_peer.data.scan import NO_SPEECH, TOO_SHORT, scan_files
from speechbrain_peer.data.shards import read_shards
from speechbrain_peer.data.voices import Span, VoiceFile, find_voices
from speechbrain_peer.utils.any_audio import read_at_rate
from speechbrain_peer.utils.files import DataError

RATE = 16000


def scan(path, output, *spans):
    """Scans one file in this process."""
    spans = spans or (Span("ann", 0.0, math.inf),)
    file = VoiceFile(path.name, str(path), spans)
    (scanned,) = scan_files([file], output, n_processes=1)
    return scanned


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_any_rate_and_format(tmp_path, rate, suffix):
    samples = np.concatenate((pause(1, rate), speak(2, rate), pause(1, rate)))
    scanned = scan(write(tmp_path / f"a.{suffix}", samples, rate), tmp_path)
    assert (scanned.problem, scanned.rate, scanned.channels) == (None, rate, 1)
    ((_, start, length, loudness),) = scanned.segments
    assert start / rate == pytest.approx(1, abs=0.25)
    assert length / rate == pytest.approx(2, abs=0.3)
    assert -40 < loudness < -10


def test_loudness_is_that_of_the_segment(tmp_path):
    import pyloudnorm

    samples = np.concatenate((pause(1), speak(2), pause(1)))
    path = write(tmp_path / "a.flac", np.stack((samples, 0.5 * samples), axis=1))
    ((_, start, length, loudness),) = scan(path, tmp_path).segments
    mono = read_at_rate(path, start, length, RATE)
    assert loudness == pytest.approx(
        pyloudnorm.Meter(RATE).integrated_loudness(mono), abs=1e-2
    )


def test_channels_of_opposite_phase_do_not_vanish(tmp_path):
    samples = np.concatenate((pause(1), speak(2), pause(1)))
    both = np.stack((samples, -0.9 * samples), axis=1)
    scanned = scan(write(tmp_path / "a.wav", both), tmp_path)
    assert scanned.cancelling and scanned.channels == 2 and len(scanned.segments) == 1
    usual = scan(write(tmp_path / "b.wav", np.abs(both)), tmp_path)
    assert not usual.cancelling


def cut(path, keep=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


def with_header_rate(path, rate):
    content = bytearray(path.read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(content)


def with_nan(path):
    samples = speak(2)
    samples[20000] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")


BROKEN = {
    "cut.wav": (cut, "is cut short"),
    "cut.flac": (cut, "cut short|cannot be read"),
    "cut.aiff": (cut, "is cut short"),
    "no_samples.wav": (lambda path: cut(path, 44 / 64044), "is cut short|no samples"),
    "empty.wav": (lambda path: path.write_bytes(b""), "cannot be read"),
    "text.wav": (lambda path: path.write_text("no audio"), "cannot be read"),
    "video.mp4": (lambda path: path.write_text("no video"), "ffmpeg"),
    "silent.wav": (lambda path: soundfile.write(path, np.zeros(RATE), RATE), "silent"),
    "nan.wav": (with_nan, "NaN"),
    "slow.wav": (lambda path: with_header_rate(path, 2000), "2000 Hz"),
    "fast.wav": (lambda path: with_header_rate(path, 10**9), "1000000000 Hz"),
    "gone.wav": (lambda path: path.unlink(), "no such file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_told_and_why(tmp_path, name):
    spoil, reason = BROKEN[name]
    path = tmp_path / name
    if not name.endswith("mp4"):
        write(path, speak(2))
    spoil(path)
    problem = scan(path, tmp_path).problem
    assert re.search(reason, problem)
    assert not problem.startswith(str(tmp_path))  # the report names it


def test_a_problem_is_not_kept(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", speak(2))
    with monkeypatch.context() as patch:
        patch.setattr("speechbrain_peer.data.scan.SILENT_DB", 0.0)
        assert "is silent" in scan(path, tmp_path).problem
    assert scan(path, tmp_path).problem is None


def test_lengths_that_a_stream_could_not_know_are_no_cut(tmp_path):
    path = write(tmp_path / "a.wav", speak(2))
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert scan(path, tmp_path).problem is None


def test_what_is_left_out_is_counted(tmp_path):
    word = np.concatenate((pause(3), speak(0.4), pause(3)))
    scanned = scan(write(tmp_path / "word.wav", word), tmp_path)
    assert scanned.problem is None and scanned.segments == ()
    assert scanned.left.keys() == {TOO_SHORT}
    hum = np.sin(np.arange(3 * RATE) / 20) / 10
    scanned = scan(write(tmp_path / "hum.wav", hum), tmp_path)
    assert scanned.left == {NO_SPEECH: (1, pytest.approx(3.0))}


def test_spans_of_several_speakers(tmp_path):
    parts = [speak(2), pause(1), speak(2, pitch=250), pause(1), speak(2, pitch=90)]
    path = write(tmp_path / "talk.wav", np.concatenate(parts))
    spans = [Span("ann", 0.0, 2.5), Span("bob", 2.5, 5.5)]
    segments = scan(path, tmp_path, *spans).segments
    assert [number for number, *_ in segments] == [0, 1]
    # What nobody is told to talk in is not looked at.
    assert all(start + length <= 5.5 * RATE for _, start, length, _ in segments)
    problem = scan(path, tmp_path, Span("ann", 9.0, 10.0)).problem
    assert "begins at 9 s" in problem


def test_results_are_kept_and_used_while_the_file_stays(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", speak(2))
    first = scan(path, tmp_path / "out")
    monkeypatch.delattr("speechbrain_peer.data.scan._Recording")
    again = scan(path, tmp_path / "out")
    assert json.dumps(again) == json.dumps(first)
    monkeypatch.undo()
    write(path, speak(3))
    assert scan(path, tmp_path / "out").seconds == 3


def test_a_shard_that_cannot_be_read_is_made_again(tmp_path):
    path = write(tmp_path / "a.wav", speak(2))
    first = scan(path, tmp_path)
    (shard,) = (tmp_path / "scan").iterdir()
    shard.write_text('["half')
    assert scan(path, tmp_path) == first


def test_a_killed_scan_goes_on_with_the_same_result(tmp_path):
    files = [write(tmp_path / f"ann/{k:03}.wav", speak(1.2, seed=k)) for k in range(30)]
    script = (
        "import sys; from speechbrain_peer.data import scan, shards, voices; "
        "shards.SECONDS = 0; "
        "scan.scan_files(voices.find_voices(sys.argv[1]).files, sys.argv[2], "
        "n_processes=1)"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(tmp_path / "out")]
    running = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": "."}
    )
    shards = tmp_path / "out" / "scan"
    while len(list(shards.glob("*.jsonl"))) < 3:
        assert running.poll() is None
        time.sleep(0.001)
    running.kill()
    running.wait()
    kept = read_shards(shards)
    assert 0 < len(kept) < len(files)
    listed = find_voices(tmp_path).files
    listed = [file for file in listed if not file.name.startswith("out")]
    resumed = scan_files(listed, tmp_path / "out", n_processes=1)
    whole = scan_files(listed, tmp_path / "other", n_processes=1)
    assert json.dumps(resumed) == json.dumps(whole)


def test_processes_find_what_one_finds(tmp_path):
    for k in range(4):
        write(tmp_path / f"ann/{k}.wav", speak(1.2, seed=k))
    files = find_voices(tmp_path).files
    assert scan_files(files, tmp_path / "two", n_processes=2) == scan_files(
        files, tmp_path / "one", n_processes=1
    )


def write_kaldi(folder, **tables):
    for name, lines in tables.items():
        (folder / name.replace("_", ".")).write_text("\n".join(lines) + "\n")


def test_kaldi(tmp_path):
    audio = [
        write(tmp_path / f"audio files/{k}.wav", speak(3, seed=k)) for k in range(2)
    ]
    write_kaldi(
        tmp_path,
        wav_scp=["rec1 audio files/0.wav", f"rec2  {audio[1]}"],
        utt2spk=["rec1 ann", "rec2 bob"],
    )
    files = find_voices(tmp_path).files
    assert sorted((file.path, file.spans[0].speaker) for file in files) == sorted(
        zip(map(str, audio), ("ann", "bob"), strict=True)
    )
    write_kaldi(
        tmp_path,
        segments=["u1 rec1 0.0 1.5", "u2 rec1 1.5 -1"],
        utt2spk=["u1 ann", "u2 bob"],
    )
    (file,) = find_voices(tmp_path).files
    assert file.spans == (Span("ann", 0.0, 1.5), Span("bob", 1.5, math.inf))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"wav_scp": ["r1 touch pwned |"]}, "recording r1: is a command, which is not"),
        ({"wav_scp": ["r1 | touch pwned"]}, "is a command"),
        ({"wav_scp": ["r1 -"]}, "is standard input"),
        ({"wav_scp": ["r1 feats.ark:123"]}, "is a place in an archive"),
        ({"wav_scp": ["r1"]}, "line 1: is not a recording and its file"),
        ({"wav_scp": ["r1 a.wav", "r1 b.wav"]}, "line 2: r1 is listed before"),
        ({"utt2spk": ["other ann"]}, "utterance r1 has no speaker"),
        ({"segments": ["u1 r1 2.0 1.0"]}, "utterance u1"),
        ({"segments": ["u1 r9 0.0 1.0"]}, "no recording r9"),
    ],
)
def test_kaldi_tables_that_cannot_be_used(tmp_path, monkeypatch, tables, message):
    monkeypatch.chdir(tmp_path)
    usual = {"wav_scp": ["r1 a.wav"], "utt2spk": ["r1 ann", "u1 ann"]}
    write_kaldi(tmp_path, **usual | tables)
    with pytest.raises(DataError, match=message):
        find_voices(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_files_are_told_apart(tmp_path):
    for name in ("ann/deep/er/1.WAV", "bob/2.mp3", "bob/.hidden.wav", "loose.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "bob/notes.txt").touch()
    (tmp_path / "bob/again").symlink_to(tmp_path / "bob")
    voices = find_voices(tmp_path)
    assert [file.name for file in voices.files] == ["ann/deep/er/1.WAV", "bob/2.mp3"]
    assert list(voices.problems) == ["loose.wav"]
    assert dict(voices.others) == {".txt": 1}
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no recordings"):
        find_voices(tmp_path / "empty")


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
@pytest.mark.parametrize("name", ["a.m4a", "disguised.wav"])
def test_what_ffmpeg_decodes_is_kept_where_training_reads_it(tmp_path, name):
    talk = write(tmp_path / "talk.wav", np.concatenate((pause(1), speak(2))))
    command = ["ffmpeg", "-v", "error", "-i", talk, "-c:a", "aac", "-f", "ipod"]
    subprocess.run([*command, tmp_path / name], check=True)
    scanned = scan(tmp_path / name, tmp_path / "out")
    ((_, start, length, _),) = scanned.segments
    kept = tmp_path / "out" / "decoded" / scanned.decoded
    assert np.any(read_at_rate(kept, start, length, 8000))
    # Deleted, it is made again.
    kept.unlink()
    assert scan(tmp_path / name, tmp_path / "out") == scanned and kept.exists()
