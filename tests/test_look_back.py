"""A causal start from a network that looks ahead."""

import logging

import torch
from test_fine_tuning import PUBLIC, build
from test_fine_tuning import trained as trained
from test_train import ROOT

from speechbrain_peer.nnet.tcn import ConvBlock
from speechbrain_peer.training.fine_tuning import start_from
from speechbrain_peer.training.look_back import look_back


@torch.no_grad()
def test_a_block_that_hears_nothing_ahead_goes_on_as_it_was():
    torch.manual_seed(0)
    block, causal = (ConvBlock(6, 6, 3, dilation=2, causal=x) for x in (False, True))
    # Frames of one mean and deviation, which cumulative norms see as global ones do.
    block.in_proj.weight.copy_(torch.eye(6))
    block.in_proj.bias.zero_()
    frame = torch.randn(6)
    x = torch.stack([frame[torch.randperm(6)] for _ in range(20)])[None]
    block.depth_weight[2] = 0  # it looks ahead, and hears nothing there
    weights = block.state_dict()
    causal.load_state_dict(weights)
    outputs, taken_over = block(x, torch.ones(1, 20)), causal(x, torch.ones(1, 20))
    assert look_back(weights, block, causal)
    causal.load_state_dict(weights)
    for one, other, worse in zip(
        outputs, causal(x, torch.ones(1, 20)), taken_over, strict=True
    ):
        # The last frame has heard all, as global norms have.
        torch.testing.assert_close(one[:, -1], other[:, -1])
        assert not torch.allclose(one[:, -1], worse[:, -1], atol=1e-2)


def test_a_causal_training_starts_from_a_model_that_looks_ahead(trained, caplog):
    caplog.set_level(logging.INFO)
    backbone, folder = trained()
    modules = build(separator={"causal": True})
    start_from(modules, folder, 8000)
    assert "looks ahead; its taps that do are left out" in caplog.text
    assert "other settings" not in caplog.text
    name = "separator.tcn.blocks.1.depth_weight"
    old, new = backbone.state_dict()[name], modules.state_dict()[name]
    assert not new[0].any() and torch.equal(new[1:], old[:2])
    name = "speaker_encoder.tcn.blocks.0.depth_weight"  # an enrollment is there whole
    assert torch.equal(backbone.state_dict()[name], modules.state_dict()[name])


def test_a_public_checkpoint_looks_ahead(tmp_path, caplog):
    public, args = PUBLIC["td_speakerbeam"]
    path, state = tmp_path / "public.pth", public.public_state(args)
    torch.save({"model_args": args, "state_dict": state}, path)
    text = (ROOT / "hparams/td_speakerbeam.yaml").read_text(encoding="utf-8")
    sizes = {"results_folder": str(tmp_path), **public.sizes(args)}
    ahead, causal = (build(text, causal=x, **sizes) for x in (False, True))
    caplog.set_level(logging.INFO)
    start_from(ahead, path, 8000)
    assert "looks ahead" not in caplog.text
    start_from(causal, path, 8000)
    assert "looks ahead; its taps that do are left out" in caplog.text
    assert "other settings" not in caplog.text
    name = "separator.tcn.blocks.1.depth_weight"
    old, new = ahead.state_dict()[name], causal.state_dict()[name]
    assert not new[0].any() and torch.equal(new[1:], old[:2])


def test_of_a_causal_model_nothing_moves():
    one, other = (build(separator={"causal": True}, seed=seed) for seed in (0, 1))
    weights = one.state_dict()
    assert not look_back(weights, one, other)
    assert all(torch.equal(weights[name], x) for name, x in one.state_dict().items())
