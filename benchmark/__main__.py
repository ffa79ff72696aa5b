"""The command: measures, prints tables, and writes them where `--output` says."""

import argparse
import re
import sys

import torch

from benchmark.loader import load_pairs, time_loader
from benchmark.measure import set_up
from benchmark.model import time_extraction, time_training
from benchmark.report import headline, write_report
from benchmark.separators import compare_separators
from benchmark.sizes import FULL, QUICK
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.runtime import processor_text


def parse_arguments(arguments=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark",
        description="Measures speed and memory beside Asteroid and SpeechBrain.",
    )
    add = parser.add_argument
    add("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    add("--repeats", type=int, default=10, help="rounds that count")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--manifest", help="of a training subset, to measure the loader too")
    add("--data_root", default="", help="what {data_root} in the manifest stands for")
    add("--output", help="folder for benchmark.json and benchmark.md")
    add("--quick", action="store_true", help="a tiny size, to try the command")
    return parser.parse_args(arguments)


def describe(device, threads, repeats):
    """What is run where, for the reader of the tables."""
    settings = {"processor": _processor(), "threads": threads, "repeats": repeats}
    if device == "cuda":
        settings["GPU"] = torch.cuda.get_device_name()
    else:
        amx = torch.cpu.get_capabilities().get("amx_bf16", False)
        settings["bf16 in AMX"] = "yes" if amx else "no"
    return {**settings, "PyTorch": torch.__version__}


def _processor():
    """The CPU's name, as far as the system tells."""
    text = processor_text()
    name = re.search(r"model name\s*: (.+)", text)
    return name[1] if name else text.partition("\n")[0]


def measure_all(options, sizes):
    """Makes the tables, one after the other."""
    common = (sizes, options.repeats, options.device)
    pairs = None
    if options.manifest:
        pairs = load_pairs(options.manifest, options.data_root, sizes)
    yield compare_separators(*common, options.threads)
    training = time_training(*common)
    yield training
    if pairs is not None:
        yield time_loader(pairs, sizes, training)
    yield time_extraction(*common)


def main(arguments=None):
    """Runs the benchmark."""
    options = parse_arguments(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: PyTorch finds no GPU: leave out --device cuda")
    set_up(options.device, options.threads)
    torch.manual_seed(0)
    settings = describe(options.device, options.threads, options.repeats)
    print(headline(settings))
    tables = []
    try:
        for table in measure_all(options, QUICK if options.quick else FULL):
            tables.append(table)
            print(f"\n{table.markdown()}", flush=True)
            if options.output:  # after each, so that an end in between loses little
                write_report(options.output, settings, tables)
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
