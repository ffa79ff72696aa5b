"""HyperPyYAML files of others: read as data, and built only after a check.

A HyperPyYAML file is a program: `!apply:` calls any function, `!applyref:` and
`!include:` do so even while references are resolved, and a quoted text in parentheses
is parsed with Python tags. Here a file's nodes are scanned before anything of it is
resolved or built. Every YAML goes this way but the one that a user gives a command to
run: those of models, and those of runs, of which only the stages are ever built.
"""

import ast
import operator
import os
import pydoc
import re
from contextlib import contextmanager

import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML, MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.events import (
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    NodeEvent,
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
NUMBER_TAGS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
CLASS_TAG = re.compile(r"!(?:new|name):([A-Za-z_]\w*(?:\.\w+)+)")
REFERENCE = re.compile(r"<(\w+(?:\[\w+\])*)>")
SIMPLE_TUPLE = re.compile(r"\([\w\s.,+-]*\)")

# A run's file has 8 kB and 800 nodes, at a depth of 4.
MAX_BYTES = 100_000
MAX_NODES = 5_000
"""Where every alias and reference counts as what it stands for."""
MAX_DEPTH = 50
MAX_EXPRESSION = 200
"""Characters of arithmetic in a reference."""
MAX_NUMBER = 1e15
MAX_SHOWN = 80

_TOO_LARGE = f"a file of more than {MAX_NODES} nodes or {MAX_DEPTH} levels"
_NOTHING = ScalarNode("tag:yaml.org,2002:null", "")

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


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
            (key, _scalar((overrides or {}).get(key.value), value) or value)
            for key, value in root.value
        ]
        _expand(root)
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
        for node in _nodes(root):
            what = _objection(node)
            if what:
                raise _Refusal(node, what)
        _expand(root)


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


class _Refusal(Exception):
    """Of something, at the place of a node or an event."""

    def __init__(self, place, what):
        super().__init__(what)
        self.line = place.start_mark.line + 1


@contextmanager
def _named(name, cure=""):
    """Makes one line, with the file's name, of what is wrong with a YAML file."""
    try:
        yield
    except _Refusal as refusal:
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
            raise _Refusal(event, _TOO_LARGE)
        # It would give the tags another meaning.
        if isinstance(event, DocumentStartEvent) and (event.tags or event.version):
            raise _Refusal(event, "a directive")
    root = yaml.compose(text)
    # Sets and ordered mappings are such nodes, too, of other tags.
    if not isinstance(root, MappingNode) or str(root.tag) != MAPPING_TAG:
        raise ValueError("not a mapping of entries")
    return root


def _nodes(root):
    """All nodes of a document, each once; an alias is the node it stands for."""
    pending, seen = [root], set()
    while pending:
        node = pending.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            pending.extend(_children(node))


def _children(node):
    if isinstance(node, MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, SequenceNode) else []


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


def _expand(root):
    """Puts what they refer to in the place of references; refuses what grows by it."""
    references = _References(root)
    for node in list(_nodes(root)):
        if isinstance(node, MappingNode):
            node.value = [(key, references.follow(value)) for key, value in node.value]
        elif isinstance(node, SequenceNode):
            node.value = [references.follow(value) for value in node.value]
    if _measure(root, 0, {})[0] > MAX_NODES:
        raise _Refusal(root, _TOO_LARGE)


def _measure(node, depth, known):
    """Nodes and levels below a node; without end in one that contains itself."""
    if id(node) not in known and depth <= MAX_DEPTH:
        below = [_measure(child, depth + 1, known) for child in _children(node)]
        sizes, heights = zip(*below, strict=True) if below else ((), (0,))
        known[id(node)] = 1 + sum(sizes), 1 + max(heights)
    size, height = known.get(id(node), (0, MAX_DEPTH))
    if depth + height > MAX_DEPTH + 1:
        raise _Refusal(node, _TOO_LARGE)
    return size, height


class _References:
    """What the references of a document stand for, as far as it is plain."""

    def __init__(self, root):
        self.root, self.found = root, {}

    def follow(self, node, hops=0):
        """The node, or what a reference stands for; itself where that is not plain."""
        if str(node.tag) != "!ref" or not isinstance(node, ScalarNode):
            return node
        if id(node) not in self.found and hops < MAX_DEPTH:
            self.found[id(node)] = node  # should it come back to itself
            text = node.value.strip()
            whole = REFERENCE.fullmatch(text)
            if whole:
                found = self._entry(whole[1], hops + 1)
            else:
                found = self._number(node, hops + 1)
            self.found[id(node)] = node if found is None else found
        return self.found.get(id(node), node)

    def _entry(self, path, hops):
        node = self.root
        for name in re.findall(r"\w+", path):
            pairs = node.value if isinstance(node, MappingNode) else ()
            values = (value for key, value in pairs if key.value == name)
            node = self.follow(next(values, _NOTHING), hops)
        return None if node is _NOTHING else node

    def _number(self, node, hops):
        def number(match):
            entry = self._entry(match[1], hops)
            return entry.value if entry and str(entry.tag) in NUMBER_TAGS else "none"

        value = _calculate(REFERENCE.sub(number, node.value))
        return _scalar(value, node)


def _scalar(value, place):
    """The node of a number or text, in the place of another; None of None."""
    if value is None:
        return None
    tag = f"tag:yaml.org,2002:{type(value).__name__}"
    return ScalarNode(tag, str(value), place.start_mark, place.end_mark)


def _calculate(text):
    """The number that an arithmetic expression comes to, or None.

    Example
    -------
    >>> _calculate("2 * 256 - 1"), _calculate("results/7"), _calculate("9**9**9")
    (511, None, None)
    """

    if len(text) > MAX_EXPRESSION:
        return None

    def value(node):
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return node.value
        raise ValueError(node)

    try:
        number = value(ast.parse(text.strip(), mode="eval").body)
    except (ArithmeticError, KeyError, ValueError, SyntaxError, RecursionError):
        return None
    return number if abs(number) < MAX_NUMBER else None
