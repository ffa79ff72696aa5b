"""Extraction without predictors equals extraction with them."""

import pytest
import torch
from tiny_model import TRAINING_YAML, build, export, write_run

from speechbrain_peer.packaging.export import export_model
from speechbrain_peer.packaging.loading import load_model
from speechbrain_peer.peer_learning import streams
from speechbrain_peer.peer_learning.exchange import extract, extract_together
from speechbrain_peer.peer_learning.predictors import (
    Predictor,
    can_fold,
    fold_predictors,
    sees_around,
)


def count(modules):
    return sum(parameter.numel() for parameter in modules.parameters())


def extracted(modules):
    torch.manual_seed(0)
    mixtures, embeddings = torch.randn(2, 4001), torch.randn(2, 16)
    with torch.no_grad():
        return extract(modules, mixtures, embeddings)


def test_export_folds_the_predictors(tmp_path):
    trained = export(tmp_path / "model")
    folded, hparams = load_model(tmp_path / "model")
    torch.testing.assert_close(
        extracted(folded), extracted(trained), rtol=1e-5, atol=1e-5
    )
    assert not {"predictor1", "predictor2"} & set(hparams)
    # What is left of peer learning are an 8 x 8 map with its bias, and one of the lent.
    stages = ("encoder", "speaker_encoder", "separator", "decoder")
    backbone = sum(count(trained[name]) for name in stages)
    backbone += sum(p.numel() for p in trained["mask_head"].linear.parameters()) + 1
    assert count(folded) == backbone + 2 * 8 * 8 + 8


def test_folding_leaves_the_trained_model_alone():
    trained = build()
    before = extracted(trained)
    folded = fold_predictors(trained)
    assert folded["mask_head"] is not trained["mask_head"]
    torch.testing.assert_close(extracted(trained), before, rtol=0, atol=0)


class NonlinearPredictor(Predictor):
    """A predictor that no matrix can stand for."""

    def forward(self, representation):
        return torch.tanh(super().forward(representation))


def test_a_predictor_that_is_not_linear_is_exported_unfolded(tmp_path):
    trained = build()
    predictor = NonlinearPredictor(8, 16)
    trained["predictor1"] = predictor
    assert not can_fold(trained)
    run = write_run(tmp_path / "run")
    own_class = f"{NonlinearPredictor.__module__}.NonlinearPredictor"
    text = run.read_text().replace(
        "speechbrain_peer.peer_learning.predictors.Predictor\n    in_channels: 8",
        f"{own_class}\n    in_channels: 8",
    )
    run.write_text(text)
    export_model(run, trained, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model", trust=True)
    assert "predictor1" in loaded
    torch.testing.assert_close(extracted(loaded), extracted(trained))


SEES_AROUND = "in_channels: !ref <n_filters> * 2\n    kernel_size: 5"


@pytest.fixture
def sees_five(tmp_path):
    """A model whose second predictor sees five frames, as trained and as exported."""
    trained = build()
    trained["predictor2"] = Predictor(32, 16, kernel_size=5)
    run = write_run(tmp_path / "run")
    text = TRAINING_YAML.replace("in_channels: !ref <n_filters> * 2", SEES_AROUND)
    run.write_text(text, encoding="utf-8")
    export_model(run, trained, tmp_path / "model")
    return trained, load_model(tmp_path / "model")[0]


def test_a_predictor_that_sees_frames_around_is_folded_too(sees_five):
    trained, folded = sees_five
    assert "predictor2" not in folded and sees_around(folded)
    assert folded["mask_head"].combine.in_features == 5 * 8
    torch.testing.assert_close(
        extracted(folded), extracted(trained), rtol=1e-5, atol=1e-5
    )
    torch.manual_seed(0)
    recordings, embeddings = torch.randn(3, 2, 4001), torch.randn(2, 16)
    with torch.no_grad():
        both = [extract_together(x, recordings, embeddings) for x in sees_five]
    torch.testing.assert_close(*both, rtol=1e-5, atol=1e-5)


def test_what_sees_frames_around_sees_no_padding(sees_five):
    torch.manual_seed(0)
    mixtures, embeddings = torch.randn(2, 4000), torch.randn(2, 16)
    lens = torch.tensor([1.0, 0.5])
    for modules in sees_five:
        with torch.no_grad():
            padded = extract(modules, mixtures, embeddings, lens)[1:, :2000]
            alone = extract(modules, mixtures[1:, :2000], embeddings[1:])
        torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


def test_what_sees_frames_around_has_no_streams():
    causal = TRAINING_YAML.replace(
        "adaptation: mul", "adaptation: mul\n    causal: True"
    )
    modules = build(text=causal)
    assert streams.init_state(modules, batch=1) is not None
    modules["predictor2"] = Predictor(32, 16, kernel_size=5)
    assert streams.init_state(modules, batch=1) is None


@pytest.mark.parametrize("kernel_size", [0, 2, -1])
def test_a_kernel_has_a_middle(kernel_size):
    with pytest.raises(ValueError, match="odd number"):
        Predictor(8, 16, kernel_size)
