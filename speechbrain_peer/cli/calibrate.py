"""Lets a model tell how well an estimate matches the enrolled voice."""

from speechbrain_peer.cli.options import (
    add_device,
    add_judge,
    add_manifest,
    add_trust,
    load_judge,
)

EXAMPLES = [
    "tse calibrate my-model prepared/manifests/wav8k_min_first/dev.json",
    "tse calibrate my-model dev.json --judge resemblyzer",
]


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add("model", help="folder of an exported model, which is written anew")
    add_manifest(add, "manifest of speakers that the model was not trained on")
    add_judge(add, "also calibrate the score of a judge")
    add_device(add)
    add_trust(add)


def run(options):
    """Calibrates."""
    from speechbrain_peer.evaluation.calibration import calibrate

    calibrate(
        options.model,
        options.manifest,
        options.data_root,
        options.device,
        trust=options.trust,
        judge=load_judge(options),
    )
    return 0
