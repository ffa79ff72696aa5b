"""LibriSpeech's utterances as they are, for mixtures that are drawn while training.

Kept free of torch and SpeechBrain: every process that measures imports this file.
"""

import math
import os
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyloudnorm
from tqdm import tqdm

from speechbrain_peer.data.layout import speaker_id
from speechbrain_peer.data.librimix import LIBRISPEECH_RATE
from speechbrain_peer.data.shards import keep_results, read_shards
from speechbrain_peer.utils.audio import AudioError, read_audio
from speechbrain_peer.utils.processes import available_cpus, map_in_processes


def measure_utterances(librispeech_folder, paths, shards, n_processes=None):
    """Measures how long and how loud utterances are.

    What has been measured is kept, so an interrupted call goes on where it stopped, and
    another one has nothing to do.

    Arguments
    ---------
    librispeech_folder : str or Path
        The folder that holds train-clean-100, dev-clean ...
    paths : iterable of str
        Files in it.
    shards : str or Path
        Folder for what has been measured.
    n_processes : int, optional
        As many as CPUs and work allow if None.

    Returns
    -------
    list of tuple
        The fields of an `Utterance`, sorted by path.

    Raises
    ------
    AudioError
        If one cannot be read, or has no loudness.
    """
    paths, measured = sorted(set(paths)), read_shards(shards)
    todo = [path for path in paths if path not in measured]
    # Starting a process takes as long as measuring some 100 utterances.
    n_processes = n_processes or min(available_cpus(), math.ceil(len(todo) / 100)) or 1
    measure = partial(_measure, str(librispeech_folder))
    results = map_in_processes(measure, todo, n_processes, chunk=8)
    progress = tqdm(results, "Measuring loudness", len(todo), unit="file", delay=1)
    with keep_results(shards) as keep:
        for path, result in zip(todo, progress, strict=True):
            measured[path] = result
            keep(path, result)
    folder = Path(librispeech_folder).resolve()
    rows = []
    for path in paths:
        utterance, (length, loudness) = Path(path).stem, measured[path]
        names = str(folder / path), speaker_id(utterance), utterance
        rows.append((*names, 0, length, LIBRISPEECH_RATE, loudness))
    return rows


def _measure(librispeech_folder, path):
    file = os.path.join(librispeech_folder, path)
    samples = read_audio(file, sample_rate=LIBRISPEECH_RATE)
    # Loudness is that of blocks of 0.4 s, without those below -70 LUFS.
    loudness = -math.inf
    if len(samples) >= 0.4 * LIBRISPEECH_RATE:
        loudness = float(_meter().integrated_loudness(samples.astype(np.float64)))
    if not math.isfinite(loudness):
        raise AudioError(
            f"{file}: is silent or shorter than 0.4 s, so it has no loudness; remove "
            "the mixtures with it"
        )
    return [len(samples), round(loudness, 3)]


@cache
def _meter():
    return pyloudnorm.Meter(LIBRISPEECH_RATE)
