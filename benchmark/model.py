"""The whole model, with and without peer learning: training steps and extraction."""

import functools
from itertools import product
from pathlib import Path

import torch
from torch import nn

from benchmark.measure import (
    compiling,
    precision_context,
    precisions_on,
    time_in_turns,
)
from benchmark.report import Table
from speechbrain_peer.packaging.export import build_stages
from speechbrain_peer.peer_learning.exchange import PeerLearning, embed, extract
from speechbrain_peer.peer_learning.losses import PeerLoss
from speechbrain_peer.peer_learning.predictors import fold_predictors

RECIPE = Path(__file__).parents[1] / "hparams" / "td_speakerbeam_pl.yaml"
# The entries of the YAML that the sizes give.
SIZES = (
    *("n_filters", "kernel_size", "stride", "channels", "hidden_channels"),
    *("n_blocks", "n_repeats"),
)
WITH_PEERS = "TD-SpeakerBeam + PL"
EXCHANGES = {"TD-SpeakerBeam": "none", WITH_PEERS: "better"}
MAX_GRAD_NORM = 5.0
LONG_ROUNDS = {"repeats": 1, "warm_up": 1}  # of what takes long


def build(sizes, exchange):
    """TD-SpeakerBeam, of hparams/td_speakerbeam_pl.yaml.

    Arguments
    ---------
    sizes : Sizes
    exchange : str
        One of `peer_learning.exchange.EXCHANGES`.

    Returns
    -------
    torch.nn.ModuleDict
    """
    overrides = {key: getattr(sizes, key) for key in SIZES} | {"exchange": exchange}
    stages, _ = build_stages(RECIPE, overrides)
    return stages


class TrainingStep:
    """A step as the recipe's: forward, loss, backward, clipping and Adam.

    Arguments
    ---------
    stages : torch.nn.ModuleDict
    exchange : str
        With `none` the mixtures are single ones, else pairs of peers.
    precision : str
        `fp32` or `bf16`.
    device : str
        `cpu` or `cuda`.
    sizes : Sizes
        Of a batch of so many mixtures, all in all.
    compiled : bool
        Whether the blocks are, on GPUs.
    """

    def __init__(self, stages, exchange, precision, device, sizes, compiled=True):
        self.precision, self.device, self.compiled = precision, device, compiled
        self.peer_learning = PeerLearning(exchange)
        self.stages = stages.to(device)
        self.loss = PeerLoss()
        self.optimizer = torch.optim.Adam(self.stages.parameters(), lr=1e-3, fused=True)
        noise = torch.randn(sizes.n_mixtures, sizes.samples, device=device)
        n_targets = sizes.n_mixtures // (1 if exchange == "none" else 2)
        self.mixtures, self.targets = noise, noise[:n_targets].flip(1)
        self.enrollments = noise[:n_targets].flip(0)
        self.lens = torch.ones(n_targets, device=device)

    def __call__(self):
        """Runs it."""
        with precision_context(self.precision, self.device), compiling(self.compiled):
            embeddings = embed(self.stages, self.enrollments, self.lens)
            outputs = self.peer_learning(
                self.stages, self.mixtures, embeddings, self.targets, self.lens
            )
            loss, _ = self.loss(outputs, self.targets, self.lens)
        loss.backward()
        nn.utils.clip_grad_norm_(self.stages.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@torch.inference_mode()
def extract_once(stages, precision, mixture, enrollment):
    """Embeds the speaker and extracts from the whole mixture at once."""
    with precision_context(precision, mixture.device.type):
        return extract(stages, mixture, embed(stages, enrollment))


def time_training(sizes, repeats, device):
    """Measures training steps of equally many mixtures.

    Arguments
    ---------
    sizes : Sizes
    repeats : int
        Rounds that count.
    device : str
        `cpu` or `cuda`.

    Returns
    -------
    Table
        Of seconds per mixture; rows are the keys of `EXCHANGES`, on GPUs also
        without compiled blocks.
    """
    n_mixtures = sizes.n_mixtures
    table = Table(
        f"Training, a step of {n_mixtures} mixtures of {sizes.seconds:g} s",
        [f"{precision} [s per mixture]" for precision in precisions_on(device)],
    )
    columns = list(zip(precisions_on(device), table.columns, strict=True))
    cases = {}
    for row, (precision, column) in product(EXCHANGES, columns):
        exchange = EXCHANGES[row]
        arguments = (exchange, precision, device, sizes)
        cases[row, column] = TrainingStep(build(sizes, exchange), *arguments)
        if device == "cuda":
            stages = build(sizes, exchange)
            plain = TrainingStep(stages, *arguments, compiled=False)
            cases[f"{row}, not compiled", column] = plain
    for cell, seconds in time_in_turns(cases, repeats, device, "training").items():
        table.add(*cell, [second / n_mixtures for second in seconds])
    return table


def time_extraction(sizes, repeats, device):
    """Measures the real-time factor: seconds of work per second of audio.

    Arguments
    ---------
    sizes : Sizes
    repeats : int
        Rounds that count, fewer for the longest mixtures.
    device : str
        `cpu` or `cuda`.

    Returns
    -------
    Table
    """
    precisions = precisions_on(device)
    table = Table(
        "Extraction, real-time factor",
        [
            f"{seconds:g} s, {precision}"
            for seconds, precision in product(sizes.long_seconds, precisions)
        ],
    )
    table.notes.append("Every mixture is extracted from in whole.")
    with_peers = fold_predictors(build(sizes, "better"))
    models = {
        "TD-SpeakerBeam": build(sizes, "none").to(device),
        f"{WITH_PEERS}, as exported": nn.ModuleDict(with_peers).to(device),
    }
    enrollment = torch.randn(1, sizes.samples, device=device)
    for seconds in sizes.long_seconds:
        mixture = torch.randn(1, round(seconds * sizes.sample_rate), device=device)
        cases = {
            (row, f"{seconds:g} s, {precision}"): functools.partial(
                extract_once, stages, precision, mixture, enrollment
            )
            for (row, stages), precision in product(models.items(), precisions)
        }
        rounds = {"repeats": repeats}
        if seconds > min(sizes.long_seconds):
            rounds = LONG_ROUNDS
        title = f"extraction from {seconds:g} s"
        taken_by = time_in_turns(cases, device=device, title=title, **rounds)
        for cell, taken in taken_by.items():
            table.add(*cell, [second / seconds for second in taken])
    return table
