"""SepFormer: SpeechBrain's numbers, padding, long signals, sizes and edges."""

import pytest
import torch
from rows import build_row
from speechbrain.lobes.models.dual_path import (
    Dual_Computation_Block,
    Dual_Path_Model,
    SBTransformerBlock,
)
from speechbrain.lobes.models.transformer.Transformer import PositionalEncoding

from speechbrain_peer.models.sepformer import (
    DualPathBlock,
    Separator,
    Transformer,
    merge,
    segment,
)
from speechbrain_peer.peer_learning.exchange import PeerLearning, embed, extract

TINY = {
    "n_filters": 16,
    "channels": 8,
    "chunk_size": 10,
    "n_layers": 1,
    "n_heads": 2,
    "ffn_channels": 12,
    "speaker_channels": 6,
    "speaker_hidden_channels": 10,
    "speaker_blocks": 2,
}


@pytest.fixture
def build(tmp_path):
    """Builds the recipe's stages."""

    def build(**overrides):
        return build_row("sepformer_pl", tmp_path, **overrides)[0]

    return build


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def extract_from(modules, mixtures, enrollments, mixture_lens=None):
    return extract(modules, mixtures, embed(modules, enrollments), mixture_lens)


@pytest.mark.parametrize("frames", [1, 4, 5, 9, 10, 11, 40])
def test_chunks_are_speechbrains_and_add_up_again(frames):
    x = noise(2, frames, 3)
    chunks = segment(x, chunk_size=10)
    theirs, _ = Dual_Path_Model._Segmentation(
        DualPathModelWithoutParameters(), x.transpose(1, 2), 10
    )
    # Theirs may end with chunks that hold no frame.
    assert torch.equal(chunks.permute(0, 3, 2, 1), theirs[..., : chunks.shape[1]])
    assert not theirs[..., chunks.shape[1] :].any()
    torch.testing.assert_close(merge(chunks, frames), 2 * x, rtol=0, atol=0)


class DualPathModelWithoutParameters:
    """What SpeechBrain's segmentation asks of its model."""

    _padding = Dual_Path_Model._padding


@pytest.mark.parametrize("length", [1, 30, 2600])
def test_transformer_is_speechbrains(length):
    """Also beyond position 2500, where SpeechBrain's own table ends."""
    ours = Transformer(channels=8, n_layers=2, n_heads=2, ffn_channels=12)
    theirs = SBTransformerBlock(
        2, 8, 2, 12, dropout=0.0, use_positional_encoding=True, norm_before=True
    )
    theirs.mdl.load_state_dict(ours.mdl.state_dict())
    theirs.pos_enc = PositionalEncoding(8, max_len=length)
    x = noise(1, 2, length, 8)
    padding = torch.zeros(1, 2, length, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, padding)[0], theirs(x[0]))


def test_dual_path_block_is_speechbrains():
    ours = DualPathBlock(channels=8, n_layers=1, n_heads=2, ffn_channels=12)

    def theirs(transformer):
        """Calls it as SpeechBrain's block does, with (sequences, positions, D)."""
        return lambda x: transformer(x[None], torch.zeros(1, *x.shape[:2]) > 0)[0]

    block = Dual_Computation_Block(
        *(theirs(ours.intra), theirs(ours.inter)),
        out_channels=8,
        norm=None,
        linear_layer_after_inter_intra=False,
    )
    chunks, padding = noise(2, 5, 10, 8), torch.zeros(2, 5, 10, dtype=torch.bool)
    with torch.no_grad():
        expected = block(chunks.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
        torch.testing.assert_close(ours(chunks, padding), expected)


def test_full_size_parameters(build):
    """SepFormer's 25.3 million; peer learning adds 0.26."""
    plain, modules = build(exchange="none"), build()
    assert count(modules["separator"]) == count(plain["separator"]) == 25_340_672
    assert count(plain) == 27_096_978
    assert count(modules) == 27_359_890


@pytest.mark.parametrize("length", [1, 15, 16, 17, 95, 96, 97])
def test_any_length_goes_in_and_comes_out(length, build):
    """Also a single sample, and around the 10 frames of a chunk."""
    modules = build(**TINY)
    estimates = extract_from(modules, noise(2, length), noise(2, 300, seed=1))
    assert estimates.shape == (2, length)
    assert estimates.isfinite().all()


def test_padded_items_are_extracted_as_if_alone(build):
    """With whole chunks of padding, part of one, and chunks that end with the item."""
    modules = build(**TINY)
    mixtures = [noise(length, seed=length) for length in (1600, 1, 803, 88, 96)]
    enrollments = noise(5, 400)
    lens = torch.tensor([len(mixture) for mixture in mixtures]) / 1600
    padded = torch.nn.utils.rnn.pad_sequence(mixtures, batch_first=True)
    estimates = extract_from(modules, padded, enrollments, lens)
    unaware = extract_from(modules, padded, enrollments)
    for index, mixture in enumerate(mixtures):
        alone = extract_from(modules, mixture[None], enrollments[index, None])[0]
        estimate = estimates[index, : len(alone)]
        torch.testing.assert_close(estimate, alone, rtol=0, atol=1e-5)
        # Where lengths are not told, it attends to the padding.
        if index:
            assert (unaware[index, : len(alone)] - alone).abs().max() > 1e-4


def test_a_minute_is_extracted(build):
    """In chunks of the recipe's 250 frames."""
    modules = build(**TINY | {"chunk_size": 250})
    mixture = noise(1, 60 * 8000)
    estimate = extract_from(modules, mixture, noise(1, 8000, seed=1))
    assert estimate.shape == mixture.shape
    assert estimate.isfinite().all()
    assert estimate[0, -8000:].abs().max() > 0


def test_it_listens_to_the_enrollment(build):
    modules = build(**TINY)
    one, other = (
        extract_from(modules, noise(1, 800), noise(1, 800, seed=seed))
        for seed in (1, 2)
    )
    assert not torch.allclose(one, other)


def test_a_training_step_in_bf16_is_near_that_in_fp32(build):
    """And reaches every parameter, as several GPUs require."""
    modules = build(**TINY)
    targets, lens = noise(2, 1600, seed=1), torch.tensor([1.0, 0.1])
    mixtures, enrollments = noise(4, 1600), noise(2, 800, seed=2)
    estimates = []
    for enabled in (False, True):
        modules.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            embeddings = embed(modules, enrollments)
            learn = PeerLearning("better")
            outputs = learn(modules, mixtures, embeddings, targets, lens)
        outputs = outputs[:3]
        sum(output.square().mean() for output in outputs).backward()
        for name, parameter in modules.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        estimates.append(outputs[0].detach())
    exact, rounded = estimates
    assert (rounded - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("chunk_size", [0, 25])
def test_chunks_that_cannot_overlap_by_half_are_refused(chunk_size):
    with pytest.raises(ValueError, match=f"chunk_size {chunk_size} is not even"):
        Separator(16, 8, chunk_size, 2, 1, 2, ffn_channels=12)
