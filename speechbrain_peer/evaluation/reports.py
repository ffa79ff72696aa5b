"""What a test leaves in its folder: scores, their means, a table, examples."""

import csv
import io
import json
import math

import numpy as np

from speechbrain_peer.evaluation.figures import spectrogram_figure
from speechbrain_peer.evaluation.metrics import why_no_pesq
from speechbrain_peer.utils.audio import write_audio
from speechbrain_peer.utils.files import whole_file

SCORES_FILE = "test_scores.csv"

# Key of the score, heading of its column, decimals.
_COLUMNS = (
    ("si_sdr", "SI-SDR (dB)", 2),
    ("si_sdri", "SI-SDRi (dB)", 2),
    ("sdr", "SDR (dB)", 2),
    ("pesq", "PESQ", 2),
    ("stoi", "STOI", 3),
    ("wrong_speaker", "wrong speaker (%)", 1),
    ("silent", "silent (%)", 1),
)
_SILENCE = (
    "Silent outputs are neither right nor the wrong speaker. They have no SI-SDR, SDR, "
    "PESQ or STOI and are left out of these means, but count as worse than the mixture."
)


def write_scores(folder, scores, sample_rate, corpus, extra=None):
    """Writes `test_scores.csv`, `metrics.json` and `metrics.md`.

    A score that is NaN is an empty cell in the CSV and left out of its mean; the
    JSON and the Markdown page say how many there are. A silent output has no scores,
    and counts as worse than the mixture.

    Arguments
    ---------
    folder : str or pathlib.Path
        Made where it does not exist.
    scores : dict
        What `metrics.score_item` returned, by the item's ID.
    sample_rate : int
        Sample rate of the scored signals, in Hz.
    corpus : str
        One sentence on what was tested on.
    extra : dict, optional
        More on the run, such as the training time or the number of parameters.

    Returns
    -------
    str
        The text of `metrics.md`.

    Raises
    ------
    ValueError
        If there are no scores.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> target, interferer = rng.standard_normal((2, 8000))
    >>> from speechbrain_peer.evaluation.metrics import score_item
    >>> mixture = target + interferer
    >>> scores = {"a": score_item(mixture, target, mixture, [interferer], 8000)}
    >>> text = write_scores(getfixture("tmpdir"), scores, 8000, "Made noise.")
    >>> text.splitlines()[0].split(" | ")[1:3]
    ['SI-SDR (dB)', 'SI-SDRi (dB)']
    """
    if not scores:
        raise ValueError("There are no scores to report: no test item was scored.")
    summary = _summarize(scores, corpus, extra or {})
    text = _markdown(summary, why_no_pesq(sample_rate))
    as_json = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False)
    for name, content in (
        (SCORES_FILE, _csv(scores)),
        ("metrics.json", as_json + "\n"),
        ("metrics.md", text),
    ):
        with whole_file(f"{folder}/{name}") as path:
            path.write_text(content, encoding="utf-8")
    return text


def save_examples(folder, examples, sample_rate):
    """Writes test items as audio, and their spectrograms as `examples.png`.

    Where a signal of an item exceeds full scale, all signals of the item are
    turned down by one factor, so that they can still be compared by ear.

    Arguments
    ---------
    folder : str or pathlib.Path
        Made where it does not exist.
    examples : dict
        For each item's ID a dict of the signals `mixture`, `target` and
        `estimate`, each (time,).
    sample_rate : int
        In Hz.
    """
    for item_id, signals in examples.items():
        peak = max(np.abs(signal).max() for signal in signals.values())
        for kind, signal in signals.items():
            # IDs with a folder in them, such as s1/<mixture_ID>.
            name = f"{item_id}_{kind}.wav".replace("/", "_")
            write_audio(f"{folder}/{name}", signal / max(1.0, peak), sample_rate)
    if not examples:
        return
    with whole_file(f"{folder}/examples.png") as path:
        spectrogram_figure(examples, sample_rate).savefig(path, format="png")


def _summarize(scores, corpus, extra):
    """The content of `metrics.json`; None where a mean has no value."""
    columns = {
        name: np.array([item[name] for item in scores.values()], float)
        for name in next(iter(scores.values()))
    }
    wrong_speaker, silent = columns.pop("wrong_speaker"), columns.pop("silent")
    worse = (columns["si_sdri"] < 0) | (silent > 0)
    return {
        "corpus": corpus,
        "items": len(scores),
        "means": {name: _mean(values) for name, values in columns.items()},
        "items_without_value": {
            name: int(np.isnan(values).sum()) for name, values in columns.items()
        },
        "wrong_speaker_percent": 100 * _mean(wrong_speaker),
        "silent_percent": 100 * _mean(silent),
        "worse_than_mixture_percent": 100 * _mean(worse),
        "run": extra,
    }


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


def _markdown(summary, no_pesq):
    means = summary["means"]
    mixture = {key: means.get(f"mixture_{key}") for key, *_ in _COLUMNS}
    percents = {key: summary[f"{key}_percent"] for key in ("wrong_speaker", "silent")}
    estimate = {**means, **percents}
    table = [
        "| | " + " | ".join(heading for _, heading, _ in _COLUMNS) + " |",
        "|---|" + "---:|" * len(_COLUMNS),
        _row("mixture", mixture),
        _row("estimate", estimate),
    ]
    return "\n".join([*table, "", *_remarks(summary, no_pesq)]) + "\n"


def _row(name, values):
    cells = [
        "-" if values[key] is None else f"{values[key]:.{decimals}f}"
        for key, _, decimals in _COLUMNS
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


def _remarks(summary, no_pesq):
    """Sentences below the table, each a list item."""
    missing = {
        name: count
        for name, count in summary["items_without_value"].items()
        if count and not (no_pesq and "pesq" in name)
    }
    remarks = [
        f"Tested on: {summary['corpus']}",
        f"Items: {summary['items']}",
        "Outputs worse than the mixture (SI-SDRi below 0 dB): "
        f"{summary['worse_than_mixture_percent']:.1f} %",
    ]
    if summary["silent_percent"]:
        remarks.append(_SILENCE)
    remarks += [f"{name}: {value}" for name, value in summary["run"].items()]
    if no_pesq:
        remarks.append(f'PESQ is "-": {no_pesq}')
    if missing:
        counts = ", ".join(f"{name} {count}" for name, count in missing.items())
        remarks.append(f"Items without a value, left out of the mean: {counts}")
    return [f"- {remark}" for remark in remarks]


def _csv(scores):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["ID", *next(iter(scores.values()))])
    for item_id, item in scores.items():
        values = ("" if math.isnan(value) else value for value in item.values())
        writer.writerow([item_id, *values])
    return text.getvalue()
