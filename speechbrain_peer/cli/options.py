"""The types of options, which check a value before any work, and shared options.

Of an option's value that cannot be, argparse tells and ends with 2. Of a file that is
not there, `OSError` tells, which argparse lets through, and the command ends with 1.
"""

import argparse
import math
import sys
from pathlib import Path

from speechbrain_peer.data.layout import CHOICES


def whole_number(least, most=None):
    """Makes the type of an option that is a whole number in a range.

    Arguments
    ---------
    least : int
        The smallest that is taken.
    most : int, optional
        The largest that is taken.

    Returns
    -------
    callable
        From text to int.

    Example
    -------
    >>> whole_number(0)("12")
    12
    >>> whole_number(1, 65535)("70000")
    Traceback (most recent call last):
        ...
    argparse.ArgumentTypeError: '70000' is not a whole number from 1 to 65535
    """

    numbers = f"of {least} or more" if most is None else f"from {least} to {most}"

    def convert(text):
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number {numbers}"
            )
        return number

    return convert


def positive_number(text):
    """The type of an option that is a number above zero.

    Example
    -------
    >>> positive_number("2.5")
    2.5
    >>> positive_number("nan")
    Traceback (most recent call last):
        ...
    argparse.ArgumentTypeError: 'nan' is not a number above zero
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return number


def existing_file(text):
    """The type of an option that is a file to read.

    Raises
    ------
    OSError
        If it is not there, or no regular file (a pipe would be waited for).
    """
    path = Path(text)
    if path.is_file():
        return path
    raise OSError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")


def existing_folder(text):
    """The type of an option that is a folder to read from.

    Raises
    ------
    OSError
        If it is not there, or no folder.
    """
    path = Path(text)
    if path.is_dir():
        return path
    raise OSError(f"{path}: {'is not a folder' if path.exists() else 'no such folder'}")


def folder_to_fill(text):
    """The type of an option that is a folder to write into; it need not be there yet.

    Raises
    ------
    OSError
        If it is something else.
    """
    return existing_folder(text) if Path(text).exists() else Path(text)


def device(text):
    """The type of `--device`; PyTorch is asked for all but the CPU."""
    if text != "cpu":
        from speechbrain_peer.utils.runtime import check_device

        try:
            check_device(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return text


def add_making(add, of_seed, of_processes):
    """Declares what commands that make data share; `add` is `add_argument`.

    Arguments
    ---------
    add : callable
        The parser's `add_argument`.
    of_seed : str
        What the seed decides, for the help.
    of_processes : str
        What the processes do, for the help.
    """
    rates = CHOICES["sample_rate"]
    add("--sample_rate", type=int, default=8000, choices=rates, help="in Hz")
    of_seed = f"{of_seed} (default: %(default)s)"
    add("--seed", type=whole_number(0), default=1234, help=of_seed)
    of_processes = f"{of_processes}; all CPUs if left out"
    add("--n_processes", type=whole_number(1), help=of_processes)


def add_device(add):
    """Declares where a command computes; `add` is `add_argument`."""
    add("--device", type=device, default="cpu", help="such as cpu (default) or cuda:0")


def add_trust(add):
    """Declares what a model's YAML may do; `add` is `add_argument`."""
    add(
        "--trust",
        action="store_true",
        help="build whatever the model's YAML names, such as layers of your own code; "
        "it can run any code, so trust its author",
    )


def add_manifest(add, purpose):
    """Declares the trials of a command; `add` is `add_argument`.

    Arguments
    ---------
    add : callable
        The parser's `add_argument`.
    purpose : str
        Of which speakers, for the help.
    """
    add("manifest", type=existing_file, help=f"{purpose}, as `tse prepare` writes them")
    add(
        "--data_root",
        type=existing_folder,
        help="what {data_root} in the manifest stands for; by default what `tse "
        "prepare` has written beside it",
    )


def add_judge(add, purpose):
    """Declares a network that knows speakers; `add` is `add_argument`.

    Arguments
    ---------
    add : callable
        The parser's `add_argument`.
    purpose : str
        What it does, for the help.
    """
    add(
        "--judge",
        metavar="NAME",
        help=f"{purpose}, a network that knows speakers and had no part in the "
        "extraction: resemblyzer (pip install --no-deps resemblyzer), or a speaker "
        "encoder of SpeechBrain, a folder or one of the Hugging Face Hub, such as "
        "speechbrain/spkrec-ecapa-voxceleb; its YAML can run any code, so trust its "
        "author",
    )


def add_model_options(add):
    """Declares which model a command runs, and how; `add` is `add_argument`."""
    add(
        "-m",
        "--model",
        help="folder of an exported model, a model of this package (`tse info` lists "
        "them; default: the one that fits the recording's rate), or one of the Hugging "
        "Face Hub",
    )
    add_device(add)
    add(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto (default): bf16 on CPUs with instructions for it, where it is about "
        "twice as fast and, measured with small-8k, changes the SI-SDR by less than "
        "0.05 dB on average; else fp32",
    )
    add_trust(add)


def choose_model(options, rate=None, live=False, together=False):
    """Chooses a model of the package where none is given, and tells which.

    Arguments
    ---------
    options : argparse.Namespace
        Its `model` is filled in.
    rate : int or None
        Of the recording, in Hz; None if any may come.
    live : bool
        Whether it is for streams.
    together : bool
        Whether there are several recordings of one moment.
    """
    if options.model is not None:
        return
    from speechbrain_peer.packaging.catalogue import choose_bundled

    chosen = choose_bundled(rate, live, together)
    options.model = chosen.name
    print(
        f"tse: model {chosen.name}, {chosen.sample_rate} Hz (--model chooses another)",
        file=sys.stderr,
    )


def load_interface(options):
    """Loads the model that a command is to run.

    Arguments
    ---------
    options : argparse.Namespace
        With `model`, `device` and `trust`; `precision` is fp32 where it has none.

    Returns
    -------
    speechbrain_peer.TargetSpeechExtraction
    """
    from speechbrain_peer.inference.interface import TargetSpeechExtraction
    from speechbrain_peer.utils.runtime import fastest_precision, keep_freed_memory

    keep_freed_memory()
    precision = getattr(options, "precision", "fp32")
    if precision == "auto":
        precision = fastest_precision(options.device)
    return TargetSpeechExtraction.from_hparams(
        source=options.model,
        run_opts={"device": options.device, "precision": precision},
        trust=options.trust,
    )


def load_judge(options):
    """Loads the judge of a command.

    Arguments
    ---------
    options : argparse.Namespace
        With `judge` and `device`.

    Returns
    -------
    speechbrain_peer.inference.judges.Judge or None
        None where none is asked for.
    """
    if options.judge is None:
        return None
    from speechbrain_peer.inference import judges

    return judges.load_judge(options.judge, options.device)
