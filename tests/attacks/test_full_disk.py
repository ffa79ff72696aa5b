"""Disks that are full, for a while: one line, nothing half, and then it goes on."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from processes import (
    ROOT,
    TRAIN,
    TSE,
    run,
    succeed,
    temporary_files,
    training,
    tree,
)
from tiny_model import build, export, write_run

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.training.checkpoints import SafeCheckpointer

# Bytes that a file may have. Which is the first that has more is not known before:
# rendered audio, manifests, checkpoints, the exported model, curves or examples.
LIMITS = [2_000, 9_000, 20_000, 40_000]


def complaint(text):
    """The one line of an error among what a command has printed."""
    assert "Traceback" not in text, text
    (line,) = (line for line in text.splitlines() if "rror: " in line)
    reasons = ("File too large", "No space left", "is there space on the disk?")
    assert any(reason in line for reason in reasons), line
    return line


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """Where a training may be, and what one leaves there."""
    results = tmp_path_factory.mktemp("trainings") / "results"
    succeed(TRAIN, *training(corpus, results, n_epochs=1))
    expected = tree(results)
    shutil.rmtree(results)
    return results, expected


@pytest.mark.parametrize(
    "limit",
    [*LIMITS[::2], *(pytest.param(n, marks=pytest.mark.slow) for n in LIMITS[1::2])],
)
def test_training(corpus, whole, limit):
    results, expected = whole
    command = [TRAIN, *training(corpus, results, n_epochs=1)]
    code, text = run(*command, limit=limit)
    assert code == 1, text
    assert str(results) in complaint(text)
    assert not temporary_files(results)
    succeed(*command)
    assert tree(results) == expected
    assert not temporary_files(results)
    shutil.rmtree(results)


def test_preparation(corpus, tmp_path):
    def prepare(folder):
        options = [f"--{name}={value}" for name, value in corpus._asdict().items()]
        return [TSE, "prepare", *options, "-o", folder]

    succeed(*prepare(tmp_path / "whole"))
    expected = tree(tmp_path / "whole")
    code, text = run(*prepare(tmp_path / "full"), limit=9_000)
    assert code == 1
    assert str(tmp_path / "full") in complaint(text)
    assert tree(tmp_path / "full").items() <= expected.items()
    assert not temporary_files(tmp_path / "full")
    succeed(*prepare(tmp_path / "full"))
    assert tree(tmp_path / "full") == expected


def test_export(tmp_path):
    write_run(tmp_path / "run")
    checkpointer = SafeCheckpointer(tmp_path / "run/save", dict(build().items()))
    checkpointer.save_checkpoint(meta={"valid_loss": -3.0})
    command = [TSE, "export", tmp_path / "run", "-o", tmp_path / "model"]
    code, text = run(*command, limit=9_000)
    assert code == 1
    assert str(tmp_path / "model") in complaint(text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    succeed(*command)
    TargetSpeechExtraction.from_hparams(tmp_path / "model")
    # One that is replaced stays.
    before = tree(tmp_path / "model")
    assert run(*command, limit=9_000)[0] == 1
    assert tree(tmp_path / "model") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "run"]


def test_extraction(corpus, tmp_path):
    """What finds room is written."""
    export(tmp_path / "model")
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    files = sorted(corpus.librispeech_folder.glob("test-clean/**/*.flac"))[:3]
    for file in files:
        shutil.copy(file, recordings)
    samples, rate = soundfile.read(files[0])
    soundfile.write(recordings / "long.flac", np.tile(samples, 30), rate)
    command = [TSE, "extract", recordings, "-m", tmp_path / "model", "-e", files[0]]
    succeed(*command, "-o", tmp_path / "whole")
    expected = tree(tmp_path / "whole")
    code, text = run(*command, "-o", tmp_path / "full", limit=300_000)
    assert code == 1
    assert "long.flac" in complaint(text)
    assert "1 of 4 files failed" in text
    del expected["long.flac"]
    assert tree(tmp_path / "full") == expected


# In a mount namespace of its own, so that nothing of it stays.
SMALL_DISK = """
set -e
mount -t tmpfs -o size=${1}k small "$2"
disk=$2; shift 2
"$@" || echo "code $?"
mount -o remount,size=64m "$disk"
"$@"
ls -A "$disk" "$disk/td_speakerbeam_pl/1234"
"""


def can_mount():
    """Whether this user may mount a file system where nobody else sees it."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "small", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [100, 700, 1000, 1200])
def test_training_on_a_small_disk(corpus, tmp_path, kilobytes):
    if not can_mount():
        pytest.skip("mounting a small file system is not allowed here")
    command = [sys.executable, TRAIN, *training(corpus, tmp_path, n_epochs=1)]
    shell = ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", kilobytes, tmp_path]
    ended = subprocess.run(
        [*map(str, [*shell, *command])],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert "code 1" in ended.stdout
    complaint(ended.stderr)
    assert "extracted.wav" in ended.stdout
    assert "unfinished" not in ended.stdout
