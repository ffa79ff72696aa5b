"""What commands set at start, seen from the kernel's side."""

import subprocess
import sys

import pytest

# Touches and frees 200 MB, again and again, in blocks of 100.
MEASURE = """
import resource
import sys
import torch
from speechbrain_peer.utils import runtime

def use():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(25_000_000) for _ in range(2)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

if sys.argv[1] == "keep":
    runtime.keep_freed_memory()
# It takes some before the blocks find room among freed ones.
faults = min(use() for _ in range(15))
kept = resident()
runtime.give_back_freed_memory()
print(faults, (kept - resident()) / 1e6)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc, and /proc")
@pytest.mark.parametrize("keep", ["keep", "do not"])
def test_freed_memory_is_kept_until_it_is_given_back(keep):
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, keep],
        capture_output=True,
        text=True,
        check=True,
    )
    faults, given_back = map(float, ran.stdout.split())
    # 200 MB are 49 000 pages.
    assert (faults < 1000) == (keep == "keep")
    assert (given_back > 180) == (keep == "keep")
