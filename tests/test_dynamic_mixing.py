"""Mixtures drawn anew from all sources, at other speeds."""

import numpy as np
import pytest
import torch
from test_dataset import all_sources, epoch_items, holders, same_items

from speechbrain_peer.data.dynamic_mixing import change_speed


def test_all_parts_of_a_drawn_mixture_are_of_different_speakers(make_set):
    dataset, items = make_set(peers="drawn", mixtures="drawn")
    sources, targets = all_sources(dataset.data), set()
    for epoch in (1, 2):
        for item in epoch_items(dataset, items, epoch).values():
            found = [
                holders(signal, sources)
                for signal in (
                    item["target_sig"],
                    item["mixture_sig"] - item["target_sig"],
                    item["peer_sig"] - item["target_sig"],
                    item["enrollment_sig"],
                )
            ]
            (target,), (first,), (second,), (enrollment,) = (
                {source["speaker"] for source in part} for part in found
            )
            assert len({target, first, second}) == 3
            assert enrollment == target
            utterance = found[0][0]["utterance"]
            assert utterance not in {source["utterance"] for source in found[3]}
            targets.add(utterance)
    # Any utterance may be a target; a listed one has its own.
    assert len(targets) > 6


def test_draws_depend_on_seed_epoch_and_item_alone(make_set):
    options = {"peers": "drawn", "mixtures": "drawn", "speeds": [90, 110]}
    expected = epoch_items(*make_set(**options), epoch=3)
    dataset, items = make_set(**options)
    some = dataset.filtered_sorted(sort_key="duration", reverse=True, select_n=7)
    assert same_items(epoch_items(some, items, epoch=3), expected)
    assert not same_items(epoch_items(dataset, items, epoch=4), expected)
    reseeded = make_set(**options, seed=2)
    assert not same_items(epoch_items(*reseeded, epoch=3), expected)


def peak_frequency(signal):
    """The pitch of a tone, in Hz; the made speakers have 300, 500, 700 and 900."""
    spectrum = np.abs(np.fft.rfft(signal, 8000))
    return int(spectrum.argmax())


def test_target_and_enrollment_have_one_speed_and_interferers_their_own(make_set):
    dataset, items = make_set(peers="drawn", mixtures="drawn", speeds=[90, 110])
    pitches = {round(tone * s) for tone in (300, 500, 700, 900) for s in (0.9, 1.1)}
    seen = set()
    for item in epoch_items(dataset, items, epoch=1).values():
        target = item["target_sig"]
        pitch = peak_frequency(target)
        assert abs(peak_frequency(item["enrollment_sig"]) - pitch) <= 4
        rest = peak_frequency(item["mixture_sig"] - target)
        assert min(abs(rest - expected) for expected in pitches) <= 4
        seen.add((pitch % 100 > 50, rest % 100 > 50))
    assert len(seen) > 1


def test_a_change_of_speed_moves_the_pitch():
    tone = np.sin(2 * np.pi * 500 * np.arange(8000) / 8000).astype("float32")
    fast = change_speed(tone, 125)
    assert len(fast) == 6400
    assert fast.dtype == np.float32
    assert peak_frequency(fast) == 625


def test_drawn_mixtures_need_drawn_peers(make_set):
    with pytest.raises(ValueError, match="give --peers drawn"):
        make_set(peers="listed", mixtures="drawn")
    with pytest.raises(ValueError, match="choose listed or drawn"):
        make_set(mixtures="some")


def test_single_mixtures_are_those_of_the_pairs(make_set):
    single = epoch_items(*make_set(peers="off", mixtures="drawn"), epoch=1)
    pairs = epoch_items(*make_set(peers="drawn", mixtures="drawn"), epoch=1)
    for item_id, item in single.items():
        assert torch.equal(item["mixture_sig"], pairs[item_id]["mixture_sig"])
