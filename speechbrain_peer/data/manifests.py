"""Manifests: the JSON files that SpeechBrain's DynamicItemDataset reads."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
from speechbrain.dataio.dataio import load_data_json

from speechbrain_peer.data.checks import check_file, name_problem, refuse_rows
from speechbrain_peer.data.layout import (
    DATA_ROOT,
    MIXTURES,
    NOISE,
    speaker_id,
    utterance_ids,
    wav_names,
)
from speechbrain_peer.utils.audio import AudioError, audio_length, read_audio
from speechbrain_peer.utils.files import DataError, whole_file

# Beside manifests: what DATA_ROOT stands for.
DATA_ROOT_FILE = "data_root.txt"
# What a row and each of its sources must hold.
ROW = {
    "mixture_id": str,
    "duration": (int, float),
    "length": int,
    "mixture": str,
    "target": dict,
    "interferers": list,
}
# Of noisy mixtures.
NOISY = {"noise": str}
# Of dev and test.
ENROLLMENT = {"enrollment": str, "enrollment_length": int}
# Of somebody who is not in the mixture, where there is somebody.
ABSENT_ENROLLMENT = {"absent_enrollment": str, "absent_enrollment_length": int}
# 37 hours at 16 kHz.
MOST_SAMPLES = 2**31 - 1
SOURCE = {"path": str, "speaker": str, "utterance": str, "length": int}


def scan_subset(folder, condition="clean"):
    """Lists the mixtures of a subset's folder that the LibriMix scripts have made.

    Arguments
    ---------
    folder : str or Path
        Such as Libri2Mix/wav8k/min/dev.
    condition : str
        Which mixtures: "clean" or "both", with noise.

    Returns
    -------
    mixture_ids : list of str
        Sorted.
    n_sources : int
        How many folders s1, s2 ... there are.

    Raises
    ------
    DataError
        If there are no mixtures or sources, or some have names that cannot be used.
    """
    folder = Path(folder)
    mixtures = MIXTURES[condition]
    mixture_ids = sorted(wav_names(folder / mixtures))
    if not mixture_ids:
        raise DataError(
            f"{folder / mixtures}: no mixtures there; data_folder has to be the folder "
            f"that holds wav8k (or wav16k), generated with '--types {mixtures}' among "
            "the types and with this rate, mode and subset"
        )
    n_sources = next(k for k in count() if not (folder / f"s{k + 1}").is_dir())
    if n_sources < 2:
        raise DataError(
            f"{folder / f's{n_sources + 1}'}: no such folder; generate the subset again"
        )
    problems = [name_problem(name, n_sources) for name in mixture_ids]
    cure = f"rename the files, or remove s{n_sources} if it holds none of the sources"
    refuse_rows(folder, list(filter(None, problems)), cure)
    return mixture_ids, n_sources


def build_manifest(
    data_root,
    subset_folder,
    mixture_ids,
    n_sources,
    sample_rate,
    targets="first",
    mode="min",
    condition="clean",
):
    """Describes every mixture of a subset, after checking its files.

    Arguments
    ---------
    data_root : str or Path
        The LibriMix folder.
    subset_folder : str
        Where the subset lies in it; see `layout.subset_path`.
    mixture_ids : list of str
        The mixtures.
    n_sources : int
        How many sources each has.
    sample_rate : int
        The rate that every file must have, in Hz.
    targets : str
        "first": the target is s1; "both": every source is the target of a row.
    mode : str
        "max": sources are padded with zeros, and where these begin is looked for.
    condition : str
        "clean" or "both", with noise.

    Returns
    -------
    rows : dict
        {"<mixture_ID>_s<k>": row}, sorted, with paths that start with "{data_root}".
        A row has `mixture_id`, `length` (samples), `duration` (s), `mixture` (path),
        `noise` (path) if it has some, `target` and `interferers`, these as {path,
        speaker, utterance, length}. The `length` of a source is that of its speech;
        the file may go on with zeros.
    """
    mixture_ids = sorted(mixture_ids)

    def measure(mixture_id):
        folder = Path(data_root, subset_folder)
        return _measure(folder, mixture_id, n_sources, sample_rate, mode, condition)

    def path(subfolder, mixture_id):
        return f"{DATA_ROOT}/{subset_folder}/{subfolder}/{mixture_id}.wav"

    # Threads, because the files may lie on a slow network drive.
    with ThreadPoolExecutor(16) as pool:
        measured = pool.map(measure, mixture_ids)
        rows = {}
        for mixture_id, (length, *speech) in zip(mixture_ids, measured, strict=True):
            sounds = {"mixture": path(MIXTURES[condition], mixture_id)}
            if condition == "both":
                sounds["noise"] = path(NOISE, mixture_id)
            sources = _describe_sources(subset_folder, mixture_id, speech)
            for k in range(n_sources if targets == "both" else 1):
                rows[f"{mixture_id}_s{k + 1}"] = {
                    "mixture_id": mixture_id,
                    "duration": length / sample_rate,
                    "length": length,
                    **sounds,
                    "target": sources[k],
                    "interferers": sources[:k] + sources[k + 1 :],
                }
    return rows


def write_manifest(path, rows):
    """Writes a manifest (or listed peers) as JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def read_manifest(path, data_root=None):
    """Reads a manifest.

    Arguments
    ---------
    path : str or Path
        The JSON file.
    data_root : str or Path, optional
        What "{data_root}" in the paths stands for; left as it is if None.

    Returns
    -------
    rows : dict
        {ID: row}, in the order of the file; see `build_manifest`.

    Raises
    ------
    DataError
        If it cannot be read, or rows lack something.

    Example
    -------
    >>> path = getfixture("tmp_path") / "dev.json"
    >>> folder = "{data_root}/wav8k/min/dev"
    >>> sources = [
    ...     {
    ...         "path": f"{folder}/s{k}/a_b.wav",
    ...         "speaker": x,
    ...         "utterance": x,
    ...         "length": 9,
    ...     }
    ...     for k, x in enumerate("ab", start=1)
    ... ]
    >>> row = {"mixture_id": "a_b", "mixture": f"{folder}/mix_clean/a_b.wav"}
    >>> row |= {"length": 8000, "duration": 1.0}
    >>> row |= {"target": sources[0], "interferers": sources[1:]}
    >>> write_manifest(path, {"a_b_s1": row})
    >>> read_manifest(path, data_root="/data/Libri2Mix")["a_b_s1"]["mixture"]
    '/data/Libri2Mix/wav8k/min/dev/mix_clean/a_b.wav'
    """
    return _read(path, data_root, _row_problem)


def write_data_root(folder, data_root):
    """Writes, beside the manifests in a folder, where their data is.

    Arguments
    ---------
    folder : str or Path
        Folder for the manifests. In the data's folder, both can move together.
    data_root : str or Path
        What "{data_root}" in the manifests stands for.
    """
    folder, data_root = Path(folder).resolve(), Path(data_root).resolve()
    if folder.is_relative_to(data_root):
        data_root = os.path.relpath(data_root, folder)
    with whole_file(folder / DATA_ROOT_FILE) as temporary:
        temporary.write_text(f"{data_root}\n", encoding="utf-8")


def find_data_root(manifest):
    """Tells where the data of a manifest is, as written beside it.

    Arguments
    ---------
    manifest : str or Path
        The JSON file.

    Returns
    -------
    str or None
        What "{data_root}" in it stands for; None where that does not occur.

    Raises
    ------
    DataError
        If it is not written there, or the data has moved.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> manifest = folder / "manifests" / "dev.json"
    >>> write_manifest(
    ...     manifest, {"a_b_s1": {"mixture": "{data_root}/mix_clean/a_b.wav"}}
    ... )
    >>> write_data_root(manifest.parent, folder)
    >>> find_data_root(manifest) == str(folder)
    True
    """
    try:
        text = Path(manifest).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{manifest}: is no manifest, as it is not UTF-8") from error
    if DATA_ROOT not in text:
        return None
    data_root = read_data_root(manifest)
    if data_root is None:
        raise DataError(
            f"{manifest}: nothing beside it tells where its data is (no "
            f"{DATA_ROOT_FILE}); give data_root"
        )
    return data_root


def read_data_root(manifest):
    """Reads what is written beside a manifest or table, see `write_data_root`.

    Arguments
    ---------
    manifest : str or Path
        The file; it need not be there.

    Returns
    -------
    str or None
        None where nothing is.

    Raises
    ------
    DataError
        If the data has moved.
    """
    record = Path(manifest).with_name(DATA_ROOT_FILE)
    if not record.is_file():
        return None
    text = record.read_text(encoding="utf-8").removesuffix("\n")
    data_root = Path(os.path.normpath(record.parent.absolute() / text))
    if not data_root.is_dir():
        raise DataError(f"{record}: {data_root} is no folder any more; give data_root")
    return str(data_root)


def read_listed_peers(path, data_root=None):
    """Reads the interferers of listed peers, {ID: list of sources for each peer}.

    Arguments are those of `read_manifest`, and so is the error.
    """
    return _read(path, data_root, _peers_problem)


def _read(path, data_root, problem_of):
    check_file(path, "prepare the data, or correct the path")
    try:
        rows = load_data_json(path, {"data_root": data_root or DATA_ROOT})
    # Those of the braces in a text that stand for something unknown come last.
    except (OSError, ValueError, RecursionError, LookupError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be read as a manifest ({error!r}); prepare the data again"
        ) from error
    if not isinstance(rows, dict) or not rows:
        raise DataError(f"{path}: holds no rows; prepare the data again")
    problems = [
        f"row {item_id!r}: {problem}"
        for item_id, row in rows.items()
        if (problem := problem_of(row))
    ]
    refuse_rows(path, problems, "prepare the data again")
    return rows


def _row_problem(row):
    problem = _lack(row, ROW)
    for fields in (NOISY, ENROLLMENT, ABSENT_ENROLLMENT):
        if not problem and row.keys() & fields.keys():
            problem = _lack(row, fields)
    return problem or _sources_problem([row["target"], *row["interferers"]])


def _peers_problem(peers):
    if not isinstance(peers, list):
        return "is no list of peers"
    return next(filter(None, map(_sources_problem, peers)), None)


def _sources_problem(sources):
    if not isinstance(sources, list):
        return "is no list of sources"
    return next(filter(None, (_lack(source, SOURCE) for source in sources)), None)


def _lack(mapping, fields):
    """What a row or source lacks, or None."""
    if not isinstance(mapping, dict):
        return "is not a mapping"
    for name, kind in fields.items():
        value = mapping.get(name)
        # JSON's true is an int to Python.
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"has no {name}"
        if name.endswith("length") and not 1 <= mapping[name] <= MOST_SAMPLES:
            return f"has a {name} of {mapping[name]}"
    return None


def _describe_sources(subset_folder, mixture_id, lengths):
    """The sources of a mixture, in order."""
    utterances = zip(utterance_ids(mixture_id), lengths, strict=True)
    return [
        {
            "path": f"{DATA_ROOT}/{subset_folder}/s{k}/{mixture_id}.wav",
            "speaker": speaker_id(utterance),
            "utterance": utterance,
            "length": length,
        }
        for k, (utterance, length) in enumerate(utterances, start=1)
    ]


def _measure(folder, mixture_id, n_sources, sample_rate, mode, condition):
    """Samples of a mixture, whose parts must have as many, and of its speech."""
    mixture = folder / MIXTURES[condition] / f"{mixture_id}.wav"
    sources = [folder / f"s{k}" / mixture.name for k in range(1, n_sources + 1)]
    noise = [folder / NOISE / mixture.name] if condition == "both" else []
    length = audio_length(mixture, sample_rate)
    for part in (*sources, *noise):
        part_length = audio_length(part, sample_rate)
        if part_length != length:
            raise AudioError(
                f"{part}: has {part_length} samples, its mixture {mixture} has "
                f"{length}; delete both and make them again"
            )
    if mode == "max":
        return length, *(_speech_length(x, length, sample_rate) for x in sources)
    return length, *[length] * n_sources


def _speech_length(path, length, sample_rate):
    """Samples of a file up to the zeros at its end, which is read first."""
    for end in range(length, 0, -sample_rate):
        start = max(0, end - sample_rate)
        (speech,) = np.nonzero(read_audio(path, start, end - start, sample_rate))
        if len(speech):
            return start + int(speech[-1]) + 1
    raise AudioError(f"{path}: is silent; remove its mixture {path.stem}")
