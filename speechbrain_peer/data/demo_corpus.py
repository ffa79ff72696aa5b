"""A small corpus of many speakers, spoken offline by eSpeak NG.

It has LibriSpeech's layout, with transcripts, and LibriMix metadata, and goes through
preparation like the real corpora. It shows that everything works; figures measured on
it say nothing about real speech.
"""

import json
import os
import random
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import soundfile
from scipy.signal import resample_poly
from tqdm import tqdm

from speechbrain_peer.data.demo_sentences import N_SENTENCES, draw_sentences
from speechbrain_peer.data.espeak import open_espeak
from speechbrain_peer.data.layout import SUBSETS
from speechbrain_peer.data.librimix import LIBRISPEECH_RATE
from speechbrain_peer.data.mixing_metadata import write_mixing_metadata
from speechbrain_peer.data.prepare import prepare_librimix
from speechbrain_peer.utils.files import DataError

DESCRIPTION = "demo_corpus.json"  # the arguments, in every finished corpus
DEMO_SUBSETS = MappingProxyType(
    {"train": SUBSETS["train-100"], "dev": SUBSETS["dev"], "test": SUBSETS["test"]}
)
N_SPEAKERS = MappingProxyType({"train": 40, "dev": 8, "test": 8})
N_UTTERANCES = MappingProxyType({"train": 8, "dev": 6, "test": 6})
N_MIXTURES = MappingProxyType({"train": 400, "dev": 40, "test": 30})

ACCENTS = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029")
# eSpeak NG's voice variants, without those that whisper or creak, have an echo or a
# monotonous pitch, use its other synthesizer (whose noise cannot be seeded), or have
# nearly the same spectrum as another one.
HIGH_VOICES = (
    "Alicia Andrea Annie anika aunty belinda f1 f2 f3 f4 f5 grandma linda shelby steph"
)
LOW_VOICES = (
    "Andy Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Mario Michael Mike "
    "Nguyen RicishayMax2 Tweaky antonio boris ed gustave iven iven3 iven4 john m1 m2 "
    "m3 m4 m5 m6 m7 m8 marcelo max michel miguel norbert pablo paul pedro rob travis "
    "victor"
)
VOICES = tuple(HIGH_VOICES.split() + LOW_VOICES.split())
PITCHES = range(20, 86)  # about 0.75 to 1.5 times the voice's own
WORDS_PER_MINUTE = range(150, 191)
PEAK = 0.5


class Speaker(NamedTuple):
    """One speaker of the corpus.

    Arguments
    ---------
    name : str
        A number, as LibriSpeech names its speakers.
    voice : str
        eSpeak NG's accent and variant, such as ``en-gb+f3``.
    words_per_minute : int
        Speaking rate.
    pitch : int
        0 to 99; 50 is the voice's own pitch.
    """

    name: str
    voice: str
    words_per_minute: int
    pitch: int


def make_demo_corpus(
    folder,
    seed=1234,
    n_speakers=N_SPEAKERS,
    n_utterances=N_UTTERANCES,
    n_mixtures=N_MIXTURES,
):
    """Makes the corpus, unless it is there already.

    The folder appears only when all of it is finished.

    Arguments
    ---------
    folder : str or Path
        A folder that does not exist, is empty, or holds this corpus.
    seed : int
        The corpus is a function of the seed and the sizes.
    n_speakers : dict
        How many speakers `train`, `dev` and `test` have; no speaker is in two of them.
    n_utterances : dict
        How many utterances each speaker has, at least 2: one serves as enrollment.
    n_mixtures : dict
        How many mixtures there are.

    Returns
    -------
    librispeech_folder : Path
        The speech, in LibriSpeech's layout.
    metadata_folder : Path
        The mixtures, as LibriMix metadata.

    Raises
    ------
    ImportError
        If the extra ``[demo]`` is not installed.
    DataError
        If the folder holds anything else, or the sizes are impossible.
    """
    folder = Path(folder)
    sizes = {
        "n_speakers": dict(n_speakers),
        "n_utterances": dict(n_utterances),
        "n_mixtures": dict(n_mixtures),
    }
    _check_sizes(**sizes)
    arguments = {"seed": seed, **sizes}
    if not _is_finished(folder, arguments):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=".demo_corpus-") as parent:
            unfinished = Path(parent) / "corpus"
            _make(unfinished, **arguments)
            (unfinished / DESCRIPTION).write_text(json.dumps(arguments))
            os.replace(unfinished, folder)
    return _folders(folder)


def prepare_demo_corpus(corpus_folder, output_folder, **preparation):
    """Makes the corpus with its default sizes, then prepares it.

    Arguments
    ---------
    corpus_folder : str or Path
        Folder for the corpus; see `make_demo_corpus`.
    output_folder : str or Path
        Folder for mixtures and manifests; see `prepare_librimix`.
    **preparation : dict
        Further arguments of `prepare_librimix`.

    Returns
    -------
    Prepared
        See `prepare_librimix`.
    """
    librispeech_folder, metadata_folder = make_demo_corpus(corpus_folder)
    return prepare_librimix(
        output_folder,
        librispeech_folder=librispeech_folder,
        librimix_metadata=metadata_folder,
        **preparation,
    )


def _check_sizes(n_speakers, n_utterances, n_mixtures):
    for name, sizes in (
        ("n_speakers", n_speakers),
        ("n_utterances", n_utterances),
        ("n_mixtures", n_mixtures),
    ):
        if sizes.keys() != DEMO_SUBSETS.keys():
            raise DataError(f"{name}: give a number for each of {list(DEMO_SUBSETS)}")
    if sum(n_speakers.values()) > len(VOICES):
        raise DataError(f"n_speakers: there are {len(VOICES)} voices for all subsets")
    if min(n_utterances.values()) < 2:
        raise DataError("n_utterances: a speaker needs 2, one of them as enrollment")
    if _count_utterances(n_speakers, n_utterances) > N_SENTENCES:
        raise DataError(f"n_utterances: there are {N_SENTENCES} sentences for all")


def _is_finished(folder, arguments):
    """Tells a finished corpus from a folder that is free; anything else is an error."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    description = folder / DESCRIPTION
    if description.exists() and json.loads(description.read_text()) == arguments:
        return True
    raise DataError(
        f"{folder}: holds something else than the demo corpus of these arguments "
        f"({arguments}); give another folder, or delete this one"
    )


def _make(folder, seed, n_speakers, n_utterances, n_mixtures):
    librispeech_folder, metadata_folder = _folders(folder)
    rng = random.Random(seed)
    n_files = _count_utterances(n_speakers, n_utterances)
    sentences = iter(draw_sentences(n_files, rng))
    speakers = iter(_draw_speakers(sum(n_speakers.values()), rng))
    with open_espeak(seed) as espeak, tqdm(total=n_files, desc="speaking") as progress:
        for part, subset in DEMO_SUBSETS.items():
            for speaker in islice(speakers, n_speakers[part]):
                texts = list(islice(sentences, n_utterances[part]))
                _write_speaker(librispeech_folder / subset, espeak, speaker, texts)
                progress.update(len(texts))
    for part, subset in DEMO_SUBSETS.items():
        csv_path = metadata_folder / f"libri2mix_{subset}.csv"
        write_mixing_metadata(
            librispeech_folder, subset, csv_path, n_mixtures[part], seed
        )


def _draw_speakers(n_speakers, rng):
    return [
        Speaker(
            name=str(1001 + number),
            voice=f"{rng.choice(ACCENTS)}+{variant}",
            words_per_minute=rng.choice(WORDS_PER_MINUTE),
            pitch=rng.choice(PITCHES),
        )
        for number, variant in enumerate(rng.sample(VOICES, n_speakers))
    ]


def _write_speaker(subset_folder, espeak, speaker, texts):
    name, *voice = speaker
    chapter = subset_folder / name / "1"
    chapter.mkdir(parents=True)
    for number, text in enumerate(texts):
        samples = espeak.speak(text, *voice)
        samples = resample_poly(samples, LIBRISPEECH_RATE, espeak.rate)
        samples *= PEAK / np.abs(samples).max()
        path = chapter / f"{name}-1-{number:04}.flac"
        soundfile.write(path, samples, LIBRISPEECH_RATE, subtype="PCM_16")
    lines = (
        f"{name}-1-{number:04} {text.removesuffix('.').upper()}\n"
        for number, text in enumerate(texts)
    )
    transcripts = chapter / f"{name}-1.trans.txt"
    transcripts.write_text("".join(lines), encoding="utf-8")


def _count_utterances(n_speakers, n_utterances):
    return sum(n_speakers[part] * n_utterances[part] for part in DEMO_SUBSETS)


def _folders(folder):
    return folder / "LibriSpeech", folder / "metadata" / "Libri2Mix"
