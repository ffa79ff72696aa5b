"""Folders of rendered mixtures: what they hold, and what it was rendered from.

Kept free of torch and SpeechBrain: every rendering process imports this file.
"""

import hashlib
import json
from pathlib import Path

from speechbrain_peer.data.layout import MIXTURES, NOISE, wav_names
from speechbrain_peer.utils.audio import write_audio
from speechbrain_peer.utils.files import DataError, whole_file

# In every subset's folder: what its speech, and what its noise is rendered from.
RECORD, NOISE_RECORD = "metadata.sha256", "noise.sha256"


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


def check_record(folder, digest, cure, name=RECORD):
    """Raises DataError if a subset's folder was rendered from something else.

    Arguments
    ---------
    folder : str or Path
        The subset's folder; it may be empty or absent.
    digest : str
        See `fingerprint`.
    cure : str
        What was different, and what to do.
    name : str
        Of the record.
    """
    record = Path(folder, name)
    if record.exists() and record.read_text(encoding="utf-8") != digest:
        raise DataError(f"{folder}: its rendering began from {cure}")


def write_record(folder, digest, name=RECORD):
    """Writes what a subset is rendered from, before any of its audio."""
    record = Path(folder, name)
    if record.exists():
        return
    # There may be audio all the same, rendered before records were kept. What it was
    # made from cannot be told any more: it is taken as made from this.
    with whole_file(record) as temporary:
        temporary.write_text(digest, encoding="utf-8")


def write_mixture(folder, mixture_id, sources, sample_rate, noise=None):
    """Writes the sources of one mixture, its noise, and the mixture last.

    Arguments
    ---------
    folder : str or Path
        The subset's folder: <folder>/s1/<mixture_ID>.wav, ... and mix_clean, or noise
        and mix_both.
    mixture_id : str
        Its name.
    sources : list of np.ndarray
        (time,), of one length.
    sample_rate : int
        In Hz.
    noise : np.ndarray, optional
        As long as the sources.
    """

    def write(subfolder, samples):
        write_audio(f"{folder}/{subfolder}/{mixture_id}.wav", samples, sample_rate)

    for k, source in enumerate(sources, start=1):
        write(f"s{k}", source)
    mixture = sum(sources)
    if noise is None:
        write(MIXTURES["clean"], mixture)
        return
    write(NOISE, noise)
    # In place, as in the LibriMix script: float32, whatever the noise is in.
    mixture += noise
    write(MIXTURES["both"], mixture)


def finished_mixtures(folder, n_sources, condition="clean"):
    """The mixtures of a subset whose files are all there."""
    subfolders = [MIXTURES[condition], *(f"s{k + 1}" for k in range(n_sources))]
    if condition == "both":
        subfolders.append(NOISE)
    return set.intersection(*(wav_names(Path(folder) / name) for name in subfolders))
