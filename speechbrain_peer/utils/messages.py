"""What commands say: an error in one line, and no warnings of other packages."""

import logging
import sys
import unicodedata
import warnings

OURS = "speechbrain_peer"


def printable(text):
    """Takes out what a terminal would obey instead of showing it.

    Arguments
    ---------
    text : str
        Of any origin, such as a model's card.

    Returns
    -------
    str
        Without control characters; newlines and tabs stay.

    Example
    -------
    >>> printable("a\\x1b[31m red\\tword\\r\\n")
    'a[31m red\\tword\\n'
    """
    return "".join(
        character
        for character in text
        if character in "\n\t" or unicodedata.category(character) != "Cc"
    )


def one_line(text):
    """Writes what may have several lines, such as an error of a library, as one.

    Of an error in a data loader's process, without the traceback that PyTorch puts
    before it.

    Arguments
    ---------
    text : Exception or str
        What to tell.

    Returns
    -------
    str

    Example
    -------
    >>> one_line("Missing keys:\\n\\tencoder.weight")
    'Missing keys: encoder.weight'
    """
    lines = [line.strip() for line in printable(str(text)).strip().splitlines()]
    if "Original Traceback" in "".join(lines):
        # Its last line is "package.Class: message".
        return lines[-1].partition(": ")[2]
    return " ".join(filter(None, lines))


def hide_warnings_of_others():
    """Shows the messages of this package, and of others only errors.

    Warnings of dependencies (of optional packages that are absent, of changes to come)
    are for us, not for users. Python's own switch, `-W default`, shows them again.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    # By record, as SpeechBrain sets the levels of its own loggers.
    handler.addFilter(
        lambda record: (
            record.levelno >= logging.ERROR or record.name.split(".")[0] == OURS
        )
    )
    # Does nothing where logging has been configured.
    logging.basicConfig(handlers=[handler])
    logging.getLogger(OURS).setLevel(logging.INFO)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=OURS)
