"""The command: tries a model under several conditions and writes a table."""

import argparse
import json
import sys
from pathlib import Path

from speechbrain_peer.evaluation.long_files import (
    SECONDS,
    compare_chunks,
    join_trials,
)
from speechbrain_peer.evaluation.trial_scores import (
    error_rates,
    mean_or_none,
    score_trials,
)
from speechbrain_peer.evaluation.trials import (
    TooFewSpeakers,
    absent_target,
    partial_overlap,
    pink_noise,
    read_trials,
    third_talker,
    vary,
)
from speechbrain_peer.inference.interface import TargetSpeechExtraction
from speechbrain_peer.utils.files import DataError, whole_file
from speechbrain_peer.utils.runtime import check_device, keep_freed_memory

# Conditions that are told apart from the others.
UNCHANGED, ABSENT = "as they are", "absent target"


def parse_arguments(arguments=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m speechbrain_peer.evaluation",
        description="Tries a model under conditions that its test set does not have.",
    )
    add = parser.add_argument
    add("model", help="folder of a model")
    add("manifest", help="of a test set, such as manifests/wav8k_min_first/test.json")
    add("--data_root", default="", help="what {data_root} in the manifest stands for")
    add("--output", help="folder for evaluation.md and evaluation.json")
    add("--device", default="cpu", help="such as cpu (default) or cuda:0")
    return parser.parse_args(arguments)


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


def evaluate(model, trials):
    """Scores all conditions.

    Arguments
    ---------
    model : TargetSpeechExtraction
    trials : list of Trial

    Returns
    -------
    dict
        `conditions`, `match` (error rates, None without a match score), `chunks`
        (None where no target talks for a minute) and `left_out` (why, by name of
        what the test set has too few speakers for).
    """
    scores, left_out = score_conditions(model, trials)
    absent = scores.pop(ABSENT, [])
    rates = error_rates(scores[UNCHANGED], absent) if model.tells_match else None
    rows = {name: summarize(of_condition) for name, of_condition in scores.items()}
    recordings = join_trials(trials, SECONDS, model.hparams.sample_rate)
    chunks = None
    if recordings:
        compared = compare_chunks(model, recordings)
        chunks = {name: _mean(compared, name) for name in compared[0]}
        chunks["recordings"] = len(recordings)
    return {"conditions": rows, "match": rates, "chunks": chunks, "left_out": left_out}


def score_conditions(model, trials):
    """Scores the conditions that the test set can give.

    Arguments
    ---------
    model : TargetSpeechExtraction
    trials : list of Trial

    Returns
    -------
    scores : dict
        Those of all trials, by condition; with a match score also of absent targets.
    left_out : dict
        Why there are none, by condition.
    """
    tried = dict(conditions(trials))
    if model.tells_match:
        tried[ABSENT] = absent_target(trials)
    scores, left_out = {}, {}
    for name, variation in tried.items():
        try:
            varied = vary(trials, variation)
        except TooFewSpeakers as error:
            left_out[name] = str(error)
        else:
            scores[name] = score_trials(model, varied, name)
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
    if result["match"]:
        lines.append(_match_text(result["match"]))
    if result["chunks"]:
        lines.append(_chunks_text(result["chunks"]))
    return "\n".join(lines)


def _match_text(rates):
    missed, wrong, absent, equal = (
        "-" if rates[name] is None else f"{100 * rates[name]:.1f} %"
        for name in ("missed", "wrong_speaker", "absent", "equal_error")
    )
    return (
        f"\nA match score below 0.5: {missed} of {rates['rights']} right estimates. Of "
        f"0.5 or more: {wrong} of {rates['wrongs']} estimates of the wrong speaker, "
        f"{absent} of those with the enrollment of somebody absent. Equal error rate "
        f"{equal}."
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


def main(arguments=None):
    """Runs the evaluation."""
    options = parse_arguments(arguments)
    keep_freed_memory()
    try:
        check_device(options.device)
        model = TargetSpeechExtraction.from_hparams(
            options.model, run_opts={"device": options.device}
        )
        rate = model.hparams.sample_rate
        trials = read_trials(options.manifest, options.data_root, rate)
        result = evaluate(model, trials)
    except (DataError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    text = markdown(result)
    print(text)
    if options.output:
        for name, content in (
            ("evaluation.md", f"{text}\n"),
            ("evaluation.json", f"{json.dumps(result, indent=1)}\n"),
        ):
            with whole_file(Path(options.output, name)) as temporary:
                temporary.write_text(content, encoding="utf-8")


def _mean(scores, name):
    return mean_or_none([score[name] for score in scores])


if __name__ == "__main__":
    main()
