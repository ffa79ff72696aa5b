"""The models of `hparams/`, as a training makes them."""

from pathlib import Path

from hyperpyyaml import load_hyperpyyaml
from torch.nn import ModuleDict

HPARAMS = Path(__file__).parents[1] / "hparams"


def build_row(row, folder, **overrides):
    """The stages that a row's YAML trains, and all its entries."""
    overrides["results_folder"] = str(folder)
    text = (HPARAMS / f"{row}.yaml").read_text(encoding="utf-8")
    hparams = load_hyperpyyaml(text, overrides)
    stages = hparams["peer_learning"].stages(hparams["modules"])
    return ModuleDict(stages), hparams
