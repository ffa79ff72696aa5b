"""Data preparation: from LibriMix, or LibriSpeech and metadata, to manifests."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from speechbrain.utils.logger import get_logger

from speechbrain_peer.data.corpora import describe_data, describe_speech
from speechbrain_peer.data.enrollments import (
    add_absent_enrollments,
    add_enrollments,
    draw_enrollment_map,
    find_enrollment_map,
    read_enrollment_map,
    write_enrollment_map,
)
from speechbrain_peer.data.layout import CHOICES, MIXTURES, subset_path
from speechbrain_peer.data.librimix import (
    check_noise,
    check_rendered,
    check_sources,
    find_metadata,
    read_metadata,
    render_subset,
)
from speechbrain_peer.data.librispeech import measure_utterances
from speechbrain_peer.data.manifests import (
    build_manifest,
    scan_subset,
    write_data_root,
    write_manifest,
)
from speechbrain_peer.data.peers import SourcePool, check_pool, draw_listed_peers
from speechbrain_peer.data.speech_table import Utterance, write_speech_table
from speechbrain_peer.utils.files import DataError

logger = get_logger(__name__)


class Prepared(NamedTuple):
    """Where the prepared data is.

    Arguments
    ---------
    data_root : str
        What "{data_root}" in the manifests stands for.
    manifests : dict
        {subset: path}.
    peers : str or None
        The listed peers of the training subsets, with `peers: listed`.
    corpus : str or None
        One sentence on the test set and the training subset, for tables.
    """

    data_root: str
    manifests: dict
    peers: str | None
    corpus: str | None


def prepare_librimix(
    output_folder,
    data_folder=None,
    librispeech_folder=None,
    librimix_metadata=None,
    subsets=("train-100", "dev", "test"),
    sample_rate=8000,
    mode="min",
    targets="first",
    condition="clean",
    wham_folder=None,
    peers="off",
    n_peers=2,
    peer_interferer="any",
    mixtures="listed",
    enrollment_maps=None,
    chunk_seconds=3.0,
    seed=1234,
    n_processes=None,
):
    """Prepares LibriMix for training and testing target speech extraction.

    Either from `data_folder`, as the LibriMix scripts generate it, or from
    `librispeech_folder` and `librimix_metadata`, rendering the mixtures into
    <output_folder>/wav8k/min/<subset>/{mix_clean,s1,s2}, noisy ones into {mix_both,
    noise,s1,s2}. Manifests, enrollment maps and listed peers go to
    <output_folder>/manifests/wav8k_min_first (the rate, mode and targets in use; of
    noisy mixtures wav8k_min_first_mix_both). They are written anew by every call, audio
    only once, so an interrupted preparation goes on where it stopped. Metadata that has
    changed since needs another output_folder.

    Arguments
    ---------
    output_folder : str
        Folder for all that is written.
    data_folder : str, optional
        A generated LibriMix: the folder that holds wav8k or wav16k.
    librispeech_folder : str, optional
        The folder that holds train-clean-100, dev-clean ...
    librimix_metadata : str, optional
        The folder metadata/Libri2Mix (or Libri3Mix) of the LibriMix repository.
    subsets : list of str
        Any of train-100, train-360, dev and test. Dev and test get fixed
        enrollments, of the target and of somebody who is not in the mixture.
    sample_rate : int
        8000 or 16000 Hz.
    mode : str
        "min": mixtures as long as their shortest source; "max": as their longest, and
        training segments are cut where the target talks.
    targets : str
        "first": the first speaker of each mixture is the target; "both": each is.
    condition : str
        "clean": mixtures of speech; "both": of speech and WHAM!'s noise.
    wham_folder : str, optional
        WHAM!'s noise, to render noisy mixtures: the folder that holds tr, cv and tt.
    peers : str
        "off", "listed" (peers of the training subsets are drawn here, once), "drawn" or
        "microphones" (while training; here the data is only checked for it).
    n_peers : int
        How many mixtures a training item has, if it has peers.
    peer_interferer : str
        "any" (another speaker), "same" (another utterance of the same speaker),
        "quieter" (another speaker, 10 dB below the first interferer), or "confusable"
        (a speaker of a similar voice; not for listed peers).
    mixtures : str
        "listed", or "drawn": training mixtures are drawn while training. Training
        subsets then get a table of their utterances instead of a manifest: those of
        LibriSpeech, of which nothing is rendered, or the sources of LibriMix. Their
        noise is that of the mixing, not LibriMix's.
    enrollment_maps : str or dict, optional
        A folder of enrollment maps (see `find_enrollment_map`) or {subset: file}.
        Maps that are not given are drawn and saved beside the manifests.
    chunk_seconds : float
        Length of training segments, to tell how many mixtures are shorter.
    seed : int
        Seeds drawn maps, absent talkers and listed peers, 0 or more. Keep it when that
        of a training changes, as otherwise the test set changes too.
    n_processes : int, optional
        How many processes render; as many as CPUs and work allow if None.

    Returns
    -------
    prepared : Prepared
        (data_root, manifests, peers, corpus).

    Raises
    ------
    DataError
        If something given is wrong or absent; it names the file and the cure.
    """
    _check_choices(
        subsets=subsets,
        sample_rate=[sample_rate],
        mode=[mode],
        targets=[targets],
        condition=[condition],
        peers=[peers],
        peer_interferer=[peer_interferer],
        mixtures=[mixtures],
    )
    if peer_interferer == "confusable" and peers == "listed":
        raise DataError("confusable peers are drawn while training: give peers: drawn")
    if seed < 0:
        raise DataError(f"seed: {seed} is negative; give 0 or more")
    _check_folders(data_folder, librispeech_folder, librimix_metadata)
    _check_wham(condition, wham_folder, data_folder)

    folders = {name: subset_path(name, sample_rate, mode) for name in subsets}
    kind = f"wav{sample_rate // 1000}k_{mode}_{targets}"
    if condition != "clean":
        kind += f"_{MIXTURES[condition]}"
    manifest_folder = Path(output_folder, "manifests", kind)
    data_root = str(data_folder or output_folder)
    paths = {name: str(manifest_folder / f"{name}.json") for name in subsets}
    peers_path = None
    if (peers, mixtures) == ("listed", "listed"):
        peers_path = str(manifest_folder / "train_peers.json")
    manifest_folder.mkdir(parents=True, exist_ok=True)
    # Two trainings that start together must not render the same files.
    with FileLock(Path(output_folder, ".prepare.lock")):
        maps = _find_maps(enrollment_maps, folders)
        tables = {}
        if data_folder:
            sources = {
                name: scan_subset(Path(data_folder, folder), condition)
                for name, folder in folders.items()
            }
        else:
            drawn = list(filter(_is_training, folders)) if mixtures == "drawn" else []
            # Their noise is drawn, too.
            conditions = {
                name: "clean" if name in drawn else condition for name in folders
            }
            metadata = _read_metadata(
                librimix_metadata, librispeech_folder, wham_folder, conditions
            )
            tables = {name: metadata.pop(name) for name in drawn}
            sources = _render_subsets(
                metadata,
                librispeech_folder,
                {name: Path(output_folder, folders[name]) for name in metadata},
                sample_rate=sample_rate,
                mode=mode,
                wham_folder=wham_folder,
                n_processes=n_processes,
            )
            tables = {
                name: _measure(rows, librispeech_folder, output_folder, n_processes)
                for name, rows in tables.items()
            }
        manifests = {
            name: build_manifest(
                data_root, folders[name], *found, sample_rate, targets, mode, condition
            )
            for name, found in sources.items()
        }
        write_data_root(manifest_folder, data_root)
        for name, rows in manifests.items():
            if _is_training(name):
                check_pool(rows, peers, peer_interferer, n_peers)
            else:
                drawn_map = manifest_folder / f"{name}_enrollment_map.txt"
                map_path = maps[name] or _save_drawn_map(drawn_map, rows, seed)
                add_enrollments(rows, map_path, folders[name])
                add_absent_enrollments(rows, seed)
            write_manifest(paths[name], rows)
            if _is_training(name) and mixtures == "drawn":
                tables[name] = list(_utterances(rows, sample_rate))
            _log_summary(name, rows, round(chunk_seconds * sample_rate), sample_rate)
        for name, utterances in tables.items():
            paths[name] = str(manifest_folder / f"{name}.arrow")
            write_speech_table(paths[name], utterances)
            logger.info(f"{name}: {describe_speech(utterances)}")
        if peers_path:
            _write_listed_peers(peers_path, manifests, seed, peer_interferer, n_peers)
    corpus = describe_data(manifests, sample_rate, mode, targets, tables, condition)
    return Prepared(data_root, paths, peers_path, corpus)


def _is_training(subset):
    return subset.startswith("train")


def _check_choices(**given):
    """Raises DataError if a value is not one of its argument's choices."""
    for name, values in given.items():
        for value in values:
            if value not in CHOICES[name]:
                choices = ", ".join(str(choice) for choice in CHOICES[name])
                raise DataError(f"{name}: {value!r} is not one of {choices}")


def _check_folders(data_folder, librispeech_folder, librimix_metadata):
    """Raises DataError unless the data comes from exactly one place."""
    if data_folder and (librispeech_folder or librimix_metadata):
        raise DataError(
            "give either data_folder (a generated LibriMix) or librispeech_folder with "
            "librimix_metadata, not both"
        )
    if data_folder or (librispeech_folder and librimix_metadata):
        return
    if librispeech_folder:
        raise DataError(
            "librispeech_folder needs librimix_metadata: get it by 'git clone "
            "https://github.com/JorisCos/LibriMix' and give LibriMix/metadata/Libri2Mix"
        )
    if librimix_metadata:
        raise DataError(
            "librimix_metadata needs librispeech_folder: the folder that holds "
            "train-clean-100, dev-clean ..."
        )
    raise DataError(
        "no data given: give data_folder (a generated LibriMix), or librispeech_folder "
        "and librimix_metadata"
    )


def _check_wham(condition, wham_folder, data_folder):
    """Raises DataError unless noise is given where, and only where, it is rendered."""
    if wham_folder and (data_folder or condition == "clean"):
        raise DataError(
            "wham_folder is for noisy mixtures that are rendered: give condition: both "
            "and librispeech_folder with it, or leave it out"
        )
    if condition == "both" and not (wham_folder or data_folder):
        raise DataError(
            "condition: both needs wham_folder: get WHAM!'s noise from "
            "http://wham.whisper.ai and give the folder that holds tr, cv and tt"
        )


def _find_maps(enrollment_maps, folders):
    """The enrollment map given for each subset that needs one, None if to be drawn."""
    maps = {name: None for name in folders if not _is_training(name)}
    for name in maps:
        if isinstance(enrollment_maps, Mapping):
            maps[name] = enrollment_maps.get(name)
        elif enrollment_maps:
            maps[name] = find_enrollment_map(enrollment_maps, name, folders[name])
        if maps[name]:
            # A mistake in it has to show now, not after an hour of rendering.
            read_enrollment_map(maps[name])
    return maps


def _read_metadata(librimix_metadata, librispeech_folder, wham_folder, conditions):
    """Reads and checks the metadata of all subsets, before any of them is rendered."""
    metadata = {}
    for name, condition in conditions.items():
        rows = read_metadata(find_metadata(librimix_metadata, name), condition)
        check_sources(rows, librispeech_folder)
        if condition == "both":
            check_noise(rows, wham_folder)
        metadata[name] = rows
    return metadata


def _render_subsets(metadata, librispeech_folder, folders, **options):
    """Renders the subsets; returns what `scan_subset` would of each."""
    # All are checked before any of them is rendered, which may take an hour.
    for name, rows in metadata.items():
        check_rendered(rows, folders[name])
    mixtures = {}
    for name, rows in metadata.items():
        render_subset(rows, librispeech_folder, folders[name], **options)
        mixtures[name] = [row.mixture_id for row in rows], len(rows[0].paths)
    return mixtures


def _measure(rows, librispeech_folder, output_folder, n_processes):
    """The utterances of a subset's mixtures."""
    paths = (path for row in rows for path in row.paths)
    shards = Path(output_folder, "loudness")
    measured = measure_utterances(librispeech_folder, paths, shards, n_processes)
    return [Utterance(*fields) for fields in measured]


def _save_drawn_map(path, rows, seed):
    """Draws the enrollment map of a subset and saves it."""
    check_pool(rows)
    write_enrollment_map(path, draw_enrollment_map(rows, seed))
    return path


def _write_listed_peers(path, manifests, seed, peer_interferer, n_peers):
    """Draws and writes the second peers of all training subsets."""
    listed = {}
    for name, rows in manifests.items():
        if _is_training(name):
            listed |= draw_listed_peers(rows, seed, peer_interferer, n_peers)
    write_manifest(path, listed)


def _utterances(rows, sample_rate):
    """All sources of a subset, each as loud as in its own mixture."""
    for source in SourcePool(rows).sources:
        length = source["length"]
        names = source["path"], source["speaker"], source["utterance"]
        yield Utterance(*names, 0, length, sample_rate, math.nan)


def _log_summary(subset, rows, chunk_samples, sample_rate):
    """Logs what a subset holds."""
    lengths = {row["mixture_id"]: row["length"] for row in rows.values()}
    sources = SourcePool(rows).sources
    speakers = {source["speaker"] for source in sources}
    short = sum(length < chunk_samples for length in lengths.values())
    short_sources = sum(source["length"] < chunk_samples for source in sources)
    logger.info(
        f"{subset}: {len(lengths)} mixtures, {len(rows)} targets, {len(speakers)} "
        f"speakers, {sum(lengths.values()) / sample_rate / 3600:.2f} hours; {short} "
        f"mixtures and {short_sources} sources are shorter than "
        f"{chunk_samples / sample_rate} s (padded with zeros, they carry their true "
        "relative length)"
    )
