"""Tries a model under conditions that its test set does not have."""

from speechbrain_peer.cli.options import (
    add_device,
    add_manifest,
    add_trust,
    folder_to_fill,
    load_interface,
)

EXAMPLES = ["tse evaluate small-8k prepared/manifests/wav8k_min_first/test.json"]


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add("model", help="folder, model of this package or of the Hugging Face Hub")
    add_manifest(add, "manifest of a test set")
    add(
        "-o",
        "--output",
        type=folder_to_fill,
        help="folder for evaluation.md and evaluation.json",
    )
    add_device(add)
    add_trust(add)


def run(options):
    """Evaluates, prints the tables and writes them."""
    from speechbrain_peer.evaluation.conditions import (
        evaluate,
        markdown,
        write_evaluation,
    )
    from speechbrain_peer.evaluation.trials import read_trials

    model = load_interface(options)
    trials = read_trials(options.manifest, options.data_root, model.hparams.sample_rate)
    result = evaluate(model, trials)
    print(markdown(result))
    if options.output:
        write_evaluation(options.output, result)
    return 0
