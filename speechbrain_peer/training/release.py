"""From a finished run to a model for others: the exported stages and a model card."""

import json
from pathlib import Path

import torch
from speechbrain.utils.logger import get_logger

from speechbrain_peer.packaging.export import (
    SCORERS,
    STAGES,
    add_scorers,
    export_model,
)
from speechbrain_peer.packaging.loading import (
    CARD_FILE,
    HPARAMS_FILE,
    WEIGHTS_FILE,
    load_model,
)
from speechbrain_peer.packaging.safe_yaml import read_yaml
from speechbrain_peer.peer_learning.predictors import can_fold, fold_predictors
from speechbrain_peer.training.curves import CURVES_FILE, read_curves
from speechbrain_peer.training.fine_tuning import load_run
from speechbrain_peer.utils.files import DataError

logger = get_logger(__name__)

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

_SETTINGS = "train_subset peers exchange level seed precision batch_size".split()


def model_card(name, license, parameters, settings, metrics, table, hours, notes):
    """Writes the card's text.

    Arguments
    ---------
    name : str
        The model's name.
    license : str
        The licence of the weights, as the Hugging Face Hub names it.
    parameters : int
        Number of the exported model's.
    settings : dict
        Entries of the run's YAML.
    metrics : dict or None
        The run's `metrics.json`; None where it has not been tested.
    table : str
        The run's `metrics.md`, or "".
    hours : float or None
        Hours of training and validation, where they are known.
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


def export_run(run, folder, name, license="apache-2.0", notes="", trust=False):
    """Exports the best checkpoint of a training run, with a card.

    Arguments
    ---------
    run : str or pathlib.Path
        The run's output folder, with `hyperparams.yaml` and `save/`.
    folder : str or pathlib.Path
        The folder to write, as `export_model` does.
    name : str
        The model's name.
    license : str
        The licence of the weights.
    notes : str
        What the card tells of data and its credits, machine, limits.
    trust : bool
        Builds whatever the run's stages are. That runs any code they name.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    DataError
        If the folder is none of a run, has no checkpoint, or its curves are broken.
    """
    run = Path(run)
    run_file = run / HPARAMS_FILE
    if not run_file.exists():
        raise DataError(f"{run_file}: no such file; {run} is not the folder of a run")
    modules, _ = load_run(run, trust)
    metrics, table = None, ""
    if (run / "metrics.json").exists():
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        table = (run / "metrics.md").read_text(encoding="utf-8")
    settings = read_yaml(run_file)
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
    exports = (settings.get("export_folder"), run / "model", folder)
    scorers = _scorers(exports, stages, trust)
    folder = export_model(run_file, modules, folder, {CARD_FILE: card})
    if scorers:
        add_scorers(folder, **scorers)
    return folder


def _scorers(exports, stages, trust):
    """Of the first export with just these stages that has been calibrated, by name.

    Fitted to other weights, a scorer would give probabilities that are none.
    """
    ours = {name: stages[name] for name in STAGES if name in stages}
    ours = torch.nn.ModuleDict(ours).state_dict()
    for export in exports:
        if not export or not Path(export, WEIGHTS_FILE).is_file():
            continue
        try:
            exported, _ = load_model(export, trust=trust)
        except (ValueError, OSError) as error:
            logger.warning(f"No match score is taken over: {error}")
            continue
        scorers = {name: exported.pop(name) for name in SCORERS if name in exported}
        if not scorers:
            continue
        if _same_weights(exported.state_dict(), ours):
            return scorers
        logger.warning(
            f"{export}: has other weights than the best checkpoint, so its match score "
            "is left out; `tse calibrate` makes one"
        )
    return {}


def _same_weights(weights, others):
    # Not bit by bit: predictors are folded in another order on a GPU.
    return weights.keys() == others.keys() and all(
        weights[name].shape == others[name].shape
        and torch.allclose(weights[name].float(), others[name].float(), 1e-4, 1e-6)
        for name in weights
    )


def _hours(run):
    """Of training and validation, as the run's curves tell them."""
    seconds = [float(row.get("seconds") or 0) for row in read_curves(run / CURVES_FILE)]
    return sum(seconds) / 3600 if seconds else None
