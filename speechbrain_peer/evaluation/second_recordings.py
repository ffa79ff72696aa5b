"""What a second recording is worth that is better or worse than the first.

It is made of the same target, so that it is known in what the two differ: another
interferer, a louder or a quieter one, delays. Recordings go through what
`tse extract --together` does with them.
"""

import numpy as np
from tqdm import tqdm

from speechbrain_peer.evaluation.metrics import si_sdr
from speechbrain_peer.evaluation.microphones import (
    BEST,
    LENT,
    MEAN,
    PEERS,
    TOGETHER,
    extract_all_ways,
)
from speechbrain_peer.evaluation.second_takes import draw_takes
from speechbrain_peer.evaluation.trial_scores import mean_over_speakers
from speechbrain_peer.peer_learning.exchange import check_lends

NAME = "second_recordings"  # of the files with the tables
ALONE = "first alone"
WAYS = {
    ALONE: ALONE,
    BEST: "best alone (oracle)",
    MEAN: "mean of aligned estimates",
    LENT: "first, lent the others' mean",
    PEERS: "by agreement and quality",
    TOGETHER: TOGETHER,
}
"""Which of all ways are scored, and what the table calls them."""
LATER = 0.005, 0.00025
"""Seconds by which a second recording hears the interferer later, and the target."""


def record(trial, takes, sample_rate):
    """Makes the recordings of one trial.

    Arguments
    ---------
    trial : Trial
    takes : np.ndarray
        Mixtures of its target, its own first, (4, time); see `draw_takes`.
    sample_rate : int
        In Hz.

    Returns
    -------
    dict
        By what the second recording has: mixtures and targets, each
        (recordings, time), the first recording's first.

    Example
    -------
    >>> from speechbrain_peer.evaluation.trials import Trial
    >>> ones = np.ones(4, dtype="float32")
    >>> trial = Trial("a", ("ann", "bob"), ones, (2 * ones,), 0 * ones, ones)
    >>> takes = np.stack([3 * ones, 5 * ones, 6 * ones, 7 * ones])
    >>> mixtures, _ = record(trial, takes, 8000)["another interferer, 6 dB lower"]
    >>> mixtures[:, 0].round(1).tolist()
    [3.0, 3.0]
    """
    target, mixture = trial.target, trial.mixture
    own, other = mixture - target, takes[1] - target
    interferer_later, target_later = (round(by * sample_rate) for by in LATER)
    moved = _delay(target, target_later)

    def both(first, second):
        return np.stack([target + first, target + second]), np.stack([target] * 2)

    four = takes, np.stack([target] * len(takes))
    return {
        "another interferer": both(own, other),
        "another interferer in each of 3 more": four,
        "another interferer, 6 dB lower": both(own, _lower(other, 6)),
        "the same interferer, 6 dB lower": both(own, _lower(own, 6)),
        "the same interferer, 10 dB lower": both(own, _lower(own, 10)),
        "the same interferer, 10 dB louder": both(_lower(own, 10), own),
        "the same interferer, 5 ms later": both(own, _delay(own, interferer_later)),
        "target 0.25 ms later, interferer 5 ms": (
            np.stack([mixture, moved + _delay(own, interferer_later)]),
            np.stack([target, moved]),
        ),
    }


def evaluate(model, trials, seed=0):
    """Scores all kinds of second recordings, in all ways.

    Arguments
    ---------
    model : TargetSpeechExtraction
        That was trained with peer learning.
    trials : list of Trial
    seed : int
        Of the other interferers.

    Returns
    -------
    dict
        `recordings`: {what the second has: {way: [mean, standard error]}} of the
        SI-SDR improvement over the first recording in dB, and `items`, a row for each.

    Raises
    ------
    TooFewSpeakers
        If there are no three further interferers for each target.
    ValueError
        If the model was trained without peers.
    """
    check_lends(model.mods)
    items = []
    drawn = draw_takes(trials, 4, seed)
    for trial, takes in tqdm(drawn, "Recordings", total=len(trials), leave=False):
        made = record(trial, takes, model.hparams.sample_rate)
        for second, (mixtures, targets) in made.items():
            scores = _score(model, mixtures, targets, trial.enrollment)
            head = {"second_recording": second, "item": trial.id}
            items.append({**head, "speaker": trial.speakers[0], **scores})
    return {"n_items": len(trials), "recordings": _summary(items), "items": items}


def markdown(result):
    """The table, of means and standard errors over speakers."""
    lines = [
        f"SI-SDRi over the first recording (dB, ± standard error over speakers), "
        f"{result['n_items']} targets:",
        "",
        f"| the second recording has | {' | '.join(WAYS.values())} |",
        "|---" + "|---:" * len(WAYS) + "|",
    ]
    for second, ways in result["recordings"].items():
        cells = (f"{mean:.2f} ± {error:.2f}" for mean, error in ways.values())
        lines.append(f"| {second} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _score(model, mixtures, targets, enrollment):
    """Improvements over the first mixture, by the names of the table."""
    count = len(mixtures)
    alone, together = extract_all_ways(model, mixtures, enrollment, [count])
    before = si_sdr(mixtures[0], targets[0])
    qualities = [si_sdr(*pair) - before for pair in zip(alone, targets, strict=True)]
    found = {ALONE: qualities[0], BEST: max(qualities)}
    for (_, way), estimate in together.items():
        found[way] = si_sdr(estimate, targets[0]) - before
    return {name: found[way] for way, name in WAYS.items()}


def _summary(items):
    order = list(dict.fromkeys(row["second_recording"] for row in items))
    summary = {}
    for second in order:
        rows = [row for row in items if row["second_recording"] == second]
        speakers = [row["speaker"] for row in rows]
        summary[second] = {
            way: list(mean_over_speakers([row[way] for row in rows], speakers))
            for way in WAYS.values()
        }
    return summary


def _lower(signal, decibels):
    return signal * np.float32(10 ** (-decibels / 20))


def _delay(signal, samples):
    """The same, some samples later, of the same length."""
    return np.pad(signal, (samples, 0))[: len(signal)]
