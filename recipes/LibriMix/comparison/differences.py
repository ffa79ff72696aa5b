"""Systems against a control, item by item: what peer learning and lending change.

A test set has many mixtures but few talkers, and mixtures of one talker are not
independent: how far a difference can be trusted is told by its spread over talkers.
"""

import csv
import math
import statistics
from typing import NamedTuple

from recipes.LibriMix.comparison.systems import LENDING, differing_settings
from recipes.LibriMix.comparison.tables import markdown_table, number
from speechbrain_peer.data.layout import speaker_id
from speechbrain_peer.evaluation.reports import SCORES_FILE
from speechbrain_peer.utils.files import DataError

CONTROLS = {"none": "the method", "itself": "lending"}
"""Exchanges to compare with, and what the difference is the effect of."""
ADDITIONS = {
    "peer_interferer": ("any", "the peers' interferers"),
    "loss.mutual_weight": (0.0, "mutual learning"),
    "loss.imitation_weight": (0.0, "imitation"),
}
"""Further settings: that of a control, and what another one is the effect of."""
OF_THE_METHOD = ("exchange", "loss.", "peer_learning.", "predictor2.", *ADDITIONS)
"""How the settings begin that peer learning adds to a control."""


class Difference(NamedTuple):
    """Of a system to its control, on the seeds that both have."""

    system: str
    control: str
    effect: str
    """What it is the effect of."""
    seeds: list[int]
    speakers: int
    silent: int
    """Pairs of outputs left out, as one of them is silent and has no score."""
    si_sdri: float
    """Mean over items and seeds, in dB."""
    standard_error: float | None
    """Of the mean over target speakers, in dB; None with one speaker."""
    speakers_ahead: int
    """Target speakers with whom the system has the higher mean."""


def differences(group):
    """Compares the systems with peer learning with those that lack a part of it.

    Arguments
    ---------
    group : Group

    Returns
    -------
    list of Difference
        Only of systems with the same backbone and kind of peers, and of runs that have
        kept their `test_scores.csv`.

    Raises
    ------
    DataError
        If a file cannot be read, or runs have been tested on other items.
    """
    found = []
    for control in group.systems:
        if control.first.peers == "off":
            continue
        for system in group.systems:
            effect = _effect(system.first, control.first)
            if effect is not None:
                found += _compare(system, control, effect)
    return found


def difference_table(rows):
    """Writes them.

    Arguments
    ---------
    rows : list of Difference

    Returns
    -------
    str
        Markdown; below the table is said what has been left out.
    """
    headings = (
        "system minus control",
        "effect of",
        "seeds",
        "SI-SDRi (dB)",
        "standard error over target speakers (dB)",
        "speakers ahead",
    )
    cells = [
        (
            f"{row.system} minus {row.control}",
            row.effect,
            ", ".join(map(str, row.seeds)),
            f"{row.si_sdri:+.2f}",
            number(row.standard_error, 2),
            f"{row.speakers_ahead} of {row.speakers}",
        )
        for row in rows
    ]
    remarks = [
        f"{row.system} minus {row.control}: pairs of outputs left out, as one of the "
        f"two is silent and has no score: {row.silent}."
        for row in rows
        if row.silent
    ]
    return "\n\n".join([markdown_table(headings, cells), *remarks])


def _effect(run, control):
    """What a run adds to all that the control has; None where that is not one thing."""
    if (run.backbone, run.peers) != (control.backbone, control.peers):
        return None
    differing = differing_settings([run, control])
    if not all(key.startswith(OF_THE_METHOD) for key in differing):
        return None
    added = []
    for key, (default, effect) in ADDITIONS.items():
        ours, theirs = (x.settings.get(key, default) for x in (run, control))
        if ours != theirs:
            added.append(effect if theirs == default else None)
    lends_more = LENDING.index(run.exchange) - LENDING.index(control.exchange)
    if not added and lends_more > 0:
        return CONTROLS.get(control.exchange)
    return added[0] if len(added) == 1 and not lends_more else None


def _compare(system, control, effect):
    """One difference, or none where the runs have nothing in common."""
    ours, theirs = ({run.seed: run for run in s.runs} for s in (system, control))
    by_speaker, seeds, silent = {}, [], 0
    for seed in sorted(ours.keys() & theirs.keys()):
        scores, reference = _read(ours[seed]), _read(theirs[seed])
        if scores is None or reference is None:
            continue
        if scores.keys() != reference.keys():
            raise DataError(
                f"{ours[seed].folder} and {theirs[seed].folder}: have been tested on "
                "other items"
            )
        seeds.append(seed)
        for item_id, si_sdri in scores.items():
            if si_sdri is None or reference[item_id] is None:
                silent += 1
                continue
            difference = si_sdri - reference[item_id]
            by_speaker.setdefault(_target_speaker(item_id), []).append(difference)
    if not by_speaker:
        return []
    means = [statistics.fmean(values) for values in by_speaker.values()]
    error = None
    if len(means) > 1:
        error = statistics.stdev(means) / math.sqrt(len(means))
    return [
        Difference(
            system=system.name,
            control=control.name,
            effect=effect,
            seeds=seeds,
            speakers=len(means),
            silent=silent,
            si_sdri=statistics.fmean(
                x for values in by_speaker.values() for x in values
            ),
            standard_error=error,
            speakers_ahead=sum(mean > 0 for mean in means),
        )
    ]


def _read(run):
    """SI-SDRi by item, None if silent; None where the run has not kept its scores."""
    path = run.folder / SCORES_FILE
    if not path.exists():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            scores = {
                row["ID"] or "": float(row["si_sdri"]) if row["si_sdri"] else None
                for row in csv.DictReader(file)
            }
        # What is no item names no speaker.
        for item_id, score in scores.items():
            _target_speaker(item_id)
            if not math.isfinite(score or 0.0):
                raise ValueError(f"{item_id}: {score}")
    except (OSError, LookupError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error!r}") from error
    return scores


def _target_speaker(item_id):
    """Of an item such as 1272-128104-0000_2035-147961-0014_s2, that is, 2035."""
    mixture_id, _, source = item_id.rpartition("_s")
    return speaker_id(mixture_id.split("_")[int(source) - 1])
