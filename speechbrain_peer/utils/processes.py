"""Work that is spread over processes.

Kept free of torch and SpeechBrain: every process that is started imports this file.
"""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager

from speechbrain_peer.utils.files import DataError


def available_cpus():
    """The CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count()


def map_in_processes(function, items, n_processes, chunk=1):
    """Maps a function over items, in processes; its first error ends the others.

    Arguments
    ---------
    function : callable
        Of one item; it and the items are sent to the processes by pickle.
    items : list
        What to map.
    n_processes : int
        How many; 1 maps in this process.
    chunk : int
        Items that a process is sent at once.

    Yields
    ------
    object
        What the function returns, in the order of the items.

    Raises
    ------
    DataError
        If a process was ended from outside.

    Example
    -------
    >>> list(map_in_processes(abs, [-1, 2], n_processes=1))
    [1, 2]
    """
    if n_processes == 1:
        yield from map(function, items)
        return
    # Spawned, as a fork of a process that runs threads (torch does) may deadlock.
    context = multiprocessing.get_context("spawn")
    try:
        with ExitStack() as stack:
            with _interrupts_held():  # the processes are started here
                pool = ProcessPoolExecutor(n_processes, context, _exit_with_parent)
                # An interrupt held until here must not wait for all the items.
                stack.callback(pool.shutdown, cancel_futures=True)
                results = pool.map(function, items, chunksize=chunk)
            yield from results
    except BrokenProcessPool as error:
        raise DataError(
            "a process was ended from outside (out of memory?); run again with a "
            "smaller n_processes: what is finished is kept"
        ) from error


@contextmanager
def _interrupts_held():
    """Lets Ctrl+C wait; processes started meanwhile leave it to this one for good.

    A pool that an interrupt leaves half made has semaphores that nobody frees. The mask
    is for the processes, which inherit it: in this one the signal may reach any thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # where no interrupt arrives
        return
    held = []
    handler = signal.signal(signal.SIGINT, lambda *signal_and_frame: held.append(1))
    has_masks = hasattr(signal, "pthread_sigmask")  # Windows has none
    if has_masks:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        if has_masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


def _exit_with_parent():
    """Lets a process end when the one that started it is killed."""
    parent = multiprocessing.parent_process()

    def wait():
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
