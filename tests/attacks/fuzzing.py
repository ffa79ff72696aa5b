"""Hypothesis spoils files; what reads them works, or says in words what is wrong."""

import json
import os
import resource
import signal
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECONDS, BYTES = 20, 1 << 30
"""What reading one small file may take, beyond what the process has already."""

EXAMPLES = pytest.mark.parametrize(
    "examples", [50, pytest.param(500, marks=pytest.mark.slow)]
)
"""Gives a test how many files to try, for `fuzz`."""


def fuzz(examples, attack, strategy, known=()):
    """Calls `attack` with drawn values, in short runs always with the same ones.

    Before them come known ones, with which something has been found.
    """
    for content in known:
        attack(content)
    test = given(strategy)(attack)
    short = examples <= 50
    settings(
        max_examples=examples,
        derandomize=short,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )(test)()


def reads(path, read, *also):
    """Reads a spoiled file, which may end in an error that names it.

    Arguments
    ---------
    path : pathlib.Path
        The file.
    read : callable
        Without arguments.
    *also : str
        What the error may name in its place.

    Returns
    -------
    bool
        Whether it was read.
    """
    try:
        with bounded():
            read()
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        assert any(str(name) in text for name in (path, *also)), repr(error)
        # A list of bad rows has a line for each.
        assert "\n" not in text.replace("\n  ", ""), text
        return False
    return True


@contextmanager
def bounded(seconds=SECONDS, memory=BYTES):
    """Ends what hangs, and what grows with a MemoryError."""

    late = []

    def stop(*_):
        late.append(True)
        raise TimeoutError

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        # Here, as what reads may take the TimeoutError for a broken file.
        assert not late, f"takes more than {seconds} s"


@st.composite
def spoiled(draw, content, most=4):
    """Bytes of a good file after some changes: other, fewer, more or repeated ones."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 8))
        kind = draw(st.sampled_from(["replace", "insert", "remove", "cut", "repeat"]))
        new = draw(st.binary(min_size=length, max_size=length))
        if kind == "replace":
            content[place : place + length] = new
        elif kind == "insert":
            content[place:place] = new
        elif kind == "remove":
            del content[place : place + length]
        elif kind == "cut":
            del content[place:]
        else:
            content[place:place] = content[max(0, place - 40) : place]
    return bytes(content)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**20, -1, 1e308, float("nan"), float("inf"), 0.5]),
    st.text(max_size=8),
    st.sampled_from(["{", "}", "{0}", "{data_root}", "../x", "/etc/passwd", "", "\0"]),
    st.just([]),
    st.just({}),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=3),
)
"""For a place in a tree of JSON."""


@st.composite
def spoiled_tree(draw, tree, most=3):
    """JSON in bytes, with other values or none in some places of a good tree."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, most))):
        parent = tree
        while True:
            keys = list(parent) if isinstance(parent, dict) else range(len(parent))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            inner = isinstance(parent[key], (dict, list)) and parent[key]
            if inner and draw(st.integers(0, 4)):
                parent = parent[key]
                continue
            if draw(st.booleans()):
                parent[key] = draw(VALUES)
            else:
                del parent[key]
            break
    return json.dumps(tree).encode()


def spoiled_json(content):
    """Either of both ways to spoil a JSON file."""
    return spoiled(content) | spoiled_tree(json.loads(content))


@st.composite
def spoiled_table(draw, text, separator=","):
    """A text table, in bytes, with other cells, rows or columns."""
    rows = [line.split(separator) for line in text.splitlines()]
    cells = st.text(max_size=12) | st.sampled_from(
        ["", "nan", "-1", "1e999", "0", "../x", "/x", "{}", '"', "a\0", "\ufeff", "\r"]
    )
    for _ in range(draw(st.integers(1, 4))):
        row = draw(st.integers(0, len(rows) - 1))
        column = draw(st.integers(0, len(rows[row]) - 1)) if rows[row] else 0
        kind = draw(st.sampled_from(["cell", "cell", "less", "more", "row", "again"]))
        if kind == "cell" and rows[row]:
            rows[row][column] = draw(cells)
        elif kind == "less":
            del rows[row][column:]
        elif kind == "more":
            rows[row].append(draw(cells))
        elif kind == "row":
            rows[row] = draw(st.lists(cells, max_size=4))
        else:
            rows.insert(row, rows[row])
    return "\n".join(separator.join(row) for row in rows).encode("utf-8", "ignore")
