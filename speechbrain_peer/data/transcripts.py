"""Transcripts of LibriSpeech's utterances, as they lie beside their audio."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

from speechbrain_peer.utils.any_audio import read_header
from speechbrain_peer.utils.files import DataError


class Transcript(NamedTuple):
    """What is said in an utterance."""

    words: str
    """As LibriSpeech writes them: upper case, no marks but apostrophes."""
    seconds: float
    """How long the whole utterance is."""


def read_transcripts(librispeech_folder, utterances):
    """Reads the transcripts of utterances.

    Arguments
    ---------
    librispeech_folder : str or Path
        The folder that holds test-clean ..., with `.trans.txt` and `.flac` files.
    utterances : iterable of str
        Their names, such as 1272-128104-0000.

    Returns
    -------
    dict
        {utterance: Transcript}.

    Raises
    ------
    DataError
        If one is not there.
    """
    folder = Path(librispeech_folder)

    @cache
    def chapter_of(name):
        """Its folder, and its lines by utterance; None where no part has it."""
        speaker, _, chapter = name.partition("-")
        for path in sorted(folder.glob(f"*/{speaker}/{chapter}/{name}.trans.txt")):
            lines = path.read_text(encoding="utf-8").splitlines()
            return path.parent, dict(line.partition(" ")[::2] for line in lines)
        return None

    transcripts = {}
    for utterance in utterances:
        chapter = chapter_of(utterance.rpartition("-")[0])
        if chapter is None or utterance not in chapter[1]:
            raise DataError(
                f"{folder}: has no transcript of the utterance {utterance}; give the "
                "folder that holds LibriSpeech's parts (test-clean ...) with their "
                ".trans.txt files, or none"
            )
        header = read_header(chapter[0] / f"{utterance}.flac")
        seconds = header.length / header.sample_rate
        transcripts[utterance] = Transcript(chapter[1][utterance], seconds)
    return transcripts
