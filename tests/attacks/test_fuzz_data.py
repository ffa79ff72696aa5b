"""Tables, manifests and audio of others, spoiled."""

import io
import json
import shutil

import numpy as np
import pytest
import soundfile
from fuzzing import (
    EXAMPLES,
    bounded,
    fuzz,
    reads,
    spoiled,
    spoiled_json,
    spoiled_table,
)
from hypothesis import strategies as st

from speechbrain_peer.data.dataset import evaluation_set, training_set
from speechbrain_peer.data.enrollments import add_enrollments, read_enrollment_map
from speechbrain_peer.data.librimix import check_sources, read_metadata
from speechbrain_peer.data.manifests import (
    find_data_root,
    read_listed_peers,
    read_manifest,
)
from speechbrain_peer.evaluation.trials import read_trials
from speechbrain_peer.inference.recordings import Recording, read_start
from speechbrain_peer.utils.audio import AudioError, audio_length, read_audio

RATE = 8000


@EXAMPLES
def test_metadata(examples, corpus, tmp_path):
    path = tmp_path / "libri2mix_dev-clean.csv"
    good = corpus.metadata_file("dev-clean").read_text(encoding="utf-8")

    def read():
        rows = read_metadata(path)
        check_sources(rows, corpus.librispeech_folder)

    def attack(content):
        path.write_bytes(content)
        reads(path, read)

    fuzz(examples, attack, spoiled_table(good) | spoiled(good.encode()))


@EXAMPLES
@pytest.mark.parametrize("subset", ["train-100", "dev"])
def test_manifests(examples, prepared, tmp_path, subset):
    """All that is done with one, up to the items."""
    folder = tmp_path / "manifests"
    shutil.copytree(prepared.data_root + "/manifests/wav8k_min_first", folder)
    path = folder / f"{subset}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    first = dict(list(rows.items())[:3])
    good = json.dumps(first).encode()
    # JSON's true is an int to Python.
    truth = json.dumps({x: row | {"length": True} for x, row in first.items()})

    def read():
        read_manifest(path)
        find_data_root(path)
        if subset == "dev":
            items = evaluation_set(path, prepared.data_root, RATE)
            items.set_output_keys(["id", "mixture_sig", "enrollment_sig"])
            read_trials(path, prepared.data_root, RATE, 3)
        else:
            items, epochs = training_set(path, prepared.data_root, 0.6, RATE, 1)
            epochs.set_epoch(1)
        for index in range(len(items)):
            items[index]

    def attack(content):
        path.write_bytes(content)
        # Or of what it holds: paths that lead nowhere, too few speakers.
        reads(
            path, read, ".wav", "no such file", "is a folder", "speakers", "/etc/passwd"
        )

    fuzz(examples, attack, spoiled_json(good), known=[b"{}", truth.encode()])


@EXAMPLES
def test_listed_peers(examples, prepared, tmp_path):
    path = tmp_path / "train_peers.json"
    with open(prepared.peers, encoding="utf-8") as file:
        good = json.dumps(dict(list(json.load(file).items())[:3])).encode()

    def attack(content):
        path.write_bytes(content)
        reads(path, lambda: read_listed_peers(path, prepared.data_root))

    fuzz(examples, attack, spoiled_json(good), known=[b"{}"])


@EXAMPLES
def test_enrollment_maps(examples, prepared, tmp_path):
    path = tmp_path / "map_mixture2enrollment"
    folder = "manifests/wav8k_min_first/dev_enrollment_map.txt"
    with open(f"{prepared.data_root}/{folder}", encoding="utf-8") as file:
        good = file.read()

    def read():
        read_enrollment_map(path)
        rows = read_manifest(prepared.manifests["dev"])
        add_enrollments(rows, path, "wav8k/min/dev")

    def attack(content):
        path.write_bytes(content)
        reads(path, read)

    fuzz(examples, attack, spoiled_table(good, " ") | spoiled(good.encode()))


def audio(format, subtype, channels):
    """A good file, in bytes."""
    file = io.BytesIO()
    noise = 0.1 * np.random.default_rng(0).normal(size=(600, channels))
    soundfile.write(file, noise, RATE, format=format, subtype=subtype)
    return file.getvalue()


FORMATS = {
    ("WAV", "PCM_16", 1),
    ("WAV", "FLOAT", 2),
    ("WAV", "IMA_ADPCM", 1),
    ("WAVEX", "PCM_24", 1),
    ("RF64", "PCM_16", 1),
    ("W64", "PCM_16", 1),
    ("FLAC", "PCM_16", 1),
    ("OGG", "VORBIS", 1),
    ("AIFF", "PCM_16", 1),
    ("CAF", "PCM_16", 1),
    ("AU", "PCM_16", 1),
    ("NIST", "PCM_16", 1),
    ("MP3", "MPEG_LAYER_III", 1),
}


@EXAMPLES
@pytest.mark.parametrize(
    "format", sorted(FORMATS), ids=lambda format: format[0] + "-" + format[1]
)
def test_audio(examples, tmp_path, format):
    """Mostly its header, whose every byte counts."""
    if not soundfile.check_format(*format[:2]):
        pytest.skip("this build of libsndfile has no such format")
    path = tmp_path / "recording.wav"
    good = audio(*format)
    readers = (
        lambda: sum(len(block) for block in Recording.open(path).blocks()),
        lambda: read_start(path, 0.05),
        lambda: read_audio(path),
        lambda: read_audio(path, 100, 100, RATE),
        lambda: audio_length(path),
    )

    def attack(content):
        path.write_bytes(content)
        for reader in readers:
            reads(path, reader)

    header = spoiled(good[:80]).map(lambda start: start + good[80:])
    fuzz(examples, attack, header | spoiled(good) | st.binary(max_size=100))


def test_a_header_that_promises_too_much(tmp_path):
    """Memory is asked for what is there."""
    path = tmp_path / "recording.flac"
    content = bytearray(audio("FLAC", "PCM_16", 1))
    content[22:26] = b"\xf0\x00\x00\x00"  # of the 36 bits that count the samples
    path.write_bytes(content)
    assert audio_length(path) > 10**9
    with bounded(memory=1 << 28), pytest.raises(AudioError, match=path.name):
        read_audio(path)
