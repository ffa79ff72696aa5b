"""Fine-tuning: a training that starts from trained weights, strictly.

Every trained weight must find its place, and every weight of the stages be found. Only
what peer learning adds to a backbone (predictors and C) may be new, and stages that
extraction does not run, such as a classifier of the training's speakers. With new peer
learning the model extracts, at the start, what the trained one extracts.
"""

import copy
import math
from collections import Counter
from pathlib import Path

import torch
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_peer.packaging.export import STAGES, build_stages
from speechbrain_peer.packaging.loading import HPARAMS_FILE, load_model, load_weights
from speechbrain_peer.packaging.public_checkpoints import load_public
from speechbrain_peer.peer_learning.exchange import embed, extract
from speechbrain_peer.peer_learning.predictors import (
    PREDICTORS,
    can_fold,
    without_predictors,
)
from speechbrain_peer.training.averaging import AVERAGES, WeightAverages
from speechbrain_peer.training.checkpoints import (
    SafeCheckpointer,
    differing_weights,
    listed,
    shape_of,
)
from speechbrain_peer.training.look_back import look_back, looking_ahead
from speechbrain_peer.training.raised_rate import raise_rate
from speechbrain_peer.utils.files import DataError

logger = get_logger(__name__)

# How the names of C's weights begin.
COMBINATION = "mask_head.combine."

OF_FILTERS = ("kernel_size", "stride", "in_features", "out_features")
"""What differs where filters are of another rate."""

LISTENED_TO = 16
"""At most so many items tell how loud a model's estimates are."""


def start_from(modules, path, sample_rate, trust=False):
    """Fills the stages of a training with a trained model's weights.

    The log says what has been loaded, what is new, and which settings differ that no
    weight shows, such as a stride.

    Arguments
    ---------
    modules : Mapping
        The stages to fill, on the CPU.
    path : str or pathlib.Path
        An exported model (a folder, or a model of the Hugging Face Hub), the output
        folder of a run, whose best checkpoint is taken, or a public checkpoint of
        TD-SpeakerBeam or SpEx+.
    sample_rate : int
        Of the training, in Hz: the trained model's, or twice that (`raised_rate`).
    trust : bool
        Builds whatever the trained model's YAML says. That runs any code it names.

    Raises
    ------
    DataError
        If there is no such model, or it does not fit; the message names the weights.
    """
    modules = nn.ModuleDict(modules)
    try:
        trained, rate = read_trained(path, modules, trust)
        raised = rate == sample_rate / 2
        if not raised and rate not in (None, sample_rate):
            raise ValueError(f"{path}: is for {rate} Hz, training for {sample_rate} Hz")
        new, looks_back = _fill(modules, trained, path, raised)
    # From reading, too: to a user of the script, a wrong path is no bug to trace.
    except (OSError, ValueError) as error:
        raise DataError(f"start_from: {error}") from error
    loaded = Counter(map(_stage, modules.state_dict().keys() - set(new)))
    logger.info(
        f"{path}: loaded {loaded.total()} weights ("
        f"{', '.join(f'{stage} {loaded[stage]}' for stage in modules if loaded[stage])}"
        f"); new: {', '.join(new) or 'none'}"
    )
    if raised:
        logger.info(f"{path}: is for {rate} Hz; its filters are made twice as long")
    if looks_back:
        logger.info(f"{path}: looks ahead; its taps that do are left out")
    but = (*(OF_FILTERS if raised else ()), *(("causal",) if looks_back else ()))
    differences = _settings_that_differ(trained, modules, but)
    if differences:
        logger.warning(f"{path}: trained with other settings: {listed(differences)}")


@torch.no_grad()
def start_level(modules, items):
    """Gives a model that has no level of its own that of the targets, for a start.

    Estimates of a network trained with SI-SNR may be a hundred times too loud. A loss
    with level then drives all of its weights, until it is silent for good. So the
    decoder is scaled first, unless estimates are less than 6 dB too loud and 20 dB too
    quiet: a network with a level that has learned little is quiet, too.

    Arguments
    ---------
    modules : Mapping
        The stages, on the CPU.
    items : sequence of dict
        Of `data.dataset.evaluation_set`; some of them are listened to.

    Raises
    ------
    DataError
        If estimates are further off, and the decoder has no weights to scale.
    """
    modules = nn.ModuleDict(modules).eval()
    wanted = given = 0.0
    for index in range(0, len(items), -(-len(items) // LISTENED_TO)):
        item = items[index]
        embeddings = embed(modules, item["enrollment_sig"][None])
        (estimate,) = extract(modules, item["mixture_sig"][None], embeddings)
        wanted += float(item["target_sig"].square().sum())
        given += float(estimate.square().sum())
    modules.train()
    if not wanted or not given or 0.25 <= wanted / given <= 100:
        return
    factor = math.sqrt(wanted / given)
    weights = list(modules["decoder"].parameters())
    if not weights:
        raise DataError(
            f"start_from: the level of its estimates is {-20 * math.log10(factor):.0f} "
            "dB off, as it was trained with level: mixture, and its decoder has no "
            "weights to mend that with: give --level mixture, or start from random "
            "weights"
        )
    for weight in weights:
        weight.mul_(factor)
    logger.info(f"The decoder is scaled by {factor:.3g}: estimates now have a level")


def read_trained(path, modules, trust=False):
    """Reads a trained model.

    Arguments
    ---------
    path : str or pathlib.Path
        See `start_from`.
    modules : Mapping
        The stages of the training; what a public checkpoint must be of.
    trust : bool
        See `start_from`.

    Returns
    -------
    modules : torch.nn.ModuleDict
        The stages.
    sample_rate : int or None
        In Hz, where it is known.
    """
    if Path(path).is_file():
        backbone = without_predictors(copy.deepcopy(modules))
        stages, rate = load_public(path, backbone)
        # All that is public does, whatever the training is to make of it.
        return looking_ahead(stages), rate
    if Path(path, "save").is_dir():
        return load_run(path, trust)
    modules, hparams = load_model(path, trust=trust)
    return modules, hparams["sample_rate"]


def load_run(folder, trust=False):
    """Loads all stages of a training run, from its best checkpoint.

    Where the run has averaged its weights, the averages are what is loaded.

    Arguments
    ---------
    folder : str or pathlib.Path
        The run's output folder, with `hyperparams.yaml` and `save/`.
    trust : bool
        Builds whatever the run's stages are. That runs any code they name.

    Returns
    -------
    stages : torch.nn.ModuleDict
    sample_rate : int
        In Hz.

    Raises
    ------
    DataError
        If the run has no checkpoint, a stage is no network, or its weights do not fit.
    """
    save_folder = Path(folder, "save")
    stages, sample_rate = build_stages(Path(folder, HPARAMS_FILE), trust=trust)
    try:
        best = SafeCheckpointer(save_folder).find_checkpoint(min_key="valid_loss")
    # Of damaged files; which error it is depends on their bytes.
    except Exception as error:
        raise DataError(f"{save_folder}: cannot be read as checkpoints") from error
    if best is None:
        raise DataError(f"{save_folder}: holds no checkpoint of a whole epoch")
    if AVERAGES in best.paramfiles:
        averages = WeightAverages(stages, steps=1)
        load_weights(averages, best.paramfiles[AVERAGES])
        return averages.module, sample_rate
    for name, stage in stages.items():
        load_weights(stage, best.paramfiles.get(name, best.path / f"{name}.ckpt"))
    return stages, sample_rate


def _fill(modules, trained, path, raised):
    """Copies all weights, or raises; gives the names of new ones, and `look_back`'s."""
    ours, theirs = modules.state_dict(), trained.state_dict()
    _widen(theirs, trained, modules)
    looks_back = look_back(theirs, trained, modules)
    if raised:
        try:
            raise_rate(theirs, ours, getattr(modules["encoder"], "stride", 1))
        except ValueError as error:
            raise ValueError(f"{path}: is for half the rate, and {error}") from error
    adds_peers = _has_predictors(ours) and not _has_predictors(theirs)

    def is_new(name):
        if _is_peer_learning(name):
            return adds_peers
        differ = shape_of(ours.get(name)) != shape_of(theirs.get(name))
        return differ and _stage(name) not in STAGES

    new = [name for name in ours if is_new(name)]
    ours, theirs = (
        {name: weight for name, weight in weights.items() if not is_new(name)}
        for weights in (ours, theirs)
    )
    mismatches = differing_weights(theirs, ours)
    if mismatches:
        raise ValueError(f"{path}: does not fit the model. {mismatches}")
    if adds_peers:
        folded = getattr(trained["mask_head"], "combine", None)
        sees_more = getattr(folded, "kernel_size", 1) > 1
        if folded is not None and (sees_more or not can_fold(modules)):
            raise ValueError(
                f"{path}: its predictors are folded, which only linear ones that see "
                "one frame can take over; give the output folder of its training run"
            )
        _start_peer_learning(modules, folded)
    modules.load_state_dict(theirs, strict=False)
    return new, looks_back


@torch.no_grad()
def _widen(theirs, trained, modules):
    """A predictor2 that is to see more frames starts as the one that saw one."""
    if not ("predictor2" in trained and "predictor2" in modules):
        return
    linear = copy.deepcopy(modules["predictor2"].linear)
    frames = modules["predictor2"].kernel_size
    narrow, wide = (
        [weight for weight, _ in maps.blocks()]
        for maps in (trained["predictor2"].linear, linear)
    )
    shapes = [(*weight.shape[:3], frames * weight.shape[3]) for weight in narrow]
    if [tuple(weight.shape) for weight in wide] != shapes:
        return  # the sizes differ, which is told
    for ours, given in zip(wide, narrow, strict=True):
        ours.zero_().unflatten(3, (frames, -1))[:, :, :, frames // 2] = given
    for name, weight in linear.named_parameters():
        if name.startswith("weight"):
            theirs[f"predictor2.linear.{name}"] = weight


@torch.no_grad()
def _start_peer_learning(modules, folded):
    """Makes e + C r what the trained model has in place of it: e, or folded A e + b.

    C is zero in place of e, yet it learns: by the loss of the estimate, as the
    predictors do by those of p and r. p starts as channels of e, turned, and r as the
    mean of p and p*; random predictors pull the trained separator further away.
    """
    for name, weight in modules.named_parameters():
        if name.startswith(COMBINATION):
            nn.init.zeros_(weight)
    if not can_fold(modules):
        return
    combine = modules["mask_head"].combine
    linears = (*(modules[name].linear for name in PREDICTORS), combine)
    blocks = [linear.blocks() for linear in linears]
    changes = [None] * len(blocks[0]) if folded is None else folded.blocks()
    kernel_size = modules["predictor2"].kernel_size
    for first, second, c, change in zip(*blocks, changes, strict=True):
        _start_blocks(first, second, c, change, kernel_size)


def _start_blocks(first, second, combine, folded, kernel_size):
    """`_start_peer_learning` for maps of one shape; see `products.Linear.blocks`."""
    (p_map, p_bias), (r_map, r_bias), (c_map, c_bias) = first, second, combine
    for bias in (p_bias, r_bias):
        nn.init.zeros_(bias)
    _, outputs, places, _ = r_map.shape
    own = lent = torch.eye(outputs).unflatten(1, (places, -1)) / 2
    # Of the frames that predictor2 sees, the one in the middle.
    seen = r_map.zero_().unflatten(3, (kernel_size, -1))
    seen[:, :, :, kernel_size // 2] = torch.cat((own, lent), dim=2)
    # A - I = C (own + lent) P1 has been multiplied out: any factors of it do.
    p_map, c_map = p_map.flatten(2), c_map.view(*c_map.shape[:2], -1)
    change = torch.zeros(len(p_map), p_map.shape[2], p_map.shape[2])
    if folded is not None:
        change = folded[0][:, :, 0] - torch.eye(p_map.shape[2])
        c_bias.copy_(folded[1])
    left, scales, right = torch.linalg.svd(change)
    rank = min(p_map.shape[1:])
    p_map[:, :rank] = right[:, :rank]
    c_map[:, :, :rank] = left[:, :, :rank] * scales[:, None, :rank]


def _settings_that_differ(trained, modules, but):
    """Of layers that both have: plain attributes, some of which no weight shows."""
    theirs = dict(trained.named_modules())
    return [
        f"{name}.{key} is {getattr(theirs[name], key, None)} there and {value} here"
        for name, module in modules.named_modules()
        if name in theirs and not _is_peer_learning(f"{name}.")
        for key, value in vars(module).items()
        if not key.startswith("_")
        and key not in ("training", *but)  # the first is a mode, not a setting
        and isinstance(value, (bool, int, float, str, tuple))
        and value != getattr(theirs[name], key, None)
    ]


def _has_predictors(weights):
    return any(_stage(name) in PREDICTORS for name in weights)


def _is_peer_learning(name):
    return _stage(name) in PREDICTORS or name.startswith(COMBINATION)


def _stage(name):
    return name.split(".")[0]
