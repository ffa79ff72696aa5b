"""Speed and memory beside the separators that people use today.

    python -m benchmark --threads 2 --output results/benchmark

Everything runs in one process with the same threads, in turns, so that whatever else
the machine does meets all alike. `separators` holds what is compared, `model` the
whole of ours, `loader` what feeds it; `measure` and `report` know none of them.
"""
