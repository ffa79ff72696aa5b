"""The speakers of own recordings: names for files, and who trains, validates, tests."""

import hashlib
import unicodedata
from collections import Counter
from pathlib import Path

from speechbrain_peer.data.checks import check_file, refuse_rows
from speechbrain_peer.utils.files import DataError

SUBSETS = ("train", "dev", "test")
SHARE = 0.1
"""Of all speakers, for dev and test each."""
LEAST_SPEAKERS = 3
"""In each subset: mixtures are of two, and somebody is absent; peers need a third."""
LONGEST_NAME = 40
"""Bytes: a mixture's name holds the names of two utterances."""


def safe_names(speakers):
    """Gives speakers names that names of files can be made of.

    Letters and digits stay, of any script; a "+" takes the place of what is between
    them. Names that would be equal then, also where case does not count, or too long,
    get a part that is drawn from the whole name.

    Arguments
    ---------
    speakers : iterable of str
        Their names.

    Returns
    -------
    dict
        {speaker: name}; without "-" and "_", which LibriMix's names are joined by.

    Example
    -------
    >>> list(safe_names(["Anna_Müller", "p225", "P225"]).values())
    ['Anna+Müller', 'p225+1074871540', 'P225+1f2bbb46e1']
    """
    plain = {speaker: _plain(speaker) for speaker in speakers}
    uses = Counter(name.casefold() for name in plain.values())
    return {
        speaker: name
        if uses[name.casefold()] == 1 and 0 < len(name.encode()) <= LONGEST_NAME
        else _with_digest(name, speaker)
        for speaker, name in plain.items()
    }


def split_speakers(counts, seed, lists=None):
    """Tells which speakers are for training, validation and test.

    Arguments
    ---------
    counts : dict
        {speaker: how many utterances there are}.
    seed : int
        Without lists, speakers are drawn by it; one that comes or goes changes little.
    lists : dict, optional
        {"dev": file, "test": file}, with a name a line; all others are for training.

    Returns
    -------
    dict
        {subset: sorted list of speakers}. Without lists, dev and test have a tenth of
        the speakers each, at least three, of those who can be targets: who have two
        utterances or more.

    Raises
    ------
    DataError
        If there are too few, or a list names somebody else.

    Example
    -------
    >>> counts = {name: 5 for name in "abcdefghij"} | {"k": 1}
    >>> split = split_speakers(counts, seed=1234)
    >>> {subset: len(speakers) for subset, speakers in split.items()}
    {'train': 5, 'dev': 3, 'test': 3}
    >>> "k" in split["train"]
    True
    """
    if lists:
        split = _listed(counts, lists)
    else:
        split = _drawn(counts, seed)
    chosen = {*split["dev"], *split["test"]}
    split = {"train": sorted(counts.keys() - chosen)} | split
    few = [
        f"{subset} has {len(split[subset])} speakers"
        for subset in SUBSETS
        if len(split[subset]) < LEAST_SPEAKERS
    ]
    if few:
        raise DataError(
            f"{', '.join(few)}, but each subset needs {LEAST_SPEAKERS}; change the "
            "lists of speakers"
        )
    return split


def _drawn(counts, seed):
    targets = [speaker for speaker, count in counts.items() if count > 1]
    needed = LEAST_SPEAKERS * len(SUBSETS)
    if len(targets) < needed:
        raise DataError(
            f"{needed} speakers with two utterances or more are needed, "
            f"{LEAST_SPEAKERS} for each of {', '.join(SUBSETS)}, but there are "
            f"{len(targets)}; add recordings"
        )
    size = max(LEAST_SPEAKERS, round(SHARE * len(counts)))
    # Where many have a single utterance, training keeps a third of the others.
    size = min(size, len(targets) // 3)
    targets.sort(key=lambda speaker: _digest(f"{seed} {speaker}"))
    return {"dev": sorted(targets[:size]), "test": sorted(targets[size : 2 * size])}


def _listed(counts, lists):
    split = {}
    for subset, path in lists.items():
        check_file(path, "correct the path")
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error
        names = {line.strip() for line in lines if line.strip()}
        unknown = [f"no speech of speaker {x!r}" for x in sorted(names - counts.keys())]
        refuse_rows(path, unknown, "correct or remove the name")
        split[subset] = sorted(names)
    both = sorted(set(split["dev"]) & set(split["test"]))
    problems = [f"speaker {name!r} is in {lists['dev']} too" for name in both]
    refuse_rows(lists["test"], problems, "take the name out of one of them")
    return split


def _plain(speaker):
    text = unicodedata.normalize("NFC", speaker)
    kept = "".join(x if x.isalnum() else " " for x in text)
    return "+".join(kept.split())


def _with_digest(name, speaker):
    short = name.encode()[: LONGEST_NAME - 11].decode(errors="ignore").rstrip("+")
    return f"{short or 'speaker'}+{_digest(speaker)[:10]}"


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()
