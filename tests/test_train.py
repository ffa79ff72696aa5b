"""The training script, run whole at a tiny size."""

import csv
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import speechbrain as sb
import torch
from filelock import FileLock
from hyperpyyaml import load_hyperpyyaml, resolve_references

from recipes.LibriMix.comparison.runs import find_runs
from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli.__main__ import main as tse
from speechbrain_peer.data.manifests import find_data_root, read_manifest
from speechbrain_peer.peer_learning.curves import COLUMNS
from speechbrain_peer.peer_learning.exchange import embed, extract
from speechbrain_peer.training.fine_tuning import load_run
from speechbrain_peer.training.launch import locked
from speechbrain_peer.utils.audio import read_audio
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.signal import si_snr

ROOT = Path(__file__).parents[1]
YAMLS = sorted(ROOT.glob("hparams/*.yaml"))
# Of each backbone, by how its YAMLs' names start; the demo's is TD-SpeakerBeam.
SIZES = {
    "td_speakerbeam": {
        "n_filters": 16,
        "channels": 8,
        "hidden_channels": 12,
        "n_blocks": 2,
        "n_repeats": 2,
    },
    "spex_plus": {
        "n_filters": 16,
        "channels": 8,
        "hidden_channels": 12,
        "n_blocks": 2,
        "n_repeats": 2,
        "speaker_channels": 8,
        "embedding_size": 8,
        "n_speakers": 4,
    },
    "sepformer": {
        "n_filters": 16,
        "channels": 8,
        "chunk_size": 10,
        "n_layers": 1,
        "n_heads": 2,
        "ffn_channels": 12,
        "speaker_channels": 8,
        "speaker_hidden_channels": 12,
        "speaker_blocks": 2,
    },
    "sdpccn": {
        "window": 64,
        "hop": 32,
        "channels": 4,
        "dense_channels": 6,
        "n_dense": 1,
        "dense_layers": 2,
        "deep_channels": [6, 8],
        "tcn_channels": 8,
        "n_blocks": 2,
        "speaker_channels": 8,
        "speaker_hidden_channels": 12,
        "speaker_blocks": 2,
    },
    "bsrnn": {
        "window": 64,
        "hop": 32,
        "bands": [[5, 3], [3, 6]],
        "channels": 4,
        "n_blocks": 2,
        "speaker_channels": 6,
        "speaker_hidden_channels": 8,
        "speaker_blocks": 2,
    },
}
ROWS_16K = ("base_16k", "live_16k")
for row in ROWS_16K:
    names = "window", "hop", "bands", "channels", "n_blocks"
    SIZES[row] = {name: SIZES["bsrnn"][name] for name in names}
# Of the full-size models, with the classifier of SpEx+'s 251 training speakers.
PARAMETERS = {
    "base_16k": 3_417_029,
    "bsrnn": 1_329_012,
    "bsrnn_pl": 1_364_112,
    "demo": 560_870,
    "live_16k": 1_261_845,
    "own_data": 2_472_876,
    "peers_8k": 1_364_972,
    "sdpccn": 6_849_072,
    "sepformer_pl": 27_359_890,
    "small_16k": 1_313_516,
    "small_8k": 1_282_636,
    "spex_plus": 11_112_777 + 251 * 257,
    "spex_plus_pl": 12_751_940,
    "td_speakerbeam": 6_704_194,
    "td_speakerbeam_map": 5_051_057,
    "td_speakerbeam_pl": 7_360_706,
    "td_speakerbeam_pl_best": 7_360_706,
}
TINY = {
    "chunk_seconds": 0.5,
    "batch_size": 3,
    "valid_batch_size": 5,
    "n_epochs": 2,
    "num_workers": 0,
    "n_scoring_processes": 0,
    "n_examples": 2,
}


def tiny(row):
    """The overrides that make a row's training small."""
    sizes = (sizes for name, sizes in SIZES.items() if row.startswith(name))
    return TINY | next(sizes, SIZES["td_speakerbeam"])


def load_script():
    """Imports recipes/LibriMix/train.py."""
    path = ROOT / "recipes/LibriMix/train.py"
    spec = importlib.util.spec_from_file_location("train", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def train():
    """The module recipes/LibriMix/train.py."""
    return load_script()


@pytest.fixture
def run(train, corpus, tmp_path):
    """Runs the script on the made corpus; returns the Brain."""

    def run(row="td_speakerbeam_pl", *flags, **overrides):
        folders = corpus._asdict() | {"results_folder": tmp_path}
        settings = tiny(Path(row).stem) | folders | overrides
        options = [f"--{key}={value}" for key, value in settings.items()]
        yaml = row if row.endswith(".yaml") else str(ROOT / f"hparams/{row}.yaml")
        return train.main([yaml, "--device=cpu", "--noprogressbar", *flags, *options])

    return run


def weights(brain):
    """All parameters, and those that are evaluated, as one vector."""
    parameters = [*brain.modules.parameters(), *brain.evaluated.parameters()]
    return torch.nn.utils.parameters_to_vector(parameters)


def read_curves(brain, without=("seconds",)):
    """The rows of curves.csv, without what a clock tells."""
    with open(f"{brain.hparams.output_folder}/curves.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in without} for row in rows]


def test_a_run_ends_with_scores_curves_examples_and_a_model(run, capfd):
    brain = run()
    folder = Path(brain.hparams.output_folder)
    names = (
        "curves.csv curves.png metrics.json metrics.md test_scores.csv train_log.txt"
    )
    for name in [*names.split(), "examples/examples.png", "extracted.wav"]:
        assert (folder / name).stat().st_size > 0, name
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["items"] == 12
    # Not Libri2Mix.
    assert metrics["corpus"].startswith("test (12 mixtures of 2 speakers, 4 speakers")
    assert metrics["run"]["exchange"] == "better"
    assert "| estimate |" in capfd.readouterr().out
    curves = read_curves(brain)
    assert [row["epoch"] for row in curves] == ["1", "2"]
    for row in curves:
        assert float(row["better_mask"]) >= float(row["worse_mask"])
        assert 0 <= float(row["agreement"]) <= 1

    # The exported model computes what the test loop computed.
    model = TargetSpeechExtraction.from_hparams(source=brain.hparams.export_folder)
    data = brain.hparams.training_items.rows  # only to find the data root
    root = Path(next(iter(data.values()))["mixture"]).parents[4]
    rows = json.loads((root / "manifests/wav8k_min_first/test.json").read_text())
    assert len(brain.examples) == 2
    for item_id, signals in brain.examples.items():
        paths = [
            rows[item_id][key].format(data_root=root)
            for key in ("mixture", "enrollment")
        ]
        from_file = model.extract_file(*paths)
        mixture, enrollment = (torch.from_numpy(read_audio(path)) for path in paths)
        from_batch = model.extract_batch(mixture[None], enrollment[None])[0]
        for estimate in (from_file, from_batch):
            np.testing.assert_allclose(estimate, signals["estimate"], atol=1e-5)
        assert np.abs(signals["estimate"]).max() > 1e-3


@pytest.mark.parametrize(
    ("row", "overrides"),
    [
        ("td_speakerbeam", {}),
        ("td_speakerbeam_map", {"peers": "drawn", "exchange": "better"}),
        ("td_speakerbeam_pl", {"exchange": "none", "peers": "drawn"}),
        ("td_speakerbeam_pl", {"exchange": "itself", "peers": "off"}),
        ("td_speakerbeam_pl", {"exchange": "anyway", "peer_interferer": "same"}),
        ("td_speakerbeam_pl_best", {"exchange": "coin"}),
        (
            "td_speakerbeam_pl_best",
            {"exchange": "none", "loss": "{mutual_weight: 0.1, mutual_threshold: -9}"},
        ),
        (
            "td_speakerbeam_pl",
            {
                "averaged_steps": 2,
                "num_workers": 2,
                "peers": "drawn",
                "precision": "bf16",
            },
        ),
        ("td_speakerbeam_pl_best", {"peer_interferer": "confusable"}),
        (
            "td_speakerbeam_pl_best",
            {
                "exchange": "itself",
                "peer_interferer": "quieter",
                "loss": "{imitation_weight: 1.0}",
                "precision": "bf16",
            },
        ),
        ("spex_plus", {}),
        (
            "spex_plus_pl",
            {"peers": "drawn", "n_peers": 3, "loss": "{imitation_weight: 1.0}"},
        ),
        ("sepformer_pl", {}),
        ("sdpccn", {}),
        ("sdpccn", {"peers": "drawn", "exchange": "better"}),
        ("bsrnn", {}),
        ("bsrnn", {"cue": "vector", "peers": "drawn", "exchange": "none"}),
        (
            "bsrnn_pl",
            {
                "peers": "drawn",
                "precision": "bf16",
                "loss": "{imitation_weight: 1.0}",
            },
        ),
        ("small_8k", {}),
        (
            "small_8k",
            {"mixing": "{speeds: [90, 110]}", "peers": "drawn", "n_peers": 3},
        ),
        *((row, {"mixing": "{items_per_epoch: 6}"}) for row in (*ROWS_16K, "peers_8k")),
        ("small_16k", {"mixing": "{items_per_epoch: 6}"}),
        (
            "bsrnn_pl",
            {
                "enrolling": "{seconds: [0.2, 1.0], own_estimates: 0.5}",
                "mixtures": "drawn",
                "peers": "drawn",
            },
        ),
    ],
)
def test_every_setting_trains(run, row, overrides):
    brain = run(row, n_epochs=1, **overrides)
    metrics = Path(brain.hparams.output_folder, "metrics.json").read_text()
    assert np.isfinite(json.loads(metrics)["means"]["si_sdr"])


def test_with_absent_talkers_a_model_learns_its_level(run):
    options = {"mixtures": "drawn", "peers": "drawn", "mixing": "{absent: 0.5}"}
    brain = run("td_speakerbeam_pl", n_epochs=2, level="network", **options)
    folder = brain.hparams.output_folder
    model = TargetSpeechExtraction.from_hparams(f"{folder}/model")
    assert model.tells_presence
    # The curves are SI-SNR, of those who are there; the loss is not.
    for row in read_curves(brain):
        assert all(np.isfinite(float(row[name])) for name in COLUMNS)
        assert float(row["valid_loss"]) != -float(row["valid_si_snr"])
    # What the test has scored is what the model gives its users.
    examples = Path(folder, "examples")
    mixture, *_ = sorted(examples.glob("*_mixture.wav"))
    estimate = mixture.with_name(mixture.name.replace("_mixture", "_estimate"))
    item = mixture.name.removesuffix("_mixture.wav")
    manifest = Path(folder).parents[1] / "data/manifests/wav8k_min_first/test.json"
    row = read_manifest(manifest, find_data_root(manifest))[item]
    extracted = model.extract_file(mixture, row["enrollment"])
    np.testing.assert_allclose(extracted, soundfile.read(estimate)[0], atol=1e-3)
    with pytest.raises(DataError, match="give --level network"):
        run("td_speakerbeam_pl", experiment="without", **options)


def test_a_model_without_a_level_gets_one_before_it_is_tuned(run, caplog):
    """Else a loss with level, of estimates far too loud, ends in silence."""
    first = run("td_speakerbeam", experiment="loud", n_epochs=1)
    folder = Path(first.hparams.export_folder)
    weights = torch.load(folder / "weights.ckpt")
    weights["decoder.weight"] *= 1000
    torch.save(weights, folder / "weights.ckpt")
    options = {"start_from": str(folder), "level": "network", "lr": 1e-12}
    tuned = run("td_speakerbeam", experiment="tuned", n_epochs=1, **options)
    model = TargetSpeechExtraction.from_hparams(tuned.hparams.export_folder)
    scale = model.mods.decoder.weight / weights["decoder.weight"]
    torch.testing.assert_close(scale, torch.full_like(scale, float(scale.mean())))
    assert 1e-5 < scale.mean() < 0.1
    # Estimates no louder than what they are of.
    mixture, voice = torch.randn(2, 1, 8000) / 10
    assert model.extract_batch(mixture, voice).norm() < 2 * mixture.norm()


def test_after_the_epochs_of_exchange_each_branch_keeps_its_own(run):
    best = run("td_speakerbeam_pl_best", experiment="best", n_epochs=3)
    assert best.hparams.exchange_epochs == 2
    options = {"n_epochs": 3, "peer_learning": "{exchange_epochs: null}"}
    exchanging = run("td_speakerbeam_pl_best", experiment="exchanging", **options)
    *firsts, last = read_curves(best)
    *others, other = read_curves(exchanging)
    assert firsts == others
    # What the branches were lent does not show in p, and shows in the mask.
    assert last["train_loss"] != other["train_loss"]


def test_the_best_training_ends_at_a_falling_rate(run):
    best = run("td_speakerbeam_pl_best", n_epochs=4, exchange_epochs=2, lr=0.0001)
    rates = [float(row["lr"]) for row in read_curves(best)]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 2e-4 / 3, 1e-4 / 3])


class Interrupted(Exception):
    """Stands for a kill."""


def resume(run, train, monkeypatch, interrupt, settings):
    """A run that `interrupt`, called after every batch, has ended once."""
    settings = settings | {"experiment": "resumed"}
    with monkeypatch.context() as patch:
        patch.setattr(train.PeerBrain, "on_fit_batch_end", interrupt)
        with pytest.raises(Interrupted):
            run(**settings)
    return run(**settings)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_in_mid_epoch_is_exact(run, train, monkeypatch, num_workers):
    settings = {"peers": "drawn", "exchange": "anyway", "num_workers": num_workers}
    settings["enrolling"] = "{seconds: [0.2, 1.0], own_estimates: 0.5}"
    settings["averaged_steps"] = 3
    whole = run(experiment="whole", **settings)

    def interrupt(brain, batch, outputs, loss, should_step):
        if brain.optimizer_step == 5:  # the first of four steps in epoch 2
            time.sleep(0.5)
        if brain.optimizer_step == 6:
            raise Interrupted

    settings |= {"ckpt_interval_minutes": 0, "ckpt_interval_steps": 1}
    resumed = resume(run, train, monkeypatch, interrupt, settings)
    for brain in (whole, resumed):  # which have the best epoch's weights
        brain.checkpointer.recover_if_possible()
    assert resumed.optimizer_step == whole.optimizer_step == 8
    assert torch.equal(weights(resumed), weights(whole))
    assert read_curves(resumed) == read_curves(whole)
    # The time before the kill counts.
    assert float(read_curves(resumed, without=())[1]["seconds"]) > 0.5


def test_resume_with_accumulated_gradients_is_exact(run, train, monkeypatch):
    settings = {"peers": "drawn", "grad_accumulation_factor": 2}
    whole = run(experiment="whole", **settings)

    def interrupt(brain, batch, outputs, loss, should_step):
        if brain.optimizer_step == 4:  # the last, after a batch that waits for another
            raise Interrupted

    settings |= {"ckpt_interval_minutes": 0, "ckpt_interval_steps": 1}
    resumed = resume(run, train, monkeypatch, interrupt, settings)
    assert resumed.optimizer_step == whole.optimizer_step == 4
    assert torch.equal(weights(resumed), weights(whole))
    assert read_curves(resumed) == read_curves(whole)


def test_averages_of_the_weights_are_validated_tested_and_exported(run, tmp_path):
    """Those of batch norms' running statistics, too."""
    plain = run("spex_plus", experiment="plain", n_epochs=1)
    brain = run("spex_plus", experiment="averaged", n_epochs=1, averaged_steps=3)
    # The training is the same, validation is not.
    columns = ("valid_loss", "valid_si_snr", "seconds")
    assert read_curves(brain, columns) == read_curves(plain, columns)
    assert read_curves(brain) != read_curves(plain)
    scores = [Path(b.hparams.output_folder, "test_scores.csv") for b in (plain, brain)]
    assert len({path.read_bytes() for path in scores}) == 2

    # Also by the command, and where another training starts from the run.
    folder = brain.hparams.output_folder
    assert tse(["export", folder, "-o", str(tmp_path / "model")]) == 0
    found = [load_run(folder)[0]]
    for export in (brain.hparams.export_folder, tmp_path / "model"):
        found.append(TargetSpeechExtraction.from_hparams(export).mods)
    averages = brain.evaluated.state_dict()
    assert any("running_mean" in name for name in averages)
    for modules in found:
        stages = modules.state_dict()
        for name, average in averages.items():
            if not name.startswith("speaker_classifier"):  # extraction needs none
                torch.testing.assert_close(stages[name], average)
    with pytest.raises(DataError, match="holds averages of the weights, which would"):
        run("spex_plus", experiment="averaged", n_epochs=2)


def test_test_only_scores_a_finished_run_again(run):
    folder = Path(run(n_epochs=1).hparams.output_folder)
    first = (folder / "test_scores.csv").read_bytes()
    (folder / "test_scores.csv").unlink()
    run("td_speakerbeam_pl", "--test_only", n_epochs=1)
    assert (folder / "test_scores.csv").read_bytes() == first


def test_a_debug_run_says_so_and_stays_out_of_the_comparison(run):
    brain = run("td_speakerbeam_pl", "--debug", corpus="Tones.")
    folder = Path(brain.hparams.output_folder)
    text = (folder / "metrics.md").read_text(encoding="utf-8")
    assert "A few batches (--debug) of Tones." in text
    with pytest.raises(DataError, match="--debug do not count"):
        find_runs([folder])


def test_debug_replaces_no_training(run):
    folder = Path(run(n_epochs=1).hparams.output_folder)
    before = (folder / "metrics.json").read_bytes()
    with pytest.raises(DataError, match="holds a training, whose results --debug"):
        run("td_speakerbeam_pl", "--debug", n_epochs=1)
    assert (folder / "metrics.json").read_bytes() == before


def test_a_step_is_not_more_than_an_epoch(run):
    with pytest.raises(DataError, match=r"grad_accumulation_factor \d+ or less"):
        run(grad_accumulation_factor=50)


def test_test_only_needs_a_trained_run(run):
    with pytest.raises(DataError, match="no checkpoint"):
        run("td_speakerbeam_pl", "--test_only")


def test_less_than_a_batch_is_nothing_to_train_on(run):
    with pytest.raises(DataError, match=r"has 12 training items.*--batch_size 12"):
        run(batch_size=13)


def test_less_than_a_batch_of_each_rank_is_nothing_either(run, train, monkeypatch):
    monkeypatch.setattr(train, "rank_and_ranks", lambda: (1, 2))
    with pytest.raises(DataError, match=r"12 .* 6 for each of 2 .*--batch_size 6"):
        run(batch_size=7)


def test_validation_is_the_mean_of_the_items_whatever_its_batches(run):
    losses = [
        read_curves(run(experiment=str(size), n_epochs=1, valid_batch_size=size))
        for size in (1, 5)
    ]
    losses = [float(row["valid_loss"]) for (row,) in losses]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_finished_training_of_n_steps_has_nothing_left_to_do(run):
    settings = {"n_steps": 6, "n_epochs": 5}
    folder = Path(run(**settings).hparams.output_folder)
    outputs = [folder / name for name in ("curves.csv", "train_log.txt")]
    before = [path.read_bytes() for path in outputs]
    (folder / "test_scores.csv").unlink()
    again = run(**settings)
    assert [path.read_bytes() for path in outputs] == before
    assert again.optimizer_step == 6
    assert (folder / "test_scores.csv").exists()
    # It can go on.
    assert run(n_steps=7, n_epochs=5).optimizer_step == 7
    assert [row["step"] for row in read_curves(again)] == ["4", "6", "7"]


def test_killed_after_the_last_step_a_training_is_validated(run, train, monkeypatch):
    whole = run(experiment="whole", n_steps=3)
    start = train.PeerBrain.on_stage_start

    def interrupt(brain, stage, epoch=None):
        if stage == sb.Stage.VALID:
            raise Interrupted
        start(brain, stage, epoch)

    settings = {"n_steps": 3, "ckpt_interval_minutes": 0, "ckpt_interval_steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr(train.PeerBrain, "on_stage_start", interrupt)
        with pytest.raises(Interrupted):
            run(**settings)
    assert read_curves(run(**settings)) == read_curves(whole)


def files_of(folder):
    """The content of every file below a folder."""
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_a_resume_with_other_sizes_changes_nothing(run):
    folder = run(n_epochs=1).hparams.output_folder
    before = files_of(folder)
    sizes = r"another model. encoder\.\S+ is \(16, .*?\) there and \(20, "
    with pytest.raises(DataError, match=sizes) as error:
        run(n_filters=20)
    assert "\n" not in str(error.value)
    after = files_of(folder)
    log = Path(folder, "log.txt")  # of this process, which has trained before
    assert after.pop(log).startswith(before.pop(log))
    assert after == before


def test_a_folder_is_for_one_training_at_a_time(run, tmp_path):
    with (
        locked(tmp_path / "td_speakerbeam_pl/1234"),
        pytest.raises(DataError, match=f"in use by process {os.getpid()}"),
    ):
        run()


@pytest.fixture
def break_audio(train, tmp_path, monkeypatch):
    """Arranges for audio to be overwritten as epoch 2 begins."""
    start = train.PeerBrain.on_stage_start

    def arrange(subset, value):
        def start_and_break(brain, stage, epoch=None):
            start(brain, stage, epoch)
            path = min(tmp_path.glob(f"data/wav8k/min/{subset}/mix_clean/*.wav"))
            if (stage, epoch) == (sb.Stage.TRAIN, 2):
                samples = np.full(soundfile.info(path).frames, value)
                soundfile.write(path, samples, 8000, subtype="FLOAT")

        monkeypatch.setattr(train.PeerBrain, "on_stage_start", start_and_break)

    return arrange


@pytest.fixture
def break_batches(train, monkeypatch):
    """Arranges for batches from epoch 2 on to overflow; no file may be so loud."""
    forward = train.PeerBrain.compute_forward

    def arrange(broken, batches=1):
        left = [None] * batches

        def break_and_forward(brain, batch, stage):
            if stage == broken and brain.hparams.epoch_counter.current >= 2 and left:
                left.pop()
                batch.mixture_sig.data[0] = 1e30
            return forward(brain, batch, stage)

        monkeypatch.setattr(train.PeerBrain, "compute_forward", break_and_forward)

    return arrange


@pytest.mark.parametrize("row", ["td_speakerbeam_pl", "spex_plus_pl"])
def test_steps_that_are_not_finite_are_skipped_and_counted(run, break_batches, row):
    break_batches(sb.Stage.TRAIN)
    brain = run(row, averaged_steps=3)
    first, second = read_curves(brain)
    assert (first["skipped_steps"], second["skipped_steps"]) == ("0", "1")
    assert "" not in second.values()
    assert float(second["valid_loss"]) < float(first["valid_loss"])
    assert brain.weights_are_finite()
    assert brain.averages.n_averaged == brain.optimizer_step - 1
    folder = Path(brain.hparams.output_folder)
    assert "skipped_steps: 1 " in (folder / "train_log.txt").read_text()
    log = (folder / "log.txt").read_text()
    assert "is skipped: loss or gradients are not finite" in log
    assert "not finite with one of: " in log


def test_skipped_steps_leave_batch_norms_as_they_were(run, train, monkeypatch):
    """Those of SpEx+ keep statistics of what they hear, also of broken enrollments."""
    break_at = train.PeerBrain.on_fit_batch_start

    def break_enrollment(brain, batch, should_step):
        break_at(brain, batch, should_step)
        if brain.optimizer_step == 5:  # the second of four steps in epoch 2
            batch.enrollment_sig.data[0] = np.inf

    monkeypatch.setattr(train.PeerBrain, "on_fit_batch_start", break_enrollment)
    brain = run("spex_plus", n_epochs=2)
    assert [row["skipped_steps"] for row in read_curves(brain)] == ["0", "1"]
    assert read_curves(brain)[1]["valid_loss"]
    newest = brain.checkpointer.recover_if_possible()
    assert newest.meta["valid_loss"] == float(read_curves(brain)[1]["valid_loss"])
    assert brain.weights_are_finite()


def test_a_training_ends_after_many_steps_that_are_not_finite(run, break_batches):
    break_batches(sb.Stage.TRAIN, batches=4)
    with pytest.raises(DataError, match="more than 2 steps of epoch 2") as error:
        run(nonfinite_patience=2)
    assert "\n" not in str(error.value)


def test_broken_audio_is_named_and_a_mended_training_goes_on(
    run, break_audio, tmp_path, monkeypatch
):
    whole = run(experiment="whole")
    audio = files_of(tmp_path / "data/wav8k")
    break_audio("train-100", np.nan)
    with pytest.raises(DataError, match=r"mix_clean/.*holds NaN"):
        run(experiment="mended", num_workers=1)
    monkeypatch.undo()
    for path, content in audio.items():
        path.write_bytes(content)
    assert read_curves(run(experiment="mended")) == read_curves(whole)


def test_validation_that_is_not_finite_is_never_the_best(run, break_batches):
    """Not even where all that follow are neither."""
    break_batches(sb.Stage.VALID, batches=99)
    brain = run("td_speakerbeam", n_epochs=3)
    first, second, third = read_curves(brain)
    assert second["valid_loss"] == third["valid_loss"] == ""
    assert brain.hparams.epoch_counter.best_limit == 1
    (best,) = brain.checkpointer.find_checkpoints(min_key="valid_loss")
    assert best.meta["valid_loss"] == float(first["valid_loss"])


def test_weights_that_are_not_finite_are_never_the_best(run, train, monkeypatch):
    start = train.PeerBrain.on_stage_start

    def start_and_break(brain, stage, epoch=None):
        start(brain, stage, epoch)
        if (stage, epoch) == (sb.Stage.VALID, 2):
            # Extraction does not need it.
            brain.modules["speaker_classifier"].bias.data[0] = np.nan

    monkeypatch.setattr(train.PeerBrain, "on_stage_start", start_and_break)
    brain = run("spex_plus")
    assert read_curves(brain)[1]["valid_loss"] == ""
    assert brain.weights_are_finite()  # those of the first epoch


OWN_BACKBONE = """
from speechbrain_peer.models import td_speakerbeam

class Separator(td_speakerbeam.Separator):
    pass
"""


def test_a_backbone_of_ones_own_goes_from_training_to_extraction(
    run, tmp_path, monkeypatch
):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/my_backbone.py").write_text(OWN_BACKBONE)
    monkeypatch.syspath_prepend(tmp_path / "own")
    text = (ROOT / "hparams/td_speakerbeam_pl.yaml").read_text(encoding="utf-8")
    name = "speechbrain_peer.models.td_speakerbeam.Separator"
    assert text.count(name) == 1
    row = tmp_path / "own/td_speakerbeam_own.yaml"
    row.write_text(text.replace(name, "my_backbone.Separator"), encoding="utf-8")
    brain = run(str(row), n_epochs=1)
    folder = Path(brain.hparams.output_folder)
    assert (folder / "metrics.md").exists()
    assert (folder / "extracted.wav").exists()

    model = brain.hparams.export_folder
    with pytest.raises(ValueError, match=r"my_backbone\.Separator is not allowed"):
        TargetSpeechExtraction.from_hparams(model)
    mixture = enrollment = str(folder / "extracted.wav")
    output = tmp_path / "target.wav"
    command = ["extract", mixture, "-e", enrollment, "-o", str(output)]
    assert tse([*command, "--model", model]) == 1
    assert not output.exists()
    assert tse([*command, "--model", model, "--trust"]) == 0
    assert output.exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--n_epoch=1"], "did you mean --n_epochs?"),
        (["--exchange=better"], "exchange 'better' needs predictors"),
        (["--loss={mutual_weight: 0.001}"], "mutual_weight needs peers: give --peers"),
        (["--test_only"], "holds no checkpoint: train first"),
    ],
)
def test_the_script_ends_in_one_line(tmp_path, options, complaint):
    """Nothing of other packages is in the way, nor a traceback."""
    command = [sys.executable, ROOT / "recipes/LibriMix/train.py"]
    command += [ROOT / "hparams/td_speakerbeam.yaml", f"--results_folder={tmp_path}"]
    ended = subprocess.run(
        [*command, "--device=cpu", *options], capture_output=True, text=True
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("Error: ")
    assert complaint in line
    assert not list(tmp_path.rglob("hyperparams.yaml"))


def test_training_lowers_the_loss_of_unseen_speakers(run):
    sizes = {"channels": 16, "hidden_channels": 32, "n_epochs": 12, "lr": 0.01}
    brain = run(peers="drawn", **sizes)
    losses = [float(row["valid_loss"]) for row in read_curves(brain)]
    assert min(losses) < losses[0] - 1


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_yaml_is_resolved_and_builds_the_full_size_model(path, tmp_path):
    overrides = {"results_folder": str(tmp_path), "start_from": "a run"}
    with open(path, encoding="utf-8") as stream:
        resolved = resolve_references(stream, overrides).read()
    assert "<" not in resolved
    with open(path, encoding="utf-8") as stream:
        hparams = load_hyperpyyaml(stream, overrides)
    modules = hparams["peer_learning"].stages(hparams["modules"])
    # train.py adds the stages, as they are without predictors, too.
    assert not set(modules) & set(hparams["checkpointer"].recoverables)
    parameters = sum(
        p.numel() for stage in modules.values() for p in stage.parameters()
    )
    assert parameters == PARAMETERS[path.stem]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_yaml_key_is_used(path):
    text = path.read_text(encoding="utf-8")
    scripts = (ROOT / "recipes/LibriMix/train.py").read_text(encoding="utf-8")
    brain_options = {"precision", "max_grad_norm", "ckpt_interval_minutes"}
    brain_options |= {"optimizer_step_limit", "nonfinite_patience", "__set_seed"}
    brain_options |= {"averaged_steps"}
    keys = [
        line.split(":")[0]
        for line in text.splitlines()
        if line[:1].isalpha() or line.startswith("_")
    ]
    unused = [
        key
        for key in keys
        if f"<{key}>" not in text
        and f'"{key}"' not in scripts
        and f"hparams.{key}" not in scripts
        and key not in brain_options
    ]
    assert not unused


def test_two_processes_train_one_model(corpus, tmp_path):
    arguments = (str(tmp_path), corpus._asdict())
    torch.multiprocessing.spawn(train_in_one_of_two_processes, arguments, nprocs=2)
    first, second = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2)
    )
    # Each has seen other items, so that only averaged gradients keep them equal.
    assert torch.equal(first["weights"], second["weights"])
    with open(tmp_path / "td_speakerbeam_pl/1234/curves.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == TINY["n_epochs"]
    # What one of them cannot train on, none does.
    assert [row["skipped_steps"] for row in rows] == ["0", "1"]
    losses = np.concatenate([first["losses"], second["losses"]], axis=1)
    assert np.isnan(losses).sum() == 1
    means = [float(row["train_loss"]) for row in rows]
    np.testing.assert_allclose(means, np.nanmean(losses, axis=1), rtol=1e-6)
    # Each validates its share of the items; the best epoch's weights, all of them.
    assert first["items"] + second["items"] == 2 * 12
    best = min(float(row["valid_loss"]) for row in rows)
    np.testing.assert_allclose(best, first["valid_loss"], rtol=1e-5)


def train_in_one_of_two_processes(rank, folder, corpus):
    """Runs the script as `torchrun --nproc_per_node=2` does."""
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(folder)}
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    row = "td_speakerbeam_pl"
    settings = tiny(row) | corpus | {"results_folder": folder, "ckpt_interval_steps": 1}
    options = [f"--{key}={value}" for key, value in settings.items()]
    options += ["--device=cpu", "--distributed_backend=gloo", "--noprogressbar"]
    options += ["--ckpt_interval_minutes=0", "--enrolling={own_estimates: 0.3}"]
    options += ["--averaged_steps=3"]
    train = load_script()
    losses, items = [], []

    class Brain(train.PeerBrain):
        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            if stage == sb.Stage.VALID:
                items.append(len(batch.id))
            if stage == sb.Stage.TRAIN:
                if rank == 0 and self.optimizer_step == 2:  # the first of epoch 2
                    loss = loss + np.inf  # of finite gradients
                losses.append(loss.item() if loss.isfinite() else np.nan)
            return loss

    train.PeerBrain = Brain
    brain = train.main([str(ROOT / f"hparams/{row}.yaml"), *options])
    found = {"weights": weights(brain), "items": sum(items)}
    found["losses"] = np.reshape(losses, (2, -1))
    if rank == 0:
        found["valid_loss"] = mean_loss_of_dev(brain, Path(folder, "data"))
    torch.save(found, f"{folder}/rank{rank}.pt")


def mean_loss_of_dev(brain, root):
    """The loss of every dev item on its own, and their mean."""
    rows = json.loads((root / "manifests/wav8k_min_first/dev.json").read_text())
    losses = []
    for row in rows.values():
        paths = (row["mixture"], row["enrollment"], row["target"]["path"])
        mixture, enrollment, target = (
            torch.from_numpy(read_audio(path.format(data_root=root)))[None]
            for path in paths
        )
        with torch.no_grad():
            embeddings = embed(brain.evaluated, enrollment)
            estimate = extract(brain.evaluated, mixture, embeddings)
        losses.append(-si_snr(estimate, target).item())
    return np.mean(losses)


def free_port(folder):
    """A port that no one uses, the same in both processes."""
    path = Path(folder, "port")
    with FileLock(f"{path}.lock"):
        if not path.exists():
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                path.write_text(str(probe.getsockname()[1]))
        return path.read_text()
