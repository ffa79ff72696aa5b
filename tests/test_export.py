"""Export and loading: whole folders, strict weights, and no code of strangers."""

import os
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import tiny_model
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.core import create_experiment_directory
from tiny_model import TRAINING_YAML, build, export, write_run

from speechbrain_peer.nnet.filterbank import Encoder
from speechbrain_peer.packaging.export import STAGES, export_model
from speechbrain_peer.packaging.loading import load_card, load_model
from speechbrain_peer.packaging.safe_yaml import check_yaml
from speechbrain_peer.peer_learning.exchange import PeerLearning, embed, extract
from speechbrain_peer.peer_learning.predictors import can_fold, fold_predictors

HPARAMS = sorted((Path(__file__).parents[1] / "hparams").glob("*.yaml"))
YAML, WEIGHTS = "hyperparams.yaml", "weights.ckpt"


# What is left of the tiny model's stages once its predictors are folded away.
FOLDED = tuple(name for name in STAGES if not name.startswith("predictor"))


def same_weights(modules, others):
    """Whether a loaded model holds others' weights, in the form that is exported."""
    others = torch.nn.ModuleDict(
        fold_predictors(others) if can_fold(others) else others.items()
    )
    ours, theirs = modules.state_dict(), others.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def edit_weights(folder, change):
    weights = torch.load(folder / WEIGHTS, weights_only=True)
    change(weights)
    torch.save(weights, folder / WEIGHTS)


def test_export_holds_the_trained_stages_and_nothing_else(tmp_path):
    folder = tmp_path / "süße Modelle" / "to use"
    trained = export(folder)
    modules, hparams = load_model(folder)
    assert tuple(modules) == FOLDED
    for_foreign_class = {"stages", "pretrainer"}
    of_all = {"sample_rate", "level", "modules"}
    assert set(hparams) == {*FOLDED, *of_all, *for_foreign_class}
    assert (hparams["sample_rate"], hparams["level"]) == (8000, "mixture")
    assert same_weights(modules, trained)
    assert {path.name for path in folder.iterdir()} == {YAML, WEIGHTS, "custom.py"}

    mixtures, enrollments = torch.randn(2, 1, 4000)
    embeddings = embed(trained, enrollments)
    torch.testing.assert_close(
        extract(modules, mixtures, embed(modules, enrollments)),
        extract(trained, mixtures, embeddings),
    )


def test_exported_yaml_is_literal_and_readable(tmp_path):
    export(tmp_path / "model")
    text = (tmp_path / "model" / YAML).read_text(encoding="utf-8")
    assert text.startswith("# A target speech extraction model.")
    assert "\n  encoder: !ref <encoder>\n" in text
    assert "\n  n_filters: 16\n" in text  # was "!ref <n_filters>"
    for leftover in ("A loss needs it", "classifier", "optimizer", "!apply", "&id"):
        assert leftover not in text


def test_export_of_what_speechbrain_saves_with_overrides(tmp_path, monkeypatch):
    """The resolved YAML of a run, which refers to stages by YAML aliases."""
    monkeypatch.setattr("sys.excepthook", print)  # it is replaced for good otherwise
    run = tmp_path / "run"
    overrides = {"n_filters": 24, "exchange": "none"}
    create_experiment_directory(
        str(run), write_run(tmp_path / "recipe"), overrides, save_env_desc=False
    )
    hparams = load_hyperpyyaml(TRAINING_YAML, overrides)
    trained = PeerLearning(hparams["exchange"]).stages(hparams["modules"])
    card = {"README.md": "# Süß"}
    folder = export_model(run / YAML, trained, tmp_path / "model", card)
    modules, _ = load_model(folder)
    assert load_card(folder) == "# Süß"
    assert modules["encoder"].weight.shape == (24, 16)
    assert same_weights(modules, torch.nn.ModuleDict(trained))


@pytest.mark.parametrize("path", HPARAMS, ids=lambda path: path.name)
def test_every_recipe_exports_a_model_that_needs_no_trust(path, tmp_path):
    overrides = {"results_folder": str(tmp_path), "start_from": "a run"}
    run = tmp_path / "hyperparams.yaml"
    with open(path, encoding="utf-8") as stream:
        run.write_text(resolve_references(stream, overrides).read(), encoding="utf-8")
    hparams = load_hyperpyyaml(run.read_text(encoding="utf-8"))
    trained = hparams["peer_learning"].stages(hparams["modules"])
    modules, _ = load_model(export_model(run, trained, tmp_path / "model"))
    assert same_weights(modules, torch.nn.ModuleDict(trained))


def test_stages_keep_what_they_share(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "sample_rate: 8000\n"
        "shared: !new:torch.nn.Linear {in_features: 2, out_features: 2}\n"
        "encoder: !new:torch.nn.Sequential [!ref <shared>]\n"
        "decoder: !new:torch.nn.Sequential [!ref <shared>]\n"
        "modules: {encoder: !ref <encoder>, decoder: !ref <decoder>}\n"
    )
    hparams = load_hyperpyyaml(path.read_text())
    modules, _ = load_model(export_model(path, hparams["modules"], tmp_path / "model"))
    assert modules["encoder"][0] is modules["decoder"][0]


def test_wrapped_modules_are_exported_bare(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")  # torchrun does; SpeechBrain asks
    trained = build()
    wrapped = torch.nn.ModuleDict(trained.items())
    wrapped["separator"] = torch.compile(wrapped["separator"])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        for name in ("encoder", "separator"):
            wrapped[name] = torch.nn.parallel.DistributedDataParallel(wrapped[name])
        folder = export_model(write_run(tmp_path / "run"), wrapped, tmp_path / "model")
    finally:
        torch.distributed.destroy_process_group()
    modules, _ = load_model(folder)
    assert same_weights(modules, trained)


def test_export_replaces_an_older_one_only_when_complete(tmp_path):
    folder = tmp_path / "model"
    first = export(folder, seed=1)
    broken = build(seed=2)
    broken["encoder"] = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="encoder"):
        export_model(tmp_path / "run" / YAML, broken, folder)
    assert same_weights(load_model(folder)[0], first)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "model"}

    second = export(folder, seed=2)
    assert not same_weights(first, second)
    assert same_weights(load_model(folder)[0], second)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "model"}


@pytest.mark.parametrize("linked", [False, True])
def test_what_a_killed_export_left_is_used_and_cleared(tmp_path, linked):
    folder, real = tmp_path / "model", tmp_path / "real"
    if linked:
        folder.symlink_to(real)
    first = export(folder, seed=1)
    real = real if linked else folder
    real.rename(real.with_name(f".{real.name}.replaced"))  # between its two renames
    assert same_weights(load_model(folder)[0], first)
    second = export(folder, seed=2)
    assert same_weights(load_model(folder)[0], second)
    shutil.copytree(real, real.with_name(f".{real.name}.replaced"))  # and after them
    third = export(folder, seed=3)
    assert same_weights(load_model(folder)[0], third)
    assert not list(tmp_path.glob(".*"))
    assert folder.is_symlink() == linked


def test_export_removes_no_files_of_others(tmp_path):
    notes = tmp_path / "model" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        export(tmp_path / "model")
    assert notes.read_text() == "mine"


def test_export_names_a_missing_entry(tmp_path):
    path = write_run(tmp_path)
    edit(path, "sample_rate: 8000", "rate: 8000")
    with pytest.raises(ValueError, match="sample_rate"):
        export_model(path, build(), tmp_path / "model")


def test_weights_that_are_not_finite_are_not_exported(tmp_path):
    modules = build()
    modules["decoder"].weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="not written, as weights are not finite"):
        export_model(write_run(tmp_path / "run"), modules, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_stage_of_another_package_is_exported_with_a_warning(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(tiny_model, "OwnEncoder", Encoder, raising=False)
    path = write_run(tmp_path)
    edit(path, Encoder.__module__ + ".Encoder", "tiny_model.OwnEncoder")
    folder = export_model(path, build(), tmp_path / "model")
    assert "trust=True" in caplog.text
    with pytest.raises(ValueError, match=r"tiny_model\.OwnEncoder"):
        load_model(folder)
    load_model(folder, trust=True)


def test_refusal_names_the_line_and_the_cure():
    text = "a: 1\nb:\n  - !apply:os.system [ls]\n"
    with pytest.raises(ValueError, match=r"m\.yaml, line 3: !apply:os\.system.*trust"):
        check_yaml(text, "m.yaml")


def test_plain_values_and_layers_are_accepted():
    check_yaml(
        "rate: 8000\nlr: 1.0e-3\nname: 'a (b) <- c'\nnone: null\nday: 2026-01-01\n"
        "kernels: (20, 80, 160)\nlist: &l [1, 2]\nagain: *l\ndeep: {a: {b: yes}}\n"
        "act: !name:torch.nn.PReLU {init: 0.1}\nx: !ref <deep[a]>\n"
        "norm: !new:speechbrain.nnet.normalization.BatchNorm1d {input_size: 2}\n"
        "stft: !new:speechbrain.processing.features.STFT {sample_rate: 8000}\n",
        "model.yaml",
    )


def test_trust_builds_anything(tmp_path):
    export(tmp_path / "model")
    with open(tmp_path / "model" / YAML, "a", encoding="utf-8") as file:
        file.write("cwd: !apply:os.getcwd []\n")
    with pytest.raises(ValueError, match="getcwd"):
        load_model(tmp_path / "model")
    _, hparams = load_model(tmp_path / "model", trust=True)
    assert hparams["cwd"] == os.getcwd()


def test_weights_are_strict_and_all_misfits_are_named(tmp_path):
    export(tmp_path / "model")

    def change(weights):
        del weights["decoder.weight"]
        weights["mask_head.extra"] = torch.zeros(1)
        weights["encoder.weight"] = torch.zeros(3, 16)

    edit_weights(tmp_path / "model", change)
    with pytest.raises(ValueError, match=r"weights\.ckpt") as error:
        load_model(tmp_path / "model")
    for name in ("decoder.weight", "mask_head.extra", "encoder.weight", r"[3, 16]"):
        assert name in str(error.value)


@pytest.mark.parametrize("content", ["rubbish", "empty", "cut", "tensor"])
def test_unusable_weights_are_named(content, tmp_path):
    export(tmp_path / "model")
    path = tmp_path / "model" / WEIGHTS
    whole = path.read_bytes()
    if content == "tensor":
        torch.save(torch.zeros(1), path)
    else:
        half = whole[: len(whole) // 2]
        path.write_bytes(
            {"rubbish": b"not weights", "empty": b"", "cut": half}[content]
        )
    with pytest.raises(ValueError, match=r"weights\.ckpt"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("name", [YAML, WEIGHTS])
def test_a_missing_file_is_named(name, tmp_path):
    export(tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_model(tmp_path / "model")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model here"):
        load_model(tmp_path / "no model here")


def test_a_local_folder_is_read_in_place(tmp_path):
    """An old savedir must not win over a new source, as with SpeechBrain's."""
    first, second = export(tmp_path / "a", seed=1), export(tmp_path / "b", seed=2)
    savedir = tmp_path / "saved"
    assert same_weights(load_model(tmp_path / "a", savedir)[0], first)
    assert same_weights(load_model(tmp_path / "b", savedir)[0], second)
    assert not savedir.exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub cache that holds two models, and no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    revision = "0" * 40
    for name in ("one", "two"):
        repository = cache / f"models--somebody--{name}"
        export(repository / "snapshots" / revision)
        shutil.rmtree(repository / "snapshots" / "run")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(revision)


def test_a_model_of_the_hub_is_loaded_with_and_without_savedir(hub, tmp_path):
    modules, _ = load_model("somebody/one")
    assert tuple(modules) == FOLDED
    for _ in range(2):
        load_model("somebody/one", tmp_path / "saved")
    assert (tmp_path / "saved" / WEIGHTS).exists()


def test_a_savedir_of_another_model_is_refused(hub, tmp_path):
    load_model("somebody/one", tmp_path / "saved")
    with pytest.raises(
        ValueError, match=r"somebody/one.*somebody/two.*another savedir"
    ):
        load_model("somebody/two", tmp_path / "saved")
    (tmp_path / "saved" / "source.txt").unlink()
    with pytest.raises(ValueError, match="unknown source"):
        load_model("somebody/two", tmp_path / "saved")


@pytest.mark.parametrize("missing", [YAML, WEIGHTS])
def test_a_failed_download_claims_no_savedir(hub, tmp_path, missing):
    (broken,) = (tmp_path / "hub").glob(f"models--somebody--one/snapshots/*/{missing}")
    broken.unlink()
    saved = tmp_path / "saved"
    with pytest.raises(FileNotFoundError, match="somebody/one"):
        load_model("somebody/one", saved)
    assert not list(saved.iterdir())
    load_model("somebody/two", saved)
    with pytest.raises(ValueError, match="holds the model of somebody/two"):
        load_model("somebody/one", saved)
    assert {path.name for path in saved.iterdir()} == {"source.txt", WEIGHTS, YAML}


def test_a_revision_of_the_hub_is_pinned(hub, tmp_path):
    load_model("somebody/one", tmp_path / "saved", revision="0" * 40)
    with pytest.raises(ValueError, match=r"somebody/one@0+, not of somebody/one;"):
        load_model("somebody/one", tmp_path / "saved")
    with pytest.raises(FileNotFoundError, match="neither a folder here nor a model"):
        load_model("somebody/one", revision="1" * 40)


def test_an_unknown_model_of_the_hub_is_named(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match="'somebody/three' is neither"):
        load_model("somebody/three", tmp_path / "saved")
