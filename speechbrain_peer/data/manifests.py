"""Manifests: the JSON files that SpeechBrain's DynamicItemDataset reads."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speechbrain.dataio.dataio import load_data_json

from speechbrain_peer.data.layout import speaker_id, utterance_ids
from speechbrain_peer.utils.audio import AudioError, audio_length
from speechbrain_peer.utils.files import DataError, whole_file

# Stands for the data's folder in every path, so that a manifest can move with the data.
DATA_ROOT = "{data_root}"
# Beside manifests: what it stands for.
DATA_ROOT_FILE = "data_root.txt"


def build_manifest(
    data_root, subset_folder, mixture_ids, n_sources, sample_rate, targets="first"
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

    Returns
    -------
    rows : dict
        {"<mixture_ID>_s<k>": row}, sorted, with paths that start with "{data_root}".
        A row has `mixture_id`, `length` (samples), `duration` (s), `mixture` (path),
        `target` and `interferers`, these as {path, speaker, utterance, length}.
    """
    mixture_ids = sorted(mixture_ids)

    def measure(mixture_id):
        return _checked_length(
            Path(data_root, subset_folder), mixture_id, n_sources, sample_rate
        )

    # Threads, because the headers may lie on a slow network drive.
    with ThreadPoolExecutor(16) as pool:
        lengths = pool.map(measure, mixture_ids)
        rows = {}
        for mixture_id, length in zip(mixture_ids, lengths, strict=True):
            mixture = f"{DATA_ROOT}/{subset_folder}/mix_clean/{mixture_id}.wav"
            sources = _describe_sources(subset_folder, mixture_id, n_sources, length)
            for k in range(n_sources if targets == "both" else 1):
                rows[f"{mixture_id}_s{k + 1}"] = {
                    "mixture_id": mixture_id,
                    "duration": length / sample_rate,
                    "length": length,
                    "mixture": mixture,
                    "target": sources[k],
                    "interferers": sources[:k] + sources[k + 1 :],
                }
    return rows


def write_manifest(path, rows):
    """Writes a manifest (or listed peers) as JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def read_manifest(path, data_root=None):
    """Reads a manifest (or listed peers).

    Arguments
    ---------
    path : str or Path
        The JSON file.
    data_root : str or Path, optional
        What "{data_root}" in the paths stands for; left as it is if None.

    Returns
    -------
    rows : dict
        {ID: row}, in the order of the file.

    Example
    -------
    >>> path = getfixture("tmp_path") / "dev.json"
    >>> write_manifest(path, {"a_b_s1": {"mixture": "{data_root}/mix_clean/a_b.wav"}})
    >>> read_manifest(path, data_root="/data/Libri2Mix")
    {'a_b_s1': {'mixture': '/data/Libri2Mix/mix_clean/a_b.wav'}}
    """
    return load_data_json(path, {"data_root": data_root or DATA_ROOT})


def write_data_root(folder, data_root):
    """Writes, beside the manifests in a folder, where their data is.

    Arguments
    ---------
    folder : str or Path
        Of the manifests. Where it lies in the data's folder, both can move together.
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
    manifest = Path(manifest)
    if DATA_ROOT not in manifest.read_text(encoding="utf-8"):
        return None
    record = manifest.with_name(DATA_ROOT_FILE)
    if not record.is_file():
        raise DataError(
            f"{manifest}: nothing beside it tells where its data is (no "
            f"{DATA_ROOT_FILE}); give data_root"
        )
    text = record.read_text(encoding="utf-8").removesuffix("\n")
    data_root = Path(os.path.normpath(manifest.parent.absolute() / text))
    if not data_root.is_dir():
        raise DataError(f"{record}: {data_root} is no folder any more; give data_root")
    return str(data_root)


def _describe_sources(subset_folder, mixture_id, n_sources, length):
    """The sources of a mixture, in order."""
    return [
        {
            "path": f"{DATA_ROOT}/{subset_folder}/s{k}/{mixture_id}.wav",
            "speaker": speaker_id(utterance),
            "utterance": utterance,
            "length": length,
        }
        for k, utterance in enumerate(utterance_ids(mixture_id, n_sources), start=1)
    ]


def _checked_length(folder, mixture_id, n_sources, sample_rate):
    """The length of a mixture in samples, which its sources must share."""
    mixture = folder / "mix_clean" / f"{mixture_id}.wav"
    length = audio_length(mixture, sample_rate)
    for k in range(1, n_sources + 1):
        source = folder / f"s{k}" / mixture.name
        source_length = audio_length(source, sample_rate)
        if source_length != length:
            raise AudioError(
                f"{source}: has {source_length} samples, its mixture {mixture} has "
                f"{length}; delete both and make them again"
            )
    return length
