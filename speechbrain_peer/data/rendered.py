"""Folders of rendered mixtures: what they hold, and what it was rendered from.

Kept free of torch and SpeechBrain: every rendering process imports this file.
"""

import hashlib
import json
from pathlib import Path

from speechbrain_peer.data.layout import wav_names
from speechbrain_peer.utils.audio import write_audio
from speechbrain_peer.utils.files import DataError, whole_file

RECORD = "metadata.sha256"  # what it is rendered from, in every subset's folder


def fingerprint(heard):
    """The SHA-256 of all that is heard in a subset.

    Arguments
    ---------
    heard : list
        What its mixtures are made of, as JSON takes it; the order does not count.

    Returns
    -------
    str
    """
    return hashlib.sha256(json.dumps(sorted(heard)).encode()).hexdigest()


def check_record(folder, digest, cure):
    """Raises DataError if a subset's folder was rendered from something else.

    Arguments
    ---------
    folder : str or Path
        The subset's folder; it may be empty or absent.
    digest : str
        See `fingerprint`.
    cure : str
        What was different, and what to do.
    """
    record = Path(folder, RECORD)
    if record.exists() and record.read_text(encoding="utf-8") != digest:
        raise DataError(f"{folder}: its rendering began from {cure}")


def write_record(folder, digest):
    """Writes what a subset is rendered from, before any of its audio."""
    record = Path(folder, RECORD)
    if record.exists():
        return
    # There may be audio all the same, rendered before records were kept. What it was
    # made from cannot be told any more: it is taken as made from this.
    with whole_file(record) as temporary:
        temporary.write_text(digest, encoding="utf-8")


def write_mixture(folder, mixture_id, sources, sample_rate):
    """Writes the sources of one mixture, and the mixture last.

    Arguments
    ---------
    folder : str or Path
        The subset's folder: <folder>/mix_clean/<mixture_ID>.wav, <folder>/s1/...
    mixture_id : str
        Its name.
    sources : list of np.ndarray
        (time,), of one length.
    sample_rate : int
        In Hz.
    """
    for k, source in enumerate(sources, start=1):
        write_audio(f"{folder}/s{k}/{mixture_id}.wav", source, sample_rate)
    write_audio(f"{folder}/mix_clean/{mixture_id}.wav", sum(sources), sample_rate)


def finished_mixtures(folder, n_sources):
    """The mixtures of a subset whose files are all there."""
    subfolders = ["mix_clean", *(f"s{k + 1}" for k in range(n_sources))]
    return set.intersection(*(wav_names(Path(folder) / name) for name in subfolders))
