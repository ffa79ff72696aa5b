"""Reads the command line and runs one command.

Modules of commands import PyTorch and the like when they run: help comes at once.
"""

import argparse
import io
import signal
import sys
import threading
from contextlib import contextmanager

from speechbrain_peer import __version__
from speechbrain_peer.cli import (
    calibrate,
    demo,
    evaluate,
    export,
    extract,
    info,
    live,
    prepare,
    rooms,
    serve,
)
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.messages import (
    hide_warnings_of_others,
    one_line,
    printable,
)

COMMANDS = {
    "extract": extract,
    "live": live,
    "serve": serve,
    "info": info,
    "demo": demo,
    "prepare": prepare,
    "rooms": rooms,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "export": export,
}

INTERRUPTED = 130  # what shells make of Ctrl+C
AGAIN_SECONDS = 0.01
"""After so many a signal that came too early comes again."""


class Parser(argparse.ArgumentParser):
    """One whose errors are one line, as all others of the command are."""

    def error(self, message):
        """Ends with 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see --help)\n")


def build_parser():
    """Makes the parser; every command's module declares its own part."""
    parser = Parser(
        prog="tse", description="Extracts one person's speech from recordings."
    )
    parser.add_argument("--version", action="version", version=f"tse {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        summary = command.__doc__.splitlines()[0]
        examples = "\n".join(f"  {example}" for example in command.EXAMPLES)
        subparser = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
        # To refuse options that do not go together.
        subparser.set_defaults(parser=subparser)
    return parser


@contextmanager
def _ended_in_order():
    """Lets signals that end a process end it as an error does: temporary files go."""
    before, usual = {}, (signal.SIG_DFL, signal.default_int_handler)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # `nohup` has it ignored, and Windows has no SIGHUP.
        if number is not None and signal.getsignal(number) in usual:
            before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number, frame):
    """Ends the command, but not in the midst of what libsndfile calls.

    An error raised there is printed and lost, and the file is taken for a broken one.
    """
    if _is_in_callback(frame):
        threading.Timer(AGAIN_SECONDS, _send, (number,)).start()
    elif number == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        sys.exit(128 + number)


def _send(number):
    if hasattr(signal, "pthread_kill"):  # wakes the main thread up, too
        signal.pthread_kill(threading.main_thread().ident, number)
    else:  # on Windows
        signal.raise_signal(number)


def _is_in_callback(frame):
    while frame is not None:
        if frame.f_code.co_name.startswith("vio_"):  # soundfile's
            return True
        frame = frame.f_back
    return False


@_ended_in_order()
def main(arguments=None):
    """Runs a command.

    Arguments
    ---------
    arguments : list of str, optional
        By default those of the process.

    Returns
    -------
    int
        The exit code: 0 if all is done, 1 after an error, 3 where an output is not the
        person (`tse extract --require-match`), 130 after Ctrl+C. Wrong options end
        with 2, as argparse has it.
    """
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Names of files go out as they are, UTF-8 or not.
            sys.stdout.reconfigure(errors="surrogateescape")
        hide_warnings_of_others()
        options = build_parser().parse_args(arguments)
        return COMMANDS[options.command].run(options)
    # ImportError names the optional extra that a command needs.
    except (ValueError, OSError, ImportError) as error:
        # Ours lists what is wrong, line by line, where it is more than one thing.
        tell = printable if isinstance(error, DataError) else one_line
        print(f"tse: error: {tell(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tse: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
