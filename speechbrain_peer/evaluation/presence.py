"""Who is there? Trials whose target talks, and trials of somebody absent."""

import numpy as np

from speechbrain_peer.evaluation.roc import TELLS, roc_rows, rocs
from speechbrain_peer.inference.presence import PRESENT_DB

LOST_DB = -10.0
"""Of the target: an output below has lost the talker."""


def summarize_presence(present, absent):
    """Tells how silent outputs are where the talker is absent, and only there.

    Arguments
    ---------
    present : list of dict
        What `score_trials` returns of trials whose target talks.
    absent : list of dict
        The same with the enrollment of somebody who is not in the mixture.

    Returns
    -------
    dict or None
        `absent_items`; `attenuation`, the median level of their mixtures above their
        outputs (dB); `audible_percent`, how many of these outputs are above
        `PRESENT_DB` of the mixture; `present_items`; `lost_percent`, how many outputs
        are `LOST_DB` or less of their targets; `roc`, of each score that tells who is
        there the `area` and, by percent of false alarms, `found_percent`. None without
        absent talkers.

    Example
    -------
    >>> unknown = {"match": float("nan"), "judge": float("nan")}
    >>> present = [{"level": -3.0, "target_level": 0.0, **unknown}]
    >>> absent = [{"level": -40.0, **unknown}, {"level": -9.0, **unknown}]
    >>> summary = summarize_presence(present, absent)
    >>> summary["attenuation"], summary["audible_percent"], summary["lost_percent"]
    (24.5, 50.0, 0.0)
    >>> summary["roc"]["level"]["area"]
    1.0
    """
    if not absent:
        return None
    levels = _values(absent, "level")
    return {
        "absent_items": len(absent),
        "attenuation": -float(np.median(levels)),
        "audible_percent": 100 * float((levels > PRESENT_DB).mean()),
        "present_items": len(present),
        "lost_percent": 100
        * float((_values(present, "target_level") <= LOST_DB).mean()),
        "roc": rocs(TELLS, present, absent),
    }


def presence_markdown(summary):
    """The sentences and the table of what `summarize_presence` returns.

    Arguments
    ---------
    summary : dict

    Returns
    -------
    str
    """
    lines = [
        f"\n{summary['absent_items']} mixtures with the enrollment of somebody absent: "
        f"the output is {summary['attenuation']:.1f} dB below the mixture (median), "
        f"and {summary['audible_percent']:.1f} % are above {PRESENT_DB:.0f} dB. With "
        f"the talker there, {summary['lost_percent']:.1f} % of "
        f"{summary['present_items']} outputs are {-LOST_DB:.0f} dB or more below the "
        "target. The area under the ROC, and how many of the present (%) are found "
        "where so many of the absent are taken for present:\n",
        *roc_rows(summary["roc"]),
    ]
    return "\n".join(lines)


def _values(scores, name):
    return np.array([score[name] for score in scores])
