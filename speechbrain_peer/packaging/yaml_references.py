"""References in HyperPyYAML files, resolved without running anything.

They are looked up and calculated among a document's nodes; what grows beyond measure by
them is refused.
"""

import ast
import operator
import re

from ruamel.yaml import MappingNode, ScalarNode, SequenceNode

NUMBER_TAGS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
REFERENCE = re.compile(r"<(\w+(?:\[\w+\])*)>")

# A run's file has 800 nodes, at a depth of 4.
MAX_NODES = 5_000
"""Where every alias and reference counts as what it stands for."""
MAX_DEPTH = 50
MAX_EXPRESSION = 200
"""Characters of arithmetic in a reference."""
MAX_NUMBER = 1e15

TOO_LARGE = f"a file of more than {MAX_NODES} nodes or {MAX_DEPTH} levels"
_NOTHING = ScalarNode("tag:yaml.org,2002:null", "")

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class Refusal(Exception):
    """Of what a file holds.

    Arguments
    ---------
    place : ruamel.yaml.Node or ruamel.yaml.events.Event
        Tells the line.
    what : str
        What is not allowed.
    """

    def __init__(self, place, what):
        super().__init__(what)
        self.line = place.start_mark.line + 1


def all_nodes(root):
    """All nodes of a document, each once; an alias is the node it stands for.

    Arguments
    ---------
    root : ruamel.yaml.Node
        The document.

    Yields
    ------
    ruamel.yaml.Node
    """
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


def expand(root):
    """Puts what they refer to in the place of references.

    Arguments
    ---------
    root : ruamel.yaml.MappingNode
        The document, which is changed.

    Raises
    ------
    Refusal
        If it grows beyond measure.
    """
    references = _References(root)
    for node in list(all_nodes(root)):
        if isinstance(node, MappingNode):
            node.value = [(key, references.follow(value)) for key, value in node.value]
        elif isinstance(node, SequenceNode):
            node.value = [references.follow(value) for value in node.value]
    if _measure(root, 0, {})[0] > MAX_NODES:
        raise Refusal(root, TOO_LARGE)


def _measure(node, depth, known):
    """Nodes and levels below a node; without end in one that contains itself."""
    if id(node) not in known and depth <= MAX_DEPTH:
        below = [_measure(child, depth + 1, known) for child in _children(node)]
        sizes, heights = zip(*below, strict=True) if below else ((), (0,))
        known[id(node)] = 1 + sum(sizes), 1 + max(heights)
    size, height = known.get(id(node), (0, MAX_DEPTH))
    if depth + height > MAX_DEPTH + 1:
        raise Refusal(node, TOO_LARGE)
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
        return scalar_node(value, node)


def scalar_node(value, place):
    """The node of a number or text, in the place of another.

    Arguments
    ---------
    value : int, float, str, bool or None
        What it is to hold.
    place : ruamel.yaml.Node
        The other.

    Returns
    -------
    ruamel.yaml.ScalarNode or None
        None of None.
    """
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
