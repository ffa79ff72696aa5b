"""Builds the C kernels of this package for this machine, and keeps them.

The first use takes a second; the library then stays in the user's cache folder,
`$XDG_CACHE_HOME/speechbrain_peer` or `~/.cache/speechbrain_peer`, for this version of
the source, compiler and processor. Where it cannot be built or loaded, or with
`TSE_NO_KERNELS=1` in the environment, callers take their plain PyTorch path.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from speechbrain.utils.logger import get_logger

from speechbrain_peer.utils.files import whole_file
from speechbrain_peer.utils.runtime import processor_text

logger = get_logger(__name__)

# Sums may be reordered, which vectorizes them; NaN and infinity stay what they are.
_FLAGS = (
    "-std=gnu11 -O3 -march=native -shared -fPIC "
    "-fno-math-errno -fno-trapping-math -fassociative-math -fno-signed-zeros"
).split()
# Compilers that lack one of these do without.
_OPTIONAL_FLAGS = (["-fopenmp", "-mprefer-vector-width=512"], ["-fopenmp"], [])
_DTYPE_FLAGS = {torch.float32: [], torch.bfloat16: ["-DBF16"]}
# A compiler that takes longer hangs.
_SECONDS = 120


@functools.cache
def load_kernels(name, dtype):
    """Loads the kernels of one file, which are compiled at their first use.

    Arguments
    ---------
    name : str
        The C file beside this one, without its ending.
    dtype : torch.dtype
        Of the activations.

    Returns
    -------
    ctypes.CDLL or None
        None, after one line in the log, where they cannot be built or loaded; also for
        a dtype that they do not support, and where they are turned off.
    """
    if dtype not in _DTYPE_FLAGS or are_turned_off():
        return None
    try:
        return _load(Path(__file__).with_name(f"{name}.c"), _DTYPE_FLAGS[dtype])
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = str(error).partition("\n")[0]
        logger.warning_once(f"Running without the fast kernels ({reason})")
        return None


def are_turned_off():
    """Whether `TSE_NO_KERNELS=1` in the environment asks for plain PyTorch."""
    return os.environ.get("TSE_NO_KERNELS", "0") != "0"


def _load(source, dtype_flags):
    """From the cache, or else built anew and, if possible, kept there."""
    compiler_name = os.environ.get("CC", "cc")
    compiler = shutil.which(compiler_name)
    if compiler is None:
        raise FileNotFoundError(f"no C compiler: {compiler_name}")
    flags = [*_FLAGS, *dtype_flags]
    kept = _cache_path(source, compiler, flags)
    if kept is not None:
        with suppress(OSError, ValueError):  # absent or damaged
            return _open(kept)
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, f"{source.stem}.so")
        _compile(source, compiler, flags, built)
        if kept is not None:
            with suppress(OSError, ValueError):  # a full disk, or one to run nothing of
                with whole_file(kept) as path:
                    shutil.copyfile(built, path)
                return _open(kept)
        # Stays loaded when its file is gone.
        return _open(built)


def _compile(source, compiler, flags, library):
    for optional in _OPTIONAL_FLAGS:
        built = _run([compiler, *flags, *optional, str(source), "-o", str(library)])
        if built.returncode == 0:
            return
    reason = (built.stderr.splitlines() or ["no message"])[0]
    raise OSError(f"{compiler}: {reason}")


def _open(path):
    library = ctypes.CDLL(path)
    # What a compiler makes of nothing can be loaded, too, and has no such value.
    ctypes.c_int64.in_dll(library, "chunk_rows")
    return library


def _cache_path(source, compiler, flags):
    """Where the library is kept; None where no folder is the user's alone."""
    version = _run([compiler, "--version"]).stdout
    parts = (source.read_text(encoding="utf-8"), version, _processor())
    parts += (repr((compiler, flags, _OPTIONAL_FLAGS)),)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
        folder = cache / "speechbrain_peer"
        cache.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except (OSError, RuntimeError):  # the latter without a home
        return None
    # A library that others may have put there would run as this user.
    if not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o022:
        return None
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        return None
    return folder / f"{source.stem}-{key}.so"


def _processor():
    """What -march=native makes a difference of."""
    text = processor_text()
    named = ("model name", "flags", "Features", "CPU part", "isa")
    lines = sorted({line for line in text.splitlines() if line.startswith(named)})
    return "\n".join(lines) or f"{text} {platform.node()}"


def _run(command):
    # Messages in any encoding.
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=_SECONDS,
        check=False,
    )
