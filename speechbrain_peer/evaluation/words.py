"""What recognition gains: wrong words in mixtures, in estimates and in clean targets.

References are transcripts, of targets that are whole: one that is cut where its mixture
ends (`mode: min`) does not say all of its transcript. For all targets, cut or without a
transcript, what the recogniser hears in the clean target is a reference, too: then the
errors that it makes there count as words.
"""

import math
import unicodedata

import numpy as np
from speechbrain.utils.edit_distance import accumulatable_wer_stats
from tqdm import tqdm

from speechbrain_peer.evaluation.trial_scores import extract_trial, score_estimate

NAME = "words"  # of the files with the tables
SIGNALS = ("mixture", "estimate", "target")
CUT = 0.001
"""Seconds: a target that lacks more of its utterance is cut."""

TRANSCRIPT, OWN = "transcript", "own"
_REFERENCES = {
    TRANSCRIPT: "transcript, of whole utterances",
    OWN: "what is heard in the target",
}


def split_words(text):
    """The words of a text as LibriSpeech writes them.

    Arguments
    ---------
    text : str

    Returns
    -------
    list of str
        Upper case, without marks but apostrophes.

    Example
    -------
    >>> split_words("It\\u2019s a well-known tune, Déjà vu: *the* 2nd!")
    ["IT'S", 'A', 'WELL', 'KNOWN', 'TUNE', 'DÉJÀ', 'VU', 'THE', '2ND']
    """
    text = unicodedata.normalize("NFC", text).upper().replace("\u2019", "'")
    # Punctuation and symbols.
    marks = {x for x in text if unicodedata.category(x)[0] in "PS"} - {"'"}
    return "".join(" " if x in marks else x for x in text).split()


def count_errors(reference, heard):
    """Words substituted, left out and added.

    Arguments
    ---------
    reference : list of str
        The words that were said.
    heard : list of str
        Those that were heard.

    Returns
    -------
    int

    Example
    -------
    >>> count_errors("the old farmer sings".split(), "an old farmer".split())
    2
    """
    stats = accumulatable_wer_stats([reference], [heard])
    return stats["substitutions"] + stats["deletions"] + stats["insertions"]


def error_rate(errors, words, speakers):
    """Errors in 100 words, and the standard error over speakers.

    Arguments
    ---------
    errors : sequence of int
        Of each item; a difference of two, for what is paired.
    words : sequence of int
        Of the reference.
    speakers : sequence
        Whose each is.

    Returns
    -------
    rate : float
        All errors for all words, in percent.
    error : float
        That of a ratio of sums over speakers; 0 of one speaker.

    Example
    -------
    >>> error_rate([2, 1, 0], [5, 5, 10], ["ann", "ann", "bob"])
    (15.0, 15.0)
    """
    errors, words = np.asarray(errors), np.asarray(words)
    rate = errors.sum() / words.sum()
    _, speaker = np.unique(speakers, return_inverse=True)
    residuals = np.bincount(speaker, errors - rate * words)
    n_speakers = len(residuals)
    spread = 0.0
    if n_speakers > 1:
        variance = np.square(residuals).sum() * n_speakers / (n_speakers - 1)
        spread = math.sqrt(variance) / words.sum()
    return float(100 * rate), float(100 * spread)


def evaluate(model, trials, recogniser, transcripts=None):
    """Lets a recogniser listen to mixtures, estimates and targets.

    Arguments
    ---------
    model : TargetSpeechExtraction
    trials : list of Trial
    recogniser : speechbrain_peer.evaluation.recognition.Recogniser
        Or another callable like it.
    transcripts : dict, optional
        {utterance: `speechbrain_peer.data.transcripts.Transcript`}, of all targets.

    Returns
    -------
    dict
        `recogniser`, `recogniser_rate`, `sample_rate`, `n_items`, `n_cut` (None without
        transcripts); of the references `transcript` and `own` each `items`,
        `words` and, as [rate, standard error] in percent, `mixture`, `estimate`,
        `target` and `gain` (None where it has no words); and `items`, a row for each
        trial.
    """
    rate, rows, n_cut = model.hparams.sample_rate, [], 0
    for trial in tqdm(trials, desc="Words", leave=False):
        _, estimate = extract_trial(model, trial)
        estimate = estimate[0].cpu().numpy()
        signals = np.stack([trial.mixture, estimate, trial.target])
        texts = dict(zip(SIGNALS, recogniser(signals, rate), strict=True))
        reference = None
        if transcripts:
            words, seconds = transcripts[trial.utterance]
            cut = len(trial.target) < rate * (seconds - CUT)
            reference, n_cut = None if cut else words, n_cut + cut
        rows.append(_row(trial, estimate, texts, reference))
    return {
        "recogniser": recogniser.name,
        "recogniser_rate": recogniser.sample_rate,
        "sample_rate": rate,
        "n_items": len(rows),
        "n_cut": n_cut if transcripts else None,
        **{name: _summarize(rows, name) for name in _REFERENCES},
        "items": rows,
    }


def markdown(result):
    """The table, and what was scored."""
    lines = [
        f"{result['recogniser']} ({result['recogniser_rate']} Hz) listens to "
        f"{result['n_items']} mixtures, to what the model extracts and to the clean "
        f"targets, all of {result['sample_rate']} Hz. Words substituted, left out and "
        "added, in 100 words of the reference, ± standard error over speakers; gain: "
        "mixture minus estimate, of the same items:",
        "",
        "| reference | items | words | mixture | estimate | target | gain |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, title in _REFERENCES.items():
        summary = result[name]
        if summary["items"]:
            cells = (_cell(summary[key]) for key in (*SIGNALS, "gain"))
            lines.append(
                f"| {title} | {summary['items']} | {summary['words']} "
                f"| {' | '.join(cells)} |"
            )
    return "\n".join([*lines, "", _remark(result)])


def _row(trial, estimate, texts, reference):
    """Counts the errors of one item; None where something has no value."""
    scores = score_estimate(estimate, trial)
    heard = {signal: split_words(text) for signal, text in texts.items()}
    row = {
        "item": trial.id,
        "speaker": trial.speakers[0],
        "si_sdri": None if math.isnan(scores["si_sdri"]) else scores["si_sdri"],
        "wrong_speaker": scores["wrong_speaker"],
        "transcript": None if reference is None else " ".join(split_words(reference)),
        **{f"heard_in_{signal}": " ".join(words) for signal, words in heard.items()},
    }
    for name, words in (
        (TRANSCRIPT, None if reference is None else split_words(reference)),
        (OWN, heard["target"]),
    ):
        row[f"{name}_words"] = None if words is None else len(words)
        for signal in SIGNALS:
            errors = None if words is None else count_errors(words, heard[signal])
            row[f"{name}_{signal}_errors"] = errors
    return row


def _summarize(rows, name):
    """The rates of one reference."""
    rows = [row for row in rows if row[f"{name}_words"] is not None]
    words = [row[f"{name}_words"] for row in rows]
    speakers = [row["speaker"] for row in rows]
    errors = {
        signal: [row[f"{name}_{signal}_errors"] for row in rows] for signal in SIGNALS
    }
    errors["gain"] = np.subtract(errors["mixture"], errors["estimate"])
    return {
        "items": len(rows),
        "words": sum(words),
        **{
            key: list(error_rate(counts, words, speakers)) if any(words) else None
            for key, counts in errors.items()
        },
    }


def _cell(rate):
    return "-" if rate is None else f"{rate[0]:.1f} ± {rate[1]:.1f}"


def _remark(result):
    """What the references are."""
    own = (
        "What is heard in the target is the reference of all items, and its errors "
        "count as words."
    )
    if result["n_cut"] is None:
        return f"Without transcripts. {own}"
    return (
        f"{result['n_cut']} of {result['n_items']} targets are cut where their mixture "
        "ends, so that they do not say all of their transcripts, which are no "
        f"reference there. {own}"
    )
