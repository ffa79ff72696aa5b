"""The training script, run whole at a tiny size."""

import csv
import importlib.util
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hyperpyyaml import load_hyperpyyaml, resolve_references

from recipes.LibriMix.comparison.runs import find_runs
from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.utils.audio import read_audio
from speechbrain_peer.utils.files import DataError

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
}
# Of the full-size models, with the classifier of SpEx+'s 251 training speakers.
PARAMETERS = {
    "demo": 560_870,
    "sdpccn": 6_849_072,
    "sepformer_pl": 27_359_890,
    "small_8k": 1_282_636,
    "spex_plus": 11_112_777 + 251 * 257,
    "spex_plus_pl": 12_751_940,
    "td_speakerbeam": 6_704_194,
    "td_speakerbeam_pl": 7_360_706,
    "td_speakerbeam_pl_best": 7_360_706,
}
TINY = {
    "chunk_seconds": 0.5,
    "batch_size": 3,
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
        settings = tiny(row) | folders | overrides
        options = [f"--{key}={value}" for key, value in settings.items()]
        yaml = str(ROOT / f"hparams/{row}.yaml")
        return train.main([yaml, "--device=cpu", "--noprogressbar", *flags, *options])

    return run


def weights(brain):
    """All parameters as one vector."""
    return torch.nn.utils.parameters_to_vector(brain.modules.parameters())


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
        ("td_speakerbeam", {"mode": "max"}),
        ("td_speakerbeam_pl", {"exchange": "none", "peers": "drawn"}),
        ("td_speakerbeam_pl", {"exchange": "itself", "peers": "off"}),
        ("td_speakerbeam_pl", {"exchange": "anyway", "peer_interferer": "same"}),
        (
            "td_speakerbeam_pl",
            {"peers": "drawn", "precision": "bf16", "num_workers": 2},
        ),
        ("spex_plus", {}),
        ("spex_plus_pl", {"peers": "drawn"}),
        ("sepformer_pl", {}),
        ("sdpccn", {}),
        ("sdpccn", {"peers": "drawn", "exchange": "better"}),
        ("small_8k", {}),
        ("small_8k", {"speeds": [90, 110], "peers": "drawn"}),
    ],
)
def test_every_setting_trains(run, row, overrides):
    brain = run(row, n_epochs=1, **overrides)
    metrics = Path(brain.hparams.output_folder, "metrics.json").read_text()
    assert np.isfinite(json.loads(metrics)["means"]["si_sdr"])


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


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_in_mid_epoch_is_exact(run, train, monkeypatch, num_workers):
    settings = {"peers": "drawn", "exchange": "anyway", "num_workers": num_workers}
    whole = run(experiment="whole", **settings)

    def interrupt(brain, batch, outputs, loss, should_step):
        if brain.optimizer_step == 6:  # the second of four steps in epoch 2
            raise Interrupted

    settings |= {"ckpt_interval_minutes": 0, "ckpt_interval_steps": 1}
    settings["experiment"] = "resumed"
    with monkeypatch.context() as patch:
        patch.setattr(train.PeerBrain, "on_fit_batch_end", interrupt)
        with pytest.raises(Interrupted):
            run(**settings)
    resumed = run(**settings)
    assert resumed.optimizer_step == whole.optimizer_step == 8
    assert torch.equal(weights(resumed), weights(whole))
    assert read_curves(resumed) == read_curves(whole)


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


def test_test_only_needs_a_trained_run(run):
    with pytest.raises(SystemExit, match="no checkpoint"):
        run("td_speakerbeam_pl", "--test_only")


def test_less_than_a_batch_is_nothing_to_train_on(run):
    with pytest.raises(DataError, match=r"has 12 training items.*--batch_size 12"):
        run(batch_size=13)


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
    modules = hparams["modules"]
    assert set(modules) <= set(hparams["checkpointer"].recoverables)
    parameters = sum(
        p.numel() for stage in modules.values() for p in stage.parameters()
    )
    assert parameters == PARAMETERS[path.stem]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_yaml_key_is_used(path):
    text = path.read_text(encoding="utf-8")
    scripts = (ROOT / "recipes/LibriMix/train.py").read_text(encoding="utf-8")
    brain_options = {"precision", "max_grad_norm", "ckpt_interval_minutes"}
    brain_options |= {"optimizer_step_limit", "__set_seed"}
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
    first, second = (torch.load(tmp_path / f"weights{rank}.pt") for rank in range(2))
    # Each has seen other items, so that only averaged gradients keep them equal.
    assert torch.equal(first, second)
    with open(tmp_path / "td_speakerbeam_pl/1234/curves.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == TINY["n_epochs"]


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
    options += ["--ckpt_interval_minutes=0"]
    brain = load_script().main([str(ROOT / f"hparams/{row}.yaml"), *options])
    torch.save(weights(brain), f"{folder}/weights{rank}.pt")


def free_port(folder):
    """A port that no one uses, the same in both processes."""
    path = Path(folder, "port")
    with FileLock(f"{path}.lock"):
        if not path.exists():
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                path.write_text(str(probe.getsockname()[1]))
        return path.read_text()
