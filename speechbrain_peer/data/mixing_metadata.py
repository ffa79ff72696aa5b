"""Writes LibriMix mixing metadata for any folder in LibriSpeech's layout.

The tables say which two utterances make a mixture and how loud each of them is, by
the rule of LibriMix's ``create_librimix_metadata.py``. There is no noise in them: only
clean mixtures can be rendered.
"""

import csv
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyloudnorm
from tqdm import tqdm

from speechbrain_peer.data.layout import speaker_id
from speechbrain_peer.data.librimix import LIBRISPEECH_RATE
from speechbrain_peer.utils.audio import AudioError, read_audio
from speechbrain_peer.utils.files import DataError, whole_file

LOUDNESS_RANGE = (-33.0, -25.0)  # LUFS
MAX_AMPLITUDE = 0.9
COLUMNS = (
    "mixture_ID",
    "source_1_path",
    "source_1_gain",
    "source_2_path",
    "source_2_gain",
    "noise_path",
    "noise_gain",
)


def write_mixing_metadata(librispeech_folder, subset, csv_path, n_mixtures, seed):
    """Draws mixtures of two speakers of a subset and writes them as LibriMix metadata.

    Arguments
    ---------
    librispeech_folder : str or Path
        Folder that holds ``<subset>/<speaker>/<chapter>/<utterance>.flac`` (16 kHz).
    subset : str
        Name of the subset, such as ``train-clean-100``.
    csv_path : str or Path
        The table to write; its folder is made if need be.
    n_mixtures : int
        Number of mixtures.
    seed : int
        The table is a function of the seed, the subset's name and its files.

    Raises
    ------
    DataError
        If the subset holds no FLAC file, an utterance cannot be used, or there are too
        few for so many mixtures.
    """
    librispeech_folder, csv_path = Path(librispeech_folder), Path(csv_path)
    utterances = sorted((librispeech_folder / subset).glob("*/*/*.flac"))
    if not utterances:
        raise DataError(
            f"{librispeech_folder / subset}: no <speaker>/<chapter>/<utterance>.flac "
            "there; give the folder that holds LibriSpeech's subsets"
        )
    rng = random.Random(f"{seed} {subset}")
    rows = []
    pairs = draw_pairs(utterances, n_mixtures, rng)
    for pair in tqdm(pairs, desc=f"{subset}: mixtures", unit="mixture"):
        gains = draw_gains([_read_utterance(path) for path in pair], rng)
        row = ["_".join(path.stem for path in pair)]
        for path, gain in zip(pair, gains, strict=True):
            row += [path.relative_to(librispeech_folder).as_posix(), gain]
        rows.append([*row, "none/silence.wav", 0.0])
    _write_csv(csv_path, rows)


def draw_pairs(utterances, n_pairs, rng):
    """Draws pairs of utterances by different speakers.

    In each round every utterance is used at most once, so all of them are used about
    equally often, as first and as second speaker. No pair comes twice.

    Arguments
    ---------
    utterances : list of Path
        Files named ``<speaker>-<chapter>-<utterance>.flac``.
    n_pairs : int
        Number of pairs.
    rng : random.Random
        Source of randomness.

    Returns
    -------
    list of tuple of Path
        The pairs.

    Raises
    ------
    DataError
        If there are not so many different pairs.

    Example
    -------
    >>> utterances = [Path(f"{speaker}-1-0.flac") for speaker in (7, 8, 9)]
    >>> pairs = draw_pairs(utterances, 3, random.Random(0))
    >>> sorted(sorted(path.stem for path in pair) for pair in pairs)
    [['7-1-0', '8-1-0'], ['7-1-0', '9-1-0'], ['8-1-0', '9-1-0']]
    """
    _check_enough_pairs(utterances, n_pairs)
    pairs, seen = [], set()
    while len(pairs) < n_pairs:
        order = rng.sample(utterances, len(utterances))
        for pair in zip(order[::2], order[1::2], strict=False):
            first, second = (speaker_id(path.stem) for path in pair)
            if first != second and frozenset(pair) not in seen:
                seen.add(frozenset(pair))
                pairs.append(pair)
    return pairs[:n_pairs]


def draw_gains(sources, rng, sample_rate=LIBRISPEECH_RATE):
    """Draws the gains of the sources of a mixture by LibriMix's loudness rule.

    Each source is brought to a loudness drawn from -33 to -25 LUFS, or to a peak of 0.9
    if it would clip there. All are then made softer alike if their sum (of full length,
    as in LibriMix's mode `max`) would exceed 0.9.

    Arguments
    ---------
    sources : list of np.ndarray
        Waveforms (time,), of any lengths.
    rng : random.Random
        Source of randomness.
    sample_rate : int
        Theirs, in Hz.

    Returns
    -------
    list of float
        The factor of each source.
    """
    meter = pyloudnorm.Meter(sample_rate)
    length = max(len(source) for source in sources)
    sources = [np.pad(source, (0, length - len(source))) for source in sources]
    gains = []
    for source in sources:
        wanted = rng.uniform(*LOUDNESS_RANGE)
        gain = 10 ** ((wanted - meter.integrated_loudness(source)) / 20)
        peak = np.abs(source).max()
        gains.append(gain if gain * peak < 1 else MAX_AMPLITUDE / peak)
    peak = np.abs(np.dot(gains, sources)).max()
    limiter = min(1.0, MAX_AMPLITUDE / peak)
    return [float(gain * limiter) for gain in gains]


def _check_enough_pairs(utterances, n_pairs):
    per_speaker = Counter(speaker_id(path.stem) for path in utterances).values()
    n_possible = (len(utterances) ** 2 - sum(n**2 for n in per_speaker)) // 2
    if n_pairs > n_possible:
        raise DataError(
            f"{len(utterances)} utterances of {len(per_speaker)} speakers make "
            f"{n_possible} different mixtures of two speakers, not {n_pairs}: "
            "ask for fewer mixtures or add utterances"
        )


def _read_utterance(path):
    samples = read_audio(path, sample_rate=LIBRISPEECH_RATE)
    # pyloudnorm takes blocks of 0.4 s and leaves out those below -70 LUFS.
    if len(samples) < 0.4 * LIBRISPEECH_RATE or np.abs(samples).max() < 1e-3:
        raise AudioError(
            f"{path}: is silent or shorter than 0.4 s, so it has no loudness; remove it"
        )
    return samples


def _write_csv(path, rows):
    with (
        whole_file(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
