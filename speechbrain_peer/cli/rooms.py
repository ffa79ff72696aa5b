"""Simulates rooms with talkers and microphones, to train in."""

import argparse

from speechbrain_peer.cli.options import add_making, folder_to_fill, whole_number
from speechbrain_peer.data.layout import CHOICES

EXAMPLES = [
    "tse rooms -o rooms",
    "tse rooms -o phones --layout table --n_microphones 3 --rt60 0.3 0.6",
]
LEAST_RT60, MOST_RT60 = 0.1, 1.0


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add(
        "-o",
        "--output",
        metavar="FOLDER",
        type=folder_to_fill,
        required=True,
        help="for one folder a room; interrupted work in it goes on",
    )
    add(
        "--n_rooms",
        type=whole_number(1, 999_999),
        default=1000,
        help="how many (default: %(default)s)",
    )
    add(
        "--n_talkers",
        type=whole_number(1, 8),
        default=6,
        help="places of talkers in every room (default: %(default)s)",
    )
    add(
        "--n_microphones",
        type=whole_number(1, 8),
        default=4,
        help="in every room (default: %(default)s)",
    )
    add(
        "--layout",
        choices=CHOICES["layout"],
        default="mixed",
        help="of microphones: on one device of 4 cm, apart as phones on a table, or "
        "half of the rooms each (default: %(default)s)",
    )
    add(
        "--rt60",
        nargs=2,
        type=_reverberation,
        default=(LEAST_RT60, 0.6),
        metavar=("LEAST", "MOST"),
        help="reverberation time in seconds (default: 0.1 0.6)",
    )
    add_making(add, "every room is a function of it", "that simulate")


def run(options):
    """Simulates, and prints how many rooms there are and how large they are."""
    if options.rt60[0] > options.rt60[1]:
        options.parser.error("--rt60: the first time is longer than the second")
    # Processes that simulate import the command's main module, but not SpeechBrain.
    from speechbrain_peer.data.room_simulation import Settings, make_rooms

    settings = Settings(
        n_rooms=options.n_rooms,
        n_talkers=options.n_talkers,
        n_microphones=options.n_microphones,
        layout=options.layout,
        rt60=tuple(options.rt60),
        sample_rate=options.sample_rate,
        seed=options.seed,
    )
    size = make_rooms(options.output, settings, options.n_processes)
    print(f"{options.output}: {options.n_rooms} rooms, {size / 1e6:.1f} MB")
    return 0


def _reverberation(text):
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not LEAST_RT60 <= seconds <= MOST_RT60:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time from {LEAST_RT60} to {MOST_RT60} s"
        )
    return seconds
