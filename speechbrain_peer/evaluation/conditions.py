"""Tries a model under several conditions, and makes tables."""

from speechbrain_peer.evaluation.long_files import (
    SECONDS,
    compare_chunks,
    join_trials,
)
from speechbrain_peer.evaluation.presence import presence_markdown, summarize_presence
from speechbrain_peer.evaluation.roc import TELLS, roc_rows, rocs
from speechbrain_peer.evaluation.trial_scores import (
    error_rates,
    is_right,
    mean_or_none,
    score_trials,
)
from speechbrain_peer.evaluation.trials import (
    TooFewSpeakers,
    absent_target,
    partial_overlap,
    pink_noise,
    third_talker,
    vary,
)

NAME = "evaluation"  # of the files with the tables

# Conditions that are told apart from the others.
UNCHANGED, ABSENT = "as they are", "absent target"


def conditions(trials):
    """Conditions by name, with the variation that makes them; the unchanged first."""
    yield UNCHANGED, lambda trial, rng: trial
    for share in (0.75, 0.5, 0.25, 0.0):
        yield f"{share:.0%} overlap", partial_overlap(share)
    yield "a third talker", third_talker(trials)
    for snr in (20, 10, 0):
        yield f"pink noise at {snr} dB", pink_noise(snr)


def summarize(scores):
    """Means over trials, of those that have a value."""
    worse = [score["si_sdri"] < 0 or score["silent"] for score in scores]
    return {
        "items": len(scores),
        "si_sdr": _mean(scores, "si_sdr"),
        "si_sdri": _mean(scores, "si_sdri"),
        "wrong_speaker_percent": 100 * _mean(scores, "wrong_speaker"),
        "silent_percent": 100 * _mean(scores, "silent"),
        "worse_than_mixture_percent": 100 * mean_or_none(worse),
        "match": _mean(scores, "match"),
    }


def evaluate(model, trials, judge=None):
    """Scores all conditions.

    Arguments
    ---------
    model : TargetSpeechExtraction
    trials : list of Trial
    judge : speechbrain_peer.inference.judges.Judge, optional
        With whom the model has been calibrated.

    Returns
    -------
    dict
        `conditions`, `presence` (of absent talkers, None where there are none), `match`
        and `judge` (error rates of both scores, None without), `wrong_speakers` (see
        `summarize_wrong_speakers`), `chunks` (None where no target talks for a minute)
        and `left_out` (why, by name of what the test set has too few speakers for).
    """
    scores, left_out = score_conditions(model, trials, judge)
    absent = scores.pop(ABSENT, [])
    rates = dict.fromkeys(("match", "judge"))
    if model.tells_match:
        threshold = model.mods.match_scorer.threshold
        rates["match"] = error_rates(scores[UNCHANGED], absent, threshold)
    if judge is not None:
        threshold = model.mods.judge_scorer.threshold
        rates["judge"] = error_rates(scores[UNCHANGED], absent, threshold, "judge")
    rows = {name: summarize(of_condition) for name, of_condition in scores.items()}
    recordings = join_trials(trials, SECONDS, model.hparams.sample_rate)
    chunks = None
    if recordings:
        compared = compare_chunks(model, recordings)
        chunks = {name: _mean(compared, name) for name in compared[0]}
        chunks["recordings"] = len(recordings)
    return {
        "conditions": rows,
        "presence": summarize_presence(scores[UNCHANGED], absent),
        **rates,
        "wrong_speakers": summarize_wrong_speakers(scores[UNCHANGED]),
        "chunks": chunks,
        "left_out": left_out,
    }


def summarize_wrong_speakers(scores):
    """Tells how many estimates are of an interferer, and how well they are told.

    Arguments
    ---------
    scores : list of dict
        What `score_trials` returns of trials whose target talks.

    Returns
    -------
    dict or None
        `rights` and `wrongs`, how many there are; `roc`, see `rocs`, where an alarm is
        false at a right estimate. None where all are right, or there is no score.
    """
    rights = [score for score in scores if is_right(score)]
    wrongs = [score for score in scores if score["wrong_speaker"]]
    found = {}
    if rights and wrongs:
        found = rocs(("match", "judge"), wrongs, rights, sign=-1)
    return (
        {"rights": len(rights), "wrongs": len(wrongs), "roc": found} if found else None
    )


def score_conditions(model, trials, judge=None):
    """Scores the conditions that the test set can give.

    Arguments
    ---------
    model : TargetSpeechExtraction
    trials : list of Trial
    judge : speechbrain_peer.inference.judges.Judge, optional

    Returns
    -------
    scores : dict
        Those of all trials, by condition.
    left_out : dict
        Why there are none, by condition.
    """
    tried = dict(conditions(trials)) | {ABSENT: absent_target(trials)}
    scores, left_out = {}, {}
    for name, variation in tried.items():
        try:
            varied = vary(trials, variation)
        except TooFewSpeakers as error:
            left_out[name] = str(error)
        else:
            # Of the others no table tells what the judge says.
            asked = judge if name in (UNCHANGED, ABSENT) else None
            scores[name] = score_trials(model, varied, name, asked)
    return scores, left_out


def markdown(result):
    """The tables."""
    lines = [
        "| condition | items | SI-SDR (dB) | SI-SDRi (dB) | wrong speaker (%) "
        "| silent (%) | worse than mixture (%) | match score |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["conditions"].items():
        lines.append(
            f"| {name} | {row['items']} | {_figure(row['si_sdr'], 2)} "
            f"| {_figure(row['si_sdri'], 2)} | {row['wrong_speaker_percent']:.1f} "
            f"| {row['silent_percent']:.1f} "
            f"| {row['worse_than_mixture_percent']:.1f} | {_figure(row['match'], 2)} |"
        )
    for name, why in result["left_out"].items():
        lines.append(f"\nLeft out: {name} ({why}).")
    if result["presence"]:
        lines.append(presence_markdown(result["presence"]))
    if result["wrong_speakers"]:
        lines.append(_wrong_speakers_text(result["wrong_speakers"]))
    for name in ("match", "judge"):
        if result[name]:
            lines.append(_match_text(TELLS[name], result[name]))
    if result["chunks"]:
        lines.append(_chunks_text(result["chunks"]))
    return "\n".join(lines)


def _wrong_speakers_text(summary):
    return "\n".join(
        [
            f"\n{summary['wrongs']} outputs are of the wrong speaker. The area under "
            "the ROC, and how many of them (%) are told where so many of the "
            f"{summary['rights']} right ones are doubted:\n",
            *roc_rows(summary["roc"]),
        ]
    )


def _match_text(title, rates):
    missed, wrong, absent, equal = (
        "-" if rates[name] is None else f"{100 * rates[name]:.1f} %"
        for name in ("missed", "wrong_speaker", "absent", "equal_error")
    )
    return (
        f"\nA {title} below {rates['threshold']:.2f}, its threshold: {missed} of "
        f"{rates['rights']} right estimates. Not below: {wrong} of {rates['wrongs']} "
        f"estimates of the wrong speaker, {absent} of those with the enrollment of "
        f"somebody absent. Equal error rate {equal}."
    )


def _chunks_text(chunks):
    whole, in_chunks, agreement = (
        _figure(chunks[name], digits)
        for name, digits in (("whole", 3), ("chunks", 3), ("agreement", 1))
    )
    return (
        f"\n{chunks['recordings']} recordings of {SECONDS} s, joined from the mixtures "
        f"of one target: SI-SDR {whole} dB extracted whole, {in_chunks} dB in chunks; "
        f"chunks to whole {agreement} dB."
    )


def _figure(value, digits):
    return "-" if value is None else f"{value:.{digits}f}"


def _mean(scores, name):
    return mean_or_none([score[name] for score in scores])
