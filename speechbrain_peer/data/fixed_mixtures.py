"""Fixed dev and test mixtures of utterances, by LibriMix's loudness rule.

Kept free of torch and SpeechBrain: every rendering process imports this file.
"""

import csv
import math
import random
from functools import partial
from itertools import cycle, islice
from typing import NamedTuple

from tqdm import tqdm

from speechbrain_peer.data.layout import DATA_ROOT
from speechbrain_peer.data.librimix import fit_lengths
from speechbrain_peer.data.mixing_metadata import draw_gains
from speechbrain_peer.data.rendered import (
    check_record,
    fingerprint,
    finished_mixtures,
    write_mixture,
    write_record,
)
from speechbrain_peer.utils.any_audio import read_at_rate
from speechbrain_peer.utils.files import DataError, remove_unfinished, whole_file
from speechbrain_peer.utils.processes import available_cpus, map_in_processes

COLUMNS = ("path", "start", "length", "rate")


class FixedMixture(NamedTuple):
    """Two utterances to mix."""

    mixture_id: str
    """Their names, joined by "_"."""
    sources: tuple
    """The target's `Utterance` and the interferer's."""


def draw_mixtures(utterances, n_mixtures, seed):
    """Draws mixtures of two speakers; every target has another utterance in them.

    All who have two utterances are targets about equally often, and all speakers
    interferers. No two utterances meet twice.

    Arguments
    ---------
    utterances : list of speech_table.Utterance
        Those of a subset.
    n_mixtures : int
        How many, 2 or more.
    seed : int
        The mixtures are a function of it and of the utterances' names.

    Returns
    -------
    list of FixedMixture

    Raises
    ------
    DataError
        If there are not so many.

    Example
    -------
    >>> from speechbrain_peer.data.speech_table import Utterance
    >>> utterances = [
    ...     Utterance(name, name[:3], name, 0, 16000, 16000, -30.0)
    ...     for name in ("ann-1", "ann-2", "bob-1", "cid-1")
    ... ]
    >>> mixtures = draw_mixtures(utterances, n_mixtures=2, seed=0)
    >>> sorted(mixture.sources[0].utterance for mixture in mixtures)
    ['ann-1', 'ann-2']
    >>> sorted(mixture.sources[1].utterance for mixture in mixtures)
    ['bob-1', 'cid-1']
    """
    rng = random.Random(f"{seed} mixtures")
    by_speaker = {}
    for utterance in sorted(utterances, key=lambda row: row.utterance):
        by_speaker.setdefault(utterance.speaker, []).append(utterance)
    for own in by_speaker.values():
        rng.shuffle(own)
    targets = [name for name, own in by_speaker.items() if len(own) > 1]
    rng.shuffle(targets)
    # Each of them twice at least: what one mixture holds enrolls for the other.
    targets = targets[: max(1, n_mixtures // 2)]
    turns = {name: cycle(by_speaker[name]) for name in targets}
    drawn, partners = [], _Partners(by_speaker, rng)
    waiting = list(targets)
    while len(drawn) < n_mixtures and waiting:
        speaker = waiting.pop(0)
        for target in islice(turns[speaker], len(by_speaker[speaker])):
            other = partners.find(target)
            if other is not None:
                drawn.append((target, other))
                waiting.append(speaker)
                break
    if len(drawn) < n_mixtures or n_mixtures < 2:
        raise DataError(
            f"{len(utterances)} utterances of {len(by_speaker)} speakers make "
            f"{len(drawn)} mixtures, not {n_mixtures}; ask for fewer, and for 2 at "
            "least, or add recordings"
        )
    return [
        FixedMixture("_".join(source.utterance for source in pair), pair)
        for pair in drawn
    ]


class _Partners:
    """Finds interferers, each speaker and utterance about equally often."""

    def __init__(self, by_speaker, rng):
        self.by_speaker, self.rng = by_speaker, rng
        self.uses, self.met = {}, set()

    def find(self, target):
        """An utterance of somebody else that the target has not met, or None."""
        for speaker in self._least_used(self.by_speaker):
            if speaker == target.speaker:
                continue
            for other in self._least_used(self.by_speaker[speaker]):
                pair = frozenset((target.utterance, other.utterance))
                if pair not in self.met:
                    self.met.add(pair)
                    for used in (speaker, other):
                        self.uses[used] = self.uses.get(used, 0) + 1
                    return other
        return None

    def _least_used(self, candidates):
        order = [(self.uses.get(x, 0), self.rng.random(), x) for x in candidates]
        return (x for _, _, x in sorted(order, key=lambda item: item[:2]))


def count_possible(utterances):
    """How many mixtures `draw_mixtures` can draw, if each target serves.

    Arguments
    ---------
    utterances : list of Utterance
        Those of a subset.

    Returns
    -------
    int
        Pairs of utterances of two speakers, one of whom has two or more.
    """
    counts = {}
    for utterance in utterances:
        counts[utterance.speaker] = counts.get(utterance.speaker, 0) + 1
    singles = sum(count == 1 for count in counts.values())
    same = sum(math.comb(count, 2) for count in counts.values())
    return math.comb(len(utterances), 2) - same - math.comb(singles, 2)


def check_mixtures(mixtures, folder, seed):
    """Raises DataError if a folder was rendered from others.

    Arguments
    ---------
    mixtures : list of FixedMixture
        What it is to hold.
    folder : str or Path
        The subset's folder; it may be empty or absent.
    seed : int
        Of the gains.
    """
    cure = (
        "other recordings, speakers or settings; give another folder (-o), or delete "
        "this one to render it anew"
    )
    check_record(folder, _fingerprint(mixtures, seed), cure)


def render_mixtures(mixtures, folder, data_root, sample_rate, seed, n_processes=None):
    """Renders mix_clean, s1 and s2; mixtures that are there stay.

    Arguments
    ---------
    mixtures : list of FixedMixture
        See `check_mixtures`.
    folder : str or Path
        The subset's folder.
    data_root : str
        What "{data_root}" in the paths stands for.
    sample_rate : int
        In Hz.
    seed : int
        Of the gains.
    n_processes : int, optional
        As many as CPUs and work allow if None.
    """
    write_record(folder, _fingerprint(mixtures, seed))
    remove_unfinished(folder)
    done = finished_mixtures(folder, n_sources=2)
    # Plain values: what an Utterance is, is defined where SpeechBrain is imported.
    todo = [
        (
            mixture.mixture_id,
            [
                (source.path.replace(DATA_ROOT, str(data_root), 1), *source[3:5])
                for source in mixture.sources
            ],
        )
        for mixture in mixtures
        if mixture.mixture_id not in done
    ]
    render = partial(_render, folder=str(folder), sample_rate=sample_rate, seed=seed)
    n_processes = n_processes or min(available_cpus(), math.ceil(len(todo) / 50)) or 1
    rendered = map_in_processes(render, todo, n_processes, chunk=8)
    for _ in tqdm(rendered, f"Rendering {folder}", len(todo), unit="mix"):
        pass


def write_mixtures(path, mixtures):
    """Writes which pieces of which files the mixtures are made of, as a table."""
    header = [f"source_{k}_{name}" for k in (1, 2) for name in COLUMNS]
    with (
        whole_file(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["mixture_ID", *header])
        writer.writerows(
            [mixture.mixture_id, *_pieces(mixture)] for mixture in mixtures
        )


def _render(mixture, folder, sample_rate, seed):
    """Renders and writes one mixture, given by name and pieces, with its sources."""
    mixture_id, pieces = mixture
    sources = [read_at_rate(*piece, sample_rate) for piece in pieces]
    rng = random.Random(f"{seed} {mixture_id}")
    gains = draw_gains(sources, rng, sample_rate)
    scaled = [source * gain for source, gain in zip(sources, gains, strict=True)]
    write_mixture(folder, mixture_id, fit_lengths(scaled, "min"), sample_rate)


def _fingerprint(mixtures, seed):
    heard = [[mixture.mixture_id, *_pieces(mixture), seed] for mixture in mixtures]
    return fingerprint(heard)


def _pieces(mixture):
    return [getattr(source, name) for source in mixture.sources for name in COLUMNS]
