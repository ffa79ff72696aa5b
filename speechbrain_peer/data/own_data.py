"""Own recordings: from a folder of voices to what a training reads."""

import json
import math
import os
from functools import cache
from pathlib import Path

from filelock import FileLock

from speechbrain_peer.data.checks import refuse_rows
from speechbrain_peer.data.corpora import describe_subset
from speechbrain_peer.data.enrollments import (
    add_absent_enrollments,
    add_enrollments,
    draw_enrollment_map,
    write_enrollment_map,
)
from speechbrain_peer.data.fixed_mixtures import (
    check_mixtures,
    count_possible,
    draw_mixtures,
    render_mixtures,
    write_mixtures,
)
from speechbrain_peer.data.layout import DATA_ROOT, subset_path
from speechbrain_peer.data.manifests import (
    build_manifest,
    write_data_root,
    write_manifest,
)
from speechbrain_peer.data.prepare import Prepared
from speechbrain_peer.data.scan import DECODED_FOLDER, scan_files
from speechbrain_peer.data.speakers import SUBSETS, safe_names, split_speakers
from speechbrain_peer.data.speech_table import Utterance, write_speech_table
from speechbrain_peer.data.voices import find_voices
from speechbrain_peer.data.voices_report import Found, write_report
from speechbrain_peer.utils.files import DataError, whole_file

DESCRIPTION = "prepared.json"  # in a folder whose preparation is finished
MANIFESTS = {"train": "train.arrow", "dev": "dev.json", "test": "test.json"}
MOST_MIXTURES = {"dev": 300, "test": 600}
"""Where nobody says how many."""
COMMAND = "tse prepare VOICES -o DATA"


def prepare_voices(
    voices,
    output_folder,
    sample_rate=8000,
    detector="energy",
    on_error="stop",
    speaker_lists=None,
    n_mixtures=None,
    seed=1234,
    n_processes=None,
):
    """Prepares own recordings for training and testing target speech extraction.

    Every recording is read through: where somebody talks in it, and how loud. Training
    draws its mixtures from a table of these utterances, <output_folder>/manifests/
    train.arrow; recordings are not copied, but for those that ffmpeg has to decode.
    Dev and test get fixed mixtures of two speakers, rendered into
    <output_folder>/wav8k/min/<subset>, manifests and enrollment maps. What has been
    found is told in <output_folder>/report.md. What a call has measured is kept, so an
    interrupted preparation goes on where it stopped.

    Arguments
    ---------
    voices : str or Path
        Holds `speaker/**/file`, or Kaldi's tables; see `voices.find_voices`.
    output_folder : str or Path
        For all that is written; not in `voices`.
    sample_rate : int
        Of the dev and test mixtures and of training, 8000 or 16000 Hz.
    detector : str
        What finds speech: "energy" (see `speech_activity`) or "silero".
    on_error : str
        "stop" if a file cannot be used, after all have been looked at, or "skip" it.
    speaker_lists : dict, optional
        {"dev": file, "test": file}, with a speaker a line; drawn if None.
    n_mixtures : dict, optional
        {"dev": number, "test": number}; by default as many as there can be, up to
        `MOST_MIXTURES`.
    seed : int
        Of the split, the mixtures and the enrollments.
    n_processes : int, optional
        As many as CPUs and work allow if None.

    Returns
    -------
    prepared : Prepared
        (data_root, manifests, peers, corpus).

    Raises
    ------
    DataError
        If files cannot be used, or there are too few speakers.
    """
    voices, output_folder = Path(voices), Path(output_folder)
    if output_folder.resolve().is_relative_to(voices.resolve()):
        raise DataError(
            f"{output_folder}: lies in the folder of voices; give another folder (-o)"
        )
    listed = find_voices(voices)
    output_folder.mkdir(parents=True, exist_ok=True)
    with FileLock(output_folder / ".prepare.lock"):
        scanned = scan_files(listed.files, output_folder, detector, n_processes)
        problems = listed.problems | {
            file.name: result.problem
            for file, result in zip(listed.files, scanned, strict=True)
            if result.problem
        }
        found = Found(
            voices.resolve().name,
            listed.files,
            scanned,
            problems,
            listed.others,
            sample_rate,
        )
        report = write_report(output_folder, found)
        if on_error == "stop":
            refuse_rows(
                voices,
                [f"{name}: {problem}" for name, problem in sorted(problems.items())],
                f"mend or remove them, or leave them out with --on-error skip "
                f"({report} lists all)",
                "files",
            )
        speech = _split(found, output_folder, seed, speaker_lists)
        mixtures = {
            subset: _draw(speech[subset], subset, n_mixtures or {}, seed)
            for subset in ("dev", "test")
        }
        prepared = _write(
            output_folder, found.name, speech, mixtures, sample_rate, seed, n_processes
        )
        write_report(output_folder, found, speech, mixtures)
    return prepared


def open_prepared(folders, sample_rate):
    """Opens what `prepare_voices` has prepared.

    Arguments
    ---------
    folders : str, Path, list or None
        Its output folder. Or [[folder, weight], ...] of several, of which one is drawn
        for each talker, by weight; the first one's dev and test sets are used.
    sample_rate : int
        The rate in Hz that they must have.

    Returns
    -------
    Prepared
        The training subset's entry in `manifests` is a table, or {table: weight}.

    Raises
    ------
    DataError
        If one is none, or of another rate.
    """
    if not folders:
        raise DataError(f"no data given: prepare it ({COMMAND}) and give --prepared")
    pairs = folders if isinstance(folders, list) else [[folders, 1.0]]
    if not all(map(_is_weighted, pairs)):
        raise DataError(
            f"prepared: {folders} is no list of folders and weights above 0, such as "
            "[[DATA1, 3], [DATA2, 1]]"
        )
    weights = dict(map(tuple, pairs))
    first, *others = (_open_one(folder, sample_rate) for folder in weights)
    if not others:
        return first
    tables = {
        one.manifests["train"]: weight
        for one, weight in zip((first, *others), weights.values(), strict=True)
    }
    names = ", ".join(Path(folder).name for folder in list(weights)[1:])
    return first._replace(
        manifests={**first.manifests, "train": tables},
        corpus=f"{first.corpus.removesuffix('.')}, and on {names}.",
    )


def _is_weighted(pair):
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and isinstance(pair[0], str | Path)
        and isinstance(pair[1], int | float)
        and not isinstance(pair[1], bool)
        and 0 < pair[1] < math.inf
    )


def _open_one(folder, sample_rate):
    try:
        text = Path(folder, DESCRIPTION).read_text(encoding="utf-8")
        description = json.loads(text)
        rate, corpus = description["sample_rate"], description["corpus"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{folder}: holds no prepared recordings ({error!r}); prepare them "
            f"({COMMAND}) and give DATA"
        ) from error
    if rate != sample_rate:
        raise DataError(
            f"{folder}: is prepared at {rate} Hz, not {sample_rate} Hz; give "
            f"--sample_rate {rate}, or prepare it again"
        )
    manifests = {
        subset: str(Path(folder, "manifests", name))
        for subset, name in MANIFESTS.items()
    }
    return Prepared(str(folder), manifests, None, corpus)


def _split(found, output_folder, seed, lists):
    """{subset: list of Utterance}."""
    utterances = list(_utterances(found, output_folder))
    counts = {}
    for speaker, _ in utterances:
        counts[speaker] = counts.get(speaker, 0) + 1
    split = split_speakers(counts, seed, lists)
    subsets = {name: subset for subset, names in split.items() for name in names}
    speech = {subset: [] for subset in SUBSETS}
    for speaker, utterance in utterances:
        speech[subsets[speaker]].append(utterance)
    return speech


def _utterances(found, output_folder):
    """Yields the name that a speaker has to the user, and an `Utterance`."""
    pairs = list(zip(found.files, found.scanned, strict=True))
    names = safe_names(
        {
            file.spans[number].speaker
            for file, scanned in pairs
            if not scanned.problem
            for number, *_ in scanned.segments
        }
    )
    here, file_counts = output_folder.resolve(), {}
    for file, scanned in pairs:
        counts = {}
        for number, start, length, loudness in scanned.segments:
            speaker = file.spans[number].speaker
            if speaker not in counts:
                file_counts[speaker] = file_counts.get(speaker, 0) + 1
            counts[speaker] = counts.get(speaker, 0) + 1
            name = names[speaker]
            yield (
                speaker,
                Utterance(
                    _stored_path(file, scanned, here),
                    name,
                    f"{name}-{file_counts[speaker]:04}-{counts[speaker]:04}",
                    start,
                    length,
                    scanned.rate,
                    loudness,
                ),
            )


def _stored_path(file, scanned, here):
    """A path that stays right where a folder that holds both voices and data moves."""
    if scanned.decoded:
        return f"{DATA_ROOT}/{DECODED_FOLDER}/{scanned.decoded}"
    if os.path.isabs(file.name):  # in Kaldi's tables; meant to be so
        return file.name
    path = _real(Path(file.path).parent) / Path(file.path).name
    if Path(os.path.commonpath((path, here))) == Path(path.anchor):
        return str(path)  # nothing above both moves
    return f"{DATA_ROOT}/{Path(os.path.relpath(path, here)).as_posix()}"


@cache
def _real(folder):
    return folder.resolve()


def _draw(utterances, subset, n_mixtures, seed):
    number = n_mixtures.get(subset)
    if number is None:
        number = min(MOST_MIXTURES[subset], count_possible(utterances))
    try:
        return draw_mixtures(utterances, number, f"{seed} {subset}")
    except DataError as error:
        raise DataError(f"{subset}: {error}") from error


def _write(output_folder, name, speech, mixtures, sample_rate, seed, n_processes):
    """Renders dev and test, and writes the manifests."""
    folders = {subset: subset_path(subset, sample_rate) for subset in mixtures}
    # All are checked before any is rendered.
    for subset, folder in folders.items():
        check_mixtures(mixtures[subset], output_folder / folder, seed)
    manifests = output_folder / "manifests"
    write_data_root(manifests, output_folder)
    rows = {}
    for subset, folder in folders.items():
        render_mixtures(
            mixtures[subset],
            output_folder / folder,
            output_folder,
            sample_rate,
            seed,
            n_processes,
        )
        names = [mixture.mixture_id for mixture in mixtures[subset]]
        rows[subset] = build_manifest(output_folder, folder, names, 2, sample_rate)
        enrollment_map = manifests / f"{subset}_enrollment_map.txt"
        write_enrollment_map(enrollment_map, draw_enrollment_map(rows[subset], seed))
        add_enrollments(rows[subset], enrollment_map, folder)
        add_absent_enrollments(rows[subset], seed)
        write_manifest(manifests / MANIFESTS[subset], rows[subset])
        write_mixtures(manifests / f"{subset}_mixtures.csv", mixtures[subset])
    write_speech_table(manifests / MANIFESTS["train"], speech["train"])
    description = {
        "corpus": _describe(name, speech["train"], rows["test"], sample_rate),
        "sample_rate": sample_rate,
    }
    with whole_file(output_folder / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(description, indent=1), encoding="utf-8")
    return open_prepared(output_folder, sample_rate)


def _describe(name, train, test_rows, sample_rate):
    """One sentence, for tables."""
    hours = sum(row.length / row.rate for row in train) / 3600
    speakers = len({row.speaker for row in train})
    return (
        f"{name}: {describe_subset('test', test_rows)}, first speakers, {sample_rate} "
        f"Hz, min, clean; trained on {speakers} other speakers, {hours:.2f} hours."
    )
