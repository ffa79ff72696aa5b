"""Two ranks on the CPU, started by torchrun: they are one training, and die as one."""

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from processes import (
    TIMEOUT,
    TRAIN,
    Process,
    run_folder,
    succeed,
    temporary_files,
    training,
    tree,
)

SCRIPT = Path(__file__).with_name("first_step.py")


def two_ranks(notes, corpus, results):
    """The command of a tiny training of two ranks, of two steps an epoch each."""
    options = training(corpus, results, distributed_backend="gloo", n_epochs=3)
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [*launcher, SCRIPT, notes, *options]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """A training of two ranks: its notes, its folder, and where another one may be."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "notes").mkdir()
    results = folder / "results"
    succeed(*two_ranks(folder / "notes", corpus, results))
    expected = tree(results)
    results.rename(folder / "whole")
    return folder / "notes", expected, results


def test_gradients_are_those_of_one_process(corpus, whole, tmp_path):
    notes, _, _ = whole
    options = training(corpus, tmp_path, batch_size=6)
    succeed(SCRIPT, notes, *options)
    first, second, one = (
        torch.load(notes / f"{name}.pt") for name in ("rank0", "rank1", "one")
    )
    assert set(first["ids"]).isdisjoint(second["ids"])
    assert one["ids"] == first["ids"] + second["ids"]
    assert torch.equal(first["gradients"], second["gradients"])
    largest = one["gradients"].abs().max().item()
    torch.testing.assert_close(
        first["gradients"], one["gradients"], rtol=1e-4, atol=1e-5 * largest
    )


def test_scores_are_those_of_one_process(corpus, whole):
    _, expected, results = whole
    shutil.copytree(results.with_name("whole"), results)
    options = training(corpus, results, n_epochs=3)
    succeed(TRAIN, *options, "--test_only")
    name = str(run_folder(results).relative_to(results) / "test_scores.csv")
    assert tree(results)[name] == expected[name]
    shutil.rmtree(results)


@pytest.mark.parametrize(
    "seed",
    [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 9))],
)
def test_a_rank_that_dies_ends_all_and_the_training_goes_on(corpus, whole, seed):
    notes, expected, results = whole
    rng = random.Random(seed)
    command = two_ranks(notes, corpus, results)
    with Process(*command) as launcher:
        # From the first checkpoint on.
        started = time.monotonic()
        while not list(results.rglob("CKPT*")):
            assert time.monotonic() - started < TIMEOUT, launcher.text()
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 2))
        ranks = children(launcher.process.pid)
        assert len(ranks) == 2
        os.kill(rng.choice(ranks), signal.SIGKILL)
        assert launcher.wait(60) == 1
        assert "SIGKILL" in launcher.text()
        assert not any(map(alive, ranks))
    succeed(*command)
    assert tree(results) == expected
    assert not temporary_files(results)
    shutil.rmtree(results)


def children(pid):
    """Processes that another one has started, as Linux tells."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(status.parent.name))
    return found


def alive(pid):
    """Whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
