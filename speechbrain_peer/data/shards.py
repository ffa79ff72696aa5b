"""Results of long work, kept as they come, so that interrupted work goes on.

Kept free of torch and SpeechBrain.
"""

import json
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from speechbrain_peer.utils.files import remove_unfinished, whole_file

SUFFIX = ".jsonl"
SECONDS = 10.0
"""What a kill loses at most."""


def read_shards(folder):
    """Reads the results that are kept in a folder.

    Arguments
    ---------
    folder : str or Path
        Where `keep_results` has written; it need not be there.

    Returns
    -------
    dict
        {key: result}; of what cannot be read, nothing.
    """
    results = {}
    for path in sorted(Path(folder).glob(f"*{SUFFIX}")):
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
            results |= dict(json.loads(line) for line in lines if line)
        except (OSError, ValueError, TypeError):
            continue  # that work is done again
    return results


@contextmanager
def keep_results(folder):
    """Gives a function that keeps a result by its key.

    What it is given reaches the disk every ten seconds, at the end, and where an
    error ends the work.

    Arguments
    ---------
    folder : str or Path
        Where nobody else writes meanwhile.

    Yields
    ------
    callable
        Of key and result, which has to survive JSON.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "shards"
    >>> with keep_results(folder) as keep:
    ...     keep("ann/1.wav", [16000, 3.5])
    >>> read_shards(folder)
    {'ann/1.wav': [16000, 3.5]}
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    lines, written = [], time.monotonic()

    def write():
        nonlocal written
        paths = (folder / f"{number:06}{SUFFIX}" for number in count(1))
        if lines:
            with whole_file(next(path for path in paths if not path.exists())) as file:
                file.write_text("\n".join(lines), encoding="utf-8")
        lines.clear()
        written = time.monotonic()

    def keep(key, result):
        lines.append(json.dumps([key, result]))
        if time.monotonic() - written > SECONDS:
            write()

    try:
        yield keep
    finally:
        write()
