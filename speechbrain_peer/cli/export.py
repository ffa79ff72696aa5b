"""Turns a training run into a folder to use and to share, with a model card."""

from pathlib import Path

from speechbrain_peer.training.release import export_run


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add("run", metavar="RUN", help="output folder of a training: results/NAME/SEED")
    add("-o", "--output", required=True, help="folder to write")
    add("--name", help="of the model, in its card; by default the folder's")
    add("--license", default="apache-2.0", help="of the weights, in the card")
    add("--notes", default="", help="for the card: data and credits, machine, limits")


def run(options):
    """Exports."""
    name = options.name or Path(options.output).resolve().name
    folder = export_run(
        options.run, options.output, name, options.license, options.notes
    )
    print(f"{folder}: load it with TargetSpeechExtraction.from_hparams(source=...)")
    return 0
