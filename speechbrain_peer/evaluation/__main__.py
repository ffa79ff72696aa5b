"""The command: tries a model under several conditions and writes a table."""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np

from speechbrain_peer.data.files import DataError, whole_file
from speechbrain_peer.evaluation.long_files import (
    SECONDS,
    compare_chunks,
    join_trials,
)
from speechbrain_peer.evaluation.scores import error_rates, score_trials
from speechbrain_peer.evaluation.trials import (
    absent_target,
    partial_overlap,
    pink_noise,
    read_trials,
    third_talker,
    vary,
)
from speechbrain_peer.inference import TargetSpeechExtraction
from speechbrain_peer.runtime import keep_freed_memory


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
    """Variations of a test set by name."""
    yield "as they are", trials
    for share in (0.75, 0.5, 0.25, 0.0):
        yield f"{share:.0%} overlap", vary(trials, partial_overlap(share))
    yield "a third talker", vary(trials, third_talker(trials))
    for snr in (20, 10, 0):
        yield f"pink noise at {snr} dB", vary(trials, pink_noise(snr))


def summarize(scores):
    """Means over trials, of those that have a value."""
    improvements = np.array([score["si_sdri"] for score in scores])
    has_match = not math.isnan(scores[0]["match"])
    return {
        "items": len(scores),
        "si_sdr": float(np.nanmean([score["si_sdr"] for score in scores])),
        "si_sdri": float(np.nanmean(improvements)),
        "wrong_speaker_percent": 100 * _mean(scores, "wrong_speaker"),
        "worse_than_mixture_percent": 100 * float((improvements < 0).mean()),
        "match": _mean(scores, "match") if has_match else None,
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
        `conditions`, `match` (error rates, None without a match score) and
        `chunks` (None where no target talks for a minute).
    """
    rows, present = {}, None
    for name, varied in conditions(trials):
        scores = score_trials(model, varied, name)
        present = present or scores
        rows[name] = summarize(scores)
    rates = None
    if model.tells_match:
        absent = vary(trials, absent_target(trials))
        rates = error_rates(present, score_trials(model, absent, "absent target"))
    recordings = join_trials(trials, SECONDS, model.hparams.sample_rate)
    chunks = None
    if recordings:
        scores = compare_chunks(model, recordings)
        chunks = {name: _mean(scores, name) for name in scores[0]}
        chunks["recordings"] = len(recordings)
    return {"conditions": rows, "match": rates, "chunks": chunks}


def markdown(result):
    """The tables."""
    lines = [
        "| condition | items | SI-SDR (dB) | SI-SDRi (dB) | wrong speaker (%) "
        "| worse than mixture (%) | match score |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["conditions"].items():
        match = "-" if row["match"] is None else f"{row['match']:.2f}"
        lines.append(
            f"| {name} | {row['items']} | {row['si_sdr']:.2f} | {row['si_sdri']:.2f} "
            f"| {row['wrong_speaker_percent']:.1f} "
            f"| {row['worse_than_mixture_percent']:.1f} | {match} |"
        )
    rates, chunks = result["match"], result["chunks"]
    if rates:
        lines.append(
            f"\nA match score below 0.5: {100 * rates['missed']:.1f} % of "
            f"{rates['rights']} right estimates. Of 0.5 or more: "
            f"{100 * rates['wrong_speaker']:.1f} % of {rates['wrongs']} estimates of "
            f"the wrong speaker, {100 * rates['absent']:.1f} % of those with the "
            "enrollment of somebody absent. Equal error rate "
            f"{100 * rates['equal_error']:.1f} %."
        )
    if chunks:
        lines.append(
            f"\n{chunks['recordings']} recordings of {SECONDS} s, joined from the "
            f"mixtures of one target: SI-SDR {chunks['whole']:.3f} dB extracted whole, "
            f"{chunks['chunks']:.3f} dB in chunks; chunks to whole "
            f"{chunks['agreement']:.1f} dB."
        )
    return "\n".join(lines)


def main(arguments=None):
    """Runs the evaluation."""
    options = parse_arguments(arguments)
    keep_freed_memory()
    try:
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
    return float(np.nanmean([score[name] for score in scores]))


if __name__ == "__main__":
    main()
