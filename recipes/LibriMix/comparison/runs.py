"""Finished runs: found in folders and read, each on its own."""

import inspect
import json
import math
from dataclasses import dataclass
from pathlib import Path

from speechbrain_peer.data.enrolling import Enrolling
from speechbrain_peer.data.mixing import Mixing
from speechbrain_peer.packaging.loading import HPARAMS_FILE
from speechbrain_peer.packaging.safe_yaml import read_yaml
from speechbrain_peer.peer_learning.exchange import EXCHANGES, PeerLearning
from speechbrain_peer.peer_learning.losses import PeerLoss
from speechbrain_peer.peer_learning.predictors import Predictor
from speechbrain_peer.utils.files import DataError

METRICS_FILE = "metrics.json"
# By the module of the separator's class. The order is that of the tables' rows.
BACKBONES = {
    "speechbrain_peer.models.dpccn": "sDPCCN",
    "speechbrain_peer.models.td_speakerbeam": "TD-SpeakerBeam",
    "speechbrain_peer.models.td_speakerbeam_map": "TD-SpeakerBeam with a map",
    "speechbrain_peer.models.spex_plus": "SpEx+",
    "speechbrain_peer.models.sepformer": "SepFormer",
    "speechbrain_peer.models.bsrnn": "BSRNN",
}
_WITH_OPTIONS = {
    "loss": PeerLoss,
    "peer_learning": PeerLearning,
    "mixing": Mixing,
    "enrolling": Enrolling,
    "predictor2": Predictor,
}
_NO_VALUE = object()
_MEANS = ("si_sdr", "si_sdri", "pesq", "stoi")
_MIXTURE_MEANS = ("mixture_si_sdr", "mixture_pesq", "mixture_stoi")
_NUMBER = (int, float, type(None))
_PERCENTS = ("wrong_speaker_percent", "worse_than_mixture_percent")


@dataclass(frozen=True)
class Run:
    """What a finished run has left."""

    folder: Path
    backbone: str
    settings: dict
    """The YAML's plain values and lists of them by key, and the options of loss,
    exchange, drawn mixtures, enrollments and predictor 2, as `loss.<key>` and so on."""
    corpus: str
    items: int
    scores: dict
    """Means over the test items by name; None where there is no value."""
    mixture: dict
    """The same of the mixtures."""
    silent: int
    """Outputs without SI-SDR, which are left out of the means."""
    tested_step: int | None
    """Optimizer steps of the checkpoint tested."""
    debug: bool
    """Whether only a few batches have been trained and tested."""

    @property
    def seed(self):
        """Of the training."""
        return self.settings["seed"]

    @property
    def peers(self):
        """`off`, `listed` or `drawn`."""
        return self.settings["peers"]

    @property
    def exchange(self):
        """What the branches lend each other."""
        return self.settings["exchange"]

    @property
    def hparams_file(self):
        """Path of the run's YAML."""
        return self.folder / HPARAMS_FILE


def find_runs(paths):
    """Reads all finished runs in and below folders, but those with `--debug`.

    Arguments
    ---------
    paths : iterable of str or pathlib.Path
        Folders of runs, or folders above them.

    Returns
    -------
    list of Run
        Each once, in the order of the paths.

    Raises
    ------
    DataError
        If there is none below a path, or one cannot be read.
    """
    runs = {}
    for path in map(Path, paths):
        folders = sorted(file.parent for file in path.rglob(METRICS_FILE))
        found = {folder.resolve(): read_run(folder) for folder in folders}
        found = {folder: run for folder, run in found.items() if not run.debug}
        if not found:
            raise DataError(
                f"{path}: no finished run, which has a {METRICS_FILE}; runs with "
                "--debug do not count"
            )
        runs |= found
    return list(runs.values())


def read_run(folder):
    """Reads one run; nothing that its YAML names is built or called.

    Arguments
    ---------
    folder : pathlib.Path

    Returns
    -------
    Run

    Raises
    ------
    DataError
        With the file that cannot be read, or the entry that it lacks.
    """
    metrics = _read_metrics(folder / METRICS_FILE)
    hparams = _read_hparams(folder / HPARAMS_FILE)
    separator = _class_of(hparams["modules"]["separator"])
    settings = {"separator": separator, **_plain(hparams)}
    for key, function in _WITH_OPTIONS.items():
        # A run from before there was an option has been made with its default.
        options = _defaults(function) | _plain(hparams.get(key))
        settings |= {f"{key}.{name}": value for name, value in options.items()}
    means = metrics["means"]
    percents = {name.removesuffix("_percent"): metrics[name] for name in _PERCENTS}
    return Run(
        folder=folder,
        backbone=_backbone(separator),
        settings=settings,
        corpus=metrics["corpus"],
        items=metrics["items"],
        scores={name: means[name] for name in _MEANS} | percents,
        mixture={name.partition("_")[2]: means[name] for name in _MIXTURE_MEANS},
        silent=metrics["items_without_value"]["si_sdr"],
        tested_step=metrics["run"].get("optimizer_steps"),
        debug=metrics["run"].get("debug", False),
    )


def _read_metrics(path):
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    kinds = {"corpus": str, "items": int, "means": dict, "run": dict}
    kinds |= {"items_without_value": dict} | dict.fromkeys(_PERCENTS, _NUMBER)
    _check_keys(metrics, kinds, path)
    _check_keys(metrics["items_without_value"], {"si_sdr": int}, path)
    means = dict.fromkeys((*_MEANS, *_MIXTURE_MEANS), _NUMBER)
    _check_keys(metrics["means"], means, path)
    run = {"optimizer_steps": None, "debug": False} | metrics["run"]
    _check_keys(run, {"optimizer_steps": (int, type(None)), "debug": bool}, path)
    return metrics


def _read_hparams(path):
    """The YAML's nodes."""
    hparams = read_yaml(path)
    kinds = {"seed": int, "peers": str, "exchange": str, "modules": dict}
    _check_keys(hparams, kinds, path)
    _check_keys(hparams["modules"], {"separator": object}, path)
    if hparams["exchange"] not in EXCHANGES:
        raise DataError(f"{path}: exchange is {hparams['exchange']!r}")
    if _class_of(hparams["modules"]["separator"]) is None:
        raise DataError(f"{path}: its separator is no class")
    return hparams


def _class_of(node):
    """Path of the class that a YAML's node makes an object of, or None."""
    tag = node.tag.value if hasattr(node, "tag") else None
    return tag.partition(":")[2] if tag else None


def _check_keys(mapping, kinds, path):
    """Raises DataError unless all keys are there, with values of their kinds."""
    if not isinstance(mapping, dict):
        raise DataError(f"{path}: is not what a finished run leaves")
    missing = ", ".join(key for key in kinds if key not in mapping)
    if missing:
        raise DataError(f"{path}: has no {missing}")
    for key, kind in kinds.items():
        value = mapping[key]
        is_finite = not isinstance(value, float) or math.isfinite(value)
        if not (isinstance(value, kind) and is_finite):
            raise DataError(f"{path}: {key} is {value!r}")


def _plain(node):
    """A node's entries that are plain values, or lists; only a mapping has some."""
    found = {}
    for key, value in node.items() if isinstance(node, dict) else ():
        # A key with a tag is no text.
        if isinstance(key, str) and (plain := _plain_value(value)) is not _NO_VALUE:
            found[key] = plain
    return found


def _plain_value(value):
    """A plain value as it is, a list of them as a tuple, or `_NO_VALUE`."""
    # With a tag, a list is the arguments of a call.
    if isinstance(value, (list, tuple)) and _class_of(value) is None:
        values = tuple(map(_plain_value, value))
        return _NO_VALUE if _NO_VALUE in values else values
    # Whole numbers are equal to those with a point.
    plain = value is None or isinstance(value, (str, int, float))
    return value if plain else _NO_VALUE


def _defaults(function):
    """The options of a function that have plain default values."""
    parameters = inspect.signature(function).parameters.values()
    return _plain({parameter.name: parameter.default for parameter in parameters})


def _backbone(separator):
    """Name of the backbone, by the path of its separator's class."""
    for module, name in BACKBONES.items():
        if separator.startswith(f"{module}."):
            return name
    return separator.rpartition(".")[2]
