"""LibriMix metadata, and rendering clean mixtures from it and LibriSpeech.

Kept free of torch and SpeechBrain: every rendering process imports this file.
"""

import csv
import math
import os
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.signal import resample_poly
from tqdm import tqdm

from speechbrain_peer.data.checks import (
    check_file,
    gain_problem,
    name_problem,
    path_problem,
    refuse_rows,
)
from speechbrain_peer.data.layout import SUBSETS
from speechbrain_peer.data.rendered import (
    check_record,
    fingerprint,
    finished_mixtures,
    write_mixture,
    write_record,
)
from speechbrain_peer.utils.audio import read_audio
from speechbrain_peer.utils.files import DataError, remove_unfinished
from speechbrain_peer.utils.processes import available_cpus, map_in_processes

LIBRISPEECH_RATE = 16000


class MetadataRow(NamedTuple):
    """One mixture of a metadata file.

    Arguments
    ---------
    mixture_id : str
        The utterances of its sources, joined by "_".
    paths : list of str
        Its sources, under the LibriSpeech folder.
    gains : list of float
        The factor of each source.
    origin : str
        File and line, for messages.
    """

    mixture_id: str
    paths: list
    gains: list
    origin: str


def find_metadata(metadata_folder, subset):
    """Finds the metadata file of a subset, such as libri2mix_dev-clean.csv."""
    pattern = f"libri*mix_{SUBSETS[subset]}.csv"
    found = sorted(Path(metadata_folder).glob(pattern))
    if len(found) != 1:
        raise DataError(
            f"{metadata_folder}: has {len(found)} files {pattern} for subset {subset}, "
            "not one; give the folder metadata/Libri2Mix (or metadata/Libri3Mix) of "
            "https://github.com/JorisCos/LibriMix"
        )
    return found[0]


def read_metadata(csv_path):
    """Reads a LibriMix metadata file.

    Arguments
    ---------
    csv_path : str or Path
        A table with the columns mixture_ID, source_1_path, source_1_gain ... for two
        or more sources; other columns (noise) are not read.

    Returns
    -------
    rows : list of MetadataRow
        In the order of the file.

    Raises
    ------
    DataError
        If it cannot be read, or rows cannot be used; names the lines.
    """
    cure = "get it from https://github.com/JorisCos/LibriMix"
    check_file(csv_path, cure)
    try:
        with open(csv_path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            n_sources = _count_sources(csv_path, table.fieldnames or [])
            lines = [(table.line_num, cells) for cells in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{csv_path}: cannot be read as LibriMix metadata ({error}); {cure}"
        ) from error
    if not lines:
        raise DataError(f"{csv_path}: has no rows; get the file again")
    _check_lines(csv_path, lines, n_sources)
    return [
        MetadataRow(
            mixture_id=cells["mixture_ID"],
            paths=[cells[f"source_{k}_path"] for k in range(1, n_sources + 1)],
            gains=[float(cells[f"source_{k}_gain"]) for k in range(1, n_sources + 1)],
            origin=f"{csv_path}, line {number}",
        )
        for number, cells in lines
    ]


def check_sources(rows, librispeech_folder):
    """Raises DataError if a source file of the metadata does not exist.

    Arguments
    ---------
    rows : list of MetadataRow
        The metadata.
    librispeech_folder : str or Path
        The folder that holds train-clean-100, dev-clean ...
    """
    absent = [
        (row, path)
        for row in rows
        for path in row.paths
        if not os.path.isfile(os.path.join(librispeech_folder, path))
    ]
    if absent:
        row, path = absent[0]
        raise DataError(
            f"{os.path.join(librispeech_folder, path)}: no such file, but {row.origin} "
            f"(mixture {row.mixture_id}) needs it; {len(absent)} sources of this "
            "metadata file are absent: give as librispeech_folder the folder that "
            f"holds {Path(path).parts[0]}, or unpack that part of LibriSpeech again"
        )


def check_rendered(rows, folder):
    """Raises DataError if a subset's folder was rendered from other metadata.

    The names of its files cannot tell, as gains and source paths are not in them.
    The speech itself is not compared: other recordings under equal paths go unnoticed.

    Arguments
    ---------
    rows : list of MetadataRow
        The mixtures.
    folder : str or Path
        The subset's folder; it may be empty or absent.
    """
    cure = (
        "other metadata (other mixtures, source paths or gains); give another "
        "--prepared_folder (--output of `tse prepare`), or delete this folder to "
        "render it anew"
    )
    check_record(folder, _fingerprint(rows), cure)


def render_subset(
    rows, librispeech_folder, folder, sample_rate=8000, mode="min", n_processes=None
):
    """Renders mix_clean, s1, s2 ... of a subset, sample for sample as LibriMix does.

    Mixtures whose files are all there are not rendered again, so an interrupted run
    goes on where it stopped. A folder of other metadata is an error; see
    `check_rendered`.

    Arguments
    ---------
    rows : list of MetadataRow
        The mixtures; see `check_sources`.
    librispeech_folder : str or Path
        The folder that holds train-clean-100, dev-clean ...
    folder : str or Path
        The subset's folder: <folder>/mix_clean/<mixture_ID>.wav, <folder>/s1/...
    sample_rate : int
        Of the files to write, in Hz.
    mode : str
        "min" cuts the sources to the shortest, "max" pads them to the longest.
    n_processes : int, optional
        How many processes render; as many as CPUs and work allow if None.
        1 renders in this process.
    """
    check_rendered(rows, folder)
    write_record(folder, _fingerprint(rows))
    remove_unfinished(folder)
    done = finished_mixtures(folder, n_sources=len(rows[0].paths))
    todo = [row for row in rows if row.mixture_id not in done]
    if not todo:
        return
    render = partial(
        _render_mixture,
        librispeech_folder=librispeech_folder,
        folder=folder,
        sample_rate=sample_rate,
        mode=mode,
    )
    progress = partial(tqdm, total=len(todo), desc=f"Rendering {folder}", unit="mix")
    # Starting a process takes as long as rendering some 200 mixtures.
    n_processes = n_processes or min(available_cpus(), math.ceil(len(todo) / 200))
    for _ in progress(map_in_processes(render, todo, n_processes, chunk=8)):
        pass


def _fingerprint(rows):
    """That of all in the metadata that is heard."""
    # Source paths start below LibriSpeech's folder, so that this one may move.
    return fingerprint([[row.mixture_id, row.paths, row.gains] for row in rows])


def _render_mixture(row, librispeech_folder, folder, sample_rate, mode):
    """Renders and writes one mixture with its sources."""
    sources = [
        _render_source(os.path.join(librispeech_folder, path), gain, sample_rate)
        for path, gain in zip(row.paths, row.gains, strict=True)
    ]
    write_mixture(folder, row.mixture_id, fit_lengths(sources, mode), sample_rate)


def _render_source(path, gain, sample_rate):
    """Reads, scales and resamples one LibriSpeech file."""
    # float32 times a Python float stays float32, as in the LibriMix script.
    source = read_audio(path, sample_rate=LIBRISPEECH_RATE) * gain
    return resample_poly(source, sample_rate, LIBRISPEECH_RATE)


def fit_lengths(sources, mode):
    """Cuts sources to the shortest ("min") or pads them to the longest ("max")."""
    lengths = [len(source) for source in sources]
    if mode == "min":
        return [source[: min(lengths)] for source in sources]
    return [np.pad(source, (0, max(lengths) - len(source))) for source in sources]


def _count_sources(csv_path, columns):
    """How many sources a metadata file lists, from its header."""
    n_sources = sum(
        re.fullmatch(r"source_\d+_path", name) is not None for name in columns
    )
    needed = ["mixture_ID"]
    for k in range(1, max(n_sources, 2) + 1):
        needed += [f"source_{k}_path", f"source_{k}_gain"]
    absent = [name for name in needed if name not in columns]
    if absent:
        raise DataError(
            f"{csv_path}: has no column {', '.join(absent)}; get the file again from "
            "https://github.com/JorisCos/LibriMix"
        )
    return n_sources


def _check_lines(csv_path, lines, n_sources):
    """Raises DataError with all lines of a metadata file that cannot be used."""
    problems, first = [], {}
    for number, cells in lines:
        problem = _line_problem(cells, n_sources)
        # Two would be written to the same files.
        earlier = first.setdefault(cells["mixture_ID"], number)
        if problem is None and earlier != number:
            problem = f"mixture {cells['mixture_ID']} is listed before (line {earlier})"
        if problem:
            problems.append(f"line {number}: {problem}")
    refuse_rows(csv_path, problems, "correct or remove what is wrong")


def _line_problem(cells, n_sources):
    if None in cells or None in cells.values():
        return "has more or fewer cells than the file has columns"
    problem = name_problem(cells["mixture_ID"], n_sources)
    for k in range(1, n_sources + 1):
        problem = (
            problem
            or path_problem(cells[f"source_{k}_path"])
            or gain_problem(cells[f"source_{k}_gain"])
        )
    return problem
