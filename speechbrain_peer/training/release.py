"""From a finished run to a model for others: the exported stages and a model card."""

import csv
import json
from pathlib import Path

from ruamel.yaml import YAML

from speechbrain_peer.packaging.export import STAGES, add_match_scorer, export_model
from speechbrain_peer.packaging.loading import (
    CARD_FILE,
    HPARAMS_FILE,
    WEIGHTS_FILE,
    load_model,
)
from speechbrain_peer.peer_learning.predictors import can_fold, fold_predictors
from speechbrain_peer.training.curves import CURVES_FILE
from speechbrain_peer.training.fine_tuning import load_run
from speechbrain_peer.utils.files import DataError

# Hugging Face reads the lines between the dashes.
_CARD = """\
---
license: {license}
library_name: speechbrain
tags: [target-speech-extraction, speechbrain, peer-learning]
---

# {name}

Extracts one person's speech from a recording of several talkers, given a few seconds of
that person's voice. {parameters:,} parameters, {sample_rate} Hz.

## Use

```python
from speechbrain_peer import TargetSpeechExtraction

model = TargetSpeechExtraction.from_hparams(source="{name}")  # this folder
model.extract_file("mixture.wav", "enrollment.wav", output_path="target.wav")
```

SpeechBrain's own loader reads it, too:

```python
from speechbrain.inference.interfaces import foreign_class

model = foreign_class(
    source="{name}", pymodule_file="custom.py", classname="TargetSpeechExtraction"
)
```

## Training and figures

{training}

{notes}{figures}

A model is only as good as its training data: on other languages, noise, reverberation
or far microphones expect less.
"""

_SETTINGS = ("train_subset", "peers", "exchange", "seed", "precision", "batch_size")


def model_card(name, license, parameters, settings, metrics, table, hours, notes):
    """Writes the card's text.

    Arguments
    ---------
    name : str
        Of the model.
    license : str
        Of the weights, as the Hugging Face Hub names it.
    parameters : int
        Number of the exported model's.
    settings : dict
        Entries of the run's YAML.
    metrics : dict or None
        The run's `metrics.json`; None where it has not been tested.
    table : str
        The run's `metrics.md`, or "".
    hours : float or None
        Of training and validation, where they are known.
    notes : str
        What else to tell, or "".

    Returns
    -------
    str
    """
    known = {key: settings[key] for key in _SETTINGS if key in settings}
    training = ", ".join(f"`{key}: {json.dumps(known[key])}`" for key in known)
    if metrics is not None:
        training += f", {metrics['run']['optimizer_steps']} steps"
    if hours is not None:
        training += f", in {hours:.1f} hours"
    return _CARD.format(
        name=name,
        license=license,
        parameters=parameters,
        sample_rate=settings["sample_rate"],
        training=f"Trained with {training}.",
        notes=f"{notes}\n\n" if notes else "",
        figures=table.strip() or "Not tested.",
    )


def export_run(run, folder, name, license="apache-2.0", notes=""):
    """Exports the best checkpoint of a training run, with a card.

    Arguments
    ---------
    run : str or pathlib.Path
        The run's output folder, with `hyperparams.yaml` and `save/`.
    folder : str or pathlib.Path
        To write, as `export_model` does.
    name : str
        Of the model.
    license : str
        Of the weights.
    notes : str
        For the card: data and its credits, machine, limits.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ValueError
        If the folder is none of a run, or has no checkpoint.
    """
    run = Path(run)
    run_file = run / HPARAMS_FILE
    if not run_file.exists():
        raise DataError(f"{run_file}: no such file; {run} is not the folder of a run")
    modules, _ = load_run(run)
    metrics, table = None, ""
    if (run / "metrics.json").exists():
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        table = (run / "metrics.md").read_text(encoding="utf-8")
    with open(run_file, encoding="utf-8") as stream:
        settings = YAML().load(stream)
    stages = fold_predictors(modules) if can_fold(modules) else modules
    parameters = sum(
        parameter.numel()
        for name in STAGES
        if name in stages
        for parameter in stages[name].parameters()
    )
    card = model_card(
        name, license, parameters, settings, metrics, table, _hours(run), notes
    )
    # Before the export, which may replace it.
    scorer = _match_scorer(run)
    folder = export_model(run_file, modules, folder, {CARD_FILE: card})
    if scorer is not None:
        add_match_scorer(folder, scorer)
    return folder


def _match_scorer(run):
    """Of the run's own export, which has been calibrated; None without one."""
    if not (run / "model" / WEIGHTS_FILE).exists():
        return None
    exported, _ = load_model(run / "model")
    return exported["match_scorer"] if "match_scorer" in exported else None


def _hours(run):
    """Of training and validation, as the run's curves tell them."""
    path = run / CURVES_FILE
    if not path.exists():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file)) / 3600
