"""Scores test items in other processes while the model extracts the next ones."""

import sys
from collections import deque
from functools import partial

from loky import ProcessPoolExecutor

# Each process computes one item on one core.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)
_BACKLOG_PER_PROCESS = 4


class ScoringPool:
    """Processes that run `speechbrain_peer.evaluation.metrics.score_item`.

    The processes are loky's: unlike those of `multiprocessing` they neither fork
    (unsafe with torch's threads) nor import the main script again. The backlog is
    short: `submit` waits while it is full, so the model cannot fill the memory
    with signals and a progress bar around `submit` tells the truth.

    Arguments
    ---------
    n_processes : int
        How many items are scored at a time; 0 scores in this process.
    sample_rate : int
        Sample rate of all signals, in Hz.

    Example
    -------
    >>> import numpy as np
    >>> target, interferer = np.random.default_rng(0).standard_normal((2, 8000))
    >>> with ScoringPool(n_processes=0, sample_rate=8000) as pool:
    ...     pool.submit("a", target, target, target + interferer, [interferer])
    ...     scores = pool.results()
    >>> round(scores["a"]["si_sdr"])
    100
    """

    def __init__(self, n_processes, sample_rate):
        self.sample_rate = sample_rate
        self._backlog = n_processes * _BACKLOG_PER_PROCESS
        self._executor = None
        if n_processes:
            self._executor = ProcessPoolExecutor(
                n_processes, env=_ONE_THREAD, initializer=_keep_torch_out
            )
        self._pending = deque()
        self._scores = {}

    def __enter__(self):
        return self

    def __exit__(self, error_type, error, traceback):
        if self._executor:
            self._executor.shutdown(kill_workers=error is not None)

    def submit(self, item_id, estimate, target, mixture, interferers):
        """Hands one item over; waits first while the backlog is full.

        Arguments
        ---------
        item_id : str
            A name that no other item has.
        estimate : np.ndarray
            The extracted speech, (time,).
        target : np.ndarray
            The clean speech of the wanted talker, (time,).
        mixture : np.ndarray or None
            What the model heard, (time,); None if it is not to be scored.
        interferers : sequence of np.ndarray
            The clean speech of the other talkers, each (time,).

        Raises
        ------
        RuntimeError
            If an earlier item could not be scored; names it.
        """
        score = partial(
            _score_item, estimate, target, mixture, interferers, self.sample_rate
        )
        if self._executor:
            score = self._executor.submit(score).result
        self._pending.append((item_id, score))
        while len(self._pending) > self._backlog:
            self._collect()

    def results(self):
        """Waits for the items that are still being scored.

        Returns
        -------
        dict
            The scores of each item by its name, in the order of submission.

        Raises
        ------
        RuntimeError
            If an item could not be scored; names it.
        """
        while self._pending:
            self._collect()
        return self._scores

    def _collect(self):
        item_id, score = self._pending.popleft()
        if item_id in self._scores:
            raise ValueError(f"Two test items are called {item_id!r}.")
        try:
            self._scores[item_id] = score()
        except Exception as error:
            raise RuntimeError(f"Scoring {item_id!r} failed: {error}") from error


def _score_item(*arguments):
    # Imported here so that _keep_torch_out comes first in a scoring process.
    from speechbrain_peer.evaluation.metrics import score_item

    return score_item(*arguments)


class _NoTorch:
    """An import hook that hides torch."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torch":
            raise ImportError("Scoring processes do without torch.")


def _keep_torch_out():
    """fast_bss_eval imports torch if it can, and never needs it for arrays."""
    sys.meta_path.insert(0, _NoTorch)
