"""Prepares data for training and testing: LibriMix, clean mixtures."""

from speechbrain_peer.cli.options import folder_to_fill, whole_number
from speechbrain_peer.data.layout import CHOICES

EXAMPLES = [
    "tse prepare --data_folder Libri2Mix -o prepared",
    "tse prepare --librispeech_folder LibriSpeech "
    "--librimix_metadata LibriMix/metadata/Libri2Mix -o prepared",
]


def add_arguments(parser):
    """Declares the options."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data_folder",
        metavar="FOLDER",
        help="LibriMix as its scripts generate it: holds wav8k or wav16k",
    )
    source.add_argument(
        "--librispeech_folder",
        metavar="FOLDER",
        help="holds train-clean-100 ...; the mixtures are rendered from it",
    )
    add = parser.add_argument
    add(
        "--librimix_metadata",
        metavar="FOLDER",
        help="to render: metadata/Libri2Mix of the LibriMix repository",
    )
    add(
        "-o",
        "--output",
        metavar="FOLDER",
        type=folder_to_fill,
        required=True,
        help="for all that is written",
    )
    subsets = ["train-100", "dev", "test"]
    add("--subsets", nargs="+", default=subsets, choices=CHOICES["subsets"])
    rates = CHOICES["sample_rate"]
    add("--sample_rate", type=int, default=8000, choices=rates, help="in Hz")
    add("--mode", default="min", choices=CHOICES["mode"], help="length of a mixture")
    add("--targets", default="first", choices=CHOICES["targets"])
    add("--peers", default="off", choices=CHOICES["peers"])
    interferers = CHOICES["peer_interferer"]
    add("--peer_interferer", default="any", choices=interferers)
    add("--enrollment_maps", help="folder of enrollment maps; drawn if left out")
    add(
        "--seed",
        type=whole_number(0),
        default=1234,
        help="of drawn maps and peers (default: %(default)s)",
    )
    add(
        "--n_processes",
        type=whole_number(1),
        help="that render; all CPUs if left out",
    )


def run(options):
    """Prepares, and prints the path of every manifest."""
    # Processes that render import the command's main module, but not SpeechBrain.
    from speechbrain_peer.data.prepare import prepare_librimix

    prepared = prepare_librimix(
        options.output,
        data_folder=options.data_folder,
        librispeech_folder=options.librispeech_folder,
        librimix_metadata=options.librimix_metadata,
        subsets=options.subsets,
        sample_rate=options.sample_rate,
        mode=options.mode,
        targets=options.targets,
        peers=options.peers,
        peer_interferer=options.peer_interferer,
        enrollment_maps=options.enrollment_maps,
        seed=options.seed,
        n_processes=options.n_processes,
    )
    for manifest in prepared.manifests.values():
        print(manifest)
    return 0
