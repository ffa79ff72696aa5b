"""Time in turns, and memory in a process of its own."""

import multiprocessing
import re
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

from speechbrain_peer.utils.runtime import computes_bf16, keep_freed_memory

PRECISIONS = ("fp32", "bf16")
WARM_UP = 2  # rounds, of what is short

# Writing 5 to it makes VmHWM, the peak of resident memory, start anew; Linux only.
_CLEAR_REFS = Path("/proc/self/clear_refs")


def precisions_on(device):
    """The precisions to measure: bf16 only where there are instructions for it."""
    return PRECISIONS if computes_bf16(device) else PRECISIONS[:1]


def precision_context(precision, device):
    """Autocast for bf16; fp32 as it is."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device, torch.bfloat16)


def compiling(wanted):
    """As it is, or, if that is not wanted, without what ours compiles on GPUs."""
    return nullcontext() if wanted else torch.compiler.set_stance("force_eager")


def set_up(device, threads):
    """Sets what all measurements share in the process that calls it."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
        torch.backends.cudnn.allow_tf32 = True


def time_in_turns(cases, repeats, device, title, warm_up=WARM_UP):
    """Times cases A B C A B C ..., after rounds of warm-up.

    Arguments
    ---------
    cases : dict
        Functions without arguments, by name.
    repeats : int
        Rounds that count.
    device : str
        `cpu` or `cuda`, whose work is waited for.
    title : str
        Of the progress bar.
    warm_up : int
        Rounds that do not count.

    Returns
    -------
    dict
        Seconds of every repeat, by name.

    Example
    -------
    >>> seconds = time_in_turns({"sum": lambda: sum(range(9))}, 3, "cpu", "sums")
    >>> len(seconds["sum"])
    3
    """
    synchronize = torch.cuda.synchronize if device == "cuda" else torch.cpu.synchronize
    seconds = {name: [] for name in cases}
    turns = [name for _ in range(warm_up + repeats) for name in cases]
    for name in tqdm(turns, desc=title):
        synchronize()
        started = time.perf_counter()
        cases[name]()
        synchronize()
        seconds[name].append(time.perf_counter() - started)
    return {name: values[warm_up:] for name, values in seconds.items()}


def peak_memory(make_case, small, large, device, threads):
    """The most memory that a case takes beyond what it finds, in a new process.

    Arguments
    ---------
    make_case : callable
        Makes the case, a function without arguments, from one argument; is called
        in the new process, which has to find it by its name.
    small : object
        The argument for a case that loads libraries and kernels, beforehand.
    large : object
        The argument for the case to measure.
    device : str
        On `cpu` resident memory is measured, on `cuda` what tensors take.
    threads : int

    Returns
    -------
    float or None
        GiB; None where the system does not tell (only Linux does).
    """
    if device == "cpu" and not _CLEAR_REFS.exists():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmark.__main__"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        arguments = (make_case, small, large, device, threads)
        return pool.submit(_peak_memory_here, *arguments).result()


def _peak_memory_here(make_case, small, large, device, threads):
    set_up(device, threads)
    make_case(small)()
    case = make_case(large)
    before = _restart_peak(device)
    for _ in range(2):  # malloc may place the second one's blocks worse
        case()
    return (_peak(device) - before) / 2**30


def _restart_peak(device):
    """Bytes in use now, from where the peak starts anew."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    _CLEAR_REFS.write_text("5", encoding="ascii")
    return resident("VmRSS")


def _peak(device):
    return torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")


def resident(field):
    """Bytes of this process' resident memory: `VmRSS` now, `VmHWM` at most."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(rf"{field}:\s*(\d+) kB", status)[1])
