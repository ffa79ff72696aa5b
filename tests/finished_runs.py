"""What finished runs leave, for the tests of their comparison."""

import json

import tiny_model
from hyperpyyaml import resolve_references

from recipes.LibriMix.comparison.runs import find_runs
from recipes.LibriMix.comparison.systems import group_runs

YAML = f"""{tiny_model.TRAINING_YAML}
experiment: made
peers: listed
peer_interferer: any
n_steps: 100
n_epochs: 200
lr: 0.001
num_workers: 0
loss: !new:speechbrain_peer.peer_learning.losses.PeerLoss
    predictor_weight: 1.0
    mutual_weight: 0.0
"""


def write_run(
    folder,
    si_sdr=10.0,
    corpus="Made noise.",
    items=4,
    mixture=1.0,
    silent=0,
    debug=False,
    **other,
):
    """Writes what a finished run leaves; `other` are overrides of its YAML."""
    folder.mkdir(parents=True)
    resolved = resolve_references(YAML, other).read()
    (folder / "hyperparams.yaml").write_text(resolved, encoding="utf-8")
    means = {"si_sdr": si_sdr, "si_sdri": si_sdr - mixture, "pesq": 2.5, "stoi": 0.8}
    means |= {"mixture_si_sdr": mixture, "mixture_pesq": 1.5, "mixture_stoi": 0.7}
    metrics = {
        "corpus": corpus,
        "items": items,
        "means": means,
        "items_without_value": {"si_sdr": silent},
        "wrong_speaker_percent": 25.0,
        "worse_than_mixture_percent": 50.0,
        "run": {"optimizer_steps": 90, "debug": debug},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


def groups_below(folder):
    """Reads and groups the runs of a folder."""
    return group_runs(find_runs([folder]))
