"""Ctrl+C, however early, leaves nothing behind of processes that share work."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor

import pytest

from speechbrain_peer.utils import processes


def test_an_interrupt_waits_until_all_is_made(monkeypatch):
    finished = []

    class InterruptedAtOnce(ProcessPoolExecutor):
        def __init__(self, *arguments):
            os.kill(os.getpid(), signal.SIGINT)
            super().__init__(*arguments)

        def shutdown(self, *arguments, **options):
            super().shutdown(*arguments, **options)
            finished.append(self)

    monkeypatch.setattr(processes, "ProcessPoolExecutor", InterruptedAtOnce)
    # Where the tests run in the background, a shell has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(processes.map_in_processes(abs, [-1, 2], n_processes=2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(finished) == 1
