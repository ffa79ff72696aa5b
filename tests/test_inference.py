"""Extraction from tensors and files with an exported model."""

import os

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly
from tiny_model import SAMPLE_RATE, export, load_identity

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.inference.recordings import Recording
from speechbrain_peer.inference.writing import choose_encoding, write_blocks
from speechbrain_peer.models import (
    bsrnn,
    dpccn,
    sepformer,
    spex_plus,
    td_speakerbeam,
    td_speakerbeam_map,
)
from speechbrain_peer.nnet.filterbank import Decoder, Encoder
from speechbrain_peer.nnet.mask import MaskHead
from speechbrain_peer.nnet.stft import StftDecoder, StftEncoder
from speechbrain_peer.nnet.voice import features_of
from speechbrain_peer.packaging.loading import load_model
from speechbrain_peer.peer_learning.exchange import extract
from speechbrain_peer.utils.audio import LOUDEST, AudioError
from speechbrain_peer.utils.signal import match_level


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with random weights."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(folder)
    return TargetSpeechExtraction.from_hparams(source=folder)


@pytest.fixture
def identity(tmp_path):
    """A model whose estimate is the mixture, but for half a frame at both ends."""
    return load_identity(tmp_path / "identity")


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(*shape, generator=generator)


def tones(rate, seconds=1.0):
    """What every sample rate in these tests can hold, (time,)."""
    time = np.arange(int(rate * seconds)) / rate
    signal = np.sin(2 * np.pi * 440 * time) + np.sin(2 * np.pi * 1234 * time + 1)
    return 0.2 * signal


@pytest.fixture
def audio(tmp_path):
    """A mixture and an enrollment at the model's rate, as float files."""
    folder = tmp_path / "mixtures and ünicode"
    folder.mkdir()
    paths = folder / "mixture.wav", folder / "enrollment.wav"
    for seed, path in enumerate(paths):
        samples = noise(8000 + 4000 * seed, seed=seed).numpy()
        soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")
    return paths


def read(path):
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])


def test_batch_is_what_the_stages_compute_with_the_level_in_the_mixture(model):
    mixtures, enrollments = noise(2, 6000), noise(2, 9000, seed=1)
    embeddings = model.mods["speaker_encoder"](enrollments)
    expected = match_level(extract(model.mods, mixtures, embeddings), mixtures)
    estimates = model.extract_batch(mixtures, enrollments)
    torch.testing.assert_close(estimates, expected, rtol=0, atol=1e-6)
    # A projection: what it leaves of the mixture is orthogonal to it.
    assert estimates.abs().max() > 1e-3
    rest = ((mixtures - estimates) * estimates).sum(1)
    assert rest.abs().max() < 1e-5 * estimates.square().sum(1).min()


def test_embeddings_stand_for_enrollments(model):
    mixtures, enrollments = noise(2, 3000), noise(2, 4000, seed=1)
    lens = torch.tensor([1.0, 0.5])
    embeddings = model.encode_speaker(enrollments, lens)
    assert embeddings.shape == (2, 16)
    torch.testing.assert_close(
        model(mixtures, embeddings=embeddings),
        model.extract_batch(mixtures, enrollments, enrollment_lens=lens),
    )


def test_embeddings_get_the_type_of_the_model(model, audio):
    embedding = model.encode_speaker(noise(1, 4000, seed=1))
    mixtures = noise(1, 3000)
    torch.testing.assert_close(
        model.extract_batch(mixtures, embeddings=embedding.double()),
        model.extract_batch(mixtures, embeddings=embedding),
    )
    torch.testing.assert_close(
        model.extract_file(audio[0], embeddings=embedding.double()),
        model.extract_file(audio[0], embeddings=embedding),
    )


def test_padded_items_give_what_they_give_alone(model):
    lengths, enrollment_lengths = [8000, 5003, 2500], [6000, 9000, 2001]
    # What is in the padding must not matter.
    mixtures, enrollments = noise(3, 8000), noise(3, 9000, seed=1)
    estimates = model.extract_batch(
        mixtures,
        enrollments,
        mixture_lens=torch.tensor(lengths) / 8000,
        enrollment_lens=torch.tensor(enrollment_lengths) / 9000,
    )
    for item, (length, enrolled) in enumerate(
        zip(lengths, enrollment_lengths, strict=True)
    ):
        alone = model.extract_batch(
            mixtures[item : item + 1, :length], enrollments[item : item + 1, :enrolled]
        )
        torch.testing.assert_close(
            estimates[item, :length], alone[0], rtol=0, atol=1e-4 * alone.abs().max()
        )
        assert not estimates[item, length:].any()


def test_a_representation_is_filters_by_frames_and_decodes(identity):
    mixtures = noise(2, 800)
    representation = identity.encode_batch(mixtures)
    assert representation.shape == (2, 16, 99)
    waveforms = identity.decode_batch(representation, length=800)
    torch.testing.assert_close(waveforms[:, 8:-8], mixtures[:, 8:-8])


def test_a_silent_mixture_gives_silence(model):
    estimates = model.extract_batch(torch.zeros(1, 3000), noise(1, 3000))
    assert torch.equal(estimates, torch.zeros(1, 3000))


def test_a_mixture_shorter_than_a_frame_is_extracted(model):
    estimates = model.extract_batch(noise(1, 5), noise(1, 3000, seed=1))
    assert estimates.shape == (1, 5)
    assert estimates.isfinite().all()


def test_parameters_are_frozen_unless_asked_for(model, tmp_path):
    assert not any(weight.requires_grad for weight in model.parameters())
    export(tmp_path / "model")
    trainable = TargetSpeechExtraction.from_hparams(
        tmp_path / "model", freeze_params=False
    )
    trainable.extract_batch(noise(1, 3000), noise(1, 3000)).sum().backward()
    assert trainable.mods["speaker_encoder"].linear.weight.grad is not None


def test_bf16_is_close_and_returns_fp32(model, tmp_path):
    export(tmp_path / "model")
    fast = TargetSpeechExtraction.from_hparams(
        tmp_path / "model", run_opts={"precision": "bf16", "device": "cpu"}
    )
    mixtures, enrollments = noise(1, 4000), noise(1, 4000, seed=1)
    estimates = fast.extract_batch(mixtures, enrollments)
    expected = model.extract_batch(mixtures, enrollments)
    assert estimates.dtype == torch.float32
    assert (estimates - expected).norm() < 0.1 * expected.norm()


SIZES = {"n_filters": 16, "kernel_size": 16, "stride": 8}


def stages_of(backbone):
    """The stages of a tiny model with random weights."""
    torch.manual_seed(0)
    encoder, decoder = Encoder(**SIZES), Decoder(**SIZES)
    speaker_encoder = td_speakerbeam.SpeakerEncoder(
        **SIZES, channels=6, hidden_channels=8, n_blocks=2, embedding_size=4
    )
    mask_head = MaskHead(8, 16)
    if backbone == "td_speakerbeam":
        separator = td_speakerbeam.Separator(16, 4, 8, 3, 2, 2, "mul", embedding_size=4)
        mask_head = MaskHead(4, 16)
    elif backbone == "td_speakerbeam_map":
        speaker_encoder = td_speakerbeam_map.SpeakerEncoder(16, cue_frames=4)
        separator = td_speakerbeam_map.Separator(16, 8, 12, 3, 2, cue_frames=4)
    elif backbone == "sepformer":
        separator = sepformer.Separator(16, 8, 10, 1, 1, n_heads=2, ffn_channels=12)
    elif backbone == "spex_plus":
        filters = {"n_filters": 8, "kernel_sizes": [20, 80, 160], "stride": 10}
        encoder = spex_plus.MultiScaleEncoder(**filters)
        decoder = spex_plus.MultiScaleDecoder(**filters)
        speaker_encoder = spex_plus.SpeakerEncoder(24, channels=5, embedding_size=4)
        separator = spex_plus.Separator(24, 6, 10, 3, 2, embedding_size=4)
        mask_head = MaskHead(6, 24, prelu=False)
    elif backbone == "bsrnn":
        bands = [(5, 3), (3, 6)]
        encoder, decoder = StftEncoder(64, 32), StftDecoder(64, 32)
        speaker_encoder = bsrnn.SpeakerEncoder(64)
        separator = bsrnn.Separator(64, bands, 6, 12, n_blocks=2)
        mask_head = bsrnn.MaskHead(bands, 6, 24)
    else:
        encoder, decoder = StftEncoder(64, 16), StftDecoder(64, 16)
        speaker_encoder = dpccn.SpeakerEncoder(64, 6, 8, 2, embedding_size=4)
        separator = dpccn.Separator(
            64,
            channels=4,
            dense_channels=6,
            n_dense=1,
            dense_layers=3,
            deep_channels=[6, 7],
            tcn_channels=8,
            n_blocks=2,
            out_channels=8,
        )
        mask_head = dpccn.MappingHead(8)
    return {
        "encoder": encoder,
        "speaker_encoder": speaker_encoder,
        "separator": separator,
        "mask_head": mask_head,
        "decoder": decoder,
    }


BACKBONES = (
    *("td_speakerbeam", "td_speakerbeam_map"),
    *("spex_plus", "dpccn", "sepformer", "bsrnn"),
)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("content", [float("nan"), float("inf"), 1e30, "noise"])
def test_what_is_in_the_padding_does_not_matter(backbone, content):
    """Lengths decide, to the last bit."""
    model = TargetSpeechExtraction(stages_of(backbone), {"sample_rate": SAMPLE_RATE})
    lengths = {"mixture": [3000, 2003], "enrollment": [1601, 4000]}
    lens = {kind: torch.tensor(n) / max(n) for kind, n in lengths.items()}
    signals = {kind: noise(2, max(n)) for kind, n in lengths.items()}
    results = []
    for filling in (0.0, content):
        for kind, samples in signals.items():
            for item, length in zip(samples, lengths[kind], strict=True):
                rest = noise(len(item), seed=3)[length:]
                item[length:] = rest if filling == "noise" else filling
        mixtures, enrollments = signals["mixture"], signals["enrollment"]
        estimates = model.extract_batch(
            mixtures, enrollments, lens["mixture"], lens["enrollment"]
        )
        assert estimates.isfinite().all() and estimates.any(1).all()
        representation = model.encode_batch(mixtures, lens["mixture"])
        voice = model.encode_speaker(enrollments, lens["enrollment"])
        results.append((estimates, features_of(voice), representation))
    for zeros, filled in zip(*results, strict=True):
        assert torch.equal(zeros, filled)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_loudest_samples_that_are_taken_give_no_nan(backbone):
    """And nothing louder is taken."""
    model = TargetSpeechExtraction(stages_of(backbone), {"sample_rate": SAMPLE_RATE})
    mixtures, enrollments = noise(1, 4000), noise(1, 4000, seed=1)
    mixtures[0, 1000:2000] = LOUDEST
    enrollments[0, 3000:] = -LOUDEST
    estimates = model.extract_batch(mixtures, enrollments)
    assert estimates.isfinite().all() and estimates.any()
    mixtures[0, 1500] = 1.01 * LOUDEST
    with pytest.raises(ValueError, match=r"mixtures hold NaN.*beyond 100000"):
        model.extract_batch(mixtures, enrollments)


def test_a_burst_in_a_file_is_told_with_its_time(model, audio):
    samples = read(audio[0]).numpy()
    samples[6000] = 1e25
    soundfile.write(audio[0], samples, SAMPLE_RATE, subtype="FLOAT")
    for mixture, enrollment in (audio, audio[::-1]):
        with pytest.raises(AudioError, match=r"mixture\.wav: .*first at 0\.750 s"):
            model.extract_file(mixture, enrollment)


def test_what_fp32_does_not_hold_is_refused(model):
    mixtures, enrollments = noise(1, 3000).double(), noise(1, 3000, seed=1)
    embeddings = model.encode_speaker(enrollments).double()
    embeddings[0, 3] = 1e300
    with pytest.raises(ValueError, match="embeddings hold"):
        model.extract_batch(mixtures, embeddings=embeddings)
    mixtures[0, 5] = 1e300
    with pytest.raises(ValueError, match="mixtures hold"):
        model.extract_batch(mixtures, enrollments)


@pytest.mark.parametrize(
    "convert",
    [
        torch.Tensor.numpy,
        lambda x: x.double().numpy(),
        lambda x: x.numpy().astype(">f4"),
        lambda x: np.asfortranarray(x.numpy()),
        lambda x: x.numpy()[:, ::-1][:, ::-1],
        torch.Tensor.tolist,
        lambda x: list(x.numpy()),
        list,
    ],
)
def test_arrays_and_lists_are_taken(model, audio, convert):
    mixtures, enrollments = noise(2, 3000), noise(2, 3000, seed=1)
    lens = torch.tensor([1.0, 0.5])
    expected = model.extract_batch(mixtures, enrollments, lens, lens)
    given = map(convert, (mixtures, enrollments))
    estimates = model.extract_batch(*given, lens.tolist(), lens.numpy())
    torch.testing.assert_close(estimates, expected)
    embeddings = model.encode_speaker(enrollments)
    torch.testing.assert_close(
        model.extract_batch(mixtures, embeddings=convert(embeddings)),
        model.extract_batch(mixtures, embeddings=embeddings),
    )
    torch.testing.assert_close(
        model.extract_file(audio[0], embeddings=convert(embeddings[:1])),
        model.extract_file(audio[0], embeddings=embeddings[0]),
    )


@pytest.mark.parametrize("content", [None, "speech.wav", [[0.1, 0.2], [0.3]], [{}]])
def test_what_is_no_array_is_refused_by_name(model, content):
    given = noise(1, 3000)
    for name, arguments in {
        "enrollments": {"mixtures": given, "enrollments": content or ""},
        "mixtures": {"mixtures": content, "enrollments": given},
        "embeddings": {"mixtures": given, "embeddings": content or ""},
        "The lengths of mixtures": {
            "mixtures": given,
            "enrollments": given,
            "mixture_lens": content or "",
        },
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must be a tensor"):
            model.extract_batch(**arguments)


def test_the_device_follows_the_model(tmp_path):
    export(tmp_path / "model")
    model = TargetSpeechExtraction.from_hparams(
        tmp_path / "model", run_opts={"device": "cpu"}
    )
    assert model.device == "cpu"
    assert model.to("meta") is model
    assert (model.device, model.device_type) == ("meta", "meta")


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_load_audio_gives_what_the_model_hears(model, tmp_path, rate):
    """SpeechBrain's gives 16 kHz to every model."""
    path = tmp_path / "stereo.wav"
    signal = tones(rate)
    soundfile.write(path, signal[:, None] * [0.5, 1.5], rate, subtype="FLOAT")
    loaded = model.load_audio(path)
    assert loaded.shape == (SAMPLE_RATE,)
    inner = slice(400, -400)  # away from the ends of the filters
    np.testing.assert_allclose(loaded[inner], tones(SAMPLE_RATE)[inner], atol=2e-3)
    torch.testing.assert_close(model.load_audio(str(path)), loaded)
    if rate == SAMPLE_RATE:
        voice = noise(1, 4000)
        torch.testing.assert_close(
            model.extract_batch(loaded[None], voice)[0],
            model.extract_file(path, embeddings=model.encode_speaker(voice)),
        )


@pytest.mark.parametrize("name", ["missing.wav", "folder that/is not/there.wav"])
def test_load_audio_names_what_is_missing(model, name):
    with pytest.raises(AudioError, match=name):
        model.load_audio(name)


def test_another_yaml_of_the_folder_is_loaded(tmp_path):
    """Its name is the second argument, as in SpeechBrain."""
    export(tmp_path / "model")
    yaml = tmp_path / "model" / "hyperparams.yaml"
    yaml.rename(yaml.with_name("other.yaml"))
    model = TargetSpeechExtraction.from_hparams(tmp_path / "model", "other.yaml")
    assert model.hparams.sample_rate == SAMPLE_RATE
    with pytest.raises(FileNotFoundError, match=r"hyperparams\.yaml"):
        TargetSpeechExtraction.from_hparams(tmp_path / "model")


@pytest.mark.parametrize("change", ["half", "bfloat16", "double"])
def test_weights_stay_float32(model, change):
    with pytest.raises(ValueError, match=r"weights stay float32.*precision"):
        getattr(model, change)()
    assert model.extract_batch(noise(1, 800), noise(1, 800)).dtype == torch.float32


@pytest.mark.parametrize("overrides", [{"sample_rate": 16000}, "sample_rate: 16000"])
def test_entries_of_the_yaml_are_overridden(tmp_path, overrides):
    export(tmp_path / "model")
    model = TargetSpeechExtraction.from_hparams(tmp_path / "model", overrides=overrides)
    assert model.hparams.sample_rate == 16000


def test_an_override_inside_of_a_stage(tmp_path):
    export(tmp_path / "model")
    with pytest.raises(ValueError, match=r"does not fit the model.*separator"):
        TargetSpeechExtraction.from_hparams(
            tmp_path / "model", overrides={"separator": {"n_repeats": 3}}
        )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "sample_rate: !apply:os.system [touch bad]",
            "!apply:os.system is not allowed",
        ),
        # A text of which nothing is made.
        (
            {"sample_rate": "!apply:os.system"},
            "its sample_rate, '!apply:os.system', is",
        ),
        ({"sample_rate": "(!!python/name:os.system)"}, "in parentheses is not allowed"),
        ({"separator": {"n_repeats": "<sample_rate>"}}, "without !ref"),
        ({"no_such": 1}, "cannot take the overrides.*no_such"),
        ({"sample_rate": 8000.0}, "its sample_rate, 8000.0, is no whole number of Hz"),
        ({"sample_rate": "fast"}, "its sample_rate, 'fast', is no whole number"),
        ({"sample_rate": {"deep": 1}}, "cannot take the overrides"),
        ("sample_rate: [", "cannot take the overrides"),
        ("sample_rate", "cannot take the overrides"),
        (7, "cannot take the overrides"),
    ],
)
def test_overrides_are_checked_as_the_yaml(tmp_path, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)
    export(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "model", overrides=overrides)
    assert not (tmp_path / "bad").exists()


def test_download_only_loads_nothing(tmp_path):
    export(tmp_path / "model")
    (tmp_path / "model" / "weights.ckpt").write_bytes(b"never read")
    assert (
        TargetSpeechExtraction.from_hparams(tmp_path / "model", download_only=True)
        is None
    )
    with pytest.raises(FileNotFoundError):
        TargetSpeechExtraction.from_hparams(tmp_path / "none", download_only=True)


NAN = torch.full((1, 3000), float("nan"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enrollments": None}, "either enrollments or embeddings"),
        ({"embeddings": torch.ones(2, 16)}, "either enrollments or embeddings"),
        ({"enrollments": noise(1, 3000)}, "as many enrollments"),
        ({"enrollments": noise(3, 3000)}, "as many enrollments"),
        ({"enrollments": None, "embeddings": torch.ones(3, 16)}, r"\(2, 16\).*\(3, 16"),
        ({"enrollments": None, "embeddings": torch.ones(2, 3)}, r"\(2, 16\).*\(2, 3"),
        ({"enrollments": None, "embeddings": torch.ones(16)}, "as many enrollments"),
        ({"enrollments": None, "embeddings": NAN[:, :16].expand(2, -1)}, "hold NaN"),
        ({"mixtures": noise(3000)}, r"mixtures must be \(batch, time\).*\(3000,\)"),
        ({"mixtures": noise(2, 0)}, r"mixtures must be \(batch, time\)"),
        ({"mixtures": torch.cat([noise(1, 3000), NAN])}, r"mixtures hold NaN.*\[1\]"),
        ({"mixtures": torch.ones(2, 3000, dtype=torch.int16)}, "floating point"),
        ({"enrollments": torch.cat([NAN, noise(1, 3000)])}, r"enrollments hold.*\[0\]"),
        ({"enrollments": torch.eye(2, 3000)[:, 1:]}, r"silent.*\[0\]"),
        ({"enrollments": noise(2, 100)}, "0.013 s is too short"),
        ({"enrollment_lens": [1.0, 0.01]}, "too short"),
        ({"mixture_lens": [1.0]}, "lengths of mixtures must be 2"),
        ({"mixture_lens": [3000, 2000]}, r"lengths of mixtures must be.*\(0, 1\]"),
        ({"mixture_lens": [1.0, 0.0]}, "lengths of mixtures must be"),
    ],
)
def test_wrong_input_is_explained(model, arguments, message):
    defaults = {"mixtures": noise(2, 3000), "enrollments": noise(2, 3000)}
    with pytest.raises(ValueError, match=message):
        model.extract_batch(**{**defaults, **arguments})


def test_enrollment_that_is_silent_where_it_is_not_padded_is_silent(model):
    enrollments = torch.cat([torch.zeros(1, 2000), torch.ones(1, 2000)], dim=1)
    with pytest.raises(ValueError, match="silent"):
        model.encode_speaker(enrollments, torch.tensor([0.5]))


def test_missing_modules_are_named(model):
    modules = {name: model.mods[name] for name in ("encoder", "separator", "decoder")}
    with pytest.raises(ValueError, match="speaker_encoder, mask_head"):
        TargetSpeechExtraction(modules, {"sample_rate": SAMPLE_RATE})


def test_a_file_gives_what_its_samples_give(model, audio, tmp_path):
    mixture_path, enrollment_path = audio
    estimate = model.extract_file(mixture_path, enrollment_path)
    expected = model.extract_batch(
        read(mixture_path)[None], read(enrollment_path)[None]
    )
    torch.testing.assert_close(estimate, expected[0], rtol=0, atol=1e-5)

    output = tmp_path / "new folder" / "schätzung 1.wav"
    assert model.extract_file(*map(str, audio), output_path=output) == output
    torch.testing.assert_close(read(output), expected[0], rtol=0, atol=1e-5)
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
def test_any_rate_and_channels_keep_time_level_and_length(
    identity, audio, tmp_path, rate, channels
):
    signal = tones(rate)[:-1]
    path = tmp_path / "recording.flac"
    # The channels' mean is the signal.
    balance = np.linspace(0.5, 1.5, channels) if channels > 1 else np.ones(1)
    soundfile.write(path, signal[:, None] * balance, rate)
    output = identity.extract_file(path, audio[1], output_path=tmp_path / "out.flac")
    info = soundfile.info(output)
    assert (info.samplerate, info.frames, info.channels) == (rate, len(signal), 1)
    inner = slice(rate // 20, -rate // 20)  # away from the ends of the filters
    error = read(output).numpy()[inner] - signal[inner]
    assert np.abs(error).max() < 0.01 * np.abs(signal).max()


def test_enrollment_is_resampled_to_the_rate_of_the_model(model, audio, tmp_path):
    enrollment = tones(16000)
    soundfile.write(tmp_path / "fast.wav", enrollment, 16000, subtype="FLOAT")
    slow = torch.from_numpy(resample_poly(np.float32(enrollment), 1, 2))
    torch.testing.assert_close(
        model.extract_file(audio[0], tmp_path / "fast.wav"),
        model.extract_file(audio[0], embeddings=model.encode_speaker(slow[None])),
    )


def test_embeddings_of_several_enrollments_are_averaged(model, audio):
    embeddings = [model.encode_speaker(read(path)[None]) for path in audio]
    mean = (embeddings[0] + embeddings[1]) / 2
    several = model.extract_file(audio[0], list(audio))
    torch.testing.assert_close(several, model.extract_file(audio[0], embeddings=mean))
    torch.testing.assert_close(
        several, model.extract_file(audio[0], embeddings=mean[0])
    )


def test_files_of_one_name_do_not_collide(model, audio, tmp_path, monkeypatch):
    """SpeechBrain's separate_file leaves a link to the first, which it then reads."""
    monkeypatch.chdir(tmp_path)
    other = tmp_path / audio[0].name
    soundfile.write(other, noise(5000, seed=5).numpy(), SAMPLE_RATE, subtype="FLOAT")
    before = set(tmp_path.rglob("*"))
    estimates = [model.extract_file(path, audio[1]) for path in (audio[0], other.name)]
    assert [len(estimate) for estimate in estimates] == [8000, 5000]
    assert set(tmp_path.rglob("*")) == before


def write_like(path, samples, subtype):
    """Writes samples, (time,), as an estimate of a mixture of this encoding."""
    mixture = Recording("mixture.wav", len(samples), 8000, 1, subtype)
    samples = np.float32(samples)[:, None]
    write_blocks(path, lambda: np.split(samples, 4), choose_encoding(path, mixture, 1))


@pytest.mark.parametrize(
    ("source", "suffix", "expected"),
    [
        ("PCM_16", ".wav", "PCM_16"),
        ("PCM_24", ".wav", "PCM_24"),
        ("FLOAT", ".wav", "FLOAT"),
        ("PCM_24", ".flac", "PCM_24"),
        ("FLOAT", ".flac", "PCM_16"),
        ("MPEG_LAYER_III", ".WAV", "PCM_16"),
        ("PCM_16", ".ogg", "VORBIS"),
        ("PCM_16", ".oga", "VORBIS"),
        ("PCM_16", ".opus", "OPUS"),
        ("PCM_24", ".aif", "PCM_24"),
        ("FLOAT", ".AIFC", "FLOAT"),
    ],
)
def test_the_encoding_of_the_mixture_is_kept(tmp_path, source, suffix, expected):
    path = tmp_path / f"out{suffix}"
    write_like(path, tones(8000), source)
    assert soundfile.info(path).subtype == expected
    lossless = expected not in ("VORBIS", "OPUS")
    np.testing.assert_allclose(read(path), tones(8000), atol=1e-4 if lossless else 0.1)


def test_output_is_never_clipped(tmp_path, caplog):
    loud = np.float32(4 * tones(8000))
    assert np.abs(loud).max() > 1.4
    write_like(tmp_path / "out.wav", loud, "PCM_16")
    np.testing.assert_array_equal(read(tmp_path / "out.wav"), loud)
    assert not caplog.text

    write_like(tmp_path / "out.flac", loud, "PCM_16")
    attenuated = read(tmp_path / "out.flac").numpy()
    np.testing.assert_allclose(attenuated * np.abs(loud).max(), loud, atol=1e-4)
    assert "attenuated by" in caplog.text


def test_a_wav_file_beyond_4_gib_is_rf64(tmp_path):
    """Its header could not tell its length."""
    mixture = Recording("mixture.wav", 1 << 30, 48000, 2, "PCM_16")
    path = tmp_path / "out.wav"
    encoding = choose_encoding(path, mixture, channels=2)
    assert encoding.format == "RF64"
    write_blocks(path, lambda: [np.full((100, 2), 0.5)], encoding)
    assert Recording.open(path)[1:5] == (100, 48000, 2, "PCM_16")


def test_an_input_is_never_overwritten(model, audio, tmp_path):
    link = tmp_path / "link.wav"
    os.link(audio[1], link)
    before = [path.read_bytes() for path in audio]
    for output in (audio[0], str(audio[1]), link):
        with pytest.raises(AudioError, match="is an input"):
            model.extract_file(*audio, output_path=output)
    assert [path.read_bytes() for path in audio] == before


def test_a_failure_leaves_the_old_output(model, audio, tmp_path):
    output = tmp_path / "out.wav"
    output.write_text("old")
    soundfile.write(tmp_path / "silence.wav", np.zeros(8000), SAMPLE_RATE)
    with pytest.raises(ValueError, match=r"silence\.wav.*silent"):
        model.extract_file(audio[0], tmp_path / "silence.wav", output_path=output)
    assert output.read_text() == "old"


@pytest.mark.parametrize(
    "content", ["missing", "text", "empty", "nan", "raw", "folder"]
)
def test_files_that_cannot_be_read_are_named(model, audio, tmp_path, content):
    path = tmp_path / ("broken.raw" if content == "raw" else "broken.wav")
    if content in ("text", "raw"):
        path.write_text("no audio at all")
    elif content in ("empty", "nan"):
        samples = np.full(4000 if content == "nan" else 0, np.nan)
        soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")
    elif content == "folder":
        path.mkdir()
    with pytest.raises(AudioError, match=path.name):
        model.extract_file(path, audio[1])
    with pytest.raises(AudioError, match=path.name):
        model.extract_file(audio[0], [audio[1], path])


@pytest.mark.parametrize("name", ["out.txt", "out", "out.raw", "folder.wav"])
def test_an_impossible_output_is_refused_before_the_work(model, audio, tmp_path, name):
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioError, match=name):
        model.extract_file("not even read.wav", audio[1], output_path=tmp_path / name)


def test_enrollment_paths_or_embeddings_not_both_nor_neither(model, audio):
    with pytest.raises(ValueError, match="either enrollment_paths or embeddings"):
        model.extract_file(audio[0])
    with pytest.raises(ValueError, match="either enrollment_paths or embeddings"):
        model.extract_file(*audio, embeddings=torch.zeros(16))
    with pytest.raises(ValueError, match="enrollment_paths is empty"):
        model.extract_file(audio[0], [])


@pytest.mark.parametrize("shape", [(3,), (2, 16), (2, 8), (1, 1, 16)])
def test_an_embedding_of_a_file_is_one_of_the_model_s_size(model, audio, shape):
    with pytest.raises(ValueError, match=r"must have shape \(1, 16\)"):
        model.extract_file(audio[0], embeddings=torch.ones(shape))


def test_real_speech_at_its_own_rate(model, mini_librimix, tmp_path):
    """LibriSpeech is 16 kHz, the model 8 kHz."""
    mixture, enrollment = sorted(mini_librimix.rglob("*.flac"))[:2]
    output = model.extract_file(mixture, enrollment, output_path=tmp_path / "out.flac")
    assert Recording.open(output)[1:] == Recording.open(mixture)[1:]
    assert soundfile.info(output).samplerate == 16000
    # A projection is never louder.
    mixture, estimate = read(mixture), read(output)
    assert 0 < estimate.square().sum() < 1.01 * mixture.square().sum()
