"""Enrollment maps: which file enrolls the target of each dev or test mixture.

Every row also gets, if there are speakers enough, the enrollment of somebody who is not
in its mixture: the fixed trial of an absent talker, which stands in the manifest alone.

A map is a text file in the format of the public lists for Libri2Mix, one line
`mixture_ID target_utterance_ID s<k>/<mixture_ID>` for each target. The last field is
a file of the same subset: <subset folder>/s<k>/<mixture_ID>.wav. Where names hold
spaces, tabs stand between the fields.
"""

import re
from pathlib import Path

from speechbrain_peer.data.checks import check_file, refuse_rows
from speechbrain_peer.data.layout import SUBSETS, speaker_id, utterance_ids
from speechbrain_peer.data.manifests import DATA_ROOT
from speechbrain_peer.data.peers import SourcePool, item_rng
from speechbrain_peer.utils.files import DataError, whole_file


def find_enrollment_map(maps_folder, subset, subset_folder):
    """Finds the map of a subset in a folder of maps.

    Arguments
    ---------
    maps_folder : str or Path
        Holds map_mixture2enrollment_dev-clean.txt ..., or the public layout
        wav8k/min/dev/map_mixture2enrollment ...
    subset : str
        Such as "dev".
    subset_folder : str
        Such as "wav8k/min/dev"; see `layout.subset_path`.

    Returns
    -------
    path : Path
        The map.
    """
    candidates = [
        Path(maps_folder, f"map_mixture2enrollment_{SUBSETS[subset]}.txt"),
        Path(maps_folder, subset_folder, "map_mixture2enrollment"),
    ]
    for path in candidates:
        if path.is_file():
            return path
    raise DataError(
        f"no enrollment map of subset {subset}: neither {candidates[0]} nor "
        f"{candidates[1]} exists; correct enrollment_maps, or leave it out to draw maps"
    )


def read_enrollment_map(path):
    """Reads an enrollment map.

    Arguments
    ---------
    path : str or Path
        The text file.

    Returns
    -------
    enrollments : dict
        {(mixture_ID, target utterance): "s<k>/<mixture_ID>"}.

    Example
    -------
    >>> path = getfixture("tmp_path") / "map_mixture2enrollment"
    >>> write_enrollment_map(path, {("1-0-0_2-0-0", "1-0-0"): "s2/3-0-0_1-0-1"})
    >>> read_enrollment_map(path)
    {('1-0-0_2-0-0', '1-0-0'): 's2/3-0-0_1-0-1'}
    """
    enrollments, problems = {}, []
    cure = "correct the path, or leave enrollment_maps out to draw maps"
    check_file(path, cure)
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as an enrollment map ({error}); {cure}"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) != 3 or not re.fullmatch(r"s[1-9]\d*/[^/\\]+", fields[2]):
            problems.append(
                f"line {number}: is not 'mixture_ID target_utterance_ID "
                f"s<k>/<mixture_ID>' but {line!r}"
            )
            continue
        mixture_id, utterance, enrollment = fields
        if enrollments.setdefault((mixture_id, utterance), enrollment) != enrollment:
            problems.append(
                f"line {number}: is the second enrollment of {utterance} in "
                f"{mixture_id}"
            )
    refuse_rows(path, problems, "correct or remove what is wrong")
    return enrollments


def draw_enrollment_map(rows, seed):
    """Draws an enrollment for the target of every row.

    Arguments
    ---------
    rows : dict
        The manifest of a dev or test subset.
    seed : int
        The map is a function of it and of the data, not of the order of the rows.

    Returns
    -------
    enrollments : dict
        {(mixture_ID, target utterance): "s<k>/<mixture_ID>"}: another utterance of
        the target's speaker.
    """
    pool = SourcePool(rows)
    enrollments = {}
    for item_id, row in rows.items():
        source = pool.draw_enrollment(row, item_rng(seed, 0, item_id))
        path = Path(source["path"])
        key = (row["mixture_id"], row["target"]["utterance"])
        enrollments[key] = f"{path.parent.name}/{path.stem}"
    return enrollments


def write_enrollment_map(path, enrollments):
    """Writes an enrollment map, sorted, whole or not at all."""
    rows = [(*key, file) for key, file in sorted(enrollments.items())]
    spaces = any(" " in field for fields in rows for field in fields)
    # As in the public lists, unless that could not be read again.
    separator = "\t" if spaces else " "
    lines = [f"{separator.join(fields)}\n" for fields in rows]
    with whole_file(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def add_enrollments(rows, map_path, subset_folder):
    """Writes the enrollment into every row, after checking it.

    Arguments
    ---------
    rows : dict
        The manifest of a dev or test subset; each row gets `enrollment`, the path, and
        `enrollment_length`, the samples of its speech.
    map_path : str or Path
        The enrollment map.
    subset_folder : str
        Where the subset lies in the LibriMix folder; see `layout.subset_path`.

    Raises
    ------
    DataError
        If the map cannot be used for these rows.
    """
    enrollments = read_enrollment_map(map_path)
    sources = {source["path"]: source for source in SourcePool(rows).sources}
    problems = []
    for row in rows.values():
        mixture_id, target = row["mixture_id"], row["target"]
        problem = None
        file = enrollments.get((mixture_id, target["utterance"]))
        source = sources.get(f"{DATA_ROOT}/{subset_folder}/{file}.wav")
        if file is None:
            problem = "has no line"
        elif _utterance_of(file) == target["utterance"]:
            problem = f"lists the target's own utterance ({file})"
        elif speaker_id(_utterance_of(file)) != target["speaker"]:
            problem = f"lists another speaker than the target's ({file})"
        elif source is None:
            problem = f"lists a file that does not exist ({subset_folder}/{file}.wav)"
        else:
            row["enrollment"] = source["path"]
            row["enrollment_length"] = source["length"]
        if problem:
            problems.append(
                f"mixture {mixture_id}, target {target['utterance']}: {problem}"
            )
    refuse_rows(
        map_path,
        problems,
        "correct the map, or leave enrollment_maps out to draw one",
    )


def add_absent_enrollments(rows, seed):
    """Draws, for every row, the enrollment of somebody who is not in its mixture.

    Where all speakers of the subset are in the mixture, the row gets none.

    Arguments
    ---------
    rows : dict
        The manifest of a dev or test subset; each row gets `absent_enrollment`, the
        path, and `absent_enrollment_length`, the samples of its speech.
    seed : int
        The draws are a function of it and of the data, not of the order of the rows.
    """
    pool = SourcePool(rows)
    for item_id, row in rows.items():
        # Another stream than that of the target's own enrollment.
        source = pool.draw_absent(row, item_rng(seed, 0, f"{item_id} absent"))
        if source is not None:
            row["absent_enrollment"] = source["path"]
            row["absent_enrollment_length"] = source["length"]


def _utterance_of(file):
    """The utterance in a source's file, given as s<k>/<mixture_ID>; "" if none."""
    folder, mixture_id = file.split("/", maxsplit=1)
    utterances = utterance_ids(mixture_id)
    k = int(folder[1:])
    return utterances[k - 1] if k <= len(utterances) else ""
