"""Extracts one person's speech as it is spoken, from microphone to loudspeaker."""

from speechbrain_peer.cli.options import (
    add_model_options,
    choose_model,
    existing_file,
    load_interface,
    positive_number,
    whole_number,
)

EXAMPLES = [
    "tse live -e anna.wav",
    "tse live --enroll 5 --output 'BlackHole 2ch' --record anna.wav",
    "tse live - -e anna.wav --rate 16000 -m my-causal-model",
]

PIPE = "-"
"""Stands for standard input and output."""

DEFAULT_BLOCK = 20.0  # milliseconds


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add(
        "pipe",
        nargs="?",
        choices=[PIPE],
        help="raw samples from standard input to standard output, instead of devices",
    )
    voice = parser.add_mutually_exclusive_group()
    voice.add_argument(
        "-e",
        "--enrollment",
        nargs="+",
        metavar="FILE",
        type=existing_file,
        help="speech of that person alone, a few seconds; several files are averaged",
    )
    voice.add_argument(
        "--enroll",
        type=positive_number,
        metavar="SECONDS",
        help="let that person alone speak into the microphone first, for so long",
    )
    add("--list-devices", action="store_true", help="show the devices, and end")
    add("--input", metavar="DEVICE", help="number, or part of the name, of the device")
    add("--output", metavar="DEVICE", help="the same for what is extracted")
    add(
        "--rate",
        type=whole_number(1),
        help="in Hz; by default the input device's, of pipes the model's",
    )
    add(
        "--block",
        type=positive_number,
        default=DEFAULT_BLOCK,
        metavar="MS",
        help="milliseconds that are extracted at once (default: %(default)g): fewer "
        "are heard sooner, and take more computing",
    )
    add("--record", metavar="FILE", help="also write what is extracted to a file")
    add(
        "--format",
        choices=("s16le", "f32le"),
        default="s16le",
        help="of the samples in pipes, as ffmpeg names it (default: %(default)s)",
    )
    add(
        "--channels",
        type=whole_number(1),
        default=1,
        help="in pipes, interleaved: that person is extracted from each (default: 1)",
    )
    add_model_options(add)


def run(options):
    """Extracts until the input ends or Ctrl+C is pressed."""
    if options.list_devices:
        from speechbrain_peer.cli.live_devices import import_sounddevice

        print(import_sounddevice().query_devices())
        return 0
    _check(options)
    if options.pipe:
        from speechbrain_peer.cli.live_pipe import extract_pipe as extract
    else:
        from speechbrain_peer.cli.live_devices import extract_devices as extract
    choose_model(options, options.rate, live=True)
    extract(load_interface(options), options)
    return 0


def _check(options):
    """Refuses options that do not go together, before any work."""
    if not (options.enrollment or options.enroll):
        options.parser.error("whose speech? Give -e FILE or --enroll SECONDS")
    if options.pipe and (options.enroll or options.input or options.output):
        options.parser.error(
            "--enroll, --input and --output are for devices, not for a pipe"
        )
    if not options.pipe and options.channels > 1:
        options.parser.error("--channels is for a pipe: devices have one here")
    if options.record:
        from speechbrain_peer.inference.writing import check_output

        check_output(options.record, options.enrollment or [])
