"""Lists the models of this package, or describes one: stages, sizes, model card."""

import json
import re

from speechbrain_peer.cli.options import add_trust
from speechbrain_peer.utils.messages import printable

EXAMPLES = ["tse info", "tse info small-8k"]


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        help="folder, model of this package or of the Hugging Face Hub; without one, "
        "those of this package are listed",
    )
    add_trust(add)


def run(options):
    """Prints the list; or the description, and the card with examples to paste."""
    if options.model is None:
        from speechbrain_peer.packaging.catalogue import list_bundled

        print(table_of(list_bundled()))
        return 0
    from speechbrain_peer.packaging.loading import (
        level_of,
        load_card,
        load_model,
        locate_model,
    )

    modules, hparams = load_model(options.model, trust=options.trust)
    level = level_of(hparams, options.model)
    print(printable(describe(modules, hparams["sample_rate"], level)))
    card = load_card(options.model)
    if card:
        card = with_source(card, locate_model(options.model))
        print(f"\n{printable(card)}", end="")
    return 0


def table_of(models):
    """One line for each model of the package.

    Arguments
    ---------
    models : list of speechbrain_peer.packaging.catalogue.Bundled

    Returns
    -------
    str

    Example
    -------
    >>> from speechbrain_peer.packaging.catalogue import Bundled
    >>> print(table_of([Bundled("small-8k", 8000, False, False, 2.61, "8.57")]))
    name      rate (Hz)  causal  together  weights (MB)  SI-SDRi (dB)
    small-8k       8000      no        no           2.6          8.57
    <BLANKLINE>
    causal: for live streams; together: for several recordings of one moment.
    SI-SDRi: on the test set that the model's card tells of (tse info NAME).
    """
    width = max(map(len, ["name", *(model.name for model in models)]))
    head = "rate (Hz)  causal  together  weights (MB)  SI-SDRi (dB)"
    lines = [f"{'name':{width}}  {head}"]
    for model in models:
        causal, together = (
            "yes" if can else "no" for can in (model.causal, model.lends)
        )
        lines.append(
            f"{model.name:{width}}  {model.sample_rate:>9}  {causal:>6}  "
            f"{together:>8}  {model.megabytes:>12.1f}  {model.si_sdri:>12}"
        )
    lines += [
        "",
        "causal: for live streams; together: for several recordings of one moment.",
        "SI-SDRi: on the test set that the model's card tells of (tse info NAME).",
    ]
    return "\n".join(lines)


def with_source(card, source):
    """Lets the Python examples of a card load the model from where it is.

    A card knows only the model's name, which SpeechBrain's own loader would look for
    on the Hugging Face Hub.

    Arguments
    ---------
    card : str
        The card's text.
    source : str
        A folder or a name on the Hub.

    Returns
    -------
    str

    Example
    -------
    >>> with_source('model = load(source="my-model")', "/models/mine")
    'model = load(source="/models/mine")'
    """
    return re.sub(r'\bsource="[^"]*"', lambda _: f"source={json.dumps(source)}", card)


def describe(modules, sample_rate, level="mixture"):
    """One line for each stage, with its class and parameters.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        The stages.
    sample_rate : int
        In Hz.
    level : str
        Where the level of outputs comes from; see `utils.signal.set_level`.

    Returns
    -------
    str

    Example
    -------
    >>> from torch import nn
    >>> print(describe(nn.ModuleDict({"mask_head": nn.Linear(9, 99)}), 8000))
    sample rate  8000 Hz
    level        mixture
    mask_head         990  torch.nn.modules.linear.Linear
    total             990  parameters
    """
    counts = {
        name: sum(parameter.numel() for parameter in stage.parameters())
        for name, stage in modules.items()
    }
    width = max(map(len, counts))
    lines = [f"sample rate  {sample_rate} Hz", f"level        {level}"]
    for name, stage in modules.items():
        kind = f"{type(stage).__module__}.{type(stage).__qualname__}"
        lines.append(f"{name:{width}}  {counts[name]:>10,}  {kind}")
    lines.append(f"{'total':{width}}  {sum(counts.values()):>10,}  parameters")
    return "\n".join(lines)
