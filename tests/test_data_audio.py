"""Audio files are read by seek, refused with a reason, and written whole."""

import resource

import numpy as np
import pytest
import soundfile

from speechbrain_peer.utils.audio import (
    AudioError,
    audio_length,
    read_audio,
    write_audio,
)


@pytest.fixture
def speech(tmp_path):
    """A file of 1000 samples at 8 kHz, in a folder with a space and Unicode."""
    path = tmp_path / "Sprache für März" / "a b.wav"
    write_audio(path, np.linspace(-1, 1, 1000), 8000)
    return path


def test_segment_equals_the_same_part_of_the_whole(speech):
    whole = read_audio(speech)
    assert whole.dtype == np.float32
    assert audio_length(speech) == len(whole) == 1000
    np.testing.assert_array_equal(read_audio(speech, 300, 50), whole[300:350])
    np.testing.assert_array_equal(read_audio(speech, 990, 50), whole[990:])


def test_writing_clips_instead_of_wrapping(tmp_path):
    write_audio(tmp_path / "loud.wav", np.array([-3.0, 3.0]), 8000)
    samples, _ = soundfile.read(tmp_path / "loud.wav", dtype="int16")
    assert samples.tolist() == [-32768, 32767]


def test_full_disk_leaves_the_old_file_and_no_other(speech):
    before = speech.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
    try:
        with pytest.raises(OSError, match=speech.name):
            write_audio(speech, np.zeros(5000), 8000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in speech.parent.iterdir()] == [speech.name]
    assert speech.read_bytes() == before


def _write_text(path):
    path.write_text("not audio")


def _write_nan(path):
    soundfile.write(path, np.array([0.1, np.nan]), 8000, subtype="FLOAT")


def _cut_short(path):
    # FLAC's header promises what the rest of the file no longer holds.
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 40000)
    soundfile.write(path, noise, 8000, format="FLAC")
    path.write_bytes(path.read_bytes()[:20000])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "cannot be read"),
        (_write_text, "cannot be read"),
        (lambda path: path.touch(), "cannot be read"),
        (lambda path: soundfile.write(path, np.zeros(0), 8000), "no samples"),
        (lambda path: soundfile.write(path, np.zeros((9, 2)), 8000), "2 channels"),
        (lambda path: soundfile.write(path, np.zeros(9), 16000), "16000 Hz"),
        (_write_nan, "NaN"),
        (_cut_short, "cut short|cannot be read"),
    ],
)
def test_unusable_file_is_named_with_the_reason(tmp_path, spoil, reason):
    path = tmp_path / "spoiled ñ.wav"
    spoil(path)
    with pytest.raises(AudioError, match=reason) as caught:
        read_audio(path, sample_rate=8000)
    assert str(path) in str(caught.value)


def test_start_beyond_the_end_is_an_error(speech):
    with pytest.raises(AudioError, match="prepare the data again"):
        read_audio(speech, start=1000)
