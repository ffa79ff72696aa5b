"""The folders of LibriMix and the names of its mixtures."""

import os

# Stands for the data's folder in every path, so that a manifest can move with the data.
DATA_ROOT = "{data_root}"

# LibriMix's names of the subsets, and LibriSpeech's.
SUBSETS = {
    "train-100": "train-clean-100",
    "train-360": "train-clean-360",
    "dev": "dev-clean",
    "test": "test-clean",
}

# LibriMix's names of mixtures, by condition: speech alone, or with WHAM!'s noise.
MIXTURES = {"clean": "mix_clean", "both": "mix_both"}
# Beside them and s1, s2 ...: the noise that is in mix_both.
NOISE = "noise"

# What preparation and the simulation of rooms can be asked for, by argument.
CHOICES = {
    "subsets": tuple(SUBSETS),
    "sample_rate": (8000, 16000),
    "mode": ("min", "max"),
    "targets": ("first", "both"),
    "condition": tuple(MIXTURES),
    "peers": ("off", "listed", "drawn", "microphones"),
    "peer_interferer": ("any", "same", "quieter", "confusable"),
    "mixtures": ("listed", "drawn"),
    "detector": ("energy", "silero"),
    "on_error": ("stop", "skip"),
    "layout": ("device", "table", "mixed"),
}


def subset_path(subset, sample_rate=8000, mode="min"):
    """Tells where a subset lies in a LibriMix folder.

    Example
    -------
    >>> subset_path("dev")
    'wav8k/min/dev'
    """
    return f"wav{sample_rate // 1000}k/{mode}/{subset}"


def utterance_ids(mixture_id):
    """Splits a mixture's name into the names of its sources' utterances.

    Example
    -------
    >>> utterance_ids("1272-128104-0000_2035-147961-0014")
    ['1272-128104-0000', '2035-147961-0014']
    """
    return mixture_id.split("_")


def speaker_id(utterance):
    """Tells the speaker of a LibriSpeech utterance.

    Example
    -------
    >>> speaker_id("1272-128104-0000")
    '1272'
    """
    return utterance.split("-")[0]


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
