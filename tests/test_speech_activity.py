"""Speech is found in long recordings, whatever the level and the noise."""

import numpy as np
import pytest
from made_voices import pause, speak

from speechbrain_peer.data import silero
from speechbrain_peer.data.speech_activity import (
    FRAME_SECONDS,
    active_frames,
    decibels,
    frame_powers,
    speech_segments,
)

RATE = 16000


def find(samples, rate=RATE):
    """Segments in seconds, and what is too short."""
    levels = decibels(frame_powers(samples, round(FRAME_SECONDS * rate)))
    return [
        [(start * FRAME_SECONDS, end * FRAME_SECONDS) for start, end in part]
        for part in speech_segments(active_frames(levels), levels)
    ]


@pytest.mark.parametrize("gain", [1.0, 0.003])
@pytest.mark.parametrize("noise", [1e-5, 1e-3, 1e-2])
def test_speech_between_pauses_is_found(noise, gain):
    parts = [pause(2, noise=noise), speak(3, noise=noise), pause(1.5, noise=noise)]
    parts += [speak(2, seed=1, noise=noise), pause(4, noise=noise)]
    segments, too_short = find(gain * np.concatenate(parts))
    assert too_short == []
    assert np.allclose(segments, [(2, 5), (6.5, 8.5)], atol=0.25)


def test_short_pauses_are_bridged_and_a_click_is_none():
    click = pause(3)
    click[RATE : RATE + 80] = 0.9
    parts = [click, speak(1.2), pause(0.3), speak(1.2), pause(2)]
    segments, too_short = find(np.concatenate(parts))
    assert too_short == []
    assert np.allclose(segments, [(3, 5.7)], atol=0.25)


def test_pauses_of_digital_silence_are_no_speech():
    zeros = np.zeros(3 * RATE, "float32")
    segments, _ = find(np.concatenate((zeros, speak(2), zeros, speak(2), zeros)))
    assert np.allclose(segments, [(3, 5), (8, 10)], atol=0.25)


def test_a_word_is_too_short():
    segments, too_short = find(np.concatenate((pause(3), speak(0.5), pause(3))))
    assert segments == [] and len(too_short) == 1


@pytest.mark.parametrize("samples", [pause(5), np.zeros(80000), np.ones(80000)])
def test_where_nothing_stands_out_there_is_no_speech(samples):
    assert find(samples) == [[], []]


def test_long_speech_is_cut_where_it_is_quiet():
    speech = speak(70, noise=1e-4)
    quiet = round(14.0 * RATE)
    speech[quiet : quiet + 4800] *= 0.001  # 0.3 s, less than a pause
    segments, too_short = find(speech)
    assert too_short == []
    lengths = [end - start for start, end in segments]
    assert max(lengths) <= 20 and min(lengths) >= 1
    assert segments[0][1] == pytest.approx(14.15, abs=0.1)
    # One goes on where the other ends.
    assert [end for _, end in segments[:-1]] == [start for start, _ in segments[1:]]


def test_speech_that_fills_the_recording_stays_whole():
    segments, _ = find(speak(4))
    assert np.allclose(segments, [(0, 4)], atol=0.2)


def test_silero_finds_what_sounds_like_speech(mini_librimix):
    pytest.importorskip("silero_vad")
    import soundfile

    path = next((mini_librimix / "LibriSpeech/test-clean").rglob("*.flac"))
    speech, rate = soundfile.read(path, frames=4 * RATE, dtype="float32")
    tone = np.float32(0.2) * np.sin(np.arange(4 * rate) / 10).astype("float32")
    blocks = np.array_split(np.concatenate((tone, speech)), 7)
    active = silero.active_frames(blocks, rate, 400, FRAME_SECONDS)
    assert active[:190].mean() < 0.05 and active[210:].mean() > 0.5
