"""Extraction from long files: chunks, resampling and writing as a stream."""

import os
import subprocess
import sys
import weakref
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly
from tiny_model import SAMPLE_RATE, build

from speechbrain_peer.inference.chunks import chunk_bounds, cut_chunks, extract_chunks
from speechbrain_peer.inference.interface import TargetSpeechExtraction
from speechbrain_peer.inference.of_files import LONGEST_ENROLLMENT
from speechbrain_peer.inference.recordings import (
    BLOCK,
    Recording,
    resample_blocks,
    resampled_length,
)
from speechbrain_peer.inference.writing import (
    Encoding,
    record_blocks,
    write_blocks,
)
from speechbrain_peer.peer_learning.exchange import extract
from speechbrain_peer.utils.audio import AudioError
from speechbrain_peer.utils.signal import si_snr

EMBEDDING = torch.linspace(-1, 1, 16)


@pytest.fixture(scope="module")
def model():
    """A tiny model with random weights."""
    return TargetSpeechExtraction(build(), {"sample_rate": SAMPLE_RATE})


@pytest.fixture(scope="module")
def causal():
    """The same, causal."""
    model = TargetSpeechExtraction(build(), {"sample_rate": SAMPLE_RATE})
    for layer in model.mods["separator"].modules():
        if hasattr(layer, "causal"):
            layer.causal = True
    return model


def babble(seconds, channels=1, rate=SAMPLE_RATE, seed=0):
    """Noise whose level changes as speech does, float32, (time, channels)."""
    rng = np.random.default_rng(seed)
    syllables = np.repeat(rng.uniform(0, 0.2, int(5 * seconds) + 1), rate // 5)
    length = int(seconds * rate)
    noise = rng.standard_normal((length, channels))
    return np.float32(noise * syllables[:length, None])


def test_what_is_before_a_chunk_is_not_kept():
    class Block(np.ndarray):
        """An array that there can be a weak reference to."""

    seen = []

    def blocks():
        for k in range(100):
            alive = sum(block() is not None for block in seen)
            assert alive <= max(2, k - 97)  # the last one, and those of the chunk
            block = np.full((10, 1), k).view(Block)
            seen.append(weakref.ref(block))
            yield block

    (chunk,) = cut_chunks(blocks(), [(985, 1000)])
    assert chunk[:, 0].tolist() == [98] * 5 + [99] * 10


def random_blocks(samples, seed=0):
    """Cuts (time, channels) into blocks of random lengths, some of them empty."""
    cuts = np.random.default_rng(seed).integers(0, len(samples) + 1, size=9)
    return np.split(samples, np.sort(cuts))


def chunked(model, samples):
    """Estimate of (time, channels) in chunks, without a level."""
    arguments = EMBEDDING[None], len(samples), SAMPLE_RATE, samples.shape[1]
    with torch.no_grad():
        pieces = list(extract_chunks(model.mods, random_blocks(samples), *arguments))
    mixture, estimate = (np.concatenate(part) for part in zip(*pieces, strict=True))
    np.testing.assert_array_equal(mixture, samples)
    return estimate


def whole(model, samples):
    """The same in one piece, for one channel."""
    with torch.no_grad():
        estimate = extract(model.mods, torch.from_numpy(samples.T), EMBEDDING[None])
    return estimate.numpy().T


def agreement(estimate, reference):
    """SI-SNR in dB, of (time, 1)."""
    return si_snr(torch.from_numpy(estimate.T), torch.from_numpy(reference.T)).item()


@pytest.mark.parametrize("seconds", [1 / 8000, 3.3, 12, 12.01, 47.77, 3600.123])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_chunks_cover_everything(seconds, rate):
    length = round(seconds * rate)
    bounds = chunk_bounds(length, rate)
    starts, ends = np.transpose(bounds)
    assert (starts[0], ends[-1]) == (0, length)
    np.testing.assert_array_equal(ends[:-1] - starts[1:], 3 * rate)
    assert not np.any(starts % 1280)
    *lengths, last = ends - starts
    assert len(set(lengths)) <= 1
    assert max([*lengths, last]) <= 12 * rate + 1280
    # Nothing is extracted from the start of a chunk.
    assert len(bounds) == 1 or last > 3 * rate


def test_chunks_are_those_of_the_whole_signal():
    samples = babble(2, channels=2)
    bounds = [(0, 6000), (4000, 9001), (8500, 16000)]
    for chunk, (start, end) in zip(
        cut_chunks(random_blocks(samples), bounds), bounds, strict=True
    ):
        np.testing.assert_array_equal(chunk, samples[start:end])


RATES = [
    (16000, 8000),
    (8000, 16000),
    (44100, 8000),
    (8000, 44100),
    (44099, 8000),  # a prime
    (11025, 16000),
]


@pytest.mark.parametrize("length", [1, 2, 700, 30011])
@pytest.mark.parametrize(("from_rate", "to_rate"), RATES)
def test_resampling_as_a_stream_has_no_seams(from_rate, to_rate, length):
    samples = np.random.default_rng(0).standard_normal((length, 2)).astype(np.float32)
    stream = list(resample_blocks(random_blocks(samples), from_rate, to_rate))
    stream = np.concatenate(stream)
    assert len(stream) == resampled_length(length, from_rate, to_rate)
    whole = np.concatenate(list(resample_blocks([samples], from_rate, to_rate)))
    np.testing.assert_array_equal(stream, whole)
    # The channels of a transposed array do not lie side by side.
    other = np.ascontiguousarray(samples.T).T
    other = np.concatenate(list(resample_blocks([other], from_rate, to_rate)))
    np.testing.assert_array_equal(other, whole)


@pytest.mark.parametrize(("from_rate", "to_rate"), RATES)
def test_resampling_keeps_time_and_level(from_rate, to_rate):
    """Up to 0.4 of the lower rate it is what the polyphase filter gives."""
    time = np.arange(2 * from_rate) / from_rate
    frequencies = np.linspace(50, 0.4 * min(from_rate, to_rate), 40)
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, 40)
    sines = np.sin(2 * np.pi * frequencies * time[:, None] + phases).sum(1)
    samples = np.float32(np.hanning(len(time)) * sines)[:, None]
    stream = np.concatenate(list(resample_blocks([samples], from_rate, to_rate)))
    expected = resample_poly(samples, to_rate, from_rate)
    difference = np.square(stream - expected).sum() / np.square(expected).sum()
    assert 10 * np.log10(difference) < -50


def test_blocks_are_never_large(tmp_path):
    """Whatever number of channels a header tells."""
    path = tmp_path / "many.wav"
    soundfile.write(path, np.zeros((5000, 500)), SAMPLE_RATE, subtype="PCM_U8")
    recording = Recording.open(path)
    assert recording.length == 5000
    assert max(block.size for block in recording.blocks()) <= BLOCK


def test_a_short_mixture_is_extracted_in_one_piece(model):
    samples = babble(12)
    np.testing.assert_array_equal(chunked(model, samples), whole(model, samples))


def test_chunks_agree_with_the_whole(model):
    """Not better, as a global norm has the statistics of the chunk."""
    samples = babble(60)
    assert agreement(chunked(model, samples), whole(model, samples)) > 25


def test_a_causal_model_goes_on_from_chunk_to_chunk(causal):
    """Also where the level rises and falls for good, and for each channel alone."""
    samples = babble(60, channels=2)
    samples *= np.linspace([0.1, 1], [1, 0.2], len(samples), dtype=np.float32)
    estimate = chunked(causal, samples)
    for channel in (0, 1):
        expected = whole(causal, samples[:, [channel]])
        # In fp32, the estimate whole
        error = np.abs(estimate[:, [channel]] - expected).max()
        assert error < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("length", [1, 15, 16, 17, 700])
def test_a_causal_model_extracts_what_is_short(causal, length):
    samples = babble(1)[:length]
    estimate = chunked(causal, samples)
    np.testing.assert_allclose(estimate, whole(causal, samples), atol=1e-6)


class Foreign(torch.nn.Module):
    """Somebody else's separator, which counts frames and has no steps."""

    causal = True

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, representation, embedding, frame_mask):
        counts = frame_mask[0].cumsum(0)
        assert counts[-1] == len(counts)
        return self.inner(representation, embedding, frame_mask)


def test_what_offers_no_steps_is_extracted_in_chunks(model):
    """Whatever its attributes are called, and its running sums are left alone."""
    stages = {**model.mods, "separator": Foreign(model.mods["separator"])}
    foreign = TargetSpeechExtraction(stages, {"sample_rate": SAMPLE_RATE})
    samples = babble(30)
    np.testing.assert_array_equal(chunked(foreign, samples), chunked(model, samples))


def test_no_click_where_chunks_differ_in_level(model):
    """The network's level may differ from chunk to chunk; here it does by far."""
    gains = iter([1.0, 3.0, 0.5, 2.0, 1.5])
    decoder = model.mods["decoder"]
    # Instead of an estimate, its level
    hook = decoder.register_forward_hook(
        lambda module, inputs, waveforms: torch.full_like(waveforms, next(gains))
    )
    level = chunked(model, babble(45))
    hook.remove()
    assert next(gains, None) is None
    steps = np.abs(np.diff(level[:, 0]))
    # A cross-fade over a second, from 3.0 to 0.5 at most
    assert 0 < steps.max() < 2.5 * np.pi / 2 / SAMPLE_RATE * 1.05
    assert {1.0, 3.0, 0.5, 2.0, 1.5} <= set(level[:, 0].tolist())


@pytest.fixture
def long_file(tmp_path):
    """50 s at 16 kHz with two channels, in a folder of its own."""
    path = tmp_path / "in" / "long.wav"
    path.parent.mkdir()
    soundfile.write(path, babble(50, 2, 16000), 16000, subtype="FLOAT")
    return path


def test_each_channel_is_extracted_with_a_level_of_its_own(model, long_file):
    samples = soundfile.read(long_file, dtype="float32")[0]
    # Levels far apart
    samples *= np.float32([1.0, 0.01])
    soundfile.write(long_file, samples, 16000, subtype="FLOAT")
    output = long_file.with_name("out.wav")
    assert (
        model.extract_file(
            long_file, embeddings=EMBEDDING, output_path=output, channels="each"
        )
        == output
    )
    estimate = model.extract_file(long_file, embeddings=EMBEDDING, channels="each")
    assert estimate.shape == (2, len(samples))
    written, rate = soundfile.read(output, dtype="float32")
    assert rate == 16000
    np.testing.assert_array_equal(written.T, estimate.numpy())
    for channel in (0, 1):
        soundfile.write(long_file, samples[:, channel], 16000, subtype="FLOAT")
        alone = model.extract_file(long_file, embeddings=EMBEDDING)
        torch.testing.assert_close(estimate[channel], alone)


def test_one_level_for_the_whole_file(model, tmp_path):
    """The estimate is the mixture's projection on it; none of its chunks is."""
    path, mixture = tmp_path / "long.wav", babble(50)[:, 0]
    soundfile.write(path, mixture, SAMPLE_RATE, subtype="FLOAT")
    estimate = model.extract_file(path, embeddings=EMBEDDING).numpy()
    shared, energy = np.float64(mixture) * estimate, np.square(estimate, dtype=float)
    assert shared.sum() == pytest.approx(energy.sum(), rel=1e-5)
    parts = np.split(shared, 10), np.split(energy, 10)
    assert np.ptp(np.sum(parts[0], axis=1) / np.sum(parts[1], axis=1)) > 0.01


def test_channels_are_mix_or_each(model, long_file):
    with pytest.raises(ValueError, match="channels 'left': choose mix, each or peers"):
        model.extract_file(long_file, embeddings=EMBEDDING, channels="left")


def test_channels_that_the_format_lacks_are_refused_before_the_work(model, tmp_path):
    path = tmp_path / "six.wav"
    soundfile.write(path, babble(0.1, channels=6), SAMPLE_RATE)
    with pytest.raises(AudioError, match=r"out\.mp3: MP3 cannot hold 6 channel"):
        model.extract_file(
            path,
            "never read.wav",
            output_path=tmp_path / "out.mp3",
            channels="each",
        )


def test_of_a_long_enrollment_the_start_is_used(model, long_file):
    samples = soundfile.read(long_file)[0]
    start = long_file.with_name("start.wav")
    start_samples = samples[: int(LONGEST_ENROLLMENT * 16000)]
    soundfile.write(start, start_samples, 16000, subtype="FLOAT")
    torch.testing.assert_close(
        model.extract_file(start, long_file), model.extract_file(start, start)
    )


def test_nan_in_a_long_file_is_told_with_its_time(model, long_file, tmp_path):
    samples, _ = soundfile.read(long_file)
    samples[int(31.25 * 16000), 1] = np.nan
    soundfile.write(long_file, samples, 16000, subtype="FLOAT")
    output = tmp_path / "out" / "out.wav"
    with pytest.raises(AudioError, match=r"long\.wav.*the first at 31\.250 s"):
        model.extract_file(long_file, embeddings=EMBEDDING, output_path=output)
    assert not output.parent.exists()


def test_an_interrupted_run_leaves_nothing(model, long_file):
    """Even one that is killed: the temporary file has no name."""
    output = long_file.with_name("out.wav")
    output.write_text("old")
    seen, decoder = [], model.mods["decoder"]

    def interrupt(module, inputs, waveforms):
        seen.append({path.name for path in output.parent.iterdir()})
        if len(seen) == 3:
            raise KeyboardInterrupt

    hook = decoder.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.extract_file(long_file, embeddings=EMBEDDING, output_path=output)
    hook.remove()
    names = {"long.wav", "out.wav"}
    assert {path.name for path in output.parent.iterdir()} == names
    assert output.read_text() == "old"
    if sys.platform == "linux":
        assert seen == [names] * 3


@contextmanager
def files_of_at_most(size):
    """Writing more bytes to a file fails, as it does on a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_a_full_disk_holds_of_a_live_signal_is_kept(tmp_path):
    for name in ("live.wav", "live.aiff"):
        path = tmp_path / name
        with files_of_at_most(100_000), pytest.raises(OSError, match="large"):
            with record_blocks(path, SAMPLE_RATE, 1) as write:
                for _ in range(100):
                    write(np.full((1000, 1), 0.5))
        samples, _ = soundfile.read(path)
        assert 24_000 < len(samples) <= 25_000 and (samples == 0.5).all()


@pytest.mark.parametrize("size", [1_000_000, 2_000_000])
def test_a_full_disk_is_told(model, long_file, size):
    """While the estimate is kept, in 1.6 MB, and while it is written, in 3.2 MB."""
    output = long_file.with_name("full") / "out.wav"
    with files_of_at_most(size), pytest.raises(OSError, match=r"out\.wav"):
        model.extract_file(long_file, embeddings=EMBEDDING, output_path=output)
    assert not list(output.parent.glob("*"))


def test_a_full_disk_is_told_where_libsndfile_does_not(tmp_path):
    path, blocks = tmp_path / "out.ogg", [babble(5)] * 10
    encoding = Encoding("OGG", "VORBIS", SAMPLE_RATE, channels=1)
    write_blocks(path, lambda: blocks, encoding)
    size = path.stat().st_size
    path.unlink()
    with files_of_at_most(size // 2), pytest.raises(OSError, match=r"out\.ogg"):
        write_blocks(path, lambda: blocks, encoding)
    assert not list(tmp_path.iterdir())


def test_long_files_show_their_progress(model, long_file, capsys):
    path = long_file.with_name("not so long.wav")
    soundfile.write(path, babble(30), SAMPLE_RATE)
    model.extract_file(path, embeddings=EMBEDDING)
    assert not capsys.readouterr().err
    soundfile.write(long_file, babble(90), SAMPLE_RATE)
    model.extract_file(long_file, embeddings=EMBEDDING)
    assert "100%" in capsys.readouterr().err


MEMORY = """
import re, sys
from pathlib import Path
import torch
from speechbrain_peer import TargetSpeechExtraction

def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024

imported = peak()
from tiny_model import build
model = TargetSpeechExtraction(build(), {"sample_rate": 8000})
for name in sys.argv[1:]:
    output = Path(name).with_suffix(".out.wav")
    model.extract_file(name, embeddings=torch.ones(16), output_path=output)
    print(peak() - imported)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    minutes = {1: tmp_path / "1.wav", 5: tmp_path / "5.wav"}
    minute = babble(60, channels=2, rate=16000)
    for count, path in minutes.items():
        with soundfile.SoundFile(path, "w", 16000, 2) as file:
            for _ in range(count):
                file.write(minute)
    process = subprocess.run(
        [sys.executable, "-c", MEMORY, *minutes.values()],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    short, long = map(float, process.stdout.split()[-2:])
    assert short < 450
    # Five minutes are 77 MB as float32.
    assert long - short < 25
    assert soundfile.info(tmp_path / "5.out.wav").frames == 300 * 16000
