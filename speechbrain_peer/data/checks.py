"""What rows of metadata, manifests and enrollment maps may hold.

Kept free of torch and SpeechBrain: every rendering process imports this file.
"""

import math
import os
from pathlib import PurePosixPath, PureWindowsPath

from speechbrain_peer.data.layout import speaker_id, utterance_ids
from speechbrain_peer.utils.files import DataError

MOST_LISTED = 10
# Names of files are made of a mixture's name, and may have 255 bytes.
LONGEST_NAME = 200
# Separators of folders lead elsewhere, braces are what `str.format` looks for.
REFUSED_IN_NAMES = "/\\{}"
# Beyond 80 dB up or down, 16 bits hold nothing or nothing else.
SMALLEST_GAIN, LARGEST_GAIN = 1e-4, 1e4


def check_file(path, cure):
    """Raises DataError unless there is a file: a pipe would be waited for.

    Arguments
    ---------
    path : str or Path
        To be read.
    cure : str
        What to do where it is none.
    """
    if not os.path.isfile(path):
        raise DataError(f"{path}: cannot be read, as there is no such file; {cure}")


def refuse_rows(path, problems, cure, what="rows"):
    """Raises DataError if rows are bad, and lists them.

    Arguments
    ---------
    path : str or Path
        What holds the rows.
    problems : list of str
        One for each bad row: where it is and what is wrong with it.
    cure : str
        What to do about them.
    what : str
        What they are.

    Example
    -------
    >>> refuse_rows("table.csv", [], "correct it")
    >>> refuse_rows("table.csv", ["line 3: has no name"], "correct it")
    Traceback (most recent call last):
    speechbrain_peer.utils.files.DataError: table.csv, line 3: has no name; correct it
    """
    if not problems:
        return
    if len(problems) == 1:
        raise DataError(f"{path}, {problems[0]}; {cure}")
    lines = [f"{path}: {len(problems)} {what} cannot be used; {cure}:"]
    lines += problems[:MOST_LISTED]
    if len(problems) > MOST_LISTED:
        lines.append(f"and {len(problems) - MOST_LISTED} more")
    raise DataError("\n  ".join(lines))


def name_problem(mixture_id, n_sources):
    """Tells what is wrong with a mixture's name, of which names of files are made.

    Arguments
    ---------
    mixture_id : str
        The names of its sources' utterances, joined by "_".
    n_sources : int
        How many sources the mixture has.

    Returns
    -------
    str or None
        None where nothing is wrong.

    Example
    -------
    >>> name_problem("1272-128104-0000_2035-147961-0014", 2)
    >>> name_problem("1272-128104-0000_../2035", 2)
    "mixture '1272-128104-0000_../2035' has '/' in its name"
    """
    reason = _name_reason(mixture_id, n_sources)
    return reason and f"mixture {mixture_id!r} {reason}"


def path_problem(path):
    """Tells what is wrong with a path that has to stay below a folder.

    Example
    -------
    >>> path_problem("dev-clean/3536/8226/3536-8226-0026.flac")
    >>> path_problem("../3536-8226-0026.flac")
    "path '../3536-8226-0026.flac' leads out of its folder"
    """
    windows = PureWindowsPath(path)
    if not path.strip():
        return "a path is empty"
    if PurePosixPath(path).is_absolute() or windows.anchor or ".." in windows.parts:
        return f"path {path!r} leads out of its folder"
    if not path.isprintable():
        return f"path {path!r} has characters that cannot be printed"
    return None


def gain_problem(gain):
    """Tells what is wrong with the gain of a source, given as text or as a number.

    Example
    -------
    >>> gain_problem("0.79")
    >>> gain_problem("-0.79")
    "a gain is '-0.79', not a number from 0.0001 to 10000"
    """
    try:
        number = float(gain)
    except ValueError:
        number = math.nan
    if SMALLEST_GAIN <= number <= LARGEST_GAIN:
        return None
    return (
        f"a gain is {gain!r}, not a number from {SMALLEST_GAIN:g} to {LARGEST_GAIN:g}"
    )


def _name_reason(mixture_id, n_sources):
    utterances = utterance_ids(mixture_id)
    for character in mixture_id:
        if character in REFUSED_IN_NAMES or not character.isprintable():
            return f"has {character!r} in its name"
    if mixture_id.startswith("."):
        return "has a name that begins with a dot, as those of hidden files do"
    if len(mixture_id.encode()) > LONGEST_NAME:
        return f"has a name of more than {LONGEST_NAME} bytes"
    if len(utterances) != n_sources:
        return (
            f"has {n_sources} sources, but its name does not consist of {n_sources} "
            "utterances joined by '_'"
        )
    if not all(map(speaker_id, utterances)):
        return "has an utterance in its name that names no speaker"
    return None
