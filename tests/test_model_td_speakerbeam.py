"""TD-SpeakerBeam: the public implementation's numbers, sizes, errors and edges."""

import numpy as np
import pytest
import torch
from rows import build_row
from tiny_model import build

from speechbrain_peer.models.td_speakerbeam import Separator
from speechbrain_peer.nnet.adaptation import Adaptation
from speechbrain_peer.nnet.filterbank import Decoder, Encoder
from speechbrain_peer.packaging.public_checkpoints import (
    load_asteroid_file,
    load_public,
    speakerbeam_names,
)
from speechbrain_peer.peer_learning.exchange import embed, extract

FULL_SIZE = 6_704_194

# The sizes of a checkpoint in the public format.
TINY = {
    "n_filters": 16,
    "kernel_size": 8,
    "stride": 4,
    "bn_chan": 6,
    "hid_chan": 10,
    "skip_chan": 6,
    "n_blocks": 2,
    "n_repeats": 2,
    "i_adapt_layer": 1,
    "adapt_layer_type": "concat",
    "adapt_enroll_dim": 5,
    "mask_act": "relu",
}


def public_state(args):
    """Random tensors with the public names and shapes, written out from the paper."""
    filters, kernel = args["n_filters"], args["kernel_size"]
    channels, hidden = args["bn_chan"], args["hid_chan"]
    embedding = args["adapt_enroll_dim"]
    shapes = {}

    def convolution(name, outputs, inputs, taps=1):
        shapes[f"{name}.weight"] = (outputs, inputs, taps)
        shapes[f"{name}.bias"] = (outputs,)

    def norm(name, size):
        shapes[f"{name}.gamma"] = shapes[f"{name}.beta"] = (size,)

    def tcn(name, repeats, outputs):
        norm(f"{name}.bottleneck.0", filters)
        convolution(f"{name}.bottleneck.1", channels, filters)
        for index in range(args["n_blocks"] * repeats):
            block = f"{name}.TCN.{index}"
            convolution(f"{block}.shared_block.0", hidden, channels)
            convolution(f"{block}.shared_block.3", hidden, 1, taps=3)
            for step in (1, 4):
                shapes[f"{block}.shared_block.{step}.weight"] = (1,)
                norm(f"{block}.shared_block.{step + 1}", hidden)
            convolution(f"{block}.res_conv", channels, hidden)
            convolution(f"{block}.skip_conv", channels, hidden)
        shapes[f"{name}.mask_net.0.weight"] = (1,)
        convolution(f"{name}.mask_net.1", outputs, channels)

    for name in ("encoder", "decoder", "auxiliary.1"):
        shapes[f"{name}.filterbank._filters"] = (filters, 1, kernel)
    tcn("masker", args["n_repeats"], filters)
    tcn("auxiliary.2", 1, 2 * embedding)
    for index in range(2 if args["adapt_layer_type"] == "concat" else 0):
        name = f"masker.adapt_layer.transform.{index}"
        shapes[f"{name}.weight"] = (channels, channels + embedding)
        shapes[f"{name}.bias"] = (channels,)
    rng = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=rng) for key, shape in shapes.items()}


def save_checkpoint(path, args, state):
    # As Asteroid does: its own and PyTorch's version are in there, too.
    infos = {"software_versions": {"torch_version": torch.__version__}}
    torch.save({"model_args": args, "state_dict": state, "infos": infos}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    """Loads a tiny checkpoint after a change of its arguments or tensors."""

    def load_changed(change):
        args, state = dict(TINY), public_state(TINY)
        change(args, state)
        path = save_checkpoint(tmp_path / "bad.pth", args, state)
        return load(path, tmp_path, TINY)

    return load_changed


# Our names for the arguments of a public checkpoint.
NAMES = {
    "n_filters": "n_filters",
    "kernel_size": "kernel_size",
    "stride": "stride",
    "channels": "bn_chan",
    "hidden_channels": "hid_chan",
    "n_blocks": "n_blocks",
    "n_repeats": "n_repeats",
    "adapted_block": "i_adapt_layer",
    "adaptation": "adapt_layer_type",
    "embedding_size": "adapt_enroll_dim",
}


def sizes(args):
    """What gives a YAML the sizes of a public checkpoint's arguments."""
    return {ours: args[theirs] for ours, theirs in NAMES.items()}


def load(path, folder, args=None):
    """A public checkpoint's model, built from the YAML."""
    args = args or load_asteroid_file(path)["model_args"]
    row, _ = build_row("td_speakerbeam", folder, **sizes(args))
    return load_public(path, row)[0]


def full_size(tmp_path, **overrides):
    return build_row("td_speakerbeam_pl", tmp_path, **overrides)[0]


def count(modules):
    return sum(parameter.numel() for parameter in modules.parameters())


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def extract_from(modules, mixtures, enrollments, mixture_lens=None, lens=None):
    embeddings = embed(modules, enrollments, lens)
    return extract(modules, mixtures, embeddings, mixture_lens)


@pytest.mark.parametrize("adaptation", ["mul", "muladd", "concat"])
def test_numbers_of_the_public_implementation(adaptation, tse_reference, tmp_path):
    folder = tse_reference / "speakerbeam"
    modules = load(folder / f"tiny_{adaptation}.pth", tmp_path)
    signals = {
        name: torch.from_numpy(array)
        for name, array in np.load(folder / f"tiny_{adaptation}_io.npz").items()
    }
    with torch.no_grad():
        embedding = modules["speaker_encoder"](signals["enrollment"])
        estimate = extract(modules, signals["mixture"], embedding)
    for ours, public in (
        (embedding, signals["speaker_embedding"]),
        (estimate, signals["estimate"][:, 0]),
    ):
        torch.testing.assert_close(ours, public, rtol=0, atol=1e-5)


def test_full_size_has_the_public_names_and_shapes(tse_reference, tmp_path):
    lines = (tse_reference / "speakerbeam" / "default_shapes.txt").read_text()
    public = dict(line.split(" ", 1) for line in lines.splitlines())
    args = TINY | {
        "n_filters": 512,
        "kernel_size": 16,
        "stride": 8,
        "bn_chan": 128,
        "hid_chan": 512,
        "skip_chan": 128,
        "n_blocks": 8,
        "n_repeats": 3,
        "i_adapt_layer": 7,
        "adapt_layer_type": "mul",
        "adapt_enroll_dim": 128,
    }
    state = public_state(args)
    assert {key: str(tuple(tensor.shape)) for key, tensor in state.items()} == public
    loaded = load(save_checkpoint(tmp_path / "full.pth", args, state), tmp_path)
    ours = full_size(tmp_path, exchange="none")
    assert [(name, p.shape) for name, p in loaded.named_parameters()] == [
        (name, p.shape) for name, p in ours.named_parameters()
    ]
    names = [
        key for name, _ in ours.named_parameters() for key in speakerbeam_names(name)
    ]
    assert sorted(names) == sorted(public)


def test_full_size_parameters(tmp_path):
    """6 704 194, of which none is a predictor's; peer learning adds about 0.66 M."""
    assert count(full_size(tmp_path, exchange="none")) == FULL_SIZE
    for exchange in ("better", "anyway", "itself"):
        added = count(full_size(tmp_path, exchange=exchange)) - FULL_SIZE
        assert 600_000 < added < 750_000


def test_every_public_tensor_is_loaded_into_its_place(checkpoint):
    state = {}
    modules = checkpoint(lambda args, tensors: state.update(tensors))
    for name, parameter in modules.named_parameters():
        keys = speakerbeam_names(name)
        public = torch.cat([state.pop(key) for key in keys])
        if name.endswith("depth_weight"):
            public = public.movedim(-1, 0)
        assert torch.equal(parameter, public.reshape(parameter.shape)), name
    assert not state


def reshape(key, *shape):
    return lambda args, state: state.update({key: torch.zeros(shape)})


SKIP, TAPS = "masker.TCN.1.skip_conv.weight", "masker.TCN.0.shared_block.3.weight"
WRONG_TENSORS = {
    "missing": (lambda args, state: state.pop(SKIP), f"missing: {SKIP};"),
    "unexpected": (reshape("x.weight", 1), "unexpected: x.weight;"),
    "taps": (reshape(TAPS, 10, 1, 5), f"another shape: {TAPS} (10, 1, 5)"),
    "skip": (reshape(SKIP, 6, 11, 1), f"another shape: {SKIP} (6, 11, 1)"),
    "argument": (lambda args, state: args.pop("hid_chan"), "lack hid_chan"),
    "skip_chan": (lambda args, state: args.update(skip_chan=7), "skip_chan 7"),
    "stride": (lambda args, state: args.update(stride=8), "stride is 8 there and 4"),
    "block": (
        lambda args, state: args.update(i_adapt_layer=0),
        "adapted_block is 0 there and 1 here",
    ),
    "mask": (lambda args, state: args.update(mask_act="sigmoid"), "mask_act sigmoid"),
}


@pytest.mark.parametrize("kind", WRONG_TENSORS)
def test_other_models_are_refused_by_name(kind, checkpoint):
    change, message = WRONG_TENSORS[kind]
    with pytest.raises(ValueError, match=r"bad\.pth") as error:
        checkpoint(change)
    assert message in str(error.value)


def test_swapped_widths_of_residual_and_skip_are_refused(checkpoint):
    """Together they are as wide as they should be."""

    def swap(args, state):
        state["masker.TCN.0.res_conv.bias"] = torch.zeros(5)
        state["masker.TCN.0.skip_conv.bias"] = torch.zeros(7)

    with pytest.raises(ValueError, match=r"res_conv\.bias \(5,\), .*skip_conv"):
        checkpoint(swap)


@pytest.mark.parametrize("content", [None, b"", b"hello there", b"PK\x03\x04 cut off"])
def test_files_that_are_no_checkpoints(content, tmp_path):
    path = tmp_path / "süßes Modell.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name} cannot be read"):
        load_public(path, build())


def test_a_checkpoint_of_another_format_and_one_with_code(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"model\.pth has no model_args"):
        load_public(path, build())
    torch.save({"model_args": TINY, "state_dict": print}, path)
    with pytest.raises(ValueError, match=r"model\.pth cannot be read"):
        load_public(path, build())


def separator(**changes):
    sizes = {
        "n_filters": 16,
        "channels": 8,
        "hidden_channels": 12,
        "n_blocks": 3,
        "n_repeats": 2,
        "adapted_block": 5,
        "adaptation": "mul",
        "embedding_size": 8,
    }
    return Separator(**(sizes | changes))


@pytest.mark.parametrize("block", [-1, 6])
def test_a_block_that_is_not_there_cannot_be_adapted(block):
    separator(adapted_block=5)
    with pytest.raises(ValueError, match=f"adapted_block {block} is none of the 6"):
        separator(adapted_block=block)


def test_adaptations_and_sizes_that_do_not_exist():
    with pytest.raises(ValueError, match="'gate': choose one of mul, muladd, concat"):
        separator(adaptation="gate")
    for kind, size, needed in (("mul", 16, 8), ("muladd", 8, 16)):
        with pytest.raises(ValueError, match=f"'{kind}' .* of {needed} .*, not {size}"):
            Adaptation(kind, channels=8, embedding_size=size)
    for filterbank in (Encoder, Decoder):
        with pytest.raises(
            ValueError, match="kernel_size 20 is no multiple of stride 8"
        ):
            filterbank(16, kernel_size=20, stride=8)


@pytest.mark.parametrize("length", [1, 5, 16, 17, 23, 24])
def test_any_length_goes_in_and_comes_out(length):
    """Also a single sample and less than a frame (16 samples)."""
    modules = build()
    estimates = extract_from(modules, noise(2, length), noise(2, length, seed=1))
    assert estimates.shape == (2, length)
    assert estimates.isfinite().all()


def batch(signals):
    """Padded, and the relative lengths."""
    lens = torch.tensor([len(signal) for signal in signals])
    padded = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True)
    return padded, lens / padded.shape[1]


def test_padded_items_are_extracted_as_if_alone():
    """Mixtures and enrollments of lengths that have nothing to do with each other."""
    modules = build()
    mixtures = [noise(length, seed=length) for length in (1600, 1, 803, 11)]
    enrollments = [noise(length, seed=length) for length in (7, 2001, 900, 1999)]
    (mixture_batch, mixture_lens), (enrollment_batch, lens) = map(
        batch, (mixtures, enrollments)
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
        assert (unaware[index, : len(alone)] - alone).abs().max() > 1e-4


@pytest.mark.parametrize(("kind", "size"), [("mul", 6), ("muladd", 12), ("concat", 5)])
def test_every_adaptation_listens_to_the_enrollment(kind, size, tmp_path):
    args = TINY | {"adapt_layer_type": kind, "adapt_enroll_dim": size}
    path = save_checkpoint(tmp_path / "tiny.pth", args, public_state(args))
    modules = load(path, tmp_path)
    one, other = (
        extract_from(modules, noise(1, 800), noise(1, 800, seed=seed))
        for seed in (1, 2)
    )
    assert not torch.allclose(one, other)


def test_a_causal_model_hears_nothing_of_what_comes_later():
    """But for the rest of its last frame, of 16 samples."""
    separator = Separator(16, 8, 12, 3, 2, 2, "mul", embedding_size=8, causal=True)
    modules = {**build(), "separator": separator}
    enrollment, mixture = noise(1, 800), noise(1, 1600, seed=1)
    later = torch.cat((mixture[:, :1000], noise(1, 600, seed=2)), dim=1)
    one, other = (extract_from(modules, x, enrollment) for x in (mixture, later))
    torch.testing.assert_close(one[:, :984], other[:, :984], rtol=0, atol=1e-6)
    assert (one - other)[:, 1000:].abs().max() > 1e-3
