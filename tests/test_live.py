"""Live extraction: any cut gives the whole, at any rate, and nothing comes too late."""

import asyncio
import copy
import io
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly
from tiny_model import build, causal_yaml

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.inference.live import push_together
from speechbrain_peer.inference.resampling import StreamResampler
from speechbrain_peer.models import bsrnn
from speechbrain_peer.nnet.stft import StftDecoder, StftEncoder
from speechbrain_peer.nnet.voice import features_of
from speechbrain_peer.peer_learning import streams
from speechbrain_peer.utils.signal import match_level

RATES = (8000, 16000, 48000, 44100, 11025, 8001)
quick = settings(max_examples=12, deadline=None, derandomize=True, database=None)


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def causal(level, **options):
    modules = load_hyperpyyaml(causal_yaml(level))["modules"]
    modules.pop("speaker_classifier")
    hparams = {"sample_rate": 8000, "level": level}
    return TargetSpeechExtraction(modules, hparams, options)


@pytest.fixture(scope="module")
def model():
    return causal("network")


@pytest.fixture(scope="module")
def projecting():
    """Its level is the mixture's projection."""
    return causal("mixture")


@pytest.fixture(scope="module")
def of_frames():
    """BSRNN, whose voice is frames."""
    torch.manual_seed(0)
    bands, sizes = [(5, 2), (2, 4), (1, 15)], (64, 16)
    modules = {
        "encoder": StftEncoder(*sizes),
        "speaker_encoder": bsrnn.SpeakerEncoder(64),
        "separator": bsrnn.Separator(64, bands, 6, 12, n_blocks=2, causal=True),
        "mask_head": bsrnn.MaskHead(bands, 6, 24),
        "decoder": StftDecoder(*sizes),
    }
    return TargetSpeechExtraction(modules, {"sample_rate": 8000, "level": "network"})


VOICE = noise(1, 16, seed=9)


def pushed(stream, samples, sizes):
    """What comes out of pieces, of which the last one is the rest."""
    outputs = []
    for piece in samples.split(sizes, dim=-1):
        outputs.append(stream.push(piece))
    return [*outputs, stream.flush()]


@st.composite
def cuts(draw, length):
    points = draw(st.lists(st.integers(0, length), max_size=12))
    points = [0, *sorted(points), length]
    return np.diff(points).tolist()


def assert_near(outputs, expected):
    assert outputs.shape == expected.shape
    assert (outputs - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


@quick
@given(st.data())
@pytest.mark.parametrize("level", ["network", "mixture"])
def test_any_cut_gives_the_whole(level, model, projecting, data):
    used = model if level == "network" else projecting
    rate = data.draw(st.sampled_from(RATES))
    length = data.draw(st.integers(1, rate // 3))
    mixture = noise(2, length, seed=data.draw(st.integers(0, 99)))
    whole = pushed(used.stream(voice=VOICE, rate=rate), mixture, [length])
    pieces = pushed(
        used.stream(voice=VOICE, rate=rate), mixture, data.draw(cuts(length))
    )
    assert torch.cat(whole, -1).shape == mixture.shape
    assert_near(torch.cat(pieces, -1), torch.cat(whole, -1))


def test_at_the_models_rate_it_is_what_a_batch_gives(model):
    mixture = noise(1, 5003)
    outputs = pushed(model.stream(voice=VOICE), mixture[0], [80] * 62 + [43])
    assert_near(torch.cat(outputs), model.extract_batch(mixture, embeddings=VOICE)[0])


@quick
@given(st.data())
def test_any_cut_of_a_model_of_frames(of_frames, data):
    rate = data.draw(st.sampled_from((8000, 16000, 11025)))
    mixture, enrollment = noise(2, 2000), noise(1, 3000, seed=1)
    stream = of_frames.stream(enrollment, rate=rate)
    whole = torch.cat(pushed(stream, mixture, 2000), 1)
    pieces = pushed(stream, mixture, data.draw(cuts(2000)))
    assert_near(torch.cat(pieces, 1), whole)
    if rate == 8000:
        voice = of_frames.encode_speaker(enrollment.repeat(2, 1))
        assert_near(whole, of_frames.extract_batch(mixture, embeddings=voice))


def test_the_latency_of_overlapping_windows(of_frames):
    """A sample waits for the last window that holds it."""
    stream = of_frames.stream(noise(1, 3000))
    assert stream.latency == 63
    lags, given_so_far = [], 0
    for taken in range(1, 300):
        given_so_far += len(stream.push(noise(1)))
        lags.append(taken - given_so_far)
    assert max(lags) == 63
    assert of_frames.stream(noise(1, 3000), block=16).latency == 48


def test_enrollments_are_embedded(model):
    enrollments, mixture = noise(1, 9000, seed=3), noise(1, 800)
    outputs = pushed(model.stream(enrollments), mixture, [800])
    assert_near(torch.cat(outputs, 1), model.extract_batch(mixture, enrollments))
    for arguments in ({}, {"enrollments": enrollments, "voice": VOICE}):
        with pytest.raises(ValueError, match="either enrollments or voice"):
            model.stream(**arguments)


def test_at_other_rates_it_is_what_the_polyphase_filter_gives(model):
    mixture = noise(1, 9600)
    outputs = pushed(model.stream(voice=VOICE, rate=48000), mixture, [9600])
    at_8k = torch.from_numpy(resample_poly(mixture.numpy(), 1, 6, axis=1))
    estimate = model.extract_batch(at_8k, embeddings=VOICE).numpy()
    expected = torch.from_numpy(resample_poly(estimate, 6, 1, axis=1))
    assert_near(torch.cat(outputs, 1), expected[:, :9600])


@quick
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 700), st.integers(0, 99))
def test_the_resampler_is_scipys(from_rate, to_rate, length, seed):
    assume(from_rate != to_rate)
    resampler = StreamResampler(from_rate, to_rate)
    samples = noise(2, length, seed=seed)
    state, outputs, taken = resampler.init_state(2), [], 0
    for piece in samples.split(1 + seed, dim=1):
        output, state = resampler.step(piece, state)
        outputs.append(output)
        taken += piece.shape[1]
        given_so_far = sum(output.shape[1] for output in outputs)
        assert given_so_far == resampler.completed(taken)
    outputs = torch.cat((*outputs, resampler.finish(state)), dim=1)
    divisor = math.gcd(from_rate, to_rate)
    up, down = to_rate // divisor, from_rate // divisor
    expected = resample_poly(samples.numpy(), up, down, axis=1)
    assert outputs.shape[1] == -(-length * up // down)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


@pytest.mark.parametrize("rate", RATES)
def test_the_latency_is_what_it_says(model, rate):
    """No output before its input, and none later; both are reached."""
    stream = model.stream(voice=VOICE, rate=rate)
    mixture = noise(stream.latency + 12 * -(-rate // 1000))
    given_so_far, lags = 0, []
    for taken, sample in enumerate(mixture.split(1), start=1):
        given_so_far += len(stream.push(sample))
        lags.append(taken - given_so_far)
    assert 0 <= min(lags)
    # Only in a long period the odd rates reach it.
    assert max(lags) == stream.latency - (rate in (11025, 8001))
    # The network's 15 samples, and ten of the lower rate for each resampler.
    most = 15 + (20 if rate != 8000 else 0)
    assert stream.latency <= most * rate / 8000 + 2


@quick
@given(st.sampled_from(RATES), st.integers(1, 900), st.integers(1, 20))
def test_blocks_give_blocks(model, rate, block, n_blocks):
    mixture = noise(n_blocks * block)
    stream = model.stream(voice=VOICE, rate=rate, block=block)
    outputs = pushed(stream, mixture, [block] * n_blocks)
    assert [len(output) for output in outputs[:-1]] == [block] * n_blocks
    assert len(outputs[-1]) == stream.latency
    outputs = torch.cat(outputs)
    assert not outputs[: stream.latency].any()
    free = model.stream(voice=VOICE, rate=rate)
    assert_near(outputs[stream.latency :], torch.cat(pushed(free, mixture, block)))
    assert stream.latency <= free.latency


def test_blocks_of_whole_frames_are_sooner(model):
    assert model.stream(voice=VOICE).latency == 15
    assert model.stream(voice=VOICE, block=80).latency == 8


def test_what_has_come_out_does_not_depend_on_what_comes(model, projecting):
    for used in (model, projecting):
        one, other = (used.stream(voice=VOICE, rate=16000) for _ in range(2))
        start = noise(3000)
        assert torch.equal(one.push(start), other.push(start))
        one.push(noise(3000, seed=1)), other.push(100 * noise(3000, seed=2))


def saved(stream, model):
    file = io.BytesIO()
    torch.save(stream.state_dict(), file)
    file.seek(0)
    other = model.stream(voice=VOICE, rate=stream.rate)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@pytest.mark.parametrize("level", ["network", "mixture"])
@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("copied", [saved, lambda stream, _: copy.copy(stream)])
def test_a_copy_in_the_middle_goes_on_alike(copied, rate, level, model, projecting):
    used = model if level == "network" else projecting
    stream = used.stream(voice=VOICE, rate=rate)
    stream.push(noise(2, rate // 3 + 7))
    other = copied(stream, used)
    rest = noise(2, rate // 4, seed=1)
    outputs = pushed(other, rest, [rest.shape[1]])
    assert all(map(torch.equal, outputs, pushed(stream, rest, [rest.shape[1]])))


def test_a_batch_of_streams_is_its_streams_one_by_one(model):
    voices, mixtures = noise(3, 16, seed=4), noise(3, 4000)
    together = pushed(model.stream(voice=voices, rate=16000), mixtures, [1000] * 4)
    for row, output in enumerate(torch.cat(together, 1)):
        alone = model.stream(voice=voices[row], rate=16000)
        assert_near(torch.cat(pushed(alone, mixtures[row], [1000] * 4)), output)


@pytest.mark.parametrize("level", ["network", "mixture"])
def test_streams_pushed_together_are_those_alone(level, model, projecting, of_frames):
    def streams_of(used, voices):
        return [
            used.stream(voice=voice, rate=16000 if k == 2 else 8000)
            for k, voice in enumerate(voices)
        ]

    def rows_of(voice):
        """Those of samples: none, or one for each of several voices."""
        count = len(torch.atleast_2d(features_of(voice)))
        return (count,) if count > 1 else ()

    vectors = [*noise(5, 16, seed=4), noise(2, 16, seed=5)]
    frames = [
        of_frames.encode_speaker(noise(1, 2000 + 900 * k, seed=k)) for k in range(4)
    ]
    used = model if level == "network" else projecting
    for network, voices in ((used, vectors), (of_frames, frames)):
        together, alone = (streams_of(network, voices) for _ in range(2))
        # Of different lengths, so that later blocks begin at different places.
        for sizes in ((80, 240), (0, 7, 80), (160,), (160,), (3, 160)):
            blocks = [
                noise(*rows_of(voice), sizes[k % len(sizes)], seed=k)
                for k, voice in enumerate(voices)
            ]
            outputs = push_together(together, blocks)
            for output, stream, block in zip(outputs, alone, blocks, strict=True):
                expected = stream.push(block)
                torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(together, alone, strict=True):
            assert_near(ours.flush(), theirs.flush())


def test_what_one_stream_cannot_use_leaves_the_others_alone(model):
    first, second, alone = (model.stream(voice=VOICE) for _ in range(3))
    blocks = noise(400), torch.full((400,), torch.nan)
    output, error = push_together([first, second], blocks)
    assert_near(output, alone.push(blocks[0]))
    assert isinstance(error, ValueError) and "NaN" in str(error)
    assert_near(second.push(blocks[0]), output)
    other = causal("network").stream(voice=VOICE)
    with pytest.raises(ValueError, match="several models"):
        push_together([first, other], blocks)


def test_channels_share_a_voice(model):
    mixtures = noise(2, 2000)
    outputs = torch.cat(pushed(model.stream(voice=VOICE), mixtures, [2000]), 1)
    expected = model.extract_batch(mixtures, embeddings=VOICE.repeat(2, 1))
    assert_near(outputs, expected)


def test_streams_side_by_side_in_threads(model):
    mixtures = noise(4, 8000)

    def run(row):
        stream = model.stream(voice=noise(16, seed=row))
        return torch.cat(pushed(stream, mixtures[row], [400] * 20))

    with ThreadPoolExecutor(4) as pool:
        for row, output in enumerate(pool.map(run, range(4))):
            assert torch.equal(output, run(row))


def test_in_asyncio(model):
    async def run(row):
        stream = model.stream(voice=VOICE)
        return await asyncio.to_thread(stream.push, noise(800, seed=row))

    async def run_all():
        return await asyncio.gather(*map(run, range(3)))

    for row, output in enumerate(asyncio.run(run_all())):
        assert torch.equal(output, model.stream(voice=VOICE).push(noise(800, seed=row)))


def bytes_of(part):
    if isinstance(part, torch.Tensor):
        return part.untyped_storage().nbytes()
    if isinstance(part, dict):
        part = tuple(part.values())
    return sum(map(bytes_of, part)) if isinstance(part, tuple) else 0


@pytest.mark.parametrize("rate", [8000, 44100])
def test_memory_is_constant(model, projecting, rate):
    for used in (model, projecting):
        stream, sizes = used.stream(voice=VOICE, rate=rate, block=rate // 10), []
        for second in range(12):
            for _ in range(10):
                stream.push(noise(rate // 10, seed=second))
            sizes.append(bytes_of(stream.state_dict()))
        assert max(sizes[2:]) == min(sizes[2:])


def test_levels_that_the_network_has_not(projecting):
    """Every sample is scaled as the whole until it would be."""
    mixture = noise(1, 6000)
    stream = projecting.stream(voice=VOICE)
    outputs = torch.cat(pushed(stream, mixture, [500] * 12), 1)
    whole = projecting.extract_batch(mixture, embeddings=VOICE)
    bare = causal("network").extract_batch(mixture, embeddings=VOICE)
    for last in (100, 3000, 5999):
        until = match_level(bare[:, : last + 1], mixture[:, : last + 1])
        assert outputs[0, last] == pytest.approx(until[0, last].item(), abs=1e-6)
    assert outputs[0, -1] == pytest.approx(whole[0, -1].item(), abs=1e-6)
    # In silence there is nothing to divide by.
    silent = torch.cat(pushed(stream, torch.zeros(1000), [100] * 10))
    assert not silent.any()


def test_presence_is_of_the_last_second(model, projecting):
    assert projecting.stream(voice=VOICE).presence is None
    stream = model.stream(voice=VOICE)
    assert stream.presence.tolist() == [False]
    stream.push(torch.stack((10 * noise(8000), torch.zeros(8000))))
    estimate = model.extract_batch(10 * noise(1, 8000), embeddings=VOICE)
    loud = estimate.square().sum() > 0.01 * (10 * noise(1, 8000)).square().sum()
    assert stream.presence.tolist() == [bool(loud), False]
    stream.push(torch.zeros(2, 9000))
    assert stream.presence.tolist() == [False, False]


def test_another_voice_from_now_on(model):
    stream, other = model.stream(voice=VOICE), noise(1, 16, seed=5)
    stream.push(noise(800))
    stream.change_voice(other)
    changed = stream.push(noise(800, seed=1))
    unchanged = model.stream(voice=VOICE)
    unchanged.push(noise(800))
    assert not torch.allclose(changed, unchanged.push(noise(800, seed=1)))
    stream.reset()
    fresh = model.stream(voice=other)
    assert torch.equal(stream.push(noise(800)), fresh.push(noise(800)))


def test_flush_begins_anew(model):
    stream = model.stream(voice=VOICE, rate=16000)
    first, second = (
        torch.cat(pushed(stream, noise(900), [400, 500])) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert stream.flush().shape == (0,)
    assert pushed(stream, noise(2, 0), [0])[-1].shape == (2, 0)


def test_arrays_and_lists_are_samples(model):
    samples = noise(300)
    expected = model.stream(voice=VOICE).push(samples)
    for given_as in (samples.numpy(), samples.tolist(), samples.double()):
        output = model.stream(voice=VOICE.numpy()).push(given_as)
        torch.testing.assert_close(output, expected)


def test_bf16(model):
    half = causal("network", precision="bf16")
    outputs = [
        torch.cat(pushed(used.stream(voice=VOICE), noise(4000), [160] * 25))
        for used in (model, half)
    ]
    error = (outputs[1] - outputs[0]).norm() / outputs[0].norm()
    assert 0 < error < 0.05


def test_what_cannot_be_used_is_told(model):
    stream = model.stream(voice=VOICE)
    stream.push(noise(2, 100))
    for samples, message in (
        (noise(100), "do not go on with a stream of 2 rows"),
        (noise(3, 100), "do not go on with a stream of 2 rows"),
        (noise(1, 2, 3), r"\(time,\) or \(rows, time\)"),
        (torch.full((2, 10), float("nan")), "NaN"),
        (torch.ones(2, 10, dtype=torch.int16), "floating point"),
        ("speech", "samples must be a tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.push(samples)
    # It goes on.
    reference = model.stream(voice=VOICE)
    reference.push(noise(2, 100))
    assert torch.equal(stream.push(noise(2, 50)), reference.push(noise(2, 50)))
    with pytest.raises(ValueError, match="no block of 80: pad"):
        model.stream(voice=VOICE, block=80).push(noise(79))
    with pytest.raises(ValueError, match="3 rows of samples, one for each voice"):
        model.stream(voice=noise(3, 16)).push(noise(2, 100))
    with pytest.raises(ValueError, match="3 voices, but the stream has 2 rows"):
        stream.change_voice(noise(3, 16))
    with pytest.raises(ValueError, match="have shape"):
        model.stream(voice=noise(1, 17))
    for rate in (0, 10, 10**7, 8000.5):
        with pytest.raises(ValueError, match="audio has 1000 to 768000 Hz"):
            model.stream(voice=VOICE, rate=rate)
    with pytest.raises(ValueError, match="44101: it has no simple ratio to the 8000"):
        model.stream(voice=VOICE, rate=44101)
    for block in (0, 0.5, 80.5):
        with pytest.raises(ValueError, match="whole number of samples"):
            model.stream(voice=VOICE, block=block)
    # As sound cards tell their rates.
    stream = model.stream(voice=VOICE, rate=44100.0, block=441.0)
    assert stream.push(noise(441)).shape == (441,) and stream.rate == 44100


def test_a_model_that_looks_ahead_says_what_to_train():
    modules = build()
    modules.pop("speaker_classifier")
    offline = TargetSpeechExtraction(modules, {"sample_rate": 8000})
    with pytest.raises(ValueError, match=r"looks ahead: .* `--causal True`"):
        offline.stream(voice=VOICE)


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl+C while the third chunk is extracted."""
    step, chunks = streams.step, []

    def count(*arguments):
        chunks.append(None)
        if len(chunks) == 3:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(streams, "step", count)


@pytest.mark.parametrize("level", ["network", "mixture"])
def test_ctrl_c_keeps_what_is_done_of_a_file(level, interrupted, tmp_path, caplog):
    used, rate = causal(level), 16000
    mixture = noise(40 * rate).numpy()
    path, output, residual = (tmp_path / f"{x}.wav" for x in ("a", "b", "c"))
    soundfile.write(path, mixture, rate, "FLOAT")
    with pytest.raises(KeyboardInterrupt):
        used.extract_file(
            path,
            embeddings=VOICE,
            output_path=output,
            residual_path=residual,
            keep_partial=True,
        )
    kept, others = soundfile.read(output)[0], soundfile.read(residual)[0]
    assert len(kept) == len(others) and 0 <= 24 * rate - len(kept) < 100
    np.testing.assert_allclose(kept + others, mixture[: len(kept)], atol=1e-6)
    assert "holds the first 24 s" in caplog.text
    start = tmp_path / "start.wav"
    soundfile.write(start, mixture[: len(kept)], rate, "FLOAT")
    whole = used.extract_file(start, embeddings=VOICE).numpy()
    # The last moment of the shorter recording is filtered against silence.
    np.testing.assert_allclose(kept[:-4000], whole[:-4000], atol=1e-3)


def test_unless_asked_ctrl_c_leaves_nothing(model, interrupted, tmp_path):
    path, output = tmp_path / "a.wav", tmp_path / "b.wav"
    soundfile.write(path, noise(320000).numpy(), 8000)
    with pytest.raises(KeyboardInterrupt):
        model.extract_file(path, embeddings=VOICE, output_path=output)
    assert list(tmp_path.iterdir()) == [path]
