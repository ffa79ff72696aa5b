"""The command: reads runs, prints their tables, and writes the report."""

import argparse
import sys

import torch

from benchmark.__main__ import describe
from benchmark.measure import set_up
from recipes.LibriMix.comparison.costs import REPEATS, measure_costs
from recipes.LibriMix.comparison.report import write_report
from recipes.LibriMix.comparison.runs import find_runs
from recipes.LibriMix.comparison.systems import group_runs
from speechbrain_peer.utils.files import DataError


def parse_arguments(arguments=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.LibriMix.comparison",
        description="Compares finished runs: scores, cost and curves.",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a run, or one above runs")
    add("--output", required=True, help="folder for report.md and all else")
    add("--no_cost", action="store_true", help="no Table III, which takes long")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Runs the comparison."""
    options = parse_arguments(arguments)
    try:
        groups = group_runs(find_runs(options.runs))
        costs = None
        if not options.no_cost:
            threads = torch.get_num_threads()
            set_up("cpu", threads)
            settings = {**describe("cpu", REPEATS), "threads": threads}
            costs = settings, measure_costs(groups)
        print(write_report(options.output, groups, costs))
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
