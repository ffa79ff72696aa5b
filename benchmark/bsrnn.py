"""BSRNN, small and base, beside a plain PyTorch version of it and TD-SpeakerBeam."""

import functools
from itertools import product
from pathlib import Path

import torch

from benchmark.measure import precisions_on, time_in_turns
from benchmark.model import TrainingStep, build, extract_once
from benchmark.plain_bsrnn import PlainMaskHead, PlainSeparator
from benchmark.report import Table
from speechbrain_peer.packaging.export import build_stages

RECIPE = Path(__file__).parents[1] / "hparams" / "bsrnn.yaml"
PLAIN, OURS = "plain PyTorch", "ours"
CAUSAL = "ours, causal"
NOTES = (
    "Plain PyTorch and ours compute the same function, with `nn.LSTM`'s second biases "
    "in the former. TD-SpeakerBeam is of its full size.",
    "Extraction: real-time factor.",
)


def build_bsrnn(model, causal=False):
    """BSRNN, of hparams/bsrnn.yaml.

    Arguments
    ---------
    model : dict
        Entries of the YAML, its sizes.
    causal : bool

    Returns
    -------
    torch.nn.ModuleDict
    """
    overrides = {"exchange": "none", "causal": causal} | model
    return build_stages(RECIPE, overrides)[0]


def build_plain(model):
    """The same with separator and mask head in plain PyTorch.

    Arguments
    ---------
    model : dict
        Entries of the YAML, its sizes.

    Returns
    -------
    torch.nn.ModuleDict
    """
    stages = build_bsrnn(model)
    separator, mask_head = stages["separator"], stages["mask_head"]
    bands, (_, channels, _) = separator.split.bands, separator.split.weights[0].shape
    hidden_channels = separator.blocks[0].over_time.weight_hh.shape[-1]
    temperature = separator.tf_map.temperature
    sizes = (channels, hidden_channels, len(separator.blocks), temperature)
    stages["separator"] = PlainSeparator(bands, *sizes)
    stages["mask_head"] = PlainMaskHead(
        bands, channels, mask_head.widen.weights[0].shape[1]
    )
    return stages


def compare_bsrnn(sizes, repeats, device):
    """Measures training steps and extraction of each size.

    Arguments
    ---------
    sizes : Sizes
    repeats : int
        Rounds that count.
    device : str
        `cpu` or `cuda`.

    Yields
    ------
    Table
        Of a size.
    """
    for name, model in sizes.bsrnn.items():
        yield _compare(f"BSRNN, {name}", model, sizes, repeats, device)


def _compare(title, model, sizes, repeats, device):
    precisions, seconds = precisions_on(device), min(sizes.long_seconds)
    to_train = [f"training, {precision} [s per mixture]" for precision in precisions]
    to_extract = [f"extraction, {seconds:g} s, {precision}" for precision in precisions]
    title += f": steps of {sizes.n_mixtures} mixtures of {sizes.seconds:g} s"
    table = Table(title, to_train + to_extract)
    table.notes.extend(NOTES)
    builders = {
        PLAIN: functools.partial(build_plain, model),
        OURS: functools.partial(build_bsrnn, model),
        CAUSAL: functools.partial(build_bsrnn, model, causal=True),
        "TD-SpeakerBeam": functools.partial(build, sizes, "none"),
    }
    cases = {
        (row, column): TrainingStep(builders[row](), "none", precision, device, sizes)
        for row, (precision, column) in product(
            builders, zip(precisions, to_train, strict=True)
        )
    }
    for cell, taken in time_in_turns(cases, repeats, device, title).items():
        table.add(*cell, [second / sizes.n_mixtures for second in taken])
    mixture = torch.randn(1, round(seconds * sizes.sample_rate), device=device)
    enrollment = torch.randn(1, sizes.samples, device=device)
    models = {row: builders[row]().to(device) for row in builders}
    cases = {
        (row, column): functools.partial(
            extract_once, models[row], precision, mixture, enrollment
        )
        for row, (precision, column) in product(
            builders, zip(precisions, to_extract, strict=True)
        )
    }
    for cell, taken in time_in_turns(cases, repeats, device, title).items():
        table.add(*cell, [second / seconds for second in taken])
    return table
