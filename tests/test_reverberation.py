"""Rooms: responses are read, drawn and convolved as the physics has it."""

import numpy as np
import pytest
import soundfile
from test_docs import ROOT, blocks

from speechbrain_peer.data.rooms import (
    RoomFolder,
    direct,
    direct_taps,
    early,
    reverberate,
)
from speechbrain_peer.utils.audio import AudioError
from speechbrain_peer.utils.files import DataError

RATE = 8000


def rng(seed=0):
    return np.random.default_rng(seed)


def write(path, samples, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def tone_burst(delay, rate, seconds=0.5):
    """A band-limited response: its peak comes after so many seconds."""
    time = np.arange(round(seconds * rate)) / rate - delay
    return np.sinc(2 * 2000 * time) * np.exp(-np.square(time / 0.002))


def response(delays, decay=0.1, seed=0):
    """(taps, microphones): direct sounds after delays in samples, then noise."""
    taps = 3000
    tail = 0.1 * rng(seed).standard_normal((taps, len(delays)))
    tail *= np.exp(-np.arange(taps) / (decay * RATE))[:, None]
    for microphone, delay in enumerate(delays):
        tail[:delay, microphone] = 0
        tail[delay, microphone] = 1
    return tail.astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tap", [0, 3, 99])
def test_a_delta_changes_nothing(dtype, tap):
    speech = rng().standard_normal(5000).astype(dtype)
    delta = np.eye(100)[tap][:, None]
    heard = reverberate(speech, delta)
    assert heard.dtype == dtype and heard.shape == (5000, 1)
    np.testing.assert_allclose(heard[:, 0], speech, atol=1e-5)


def test_the_convolution_is_the_one_by_hand():
    speech, delays = rng().standard_normal(4000), (20, 5, 60)
    room = response(delays)
    heard = reverberate(speech, room)
    for microphone in range(3):
        by_hand = np.convolve(speech, room[:, microphone])[20 : 20 + 4000]
        np.testing.assert_allclose(heard[:, microphone], by_hand, atol=1e-5)


def test_microphones_hear_later_or_sooner_than_the_first():
    speech = rng().standard_normal(4000)
    heard = reverberate(speech, direct(response((20, 5, 60)), RATE))
    for microphone, lag in enumerate((0, -15, 40)):
        correlation = np.correlate(heard[:, microphone], speech, "full")
        assert correlation.argmax() - 3999 == lag


def test_early_and_late_make_the_whole():
    speech, room = rng().standard_normal(4000), response((20, 5, 60))
    first = early(room, RATE)
    late = room.copy()
    late[: len(first)] -= first
    ends = np.array([20, 5, 60]) + 400  # 50 ms
    for microphone, end in enumerate(ends):
        assert not first[end:, microphone].any() and first[end - 1, microphone]
        assert not late[:end, microphone].any() and late[end, microphone]
    start = direct_taps(room)[0]
    late_heard = np.stack([np.convolve(speech, tail) for tail in late.T], axis=1)
    np.testing.assert_allclose(
        reverberate(speech, first) + late_heard[start : start + 4000],
        reverberate(speech, room),
        atol=1e-5,
    )


def test_targets_line_up_with_what_is_heard():
    for seed in range(20):
        room = response((20, 5, 60), seed=seed)
        expected = direct_taps(room)
        assert expected.tolist() == [20, 5, 60]
        for shorter in (early(room, RATE), direct(room, RATE)):
            np.testing.assert_array_equal(direct_taps(shorter), expected)


def test_draws_are_of_one_room_and_of_different_places(tmp_path):
    for room, talkers in (("a", 2), ("b/c", 4), ("b/d", 6)):
        for talker in range(talkers):
            write(tmp_path / room / f"{talker}.wav", response((20, 30)))
    write(tmp_path / "hall.wav", response((20, 30, 40, 50)))
    rooms, generator = RoomFolder(tmp_path, RATE), rng()
    for n_talkers, expected in (
        (1, {"a", "b/c", "b/d", "."}),
        (2, {"a", "b/c", "b/d"}),
        (4, {"b/c", "b/d"}),
        (6, {"b/d"}),
    ):
        placements = [rooms.draw(n_talkers, generator) for _ in range(60)]
        assert {placement.room for placement in placements} == expected
        for placement in placements:
            assert rooms.n_microphones(placement) == (4 if placement.room == "." else 2)
        assert {len(set(placement.talkers)) for placement in placements} == {n_talkers}
    assert rooms.draw(3, rng(5)) == RoomFolder(tmp_path, RATE).draw(3, rng(5))
    with pytest.raises(DataError, match="responses from 7 positions, at most 6"):
        rooms.draw(7, generator)


def test_a_talker_keeps_its_power_at_the_first_microphone(tmp_path):
    near_and_far = response((20, 30)) * np.array([1.0, 0.1])
    for talker, gain in enumerate((0.001, 5)):
        write(tmp_path / f"room/{talker}.wav", gain * near_and_far)
    rooms = RoomFolder(tmp_path, RATE)
    speech = rng().standard_normal(80000)
    for read in rooms.responses(rooms.draw(2, rng())):
        assert read.dtype == np.float32
        heard = reverberate(speech, read)
        powers = 10 * np.log10(np.square(heard).mean(axis=0) / np.square(speech).mean())
        assert powers[0] == pytest.approx(0, abs=0.2)
        assert powers[1] - powers[0] == pytest.approx(-20, abs=1)


def test_microphones_can_be_chosen(tmp_path):
    write(tmp_path / "room/0.wav", response((20, 5, 60)) * np.array([1, 2, 4]))
    rooms = RoomFolder(tmp_path, RATE)
    placement = rooms.draw(1, rng())
    (every,) = rooms.responses(placement)
    (chosen,) = rooms.responses(placement, microphones=(2, 0))
    energy = np.square(every[:, 2]).sum()
    np.testing.assert_allclose(chosen, every[:, [2, 0]] / np.sqrt(energy), rtol=1e-5)
    assert np.square(chosen[:, 0]).sum() == pytest.approx(1)


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_responses_of_other_rates_are_resampled(tmp_path, rate):
    delays = (0.01, 0.0123, 0.02)  # one between two samples at 8 kHz
    bursts = np.stack([tone_burst(delay, rate) for delay in delays], axis=1)
    write(tmp_path / "room/talker.wav", bursts, rate)
    rooms = RoomFolder(tmp_path, RATE)
    (read,) = rooms.responses(rooms.draw(1, rng()))
    expected = np.stack([tone_burst(delay, RATE) for delay in delays], axis=1)
    expected /= np.sqrt(np.square(expected[:, 0]).sum())
    np.testing.assert_allclose(read, expected, atol=1e-3)


def test_a_flat_folder_has_one_room_a_file(tmp_path):
    for name in ("hall", "kitchen", "office"):
        write(tmp_path / f"{name}.wav", response((20,))[:, 0])
    rooms, generator = RoomFolder(tmp_path, RATE), rng()
    drawn = {rooms.draw(1, generator).talkers for _ in range(50)}
    assert drawn == {("hall.wav",), ("kitchen.wav",), ("office.wav",)}
    (read,) = rooms.responses(rooms.draw(1, generator))
    assert read.shape == (3000, 1)
    with pytest.raises(DataError, match="a room is a folder with one file for each"):
        rooms.draw(2, generator)


def test_what_cannot_be_used_is_listed_at_once(tmp_path):
    for talker in range(4):
        write(tmp_path / f"office/{talker}.wav", response((20, 30)))
    write(tmp_path / "office/mono.wav", response((20,)))
    write(tmp_path / "hall/no samples.wav", np.zeros((0, 2)))
    (tmp_path / "hall/text.flac").write_text("no audio")
    write(tmp_path / "hall/song.wav", np.zeros((11 * RATE, 2)))
    with pytest.raises(DataError, match="4 files cannot be used; replace") as caught:
        RoomFolder(tmp_path, RATE)
    for part in (
        "hall/no samples.wav: has no samples",
        "hall/text.flac: cannot be read as audio",
        "hall/song.wav: lasts 11.0 s, but responses at most 10 s",
        "office/mono.wav: has 1 channels, others of its room 2",
    ):
        assert f"\n  {tmp_path / part}" in str(caught.value)


def test_what_breaks_later_is_named(tmp_path):
    samples = response((20, 30))
    samples[5, 1] = np.nan
    write(tmp_path / "nan/0.wav", samples)
    write(tmp_path / "silent/0.wav", response((20, 30)) * np.array([0, 1]))
    cut = write(tmp_path / "cut/0.wav", response((20, 30)))
    rooms, generator = RoomFolder(tmp_path, RATE), rng()
    placements = [rooms.draw(1, generator) for _ in range(30)]
    drawn = {placement.room: placement for placement in placements}
    cut.unlink()
    for room, reason in (
        ("nan", "NaN"),
        ("silent", "silent at a microphone"),
        ("cut", "no such"),
    ):
        with pytest.raises(AudioError, match=reason) as caught:
            rooms.responses(drawn[room])
        assert str(tmp_path / room / "0.wav") in str(caught.value)


def test_folders_without_rooms(tmp_path):
    with pytest.raises(DataError, match="no such folder; make rooms with `tse rooms`"):
        RoomFolder(tmp_path / "absent", RATE)
    with pytest.raises(DataError, match="holds no responses; make them with"):
        RoomFolder(tmp_path, RATE)
    for text in ("", "[]", "{}", "1"):
        (tmp_path / "rooms.json").write_text(text)
        with pytest.raises(DataError, match=r"rooms.json: is not what `tse rooms`"):
            RoomFolder(tmp_path, RATE)


def test_the_example_of_the_docs(tmp_path):
    for talker in range(4):
        write(tmp_path / f"rooms/office/{talker}.wav", response((20, 30)))
    write(tmp_path / "noise/rain.wav", rng().uniform(-0.1, 0.1, 4000))
    (code,) = blocks(ROOT / "docs/how-to/noise-and-rooms.md", "python")
    exec(code, names := {})
    anna, bob = rng().standard_normal((2, 8000))
    folders = tmp_path / "rooms", tmp_path / "noise"
    mixture, target = names["scene"](anna, bob, *folders, seed=1)
    assert mixture.shape == target.shape == (8000, 2)
    assert np.corrcoef(target[:, 0], anna)[0, 1] > 0.5
    np.testing.assert_array_equal(
        names["scene"](anna, bob, *folders, seed=1)[0], mixture
    )
