"""Fine-tuning: what is loaded, what is new, what is refused, and whole runs."""

import csv
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import test_model_spex_plus as spex_plus
import test_model_td_speakerbeam as td_speakerbeam
import torch
from hyperpyyaml import load_hyperpyyaml
from test_train import ROOT, Interrupted, load_script, tiny
from tiny_model import TRAINING_YAML, write_run

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.packaging.export import export_model
from speechbrain_peer.packaging.loading import load_model
from speechbrain_peer.peer_learning.exchange import PeerLearning, embed, extract
from speechbrain_peer.training.checkpoints import SafeCheckpointer
from speechbrain_peer.training.fine_tuning import _widen, start_from, start_level
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.signal import si_snr

PEER_LEARNING = [
    f"{stage}.{kind}"
    for stage in ("predictor1.linear", "predictor2.linear", "mask_head.combine")
    for kind in ("weight", "bias")
]


def build(text=TRAINING_YAML, seed=0, **overrides):
    """The stages of a YAML, with random weights of their own for every seed."""
    hparams = load_hyperpyyaml(text, {"seed": seed, **overrides})
    stages = PeerLearning(hparams["exchange"]).stages(hparams["modules"])
    return torch.nn.ModuleDict(stages)


@pytest.fixture
def trained(tmp_path):
    """Makes a trained model; gives its stages and the folder of its export."""

    def make(**overrides):
        run_file = write_run(tmp_path / "run")
        text = run_file.read_text(encoding="utf-8")
        for key, value in overrides.items():
            text = re.sub(rf"^{key}: .*", f"{key}: {value}", text, flags=re.MULTILINE)
        run_file.write_text(text, encoding="utf-8")
        modules = build(text, seed=7)
        return modules, export_model(run_file, modules, tmp_path / "model")

    return make


def extract_from(modules, seconds=0.5):
    rng = torch.Generator().manual_seed(0)
    mixtures, enrollments = torch.randn(2, 3, int(seconds * 8000), generator=rng)
    with torch.no_grad():
        return extract(modules.eval(), mixtures, embed(modules, enrollments))


def assert_extracts_the_same(modules, others):
    ours, theirs = extract_from(modules), extract_from(others)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.std()))


def new_weights(caplog):
    """The names that the log calls new."""
    line = next(text for text in caplog.messages if "loaded" in text)
    return line.split("new: ")[1].split(", ")


@pytest.mark.parametrize("kernel", [{}, {"predictor2": {"kernel_size": 3}}])
def test_peer_learning_is_added_to_a_backbone(kernel, trained, caplog):
    caplog.set_level(logging.INFO)
    backbone, folder = trained(exchange="none")
    modules = build(**kernel)
    start_from(modules, folder, 8000)
    assert_extracts_the_same(modules, backbone)
    weights, old = modules.state_dict(), backbone.state_dict()
    new = [name for name in weights if name not in old]
    assert sorted(new) == sorted(PEER_LEARNING)
    classifier = ["speaker_classifier.weight", "speaker_classifier.bias"]
    assert new_weights(caplog) == [*new, *classifier]
    assert "mask_head 3, decoder 1" in caplog.text


def test_added_peer_learning_learns_though_c_is_zero(trained):
    _, folder = trained(exchange="none")
    modules = build()
    start_from(modules, folder, 8000)
    mixtures, enrollments, targets = torch.randn(4, 4000), *torch.randn(2, 2, 4000)
    for weights in ("mask_head.combine.weight", "predictor1.linear.weight"):
        embeddings = embed(modules, enrollments)
        outputs = PeerLearning("better")(modules, mixtures, embeddings, targets, None)
        # Of the estimate alone: p and r have losses of their own besides.
        estimates = outputs.estimate[:, 0].unflatten(0, (2, 2))
        (-si_snr(estimates, targets).mean()).backward()
        assert modules.get_parameter(weights).grad.abs().max() > 0, weights
        with torch.no_grad():
            for parameter in modules.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad


def test_folded_peer_learning_goes_on_with_new_predictors(trained, caplog):
    caplog.set_level(logging.INFO)
    original, folder = trained()
    modules = build()
    start_from(modules, folder, 8000)
    assert_extracts_the_same(modules, original)
    assert set(PEER_LEARNING) < set(new_weights(caplog))


def test_folded_maps_of_several_frames_are_not_taken_over(trained, tmp_path):
    kernel = {"predictor2": {"kernel_size": 3}}
    run = write_run(tmp_path / "run")
    text = TRAINING_YAML.replace(
        "<n_filters> * 2", "<n_filters> * 2\n    kernel_size: 3"
    )
    run.write_text(text, encoding="utf-8")
    folder = export_model(run, build(text), tmp_path / "model")
    with pytest.raises(DataError, match="give the output folder of its training run"):
        start_from(build(**kernel), folder, 8000)


def test_fewer_filters_than_channels_can_be_unfolded(trained):
    original, folder = trained(n_filters=4)
    modules = build(n_filters=4)
    start_from(modules, folder, 8000)
    assert_extracts_the_same(modules, original)


@pytest.mark.parametrize("exchange", ["none", "better"])
def test_predictors_of_another_kind_cannot_take_over_folded_ones(exchange, trained):
    original, folder = trained(exchange=exchange)
    modules = build()
    modules["predictor1"] = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU())
    if exchange == "none":
        start_from(modules, folder, 8000)
        assert_extracts_the_same(modules, original)
        return
    before = extract_from(modules)
    with pytest.raises(DataError, match=r"folded.*folder of its training run"):
        start_from(modules, folder, 8000)
    assert torch.equal(extract_from(modules), before)


def test_the_best_checkpoint_of_a_run_keeps_its_predictors(trained, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    original, _ = trained()
    checkpointer = SafeCheckpointer(tmp_path / "run/save", dict(original.items()))
    checkpointer.save_checkpoint(meta={"valid_loss": -2.0})
    best = {name: weight.clone() for name, weight in original.state_dict().items()}
    with torch.no_grad():
        original["encoder"].weight += 1
    checkpointer.save_checkpoint(meta={"valid_loss": -1.0})
    modules = build(exchange="anyway")
    start_from(modules, tmp_path / "run", 8000)
    weights = modules.state_dict()
    assert weights.keys() == best.keys()
    assert all(torch.equal(weights[name], best[name]) for name in best)
    assert new_weights(caplog) == ["none"]


def test_a_wider_predictor_starts_as_the_narrow_one(trained, tmp_path):
    run = tmp_path / "run"
    original, _ = trained()
    checkpointer = SafeCheckpointer(run / "save", dict(original.items()))
    checkpointer.save_checkpoint(meta={"valid_loss": 1.0})
    modules = build(predictor2={"kernel_size": 5})
    start_from(modules, run, 8000)
    assert modules["predictor2"].linear.in_features == 5 * 32
    assert_extracts_the_same(modules, original)


def test_a_wider_predictor_of_bands_starts_as_the_narrow_one(tmp_path):
    text = (ROOT / "hparams/bsrnn_pl.yaml").read_text(encoding="utf-8")
    sizes = {"channels": 4, "n_blocks": 1, "results_folder": str(tmp_path)}
    narrow = build(text, **sizes)
    wide = build(text, **sizes, seed=1, predictor2={"kernel_size": 3})
    weights, ours = narrow.state_dict(), wide.state_dict()
    _widen(weights, narrow, wide)
    assert all(weights[name].shape == ours[name].shape for name in ours)
    wide.load_state_dict(weights)
    both = torch.randn(2, 5, 129, 4)  # p and p* of every bin
    outputs = [modules["predictor2"](both) for modules in (narrow, wide)]
    torch.testing.assert_close(*outputs)


def test_a_run_without_checkpoint_is_no_start(trained, tmp_path):
    trained()
    (tmp_path / "run/save").mkdir()
    with pytest.raises(DataError, match="save: holds no checkpoint"):
        start_from(build(), tmp_path / "run", 8000)


# Of each public format: its tests, and the arguments of their checkpoint.
PUBLIC = {
    "td_speakerbeam": (td_speakerbeam, td_speakerbeam.TINY),
    "spex_plus": (spex_plus, spex_plus.ARGS),
}


@pytest.mark.parametrize("backbone", PUBLIC)
def test_a_public_checkpoint_gets_peer_learning(backbone, tmp_path, caplog):
    public, args = PUBLIC[backbone]
    path = tmp_path / "public.pth"
    torch.save({"model_args": args, "state_dict": public.public_state(args)}, path)
    text = (ROOT / f"hparams/{backbone}_pl.yaml").read_text(encoding="utf-8")
    modules = build(text, results_folder=str(tmp_path), **public.sizes(args))
    caplog.set_level(logging.INFO)
    start_from(modules, path, 8000)
    assert_extracts_the_same(modules, public.load(path, tmp_path))
    # The classifier of another number of speakers is new, too.
    new = [name for name in new_weights(caplog) if "classifier" not in name]
    assert sorted(new) == sorted(PEER_LEARNING)


def test_a_checkpoint_of_the_public_implementation(tse_reference, tmp_path):
    """What it extracts is what the public code extracted."""
    path = tse_reference / "speakerbeam/tiny_mul.pth"
    text = (ROOT / "hparams/td_speakerbeam_pl.yaml").read_text(encoding="utf-8")
    sizes = {"n_filters": 64, "channels": 32, "hidden_channels": 48}
    sizes |= {"n_blocks": 3, "n_repeats": 2, "results_folder": str(tmp_path)}
    modules = build(text, **sizes)
    start_from(modules, path, 8000)
    signals = np.load(tse_reference / "speakerbeam/tiny_mul_io.npz")
    mixture, enrollment, estimate = (
        torch.from_numpy(signals[key]) for key in ("mixture", "enrollment", "estimate")
    )
    with torch.no_grad():
        ours = extract(modules, mixture, embed(modules, enrollment))
    torch.testing.assert_close(ours, estimate[:, 0], rtol=0, atol=1e-5)
    with pytest.raises(DataError, match="is for 8000 Hz, training for 24000"):
        start_from(modules, path, 24000)


def test_weights_that_do_not_fit_are_named(trained):
    _, folder = trained()
    with pytest.raises(DataError) as error:
        start_from(build(n_filters=24), folder, 8000)
    text = str(error.value)
    assert str(folder) in text
    assert "encoder.weight is (16, 16) there and (24, 16) here" in text
    assert text.count(" there and ") == 10
    assert text.endswith("; and 1 more")


def test_nothing_is_changed_by_a_model_that_does_not_fit(trained):
    _, folder = trained()
    modules = build(n_filters=24)
    before = {name: weight.clone() for name, weight in modules.state_dict().items()}
    with pytest.raises(DataError):
        start_from(modules, folder, 8000)
    assert all(torch.equal(before[k], v) for k, v in modules.state_dict().items())


def test_trained_peer_learning_is_not_dropped(trained):
    _, folder = trained()
    with pytest.raises(DataError, match=r"combine.weight is \(8, 8\) there and absent"):
        start_from(build(exchange="none"), folder, 8000)


def test_settings_that_no_weight_shows_are_logged(trained, caplog):
    _, folder = trained()
    start_from(build(), folder, 8000)
    start_from(build().eval(), folder, 8000)
    assert "other settings" not in caplog.text
    start_from(build(stride=4), folder, 8000)
    assert "encoder.stride is 8 there and 4 here" in caplog.text


def test_another_sample_rate_is_refused(trained):
    _, folder = trained()
    with pytest.raises(DataError, match="is for 8000 Hz, training for 24000"):
        start_from(build(), folder, 24000)


@pytest.mark.parametrize("name", ["no such/folder/here", "notes.txt", "empty"])
def test_what_is_no_model_is_named(name, tmp_path):
    (tmp_path / "notes.txt").write_text("no weights")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"start_from: .*{name}"):
        start_from(build(), tmp_path / name, 8000)


def train(script, folder, corpus, row, **overrides):
    """Runs the script on the made corpus; returns the Brain."""
    settings = tiny(row) | corpus._asdict() | {"results_folder": folder}
    settings |= {"n_epochs": 1} | overrides
    options = [f"--{key}={value}" for key, value in settings.items()]
    yaml = str(ROOT / f"hparams/{row}.yaml")
    return script.main([yaml, "--device=cpu", "--noprogressbar", *options])


def valid_losses(brain):
    with open(f"{brain.hparams.output_folder}/curves.csv", encoding="utf-8") as file:
        return [float(row["valid_loss"]) for row in csv.DictReader(file)]


def test_fine_tuning_starts_from_the_model_and_resumes_from_its_own(
    corpus, tmp_path, monkeypatch
):
    script = load_script()
    backbone = train(script, tmp_path, corpus, "td_speakerbeam")
    model = Path(backbone.hparams.export_folder)
    # With steps of no size to speak of, the backbone stays what it is.
    settings = {"row": "td_speakerbeam_pl", "start_from": model, "lr": 1e-12}
    settings |= {"ckpt_interval_minutes": 0, "ckpt_interval_steps": 1}

    def interrupt(brain, batch, outputs, loss, should_step):
        if brain.optimizer_step == 2:  # of 4
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(script.PeerBrain, "on_fit_batch_end", interrupt)
        with pytest.raises(Interrupted):
            train(script, tmp_path, corpus, **settings)
    shutil.rmtree(model)
    tuned = train(script, tmp_path, corpus, **settings)
    assert tuned.optimizer_step == 4
    np.testing.assert_allclose(valid_losses(tuned), valid_losses(backbone), atol=1e-4)


def test_the_documented_brain_trains_a_loaded_model(trained, tmp_path, monkeypatch):
    page = (ROOT / "docs/how-to/fine-tuning.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    _, folder = trained()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "results/td_speakerbeam_pl/1234/model")
    monkeypatch.setattr("sys.excepthook", print)  # Brain replaces it for good
    torch.manual_seed(0)
    mixtures, enrollments = torch.randn(2, 2, 4000)
    targets = mixtures.roll(1, dims=1)
    names = {"dataset": torch.utils.data.TensorDataset(mixtures, enrollments, targets)}
    exec(code, names)
    before, _ = load_model(folder)
    after = TargetSpeechExtraction.from_hparams("results/fine_tuned/model")
    estimates = names["model"].extract_batch(mixtures, enrollments)
    torch.testing.assert_close(after.extract_batch(mixtures, enrollments), estimates)
    scores = [
        si_snr(extract(modules, mixtures, embed(modules, enrollments)), targets)
        for modules in (before, after.mods)
    ]
    assert scores[1].mean() > scores[0].mean() + 0.01


@pytest.mark.parametrize(("off", "scaled"), [(300.0, True), (1.5, False)])
def test_a_level_that_is_far_off_is_mended_by_the_decoder(off, scaled, monkeypatch):
    modules, (mixture, voice) = build(seed=7), torch.randn(2, 4000)
    with torch.no_grad():
        (estimate,) = extract(modules, mixture[None], embed(modules, voice[None]))
    signals = {"mixture_sig": mixture, "enrollment_sig": voice}
    items = [{**signals, "target_sig": torch.flip(estimate, (0,)) / off}]
    before = modules["decoder"].weight.clone()
    start_level(modules, items)
    expected = before / off if scaled else before
    torch.testing.assert_close(modules["decoder"].weight, expected)
    assert all(stage.training for stage in modules.values())
    if scaled:
        items = [{**signals, "target_sig": estimate}]
        monkeypatch.setattr(modules["decoder"], "parameters", lambda: iter(()))
        with pytest.raises(DataError, match=r"-50 dB off.*give --level mixture"):
            start_level(modules, items)
