"""Draws depend on (seed, epoch, item) alone and keep to their speakers."""

import subprocess
import sys
from collections import Counter

import pytest
from conftest import write_corpus

from speechbrain_peer.data.manifests import read_listed_peers, read_manifest
from speechbrain_peer.data.peers import (
    SourcePool,
    check_pool,
    draw_listed_peers,
    item_rng,
)
from speechbrain_peer.data.prepare import prepare_librimix
from speechbrain_peer.utils.files import DataError


@pytest.fixture(scope="module")
def rows(prepared):
    return read_manifest(prepared.manifests["train-100"], prepared.data_root)


def draws(rows, seed, epoch):
    """Everything that is drawn for all items in one epoch."""
    pool = SourcePool(rows)
    drawn = {}
    for item_id, row in rows.items():
        rng = item_rng(seed, epoch, item_id)
        drawn[item_id] = [pool.draw_enrollment(row, rng)["path"]]
        for kind in ("any", "same"):
            peers = pool.draw_peers(row, rng, 3, kind)
            drawn[item_id] += [source["path"] for peer in peers for source in peer]
    return drawn


def test_draws_are_a_function_of_seed_epoch_and_item(rows):
    backwards = dict(reversed(rows.items()))
    assert draws(rows, 1, 1) == draws(backwards, 1, 1)
    assert draws(rows, 1, 1) != draws(rows, 1, 2)
    assert draws(rows, 1, 1) != draws(rows, 2, 1)


def test_generator_is_the_same_in_another_process():
    script = (
        "from speechbrain_peer.data.peers import item_rng;"
        "print(item_rng(7, 3, 'a_b_s1').integers(10**9))"
    )
    other = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert int(other) == item_rng(7, 3, "a_b_s1").integers(10**9)


def test_enrollment_is_any_other_utterance_of_the_target_speaker(rows):
    pool = SourcePool(rows)
    item_id, row = next(iter(rows.items()))
    drawn = Counter(
        pool.draw_enrollment(row, item_rng(1, epoch, item_id))["utterance"]
        for epoch in range(400)
    )
    others = set(pool.utterances[row["target"]["speaker"]]) - {
        row["target"]["utterance"]
    }
    assert drawn.keys() == others
    assert min(drawn.values()) > 0.8 * 400 / len(others)


@pytest.mark.parametrize("n_sources", [2, 3])
def test_interferers_keep_to_the_rule(tmp_path, n_sources):
    corpus = write_corpus(tmp_path, n_sources, n_speakers=6, parts=["train-clean-100"])
    prepared = prepare_librimix(
        tmp_path / "out", **corpus._asdict(), subsets=["train-100"], targets="both"
    )
    rows = read_manifest(prepared.manifests["train-100"])
    pool = SourcePool(rows)
    for item_id, row in rows.items():
        listed = [source["speaker"] for source in row["interferers"]]
        rng = item_rng(1, 1, item_id)
        (drawn,) = pool.draw_peers(row, rng)
        drawn = [source["speaker"] for source in drawn]
        assert len(drawn) == n_sources - 1
        assert len({row["target"]["speaker"], *listed, *drawn}) == 2 * n_sources - 1
        (same,) = pool.draw_peers(row, rng, peer_interferer="same")
        assert [source["speaker"] for source in same] == listed
        for source, old in zip(same, row["interferers"], strict=True):
            assert source["utterance"] != old["utterance"]


def test_listed_peers_are_drawn_once_with_the_seed(prepared):
    rows = read_manifest(prepared.manifests["train-100"])
    listed = read_listed_peers(prepared.peers)
    assert listed == draw_listed_peers(rows, 1234)
    assert listed != draw_listed_peers(rows, 1)
    resolved = read_listed_peers(prepared.peers, prepared.data_root)
    sources = SourcePool(
        read_manifest(prepared.manifests["train-100"], prepared.data_root)
    ).sources
    assert all(
        x in sources for peers in resolved.values() for peer in peers for x in peer
    )


def without_other_utterances(rows, speaker):
    """Only the first row with this speaker is left of its rows."""
    with_speaker = [item_id for item_id in rows if f"{speaker}-" in item_id]
    return {k: row for k, row in rows.items() if k not in with_speaker[1:]}


def test_speakers_with_a_single_utterance_are_listed(rows):
    speaker = next(iter(rows.values()))["target"]["speaker"]
    single = without_other_utterances(rows, speaker)
    with pytest.raises(DataError, match=f"single utterance: .*{speaker}.*add rec"):
        check_pool(single)
    item_id, row = next(
        (k, r) for k, r in single.items() if r["target"]["speaker"] == speaker
    )
    with pytest.raises(DataError, match=f"single utterance: {speaker}"):
        SourcePool(single).draw_enrollment(row, item_rng(1, 1, item_id))


def test_pool_is_checked_for_the_peers_in_use(rows):
    row = next(iter(rows.values()))
    two_speakers = [row["target"]["speaker"], row["interferers"][0]["speaker"]]
    few = {
        k: r
        for k, r in rows.items()
        if {r["target"]["speaker"], r["interferers"][0]["speaker"]} == set(two_speakers)
    }
    check_pool(few)
    check_pool(few, "drawn", "same")
    with pytest.raises(DataError, match="need 3 speakers, the data has 2"):
        check_pool(few, "drawn", "any")
    with pytest.raises(DataError, match="add speakers"):
        draw_listed_peers(few, 1, "any")
    one = dict([next(iter(few.items()))])
    with pytest.raises(DataError, match=f"{two_speakers[1]}"):
        check_pool(one, "listed", "same")
