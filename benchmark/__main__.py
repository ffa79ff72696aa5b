"""The command: measures, prints tables, and writes them where `--output` says."""

import argparse
import re
import sys

import torch

from benchmark.bsrnn import compare_bsrnn
from benchmark.limit import compare_to_limit
from benchmark.loader import load_pairs, time_loader
from benchmark.measure import precisions_on, set_up
from benchmark.model import time_extraction, time_training
from benchmark.report import headline, write_report
from benchmark.separators import compare_separators
from benchmark.sizes import FULL, QUICK
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.runtime import (
    computes_bf16,
    give_back_freed_memory,
    processor_text,
)


def parse_arguments(arguments=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark",
        description="Measures speed and memory beside Asteroid and SpeechBrain.",
    )
    add = parser.add_argument
    default = [torch.get_num_threads()]
    add("--threads", type=int, nargs="+", default=default, help="of the CPU, in turn")
    add("--repeats", type=int, default=10, help="rounds that count")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--manifest", help="of a training subset, to measure the loader too")
    add("--data_root", default="", help="what {data_root} in the manifest stands for")
    add("--output", help="folder for benchmark.json and benchmark.md")
    add("--quick", action="store_true", help="a tiny size, to try the command")
    return parser.parse_args(arguments)


def describe(device, repeats):
    """What is run where, for the reader of the tables."""
    settings = {"processor": _processor(), "repeats": repeats}
    if device == "cuda":
        settings["GPU"] = torch.cuda.get_device_name()
    else:
        settings["instructions"] = torch.backends.cpu.get_cpu_capability()
        settings["bf16"] = _bf16_instructions()
    return {**settings, "PyTorch": torch.__version__}


def _processor():
    """The CPU's name and kind, as far as the system tells."""
    text = processor_text()
    found = {
        key: re.search(rf"^{key}\s*: (.+)$", text, re.MULTILINE)
        for key in ("model name", "cpu family", "model")
    }
    if not all(found.values()):
        return text.partition("\n")[0]
    name, family, model = (match[1] for match in found.values())
    return f"{name} (family {family}, model {model})"


def _bf16_instructions():
    if not computes_bf16("cpu"):
        return "left out, as there are no instructions for it"
    capabilities = torch.cpu.get_capabilities()
    return "in AMX" if capabilities.get("amx_bf16") else "without AMX"


def measure_all(options, sizes):
    """Makes the tables, one after the other."""
    pairs = None
    if options.manifest:
        pairs = load_pairs(options.manifest, options.data_root, sizes)
    for threads in options.threads:
        set_up(options.device, threads)
        # Memory and the loader hardly depend on the threads.
        first = threads == options.threads[0]
        for table in _measure(options, sizes, threads, first, pairs if first else None):
            table.title += f", {threads} thread{'s' if threads > 1 else ''}"
            yield table
            give_back_freed_memory()


def _measure(options, sizes, threads, with_memory, pairs):
    common = (sizes, options.repeats, options.device)
    separators = compare_separators(*common, threads, with_memory)
    yield separators
    if options.device == "cpu":
        for precision in precisions_on("cpu"):
            yield compare_to_limit(separators, precision, sizes, options.repeats)
    training = time_training(*common)
    yield training
    if pairs is not None:
        yield time_loader(pairs, sizes, training)
    yield time_extraction(*common)
    yield from compare_bsrnn(*common)


def main(arguments=None):
    """Runs the benchmark."""
    options = parse_arguments(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: PyTorch finds no GPU: leave out --device cuda")
    torch.manual_seed(0)
    settings = describe(options.device, options.repeats)
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
