"""Recordings of voices that somebody has: which files there are, and who talks in them.

Either a folder `speaker/**/file`, or Kaldi's: one that holds `wav.scp` and `utt2spk`,
and `segments` where recordings hold several utterances.

Kept free of torch and SpeechBrain: every scanning process imports this file.
"""

import math
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from speechbrain_peer.data.checks import refuse_rows
from speechbrain_peer.utils.decoding import DECODED
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.formats import sound_formats

WAV_SCP, UTT2SPK, SEGMENTS = "wav.scp", "utt2spk", "segments"


class Span(NamedTuple):
    """A part of a recording in which one person talks."""

    speaker: str
    start: float
    """In s."""
    end: float
    """In s; infinite: the recording's end."""


class VoiceFile(NamedTuple):
    """A recording."""

    name: str
    """Its path below the folder of voices, or as the user has given it."""
    path: str
    """Where it is."""
    spans: tuple
    """Of `Span`, at least one."""


class Voices(NamedTuple):
    """What a folder of voices holds."""

    files: list
    """Of `VoiceFile`, sorted by name."""
    problems: dict
    """{name: what is wrong}, of files that nobody can be told to talk in."""
    others: Counter
    """How many files have a suffix that is no recording's, by suffix."""


def find_voices(folder):
    """Lists the recordings of a folder; none is opened.

    Arguments
    ---------
    folder : str or Path
        `speaker/**/file`, or Kaldi's.

    Returns
    -------
    Voices

    Raises
    ------
    DataError
        If there are none, or Kaldi's tables cannot be used.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("ann/1.wav", "ann/new/2.flac", "bob/3.mp3", "bob/notes.txt"):
    ...     path = folder / name
    ...     path.parent.mkdir(parents=True, exist_ok=True)
    ...     path.touch()
    >>> voices = find_voices(folder)
    >>> [(file.name, file.spans[0].speaker) for file in voices.files]
    [('ann/1.wav', 'ann'), ('ann/new/2.flac', 'ann'), ('bob/3.mp3', 'bob')]
    >>> dict(voices.others)
    {'.txt': 1}
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the one that holds the voices")
    if (folder / WAV_SCP).is_file():
        return Voices(_read_kaldi(folder), {}, Counter())
    voices = _find_files(folder)
    if not voices.files and not voices.problems:
        raise DataError(
            f"{folder}: holds no recordings; give a folder of one folder for each "
            f"speaker, or Kaldi's with {WAV_SCP} and {UTT2SPK}"
        )
    return voices


def _find_files(folder):
    suffixes = DECODED | sound_formats().keys()
    files, problems, others = [], {}, Counter()
    for name in _walk(folder):
        suffix = os.path.splitext(name)[1].lower()
        speaker, separator, _ = name.partition("/")
        if suffix not in suffixes:
            others[suffix or "no suffix"] += 1
        elif not name.isprintable():
            problems[ascii(name)] = "its name cannot be printed; rename it"
        elif not separator:
            problems[name] = "lies in no speaker's folder; move it into one"
        else:
            spans = (Span(speaker, 0.0, math.inf),)
            files.append(VoiceFile(name, str(folder / name), spans))
    return Voices(sorted(files), problems, others)


def _walk(folder):
    """Names of the files below a folder, also behind links; not of hidden ones."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder)
        yield from (
            (below / name).as_posix() for name in names if not name.startswith(".")
        )


def _read_kaldi(folder):
    """The recordings of Kaldi's tables, one for each line of wav.scp that is used."""
    paths = _read_paths(folder)
    speakers = dict(_read_table(folder / UTT2SPK, 2, "an utterance and its speaker"))
    spans = {}
    if (folder / SEGMENTS).is_file():
        for utterance, recording, start, end in _read_segments(folder, paths):
            spans.setdefault(recording, []).append((utterance, start, end))
    else:
        spans = {recording: [(recording, 0.0, math.inf)] for recording in paths}
    nobody = [
        f"utterance {utterance} has no speaker"
        for parts in spans.values()
        for utterance, _, _ in parts
        if utterance not in speakers
    ]
    refuse_rows(folder / UTT2SPK, nobody, "add what is missing")
    files = [
        VoiceFile(
            paths[recording],
            _locate(folder, paths[recording]),
            tuple(Span(speakers[name], start, end) for name, start, end in parts),
        )
        for recording, parts in spans.items()
    ]
    if not files:
        raise DataError(f"{folder}: its tables list no recordings; fill them")
    return sorted(files)


def _read_paths(folder):
    """{recording: path} of wav.scp; nothing that stands there is ever run."""
    rows = _read_table(folder / WAV_SCP, 2, "a recording and its file")
    problems = []
    for recording, path in rows:
        if path.endswith("|") or path.startswith("|"):
            problems.append(f"recording {recording}: is a command, which is not run")
        elif path == "-":
            problems.append(f"recording {recording}: is standard input")
        elif path.rpartition(":")[0].endswith(".ark"):
            problems.append(f"recording {recording}: is a place in an archive")
    cure = "write each recording to a file of its own and list its path"
    refuse_rows(folder / WAV_SCP, problems, cure)
    return dict(rows)


def _read_segments(folder, paths):
    path = folder / SEGMENTS
    rows, problems = [], []
    for utterance, rest in _read_table(path, 2, "an utterance and three more fields"):
        fields = rest.split()
        try:
            recording, start, end = fields[0], float(fields[1]), float(fields[2])
        except (IndexError, ValueError):
            recording, start, end = "", math.nan, math.nan
        # Kaldi writes -1 for the end of the recording.
        end = math.inf if end == -1 else end
        if not 0 <= start < end:
            problems.append(f"utterance {utterance}: is not recording, start and end")
        elif recording not in paths:
            problems.append(f"utterance {utterance}: no recording {recording}")
        else:
            rows.append((utterance, recording, start, end))
    refuse_rows(path, problems, f"correct it, or complete {WAV_SCP}")
    return rows


def _read_table(path, n_fields, meaning):
    """Rows of a table of Kaldi's; the last field may hold spaces."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); write it again") from error
    rows, problems, known = [], [], set()
    for number, line in enumerate(lines, start=1):
        fields = line.split(maxsplit=n_fields - 1)
        if not fields:
            continue
        if len(fields) < n_fields or not _is_printable(line):
            problems.append(f"line {number}: is not {meaning}")
        elif fields[0] in known:
            problems.append(f"line {number}: {fields[0]} is listed before")
        else:
            rows.append([field.strip() for field in fields])
            known.add(fields[0])
    refuse_rows(path, problems, "correct or remove what is wrong")
    return rows


def _is_printable(line):
    return line.replace("\t", " ").strip().isprintable()


def _locate(folder, path):
    """Relative paths start at the tables, or, as Kaldi has it, where one works."""
    beside = folder / path
    return str(beside if beside.exists() else Path(path))
