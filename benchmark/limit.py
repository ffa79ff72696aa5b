"""How near our separator comes to what the machine can do.

The limit is its matrix products alone, each through the faster library, and what the
fused passes between them read and write, at the rate of a copy.
"""

import statistics
from itertools import product

import torch
from torch.nn import functional as F

from benchmark.measure import time_in_turns
from benchmark.report import Table
from benchmark.separators import COLUMNS, N_MIXTURES
from speechbrain_peer.nnet.products import (
    linear_by_convolution,
    weight_grad_by_convolution,
)

LIBRARIES = {
    "MKL": (F.linear, lambda grad, x: grad.T @ x),
    "oneDNN": (linear_by_convolution, weight_grad_by_convolution),
}
ITEM_SIZES = {torch.float32: 4, torch.bfloat16: 2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COPIED = 2**28  # bytes, more than caches hold
PASSES = (
    "A block's passes, counted in conv_block.py: forward, one over the first product "
    "for its moments; one over it and to the second product's input; one over that "
    "product and to residual and skip; two sums of two. Backward, two over the second "
    "product and one over both gradients; four and three of hidden channels; one sum "
    "of gradients. What is outside of blocks, a twentieth, is not counted."
)


def product_counts(sizes):
    """How often there is a product from so many channels to so many others.

    Example
    -------
    >>> from benchmark.sizes import FULL
    >>> product_counts(FULL)
    {(512, 128): 1, (128, 512): 25, (512, 256): 24}
    """
    n_blocks = sizes.n_blocks * sizes.n_repeats
    ends = (sizes.n_filters, sizes.channels)
    counts = {}
    for shape, count in (
        (ends, 1),
        ((sizes.channels, sizes.hidden_channels), n_blocks),
        ((sizes.hidden_channels, 2 * sizes.channels), n_blocks),
        (ends[::-1], 1),
    ):
        counts[shape] = counts.get(shape, 0) + count
    return counts


def pass_bytes(sizes, item_size):
    """Bytes that a block's passes read and write for a frame, forward and backward.

    Arguments
    ---------
    sizes : Sizes
    item_size : int
        Bytes of an activation; what blocks give each other is fp32.

    Returns
    -------
    tuple of int

    Example
    -------
    >>> from benchmark.sizes import FULL
    >>> pass_bytes(FULL, item_size=4)
    (11264, 18944)
    """
    hidden, z = sizes.hidden_channels * item_size, 2 * sizes.channels * item_size
    x, outputs = 4 * sizes.channels, 8 * sizes.channels
    rounded = 0 if item_size == 4 else x + sizes.channels * item_size
    forward = hidden + 2 * hidden + (z + outputs) + 3 * outputs
    backward = (2 * z + outputs) + (4 + 3) * hidden + 3 * x
    return forward + rounded, backward + rounded


def compare_to_limit(separators, precision, sizes, repeats):
    """Measures the limit on CPUs, beside what was achieved.

    Arguments
    ---------
    separators : Table
        From `compare_separators`.
    precision : str
        `fp32` or `bf16`.
    sizes : Sizes
    repeats : int
        Rounds that count.

    Returns
    -------
    Table
        The ratio of its last row is the share of the limit.
    """
    dtype, rows = DTYPES[precision], N_MIXTURES * sizes.frames
    table = Table(f"Our separator against the limit, {precision}", COLUMNS[:2])
    products, rates = _time_products(sizes, rows, dtype, repeats)
    bandwidth = _copy_rate(repeats)
    n_blocks = sizes.n_blocks * sizes.n_repeats
    passes = [
        count * n_blocks * rows / bandwidth
        for count in pass_bytes(sizes, ITEM_SIZES[dtype])
    ]
    for column, n_passes in zip(table.columns, (2, 1), strict=True):
        of_products, of_passes = sum(products[:n_passes]), sum(passes[:n_passes])
        table.add("limit", column, [of_products + of_passes])
        table.add("of which products", column, [of_products])
        table.add("of which memory passes", column, [of_passes])
        achieved = separators.cells[f"ours, {precision}"][column]
        table.add("ours", column, achieved)
    figures = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items())
    table.notes.append(f"Products: {figures}. A copy: {bandwidth / 1e9:.0f} GB/s.")
    table.notes.append(PASSES)
    return table


def _time_products(sizes, rows, dtype, repeats):
    """Seconds of all products, forward and backward, and each library's rate."""
    counts = product_counts(sizes)
    cases = {}
    for shape, (name, functions) in product(counts, LIBRARIES.items()):
        for kind, case in _product_cases(rows, *shape, dtype, *functions).items():
            cases[shape, kind, name] = case
    taken = time_in_turns(cases, repeats, "cpu", "products")
    seconds = {case: statistics.median(values) for case, values in taken.items()}
    totals = []
    for kinds in (("forward",), ("of the input", "of the weight")):
        totals.append(
            sum(
                count * min(seconds[shape, kind, name] for name in LIBRARIES)
                for shape, count in counts.items()
                for kind in kinds
            )
        )
    operations = 3 * sum(2 * rows * a * b * count for (a, b), count in counts.items())
    rates = {
        name: operations
        / sum(counts[case[0]] * seconds[case] for case in cases if case[2] == name)
        / 1e9
        for name in LIBRARIES
    }
    return totals, rates


def _product_cases(rows, n_inputs, n_outputs, dtype, linear, weight_grad):
    x, grad = torch.randn(rows, n_inputs), torch.randn(rows, n_outputs)
    x, grad = x.to(dtype), grad.to(dtype)
    weight = torch.randn(n_outputs, n_inputs).to(dtype)
    return {
        "forward": lambda: linear(x, weight),
        "of the input": lambda: linear(grad, weight.T),
        "of the weight": lambda: weight_grad(grad, x),
    }


def _copy_rate(repeats):
    """Bytes read and written in a second."""
    source = torch.ones(COPIED // 4)
    target = torch.empty_like(source)
    case = {"copy": lambda: target.copy_(source)}
    taken = time_in_turns(case, repeats, "cpu", "copies")
    return 2 * COPIED / statistics.median(taken["copy"])
