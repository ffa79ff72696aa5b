"""The options of a training: their types and ranges, checked before any work.

Options are the plain values at the top of a YAML, which `--name value` overrides, and
the run options of SpeechBrain.
"""

import contextlib
import difflib
import io
import math
from typing import NamedTuple

import ruamel.yaml
import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.utils.distributed import infer_device
from speechbrain.utils.logger import get_logger
from speechbrain.utils.run_opts import HELP_TEXTS, RunOptions

from speechbrain_peer.peer_learning.exchange import EXCHANGES
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.messages import one_line
from speechbrain_peer.utils.runtime import check_device, computes_bf16
from speechbrain_peer.utils.signal import LEVELS

logger = get_logger(__name__)


class Option(NamedTuple):
    """What an option may be.

    Example
    -------
    >>> Option(int, least=1, optional=True).objection(0)
    'must be a whole number of at least 1, or null, not 0'
    """

    kind: type | tuple
    least: float = -math.inf
    above: float = -math.inf
    choices: tuple = ()
    optional: bool = False  # null is allowed
    many: bool = False  # a list of them

    def objection(self, value):
        """What is wrong with a value, or None."""
        if value is None and self.optional:
            return None
        values = [value]
        if self.many:
            values = value if isinstance(value, list) and value else [None]
        if all(map(self._allows, values)):
            return None
        return f"must be {self._description()}, not {_shown(value)}"

    def _allows(self, value):
        kinds = (int, float) if self.kind is float else self.kind
        # In Python True is a whole number, too.
        is_flag = isinstance(value, bool)
        if not isinstance(value, kinds) or is_flag != (self.kind is bool):
            return False
        if self.choices:
            return value in self.choices
        if self.kind in (int, float):
            return math.isfinite(value) and value >= self.least and value > self.above
        return True

    def _description(self):
        names = {int: "a whole number", float: "a number", str: "text"}
        names[str, list] = "a folder, or folders with weights"
        text = names.get(self.kind, "True or False")
        if self.choices:
            text = f"one of {', '.join(self.choices)}"
        if math.isfinite(self.least):
            text += f" of at least {self.least}"
        if math.isfinite(self.above):
            text += f" above {self.above}"
        if self.many:
            text = f"a list, each {text}"
        return f"{text}, or null" if self.optional else text


TEXT, TEXT_OR_NULL = Option(str), Option(str, optional=True)
COUNT, COUNT_OR_NONE = Option(int, least=1), Option(int, least=1, optional=True)
FROM_0, POSITIVE = Option(int, least=0), Option(float, above=0)
FLAG = Option(bool)
PRECISION = Option(str, choices=("fp32", "bf16", "fp16"))

# Those of train.py and of the YAMLs beside it that say how, and on what, to train.
OPTIONS = {
    "seed": FROM_0,
    "data_seed": FROM_0,
    "experiment": TEXT,
    "results_folder": TEXT,
    "output_folder": TEXT,
    "save_folder": TEXT,
    "export_folder": TEXT,
    "prepared_folder": TEXT,
    "prepared": Option((str, list), optional=True),
    "corpus_folder": TEXT,
    "data_folder": TEXT_OR_NULL,
    "librispeech_folder": TEXT_OR_NULL,
    "librimix_metadata": TEXT_OR_NULL,
    "wham_folder": TEXT_OR_NULL,
    "enrollment_maps": TEXT_OR_NULL,
    "corpus": TEXT_OR_NULL,
    "train_subset": TEXT,
    "sample_rate": COUNT,
    "mode": Option(str, choices=("min", "max")),
    "targets": Option(str, choices=("first", "both")),
    "condition": Option(str, choices=("clean", "both")),
    "mixtures": Option(str, choices=("listed", "drawn")),
    "peers": Option(str, choices=("off", "listed", "drawn", "microphones")),
    "n_peers": Option(int, least=2),
    "peer_interferer": Option(str, choices=("any", "same", "quieter", "confusable")),
    "exchange": Option(str, choices=EXCHANGES),
    "level": Option(str, choices=LEVELS),
    "exchange_epochs": Option(int, least=0, optional=True),
    "start_from": TEXT_OR_NULL,
    "n_epochs": COUNT,
    "decay_after": Option(float, least=0),
    "n_steps": COUNT_OR_NONE,
    "optimizer_step_limit": COUNT_OR_NONE,
    "batch_size": COUNT,
    "valid_batch_size": COUNT,
    "chunk_seconds": POSITIVE,
    "lr": POSITIVE,
    # SpeechBrain's "negative: no clipping" turns the gradients around.
    "max_grad_norm": POSITIVE,
    "precision": PRECISION,
    "eval_precision": PRECISION,
    "averaged_steps": COUNT_OR_NONE,
    "nonfinite_patience": FROM_0,
    "ckpt_interval_minutes": Option(float, least=0),
    "ckpt_interval_steps": FROM_0,
    "grad_accumulation_factor": COUNT,
    "debug_batches": COUNT,
    "num_workers": FROM_0,
    "n_scoring_processes": FROM_0,
    "n_examples": FROM_0,
    "use_tensorboard": FLAG,
}

# Sizes of the models beside train.py. Another model's YAML may mean something else by
# such a name, so they are checked where its own value is a size, too.
SIZES = """
    n_filters kernel_size kernel_sizes stride window hop channels hidden_channels
    out_channels n_blocks n_repeats n_layers n_heads ffn_channels chunk_size n_dense
    dense_channels dense_layers deep_channels pool_channels pool_sizes tcn_channels
    embedding_size speaker_channels speaker_hidden_channels speaker_blocks n_speakers
    n_all_filters mask_channels cue_frames
""".split()

RUN_OPTIONS = (*HELP_TEXTS, "jit_module_keys", "compile_module_keys")


class RunSettings(NamedTuple):
    """What the command line and its YAML say."""

    hparams_file: str
    run_opts: RunOptions
    overrides: str  # YAML
    settings: dict  # all values at the top of the YAML, with the overrides


def read_options(arguments):
    """Reads and checks the command line of a training.

    Names that the YAML has override it, also those of SpeechBrain's run options, so
    that the run's `hyperparams.yaml` has them; the others are SpeechBrain's.

    Arguments
    ---------
    arguments : list of str
        The YAML's path, then `--name value` or `--name=value`.

    Returns
    -------
    RunSettings

    Raises
    ------
    DataError
        If there is no such file, option, device or package, or a value is not allowed.
    """
    hparams_file, _, _ = _parse_run_options(arguments)
    own = _resolved(hparams_file, None)
    overrides, others = {}, [hparams_file]
    for name, tokens in _groups(arguments, hparams_file):
        if name in own:
            overrides[name] = _parse(name, tokens, own[name])
        elif name in RUN_OPTIONS:
            others += tokens
        else:
            close = difflib.get_close_matches(name, [*own, *RUN_OPTIONS], n=1)
            hint = f"; did you mean --{close[0]}?" if close else ""
            raise DataError(f"--{name}: {hparams_file} has no such option{hint}")
    _, run_opts, rest = _parse_run_options(others)
    if rest:
        raise DataError(f"{rest}: is no option")
    text = _dumped(overrides)
    settings = _resolved(hparams_file, text)
    settings |= {name: run_opts[name] for name in run_opts.overridden_args}
    _check_values(settings, own, overrides)
    _check_peers(settings)
    _check_machine(settings)
    return RunSettings(hparams_file, run_opts, text, settings)


def load_hparams(options):
    """Builds what the YAML of a training describes.

    Arguments
    ---------
    options : RunSettings

    Returns
    -------
    dict
        Of HyperPyYAML.

    Raises
    ------
    DataError
        If something cannot be built; the message is one line.
    """
    try:
        with open(options.hparams_file, encoding="utf-8") as stream:
            return load_hyperpyyaml(stream, options.overrides)
    # Of any class that the YAML names.
    except Exception as error:
        hint = ""
        if isinstance(error, ImportError):
            hint = "; is the folder of its module in PYTHONPATH?"
        reason = ": ".join(map(str, error.args))
        raise DataError(f"{options.hparams_file}: {one_line(reason)}{hint}") from error


def _parse_run_options(arguments):
    """SpeechBrain's parser; its complaint without the usage, which is a page."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return sb.parse_arguments(arguments)
    except SystemExit as end:
        if end.code:
            reason = complaint.getvalue().partition(": error: ")[2]
            raise DataError(one_line(reason)) from None
        raise


def _groups(arguments, hparams_file):
    """Every option's name and tokens: its own and those up to the next option."""
    arguments = list(arguments)
    arguments.remove(hparams_file)
    groups, name = {}, None
    for token in arguments:
        if token.startswith("--"):
            name = token[2:].partition("=")[0]
            if name in groups:
                raise DataError(f"--{name} is given twice")
            groups[name] = []
        elif name is None:
            raise DataError(f"{token}: is no option")
        groups[name].append(token)
    return groups.items()


def _parse(name, tokens, own):
    """The value of an override; texts are taken as they are."""
    first = tokens[0].partition("=")[2]
    value = " ".join(filter(None, [first, *tokens[1:]]))
    if not value:
        raise DataError(f"--{name}: give a value, as in --{name}={_shown(own)}")
    option = OPTIONS.get(name, Option(type(own)))
    kinds = option.kind if isinstance(option.kind, tuple) else (option.kind,)
    is_text = any(issubclass(kind, str) for kind in kinds)
    is_list = list in kinds and value[0] == "["
    if (
        is_text
        and not is_list
        and value[0] not in "'\"!"
        and value not in ("null", "~")
    ):
        return value
    try:
        return ruamel.yaml.YAML().load(value)
    except ruamel.yaml.error.YAMLError:
        raise DataError(f"--{name} {value}: is not a value as YAML has them") from None


def _dumped(overrides):
    if not overrides:
        return ""
    stream = io.StringIO()
    ruamel.yaml.YAML().dump(overrides, stream)
    return stream.getvalue()


def _resolved(hparams_file, overrides):
    """The top of a YAML with all references resolved; nothing is built."""
    try:
        with open(hparams_file, encoding="utf-8") as stream:
            if overrides is None:
                tree = ruamel.yaml.YAML().load(stream)
            else:
                tree = ruamel.yaml.YAML().load(resolve_references(stream, overrides))
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: no such file") from None
    # Of a file, a name or an expression in it.
    except Exception as error:
        raise DataError(f"{hparams_file}: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise DataError(f"{hparams_file}: holds no options")
    return dict(tree)


def _check_values(settings, own, overrides):
    """Names all values that are not allowed."""
    objections = {}
    for name, value in settings.items():
        option = OPTIONS.get(name)
        if option is None and name in overrides:
            option = _like(name, own[name])
        if option and (objection := option.objection(value)):
            objections[name] = objection
    if objections:
        lines = [f"{name} {objection}" for name, objection in objections.items()]
        raise DataError("; ".join(lines))


def _like(name, own):
    """The option whose value in the YAML is known, or None where that is an object."""
    many = isinstance(own, list)
    example = own[0] if many and own else own
    kind = next((k for k in (bool, int, float, str) if isinstance(example, k)), None)
    if kind is None:
        return None
    is_size = name in SIZES and kind is int
    return Option(kind, least=1 if is_size else -math.inf, many=many)


def _check_peers(settings):
    """Refuses what only some kinds of peers have."""
    peers, kind = settings.get("peers"), settings.get("peer_interferer")
    if kind == "quieter" and peers not in ("listed", "drawn"):
        raise DataError(
            f"peer_interferer: with --peers {peers} no peer has interferers of its "
            "own: give --peers drawn"
        )
    mixtures = settings.get("mixtures")
    if kind == "confusable" and (mixtures, peers) != ("listed", "drawn"):
        raise DataError(
            "peer_interferer: confusable ones are drawn for listed mixtures: give "
            "--mixtures listed --peers drawn"
        )
    if (mixtures, peers) == ("drawn", "listed"):
        raise DataError("drawn mixtures have no listed peers: give --peers drawn")
    if (mixtures, peers) == ("listed", "microphones"):
        raise DataError("listed mixtures have one microphone: give --mixtures drawn")


def _check_machine(settings):
    """Refuses what this machine does not have; warns of what it is slow at."""
    device = settings.get("device") or infer_device()
    check_device(device)
    precisions = {settings.get(name) for name in ("precision", "eval_precision")}
    if "fp16" in precisions and device.startswith("cpu"):
        raise DataError("precision fp16 is for GPUs: give bf16 or fp32 on a CPU")
    if "bf16" in precisions and not computes_bf16(device):
        logger.warning(
            "This CPU has no instructions for bf16: fp32 is several times faster"
        )
    if settings.get("use_tensorboard"):
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            raise DataError(
                "use_tensorboard: there is no TensorBoard (pip install tensorboard)"
            ) from None


def _shown(value):
    """A value as YAML writes it, in one line."""
    if value is None:
        return "null"
    return one_line(value)
