"""Voices of training speakers, and peers whose interferers sound like the target."""

import os
from collections import Counter

import numpy as np
import pytest

from speechbrain_peer.data.manifests import read_manifest
from speechbrain_peer.data.peers import SourcePool, item_rng
from speechbrain_peer.data.prepare import prepare_librimix
from speechbrain_peer.data.speaker_voices import (
    SpeakerVoices,
    read_speaker_voices,
    write_speaker_voices,
)
from speechbrain_peer.training import speaker_voices
from speechbrain_peer.training.speaker_voices import embed_speakers
from speechbrain_peer.utils.files import DataError

NAMES = [f"speaker-{k:02}" for k in range(16)]


@pytest.fixture
def voices():
    """In a row, so that the nearest of the first are the next ones."""
    return SpeakerVoices(NAMES, np.arange(16.0)[:, None])


def pool_of(voices):
    """A pool of two utterances of each speaker, and a row of the first two."""

    def source(name, n):
        path = f"{name}-{n}.wav"
        return {"path": path, "speaker": name, "utterance": path, "length": 1}

    rows = {
        f"item-{n}": {
            "target": source(NAMES[0], n),
            "interferers": [source(name, n) for name in NAMES[1:]],
        }
        for n in range(2)
    }
    row = {"target": source(NAMES[0], 0), "interferers": [source(NAMES[1], 0)]}
    return SourcePool(rows, voices), row


def test_the_nearest_are_those_beside(voices):
    assert voices.nearest(NAMES[0], {NAMES[0]}) == NAMES[1:11]
    assert voices.nearest(NAMES[0], {NAMES[0], NAMES[2]}, 2) == [NAMES[1], NAMES[3]]
    assert voices.nearest(NAMES[15], {*NAMES[1:]}) == NAMES[:1]


def test_confusable_interferers_are_the_nearest_who_are_not_in_the_item(voices):
    pool, row = pool_of(voices)
    drawn = Counter()
    for epoch in range(300):
        rng = item_rng(1, epoch, "a")
        peers = list(pool.draw_peers(row, rng, 3, "confusable"))
        speakers = [source["speaker"] for peer in peers for source in peer]
        assert len(set(speakers)) == 2
        drawn.update(speakers[:1])
    # The second is in the listed mixture.
    assert drawn.keys() == {*NAMES[2:12]}
    assert min(drawn.values()) > 0.5 * 300 / 10
    again = pool.draw_peers(row, item_rng(1, 299, "a"), 3, "confusable")
    assert list(again) == peers


def test_voices_that_cannot_be_read_are_made_anew(tmp_path):
    path = tmp_path / "voices.npz"
    assert read_speaker_voices(path, "mark") is None
    write_speaker_voices(path, NAMES, np.random.default_rng(0).random((16, 3)), "mark")
    assert read_speaker_voices(path, "mark").speakers == NAMES
    assert read_speaker_voices(path, "another") is None
    whole = path.read_bytes()
    for content in (b"", whole[:-30], whole[: len(whole) // 2], b"voices"):
        path.write_bytes(content)
        assert read_speaker_voices(path, "mark") is None


class Touch:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_of_voices_runs_no_code(tmp_path):
    path, made = tmp_path / "voices.npz", tmp_path / "made"
    harmful = np.array([Touch(made)], dtype=object)
    np.savez(path, speakers=harmful, vectors=harmful, mark="mark")
    assert read_speaker_voices(path, "mark") is None
    assert not made.exists()


def test_speakers_are_embedded_once(corpus, tmp_path, monkeypatch):
    prepared = prepare_librimix(
        tmp_path, **corpus._asdict(), subsets=["train-100"], peers="drawn"
    )
    manifest = prepared.manifests["train-100"]
    voices = embed_speakers(manifest, prepared.data_root)
    rows = read_manifest(manifest, prepared.data_root).values()
    speakers = {
        x["speaker"] for row in rows for x in (row["target"], *row["interferers"])
    }
    assert {*voices.speakers} == speakers
    with np.load(manifest.replace(".json", "_voices.npz")) as arrays:
        assert arrays["vectors"].dtype == np.float16
        assert np.ptp(arrays["vectors"].astype(float), axis=0).max() > 0.01
    with monkeypatch.context() as patch:
        patch.setattr(speaker_voices, "_embed", None)
        again = embed_speakers(manifest, prepared.data_root)
    near, same = (x.nearest(x.speakers[0], set()) for x in (voices, again))
    assert near == same and near[0] == voices.speakers[0]
    # Of other utterances they are others.
    monkeypatch.setattr(speaker_voices, "MOST_UTTERANCES", 1)
    monkeypatch.setattr(speaker_voices, "_embed", lambda *_: np.ones(3))
    assert embed_speakers(manifest, prepared.data_root).speakers == voices.speakers
    with np.load(manifest.replace(".json", "_voices.npz")) as arrays:
        assert arrays["vectors"].shape == (len(speakers), 3)


def test_confusable_peers_cannot_be_listed(corpus, tmp_path):
    with pytest.raises(DataError, match="confusable peers are drawn while training"):
        prepare_librimix(
            tmp_path,
            **corpus._asdict(),
            peers="listed",
            peer_interferer="confusable",
        )
