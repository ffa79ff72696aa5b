"""Where the time of a training step goes: by phase, and by operator.

    python -m benchmark.parts hparams/sdpccn.yaml --threads 2

The step is that of a row of the recipe, on noise, on the CPU. Phases are timed as they
are; operators by PyTorch's profiler, each without those that it calls.
"""

import argparse
import functools
import tempfile
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmark.measure import PRECISIONS, precision_context, set_up, time_in_turns
from benchmark.report import Table
from speechbrain_peer.cli.options import existing_file, whole_number
from speechbrain_peer.peer_learning.exchange import embed

MOST = 14
"""Operators that are named."""
WHOLE = "whole step"
COLUMN = "time [s]"


class RecipeStep:
    """A training step of a row of the recipe, phase by phase.

    Arguments
    ---------
    hparams_file : str or Path
        The row's YAML.
    batch_size : int
        Items: pairs of peers, or single mixtures in a row without peers.
    precision : str
        `fp32` or `bf16`.
    """

    PHASES = ("embed", "extract", "score", "differentiate", "clip", "optimize")

    def __init__(self, hparams_file, batch_size, precision):
        text = Path(hparams_file).read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            hparams = load_hyperpyyaml(text, {"results_folder": folder})
        self.max_grad_norm = hparams["max_grad_norm"]
        self.peer_learning, self.loss = hparams["peer_learning"], hparams["loss"]
        self.stages = nn.ModuleDict(self.peer_learning.stages(hparams["modules"]))
        self.optimizer = hparams["optimizer"](self.stages.parameters())
        self.autocast = functools.partial(precision_context, precision, "cpu")
        samples = round(hparams["chunk_seconds"] * hparams["sample_rate"])
        n_peers = 1 if hparams["peers"] == "off" else 2
        self.mixtures = torch.randn(n_peers * batch_size, samples)
        self.targets = torch.randn(batch_size, samples)
        self.enrollments = torch.randn(batch_size, samples)
        self.lens = torch.ones(batch_size)
        self.speakers = torch.zeros(batch_size, dtype=torch.long)

    def __call__(self):
        """Runs all phases."""
        for phase in self.PHASES:
            getattr(self, phase)()

    def embed(self):
        """Runs the speaker network."""
        with self.autocast():
            self.embeddings = embed(self.stages, self.enrollments, self.lens)

    def extract(self):
        """Runs all branches."""
        signals = (self.mixtures, self.embeddings, self.targets, self.lens)
        coin = torch.zeros(len(self.targets), dtype=torch.long)
        with self.autocast():
            self.outputs = self.peer_learning(self.stages, *signals, coin, epoch=1)

    def score(self):
        """Computes the loss."""
        with self.autocast():
            scored = self.loss(self.outputs, self.targets, self.lens, self.speakers)
        self.value = scored[0]

    def differentiate(self):
        """Runs the backward pass."""
        self.value.backward()
        del self.value, self.outputs, self.embeddings

    def clip(self):
        """Clips the gradients."""
        nn.utils.clip_grad_norm_(self.stages.parameters(), self.max_grad_norm)

    def optimize(self):
        """Moves the weights."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def time_phases(step, repeats, title):
    """Times the phases of a step.

    Arguments
    ---------
    step : RecipeStep
    repeats : int
        Steps that count.
    title : str

    Returns
    -------
    Table
    """
    phases = {phase: getattr(step, phase) for phase in step.PHASES}
    seconds = time_in_turns(phases, repeats, "cpu", title)
    whole = [sum(steps) for steps in zip(*seconds.values(), strict=True)]
    return _shares(f"{title}, by phase", {WHOLE: whole, **seconds})


def time_operators(step, repeats, title):
    """Times the operators of a step, under the profiler.

    Arguments
    ---------
    step : RecipeStep
    repeats : int
        Steps that count.
    title : str

    Returns
    -------
    Table
    """
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        for _ in range(repeats):
            step()
    seconds = {
        event.key: event.self_cpu_time_total / 1e6 / repeats
        for event in profiled.key_averages()
    }
    longest = sorted(seconds, key=seconds.get, reverse=True)[:MOST]
    whole = sum(seconds.values())
    named = {name: [seconds[name]] for name in longest}
    others = {"others": [whole - sum(seconds[name] for name in longest)]}
    return _shares(f"{title}, by operator", {WHOLE: [whole], **named, **others})


def _shares(title, seconds):
    table = Table(title, [COLUMN, "share [%]"], ratios=False)
    for row, values in seconds.items():
        table.add(row, COLUMN, values)
        share = 100 * table.median(row, COLUMN) / table.median(WHOLE, COLUMN)
        table.add(row, "share [%]", [share])
    return table


def main(arguments=None):
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.parts",
        description="Tells where the time of a training step goes, on the CPU.",
    )
    add = parser.add_argument
    add("row", type=existing_file, nargs="+", help="YAML of a training")
    add("--threads", type=whole_number(1), default=torch.get_num_threads())
    add("--repeats", type=whole_number(1), default=3, help="steps that count")
    add("--batch_size", type=whole_number(1), default=1, help="items of a step")
    add("--precision", choices=PRECISIONS, default=PRECISIONS[0])
    options = parser.parse_args(arguments)
    set_up("cpu", options.threads)
    for row in options.row:
        step = RecipeStep(row, options.batch_size, options.precision)
        for measure in (time_phases, time_operators):
            title = f"{row.stem}, {options.precision}"
            print(f"{measure(step, options.repeats, title).markdown()}\n", flush=True)


if __name__ == "__main__":
    main()
