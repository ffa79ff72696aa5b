"""Mixtures drawn anew in every epoch, straight from speech."""

import json
import math
import pickle

import numpy as np
import pytest
import soundfile
import torch
from conftest import CHUNK_SECONDS
from speechbrain.dataio.dataloader import make_dataloader
from test_dataset import epoch_items, same_items

from speechbrain_peer.data.dataset import drawn_set, surrounded_set
from speechbrain_peer.data.drawn_items import MOST_BROKEN
from speechbrain_peer.data.mixing import Mixing
from speechbrain_peer.data.peers import item_rng
from speechbrain_peer.data.speech_table import (
    SpeechTable,
    Utterance,
    write_speech_table,
)
from speechbrain_peer.utils.files import DataError

RATE = 8000
TONES = {"ann": 300, "bob": 500, "cid": 700, "dan": 900, "eve": 1100}
CHUNK = round(RATE * CHUNK_SECONDS)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Tones of five speakers, three files each, of several rates and channels."""
    folder = tmp_path_factory.mktemp("voices")
    utterances = []
    for k, (speaker, pitch) in enumerate(TONES.items()):
        for n in range(3):
            rate = (8000, 16000, 22050)[n]
            time = np.arange(round((1.1 + 0.1 * k) * rate)) / rate
            # Apart in level, which their loudness makes up for.
            tone = 10 ** (-n / 20) * 0.1 * np.sin(2 * np.pi * pitch * time)
            if n == 1:
                tone = np.stack((tone, tone), axis=-1)
            path = folder / f"{speaker}-{n}.flac"
            soundfile.write(path, tone, rate)
            row = Utterance(str(path), speaker, path.stem, 0, len(time), rate, -20 - n)
            utterances.append(row)
    write_speech_table(folder / "train.arrow", utterances)
    return folder / "train.arrow"


@pytest.fixture
def make_drawn(table):
    """Makes a set of drawn items of the tones."""

    def make(seed=1, table=table, peers="drawn", n_peers=2, interferer="any", **mixing):
        settings = Mixing(**{"items_per_epoch": 24, **mixing})
        made = (table, CHUNK_SECONDS, RATE, seed, settings)
        return drawn_set(*made, peers, n_peers, interferer)

    return make


def tones(signal):
    """The speakers whose tone is in a signal, at a speed from 90 to 110 %."""
    spectrum = np.abs(np.fft.rfft(np.asarray(signal) * np.hanning(len(signal)), RATE))
    loud = np.flatnonzero(spectrum > 0.2 * spectrum.max())
    return {
        speaker
        for speaker, pitch in TONES.items()
        if ((loud > 0.88 * pitch) & (loud < 1.09 * pitch)).any()
    }


def test_all_parts_of_a_drawn_mixture_are_of_different_speakers(make_drawn):
    dataset, items = make_drawn()
    targets = set()
    for item in epoch_items(dataset, items, 1).values():
        target = item["target_sig"]
        parts = [tones(x) for x in (target, item["enrollment_sig"])]
        parts += [tones(item[key] - target) for key in ("mixture_sig", "peer_sig")]
        assert all(len(part) == 1 for part in parts)
        assert parts[0] == parts[1]
        assert len(set.union(*parts)) == 3
        assert items.drawer.pool.speakers[item["speaker"]] in parts[0]
        targets |= parts[0]
    assert targets == TONES.keys()


def test_draws_depend_on_seed_epoch_and_item_alone(make_drawn):
    options = {"speeds": [90, 110], "overlap": [0.0, 1.0]}
    expected = epoch_items(*make_drawn(**options), epoch=3)
    dataset, items = make_drawn(**options)
    some = dataset.filtered_sorted(sort_key="id", reverse=True, select_n=7)
    assert same_items(epoch_items(some, items, epoch=3), expected)
    assert not same_items(epoch_items(dataset, items, epoch=4), expected)
    reseeded = make_drawn(**options, seed=2)
    assert not same_items(epoch_items(*reseeded, epoch=3), expected)
    # Peers or not: the first mixtures are the same.
    assert same_items(epoch_items(*make_drawn(**options, peers="off"), 3), expected)


def test_workers_that_are_spawned_draw_the_same(make_drawn):
    dataset, items = make_drawn()
    items.set_epoch(2)
    options = {"batch_size": 6, "num_workers": 2}
    loader = make_dataloader(dataset, **options, multiprocessing_context="spawn")
    here = make_dataloader(dataset, batch_size=6)
    for one, other in zip(loader, here, strict=True):
        assert torch.equal(one.mixture_sig.data, other.mixture_sig.data)


def test_loudness_is_as_drawn_whatever_the_file_has(make_drawn):
    dataset, items = make_drawn(loudness=[-30, -30], n_interferers=[1])
    for item in epoch_items(dataset, items, 1).values():
        for signal in (item["target_sig"], item["mixture_sig"] - item["target_sig"]):
            # A tone of 0.1 was said to be of -20, that is, of -30 when 10 dB softer.
            middle = np.asarray(signal)[CHUNK // 4 : -CHUNK // 4]
            assert np.abs(middle).max() == pytest.approx(0.1 / 10**0.5, rel=0.05)


def test_speed_is_that_of_target_and_enrollment(make_drawn):
    dataset, items = make_drawn(speeds=[90, 110])
    shifts = set()
    for item in epoch_items(dataset, items, 1).values():
        peaks = [
            np.abs(np.fft.rfft(item[key], RATE)).argmax()
            for key in ("target_sig", "enrollment_sig")
        ]
        assert abs(peaks[0] - peaks[1]) <= 4
        pitch = TONES[items.drawer.pool.speakers[item["speaker"]]]
        shifts.add(round(peaks[0] / pitch, 1))
    assert shifts == {0.9, 1.1}


@pytest.mark.parametrize("overlap", [0.0, 0.5, 1.0])
def test_talk_overlaps_by_the_share_drawn(make_drawn, overlap):
    dataset, items = make_drawn(overlap=[overlap, overlap], n_interferers=[2])
    first = set()
    for item in epoch_items(dataset, items, 1).values():
        target = np.asarray(item["target_sig"])
        assert len(target) <= CHUNK
        rest = np.asarray(item["mixture_sig"]) - target
        talks, others = np.abs(target) > 1e-4, np.abs(rest) > 1e-4
        # Tones pass through zero.
        talks, others = (np.flatnonzero(x) for x in (talks, others))
        shared = min(talks[-1], others[-1]) - max(talks[0], others[0]) + 1
        length = talks[-1] - talks[0] + 1
        assert shared / length == pytest.approx(overlap, abs=0.02)
        first.add(bool(talks[0] < others[0]))
        assert len(tones(rest)) == 2
    assert overlap == 1.0 or first == {True, False}


def test_an_absent_talker_is_in_no_branch_and_the_target_is_silent(make_drawn):
    dataset, items = make_drawn(absent=0.5, n_peers=3)
    absent = 0
    items.set_epoch(1)
    for item in dataset:
        enrolled = tones(item["enrollment_sig"])
        assert enrolled == {items.drawer.pool.speakers[item["speaker"]]}
        heard = [tones(mixture) for mixture in item["mixture_sig"].T]
        if item["target_sig"].any():
            assert all(enrolled < talkers for talkers in heard)
        else:
            absent += 1
            assert not any(enrolled & talkers for talkers in heard)
    assert 6 <= absent <= 18


def test_all_peers_have_one_target_and_other_interferers(make_drawn):
    dataset, items = make_drawn(n_peers=4)
    items.set_epoch(1)
    for item in dataset:
        assert item["mixture_sig"].shape[1] == 4
        rests = (item["mixture_sig"] - item["target_sig"]).T
        assert len(set.union(*map(tones, rests))) == 4


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """A room of three microphones: delays and levels of its own at each position."""
    folder = tmp_path_factory.mktemp("rooms")
    (folder / "office").mkdir()
    for k in range(8):
        response = np.zeros((1200, 3))
        for microphone in range(3):
            response[100 + 7 * k * microphone, microphone] = 0.5 / (1 + microphone)
            response[900, microphone] = 0.03
        soundfile.write(folder / f"office/{k}.wav", response, RATE, "FLOAT")
    return folder


def test_peers_are_the_microphones_of_a_room(make_drawn, rooms):
    dataset, items = make_drawn(
        peers="microphones",
        n_peers=3,
        rooms_folder=str(rooms),
        target_sound="direct",
        loudness=[-30, -30],
    )
    items.set_epoch(1)
    delays = set()
    for item in dataset:
        mixtures, targets = item["mixture_sig"], item["target_sig"]
        assert mixtures.shape == targets.shape == (len(mixtures), 3)
        levels = targets.square().mean(0).sqrt()
        assert levels.sort().values / levels.max() == pytest.approx(
            [1 / 3, 1 / 2, 1], rel=0.05
        )
        # All hear the same talkers.
        assert len({frozenset(tones(mixture)) for mixture in mixtures.T}) == 1
        # The target at the same time, the interferer sooner or later.
        middle = slice(200, -200)
        assert torch.corrcoef(targets[middle].T).min() > 0.999
        interferers = torch.corrcoef((mixtures - targets)[middle].T)
        delays.add(round(float(interferers.min()), 2))
    assert len(delays) > 4


@pytest.fixture
def dev_manifest(tmp_path):
    """One listed mixture of two tones, a second long, in a manifest of dev."""
    sources = {}
    for name, pitch in (("s1", 300), ("s2", 700), ("mix", 0), ("enrollment", 320)):
        tone = 0.2 * np.sin(2 * np.pi * pitch * np.arange(RATE) / RATE)
        sources[name] = str(tmp_path / f"{name}.wav")
        soundfile.write(sources[name], tone, RATE)
    source = {"speaker": "", "utterance": "", "length": RATE}
    row = {
        "mixture_id": "mix",
        "duration": 1.0,
        "length": RATE,
        "mixture": sources["mix"],
        "target": {"path": sources["s1"], **source},
        "interferers": [{"path": sources["s2"], **source}],
        "enrollment": sources["enrollment"],
        "enrollment_length": RATE,
    }
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({f"mix_s{k}": row for k in range(4)}))
    return path


def test_validation_hears_what_training_hears(dev_manifest, rooms):
    def read(seed=1, **mixing):
        made = surrounded_set(dev_manifest, "", RATE, Mixing(**mixing), seed)
        return list(made)

    dry = read()
    assert not dry[0]["mixture_sig"].any()  # the listed file
    items = read(rooms_folder=str(rooms), target_sound="direct")
    for item in items:
        assert item["mixture_sig"].shape == item["target_sig"].shape == (RATE,)
        # Responses have unit energy: what is not direct sound comes after 0.1 s.
        correlation = torch.corrcoef(
            torch.stack((item["target_sig"], dry[0]["target_sig"]))
        )
        assert correlation[0, 1] > 0.999
        late = item["mixture_sig"] - item["target_sig"]
        assert late[: RATE // 10].std() > 0.05 and late.std() > 0.05
        assert not torch.equal(item["enrollment_sig"], dry[0]["enrollment_sig"])
    again = read(rooms_folder=str(rooms), target_sound="direct")
    for item, same in zip(items, again, strict=True):
        assert torch.equal(item["mixture_sig"], same["mixture_sig"])
    others = {tuple(item["mixture_sig"][::100].tolist()) for item in items}
    others |= {
        tuple(item["mixture_sig"][::100].tolist())
        for item in read(2, rooms_folder=str(rooms), target_sound="direct")
    }
    assert len(others) > 4


def test_in_a_room_peers_share_target_and_microphone(make_drawn, rooms):
    dataset, items = make_drawn(rooms_folder=str(rooms), reverberant=0.5)
    heard = 0
    for item in epoch_items(dataset, items, 1).values():
        # The echo after 0.1 s is too late to be wanted.
        late = item["mixture_sig"] - item["target_sig"]
        heard += bool(late[: CHUNK // 8].any() and tones(late) >= set())
        assert tones(item["target_sig"]) == tones(item["enrollment_sig"])
    assert heard == 24
    # More talkers than places: those of one branch have different ones.
    dataset, items = make_drawn(
        n_peers=4, n_interferers=[1], rooms_folder=str(rooms), reverberant=1.0
    )
    items.drawer.surroundings.rooms.most_talkers = 3
    assert dataset[0]["mixture_sig"].shape[1] == 4
    items.drawer.mixing.n_interferers = [8]
    with pytest.raises(DataError, match="no room has responses from 9 positions"):
        items.drawer._check()
    dataset, _ = make_drawn(peers="microphones", n_peers=4, rooms_folder=str(rooms))
    with pytest.raises(DataError, match=r"4 peers need as many microphones.* has 3"):
        dataset[0]


def test_noise_is_at_the_snr_drawn_in_each_branch(make_drawn, tmp_path):
    noise = np.random.default_rng(0).normal(size=RATE * 3)
    soundfile.write(tmp_path / "rain.wav", 0.1 * noise, RATE)
    noisy = epoch_items(*make_drawn(noise_folder=str(tmp_path), snr=[6, 6]), 1)
    # Noise is drawn last, so that all else is the same.
    for item_id, quiet in epoch_items(*make_drawn(), 1).items():
        item = noisy[item_id]
        added = [item[key] - quiet[key] for key in ("mixture_sig", "peer_sig")]
        power = quiet["target_sig"].square().mean()
        for noise in added:
            snr = 10 * torch.log10(power / noise.square().mean())
            assert snr == pytest.approx(6, abs=0.3)
        assert not torch.equal(*added)
        assert torch.equal(item["target_sig"], quiet["target_sig"])
        assert not torch.equal(item["enrollment_sig"], quiet["enrollment_sig"])


def test_peers_may_have_the_same_interferers_in_other_utterances(make_drawn):
    _, items = make_drawn(interferer="same", n_interferers=[2], n_peers=3)
    for seed in range(20):
        scene = items.drawer.draw(item_rng(seed, 1, "x"))
        first, *others = scene.interferers
        for talks in others:
            for one, other in zip(first, talks, strict=True):
                assert one.utterance.speaker == other.utterance.speaker
                assert one.utterance.utterance != other.utterance.utterance


def test_an_easier_peer_has_quieter_interferers_and_nothing_else(make_drawn):
    usual, easier = (
        make_drawn(n_peers=3, n_interferers=[1], interferer=interferer)[1]
        for interferer in ("any", "quieter")
    )
    for k in range(8):
        mixtures, targets, *others = usual.read(f"item_{k}")
        quieter, same_targets, *same_others = easier.read(f"item_{k}")
        factors = torch.tensor([1.0, 10**-0.5, 10**-0.5])
        torch.testing.assert_close(
            quieter - targets, factors * (mixtures - targets), rtol=0, atol=1e-6
        )
        same = zip((targets, *others), (same_targets, *same_others), strict=True)
        for one, other in same:
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_mixtures_do_not_clip(make_drawn):
    dataset, items = make_drawn(loudness=[0, 0], n_interferers=[3], peers="off")
    for item in epoch_items(dataset, items, 1).values():
        assert item["mixture_sig"].abs().max() == pytest.approx(0.9, abs=1e-4)


def test_speakers_or_utterances_are_equally_likely(tmp_path):
    rows = [
        Utterance("x.wav", speaker, f"{speaker}-{n}", n, 1, 8000, math.nan)
        for speaker, count in (("ann", 900), ("bob", 100))
        for n in range(count)
    ]
    write_speech_table(tmp_path / "t.arrow", rows)
    rng = np.random.default_rng(0)
    for balance, share in (("utterances", 0.9), ("speakers", 0.5)):
        pool = drawn_set(
            tmp_path / "t.arrow", 1, 8000, 1, Mixing(balance=balance), "off"
        )[1].drawer.pool
        drawn = [pool.draw_target(rng)[2] for _ in range(1000)]
        assert drawn.count(0) / 1000 == pytest.approx(share, abs=0.05)


def test_corpora_are_drawn_by_weight(table, tmp_path):
    rows = [
        Utterance("x.wav", name, f"{name}-{n}", n, 1, 8000, math.nan)
        for name in ("ann", "fay")
        for n in range(100)
    ]
    write_speech_table(tmp_path / "t.arrow", rows)
    weights = {table: 3, tmp_path / "t.arrow": 1}
    items = drawn_set(weights, 1, 8000, 1, Mixing(), "off")[1]
    pool, rng = items.drawer.pool, np.random.default_rng(0)
    # The second corpus's ann is another person.
    assert pool.n_speakers == items.n_speakers == 7
    drawn = [pool.draw_target(rng)[2] for _ in range(1000)]
    assert np.mean(np.array(drawn) >= 5) == pytest.approx(0.25, abs=0.04)
    assert set(drawn) == set(range(7))


def test_a_table_draws_other_utterances_of_the_speaker(table):
    speech, rng = SpeechTable(table), np.random.default_rng(0)
    for index in range(len(speech)):
        drawn = {speech.others(index, rng) for _ in range(60)}
        assert index not in drawn and len(drawn) == 2
        assert {speech[other].speaker for other in drawn} == {speech[index].speaker}
    copy = pickle.loads(pickle.dumps(speech))
    assert copy[3] == speech[3]


def test_files_of_one_utterance_are_not_others(tmp_path):
    """As the sources of several mixtures are."""
    rows = [
        Utterance(f"{k}.wav", "ann", name, 0, 1, 8000, math.nan)
        for k, name in enumerate(["a", "a", "b"])
    ] + [Utterance("x.wav", "bob", "b", 0, 1, 8000, math.nan)]
    write_speech_table(tmp_path / "t.arrow", rows)
    speech, rng = SpeechTable(tmp_path / "t.arrow"), np.random.default_rng(0)
    assert {speech.others(0, rng) for _ in range(9)} == {2}
    assert {speech.others(2, rng) for _ in range(30)} == {0, 1}
    assert speech.others(3, rng) is None
    assert speech.single_speakers() == ["bob"]


def test_a_broken_file_is_told_and_another_item_drawn(table, tmp_path, caplog):
    speech = SpeechTable(table)
    rows = [speech[k] for k in range(len(speech))]
    (tmp_path / "broken.flac").write_bytes(b"fLaC")
    rows[4] = rows[4]._replace(path=str(tmp_path / "broken.flac"))
    write_speech_table(tmp_path / "t.arrow", rows)
    make = (tmp_path / "t.arrow", CHUNK_SECONDS, RATE, 1)
    dataset, items = drawn_set(*make, Mixing(items_per_epoch=24))
    with caplog.at_level("WARNING"):
        first = epoch_items(dataset, items, 1)
    assert caplog.text.count("items with it are drawn anew") == 1
    assert "broken.flac: cannot be read" in caplog.text
    assert all(item["mixture_sig"].any() for item in first.values())
    assert same_items(epoch_items(dataset, items, 1), first)
    items.broken = set(map(str, range(MOST_BROKEN)))
    with pytest.raises(DataError, match=r"broken\.flac.*prepare the data again"):
        epoch_items(dataset, items, 1)


def test_files_may_lie_where_fsspec_reads(table, tmp_path):
    import fsspec

    speech = SpeechTable(table)
    rows = []
    for index in range(len(speech)):
        with open(speech[index].path, "rb") as file:
            fsspec.filesystem("memory").pipe(f"/voices/{index}.flac", file.read())
        rows.append(speech[index]._replace(path=f"memory://voices/{index}.flac"))
    write_speech_table(tmp_path / "t.arrow", rows)
    made = [
        epoch_items(*drawn_set(x, 0.6, RATE, 1, Mixing(items_per_epoch=4)), 1)
        for x in (table, tmp_path / "t.arrow")
    ]
    # Its rows are sorted alike.
    assert same_items(*made)


def test_what_cannot_be_drawn_is_told(make_drawn, table, tmp_path):
    with pytest.raises(DataError, match="give --peers drawn"):
        make_drawn(peers="listed")
    with pytest.raises(DataError, match="confusable peers are of listed mixtures"):
        make_drawn(interferer="confusable")
    with pytest.raises(DataError, match=r"7 speakers are needed .* there are 5"):
        make_drawn(n_interferers=[1, 3])
    with pytest.raises(DataError, match="microphones needs rooms"):
        make_drawn(peers="microphones")
    for content in (b"", b"ARROW1", table.read_bytes()[:-9]):
        (tmp_path / "t.arrow").write_bytes(content)
        with pytest.raises(DataError, match=r"t\.arrow: cannot be read as a table"):
            SpeechTable(tmp_path / "t.arrow")
    with pytest.raises(DataError, match="no such file"):
        SpeechTable(tmp_path / "absent.arrow")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap": [0.5, 2]}, "overlap is 2, not from 0 to 1"),
        ({"overlap": 0.5}, "overlap is 0.5, not a range"),
        ({"loudness": [-25, -33]}, "end -33 is before -25"),
        ({"speeds": []}, "speeds is not a list of whole numbers"),
        ({"n_interferers": 1}, "n_interferers is not a list"),
        ({"n_interferers": [0]}, "n_interferers is 0, not from 1 to 5"),
        ({"absent": True}, "absent is True, not a number"),
        ({"balance": "all"}, "balance is 'all', not utterances or speakers"),
        ({"items_per_epoch": 0}, "items_per_epoch is 0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(DataError, match=message):
        Mixing(**settings)


def test_a_million_utterances_open_at_once(tmp_path):
    """Nothing is read but what is drawn: see docs for the figures."""
    rows = (
        Utterance(f"{k:06}.flac", f"{k // 50}", f"{k}", 0, 16000, 16000, -25.0)
        for k in range(20_000)
    )
    write_speech_table(tmp_path / "t.arrow", rows)
    speech = SpeechTable(tmp_path / "t.arrow")
    index = item_rng(1, 1, "x").integers(len(speech))
    assert speech[index].speaker == speech.speakers[speech.speaker_of(index)]
