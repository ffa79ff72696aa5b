"""How well a score tells two kinds of trials apart."""

import math

import numpy as np
from scipy.stats import mannwhitneyu

FALSE_ALARMS = (1, 5, 10, 20)
"""Percent of the other kind that are taken for the one to find: points of a ROC."""

# What tells, by the name of the score.
TELLS = {
    "level": "output against mixture (dB)",
    "match": "match score",
    "judge": "match score of the judge",
}


def rocs(names, wanted, others, sign=1):
    """Points of the ROC of every score that all trials have.

    Arguments
    ---------
    names : iterable of str
        Of the scores, of those in `TELLS`.
    wanted : list of dict
        Scores of the trials to find.
    others : list of dict
        Scores of those that are not to be taken for them.
    sign : int
        1 where the wanted have the higher scores, -1 where they have the lower.

    Returns
    -------
    dict
        By name of the score its `area` and, by percent of false alarms,
        `found_percent`.

    Example
    -------
    >>> rocs(["match"], [{"match": 0.9}, {"match": 0.4}], [{"match": 0.5}])
    {'match': {'area': 0.5, 'found_percent': {'1': 50.0, '5': 50.0, '10': 50.0, ...}}}
    """
    return {
        name: _roc(*(sign * _values(scores, name) for scores in (wanted, others)))
        for name in names
        if not any(math.isnan(score[name]) for score in (*wanted, *others))
    }


def roc_rows(found):
    """The rows of a table of what `rocs` returns, with its head.

    Arguments
    ---------
    found : dict

    Returns
    -------
    list of str
    """
    percents = " | ".join(f"{percent} %" for percent in FALSE_ALARMS)
    rows = [
        f"| told by | area | {percents} |",
        "|---|---:|" + "---:|" * len(FALSE_ALARMS),
    ]
    for name, roc in found.items():
        shares = " | ".join(f"{share:.1f}" for share in roc["found_percent"].values())
        rows.append(f"| {TELLS[name]} | {roc['area']:.3f} | {shares} |")
    return rows


def _values(scores, name):
    return np.array([score[name] for score in scores])


def _roc(wanted, others):
    """Area, and a few points of the curve."""
    statistic = mannwhitneyu(wanted, others).statistic
    falling = np.sort(others)[::-1]
    thresholds = {
        percent: falling[len(others) * percent // 100] for percent in FALSE_ALARMS
    }
    return {
        "area": float(statistic / (len(wanted) * len(others))),
        # As text, as keys in JSON are.
        "found_percent": {
            str(percent): 100 * float((wanted > threshold).mean())
            for percent, threshold in thresholds.items()
        },
    }
