"""What commands set and check at start; importing sets nothing."""

import ctypes
import ctypes.util
import functools
import platform
from pathlib import Path

import torch

from speechbrain_peer.utils.files import DataError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_NEVER = -1
_MOST = 2**31 - 1  # bytes, all that an int holds


def keep_freed_memory():
    """Makes glibc's malloc keep freed blocks instead of giving them to the kernel.

    A training step allocates and frees the same large tensors as the one before. By
    default the kernel takes them back and zeroes them anew each time, which takes
    half of the CPU time. Blocks of up to 2 GiB are kept, however many are free at once:
    a recording of ten minutes, extracted from in one piece, frees more than that
    between two layers. Other C libraries have no such call and are left alone.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _MOST)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def give_back_freed_memory():
    """Gives the kernel what `keep_freed_memory` has kept so far, after a large task."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc():
    """The C library if it is glibc."""
    libc = ctypes.CDLL(ctypes.util.find_library("c") or None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def processor_text():
    """What the system tells of the processor: on Linux a lot, elsewhere its name."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"


def check_device(device):
    """Refuses, before any work, a device that does not compute here.

    Arguments
    ---------
    device : str
        What `--device` says.

    Raises
    ------
    DataError
        If there is no such device; the message is one line.

    Example
    -------
    >>> check_device("cpu")
    >>> check_device("gpu")
    Traceback (most recent call last):
        ...
    speechbrain_peer.utils.files.DataError: gpu: PyTorch has no such device ...
    """
    try:
        torch.zeros(1, device=device).item()
    # Which error it is depends on the device and on how PyTorch was built.
    except Exception as error:
        reason = str(error).split("\n")[0].split(". ")[0].rstrip(".")
        raise DataError(
            f"{device}: PyTorch has no such device here ({reason}); leave --device "
            "out to use the CPU, or give one such as cuda:0"
        ) from error


def computes_bf16(device):
    """Tells whether a device has instructions for bf16.

    Without them PyTorch does the same arithmetic several times slower than in fp32.

    Arguments
    ---------
    device : str
        Such as `cpu` or `cuda:0`.

    Returns
    -------
    bool
        True also where it is not known.
    """
    return _cpu_computes_bf16() is not False if device.startswith("cpu") else True


def fastest_precision(device):
    """The precision in which a trained network extracts fastest, as far as measured.

    Arguments
    ---------
    device : str
        Such as `cpu` or `cuda:0`.

    Returns
    -------
    str
        `bf16` on CPUs that are known to have instructions for it, else `fp32`.
    """
    return "bf16" if device.startswith("cpu") and _cpu_computes_bf16() else "fp32"


@functools.cache
def multiplies_bf16_vectors():
    """Tells whether the CPU has AVX-512's instructions for bf16.

    Returns
    -------
    bool
        False also where it is not known.
    """
    return bool(_capabilities().get("avx512_bf16"))


def _cpu_computes_bf16():
    """None where PyTorch does not tell."""
    capabilities = _capabilities()
    if not capabilities:
        return None
    return bool(capabilities["avx512_bf16"] or capabilities["amx_bf16"])


def _capabilities():
    """What PyTorch tells of an x86 processor, by name; nothing of others."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return {}
    capabilities = torch.cpu.get_capabilities()
    return capabilities if capabilities.get("architecture") == "x86_64" else {}
