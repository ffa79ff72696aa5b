"""The items of training and evaluation, found again in the files they come from."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import CHUNK_SECONDS, write_corpus
from speechbrain.dataio.dataloader import make_dataloader

from speechbrain_peer.data.dataset import evaluation_set, training_set
from speechbrain_peer.data.manifests import (
    read_listed_peers,
    read_manifest,
    write_manifest,
)
from speechbrain_peer.data.peers import check_pool
from speechbrain_peer.data.prepare import prepare_librimix
from speechbrain_peer.utils.audio import AudioError
from speechbrain_peer.utils.files import DataError

RATE = 8000
CHUNK = int(RATE * CHUNK_SECONDS)
BATCH_SIGNALS = ("mixture_sig", "target_sig", "enrollment_sig")
SIGNALS = (*BATCH_SIGNALS, "peer_sig")


def epoch_items(dataset, items, epoch):
    """All items of an epoch by ID, with the mixture of each branch by a name."""
    items.set_epoch(epoch)
    return {item["id"]: by_branch(item) for item in dataset}


def by_branch(item):
    mixtures, targets = item["mixture_sig"].T, item["target_sig"].T
    assert mixtures.shape == targets.shape
    assert all(torch.equal(target, targets[0]) for target in targets)
    item |= {"mixture_sig": mixtures[0], "target_sig": targets[0]}
    if len(mixtures) > 1:
        return item | {"peer_sig": mixtures[1]}
    assert item.pop("coin") == 0
    return item


def batches(dataset, items, epoch, **options):
    items.set_epoch(epoch)
    return list(make_dataloader(dataset, batch_size=5, **options))


def same_items(ones, others):
    return all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(others[name][key]))
        for name, item in ones.items()
        for key, value in item.items()
        if key != "id"
    )


def same_batches(ones, others):
    return all(
        one.id == other.id
        and torch.equal(one.coin, other.coin)
        and all(map(torch.equal, getattr(one, key), getattr(other, key)))
        for one, other in zip(ones, others, strict=True)
        for key in BATCH_SIGNALS
    )


def digest(items):
    """Of all signals and coins."""
    total = hashlib.sha256()
    for _, item in sorted(items.items()):
        for key in (*SIGNALS, "coin"):
            total.update(np.asarray(item[key]).tobytes())
    return total.hexdigest()


def place(segment, source):
    """The first sample of a segment in a source's file, or None if it is not there."""
    samples, _ = soundfile.read(source["path"], dtype="float32")
    segment = np.asarray(segment)
    for start in np.flatnonzero(samples == segment[0]):
        if np.array_equal(samples[start : start + len(segment)], segment):
            return int(start)
    return None


def holders(segment, sources):
    """The sources that hold a segment; zeros follow where a source is shorter."""
    segment = np.trim_zeros(np.asarray(segment), "b")
    return [source for source in sources if place(segment, source) is not None]


def all_sources(rows):
    return [
        source
        for row in rows.values()
        for source in (row["target"], *row["interferers"])
    ]


@pytest.mark.parametrize("peers", ["off", "listed", "drawn"])
def test_mixture_and_target_are_cut_at_one_place(make_set, peers):
    dataset, items = make_set(peers=peers)
    starts = set()
    for epoch in (1, 2):
        for item_id, item in epoch_items(dataset, items, epoch).items():
            row = dataset.data[item_id]
            start = place(item["target_sig"], row["target"])
            starts.add(start)
            segment = slice(start, start + len(item["target_sig"]))
            for signal, path in (
                (item["mixture_sig"], row["mixture"]),
                (
                    item["mixture_sig"] - item["target_sig"],
                    row["interferers"][0]["path"],
                ),
            ):
                samples, _ = soundfile.read(path, dtype="float32")
                # The mixture is rounded to 16 bits once more than its sources.
                np.testing.assert_allclose(signal, samples[segment], atol=2**-15)
    assert len(starts) > 6


@pytest.mark.parametrize("peer_interferer", ["any", "same"])
def test_the_second_peer_has_the_target_and_another_interferer(
    make_set, peer_interferer
):
    dataset, items = make_set(peers="drawn", peer_interferer=peer_interferer)
    sources = all_sources(dataset.data)
    for item_id, item in epoch_items(dataset, items, epoch=1).items():
        row = dataset.data[item_id]
        old, target = row["interferers"][0], row["target"]
        found = holders(item["peer_sig"] - item["target_sig"], sources)
        assert found
        for source in found:
            if peer_interferer == "any":
                assert source["speaker"] not in (target["speaker"], old["speaker"])
            else:
                assert source["speaker"] == old["speaker"]
                assert source["utterance"] != old["utterance"]


def test_listed_peers_stay_while_chunks_move(make_set, prepared):
    dataset, items = make_set(peers="listed")
    listed = read_listed_peers(prepared.peers, prepared.data_root)
    first, second = (epoch_items(dataset, items, epoch) for epoch in (1, 2))
    for epoch in (first, second):
        for item_id, item in epoch.items():
            rest = item["peer_sig"] - item["target_sig"]
            (interferers,) = listed[item_id]
            assert holders(rest, interferers) == interferers
    assert any(
        not torch.equal(first[item_id]["peer_sig"], second[item_id]["peer_sig"])
        for item_id in first
    )


def test_listed_peers_line_up_with_the_target(make_set, prepared):
    """As a mixture of whole utterances would have them, while both last."""
    dataset, items = make_set(peers="listed")
    listed = read_listed_peers(prepared.peers, prepared.data_root)
    lined_up = 0
    for item_id, item in epoch_items(dataset, items, epoch=1).items():
        ((source,),) = listed[item_id]
        rest = np.trim_zeros(np.asarray(item["peer_sig"] - item["target_sig"]), "b")
        start = place(item["target_sig"], dataset.data[item_id]["target"])
        end = source["length"] - len(item["target_sig"])
        assert place(rest, source) == min(start, max(0, end))
        lined_up += 0 < start <= end
    assert lined_up


def test_the_enrollment_is_another_utterance_of_the_target_speaker(make_set):
    dataset, items = make_set(peers="off")
    sources = all_sources(dataset.data)
    drawn = set()
    for epoch in (1, 2, 3):
        for item_id, item in epoch_items(dataset, items, epoch).items():
            target = dataset.data[item_id]["target"]
            for source in holders(item["enrollment_sig"], sources):
                assert source["speaker"] == target["speaker"]
                assert source["utterance"] != target["utterance"]
                drawn.add((item_id, source["utterance"]))
    assert len(drawn) > len(dataset)  # not always the same one


def test_draws_depend_on_seed_epoch_and_item_alone(make_set):
    dataset, items = make_set(peers="drawn")
    expected = epoch_items(dataset, items, epoch=3)
    other, others = make_set(peers="drawn")
    # A view of some of the items, in another order.
    some = other.filtered_sorted(sort_key="duration", reverse=True, select_n=7)
    assert same_items(epoch_items(some, others, epoch=3), expected)
    assert not same_items(epoch_items(dataset, items, epoch=4), expected)
    reseeded, reseeded_items = make_set(peers="drawn", seed=2)
    assert not same_items(epoch_items(reseeded, reseeded_items, epoch=3), expected)
    # Peers or not, and of whichever kind: the first mixtures are the same.
    single, single_items = make_set(peers="off")
    assert same_items(epoch_items(single, single_items, epoch=3), expected)


def test_items_are_the_same_in_another_process(make_set, prepared):
    script = (
        "import sys; from test_dataset import digest, epoch_items\n"
        "from speechbrain_peer.data.dataset import training_set\n"
        "made = training_set(*sys.argv[1:3], 0.6, 8000, 1, 'drawn')\n"
        "print(digest(epoch_items(*made, 2)))"
    )
    arguments = [prepared.manifests["train-100"], prepared.data_root]
    command = [sys.executable, "-c", script, *map(str, arguments)]
    printed = subprocess.check_output(command, text=True, cwd=Path(__file__).parent)
    assert printed.split()[-1] == digest(epoch_items(*make_set(peers="drawn"), 2))


def test_workers_read_the_same_items_and_learn_the_epoch(make_set):
    dataset, items = make_set(peers="drawn")
    expected = {epoch: batches(dataset, items, epoch) for epoch in (1, 2)}
    assert same_batches(batches(dataset, items, 1, num_workers=2), expected[1])
    loader = make_dataloader(
        dataset, batch_size=5, num_workers=2, persistent_workers=True
    )
    for epoch in (1, 2):  # the workers of epoch 1 read on in epoch 2
        items.set_epoch(epoch)
        assert same_batches(list(loader), expected[epoch])
    assert not same_batches(expected[1], expected[2])


def test_what_is_short_stays_short_and_the_batch_knows(make_set):
    dataset, items = make_set(peers="drawn")
    lengths = {k: min(row["length"], CHUNK) for k, row in dataset.data.items()}
    assert (
        min(lengths.values()) < CHUNK < max(r["length"] for r in dataset.data.values())
    )
    for batch in batches(dataset, items, epoch=1):
        for key in ("mixture_sig", "target_sig"):
            signals, lens = getattr(batch, key)
            assert signals.shape[-1] == 2
            samples = torch.round(lens * signals.shape[1]).int().tolist()
            assert samples == [lengths[item_id] for item_id in batch.id]
            for signal, length in zip(signals, samples, strict=True):
                assert signal[:length].any(0).all() and not signal[length:].any()
        assert batch.enrollment_sig.data.shape[1] <= CHUNK


@pytest.mark.parametrize("peers", ["listed", "drawn"])
def test_an_easier_peer_has_quieter_interferers_and_nothing_else(make_set, peers):
    usual = epoch_items(*make_set(peers=peers), epoch=2)
    easier = epoch_items(*make_set(peers=peers, peer_interferer="quieter"), epoch=2)
    for name, item in usual.items():
        target = item["target_sig"]
        interferer = item["peer_sig"] - target
        assert interferer.any()
        expected = target + 10**-0.5 * interferer
        assert torch.equal(easier[name]["peer_sig"], expected)
        easier[name]["peer_sig"] = item["peer_sig"]
    assert same_items(easier, usual)


def test_coins_are_fair(make_set):
    dataset, items = make_set(peers="drawn")
    coins = [
        item["coin"]
        for epoch in range(1, 13)
        for item in epoch_items(dataset, items, epoch).values()
    ]
    assert set(coins) == {0, 1}
    assert 0.35 < np.mean(coins) < 0.65


def test_without_peers_no_peer_is_read(make_set, prepared, tmp_path):
    rows = read_manifest(prepared.manifests["train-100"])
    speaker = next(iter(rows.values()))["target"]["speaker"]
    rows = {k: row for k, row in rows.items() if row["target"]["speaker"] == speaker}
    for row in rows.values():
        for source in row["interferers"]:
            source["path"] += " is gone.wav"
    write_manifest(tmp_path / "train.json", rows)
    single = epoch_items(*make_set(tmp_path / "train.json", peers="off"), 1)
    assert len(single) == 3
    with pytest.raises(AudioError, match=r"is gone\.wav: no such file"):
        epoch_items(
            *make_set(tmp_path / "train.json", peers="drawn", peer_interferer="same"), 1
        )


@pytest.mark.parametrize("peers", ["listed", "drawn"])
def test_more_than_two_peers_have_one_target_and_all_other_interferers(
    corpus, tmp_path, peers
):
    corpus = write_corpus(tmp_path, n_speakers=5, parts=["train-clean-100"])
    prepared = prepare_librimix(
        tmp_path / "out",
        **corpus._asdict(),
        subsets=["train-100"],
        peers=peers,
        n_peers=4,
    )
    dataset, _ = training_set(
        prepared.manifests["train-100"],
        prepared.data_root,
        CHUNK_SECONDS,
        RATE,
        seed=1,
        peers=peers,
        n_peers=4,
        listed_peers=prepared.peers,
    )
    sources, coins = all_sources(dataset.data), set()
    for item in dataset:
        row = dataset.data[item["id"]]
        speakers = {x["speaker"] for x in (row["target"], *row["interferers"])}
        for rest in (item["mixture_sig"] - item["target_sig"]).T[1:]:
            speakers |= {source["speaker"] for source in holders(rest, sources)}
        assert len(speakers) == 5
        coins.add(item["coin"])
    assert coins == {0, 1, 2, 3}
    with pytest.raises(DataError, match="5 peers need 6 speakers, the data has 5"):
        check_pool(dataset.data, peers, n_peers=5)


def test_evaluation_items_are_whole_with_fixed_enrollments(prepared):
    dataset = evaluation_set(prepared.manifests["test"], prepared.data_root, RATE)
    dataset.set_output_keys([*dataset.pipeline.output_mapping, "interferer_sigs"])
    for item in dataset:
        row = dataset.data[item["id"]]
        for key, path in (
            ("mixture_sig", row["mixture"]),
            ("target_sig", row["target"]["path"]),
            ("enrollment_sig", row["enrollment"]),
        ):
            samples, _ = soundfile.read(path, dtype="float32")
            assert np.array_equal(item[key], samples)
        assert item["interferer_sigs"].shape == (row["length"], 1)
        interferer, _ = soundfile.read(row["interferers"][0]["path"], dtype="float32")
        assert np.array_equal(item["interferer_sigs"][:, 0], interferer)


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """A corpus in mode `max` whose longest mixtures are many chunks long."""
    folder = tmp_path_factory.mktemp("padded")
    corpus = write_corpus(folder, seconds=(0.3, 6.0))
    return prepare_librimix(
        folder / "out", **corpus._asdict(), mode="max", targets="both", peers="listed"
    )


def test_sources_know_where_their_padding_begins(padded):
    for subset, manifest in padded.manifests.items():
        rows = read_manifest(manifest, padded.data_root)
        for row in rows.values():
            sources = [row["target"], *row["interferers"]]
            for source in sources:
                samples, _ = soundfile.read(source["path"])
                assert len(samples) == row["length"]
                assert len(np.trim_zeros(samples, "b")) == source["length"]
            assert max(source["length"] for source in sources) >= row["length"] - 1
            if subset != "train-100":
                samples, _ = soundfile.read(row["enrollment"])
                assert len(np.trim_zeros(samples, "b")) == row["enrollment_length"]
    items = evaluation_set(padded.manifests["dev"], padded.data_root, RATE)
    assert all(item["enrollment_sig"][-1] != 0 for item in items)


@pytest.mark.parametrize("peers", ["listed", "drawn"])
def test_no_chunk_is_cut_from_padding(padded, peers):
    dataset, items = training_set(
        padded.manifests["train-100"],
        padded.data_root,
        CHUNK_SECONDS,
        RATE,
        seed=1,
        peers=peers,
        listed_peers=padded.peers,
    )
    for epoch in (1, 2, 3):
        for item in epoch_items(dataset, items, epoch).values():
            interferer = np.asarray(item["peer_sig"] - item["target_sig"])
            for segment in (item["target_sig"], item["enrollment_sig"], interferer):
                # The made corpus has no pauses: only padding is silent for so long.
                speech = len(np.trim_zeros(np.asarray(segment), "b"))
                assert speech > 0.25 * RATE
            # An enrollment ends with its speech.
            assert item["enrollment_sig"][-1] != 0


def test_another_sample_rate_is_an_error_that_names_the_file(make_set, prepared):
    dataset = evaluation_set(prepared.manifests["dev"], prepared.data_root, 16000)
    with pytest.raises(AudioError, match=r"\.wav: its sample rate is 8000 Hz"):
        dataset[0]
