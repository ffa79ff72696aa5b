"""Turns a training run into a folder to use and to share, or a model into ONNX."""

from speechbrain_peer.cli.options import add_trust, folder_to_fill

EXAMPLES = [
    "tse export results/td_speakerbeam_pl/1234 -o my-model",
    "tse export my-model --onnx graphs --int8",
]


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add(
        "source",
        help="output folder of a training, results/NAME/SEED; for --onnx alone an "
        "exported model",
    )
    add(
        "-o",
        "--output",
        metavar="FOLDER",
        type=folder_to_fill,
        help="for the exported model, with a model card",
    )
    add(
        "--onnx",
        metavar="FOLDER",
        type=folder_to_fill,
        help="for the model as ONNX graphs, of speaker network and extractor, and of a "
        "causal model's steps through a live stream",
    )
    add(
        "--int8",
        action="store_true",
        help="with --onnx: the graph of streams also with 8-bit weights",
    )
    add("--name", help="of the model, in its card; by default the folder's")
    add("--license", default="apache-2.0", help="of the weights, in the card")
    add("--notes", default="", help="for the card: data and credits, machine, limits")
    add_trust(add)


def run(options):
    """Exports."""
    if not (options.output or options.onnx):
        options.parser.error("give -o/--output or --onnx, or both")
    if options.int8 and not options.onnx:
        options.parser.error("--int8 is for --onnx")
    model = options.source
    if options.output:
        from speechbrain_peer.training.release import export_run

        model = export_run(
            options.source,
            options.output,
            options.name or options.output.resolve().name,
            options.license,
            options.notes,
            trust=options.trust,
        )
        print(f"{model}: load it with TargetSpeechExtraction.from_hparams(source=...)")
    if options.onnx:
        from speechbrain_peer.packaging.onnx import describe_graphs, export_onnx

        folder = export_onnx(model, options.onnx, options.trust, options.int8)
        print(describe_graphs(folder))
    return 0
