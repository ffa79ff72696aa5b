"""Extracts one person's speech from audio files and folders of them."""

import os
import sys
from pathlib import Path

from speechbrain_peer.cli.options import (
    add_model_options,
    existing_file,
    load_interface,
)
from speechbrain_peer.utils.files import DataError

EXAMPLES = ["tse extract meeting.wav -e anna.wav -o anna_only.wav"]

MOST_NAMED = 10
"""Files of which a message gives the names."""


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add("mixture", help="recording, or a folder of recordings")
    add(
        "-e",
        "--enrollment",
        nargs="+",
        required=True,
        metavar="FILE",
        type=existing_file,
        help="speech of that person alone, a few seconds; several files are averaged",
    )
    add(
        "-o",
        "--output",
        required=True,
        help="file to write, or for a folder the folder to fill",
    )
    add_model_options(add)


def run(options):
    """Extracts; of a folder, from all that can be read."""
    from speechbrain_peer.inference.recordings import check_output

    pairs = list_files(options.mixture, options.output)
    model = load_interface(options)
    embedding = model.encode_speaker_files(options.enrollment)
    failures = 0
    for mixture, output in pairs:
        try:
            check_output(output, options.enrollment)
            _, match = model.extract_file(
                mixture, embeddings=embedding, output_path=output, return_match=True
            )
            print(output if match is None else f"{output}\tmatch {match:.2f}")
        except (ValueError, OSError) as error:
            if len(pairs) == 1:
                raise
            failures += 1
            print(f"tse: error: {error}", file=sys.stderr)
    if failures:
        print(f"tse: {failures} of {len(pairs)} files failed", file=sys.stderr)
    return 1 if failures else 0


def list_files(mixture, output):
    """Pairs every recording with the file to write; tells which files are none.

    Arguments
    ---------
    mixture : str or pathlib.Path
        A file or a folder, which is searched with all folders in it.
    output : str or pathlib.Path
        A file or, for a folder, a folder: files keep their place and name in it.

    Returns
    -------
    list of (pathlib.Path, pathlib.Path)

    Raises
    ------
    DataError
        If the folder holds no audio, or the output lies in it.
    """
    from speechbrain_peer.inference.recordings import audio_suffixes

    mixture, output = Path(mixture), Path(output)
    if not mixture.is_dir():
        return [(mixture, output)]
    if output.resolve().is_relative_to(mixture.resolve()):
        raise DataError(f"{output}: lies in the folder of recordings; choose another")
    names = sorted(
        Path(folder, name).relative_to(mixture)
        for folder, _, names in os.walk(mixture)
        for name in names
    )
    known = audio_suffixes()
    others = [name for name in names if name.suffix.lower() not in known]
    if len(others) == len(names):
        raise DataError(f"{mixture}: holds no audio files")
    if others:
        print(f"tse: skipped as not audio: {_listed(others)}", file=sys.stderr)
    return [
        (mixture / name, output / name)
        for name in names
        if name.suffix.lower() in known
    ]


def _listed(names):
    """The first names of a list, and how many more there are."""
    text = ", ".join(map(str, names[:MOST_NAMED]))
    more = len(names) - MOST_NAMED
    return f"{text} and {more} more" if more > 0 else text
