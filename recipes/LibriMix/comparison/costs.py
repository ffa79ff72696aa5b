"""Table III: parameters, multiply-adds and speed of the models."""

import functools
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmark.measure import time_in_turns
from recipes.LibriMix.comparison.tables import markdown_table
from speechbrain_peer.packaging.export import STAGES, build_stages
from speechbrain_peer.peer_learning.exchange import (
    embed,
    extract,
    has_predictors,
)
from speechbrain_peer.peer_learning.predictors import can_fold, fold_predictors

SECONDS = 10.0
"""Of the mixture to extract from."""
ENROLLMENT_SECONDS = 3.0
REPEATS = 5
# Trainable and total parameters in millions, in the paper.
PAPER = {"TD-SpeakerBeam": "7.1 / 18.3", "TD-SpeakerBeam + PL": "7.8 / 19.0"}
REMARKS = (
    "Trained: with the predictors and what only the training needs; exported: the "
    "stages that extract, predictors folded into the mask head. The paper's figures "
    "are of the full size, and it does not explain its total.",
    f"GMAC/s: billions of multiply-adds per second of audio, of a mixture of "
    f"{SECONDS:g} s, and of an enrollment, which is embedded once for all mixtures. "
    "Matrix products and convolutions are counted; not counted are elementwise "
    "operations, norms, Fourier transforms, recurrent layers and the depthwise "
    "convolutions of temporal convolutional networks (three multiply-adds per frame "
    "and hidden channel), which are not made of products.",
    f"Real-time factor: seconds of work per second of a mixture of {SECONDS:g} s, "
    f"which is extracted from in whole, without the embedding; median of {REPEATS}, "
    "fp32, one process. The weights are random, which changes none of this.",
)


def count_macs(function):
    """Counts the multiply-adds of matrix products and convolutions.

    Arguments
    ---------
    function : callable
        Without arguments.

    Returns
    -------
    int

    Example
    -------
    >>> layer = torch.nn.Linear(8, 16)
    >>> count_macs(lambda: layer(torch.rand(10, 8)))
    1280
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    # The counter does not know the fused kernels of attention on CPUs.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            function()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


def measure_costs(groups):
    """Measures every model of which there are runs, once.

    Arguments
    ---------
    groups : list of Group

    Returns
    -------
    list of dict
        Of each model its name, as `model`, and its systems, with what `measure_model`
        returns, or with `error` where it cannot be built.
    """
    models = {}
    for group in groups:
        for system in group.systems:
            run = system.first
            name = run.backbone + (" + PL" if has_predictors(run.exchange) else "")
            entry = {"model": name, "hparams_file": str(run.hparams_file)}
            try:
                stages, sample_rate = build_stages(run.hparams_file)
            # A run's layers may be gone, or not be this package's.
            except (ValueError, TypeError, ImportError, AttributeError) as error:
                key = run.hparams_file
                entry["error"] = str(error).splitlines()[0]
            else:
                key = (name, sample_rate, _structure(stages))
                if key not in models:
                    entry |= measure_model(stages, sample_rate, name)
            models.setdefault(key, entry | {"systems": []})
            models[key]["systems"].append(f"{group.label}: {system.name}")
    return list(models.values())


def measure_model(stages, sample_rate, title):
    """Measures one model on noise.

    Arguments
    ---------
    stages : torch.nn.ModuleDict
        As in training.
    sample_rate : int
        In Hz.
    title : str
        Of the progress bar.

    Returns
    -------
    dict
        `trained_` and `exported_`: `parameters`, `macs_per_second` and
        `real_time_factor`; `trainable_parameters`, and
        `enrollment_macs_per_second`.
    """
    stages = stages.eval()
    exported = {name: stages[name] for name in STAGES if name in stages}
    if can_fold(exported):
        exported = fold_predictors(exported)
    forms = {"trained": stages, "exported": torch.nn.ModuleDict(exported)}
    mixture = torch.randn(1, round(SECONDS * sample_rate))
    enrollment = torch.randn(1, round(ENROLLMENT_SECONDS * sample_rate))
    with torch.inference_mode():
        embedding = embed(stages, enrollment)
        cases = {
            form: functools.partial(extract, modules, mixture, embedding)
            for form, modules in forms.items()
        }
        seconds = time_in_turns(cases, REPEATS, "cpu", title)
    entry = {
        "trainable_parameters": _count(
            parameter for parameter in stages.parameters() if parameter.requires_grad
        )
    }
    for form, modules in forms.items():
        entry[f"{form}_parameters"] = _count(modules.parameters())
        entry[f"{form}_macs_per_second"] = count_macs(cases[form]) / SECONDS
        entry[f"{form}_real_time_factor"] = statistics.median(seconds[form]) / SECONDS
    embedding_macs = count_macs(lambda: embed(stages, enrollment))
    return entry | {"enrollment_macs_per_second": embedding_macs / ENROLLMENT_SECONDS}


def cost_table(entries):
    """Writes Table III.

    Arguments
    ---------
    entries : list of dict
        From `measure_costs`.

    Returns
    -------
    str
        Markdown.
    """
    headings = ("model", *_COLUMNS, "paper: trainable / total (M)", "systems")
    paragraphs = [markdown_table(headings, map(_row, entries)), *REMARKS]
    paragraphs += [
        f"{entry['model']} is not measured: {entry['error']}"
        for entry in entries
        if "error" in entry
    ]
    return "\n\n".join(paragraphs)


# Key, factor and format of the figures by heading.
_COLUMNS = {
    "trainable (M)": ("trainable_parameters", 1e-6, ".2f"),
    "total (M)": ("trained_parameters", 1e-6, ".2f"),
    "exported (M)": ("exported_parameters", 1e-6, ".2f"),
    "GMAC/s, trained": ("trained_macs_per_second", 1e-9, "#.3g"),
    "GMAC/s, exported": ("exported_macs_per_second", 1e-9, "#.3g"),
    "GMAC/s, enrollment": ("enrollment_macs_per_second", 1e-9, "#.3g"),
    "real-time factor, trained": ("trained_real_time_factor", 1, "#.3g"),
    "real-time factor, exported": ("exported_real_time_factor", 1, "#.3g"),
}


def _row(entry):
    cells = [
        f"{entry[key] * factor:{form}}" if key in entry else "-"
        for key, factor, form in _COLUMNS.values()
    ]
    paper = PAPER.get(entry["model"], "-")
    return [entry["model"], *cells, paper, "; ".join(entry["systems"])]


def _structure(stages):
    """What makes models cost the same: classes, plain attributes and shapes."""
    layers = [
        (name, type(layer), _plain_attributes(layer))
        for name, layer in stages.named_modules()
    ]
    shapes = [(name, weight.shape) for name, weight in stages.named_parameters()]
    return repr((layers, shapes))


def _plain_attributes(layer):
    return {
        name: value
        for name, value in vars(layer).items()
        if isinstance(value, (int, float, str, tuple))
    }


def _count(parameters):
    return sum(parameter.numel() for parameter in parameters)
