"""The models that come with the package: what each is, and which fits a recording."""

from typing import NamedTuple

from speechbrain_peer.packaging import loading
from speechbrain_peer.packaging.safe_yaml import read_text, read_yaml

IMPROVEMENT = "SI-SDRi (dB)"


class Bundled(NamedTuple):
    """A model of the package, as its files tell; nothing is built for it."""

    name: str
    sample_rate: int
    """In Hz."""
    causal: bool
    """Whether it can extract from live streams."""
    lends: bool
    """Whether several recordings can lend to each other."""
    megabytes: float
    """Of its weights."""
    si_sdri: str
    """In dB, as its card has it; "-" where that tells none."""


def list_bundled():
    """Describes the models that come with the package.

    Returns
    -------
    list of Bundled
        Sorted by name.

    Example
    -------
    >>> [model.sample_rate for model in list_bundled() if model.name == "small-8k"]
    [8000]
    """
    return [_describe(name) for name in loading.bundled_models()]


def choose_bundled(rate=None, live=False, together=False):
    """Chooses the model that fits a recording.

    Of those that look ahead, or for live use of those that do not, and of those for
    single recordings, or for several of those that let them lend, it is the one with
    the highest rate that is not above the recording's: what it does not have, a model
    of a higher rate would miss. Where all are above, it is the lowest. Of several of
    one rate it is the largest, or of several as large the first by name.

    Arguments
    ---------
    rate : int or None
        Of the recording in Hz; None if any may come: the highest.
    live : bool
        Whether it is for streams.
    together : bool
        Whether there are several recordings of one moment.

    Returns
    -------
    Bundled

    Example
    -------
    >>> choose_bundled(rate=8000).name
    'small-8k'
    """
    models = list_bundled()
    # Where none is of the wanted kind, whoever loads another tells what it cannot do.
    models = [model for model in models if model.causal == live] or models
    models = [model for model in models if model.lends == together] or models
    fitting = [model for model in models if rate is None or model.sample_rate <= rate]
    # Weights of one shape differ by some bytes.
    if fitting:
        return max(fitting, key=lambda x: (x.sample_rate, round(x.megabytes, 1)))
    return min(models, key=lambda x: (x.sample_rate, -round(x.megabytes, 1)))


def _describe(name):
    folder = loading.BUNDLED / name
    hparams, card = read_yaml(folder / loading.HPARAMS_FILE), folder / loading.CARD_FILE
    return Bundled(
        name,
        hparams["sample_rate"],
        bool(hparams["separator"].get("causal", False)),
        bool(hparams["mask_head"].get("lends", False)),
        (folder / loading.WEIGHTS_FILE).stat().st_size / 1e6,
        _figure(read_text(card)) if card.exists() else "-",
    )


def _figure(card):
    """The improvement of the estimate, in the first table of a card that has it.

    Example
    -------
    >>> _figure(
    ...     "| | SI-SDRi (dB) |\\n|---|---:|\\n| mixture | - |\\n| estimate | 8.57 |"
    ... )
    '8.57'
    >>> _figure("Not tested.")
    '-'
    """
    rows = (line.strip().strip("|").split("|") for line in card.splitlines())
    column = None
    for cells in ([cell.strip() for cell in row] for row in rows):
        if IMPROVEMENT in cells:
            column = column or cells.index(IMPROVEMENT)
        elif column is not None and cells[0] == "estimate" and column < len(cells):
            return cells[column]
    return "-"
