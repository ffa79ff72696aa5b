"""The folders of LibriMix and the names of its mixtures."""

import os
from itertools import count
from pathlib import Path

from speechbrain_peer.utils.files import DataError

# LibriMix's names of the subsets, and LibriSpeech's.
SUBSETS = {
    "train-100": "train-clean-100",
    "train-360": "train-clean-360",
    "dev": "dev-clean",
    "test": "test-clean",
}

# What preparation can be asked for, by argument.
CHOICES = {
    "subsets": tuple(SUBSETS),
    "sample_rate": (8000, 16000),
    "mode": ("min", "max"),
    "targets": ("first", "both"),
    "peers": ("off", "listed", "drawn"),
    "peer_interferer": ("any", "same"),
}


def subset_path(subset, sample_rate=8000, mode="min"):
    """Tells where a subset lies in a LibriMix folder.

    Example
    -------
    >>> subset_path("dev")
    'wav8k/min/dev'
    """
    return f"wav{sample_rate // 1000}k/{mode}/{subset}"


def utterance_ids(mixture_id, n_sources):
    """Splits a mixture's name into the names of its sources' utterances.

    Example
    -------
    >>> utterance_ids("1272-128104-0000_2035-147961-0014", n_sources=2)
    ['1272-128104-0000', '2035-147961-0014']
    """
    utterances = mixture_id.split("_")
    if len(utterances) != n_sources:
        raise DataError(
            f"mixture {mixture_id}: has {n_sources} sources, but its name does not "
            f"consist of {n_sources} utterances joined by '_'; rename it so"
        )
    return utterances


def speaker_id(utterance):
    """Tells the speaker of a LibriSpeech utterance.

    Example
    -------
    >>> speaker_id("1272-128104-0000")
    '1272'
    """
    return utterance.split("-")[0]


def scan_subset(folder):
    """Lists the mixtures of a subset's folder that the LibriMix scripts have made.

    Arguments
    ---------
    folder : str or Path
        Such as Libri2Mix/wav8k/min/dev.

    Returns
    -------
    mixture_ids : list of str
        Sorted.
    n_sources : int
        How many folders s1, s2 ... there are.
    """
    folder = Path(folder)
    mixture_ids = sorted(wav_names(folder / "mix_clean"))
    if not mixture_ids:
        raise DataError(
            f"{folder / 'mix_clean'}: no mixtures there; data_folder has to be the "
            "folder that holds wav8k (or wav16k), generated with '--types mix_clean' "
            "among the types and with this rate, mode and subset"
        )
    n_sources = next(k for k in count() if not (folder / f"s{k + 1}").is_dir())
    if n_sources < 2:
        raise DataError(
            f"{folder / f's{n_sources + 1}'}: no such folder; generate the subset again"
        )
    return mixture_ids, n_sources


def wav_names(folder):
    """Lists the WAV files of a folder without their extension, as a set."""
    if not os.path.isdir(folder):
        return set()
    # Names that start with a dot are the file system's own, or half-written.
    return {
        name.removesuffix(".wav")
        for name in os.listdir(folder)
        if name.endswith(".wav") and not name.startswith(".")
    }
