"""BSRNN: bands, LSTMs, cues, padding, edges, streams, and peer learning by bands."""

import pytest
import torch
from rows import HPARAMS, build_row

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.models.bsrnn import MaskHead, Separator, SpeakerEncoder
from speechbrain_peer.nnet.band_split import BandLinear, BandNorm, GridNorm
from speechbrain_peer.nnet.lstm import Lstm, plain_lstm
from speechbrain_peer.nnet.voice import Frames, features_of
from speechbrain_peer.packaging.export import export_model
from speechbrain_peer.packaging.loading import load_model
from speechbrain_peer.packaging.onnx import export_onnx
from speechbrain_peer.peer_learning import streams
from speechbrain_peer.peer_learning.exchange import (
    PeerLearning,
    embed,
    extract,
    extract_together,
)
from speechbrain_peer.peer_learning.losses import PeerLoss
from speechbrain_peer.peer_learning.predictors import can_fold, fold_predictors
from speechbrain_peer.training.fine_tuning import start_from
from speechbrain_peer.utils.signal import si_snr

WINDOW, HOP = 64, 16
BANDS = [[5, 2], [2, 4], [1, 15]]
TINY = {
    "window": WINDOW,
    "hop": HOP,
    "bands": BANDS,
    "channels": 6,
    "n_blocks": 2,
    "speaker_channels": 6,
    "speaker_hidden_channels": 8,
    "speaker_blocks": 2,
}
EXCHANGES = ("better", "anyway", "itself", "none")
KINDS = [
    {},
    {"cue": "vector"},
    {"causal": True},
    {"causal": True, "cue": "vector"},
    {"learned_temperature": True, "temperature": 20.0},
]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """The recipe's checkpointer makes a folder where it is loaded."""
    monkeypatch.chdir(tmp_path)


def tiny(exchange="better", **overrides):
    """The modules of the recipe, tiny."""
    return build_row("bsrnn_pl", "results", exchange=exchange, **TINY | overrides)[0]


def export_tiny(folder, modules, *replacements, **overrides):
    """Exports the modules of `tiny`, as a run with these overrides does."""
    text = (HPARAMS / "bsrnn_pl.yaml").read_text(encoding="utf-8")
    for key, value in (TINY | overrides).items():
        (line,) = (x for x in text.splitlines() if x.startswith(f"{key}:"))
        text = text.replace(f"\n{line}\n", f"\n{key}: {value}\n")
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    run = folder / "hyperparams.yaml"
    run.write_text(text, encoding="utf-8")
    return export_model(run, modules, folder / "model")


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


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


@pytest.mark.parametrize(
    ("overrides", "millions"),
    [
        ({}, 1.3),
        ({"channels": 64, "n_blocks": 6}, 3.2),
        ({"channels": 64, "n_blocks": 6, "causal": True}, 2.5),
        ({"channels": 128, "n_blocks": 10}, 19.1),
    ],
)
def test_sizes(overrides, millions):
    modules, _ = build_row("bsrnn", "results", **overrides)
    assert round(count(modules) / 1e6, 1) == millions
    assert not count(modules["encoder"]) + count(modules["speaker_encoder"])


def test_a_wide_band_spectrum_at_16_khz():
    bands = [[15, 3], [10, 6], [5, 16], [1, 64], [1, 8]]
    sizes = {"window": 512, "bands": bands, "channels": 4, "n_blocks": 1}
    modules, _ = build_row("bsrnn", "results", **sizes)
    assert extract_from(modules, noise(1, 4000), noise(1, 4000)).shape == (1, 4000)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"bands .* cover 34 bins, but there are 33"):
        Separator(64, [[5, 2], [2, 4], [1, 16]], 4, 8, 1)
    for build in (
        lambda cue: Separator(64, BANDS, 4, 8, 1, cue=cue),
        lambda cue: SpeakerEncoder(64, cue=cue),
    ):
        with pytest.raises(ValueError, match="cue 'both': choose one of map, vector"):
            build("both")


@pytest.mark.parametrize("of_bins", [False, True])
@pytest.mark.parametrize("to_bins", [False, True])
def test_a_map_for_each_band_is_a_block_diagonal_matrix(of_bins, to_bins):
    linear = BandLinear(BANDS, 3, 5, of_bins, to_bins)
    widths = [width for number, width in BANDS for _ in range(number)]
    x = noise(2, 7, 33 if of_bins else 8, 3)
    with torch.no_grad():
        y = linear(x)
    maps = [
        (weight, bias)
        for weights, biases in zip(linear.weights, linear.biases, strict=True)
        for weight, bias in zip(weights, biases, strict=True)
    ]
    parts = x.split(widths if of_bins else 1, dim=2)
    expected = [
        torch.nn.functional.linear(part.flatten(2), weight, bias)
        for part, (weight, bias) in zip(parts, maps, strict=True)
    ]
    torch.testing.assert_close(y.flatten(2), torch.cat(expected, dim=2))


@pytest.mark.parametrize("causal", [False, True])
def test_norms_are_those_of_each_item_alone(causal):
    x = 3 * noise(2, 30, 33, 3) + 1
    mask = (torch.arange(30) < torch.tensor([30, 11])[:, None]).float()
    by_band, of_all = BandNorm(BANDS, causal)(x, mask), GridNorm(causal)(x, mask)
    widths = [width for number, width in BANDS for _ in range(number)]
    parts = list(zip(x.split(widths, 2), by_band.split(widths, 2), strict=True))
    for item, frames in enumerate((30, 11)):
        for frame in (0, 5, frames - 1):
            heard = frame + 1 if causal else frames
            for given, normed in (*parts, (x, of_all)):
                values = given[item, :heard].double()
                mean, deviation = values.mean(), values.std(correction=0)
                expected = (given[item, frame].double() - mean) / deviation
                torch.testing.assert_close(
                    normed[item, frame].double(), expected, rtol=1e-4, atol=1e-4
                )


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("inner", [1, 5])
@pytest.mark.parametrize("sizes", [(5, 7), (16, 32)])
def test_the_lstm_is_pytorchs_on_each_item_alone(both_ways, inner, sizes):
    """And its gradients; also where items are padded."""
    lstm, theirs = (
        Lstm(*sizes, both_ways),
        torch.nn.LSTM(*sizes, bidirectional=both_ways),
    )
    theirs.double()
    with torch.no_grad():
        for way, suffix in enumerate(("", "_reverse")[: 1 + both_ways]):
            getattr(theirs, f"weight_ih_l0{suffix}").copy_(lstm.weight_ih[way])
            getattr(theirs, f"weight_hh_l0{suffix}").copy_(lstm.weight_hh[way])
            getattr(theirs, f"bias_ih_l0{suffix}").copy_(lstm.bias[way])
            getattr(theirs, f"bias_hh_l0{suffix}").zero_()
    lengths = [20, 13, 1]
    mask = (torch.arange(20) < torch.tensor(lengths)[:, None]).float()
    x = (3 * noise(3, 20, inner, sizes[0])).requires_grad_()
    grad = noise(3, 20, inner, sizes[1] * (1 + both_ways), seed=1)
    grad *= mask[:, :, None, None]
    y = lstm(x, mask)
    y.backward(grad)
    for item, length in enumerate(lengths):
        alone = x[item, :length].detach().double().requires_grad_()
        expected, _ = theirs(alone)
        expected.backward(grad[item, :length].double())
        near = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(y[item, :length].double(), expected, **near)
        torch.testing.assert_close(x.grad[item, :length].double(), alone.grad, **near)
        assert not x.grad[item, length:].any()
    for way, suffix in enumerate(("", "_reverse")[: 1 + both_ways]):
        for ours, name in (
            (lstm.weight_ih, "weight_ih"),
            (lstm.weight_hh, "weight_hh"),
            (lstm.bias, "bias_ih"),
        ):
            expected = getattr(theirs, f"{name}_l0{suffix}").grad
            torch.testing.assert_close(
                ours.grad[way].double(), expected, rtol=1e-4, atol=1e-4
            )


@torch.no_grad()
def test_an_lstm_computes_with_the_weights_that_it_has_now():
    lstm, x = Lstm(5, 7, both_ways=True), noise(2, 9, 3, 5)

    def expected():
        again = Lstm(5, 7, both_ways=True)
        for ours, theirs in zip(again.parameters(), lstm.parameters(), strict=True):
            ours.copy_(theirs)
        return again(x)

    before = lstm(x)
    lstm.weight_hh.mul_(2)
    assert not torch.equal(lstm(x), before)
    torch.testing.assert_close(lstm(x), expected(), rtol=0, atol=0)
    other = Lstm(5, 7, both_ways=True)
    lstm.load_state_dict(other.state_dict())
    torch.testing.assert_close(lstm(x), other(x), rtol=0, atol=0)
    lstm.bfloat16().float()
    torch.testing.assert_close(lstm(x), expected(), rtol=0, atol=0)
    with torch.inference_mode():
        made = Lstm(5, 7, both_ways=True)
        made(x)
        made.bias.add_(1)
        assert not torch.equal(made(x), lstm(x))


def test_an_lstm_sees_what_a_fused_optimizer_has_done():
    """Which changes weights without counting it, as other optimizers do."""
    lstm, x = Lstm(5, 7, both_ways=True), noise(2, 9, 3, 5)
    optimizer = torch.optim.Adam(lstm.parameters(), lr=0.1, fused=True)

    @torch.no_grad()
    def check():
        weights = lstm.weight_ih, lstm.weight_hh, lstm.bias
        expected = plain_lstm(x, None, lstm.init_state(2, 3), *weights)[0]
        torch.testing.assert_close(lstm(x), expected, rtol=1e-4, atol=1e-5)

    for _ in range(3):
        lstm.eval()
        check()
        lstm.train()
        lstm(x).square().sum().backward()
        optimizer.step()
        check()  # such as for own estimates


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 511, 513])
@pytest.mark.parametrize("causal", [False, True])
def test_any_length_goes_in_and_comes_out(length, causal):
    modules = tiny(causal=causal)
    estimates = extract_from(modules, noise(2, length), noise(2, length, seed=1))
    assert estimates.shape == (2, length)
    assert estimates.isfinite().all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_padded_items_are_extracted_as_if_alone(kind):
    """Mixtures and enrollments of lengths that have nothing to do with each other."""
    modules = tiny(**kind)
    mixtures = [noise(length, seed=length) for length in (1600, 1, 803, 11, 527)]
    enrollments = [noise(length, seed=length) for length in (7, 2001, 900, 1999, 64)]
    (mixture_batch, mixture_lens), (enrollment_batch, lens) = map(
        pad, (mixtures, enrollments)
    )
    estimates = extract_from(
        modules, mixture_batch, enrollment_batch, mixture_lens, lens
    )
    unaware = extract_from(modules, mixture_batch, enrollment_batch)
    for index, pair in enumerate(zip(mixtures, enrollments, strict=True)):
        alone = extract_from(modules, *(signal[None] for signal in pair))[0]
        estimate = estimates[index, : len(alone)]
        torch.testing.assert_close(estimate, alone, rtol=0, atol=1e-5)
        if not kind:
            # Where lengths are not told, the norms count the padding.
            assert (unaware[index, : len(alone)] - alone).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_estimates_have_the_level_of_the_mixture_alone(kind):
    """So that the parts of a long file fit together."""
    modules, mixture, enrollment = tiny(**kind), noise(1, 900), noise(1, 1200, seed=1)
    estimate = extract_from(modules, mixture, enrollment)
    for level in (1e-3, 30):
        softer = extract_from(modules, level * mixture, enrollment) / level
        torch.testing.assert_close(softer, estimate, rtol=0, atol=1e-5)
        same = extract_from(modules, mixture, level * enrollment)
        torch.testing.assert_close(same, estimate, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cue", ["map", "vector"])
def test_extraction_listens_to_the_enrollment(cue):
    modules, mixture = tiny(cue=cue), noise(1, 900)
    enrollments = noise(1, 1200, seed=1), noise(1, 1200, seed=2).cumsum(1)
    one, other = (extract_from(modules, mixture, x) for x in enrollments)
    assert si_snr(one, other) < 40


def test_the_voice_is_frames_or_a_vector():
    for cue in ("map", "vector"):
        modules = tiny(cue=cue)
        voice, encoder = embed(modules, noise(2, 900)), modules["speaker_encoder"]
        if cue == "map":
            assert isinstance(voice, Frames)
            assert voice.features.shape[2] == encoder.frame_size == 33
            lengths = voice.features.norm(dim=-1)
            torch.testing.assert_close(lengths, torch.ones_like(lengths))
        else:
            assert voice.shape == (2, encoder.embedding_size) == (2, 6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_silence_gives_numbers(kind):
    modules, silence = tiny(**kind), torch.zeros(1, 700)
    assert not extract_from(modules, silence, noise(1, 700)).any()
    assert extract_from(modules, noise(1, 700), silence).isfinite().all()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("kind", [{}, KINDS[3], KINDS[4]], ids=str)
def test_a_step_on_pairs_reaches_every_parameter(exchange, bf16, kind):
    modules = tiny(exchange, **kind)
    mixtures, targets = noise(4, 900), noise(2, 900, seed=1)
    lens = torch.tensor([1.0, 0.7])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        embeddings = embed(modules, noise(2, 1200, seed=2))
        coin = torch.tensor([0, 1])
        learn = PeerLearning(exchange)
        outputs = learn(modules, mixtures, embeddings, targets, lens, coin)
        loss, si_snrs = PeerLoss()(outputs, targets, lens)
    assert outputs.estimate.shape == (4, 1, 900)
    assert si_snrs.mask.shape == (2, 2)
    loss.backward()
    for name, parameter in modules.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_folding_and_export_keep_what_is_extracted(tmp_path, kernel_size):
    trained = tiny(predictor2={"kernel_size": kernel_size})
    # What peer learning adds must matter.
    with torch.no_grad():
        for weight in trained["mask_head"].combine.weights:
            weight.mul_(5)
    pair = noise(2, 1001), noise(2, 1200, seed=1)
    before = extract_from(trained, *pair)
    assert can_fold(trained)
    folded = torch.nn.ModuleDict(fold_predictors(trained))
    rounding = 2e-6 * float(before.abs().max())
    after = extract_from(folded, *pair)
    torch.testing.assert_close(after, before, rtol=0, atol=rounding)
    # A map of n x n for each band and frame, and as many of what is lent.
    assert count(folded) == count(tiny("none")) + 8 * (2 * kernel_size * 6 * 6 + 6)
    # Two recordings lend to each other alike.
    with torch.no_grad():
        voices = embed(trained, pair[1])
        mixtures = torch.stack((pair[0], noise(2, 1001, seed=5)))
        lent, lent_folded = (
            extract_together(modules, mixtures, voices) for modules in (trained, folded)
        )
    torch.testing.assert_close(lent_folded, lent, rtol=0, atol=rounding)
    assert (lent[0] - before).abs().max() > 100 * rounding

    kernel = ("in_channels: 4,", f"in_channels: 4, kernel_size: {kernel_size},")
    loaded, _ = load_model(export_tiny(tmp_path, trained, kernel))
    assert "predictor1" not in loaded
    torch.testing.assert_close(extract_from(loaded, *pair), after, rtol=0, atol=0)


@pytest.mark.parametrize("exchange", ["none", "better"])
def test_peer_learning_starts_from_what_a_model_extracts(tmp_path, exchange):
    """A backbone that was trained alone, or with folded predictors."""
    trained = tiny(exchange)
    model = export_tiny(tmp_path, trained, exchange=exchange)
    modules = tiny("better", seed=5)
    start_from(modules, model, 8000)
    pair = noise(2, 1001), noise(2, 1200, seed=1)
    expected = extract_from(trained, *pair)
    torch.testing.assert_close(
        extract_from(modules, *pair), expected, rtol=0, atol=1e-5
    )


def test_without_predictors_the_head_has_no_c():
    head = MaskHead(BANDS, 6, 12)
    assert head.combine is None
    assert head(noise(1, 3, 8, 6), None, noise(1, 3, 33, 2)).shape == (1, 3, 33, 2)


@pytest.mark.parametrize("kernels", [True, False])
def test_without_instructions_for_bf16_lstms_stay_in_fp32(kernels, monkeypatch):
    """As on CPUs with AVX2 alone, where oneDNN has no such LSTM."""
    if not kernels:
        monkeypatch.setenv("TSE_NO_KERNELS", "1")
    monkeypatch.setattr(f"{Lstm.__module__}.multiplies_bf16_vectors", lambda: False)
    layer, x = Lstm(5, 7, both_ways=True), noise(2, 9, 3, 5).requires_grad_()
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    y.sum().backward()
    assert x.grad.any()


def test_bf16_extracts_nearly_the_same():
    modules, pair = tiny(), (noise(2, 2000), noise(2, 2000, seed=1))
    exact = extract_from(modules, *pair)
    with torch.autocast("cpu", torch.bfloat16):
        rough = extract_from(modules, *pair)
    assert (si_snr(rough, exact) > 15).all()


@torch.no_grad()
def in_pieces(modules, mixtures, voices, cuts, state=None):
    """The estimates of mixtures that are cut, as streams give them."""
    state = state or streams.init_state(modules, len(mixtures))
    estimates = []
    for piece in mixtures.tensor_split(cuts, dim=1):
        estimate, state = streams.step(modules, piece, voices, state)
        estimates.append(estimate)
    left = mixtures.shape[1] - sum(estimate.shape[1] for estimate in estimates)
    assert left <= WINDOW
    estimates.append(streams.finish(modules, voices, state, left))
    return torch.cat(estimates, dim=1)


@pytest.mark.parametrize("cue", ["map", "vector"])
@pytest.mark.parametrize("hop", [HOP, WINDOW // 2])
@pytest.mark.parametrize("convert", [dict, fold_predictors])
def test_streams_cut_anywhere_give_the_whole(convert, hop, cue):
    modules = torch.nn.ModuleDict(convert(tiny(causal=True, hop=hop, cue=cue)))
    mixtures, enrollments = noise(2, 3007), noise(2, 1200, seed=1)
    whole, voices = extract_from(modules, mixtures, enrollments), None
    with torch.no_grad():
        voices = embed(modules, enrollments)
    generator = torch.Generator().manual_seed(0)
    for size in (1, 16, 777, None):
        cuts = list(range(0, 3007, size or 1))
        if size is None:
            cuts = sorted(torch.randint(0, 3008, (50,), generator=generator).tolist())
        elif size == 1:
            cuts = cuts[1000:1300]
        estimates = in_pieces(modules, mixtures, voices, cuts)
        torch.testing.assert_close(estimates, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 80])
def test_streams_around_a_frame(length):
    modules, mixtures = tiny(causal=True), noise(2, length)
    enrollments = noise(2, 500, seed=1)
    with torch.no_grad():
        voices = embed(modules, enrollments)
    estimates = in_pieces(modules, mixtures, voices, list(range(length)))
    expected = extract_from(modules, mixtures, enrollments)
    torch.testing.assert_close(estimates, expected, rtol=0, atol=1e-5)


def test_only_a_causal_one_extracts_from_streams():
    assert streams.init_state(tiny(), batch=1) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{}, {"causal": True, "cue": "vector"}], ids=str)
def test_onnx_graphs_extract_the_same(tmp_path, kind):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    import onnx
    import onnxruntime

    kind = kind | {"n_blocks": 1}  # tracing takes its time for each
    source = export_tiny(tmp_path, tiny(**kind), **kind)
    # Compares with PyTorch, at several lengths.
    graphs = export_onnx(source, tmp_path / "graphs")
    model = TargetSpeechExtraction.from_hparams(source)
    mixtures, enrollments = noise(2, 3001), noise(2, 1200, seed=1)
    inputs = {"mixture": mixtures}
    name = "embedding" if kind.get("cue") == "vector" else "frames"
    inputs[name] = features_of(model.encode_speaker(enrollments))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(graphs / "extractor.onnx", options)
    # Weights that were put in order at every call would cost more than the LSTMs.
    graph = onnx.load(options.optimized_model_filepath).graph
    fixed = {weight.name for weight in graph.initializer}
    lstms = [node for node in graph.node if node.op_type == "LSTM"]
    assert lstms and all(fixed >= set(node.input[1:4]) for node in lstms)
    (estimates,) = session.run(None, {k: v.numpy() for k, v in inputs.items()})
    expected = model.extract_batch(mixtures, enrollments)
    torch.testing.assert_close(torch.from_numpy(estimates), expected, rtol=0, atol=1e-4)


def test_what_is_not_a_number_does_not_vanish():
    lstm, x = Lstm(5, 7, both_ways=False), noise(2, 9, 3, 5)
    x[1, 4, 2] = torch.nan
    with torch.no_grad():
        y = lstm(x)
    assert y[1, 4:, 2].isnan().all()
    y[1, 4:, 2] = 0
    assert y.isfinite().all()
