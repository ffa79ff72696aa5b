"""sDPCCN: sizes, padding, edges, the fast norm, and peer learning on spectra."""

import pytest
import torch
from rows import HPARAMS, build_row
from torch.nn import functional as F

from speechbrain_peer.models.dpccn import Separator
from speechbrain_peer.nnet import elu_norm as elu_norm_module
from speechbrain_peer.nnet.elu_norm import elu_norm, plain_elu_norm
from speechbrain_peer.nnet.kernels import load_kernels
from speechbrain_peer.nnet.stft import StftDecoder, StftEncoder
from speechbrain_peer.nnet.unet import Down, PyramidPooling
from speechbrain_peer.packaging.export import export_model
from speechbrain_peer.packaging.loading import load_model
from speechbrain_peer.peer_learning.exchange import (
    PeerLearning,
    embed,
    extract,
    lend,
)
from speechbrain_peer.peer_learning.losses import PeerLoss
from speechbrain_peer.peer_learning.predictors import fold_predictors
from speechbrain_peer.utils.signal import si_snr

WINDOW, HOP = 64, 16
TINY = {
    "window": WINDOW,
    "hop": HOP,
    "channels": 5,
    "dense_channels": 6,
    "n_dense": 1,
    "dense_layers": 3,
    "deep_channels": [7, 8],
    "tcn_channels": 10,
    "n_blocks": 3,
    "n_repeats": 2,
    "out_channels": 9,
    "speaker_channels": 6,
    "speaker_hidden_channels": 8,
    "speaker_blocks": 2,
}
EXCHANGES = ("better", "anyway", "itself", "none")

needs_compiler = pytest.mark.skipif(
    load_kernels("elu_norm", torch.float32) is None, reason="no C compiler"
)
PATHS = [pytest.param(elu_norm, marks=needs_compiler), plain_elu_norm]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """The recipe's checkpointer makes a folder where it is loaded."""
    monkeypatch.chdir(tmp_path)


def build(exchange="better", **overrides):
    """The modules of the recipe; tiny unless sizes are given."""
    return build_row("sdpccn", "results", exchange=exchange, **overrides)[0]


def tiny(exchange="better"):
    return build(exchange, **TINY)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def extract_from(modules, mixtures, enrollments, mixture_lens=None, lens=None):
    embeddings = embed(modules, enrollments, lens)
    return extract(modules, mixtures, embeddings, mixture_lens)


def test_full_size_parameters():
    """The separator's last layer is wider than the paper's, of two channels."""
    modules = build("none")
    last = 32 * 32 * 9 + 32
    in_paper = count(modules["separator"]) - last + (32 * 2 * 9 + 2)
    assert in_paper == 6_300_402
    assert count(modules["encoder"]) == count(modules["decoder"]) == 0
    # Two predictors between spectra, and C.
    added = count(build("better")) - count(modules)
    assert added == (32 * 2 + 2) + (4 * 2 + 2) + (2 * 32 + 32)


def test_strides_that_do_not_end_at_one_bin_are_refused():
    with pytest.raises(ValueError, match=r"7 strides, .* window of 512 .* 256"):
        Separator(window=256)


@pytest.mark.parametrize("window", [96, 16, 33])
def test_hops_that_do_not_fit_the_window_are_refused(window):
    for stage in (StftEncoder, StftDecoder):
        with pytest.raises(ValueError, match=f"window {window} is no multiple"):
            stage(window, hop=32)


def test_frames_are_windowed_spectra_around_multiples_of_the_hop():
    x = noise(1, 200)
    spectra, mask = StftEncoder(WINDOW, HOP)(x)
    assert spectra.shape == (1, 1 + 200 // HOP, WINDOW // 2 + 1, 2)
    assert mask.all()
    padded = F.pad(x[0], (WINDOW // 2, WINDOW))
    window = torch.sin(torch.pi * torch.arange(WINDOW) / WINDOW)
    for frame in range(spectra.shape[1]):
        segment = padded[frame * HOP : frame * HOP + WINDOW] * window
        torch.testing.assert_close(
            torch.view_as_complex(spectra[0, frame]),
            torch.fft.rfft(segment),
            rtol=0,
            atol=1e-5,
        )


@pytest.mark.parametrize("hop", [HOP, WINDOW // 2])
def test_the_decoder_inverts_the_encoder_also_at_the_end_of_padded_signals(hop):
    lengths = [1, 31, 64, 65, 333]
    signals = [noise(length, seed=length) for length in lengths]
    waveforms, lens = pad(signals)
    encoder, decoder = StftEncoder(WINDOW, hop), StftDecoder(WINDOW, hop)
    spectra, mask = encoder(waveforms, lens)
    # What lies in padded frames must not matter.
    spectra = spectra + 9 * (1 - mask[..., None, None])
    again = decoder(spectra, 333, mask)
    assert again.shape == (5, 1, 333)
    for signal, waveform in zip(signals, again[:, 0], strict=True):
        torch.testing.assert_close(waveform[: len(signal)], signal, rtol=0, atol=1e-4)


def pad(signals):
    """Padded, and the relative lengths."""
    lens = torch.tensor([len(signal) for signal in signals])
    padded = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True)
    return padded, lens / padded.shape[1]


def maps_and_mask(dtype, channels=19):
    """Maps of 40, 20 and 1 true frames, large and small, with noise in the padding."""
    x = 3 * noise(3, 40, 31, channels) + 0.3
    x[..., 0] *= 100
    mask = (torch.arange(40) < torch.tensor([40, 20, 1])[:, None]).float()
    return x.to(dtype).requires_grad_(), mask


@pytest.mark.parametrize("function", PATHS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.03)]
)
@pytest.mark.parametrize("channels", [2, 19, 32])
def test_elu_norm_against_each_item_alone(function, dtype, tolerance, channels):
    x, mask = maps_and_mask(dtype, channels)
    grad = noise(*x.shape, seed=1).to(dtype)
    y = function(x, mask)
    assert y.dtype == dtype
    y.backward(grad)
    for item, frames in enumerate((40, 20, 1)):
        alone = x[item : item + 1, :frames].detach().double().requires_grad_()
        maps = F.elu(alone).movedim(-1, 1)
        mean = maps.mean((2, 3), keepdim=True)
        variance = maps.var((2, 3), correction=0, keepdim=True)
        normed = ((maps - mean) / torch.sqrt(variance + 1e-5)).movedim(1, -1)
        normed.backward(grad[item : item + 1, :frames].double())
        for ours, expected in (
            (y[item, :frames], normed[0]),
            (x.grad[item, :frames], alone.grad[0]),
        ):
            torch.testing.assert_close(
                ours.double(), expected, rtol=tolerance, atol=tolerance
            )
        assert not y[item, frames:].any()
        assert not x.grad[item, frames:].any()


@needs_compiler
def test_the_fast_elu_at_any_size():
    values = torch.cat((-torch.logspace(-6, 38, 200), torch.logspace(-6, 15, 200)))
    # Two channels: a value and its negative; their norm is that of the ELU.
    x = torch.stack((values, values.roll(1)), dim=-1)[:, None, None].repeat(1, 2, 1, 1)
    x[:, 1] = 0
    torch.testing.assert_close(
        elu_norm(x, torch.ones(400, 2)),
        plain_elu_norm(x.double(), torch.ones(400, 2)).float(),
        rtol=1e-3,
        atol=1e-4,
    )


def test_pyramid_pooling_means_over_true_frames():
    pyramid = PyramidPooling(2, [4], pool_channels=1, out_channels=1)
    linears = (pyramid.linears[0], [1.0, 0.0]), (pyramid.out_linear, [0.0, 0.0, 1.0])
    with torch.no_grad():
        for linear, weight in linears:
            linear.weight.copy_(torch.tensor([weight]))
            linear.bias.zero_()
    x, mask = noise(1, 12, 6, 2), (torch.arange(12) < 7).float()[None]
    x = x * mask[..., None, None]
    with torch.no_grad():
        pooled = pyramid(x, mask)[0, ..., 0]
    means = [x[0, first:last, :4, 0].mean() for first, last in ((0, 4), (4, 7))]
    # Before the first patch's centre only that patch counts, after the last's only it.
    torch.testing.assert_close(pooled[0, 0], means[0])
    torch.testing.assert_close(pooled[6, 0], means[1])
    torch.testing.assert_close(pooled[4, 0], 0.375 * means[0] + 0.625 * means[1])


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 511, 513])
def test_any_length_goes_in_and_comes_out(length):
    estimates = extract_from(tiny(), noise(2, length), noise(2, length, seed=1))
    assert estimates.shape == (2, length)
    assert estimates.isfinite().all()


@needs_compiler
def test_second_order_gradients_are_refused():
    maps = noise(1, 4, 3, 2).requires_grad_()
    normed = elu_norm(maps, torch.ones(1, 4))
    (grad,) = torch.autograd.grad(normed.square().sum(), maps, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("fast", [pytest.param(True, marks=needs_compiler), False])
def test_padded_items_are_extracted_as_if_alone(fast, monkeypatch):
    """Mixtures and enrollments of lengths that have nothing to do with each other."""
    if not fast:
        monkeypatch.setattr(elu_norm_module, "load_kernels", lambda *_: None)
    modules = tiny()
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
        # Where lengths are not told, the norms count the padding.
        assert (unaware[index, : len(alone)] - alone).abs().max() > 1e-3


def test_estimates_have_the_level_of_the_mixture_alone():
    """So that the parts of a long file fit together."""
    modules, mixture, enrollment = tiny(), noise(1, 900), noise(1, 1200, seed=1)
    estimate = extract_from(modules, mixture, enrollment)
    for level in (1e-3, 30):
        softer = extract_from(modules, level * mixture, enrollment) / level
        torch.testing.assert_close(softer, estimate, rtol=0, atol=1e-5)
        same = extract_from(modules, mixture, level * enrollment)
        torch.testing.assert_close(same, estimate, rtol=0, atol=1e-5)


def test_extraction_listens_to_the_enrollment():
    modules, mixture = tiny(), noise(1, 900)
    enrollments = noise(1, 1200, seed=1), noise(1, 1200, seed=2).cumsum(1)
    one, other = (extract_from(modules, mixture, x) for x in enrollments)
    assert si_snr(one, other) < 40


def test_silence_gives_numbers():
    modules, silence = tiny(), torch.zeros(1, 700)
    assert not extract_from(modules, silence, noise(1, 700)).any()
    assert extract_from(modules, noise(1, 700), silence).isfinite().all()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_step_on_pairs_reaches_every_parameter(exchange, bf16):
    modules = tiny(exchange)
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
    assert (outputs.refined is None) == (exchange == "none")
    loss.backward()
    for name, parameter in modules.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_the_better_spectrum_is_lent():
    p = noise(2, 3, 5, 33, 2)  # peers, batch, frames, bins, real and imaginary part
    scores = torch.tensor([[1.0, 5.0, -3.0], [2.0, 4.0, -4.0]])
    lent = lend(p, scores, "better")
    for item, better in enumerate((1, 0, 0)):
        for peer in range(2):
            assert torch.equal(lent[peer, item], p[better, item])


def test_folding_and_export_keep_what_is_extracted(tmp_path):
    trained = tiny()
    # What peer learning adds must matter.
    with torch.no_grad():
        trained["mask_head"].combine.weight.mul_(5)
    pair = noise(2, 1001), noise(2, 1200, seed=1)
    before = extract_from(trained, *pair)
    folded = torch.nn.ModuleDict(fold_predictors(trained))
    # Products in another order, which also depends on where they lie in memory.
    rounding = 16 * torch.finfo(torch.float32).eps * float(before.abs().max())
    after = extract_from(folded, *pair)
    torch.testing.assert_close(after, before, rtol=0, atol=rounding)
    assert count(folded) == count(tiny("none")) + 2 * 9 * 9 + 9

    run = tmp_path / "hyperparams.yaml"
    text = (HPARAMS / "sdpccn.yaml").read_text(encoding="utf-8")
    for key, value in ({"exchange": "better"} | TINY).items():
        lines = [line for line in text.splitlines() if line.startswith(f"{key}:")]
        text = text.replace(f"\n{lines[0]}\n", f"\n{key}: {value}\n")
    run.write_text(text, encoding="utf-8")
    loaded, _ = load_model(export_model(run, trained, tmp_path / "model"))
    assert "predictor1" not in loaded
    torch.testing.assert_close(extract_from(loaded, *pair), after, rtol=0, atol=0)


def test_bf16_extracts_nearly_the_same():
    modules, pair = tiny(), (noise(2, 2000), noise(2, 2000, seed=1))
    exact = extract_from(modules, *pair)
    with torch.autocast("cpu", torch.bfloat16):
        rough = extract_from(modules, *pair)
    assert (si_snr(rough, exact) > 15).all()


@torch.no_grad()
def test_the_last_stride_in_bf16_reads_no_memory_that_is_not_its_own():
    down, mask = Down(8, 16, dense_layers=0, one_bin=True), torch.ones(2, 126)
    for _ in range(5):
        # Freed memory full of NaN, of every size that may be taken next.
        for size in (10**3, 10**4, 10**5, 10**6):
            torch.full((size,), torch.nan, dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            assert down(noise(2, 126, 3, 8), mask).isfinite().all()
