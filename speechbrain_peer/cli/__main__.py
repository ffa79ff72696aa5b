"""Reads the command line and runs one command."""

import argparse
import sys

from speechbrain_peer.cli import calibrate, demo, export, extract, info
from speechbrain_peer.utils.runtime import check_device

COMMANDS = {
    "extract": extract,
    "info": info,
    "export": export,
    "calibrate": calibrate,
    "demo": demo,
}


def parse_arguments(arguments=None):
    """Reads the command line; every command's module declares its own part."""
    parser = argparse.ArgumentParser(
        prog="tse", description="Extracts one person's speech from recordings."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        summary = command.__doc__.splitlines()[0]
        command.add_arguments(
            commands.add_parser(name, help=summary, description=summary)
        )
    return parser.parse_args(arguments)


def main(arguments=None):
    """Runs a command; returns the exit code: 0 if all is done, 1 after an error.

    Wrong options end with 2, as argparse has it.
    """
    options = parse_arguments(arguments)
    try:
        if "device" in options:
            check_device(options.device)
        return COMMANDS[options.command].run(options)
    except (ValueError, OSError) as error:
        print(f"tse: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
