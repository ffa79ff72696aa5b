"""Audio formats, told by the suffixes of files."""

import os
from pathlib import Path

import soundfile

from speechbrain_peer.utils.decoding import DECODED

ALIASES = {
    ".aif": ("AIFF", None),
    ".aifc": ("AIFF", None),
    ".bwf": ("WAV", None),
    ".oga": ("OGG", None),
    ".opus": ("OGG", "OPUS"),
    ".snd": ("AU", None),
    ".sph": ("NIST", None),
    ".wave": ("WAV", None),
}
"""Format and encoding by suffix, where the suffix is not the format's name in
soundfile; None stands for the format's usual encoding."""


def sound_formats():
    """Tells which suffixes stand for formats of libsndfile.

    Returns
    -------
    dict
        Format and usual encoding, as soundfile names them, by lower-case suffix.
    """
    # A RAW file would not tell its rate.
    formats = soundfile.available_formats().keys() - {"RAW"}
    table = {f".{name.lower()}": (name, None) for name in formats} | ALIASES
    return {
        suffix: (format, subtype or soundfile.default_subtype(format))
        for suffix, (format, subtype) in table.items()
        # Older builds of libsndfile have fewer.
        if format in formats and soundfile.check_format(format, subtype)
    }


def is_audio(path):
    """Whether the suffix of a file is that of a recording."""
    suffix = Path(path).suffix.lower()
    return suffix in DECODED or suffix in sound_formats()


def find_sounds(folder):
    """Lists the audio files of a folder and all folders below.

    Arguments
    ---------
    folder : str or Path
        Files of libsndfile's formats are listed, without hidden ones.

    Returns
    -------
    names : list of str
        Sorted, relative to the folder, with "/" between folders on every system.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("rain.wav", "notes.txt", "._rain.wav", "a/sea.FLAC"):
    ...     (folder / name).parent.mkdir(exist_ok=True)
    ...     (folder / name).touch()
    >>> find_sounds(folder)
    ['a/sea.FLAC', 'rain.wav']
    """
    suffixes, names = sound_formats().keys(), []
    for parent, _, files in os.walk(folder):
        below = Path(parent).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        names += [
            prefix + name
            for name in files
            if os.path.splitext(name)[1].lower() in suffixes and name[0] != "."
        ]
    return sorted(names)
