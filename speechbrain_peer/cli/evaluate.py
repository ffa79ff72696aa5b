"""Tries a model under conditions that its test set does not have."""

from speechbrain_peer.cli.options import (
    add_device,
    add_manifest,
    add_trust,
    folder_to_fill,
    load_interface,
)

EXAMPLES = [
    "tse evaluate small-8k prepared/manifests/wav8k_min_first/test.json",
    "tse evaluate results/td_speakerbeam_pl/1234/model test.json --second-take",
]


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add("model", help="folder, model of this package or of the Hugging Face Hub")
    add_manifest(add, "manifest of a test set")
    add(
        "-o",
        "--output",
        type=folder_to_fill,
        help="folder for evaluation.md and evaluation.json (or second_takes.*)",
    )
    add(
        "--second-take",
        action="store_true",
        help="instead: what further mixtures of the same target are worth, averaged or "
        "lent (peer learning)",
    )
    add_device(add)
    add_trust(add)


def run(options):
    """Evaluates, prints the tables and writes them."""
    from speechbrain_peer.evaluation import conditions, second_takes
    from speechbrain_peer.evaluation.tables import write_tables
    from speechbrain_peer.evaluation.trials import read_trials

    kind = second_takes if options.second_take else conditions

    model = load_interface(options)
    trials = read_trials(options.manifest, options.data_root, model.hparams.sample_rate)
    result = kind.evaluate(model, trials)
    text = kind.markdown(result)
    print(text)
    if options.output:
        write_tables(options.output, kind.NAME, text, result)
    return 0
