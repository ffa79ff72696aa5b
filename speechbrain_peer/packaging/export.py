"""From a training run to a folder that `TargetSpeechExtraction` loads."""

import io
from pathlib import Path

import torch
from hyperpyyaml import RefTag, dump_hyperpyyaml
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.tag import Tag
from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.logger import get_logger

from speechbrain_peer.packaging.loading import (
    CARD_FILE,
    HPARAMS_FILE,
    WEIGHTS_FILE,
    level_of,
    load_model,
    stages_of,
)
from speechbrain_peer.packaging.safe_yaml import (
    build_yaml,
    check_yaml,
    read_text,
    read_yaml,
)
from speechbrain_peer.peer_learning.predictors import (
    PREDICTORS,
    can_fold,
    fold_predictors,
)
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.folders import whole_folder
from speechbrain_peer.utils.modules import unwrapped

logger = get_logger(__name__)

# What SpeechBrain's foreign_class needs: its Pretrainer takes weights.ckpt.
FOREIGN_CLASS = """
stages: !new:torch.nn.ModuleDict [!ref <modules>]
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables:
    weights: !ref <stages>
"""

# What extraction runs, in its order; a training run may have further modules.
STAGES = (
    "encoder",
    "speaker_encoder",
    "separator",
    "predictor1",
    "predictor2",
    "mask_head",
    "decoder",
)

# Fitted after the training: the model's own, and a judge's.
SCORERS = ("match_scorer", "judge_scorer")

# SpeechBrain's foreign_class imports its interface from a file of the model.
DOCUMENTS = {
    "custom.py": '"""The interface, for SpeechBrain\'s foreign_class."""\n\n'
    "from speechbrain_peer import TargetSpeechExtraction  # noqa: F401\n"
}

HEADER = f"""\
# A target speech extraction model. These are the stages, whose weights are in
# {WEIGHTS_FILE} beside this file. To use it:
#   from speechbrain_peer import TargetSpeechExtraction
#   model = TargetSpeechExtraction.from_hparams(source="path of this folder")
#   model.extract_file("mixture.wav", "enrollment.wav", output_path="target.wav")

"""


@main_process_only
def export_model(hparams_file, modules, folder, documents=None):
    """Writes what inference needs of a training run: a YAML and the weights.

    Linear predictors are folded into the mask head: peer learning then costs nothing.
    The folder appears whole or not at all, after it has been loaded for a test; an
    older export in its place stays until then.

    Arguments
    ---------
    hparams_file : str or pathlib.Path
        The YAML of the run, with the overrides in it: SpeechBrain writes it into the
        output folder as `hyperparams.yaml`. It has `sample_rate` and `modules`.
    modules : mapping of str to torch.nn.Module
        The trained modules, such as `Brain.modules`, also as DDP or torch.compile
        wrap them.
    folder : str or pathlib.Path
        Where to export to.
    documents : dict, optional
        Further text files by name, such as a model card.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ValueError
        If the YAML lacks an entry, or the folder holds other files.
    """
    folder = Path(folder)
    check_replaceable(folder)
    hparams = stage_hparams(hparams_file, STAGES)
    stages = {name: unwrapped(modules[name]) for name in hparams["modules"]}
    if can_fold(stages):
        stages = fold_predictors(stages)
        _drop_predictors(hparams)
        folded = stages["mask_head"].combine
        hparams["mask_head"]["refined_size"] = folded.out_features
        hparams["mask_head"]["lends"] = True
        if folded.kernel_size > 1:
            hparams["mask_head"]["kernel_size"] = folded.kernel_size
    stages = torch.nn.ModuleDict(stages)

    return _write_folder(folder, hparams, stages.state_dict(), documents or {})


def add_scorers(folder, **scorers):
    """Lets an exported model tell match scores.

    Arguments
    ---------
    folder : str or pathlib.Path
        Of the model; it is replaced as a whole.
    **scorers : torch.nn.Module
        Fitted to it, by the names in `SCORERS`, with the `arguments` that build them;
        None leaves the one that is there.

    Returns
    -------
    pathlib.Path
        The folder.
    """
    folder = Path(folder)
    check_replaceable(folder)
    hparams = stage_hparams(folder / HPARAMS_FILE)
    modules = hparams.pop("modules")
    weights = torch.load(folder / WEIGHTS_FILE, weights_only=True, map_location="cpu")
    for name, scorer in scorers.items():
        if scorer is None:
            continue
        kind = type(scorer)
        node = CommentedMap(scorer.arguments)
        node.yaml_set_ctag(Tag(suffix=f"!new:{kind.__module__}.{kind.__name__}"))
        hparams[name], modules[name] = node, RefTag(f"<{name}>")
        for buffer, value in scorer.state_dict().items():
            weights[f"{name}.{buffer}"] = value
    card = folder / CARD_FILE
    documents = {CARD_FILE: card.read_text(encoding="utf-8")} if card.exists() else {}
    return _write_folder(folder, {**hparams, "modules": modules}, weights, documents)


def _write_folder(folder, hparams, weights, documents):
    """Writes a model whole or not at all, after it has been loaded for a test."""
    if not all(torch.isfinite(weight).all() for weight in weights.values()):
        raise DataError(f"{folder}: not written, as weights are not finite")
    with whole_folder(folder) as temporary:
        _write_hparams(hparams, temporary / HPARAMS_FILE)
        # By way of memory: PyTorch would not tell that a disk is full.
        content = io.BytesIO()
        torch.save(weights, content)
        (temporary / WEIGHTS_FILE).write_bytes(content.getbuffer())
        for name, text in {**DOCUMENTS, **documents}.items():
            (temporary / name).write_text(text, encoding="utf-8")
        # Trusted: these are the classes of the run that is calling.
        load_model(temporary, trust=True)
        _warn_if_unsafe(temporary / HPARAMS_FILE)
    return folder


def stage_hparams(hparams_file, names=None, overrides=None):
    """Reads what builds the stages of a training run, and builds nothing.

    Arguments
    ---------
    hparams_file : str or pathlib.Path
        The YAML of the run, with the overrides in it.
    names : iterable of str, optional
        Which stages, in which order; by default all.
    overrides : dict, optional
        Other values of the run's entries.

    Returns
    -------
    dict
        `sample_rate`, `level`, the stages, and `modules`, which refers to them: nodes
        for `dump_hyperpyyaml`.

    Raises
    ------
    ValueError
        If the YAML lacks an entry.
    """
    run = read_yaml(hparams_file, overrides)
    for key in ("sample_rate", "modules"):
        if key not in run:
            raise DataError(
                f"{hparams_file}: has no entry '{key}', which a model needs"
            )
    if not isinstance(run["modules"], dict):
        raise DataError(f"{hparams_file}: its entry 'modules' holds no stages by name")
    copies = {}
    stages = {
        key: _without_comments(run["modules"][key], copies)
        for key in names or run["modules"]
        if key in run["modules"]
    }
    hparams = {
        "sample_rate": run["sample_rate"],
        "level": level_of(run, hparams_file),
        **stages,
        "modules": {key: RefTag(f"<{key}>") for key in stages},
    }
    # The YAML lists predictors; this run has been trained without.
    if run.get("exchange") == "none":
        _drop_predictors(hparams)
    return hparams


def build_stages(hparams_file, overrides=None, trust=False):
    """Builds the stages of a training run, with random weights, and nothing else of it.

    Arguments
    ---------
    hparams_file : str or pathlib.Path
        The YAML of the run.
    overrides : dict, optional
        Other values of its entries.
    trust : bool
        Builds whatever the stages are. That runs any code they name.

    Returns
    -------
    stages : torch.nn.ModuleDict
    sample_rate : int
        In Hz.

    Raises
    ------
    ValueError
        If a stage could do more than build networks.
    """
    stream = io.StringIO()
    dump_hyperpyyaml(stage_hparams(hparams_file, overrides=overrides), stream)
    hparams = build_yaml(stream.getvalue(), f"{hparams_file}, its stages", trust)
    return stages_of(hparams, hparams_file), hparams["sample_rate"]


def _drop_predictors(hparams):
    """Does to the nodes what `without_predictors` does to the stages."""
    for name in PREDICTORS:
        hparams.pop(name, None)
        hparams["modules"].pop(name, None)
    hparams["mask_head"].pop("refined_size", None)


def _without_comments(node, copies):
    """Copies a YAML node: a comment may speak of what follows in the run's file.

    `copies` holds the objects already copied, by identity: what two stages share,
    they go on sharing.
    """
    if id(node) in copies:
        return copies[id(node)]
    if isinstance(node, dict):
        copy = CommentedMap(
            (key, _without_comments(value, copies)) for key, value in node.items()
        )
    elif isinstance(node, list):
        copy = CommentedSeq(_without_comments(value, copies) for value in node)
    else:
        return node
    if node.tag.value:
        copy.yaml_set_ctag(node.tag)
        copies[id(node)] = copy
    return copy


def _write_hparams(hparams, path):
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(HEADER)
        dump_hyperpyyaml(hparams, stream)
        stream.write(FOREIGN_CLASS)


def _warn_if_unsafe(path):
    try:
        check_yaml(read_text(path), path)
    except ValueError as refusal:
        logger.warning(f"The exported model needs trust=True: {refusal}")


def check_replaceable(folder):
    """Only an export may be replaced: other files in a folder would be lost.

    Arguments
    ---------
    folder : str or pathlib.Path
        To export to; it need not exist.

    Raises
    ------
    DataError
        If it holds other files.
    """
    folder = Path(folder)
    if not folder.exists():
        return
    # Loading the interface from the model's folder leaves its bytecode there.
    own = {HPARAMS_FILE, WEIGHTS_FILE, CARD_FILE, *DOCUMENTS, "__pycache__"}
    others = {path.name for path in folder.iterdir()} - own
    if others:
        raise DataError(
            f"{folder}: holds other files ({', '.join(sorted(others))}), which an "
            "export would remove; give a folder of its own"
        )
