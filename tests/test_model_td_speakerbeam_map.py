"""TD-SpeakerBeam with a map: the cue, padding, edges, streams, and peer learning."""

import pytest
import torch
from rows import HPARAMS, build_row
from torch.nn import functional as F

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.nnet.voice import Frames
from speechbrain_peer.packaging.export import export_model
from speechbrain_peer.packaging.loading import load_model
from speechbrain_peer.packaging.onnx import export_onnx
from speechbrain_peer.peer_learning import streams
from speechbrain_peer.peer_learning.exchange import PeerLearning, embed, extract
from speechbrain_peer.peer_learning.losses import PeerLoss
from speechbrain_peer.peer_learning.predictors import fold_predictors
from speechbrain_peer.utils.signal import si_snr

TINY = {
    "n_filters": 16,
    "kernel_size": 16,
    "stride": 8,
    "channels": 8,
    "hidden_channels": 12,
    "n_blocks": 3,
    "n_repeats": 2,
    "cue_frames": 4,
}
KINDS = [
    {},
    {"causal": True},
    {"cue_frames": 1},
    {"learned_temperature": True, "temperature": 20.0},
]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """The recipe's checkpointer makes a folder where it is loaded."""
    monkeypatch.chdir(tmp_path)


def tiny(exchange="better", **overrides):
    """The modules of the recipe, tiny."""
    overrides = {"exchange": exchange} | TINY | overrides
    return build_row("td_speakerbeam_map", "results", **overrides)[0]


def count(modules):
    return sum(parameter.numel() for parameter in modules.parameters())


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def extract_from(modules, mixtures, enrollments, mixture_lens=None, lens=None):
    embeddings = embed(modules, enrollments, lens)
    return extract(modules, mixtures, embeddings, mixture_lens)


def pad(signals):
    """Padded, and the relative lengths."""
    lens = torch.tensor([len(signal) for signal in signals])
    padded = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True)
    return padded, lens / padded.shape[1]


def test_it_is_td_speakerbeam_without_a_speaker_network():
    """The separator's first layer alone is larger: it takes the map, too."""
    stages = {"encoder", "separator", "mask_head", "decoder"}
    vector, _ = build_row("td_speakerbeam", "results")
    of_map, _ = build_row("td_speakerbeam_map", "results")
    assert not count(of_map["speaker_encoder"])
    bottleneck = 512 * (128 + 2)
    assert count(of_map) == sum(count(vector[name]) for name in stages) + bottleneck


@torch.no_grad()
def test_the_voice_is_averages_of_groups_of_frames():
    modules, enrollment = tiny(), noise(1, 16 + 8 * 9)
    voice = embed(modules, enrollment)
    assert isinstance(voice, Frames)
    assert voice.features.shape == (1, 3, modules["speaker_encoder"].frame_size)
    magnitudes = modules["encoder"](enrollment)[0][0].abs()
    for group, frames in zip(voice.features[0], magnitudes.split(4), strict=True):
        torch.testing.assert_close(group, F.normalize(frames.mean(0), dim=0))


@torch.no_grad()
def test_a_frame_is_told_what_of_the_enrollment_is_like_the_frames_up_to_it():
    modules = tiny(temperature=5.0)
    voice = embed(modules, noise(1, 700, seed=1))
    representation, mask = modules["encoder"](noise(1, 300))
    heard = []
    modules["separator"].tcn.register_forward_pre_hook(
        lambda _, inputs: heard.append(inputs[0])
    )
    modules["separator"](representation, voice, mask)
    given, found = heard[0].chunk(2, dim=-1)
    assert torch.equal(given, representation)
    for frame in (0, 2, 20):
        last = representation[0, max(0, frame - 3) : frame + 1].abs().sum(0) / 4
        cosines = voice.features[0] @ F.normalize(last, dim=0)
        mean = F.normalize((5 * cosines).softmax(0) @ voice.features[0], dim=0)
        torch.testing.assert_close(found[0, frame], mean * (last @ mean))


@pytest.mark.parametrize("length", [1, 5, 16, 17, 23, 24, 49])
def test_any_length_goes_in_and_comes_out(length):
    """Also a single sample and less than a frame (16 samples)."""
    modules = tiny()
    estimates = extract_from(modules, noise(2, length), noise(2, length, seed=1))
    assert estimates.shape == (2, length)
    assert estimates.isfinite().all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_padded_items_are_extracted_as_if_alone(kind):
    """Mixtures and enrollments of lengths that have nothing to do with each other."""
    modules = tiny(**kind)
    mixtures = [noise(length, seed=length) for length in (1600, 1, 803, 11)]
    enrollments = [noise(length, seed=length) for length in (7, 2001, 900, 1999)]
    (mixture_batch, mixture_lens), (enrollment_batch, lens) = map(
        pad, (mixtures, enrollments)
    )
    estimates = extract_from(
        modules, mixture_batch, enrollment_batch, mixture_lens, lens
    )
    for index, pair in enumerate(zip(mixtures, enrollments, strict=True)):
        alone = extract_from(modules, *(signal[None] for signal in pair))[0]
        estimate = estimates[index, : len(alone)]
        torch.testing.assert_close(estimate, alone, rtol=0, atol=1e-5)


def test_extraction_listens_to_the_enrollment_and_not_to_its_level():
    modules, mixture = tiny(), noise(1, 900)
    one, other = noise(1, 1200, seed=1), noise(1, 1200, seed=2).cumsum(1)
    estimate = extract_from(modules, mixture, one)
    assert si_snr(estimate, extract_from(modules, mixture, other)) < 40
    for level in (1e-3, 30):
        same = extract_from(modules, mixture, level * one)
        torch.testing.assert_close(same, estimate, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_silence_gives_numbers(kind):
    modules, silence = tiny(**kind), torch.zeros(1, 700)
    assert not extract_from(modules, silence, noise(1, 700)).any()
    assert extract_from(modules, noise(1, 700), silence).isfinite().all()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("exchange", ["better", "none"])
@pytest.mark.parametrize("kind", [{}, KINDS[1], KINDS[3]], ids=str)
def test_a_step_on_pairs_reaches_every_parameter(exchange, bf16, kind):
    modules = tiny(exchange, **kind)
    mixtures, targets = noise(4, 900), noise(2, 900, seed=1)
    lens = torch.tensor([1.0, 0.7])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        embeddings = embed(modules, noise(2, 1200, seed=2), lens)
        learn = PeerLearning(exchange)
        outputs = learn(modules, mixtures, embeddings, targets, lens)
        loss, _ = PeerLoss()(outputs, targets, lens)
    loss.backward()
    for name, parameter in modules.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@torch.no_grad()
def test_a_causal_model_hears_nothing_of_what_comes_later():
    """But for the rest of its last frame, of 16 samples."""
    modules = tiny(causal=True)
    enrollment, mixture = noise(1, 800), noise(1, 1600, seed=1)
    later = torch.cat((mixture[:, :1000], noise(1, 600, seed=2)), dim=1)
    one, other = (extract_from(modules, x, enrollment) for x in (mixture, later))
    torch.testing.assert_close(one[:, :984], other[:, :984], rtol=0, atol=1e-6)
    assert (one - other)[:, 1000:].abs().max() > 1e-3


@torch.no_grad()
def in_pieces(modules, mixtures, voices, cuts):
    """The estimates of mixtures that are cut, as streams give them."""
    state, estimates = streams.init_state(modules, len(mixtures)), []
    for piece in mixtures.tensor_split(cuts, dim=1):
        estimate, state = streams.step(modules, piece, voices, state)
        estimates.append(estimate)
    left = mixtures.shape[1] - sum(estimate.shape[1] for estimate in estimates)
    estimates.append(streams.finish(modules, voices, state, left))
    return torch.cat(estimates, dim=1)


@pytest.mark.parametrize("cue_frames", [1, 4])
@pytest.mark.parametrize("convert", [dict, fold_predictors])
def test_streams_cut_anywhere_give_the_whole(convert, cue_frames):
    modules = tiny(causal=True, cue_frames=cue_frames)
    modules = torch.nn.ModuleDict(convert(modules))
    generator = torch.Generator().manual_seed(0)
    for length, sizes in ((1007, (8, 333, None)), (17, (1,)), (40, (3,))):
        mixtures, enrollments = noise(2, length), noise(2, 1200, seed=1)
        whole = extract_from(modules, mixtures, enrollments)
        with torch.no_grad():
            voices = embed(modules, enrollments)
        for size in sizes:
            cuts = list(range(0, length, size or 1))
            if size is None:
                cuts = torch.randint(0, length + 1, (20,), generator=generator)
                cuts = sorted(cuts.tolist())
            estimates = in_pieces(modules, mixtures, voices, cuts)
            torch.testing.assert_close(estimates, whole, rtol=0, atol=1e-5)


def export(folder, exchange, **sizes):
    """Exports a tiny model; returns its stages and the folder."""
    trained, run = tiny(exchange, **sizes), folder / "hyperparams.yaml"
    # What peer learning adds must matter.
    if exchange != "none":
        with torch.no_grad():
            trained["mask_head"].combine.weight.mul_(5)
    text = (HPARAMS / "td_speakerbeam_map.yaml").read_text(encoding="utf-8")
    for key, value in (TINY | {"exchange": exchange} | sizes).items():
        lines = [line for line in text.splitlines() if line.startswith(f"{key}:")]
        text = text.replace(f"\n{lines[0]}\n", f"\n{key}: {value}\n")
    run.write_text(text, encoding="utf-8")
    return trained, export_model(run, trained, folder / "model")


def test_folding_and_export_keep_what_is_extracted(tmp_path):
    trained, source = export(tmp_path, "better")
    loaded, _ = load_model(source)
    assert "predictor1" not in loaded
    pair = noise(2, 1001), noise(2, 1200, seed=1)
    before, after = (extract_from(modules, *pair) for modules in (trained, loaded))
    rounding = 2e-6 * float(before.abs().max())
    torch.testing.assert_close(after, before, rtol=0, atol=rounding)


@pytest.mark.slow  # tracing
def test_onnx_graphs_extract_alike(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, source = export(tmp_path, "none", n_blocks=1, n_repeats=1)
    graphs = export_onnx(source, tmp_path / "graphs")
    encoder, extractor = (
        onnxruntime.InferenceSession(
            str(graphs / name), providers=["CPUExecutionProvider"]
        )
        for name in ("speaker_encoder.onnx", "extractor.onnx")
    )
    model = TargetSpeechExtraction.from_hparams(source)
    # In groups of 4 frames of 8 samples: with a last one that is whole, and one not.
    for batch, length, enrolled in ((1, 3000, 1000), (2, 4001, 1288)):
        mixtures, enrollments = noise(batch, length), noise(batch, enrolled, seed=1)
        (frames,) = encoder.run(["frames"], {"enrollment": enrollments.numpy()})
        inputs = {"mixture": mixtures.numpy(), "frames": frames}
        (estimates,) = extractor.run(["estimate"], inputs)
        expected = model.extract_batch(mixtures, enrollments)
        assert (torch.from_numpy(estimates) - expected).abs().max() < 1e-4
