"""Describes a model: sample rate, stages, sizes, model card."""

from speechbrain_peer.packaging.loading import load_card, load_model


def add_arguments(parser):
    """Declares the options."""
    parser.add_argument(
        "model", help="folder, model of this package or of the Hugging Face Hub"
    )


def run(options):
    """Prints the description."""
    modules, hparams = load_model(options.model)
    print(describe(modules, hparams["sample_rate"]))
    card = load_card(options.model)
    if card:
        print(f"\n{card}", end="")
    return 0


def describe(modules, sample_rate):
    """One line for each stage, with its class and parameters.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        The stages.
    sample_rate : int
        In Hz.

    Returns
    -------
    str

    Example
    -------
    >>> from torch import nn
    >>> print(describe(nn.ModuleDict({"mask_head": nn.Linear(9, 99)}), 8000))
    sample rate  8000 Hz
    mask_head         990  torch.nn.modules.linear.Linear
    total             990  parameters
    """
    counts = {
        name: sum(parameter.numel() for parameter in stage.parameters())
        for name, stage in modules.items()
    }
    width = max(map(len, counts))
    lines = [f"sample rate  {sample_rate} Hz"]
    for name, stage in modules.items():
        kind = f"{type(stage).__module__}.{type(stage).__qualname__}"
        lines.append(f"{name:{width}}  {counts[name]:>10,}  {kind}")
    lines.append(f"{'total':{width}}  {sum(counts.values()):>10,}  parameters")
    return "\n".join(lines)
