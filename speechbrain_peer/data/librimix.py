"""LibriMix metadata, and rendering mixtures from it, LibriSpeech and WHAM!'s noise.

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
    NOISE_RECORD,
    RECORD,
    check_record,
    fingerprint,
    finished_mixtures,
    write_mixture,
    write_record,
)
from speechbrain_peer.data.wham import read_noise
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
    noise_path : str or None
        Its noise, under the WHAM! folder, if it is to be heard.
    noise_gain : float or None
        The factor of its noise.
    """

    mixture_id: str
    paths: list
    gains: list
    origin: str
    noise_path: str | None = None
    noise_gain: float | None = None


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


def read_metadata(csv_path, condition="clean"):
    """Reads a LibriMix metadata file.

    Arguments
    ---------
    csv_path : str or Path
        A table with the columns mixture_ID, source_1_path, source_1_gain ... for two
        or more sources.
    condition : str
        "both": its columns noise_path and noise_gain are read, too.

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
            n_sources = _count_sources(csv_path, table.fieldnames or [], condition)
            lines = [(table.line_num, cells) for cells in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{csv_path}: cannot be read as LibriMix metadata ({error}); {cure}"
        ) from error
    if not lines:
        raise DataError(f"{csv_path}: has no rows; get the file again")
    _check_lines(csv_path, lines, n_sources, condition)
    return [
        MetadataRow(
            mixture_id=cells["mixture_ID"],
            paths=[cells[f"source_{k}_path"] for k in range(1, n_sources + 1)],
            gains=[float(cells[f"source_{k}_gain"]) for k in range(1, n_sources + 1)],
            origin=f"{csv_path}, line {number}",
            **_noise(cells, condition),
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
    needed = [(row, path) for row in rows for path in row.paths]
    cure = (
        "give as librispeech_folder the folder that holds {part}, or unpack that part "
        "of LibriSpeech again"
    )
    _check_present(needed, librispeech_folder, "sources", cure)


def check_noise(rows, wham_folder):
    """Raises DataError if a noise of the metadata does not exist.

    Arguments
    ---------
    rows : list of MetadataRow
        The metadata, read with `condition: both`.
    wham_folder : str or Path
        The folder that holds tr, cv and tt.
    """
    needed = [(row, row.noise_path) for row in rows]
    cure = (
        "give as wham_folder the folder that holds {part} (wham_noise), or unpack it "
        "again; those whose names end in sp08 or sp12 are made by "
        "scripts/augment_train_noise.py of https://github.com/JorisCos/LibriMix"
    )
    _check_present(needed, wham_folder, "noises", cure)


def check_rendered(rows, folder):
    """Raises DataError if a subset's folder was rendered from other metadata.

    The names of its files cannot tell, as gains and source paths are not in them.
    The sound itself is not compared: other recordings under equal paths go unnoticed.

    Arguments
    ---------
    rows : list of MetadataRow
        The mixtures.
    folder : str or Path
        The subset's folder; it may be empty or absent.
    """
    cure = (
        "other metadata (other mixtures, paths or gains); give another "
        "--prepared_folder (--output of `tse prepare`), or delete this folder to "
        "render it anew"
    )
    for name, digest in _fingerprints(rows).items():
        check_record(folder, digest, cure, name)


def render_subset(
    rows,
    librispeech_folder,
    folder,
    sample_rate=8000,
    mode="min",
    wham_folder=None,
    n_processes=None,
):
    """Renders the mixtures of a subset, sample for sample as LibriMix does.

    These are s1, s2 ... and mix_clean, or noise and mix_both if the rows have noise.
    Mixtures whose files are all there are not rendered again, so an interrupted run
    goes on where it stopped. A folder of other metadata is an error; see
    `check_rendered`.

    Arguments
    ---------
    rows : list of MetadataRow
        The mixtures; see `check_sources` and `check_noise`.
    librispeech_folder : str or Path
        The folder that holds train-clean-100, dev-clean ...
    folder : str or Path
        The subset's folder; see `write_mixture`.
    sample_rate : int
        Of the files to write, in Hz.
    mode : str
        "min" cuts the sources to the shortest, "max" pads them to the longest.
    wham_folder : str or Path, optional
        The folder that holds tr, cv and tt, if the rows have noise.
    n_processes : int, optional
        How many processes render; as many as CPUs and work allow if None.
        1 renders in this process.
    """
    check_rendered(rows, folder)
    for name, digest in _fingerprints(rows).items():
        write_record(folder, digest, name)
    remove_unfinished(folder)
    condition = "both" if rows[0].noise_path else "clean"
    done = finished_mixtures(folder, len(rows[0].paths), condition)
    todo = [row for row in rows if row.mixture_id not in done]
    if not todo:
        return
    render = partial(
        _render_mixture,
        librispeech_folder=librispeech_folder,
        folder=folder,
        sample_rate=sample_rate,
        mode=mode,
        wham_folder=wham_folder,
    )
    progress = partial(tqdm, total=len(todo), desc=f"Rendering {folder}", unit="mix")
    # Starting a process takes as long as rendering some 200 mixtures.
    n_processes = n_processes or min(available_cpus(), math.ceil(len(todo) / 200))
    for _ in progress(map_in_processes(render, todo, n_processes, chunk=8)):
        pass


def _noise(cells, condition):
    """The fields of a row that tell of its noise."""
    if condition == "clean":
        return {}
    return {
        "noise_path": cells["noise_path"],
        "noise_gain": float(cells["noise_gain"]),
    }


def _check_present(needed, folder, what, cure):
    """Raises DataError if a file, needed as (row, path), is absent."""
    absent = [
        (row, path)
        for row, path in needed
        if not os.path.isfile(os.path.join(folder, path))
    ]
    if absent:
        row, path = absent[0]
        raise DataError(
            f"{os.path.join(folder, path)}: no such file, but {row.origin} (mixture "
            f"{row.mixture_id}) needs it; {len(absent)} {what} of this metadata file "
            f"are absent: {cure.format(part=Path(path).parts[0])}"
        )


def _fingerprints(rows):
    """Those of all in the metadata that is heard, by the name of the record."""
    # Paths start below LibriSpeech's and WHAM!'s folders, so that these may move.
    speech = [[row.mixture_id, row.paths, row.gains] for row in rows]
    digests = {RECORD: fingerprint(speech)}
    if rows[0].noise_path:
        noise = [[row.mixture_id, row.noise_path, row.noise_gain] for row in rows]
        digests[NOISE_RECORD] = fingerprint(noise)
    return digests


def _render_mixture(row, librispeech_folder, folder, sample_rate, mode, wham_folder):
    """Renders and writes one mixture with its sources and noise."""
    sounds = [
        read_audio(os.path.join(librispeech_folder, path), sample_rate=LIBRISPEECH_RATE)
        for path in row.paths
    ]
    gains = list(row.gains)
    if row.noise_path:
        path = os.path.join(wham_folder, row.noise_path)
        sounds.append(read_noise(path, max(map(len, sounds)), LIBRISPEECH_RATE))
        gains.append(row.noise_gain)
    # float32 times a Python float stays float32, as in the LibriMix script.
    resampled = [
        resample_poly(sound * gain, sample_rate, LIBRISPEECH_RATE)
        for sound, gain in zip(sounds, gains, strict=True)
    ]
    # The noise is as long as the longest source, so it does not change the others.
    fitted = fit_lengths(resampled, mode)
    noise = fitted.pop() if row.noise_path else None
    write_mixture(folder, row.mixture_id, fitted, sample_rate, noise)


def fit_lengths(sources, mode):
    """Cuts sources to the shortest ("min") or pads them to the longest ("max")."""
    lengths = [len(source) for source in sources]
    if mode == "min":
        return [source[: min(lengths)] for source in sources]
    return [np.pad(source, (0, max(lengths) - len(source))) for source in sources]


def _count_sources(csv_path, columns, condition):
    """How many sources a metadata file lists, from its header."""
    n_sources = sum(
        re.fullmatch(r"source_\d+_path", name) is not None for name in columns
    )
    needed = ["mixture_ID"]
    for k in range(1, max(n_sources, 2) + 1):
        needed += [f"source_{k}_path", f"source_{k}_gain"]
    if condition == "both":
        needed += ["noise_path", "noise_gain"]
    absent = [name for name in needed if name not in columns]
    if absent:
        raise DataError(
            f"{csv_path}: has no column {', '.join(absent)}; get the file again from "
            "https://github.com/JorisCos/LibriMix"
        )
    return n_sources


def _check_lines(csv_path, lines, n_sources, condition):
    """Raises DataError with all lines of a metadata file that cannot be used."""
    problems, first = [], {}
    for number, cells in lines:
        problem = _line_problem(cells, n_sources, condition)
        # Two would be written to the same files.
        earlier = first.setdefault(cells["mixture_ID"], number)
        if problem is None and earlier != number:
            problem = f"mixture {cells['mixture_ID']} is listed before (line {earlier})"
        if problem:
            problems.append(f"line {number}: {problem}")
    refuse_rows(csv_path, problems, "correct or remove what is wrong")


def _line_problem(cells, n_sources, condition):
    if None in cells or None in cells.values():
        return "has more or fewer cells than the file has columns"
    problem = name_problem(cells["mixture_ID"], n_sources)
    for k in range(1, n_sources + 1):
        problem = (
            problem
            or path_problem(cells[f"source_{k}_path"])
            or gain_problem(cells[f"source_{k}_gain"])
        )
    if condition == "both":
        problem = problem or path_problem(cells["noise_path"])
        problem = problem or _noise_problem(cells["noise_gain"])
    return problem


def _noise_problem(gain):
    # As in tables that `write_mixing_metadata` makes.
    if gain in ("0", "0.0"):
        return "the mixture has no noise (noise_gain is 0): give condition: clean"
    return gain_problem(gain)
