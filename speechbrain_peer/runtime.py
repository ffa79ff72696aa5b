"""What commands set for their own process at start; importing sets nothing."""

import ctypes
import ctypes.util

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEEP = 2**31 - 1  # bytes, the most an int holds


def keep_freed_memory():
    """Makes glibc's malloc keep freed blocks instead of giving them to the kernel.

    A training step allocates and frees the same large tensors as the one before. By
    default the kernel takes them back and zeroes them anew each time, which takes
    half of the CPU time. Other C libraries have no such call and are left alone.
    """
    libc = ctypes.CDLL(ctypes.util.find_library("c") or None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, _KEEP)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP)
