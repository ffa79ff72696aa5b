"""Loading an exported model: no code of its own, every weight in its place.

A HyperPyYAML file is a program: `!apply:` calls any function, and even a quoted text
in parentheses is parsed with Python tags. `check_yaml` therefore reads the file's
nodes without building anything and lets through plain values, references to whole
entries, and classes of neural networks from the packages listed in `ALLOWED`.
"""

import io
import pydoc
import re
from pathlib import Path

import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.data_utils import recursive_update
from speechbrain.utils.fetching import FetchConfig, FetchFrom, fetch, guess_source

# Models that come with the package, each in a folder of its name.
BUNDLED = Path(__file__).parent / "bundled"

HPARAMS_FILE = "hyperparams.yaml"
WEIGHTS_FILE = "weights.ckpt"
SOURCE_FILE = "source.txt"
CARD_FILE = "README.md"

# Not all of speechbrain and torch: some of their constructors load pickled files.
ALLOWED = (
    "speechbrain_peer.",
    "speechbrain.nnet.",
    "speechbrain.processing.features.",
    "torch.nn.",
)
# SpeechBrain's foreign_class wants one. Made, it does nothing yet; we let it rest.
PRETRAINER = "speechbrain.utils.parameter_transfer.Pretrainer"
PLAIN_TAGS = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map")
}
CLASS_TAG = re.compile(r"!(?:new|name):([A-Za-z_]\w*(?:\.\w+)+)")
REFERENCE = re.compile(r"<\w+(\[\w+\])*>")
HUB_MODEL = re.compile(r"[\w.-]+/[\w.-]+")
SIMPLE_TUPLE = re.compile(r"\([\w\s.,+-]*\)")


def load_model(
    source,
    savedir=None,
    trust=False,
    hparams_file=HPARAMS_FILE,
    revision=None,
    overrides=None,
):
    """Loads the stages of an exported model, on the CPU.

    Arguments
    ---------
    source : str or pathlib.Path
        A folder, which is read in place, a model of `bundled_models`, or one of the
        Hugging Face Hub.
    savedir : str or pathlib.Path or None
        Where a model from the Hub is put; by default the Hub's cache.
    trust : bool
        Builds whatever the YAML says. That runs any code it names.
    hparams_file : str
        Name of the YAML in the source.
    revision : str or None
        Of a model from the Hub: a branch, a tag or a commit.
    overrides : dict or str or None
        Values, or YAML, for entries of the YAML in place of its own; they are checked
        as these are.

    Returns
    -------
    modules : torch.nn.ModuleDict
        The stages.
    hparams : dict
        All entries of the YAML.

    Raises
    ------
    FileNotFoundError
        If there is no such model, or it lacks a file.
    ValueError
        If the YAML holds something it should not, the weights do not fit, an override
        has no entry, or `savedir` holds another model.
    """
    hparams_path, weights_path = fetch_model(source, savedir, hparams_file, revision)
    text = hparams_path.read_text(encoding="utf-8")
    if overrides:
        text = _override(text, overrides, hparams_path)
    if not trust:
        check_yaml(text, hparams_path)
    hparams = load_hyperpyyaml(text)
    if "modules" not in hparams:
        raise ValueError(f"{hparams_path}: has no entry 'modules'")
    modules = torch.nn.ModuleDict(hparams["modules"])
    load_weights(modules, weights_path)
    return modules, hparams


def fetch_model(source, savedir=None, hparams_file=HPARAMS_FILE, revision=None):
    """Gets the files of a model, by download if they are not here.

    Arguments
    ---------
    source : str or pathlib.Path
        As for `load_model`.
    savedir : str or pathlib.Path or None
        As for `load_model`.
    hparams_file : str
        As for `load_model`.
    revision : str or None
        As for `load_model`.

    Returns
    -------
    hparams_path, weights_path : pathlib.Path
    """
    source = locate_model(source)
    savedir = _claim_savedir(savedir, source, revision)
    return tuple(
        _fetch(name, source, savedir, revision) for name in (hparams_file, WEIGHTS_FILE)
    )


def load_card(source):
    """Reads a model's card.

    Arguments
    ---------
    source : str or pathlib.Path
        As for `load_model`.

    Returns
    -------
    str or None
        Its text; None where there is none.
    """
    try:
        path = _fetch(CARD_FILE, locate_model(source), savedir=None)
    except FileNotFoundError:
        return None
    return path.read_text(encoding="utf-8")


def load_weights(modules, path):
    """Loads a state dict, strictly.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        The stages to fill.
    path : str or pathlib.Path
        A state dict with names such as `encoder.weight`.

    Raises
    ------
    ValueError
        If the file is no state dict, or lacks a weight, has one too many or one of
        another shape; the message names all of them.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file raises errors of many classes, with messages about its insides.
    except Exception as error:
        raise ValueError(
            f"{path}: cannot be read as weights; export or fetch the model again"
        ) from error
    try:
        modules.load_state_dict(weights, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: does not fit the model. {error}") from error


def check_yaml(text, name):
    """Refuses a HyperPyYAML file that could do more than build a neural network.

    Arguments
    ---------
    text : str
        The file's content.
    name : str or pathlib.Path
        Named in errors.

    Raises
    ------
    ValueError
        With the line and the reason.

    Example
    -------
    >>> check_yaml("layer: !new:torch.nn.Linear {in_features: 2}", "model.yaml")
    >>> check_yaml("layer: !apply:os.system [ls]", "model.yaml")
    Traceback (most recent call last):
        ...
    ValueError: model.yaml, line 1: !apply:os.system is not allowed in a model. ...
    """
    try:
        _check_text(text)
    except ruamel.yaml.error.MarkedYAMLError as error:
        raise ValueError(f"{name}: is not valid YAML. {error}") from error
    except _Refusal as refusal:
        raise ValueError(
            f"{name}, line {refusal.line}: {refusal.what} is not allowed in a model. "
            "If you trust its author, load it with trust=True."
        ) from None


def _override(text, overrides, name):
    """The YAML with other values; nothing in it is resolved or built."""
    yaml, stream = ruamel.yaml.YAML(), io.StringIO()
    try:
        document = yaml.load(text)
        if isinstance(overrides, str):
            overrides = yaml.load(overrides)
        recursive_update(document, overrides, must_match=True)
        yaml.dump(document, stream)
    except (ruamel.yaml.error.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: cannot take the overrides. {error}") from error
    return stream.getvalue()


class _Refusal(Exception):
    def __init__(self, line, what):
        super().__init__(line, what)
        self.line, self.what = line, what


def _check_text(text):
    # %TAG would give the tags below another meaning.
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("%"):
            raise _Refusal(number, "a directive")
    root = ruamel.yaml.YAML(typ="safe", pure=True).compose(text)
    if not isinstance(root, ruamel.yaml.MappingNode):
        raise _Refusal(1, "anything but a mapping")
    pending, seen = [root], set()
    while pending:
        node = pending.pop()
        # An alias is the node it stands for.
        if id(node) in seen:
            continue
        seen.add(id(node))
        what = _objection(node)
        if what:
            raise _Refusal(node.start_mark.line + 1, what)
        if isinstance(node, ruamel.yaml.MappingNode):
            pending.extend(child for pair in node.value for child in pair)
        elif isinstance(node, ruamel.yaml.SequenceNode):
            pending.extend(node.value)


def _objection(node):
    """What is wrong with one node, or None."""
    is_text = isinstance(node, ruamel.yaml.ScalarNode)
    text = node.value.strip() if is_text else ""
    tag = str(node.tag)
    if tag == "!ref":
        # An attribute, <entry.attribute>, is code; a text put together, <a><b>, could
        # become any of what is refused here.
        return None if REFERENCE.fullmatch(text) else f"!ref {text}"
    if (text.startswith("(") or tag == "!tuple") and not SIMPLE_TUPLE.fullmatch(text):
        return f"the text {text!r} in parentheses"
    if re.search(r"<.*>", text, re.DOTALL):
        return f"the reference {text!r} without !ref"
    if tag in PLAIN_TAGS or tag == "!tuple":
        return None
    match = CLASS_TAG.fullmatch(tag)
    return None if match and _is_network_class(match[1]) else tag


def _is_network_class(name):
    if name == PRETRAINER:
        return True
    if not name.startswith(ALLOWED):
        return False
    found = pydoc.locate(name)
    # `torch.nn.functional.torch.hub.load` begins well, too: see what it comes to.
    return (
        isinstance(found, type)
        and issubclass(found, torch.nn.Module)
        and f"{found.__module__}.".startswith(ALLOWED)
    )


def _claim_savedir(savedir, source, revision):
    """Makes sure that a folder for downloads holds this model or none."""
    if savedir is None or guess_source(source)[0] is FetchFrom.LOCAL:
        return None
    savedir = Path(savedir)
    if revision is not None:
        source = f"{source}@{revision}"
    record = savedir / SOURCE_FILE
    if record.exists():
        owner = record.read_text(encoding="utf-8").strip()
    else:
        owner = "an unknown source" if (savedir / WEIGHTS_FILE).exists() else source
    if owner != source:
        raise ValueError(
            f"{savedir}: holds the model of {owner}, not of {source}; "
            "give another savedir"
        )
    savedir.mkdir(parents=True, exist_ok=True)
    record.write_text(f"{source}\n", encoding="utf-8")
    return savedir


def bundled_models():
    """Names of the models that come with the package, sorted."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{HPARAMS_FILE}"))


def locate_model(source):
    """Tells where a model is.

    Arguments
    ---------
    source : str or pathlib.Path
        As for `load_model`.

    Returns
    -------
    str
        A folder, also for the name of a bundled model, or a name on the Hub.

    Raises
    ------
    FileNotFoundError
        If it is neither.
    """
    source = str(source)
    if Path(source).exists():
        return source
    if source in bundled_models():
        return str(BUNDLED / source)
    # Told before the network is asked for it.
    kind, _ = guess_source(source)
    if kind is FetchFrom.HUGGING_FACE and not HUB_MODEL.fullmatch(source):
        names = ", ".join(bundled_models())
        raise FileNotFoundError(
            f"{source}: no such folder; the models of this package: {names or 'none'}"
        )
    return source


def _fetch(filename, source, savedir, revision=None):
    """Path of one file of a model: in the source itself, or downloaded."""
    # The user's token for the Hub, where one is logged in, opens private models.
    config = FetchConfig(token=None, revision=revision)
    try:
        path = Path(fetch(filename, source, savedir, fetch_config=config))
    # Whatever the Hub's client raises, for an unknown name as for a lost network.
    except Exception as error:
        raise FileNotFoundError(
            f"'{source}' is neither a folder here nor a model that can be fetched: "
            f"{error}"
        ) from error
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file; '{source}' is not an exported model"
        )
    return path
