"""Builds the C kernels of this package for this machine, at their first use.

That takes a second and leaves nothing behind. Where there is no C compiler, callers
take their plain PyTorch path.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

# Sums may be reordered, which vectorizes them; NaN and infinity stay what they are.
_FLAGS = (
    "-std=gnu11 -O3 -march=native -shared -fPIC "
    "-fno-math-errno -fno-trapping-math -fassociative-math -fno-signed-zeros"
).split()
# Compilers that lack one of these do without.
_OPTIONAL_FLAGS = (["-fopenmp", "-mprefer-vector-width=512"], ["-fopenmp"], [])
_DTYPE_FLAGS = {torch.float32: [], torch.bfloat16: ["-DBF16"]}


@functools.cache
def load_kernels(name, dtype):
    """Compiles and loads the kernels of one file.

    Arguments
    ---------
    name : str
        The C file beside this one, without its ending.
    dtype : torch.dtype
        Of the activations.

    Returns
    -------
    ctypes.CDLL or None
        None, after one line in the log, where they cannot be built; also for a dtype
        that they do not support.
    """
    if dtype not in _DTYPE_FLAGS:
        return None
    compiler_name = os.environ.get("CC", "cc")
    compiler = shutil.which(compiler_name)
    if compiler is None:
        logger.warning(
            "No C compiler (%s) found: running without the fast kernels.", compiler_name
        )
        return None
    source = Path(__file__).with_name(f"{name}.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, f"{name}.so")
        for optional in _OPTIONAL_FLAGS:
            command = [compiler, *_FLAGS, *optional, *_DTYPE_FLAGS[dtype]]
            command += [str(source), "-o", str(library)]
            built = subprocess.run(command, capture_output=True, text=True, check=False)
            if built.returncode == 0:
                # Stays loaded when its file is gone.
                return ctypes.CDLL(library)
    reason = (built.stderr.splitlines() or ["no message"])[0]
    logger.warning("%s: running without the fast kernels (%s)", compiler, reason)
    return None
