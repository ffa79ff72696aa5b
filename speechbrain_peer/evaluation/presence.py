"""Who is there? Trials whose target talks, and trials of somebody absent."""

import math

import numpy as np
from scipy.stats import mannwhitneyu

from speechbrain_peer.inference.presence import PRESENT_DB

LOST_DB = -10.0
"""Of the target: an output below has lost the talker."""

FALSE_ALARMS = (1, 5, 10, 20)
"""Percent of absent talkers that are taken for present, of the points of a ROC."""

# What tells, by the name of the score.
_TELLS = {"level": "output against mixture (dB)", "match": "match score"}


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
    >>> present = [{"level": -3.0, "target_level": 0.0, "match": math.nan}]
    >>> absent = [
    ...     {"level": -40.0, "match": math.nan},
    ...     {"level": -9.0, "match": math.nan},
    ... ]
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
        "roc": {
            name: _roc(_values(present, name), _values(absent, name))
            for name in _TELLS
            if not any(math.isnan(score[name]) for score in (*present, *absent))
        },
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
    percents = " | ".join(f"{percent} %" for percent in FALSE_ALARMS)
    lines = [
        f"\n{summary['absent_items']} mixtures with the enrollment of somebody absent: "
        f"the output is {summary['attenuation']:.1f} dB below the mixture (median), "
        f"and {summary['audible_percent']:.1f} % are above {PRESENT_DB:.0f} dB. With "
        f"the talker there, {summary['lost_percent']:.1f} % of "
        f"{summary['present_items']} outputs are {-LOST_DB:.0f} dB or more below the "
        "target. The area under the ROC, and how many of the present (%) are found "
        "where so many of the absent are taken for present:\n",
        f"| told by | area | {percents} |",
        "|---|---:|" + "---:|" * len(FALSE_ALARMS),
    ]
    for name, roc in summary["roc"].items():
        found = " | ".join(f"{share:.1f}" for share in roc["found_percent"].values())
        lines.append(f"| {_TELLS[name]} | {roc['area']:.3f} | {found} |")
    return "\n".join(lines)


def _values(scores, name):
    return np.array([score[name] for score in scores])


def _roc(present, absent):
    """Area, and a few points of the curve."""
    statistic = mannwhitneyu(present, absent).statistic
    falling = np.sort(absent)[::-1]
    thresholds = {
        percent: falling[len(absent) * percent // 100] for percent in FALSE_ALARMS
    }
    return {
        "area": float(statistic / (len(present) * len(absent))),
        # As text, as keys in JSON are.
        "found_percent": {
            str(percent): 100 * float((present > threshold).mean())
            for percent, threshold in thresholds.items()
        },
    }
