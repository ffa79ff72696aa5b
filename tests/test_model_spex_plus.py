"""SpEx+: the public implementation's numbers, sizes, padding, folding and edges."""

import copy

import numpy as np
import pytest
import torch
from hyperpyyaml import resolve_references
from public_spex_plus import ARGS, SCALES, Reference, public_state
from rows import HPARAMS, build_row
from torch.nn import functional as F

from speechbrain_peer.packaging.export import export_model
from speechbrain_peer.packaging.loading import load_model
from speechbrain_peer.packaging.public_checkpoints import (
    load_asteroid_file,
    load_public,
    spex_plus_names,
)
from speechbrain_peer.peer_learning.exchange import (
    PeerLearning,
    embed,
    estimate,
    represent,
)

FULL_SIZE = 11_112_777  # without the classifier of speakers

TINY = {
    "n_filters": 8,
    "channels": 6,
    "hidden_channels": 10,
    "n_blocks": 3,
    "n_repeats": 2,
    "speaker_channels": 5,
    "embedding_size": 4,
    "n_speakers": 3,
}


def build(folder, row="spex_plus_pl", **overrides):
    """The modules of a YAML, and all its entries."""
    return build_row(row, folder, **overrides)


@pytest.fixture
def tiny(tmp_path):
    return build(tmp_path, **TINY)[0].eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def count(modules, without="speaker_classifier"):
    named = modules.named_parameters()
    return sum(p.numel() for name, p in named if not name.startswith(without))


def save_checkpoint(path, args, state):
    torch.save({"model_args": args, "state_dict": state}, path)
    return path


def sizes(args):
    """What gives a YAML the sizes of a public checkpoint's arguments."""
    names = {"n_filters": "N", "channels": "B", "hidden_channels": "H"}
    names |= {"n_blocks": "X", "n_repeats": "R"}
    shortest = args["L"]
    return {ours: args[theirs] for ours, theirs in names.items()} | {
        "kernel_sizes": [shortest, 80, 160],
        "stride": shortest // 2,
    }


def load(path, folder, args=None):
    """A public checkpoint's model, built from the YAML."""
    args = args or load_asteroid_file(path)["model_args"]
    row, _ = build(folder, "spex_plus", **sizes(args))
    return load_public(path, row)[0].eval()


def loaded(path, args, state):
    return load(save_checkpoint(path, args, state), path.parent)


@torch.no_grad()
def all_scales(modules, mixtures, embeddings, lens=None):
    branches = represent(modules, mixtures, embeddings, lens)
    return estimate(modules, branches, branches.p, mixtures.shape[1])[0]


@torch.no_grad()
def extract_from(modules, mixtures, enrollments, mixture_lens=None, lens=None):
    embeddings = embed(modules, enrollments, lens)
    return all_scales(modules, mixtures, embeddings, mixture_lens)


def error(ours, right):
    """The largest deviation, relative to the largest value."""
    return ((ours - right).abs().max() / right.abs().max()).item()


def test_numbers_of_the_network_written_out(tmp_path):
    """Frames of the enrollment, 298, fill eleven groups of 27 and one frame."""
    state = public_state(ARGS)
    modules, reference = loaded(tmp_path / "x.pth", ARGS, state), Reference(state, ARGS)
    mixtures, enrollments = noise(2, 1500), noise(2, 2990, seed=1)
    with torch.no_grad():
        embeddings = embed(modules, enrollments)
    assert error(embeddings, reference.embed(enrollments)) < 1e-5
    right = reference.extract(mixtures, embeddings.double())
    estimates = all_scales(modules, mixtures, embeddings)
    for scale in range(3):
        assert error(estimates[:, scale], right[:, scale]) < 1e-5


def test_numbers_of_the_public_implementation(tse_reference, tmp_path):
    folder = tse_reference / "spex_plus"
    modules = load(folder / "tiny.pth", tmp_path)
    signals = {
        name: torch.from_numpy(array)
        for name, array in np.load(folder / "tiny_io.npz").items()
    }
    with torch.no_grad():
        embeddings = embed(modules, signals["enrollment"])
        # It sums over the padding, too, and divides by the number of true groups.
        whole, true = ((length - 10) // 270 for length in (3000, 2400))
        embeddings[1] *= whole / true
        logits = modules["speaker_classifier"](embeddings)
    assert error(logits, signals["speaker_logits"]) < 1e-5
    estimates = all_scales(modules, signals["mixture"], embeddings)
    for index, scale in enumerate(SCALES):
        assert error(estimates[:, index], signals[scale]) < 1e-5


def test_full_size_has_the_public_names_and_shapes(tse_reference, tmp_path):
    lines = (tse_reference / "spex_plus" / "default_shapes.txt").read_text()
    public = dict(line.split(" ", 1) for line in lines.splitlines())
    args = ARGS | {"N": 256, "X": 8, "B": 256, "H": 512}
    state = public_state(args, speakers=101)
    assert {key: str(tuple(tensor.shape)) for key, tensor in state.items()} == public
    modules = loaded(tmp_path / "full.pth", args, state)
    ours, _ = build(tmp_path, "spex_plus", n_speakers=101)
    assert {name: tensor.shape for name, tensor in modules.state_dict().items()} == {
        name: tensor.shape for name, tensor in ours.state_dict().items()
    }


def test_full_size_parameters(tmp_path):
    """11 112 777 without the classifier; peer learning adds 1.57 M."""
    assert count(build(tmp_path, "spex_plus")[0]) == FULL_SIZE
    assert count(build(tmp_path, exchange="none")[0]) == FULL_SIZE
    added = count(build(tmp_path)[0]) - FULL_SIZE
    channels, filters = 256, 3 * 256
    predictors = (channels + 1) * filters + (2 * filters + 1) * filters
    assert added == predictors + (filters + 1) * channels


def test_every_public_tensor_is_loaded_into_its_place(tmp_path):
    state = public_state(ARGS)
    modules = loaded(tmp_path / "x.pth", ARGS, state)
    for name, tensor in modules.state_dict().items():
        keys = spex_plus_names(name)
        if len(keys) > 1:
            public = torch.cat([state.pop(key) for key in keys])
        else:
            public = state.pop(keys[0])
        if name.endswith("depth_weight"):
            public = public.movedim(-1, 0)
        assert torch.equal(tensor, public.reshape(tensor.shape)), name
    assert not state


def reshape(key, *shape):
    return lambda args, state: state.update({key: torch.zeros(shape)})


BIAS = "pred_linear.bias"
SCONV = "conv_block_2_other.1.sconv.weight"
WRONG = {
    "missing": (lambda args, state: state.pop(SCONV), f"missing: {SCONV};"),
    "classifier": (lambda args, state: state.pop(BIAS), f"missing: {BIAS};"),
    "unexpected": (reshape("x.weight", 1), "unexpected: x.weight;"),
    "shape": (reshape(SCONV, 6, 11, 1), f"another shape: {SCONV} (6, 11, 1)"),
    "argument": (lambda args, state: args.pop("X"), "no SpEx+: its model_args lack X"),
    "norm": (lambda args, state: args.update(norm="cLN"), "norm cLN, only gLN"),
    "taps": (lambda args, state: args.update(P=5), "P 5, only 3"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_models_are_refused_by_name(kind, tmp_path):
    change, message = WRONG[kind]
    args, state = dict(ARGS), public_state(ARGS)
    change(args, state)
    path = save_checkpoint(tmp_path / "bad.pth", args, state)
    with pytest.raises(ValueError, match=r"bad\.pth") as refusal:
        load(path, tmp_path, ARGS)
    assert message in str(refusal.value)


@pytest.mark.parametrize("length", [1, 19, 20, 21, 29, 159, 160, 279, 280, 281])
def test_any_length_goes_in_and_comes_out(tiny, length):
    """Frames are 20 samples long, an enrollment's first group ends at 280."""
    estimates = extract_from(tiny, noise(2, length), noise(2, length, seed=1))
    assert estimates.shape == (2, 3, length)
    assert estimates.isfinite().all()


def batch(signals):
    """Padded with noise, which must not matter, and the relative lengths."""
    lengths = torch.tensor([len(signal) for signal in signals])
    padded = noise(len(signals), max(lengths), seed=9)
    for row, signal in zip(padded, signals, strict=True):
        row[: len(signal)] = signal
    return padded, lengths / padded.shape[1]


def signals(*lengths):
    return [noise(length, seed=length) for length in lengths]


def test_padded_items_are_extracted_as_if_alone(tiny):
    """Of all lengths: less than a frame, or than a group; not a whole group."""
    mixtures, enrollments = signals(1600, 1, 803, 11), signals(7, 2001, 900, 281)
    (mixture_batch, lens), (enrollment_batch, enrollment_lens) = map(
        batch, (mixtures, enrollments)
    )
    estimates = extract_from(
        tiny, mixture_batch, enrollment_batch, lens, enrollment_lens
    )
    unaware = extract_from(tiny, mixture_batch, enrollment_batch)
    for index, pair in enumerate(zip(mixtures, enrollments, strict=True)):
        alone = extract_from(tiny, *(signal[None] for signal in pair))[0]
        ours = estimates[index, :, : alone.shape[1]]
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-5)
        # Where lengths are not told, the padding is heard.
        assert (unaware[index, :, : alone.shape[1]] - alone).abs().max() > 1e-4


def test_norms_over_the_batch_count_no_padding(tiny):
    """In training: more padding changes no embedding and no running statistic."""
    enrollments, lens = batch(signals(2001, 400, 1300))
    more = F.pad(enrollments, (0, 999), value=3.0)
    results = []
    for padded in (enrollments, more):
        stage = copy.deepcopy(tiny["speaker_encoder"]).train()
        relative = lens * enrollments.shape[1] / padded.shape[1]
        embeddings = stage(padded, relative, tiny["encoder"])
        results.append(
            (embeddings, *(block.norm2.running_var for block in stage.blocks))
        )
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_shortest_enrollment_trains(tiny):
    """One sample, in a batch of one: norms over the batch need several frames."""
    assert embed(tiny.train(), noise(1, 1)).isfinite().all()


def train_step(modules, hparams, dtype=torch.float32):
    """The loss of two pairs of peers, one of them padded, with its gradients."""
    lens, targets = torch.tensor([1.0, 0.7]), noise(2, 1600, seed=3)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        embeddings = embed(modules, noise(2, 1500, seed=2), torch.tensor([0.6, 1.0]))
        learn = PeerLearning("better")
        outputs = learn(modules, noise(4, 1600), embeddings, targets, lens)
        loss, _ = hparams["loss"](outputs, targets, lens, torch.tensor([2, 0]))
    loss.backward()
    return loss.item()


def test_a_pair_of_peers_trains_every_parameter(tmp_path):
    modules, hparams = build(tmp_path, **TINY)
    train_step(modules, hparams)
    untrained = [name for name, p in modules.named_parameters() if not p.grad.any()]
    assert untrained == []


def test_bf16_is_fp32_with_its_roundings(tmp_path):
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        modules, hparams = build(tmp_path, **TINY)
        loss = train_step(modules, hparams, dtype)
        grad = torch.cat([p.grad.flatten() for p in modules.parameters()])
        results.append((loss, grad))
    (loss, grad), (rounded_loss, rounded_grad) = results
    assert 0 < abs(loss - rounded_loss) < 0.02 * abs(loss)
    assert F.cosine_similarity(grad, rounded_grad, dim=0) > 0.95


def test_the_encoder_is_shared_and_has_one_place(tiny):
    """The classifier's loss reaches the mixture encoder through the enrollment."""
    parameters = list(tiny.parameters())
    assert len({id(parameter) for parameter in parameters}) == len(parameters)
    tiny["speaker_classifier"](embed(tiny, noise(2, 900)))[:, 0].sum().backward()
    for scale in tiny["encoder"].scales:
        assert scale.weight.grad.any()
    assert all(p.grad is None for p in tiny["separator"].parameters())


def test_export_folds_the_predictors(tmp_path):
    modules, _ = build(tmp_path, **TINY)
    for _ in range(3):  # running statistics of its own
        embed(modules.train(), noise(4, 1500))
    torch.nn.init.normal_(modules["decoder"].bias)
    text = (HPARAMS / "spex_plus_pl.yaml").read_text(encoding="utf-8")
    run = tmp_path / "run.yaml"
    run.write_text(resolve_references(text, TINY).read(), encoding="utf-8")
    folded, hparams = load_model(export_model(run, modules, tmp_path / "model"))
    assert not {"predictor1", "predictor2", "speaker_classifier"} & set(hparams)
    mixtures, enrollments = noise(2, 1601), noise(2, 900, seed=1)
    estimates = extract_from(folded.eval(), mixtures, enrollments)
    right = extract_from(modules.eval(), mixtures, enrollments)
    torch.testing.assert_close(estimates, right, rtol=0, atol=1e-5)
    # What is left of peer learning is a map of e and its bias.
    channels = TINY["channels"]
    backbone = count(build(tmp_path, "spex_plus", **TINY)[0])
    assert count(folded) == backbone + 2 * channels * channels + channels
