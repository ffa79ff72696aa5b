"""Prepares data for training and testing: own recordings, or LibriMix."""

from speechbrain_peer.cli.options import (
    add_making,
    existing_file,
    folder_to_fill,
    whole_number,
)
from speechbrain_peer.data.layout import CHOICES

EXAMPLES = [
    "tse prepare VOICES -o DATA",
    "tse prepare --data_folder Libri2Mix -o prepared",
    "tse prepare --librispeech_folder LibriSpeech "
    "--librimix_metadata LibriMix/metadata/Libri2Mix -o prepared",
]


def add_arguments(parser):
    """Declares the options."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "voices",
        nargs="?",
        metavar="VOICES",
        help="own recordings: a folder with one for each speaker (any formats, rates "
        "and lengths), or Kaldi's with wav.scp and utt2spk",
    )
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
        "-o",
        "--output",
        metavar="FOLDER",
        type=folder_to_fill,
        required=True,
        help="for all that is written",
    )
    add_making(add, "of all that is drawn", "that scan and render")
    voices = parser.add_argument_group("of own recordings")
    librimix = parser.add_argument_group("of LibriMix")
    parser.set_defaults(
        of_voices=_names(_add_of_voices, voices),
        of_librimix=_names(_add_of_librimix, librimix),
    )


def _names(declare, group):
    """Declares a group's options; returns how each is given, by its name."""
    actions = []
    declare(lambda *flags, **spec: actions.append(group.add_argument(*flags, **spec)))
    return {action.dest: action.option_strings[0] for action in actions}


def _add_of_voices(add):
    add(
        "--on-error",
        choices=CHOICES["on_error"],
        default="stop",
        help="where files cannot be used: stop after all have been looked at, or leave "
        "them out; DATA/report.md lists them (default: %(default)s)",
    )
    add(
        "--detector",
        choices=CHOICES["detector"],
        default="energy",
        help="what finds speech in recordings (default: %(default)s)",
    )
    for subset in ("dev", "test"):
        add(
            f"--{subset}_speakers",
            type=existing_file,
            metavar="FILE",
            help=f"the speakers of {subset}, one a line; drawn if left out",
        )
    for subset in ("dev", "test"):
        add(
            f"--n_{subset}",
            type=whole_number(2),
            metavar="N",
            help=f"{subset} mixtures",
        )


def _add_of_librimix(add):
    add(
        "--librimix_metadata",
        metavar="FOLDER",
        help="to render: metadata/Libri2Mix of the LibriMix repository",
    )
    subsets = ["train-100", "dev", "test"]
    add("--subsets", nargs="+", default=subsets, choices=CHOICES["subsets"])
    add("--mode", default="min", choices=CHOICES["mode"], help="length of a mixture")
    add("--targets", default="first", choices=CHOICES["targets"])
    add(
        "--condition",
        default="clean",
        choices=CHOICES["condition"],
        help="both: noisy mixtures, of speech and WHAM!'s noise",
    )
    add(
        "--wham_folder",
        metavar="FOLDER",
        help="to render noisy ones: wham_noise, which holds tr, cv and tt",
    )
    add(
        "--mixtures",
        default="listed",
        choices=CHOICES["mixtures"],
        help="drawn: training mixtures are drawn while training, not rendered",
    )
    add("--peers", default="off", choices=CHOICES["peers"])
    add(
        "--n_peers", type=whole_number(2), default=2, help="mixtures of a training item"
    )
    interferers = CHOICES["peer_interferer"]
    add("--peer_interferer", default="any", choices=interferers)
    add("--enrollment_maps", help="folder of enrollment maps; drawn if left out")


def run(options):
    """Prepares, and prints the path of every manifest."""
    idle = options.of_librimix if options.voices else options.of_voices
    for name, flag in idle.items():
        if getattr(options, name) != options.parser.get_default(name):
            data = "own recordings" if options.voices else "LibriMix"
            options.parser.error(f"{flag} says nothing about {data}; leave it out")
    prepared = (
        _prepare_voices(options) if options.voices else _prepare_librimix(options)
    )
    for manifest in prepared.manifests.values():
        print(manifest)
    return 0


def _prepare_voices(options):
    # Processes that scan import the command's main module, but not SpeechBrain.
    from speechbrain_peer.data.own_data import prepare_voices

    lists = {"dev": options.dev_speakers, "test": options.test_speakers}
    if list(lists.values()).count(None) == 1:
        options.parser.error("give both --dev_speakers and --test_speakers, or none")
    return prepare_voices(
        options.voices,
        options.output,
        sample_rate=options.sample_rate,
        detector=options.detector,
        on_error=options.on_error,
        speaker_lists=lists if all(lists.values()) else None,
        n_mixtures={"dev": options.n_dev, "test": options.n_test},
        seed=options.seed,
        n_processes=options.n_processes,
    )


def _prepare_librimix(options):
    from speechbrain_peer.data.prepare import prepare_librimix

    return prepare_librimix(
        options.output,
        data_folder=options.data_folder,
        librispeech_folder=options.librispeech_folder,
        librimix_metadata=options.librimix_metadata,
        subsets=options.subsets,
        sample_rate=options.sample_rate,
        mode=options.mode,
        targets=options.targets,
        condition=options.condition,
        wham_folder=options.wham_folder,
        mixtures=options.mixtures,
        peers=options.peers,
        n_peers=options.n_peers,
        peer_interferer=options.peer_interferer,
        enrollment_maps=options.enrollment_maps,
        seed=options.seed,
        n_processes=options.n_processes,
    )
