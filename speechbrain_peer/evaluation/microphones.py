"""What the microphones of one room are worth, and ways to use them.

Every trial is put into a simulated room, each talker in a place. The target is the
direct sound with early reflections, at the first microphone, which is the reference.
"""

import math
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_peer.data.peers import item_rng
from speechbrain_peer.data.rooms import RoomFolder, early, reverberate
from speechbrain_peer.evaluation.metrics import si_sdr, why_no_pesq
from speechbrain_peer.evaluation.scoring import ScoringPool
from speechbrain_peer.evaluation.trial_scores import mean_over_speakers
from speechbrain_peer.inference.beamforming import beamform
from speechbrain_peer.inference.together import ChunksTogether, line_up
from speechbrain_peer.peer_learning.exchange import extract_together
from speechbrain_peer.peer_learning.predictors import can_lend
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.processes import available_cpus
from speechbrain_peer.utils.signal import set_level

NAME = "microphones"  # of the files with the tables
MOST = 4

BEST = "best microphone alone (oracle)"
MEAN = "mean of aligned estimates"
MVDR = "Souden MVDR from the model's masks"
LENT = "first microphone, lent the others' mean"
PEERS = "peer learning, by agreement and quality"
TOGETHER = "`tse extract --together`"

TABLES = {
    "si_sdri": "SI-SDRi over the first microphone's mixture (dB)",
    "pesq": "PESQ",
    "stoi": "STOI",
    "wrong_speaker": "share of outputs that are the wrong speaker",
}


class Heard(NamedTuple):
    """A trial in a room; signals are float32, (microphones, time)."""

    mixtures: np.ndarray
    """What the microphones hear."""
    targets: np.ndarray
    """Of it, the talker's direct sound with early reflections."""
    interferers: list
    """Of it, each of the others, with all reverberation."""


def hear(trial, rooms, seed=0):
    """Puts a trial into a room.

    Arguments
    ---------
    trial : Trial
        Its noise, if it has any, has a place, too.
    rooms : RoomFolder
    seed : int
        Seeds the draw, together with the trial's ID.

    Returns
    -------
    Heard
    """
    others = [*trial.interferers, *([trial.noise] if trial.noise.any() else [])]
    placement = rooms.draw(1 + len(others), item_rng(seed, 0, trial.id))
    response, *responses = rooms.responses(placement)
    target = reverberate(trial.target, early(response, rooms.sample_rate))
    heard = [reverberate(x, h).T for x, h in zip(others, responses, strict=True)]
    mixtures = reverberate(trial.target, response).T + sum(heard)
    return Heard(mixtures, target.T, heard[: len(trial.interferers)])


@torch.inference_mode()
def extract_all_ways(model, mixtures, enrollment, counts=None):
    """Extracts from the microphones of a room, in every way.

    Arguments
    ---------
    model : TargetSpeechExtraction
    mixtures : np.ndarray
        (microphones, time).
    enrollment : np.ndarray
        (time,).
    counts : iterable of int or None
        How many microphones to take together; None: from two on to all.

    Returns
    -------
    alone : np.ndarray
        An estimate for each microphone, (microphones, time).
    together : dict
        One estimate for each number of microphones and each way, (time,), by
        (number, way).
    """
    embedding = model.encode_speaker(torch.from_numpy(enrollment)[None])
    alone = [model.extract_batch(x[None], embeddings=embedding)[0] for x in mixtures]
    alone = torch.stack(alone).cpu().numpy()
    estimates = {}
    for count in range(2, len(mixtures) + 1) if counts is None else counts:
        chunk = mixtures[:count]
        found = _extract_together(model, chunk, alone[:count], embedding)
        estimates |= {(count, way): estimate for way, estimate in found.items()}
    return alone, estimates


def _extract_together(model, mixtures, alone, embedding):
    """One estimate of all microphones in each way, (time,), by the way."""
    rate, count = model.hparams.sample_rate, len(mixtures)
    everywhere = [(-math.inf, math.inf)] * count
    lending = ChunksTogether(model.mods, embedding, rate, everywhere, model.level)
    delays = lending.find_delays(alone)
    estimates = {
        MEAN: line_up(alone, delays).mean(axis=0),
        MVDR: beamform(mixtures, alone, rate)[0],
    }
    if can_lend(model.mods):
        moved = torch.from_numpy(line_up(mixtures, delays)).to(model.device)
        lent = extract_together(model.mods, moved[:, None], embedding)[0]
        by_quality = torch.from_numpy(lending.lend(mixtures.T, delays).T).to(moved)
        joined = torch.from_numpy(lending.join(mixtures.T, alone).T).to(moved)
        found = {LENT: lent.float(), PEERS: by_quality, TOGETHER: joined}
        for way, estimate in found.items():
            leveled = set_level(estimate, moved[:1], level=model.level)
            estimates[way] = leveled[0].cpu().numpy()
    return estimates


def evaluate(model, trials, rooms_folder, seed=0, n_processes=None):
    """Scores every microphone alone, and two to four of them in every way.

    Arguments
    ---------
    model : TargetSpeechExtraction
    trials : list of Trial
    rooms_folder : str or Path
        Rooms with several microphones, as `tse rooms` makes them.
    seed : int
        Of the rooms and places.
    n_processes : int or None
        That score; None: as many as there are CPUs; 0: none but this one.

    Returns
    -------
    dict
        `ways`: {way: {number of microphones: {metric: [mean, standard error]}}}, and
        `items`: a row for each trial, number and way.

    Raises
    ------
    DataError
        If the rooms have too few places or microphones.
    """
    rate = model.hparams.sample_rate
    rooms = RoomFolder(rooms_folder, rate)
    n_processes = available_cpus() if n_processes is None else n_processes
    before, speakers = {}, {trial.id: trial.speakers[0] for trial in trials}
    with ScoringPool(n_processes, rate) as pool:
        for trial in tqdm(trials, desc="Microphones", leave=False):
            heard = hear(trial, rooms, seed)
            mixtures = heard.mixtures[:MOST]
            if len(mixtures) < 2:
                raise DataError(
                    f"{rooms_folder}: has rooms with one microphone; make others with "
                    "`tse rooms --n_microphones 4`"
                )
            before[trial.id] = si_sdr(mixtures[0], heard.targets[0])
            alone, together = extract_all_ways(model, mixtures, trial.enrollment)

            def submit(key, estimate, of=0, trial=trial, heard=heard):
                others = [x[of] for x in heard.interferers]
                pool.submit((trial.id, *key), estimate, heard.targets[of], None, others)

            qualities = map(si_sdr, alone, heard.targets)
            qualities = np.nan_to_num(list(qualities), nan=-math.inf)
            for number, estimate in enumerate(alone):
                submit((1, _alone(number)), estimate, of=number)
            for count in range(2, len(mixtures) + 1):
                best = int(qualities[:count].argmax())
                submit((count, BEST), alone[best], of=best)
            for key, estimate in together.items():
                submit(key, estimate)
        scores = pool.results()
    items = [
        {
            "item": item,
            "speaker": speakers[item],
            "microphones": count,
            "way": way,
            "si_sdri": score["si_sdr"] - before[item],
            **{name: score[name] for name in ("pesq", "stoi", "wrong_speaker")},
        }
        for (item, count, way), score in scores.items()
    ]
    return {
        "n_items": len(trials),
        "ways": _summary(items),
        "no_pesq": why_no_pesq(rate),
        "items": items,
    }


def markdown(result):
    """Tables of means and standard errors over speakers, one for each metric."""
    ways = result["ways"]
    counts = sorted({count for row in ways.values() for count in row})
    header = "| | " + " | ".join(map(str, counts)) + " |\n|---" + "|---:" * len(counts)
    text = [
        f"{result['n_items']} mixtures; columns: microphones; ± standard error over "
        "speakers."
    ]
    for metric, title in TABLES.items():
        if metric == "pesq" and result["no_pesq"]:
            text.append(result["no_pesq"])
            continue
        rows = [f"{title}:", "", f"{header}|"]
        for way, row in ways.items():
            cells = (_cell(metric, row.get(count)) for count in counts)
            rows.append(f"| {way} | {' | '.join(cells)} |")
        text.append("\n".join(rows))
    return "\n\n".join(text)


def _cell(metric, row):
    if row is None:
        return ""
    mean, error = row[metric]
    if metric == "wrong_speaker":
        return f"{100 * mean:.1f} ± {100 * error:.1f} %"
    return f"{mean:.2f} ± {error:.2f}"


def _alone(number):
    return f"microphone {number + 1} alone"


def _summary(items):
    """Means and standard errors, {way: {count: {metric: [mean, error]}}}."""
    ways = {}
    order = [row["way"] for row in items]

    def key(row):
        return order.index(row["way"]), row["microphones"]

    for (_, count), rows in groupby(sorted(items, key=key), key):
        rows = list(rows)
        speakers = [row["speaker"] for row in rows]
        ways.setdefault(rows[0]["way"], {})[count] = {
            metric: list(mean_over_speakers([row[metric] for row in rows], speakers))
            for metric in TABLES
        }
    return ways
