"""HyperPyYAML files of others: read as data, and built only after a check.

A HyperPyYAML file is a program: `!apply:` calls any function, `!applyref:` and
`!include:` do so even while references are resolved, and a quoted text in parentheses
is parsed with Python tags. Here a file's nodes are scanned before anything of it is
resolved or built. Every YAML goes this way but the one that a user gives a command to
run: those of models, and those of runs, of which only the stages are ever built.
"""

import os
import pydoc
import re
from contextlib import contextmanager

import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML, MappingNode, ScalarNode
from ruamel.yaml.events import (
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    NodeEvent,
)

from speechbrain_peer.packaging.yaml_references import (
    MAX_DEPTH,
    MAX_NODES,
    REFERENCE,
    TOO_LARGE,
    Refusal,
    all_nodes,
    expand,
    scalar_node,
)
from speechbrain_peer.utils.files import DataError

# Not all of these packages: some of their constructors load pickled files.
ALLOWED = (
    "speechbrain_peer.inference.match.",
    "speechbrain_peer.models.",
    "speechbrain_peer.nnet.",
    "speechbrain_peer.peer_learning.",
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
MAPPING_TAG = "tag:yaml.org,2002:map"
CLASS_TAG = re.compile(r"!(?:new|name):([A-Za-z_]\w*(?:\.\w+)+)")
SIMPLE_TUPLE = re.compile(r"\([\w\s.,+-]*\)")

MAX_BYTES = 100_000  # a run's file has 8 kB
MAX_SHOWN = 80


def read_text(path):
    """Reads a text file of a model or a run.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.

    Returns
    -------
    str

    Raises
    ------
    DataError
        If it is absent, no regular file, too large, or not UTF-8.
    """
    try:
        # Not opened: a pipe or a device would never end.
        if os.path.exists(path) and not os.path.isfile(path):
            raise DataError(f"{path}: is not a regular file")
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DataError(f"{path}: is larger than {MAX_BYTES // 1000} kB")
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not a text in UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def read_yaml(path, overrides=None):
    """Reads a HyperPyYAML file as data: nothing that it names is built or called.

    References to entries, and arithmetic with them, are resolved. Any other `!ref`
    stays one.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.
    overrides : dict, optional
        Other plain values of its entries.

    Returns
    -------
    ruamel.yaml.comments.CommentedMap
        Its entries; nodes keep their tags.

    Raises
    ------
    DataError
        If it cannot be read, or is no mapping.
    """
    text, yaml = read_text(path), YAML()
    with _named(path):
        root = _compose(yaml, text)
        root.value = [
            (key, scalar_node((overrides or {}).get(key.value), value) or value)
            for key, value in root.value
        ]
        expand(root)
        return yaml.constructor.construct_document(root)


def check_yaml(text, name):
    """Refuses a HyperPyYAML file that could do more than build a neural network.

    It lets through plain values, references to whole entries, and classes of networks
    from the packages in `ALLOWED`.

    Arguments
    ---------
    text : str
        The file's content.
    name : str or pathlib.Path
        Named in errors.

    Raises
    ------
    DataError
        With the line and the reason.

    Example
    -------
    >>> check_yaml("layer: !new:torch.nn.Linear {in_features: 2}", "model.yaml")
    >>> check_yaml("layer: !apply:os.system [ls]", "model.yaml")
    Traceback (most recent call last):
        ...
    speechbrain_peer.utils.files.DataError: model.yaml, line 1: !apply:os.system is ...
    """
    cure = "; if you trust its author: trust=True, or --trust on the command line"
    with _named(name, cure):
        root = _compose(YAML(), text)
        for node in all_nodes(root):
            what = _objection(node)
            if what:
                raise Refusal(node, what)
        expand(root)


def build_yaml(text, name, trust=False):
    """Builds what a HyperPyYAML file describes.

    Arguments
    ---------
    text : str
        The file's content.
    name : str or pathlib.Path
        Named in errors.
    trust : bool
        Builds it without `check_yaml`. That runs any code it names.

    Returns
    -------
    dict
        Its entries.

    Raises
    ------
    DataError
        If it is refused, or cannot be built.
    """
    if not trust:
        check_yaml(text, name)
    try:
        return load_hyperpyyaml(text)
    # Whatever layers raise for arguments that are none of theirs.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{name}: cannot be built ({type(error).__name__}: {reason})"
        ) from error


@contextmanager
def _named(name, cure=""):
    """Makes one line, with the file's name, of what is wrong with a YAML file."""
    try:
        yield
    except Refusal as refusal:
        raise DataError(
            f"{name}, line {refusal.line}: {refusal} is not allowed in a model{cure}"
        ) from None
    # Values that are not what their tag says raise errors of many classes.
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise DataError(f"{name}{place}: is not valid YAML ({problem})") from error


def _compose(yaml, text):
    """The root of a document's nodes, which is a mapping; nothing is built."""
    nodes = depth = 0
    for event in YAML().parse(text[: MAX_BYTES + 1]):
        nodes += isinstance(event, NodeEvent)
        depth += isinstance(event, CollectionStartEvent)
        depth -= isinstance(event, CollectionEndEvent)
        if nodes > MAX_NODES or depth > MAX_DEPTH:
            raise Refusal(event, TOO_LARGE)
        # It would give the tags another meaning.
        if isinstance(event, DocumentStartEvent) and (event.tags or event.version):
            raise Refusal(event, "a directive")
    root = yaml.compose(text)
    # Sets and ordered mappings are such nodes, too, of other tags.
    if not isinstance(root, MappingNode) or str(root.tag) != MAPPING_TAG:
        raise ValueError("not a mapping of entries")
    return root


def _objection(node):
    """What is wrong with one node, or None."""
    text = node.value.strip() if isinstance(node, ScalarNode) else ""
    tag = str(node.tag)
    if tag == "!ref":
        # An attribute, <entry.attribute>, is code; a text put together, <a><b>, could
        # become any of what is refused here.
        return None if REFERENCE.fullmatch(text) else f"!ref {_short(text)}"
    if (text.startswith("(") or tag == "!tuple") and not SIMPLE_TUPLE.fullmatch(text):
        return f"the text {_short(text)} in parentheses"
    if 0 <= text.find("<") < text.rfind(">"):
        return f"the reference {_short(text)} without !ref"
    if tag in PLAIN_TAGS or tag == "!tuple":
        return None
    match = CLASS_TAG.fullmatch(tag)
    return None if match and _is_network_class(match[1]) else _short(tag)


def _short(text):
    """The beginning of a text, without what moves a terminal's cursor."""
    return repr(text[:MAX_SHOWN])[1:-1]


def _is_network_class(name):
    if name == PRETRAINER:
        return True
    if not name.startswith(ALLOWED):
        return False
    try:
        found = pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        # Of a module that lacks an extra, or Ctrl+C, which it catches, too.
        if not isinstance(error.value, Exception):
            raise error.value from None
        return False
    # `torch.nn.functional.torch.hub.load` begins well, too: see what it comes to.
    return (
        isinstance(found, type)
        and issubclass(found, torch.nn.Module)
        and f"{found.__module__}.".startswith(ALLOWED)
    )
