"""Noise: any folder, drawn as a function of the generator, at the level asked for."""

import shutil

import numpy as np
import pytest
import soundfile

from speechbrain_peer.data.noise import NoiseFolder, active_power, at_snr, repeat
from speechbrain_peer.utils.audio import AudioError
from speechbrain_peer.utils.files import DataError

RATE = 8000


def rng(seed=0):
    return np.random.default_rng(seed)


def write(path, samples, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def hum(seconds, rate, hertz=200):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def level_db(samples):
    return 10 * np.log10(np.mean(np.square(samples, dtype=float)))


@pytest.fixture
def folder(tmp_path):
    """Five formats, four rates, one and two channels, long and short."""
    write(tmp_path / "hum.wav", hum(2, 44100), 44100, subtype="PCM_24")
    stereo = np.stack([hum(1.5, 16000), np.zeros(24000)], axis=1)
    write(tmp_path / "a/stereo.flac", stereo, 16000)
    write(tmp_path / "a/b/short.ogg", hum(0.3, 8000), 8000)
    write(tmp_path / "a/b/tiny.wav", np.full(3, 0.1), 8000, subtype="FLOAT")
    write(tmp_path / "c/speech.MP3", hum(1, 22050), 22050, format="MP3")
    (tmp_path / "c/licence.txt").write_text("no audio")
    (tmp_path / "c/.hidden.wav").write_bytes(b"no audio")
    return tmp_path


def test_every_file_gives_so_many_samples_of_the_first_channel(folder):
    noise = NoiseFolder(folder, RATE)
    names = "a/b/short.ogg a/b/tiny.wav a/stereo.flac c/speech.MP3 hum.wav"
    assert noise.files == names.split()
    noise.check()
    seen, generator = set(), rng()
    for _ in range(40):
        cut = noise.draw(8001, generator)
        samples = noise.read(cut)
        assert samples.shape == (8001,) and samples.dtype == np.float32
        assert np.square(samples).mean() > 1e-3
        if "tiny" not in cut.file:
            spectrum = np.abs(np.fft.rfft(samples * np.hanning(8001)))
            assert abs(spectrum.argmax() * RATE / 8001 - 200) < 2, cut
        seen.add(cut.file)
    assert seen == set(noise.files)


def test_a_draw_is_a_function_of_the_generator_and_the_names(folder, tmp_path):
    draws = [NoiseFolder(folder, RATE).draw(800, rng(7)) for _ in range(2)]
    moved = shutil.copytree(folder, tmp_path / "moved")
    shutil.rmtree(moved / "moved", ignore_errors=True)
    assert draws == 2 * [NoiseFolder(moved, RATE).draw(800, rng(7))]
    assert draws[0] != NoiseFolder(folder, RATE).draw(800, rng(8))


def test_a_cut_is_the_same_samples_as_the_whole_file(tmp_path):
    samples = rng().uniform(-0.5, 0.5, 5000).astype("float32")
    write(tmp_path / "x.wav", samples, subtype="FLOAT")
    noise = NoiseFolder(tmp_path, RATE)
    cut = noise.draw(1000, rng())
    for place, start in ((0.0, 0), (0.5, 2000), (np.nextafter(1, 0), 4000)):
        read = noise.read(cut._replace(place=place))
        np.testing.assert_array_equal(read, samples[start : start + 1000])


def test_every_file_and_every_place_is_as_likely(tmp_path):
    for k in range(4):
        write(tmp_path / f"{k}.wav", hum(1 + k, RATE))
    noise, generator = NoiseFolder(tmp_path, RATE), rng()
    cuts = [noise.draw(4000, generator) for _ in range(4000)]
    counts = [sum(cut.file == name for cut in cuts) for name in noise.files]
    assert min(counts) > 900
    assert np.histogram([cut.place for cut in cuts], 4, (0, 1))[0].min() > 900


def test_repeated_noise_has_no_seam():
    clip = rng().standard_normal(4000)
    repeated = repeat(clip, 40000, place=0.3, fade=400)
    period = 3600
    np.testing.assert_array_equal(repeated[:period], repeated[period : 2 * period])
    # Power is constant over the cross-fade.
    around = 10 * np.log10(np.square(repeat(clip, 3600, 0, 400)[:400]).mean())
    assert abs(around) < 0.5
    # A tone that fits into the period goes on without a step.
    tone = np.sin(2 * np.pi * np.arange(4000) / 100)
    steps = np.abs(np.diff(repeat(tone, 40000, place=0.3, fade=400)))
    assert steps.max() < 1.5 * np.abs(np.diff(tone)).max()


@pytest.mark.parametrize("length", [1, 2, 3, 159])
def test_the_shortest_clips_are_repeated(length):
    clip = np.ones(length, dtype=np.float32)
    assert repeat(clip, 1000, place=0.999, fade=80).shape == (1000,)


@pytest.mark.parametrize("snr_db", [-6, 0, 3.5, 20])
def test_the_ratio_is_what_was_asked(snr_db):
    noise, speech = rng().standard_normal((2, 8000)).astype(np.float32)
    scaled = at_snr(0.01 * noise, 3 * speech, snr_db)
    assert scaled.dtype == np.float32
    assert level_db(3 * speech) - level_db(scaled) == pytest.approx(snr_db, abs=1e-3)


def test_silence_beside_the_sound_does_not_change_the_ratio():
    noise, speech = rng().standard_normal((2, 8192))
    expected = at_snr(noise, speech, 5)
    padded = np.concatenate([noise, np.zeros(8192)])
    pauses = np.concatenate([np.zeros(4096), speech, np.zeros(9999)])
    np.testing.assert_allclose(at_snr(padded, pauses, 5)[:8192], expected, rtol=1e-6)


def test_the_level_of_microphones_is_that_of_the_first():
    noise, speech = rng().standard_normal((2, 8000, 3))
    expected = at_snr(noise[:, 0], speech[:, 0], 5)
    np.testing.assert_array_equal(at_snr(noise, speech, 5)[:, 0], expected)


def test_silence_has_no_ratio():
    sound, silence = rng().standard_normal(999).astype(np.float32), np.zeros(999)
    for noise, speech in ((sound, silence), (silence, sound), (1e-9 * sound, sound)):
        assert not at_snr(noise, speech, 5).any()
    assert active_power(silence) == 0


@pytest.mark.parametrize("parts", [("tr", "cv", "tt"), ("train", "dev", "test")])
def test_folders_laid_out_in_parts(tmp_path, parts):
    for part in parts:
        write(tmp_path / part / f"{part}.wav", hum(1, RATE))
    for subset, part in zip(("train", "dev", "test"), parts, strict=True):
        assert NoiseFolder(tmp_path, RATE, subset).files == [f"{part}.wav"]
        assert NoiseFolder(tmp_path / part, RATE, subset).files == [f"{part}.wav"]
    assert len(NoiseFolder(tmp_path, RATE).files) == 3
    shutil.rmtree(tmp_path / parts[1])
    with pytest.raises(DataError, match="has folders for train and test, but none for"):
        NoiseFolder(tmp_path, RATE, "dev")


def test_folders_without_noise(tmp_path):
    with pytest.raises(DataError, match="holds no audio files"):
        NoiseFolder(tmp_path, RATE)
    with pytest.raises(DataError, match="no such folder"):
        NoiseFolder(tmp_path / "absent", RATE)


def test_broken_files_are_listed_at_once_and_named_when_read(folder):
    (folder / "empty.wav").touch()
    write(folder / "no samples.wav", np.zeros(0))
    write(folder / "nan.wav", np.full(9, np.nan), subtype="FLOAT")
    cut = write(folder / "cut.flac", hum(3, RATE))
    cut.write_bytes(cut.read_bytes()[:-3000])
    (folder / "text.ogg").write_text("no audio")
    noise = NoiseFolder(folder, RATE)
    with pytest.raises(DataError, match="3 files cannot be used; replace") as caught:
        noise.check()
    for name in ("empty.wav", "no samples.wav", "text.ogg"):
        assert f"\n  {folder / name}: " in str(caught.value)
    drawn = noise.draw(24000, rng())
    for name in ("empty.wav", "no samples.wav", "text.ogg", "nan.wav", "cut.flac"):
        with pytest.raises(AudioError, match=name):
            noise.read(drawn._replace(file=name, place=0.9))
