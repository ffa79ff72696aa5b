"""Which recordings `tse extract` is given, and the files that it writes for each."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.messages import one_line

PIPE = "-"
"""Stands for standard input and output."""

MOST_NAMED = 10
"""Files of which a message gives the names."""


class Job(NamedTuple):
    """What is to be done with one recording, or several of one moment."""

    mixture: object
    """The recording, the first of several: a path, or None for standard input, or the
    `Recording` that this has been copied to."""
    output: Path | None
    """The file to write; None for standard output."""
    residual: Path | None
    """The file for everybody else; None if it is not wanted."""
    others: tuple = ()
    """Recordings that lend to the first."""


def plan(inputs, enrollments, output=None, residual=None, voice=None, together=False):
    """Finds the recordings, and chooses the files to write for each.

    Arguments
    ---------
    inputs : list of str
        Files, folders, which are searched with all folders in them, or `PIPE` alone.
    enrollments : list of (str or pathlib.Path)
        Files to keep.
    output : str, optional
        A file, a folder or `PIPE`, as `--help` tells.
    residual : str, optional
        A file or a folder.
    voice : pathlib.Path, optional
        One more file to write.
    together : bool
        Whether the recordings are of one moment and give one output.

    Returns
    -------
    list of Job

    Raises
    ------
    DataError
        If a folder holds no audio, or a file that would be written has no format's
        suffix, is an input, lies in a folder of recordings, or would be written twice.
    """
    folders = [Path(text).resolve() for text in inputs if os.path.isdir(text)]
    several = len(inputs) > 1 or bool(folders)
    if several and PIPE in (*inputs, *(() if together else (output, residual))):
        raise DataError(f"{PIPE}: a pipe is for one recording alone; give files")
    if residual == PIPE:
        raise DataError(f"--residual {PIPE}: give a file, or a folder")
    if together and folders:
        raise DataError(
            f"{folders[0]}: is a folder; --together takes the files of one moment"
        )
    others = tuple(map(Path, inputs[1:])) if together else ()
    if together:
        inputs, several = inputs[:1], False
    jobs = [
        Job(
            mixture,
            default if output is None else _place(output, name, several),
            None if residual is None else _place(residual, name, several),
            others,
        )
        for mixture, name, default in _find(inputs)
    ]
    _check_places(jobs, folders, enrollments, voice)
    return jobs


def _find(inputs):
    """Yields each recording with its name in a folder to fill, and its default output.

    Of standard input, the recording and the default output are None.
    """
    for text in inputs:
        path = Path(text)
        if text == PIPE:
            yield None, Path("target.wav"), None
        elif os.path.isdir(text):
            folder = path.resolve().name
            for name in _audio_files(path):
                place = _with_written_suffix(name)
                yield (
                    path / name,
                    place if len(inputs) == 1 else folder / place,
                    f"{folder}_target" / place,
                )
        else:
            default = Path(f"{path.stem}_target.wav")
            yield path, _with_written_suffix(Path(path.name)), default


def _audio_files(folder):
    """The recordings in a folder, relative to it; tells which files are none."""
    from speechbrain_peer.utils.formats import is_audio

    names = sorted(
        Path(parent, name).relative_to(folder)
        for parent, _, names in os.walk(folder)
        for name in names
    )
    others = [name for name in names if not is_audio(name)]
    if len(others) == len(names):
        raise DataError(f"{folder}: holds no audio files")
    if others:
        print(
            one_line(f"tse: skipped as not audio: {_listed(others)}"), file=sys.stderr
        )
    return [name for name in names if is_audio(name)]


def _with_written_suffix(name):
    """The name itself, or with .wav after it where its format is only read."""
    from speechbrain_peer.inference.writing import output_suffixes

    written = name.suffix.lower() in output_suffixes()
    return name if written else name.with_name(f"{name.name}.wav")


def _place(given, name, several):
    """The file that -o or --residual stands for; None for a pipe."""
    if given == PIPE:
        return None
    fill = several or given.endswith(os.sep) or os.path.isdir(given)
    return Path(given, name) if fill else Path(given)


def _check_places(jobs, folders, enrollments, voice):
    """Refuses, before any work, files that could not be or must not be written."""
    from speechbrain_peer.inference.writing import check_output

    mixtures = [path for job in jobs for path in (job.mixture, *job.others) if path]
    read = {_identity(path) for path in (*mixtures, *enrollments)} - {None}
    written = set()
    outputs = [path for job in jobs for path in (job.output, job.residual) if path]
    for path in outputs:
        check_output(path, [])
    for path in [*outputs, *([] if voice is None else [voice])]:
        place = path.resolve()
        if any(place.is_relative_to(folder) for folder in folders):
            raise DataError(
                f"{path}: lies in the folder of recordings; choose another with -o"
            )
        if _identity(path) in read:
            raise DataError(f"{path}: is an input; give the output another name")
        if place in written:
            raise DataError(
                f"{path}: would be written twice; give recordings of one name one "
                "after the other"
            )
        written.add(place)


def _identity(path):
    """What one file has in common under all its names; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _listed(names):
    """The first names of a list, and how many more there are."""
    text = ", ".join(map(str, names[:MOST_NAMED]))
    more = len(names) - MOST_NAMED
    return f"{text} and {more} more" if more > 0 else text
