"""Peak memory and speed of `tse extract` on recordings of any length.

    python -m benchmark.recordings MODEL ENROLLMENT MIXTURE [...]

The peak of resident memory is counted above what the import takes. Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import soundfile

from speechbrain_peer.inference.recordings import read_start
from speechbrain_peer.utils.files import DataError

# Runs in a process of its own, where nothing else has been in memory.
_MEASURE = """
import sys, time
from benchmark.measure import resident
from speechbrain_peer.cli.__main__ import main
imported, started = resident("VmRSS"), time.perf_counter()
code = main(sys.argv[1:])
print((resident("VmHWM") - imported) / 2**20, time.perf_counter() - started)
sys.exit(code)
"""


def measure(model, enrollment, mixture):
    """Extracts from one recording, and throws the estimate away.

    Arguments
    ---------
    model : str
        Folder of a model.
    enrollment : str
        Audio file.
    mixture : str
        Audio file.

    Returns
    -------
    megabytes : float
        Peak of resident memory above that after the import, in MiB.
    seconds : float
        Of the whole command, after the import.

    Raises
    ------
    DataError
        If the extraction fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["-e", enrollment, "-m", model, "-o", f"{folder}/estimate.wav"]
        process = subprocess.run(
            [sys.executable, "-c", _MEASURE, "extract", mixture, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
    if process.returncode:
        raise DataError(_reason(process, mixture))
    sys.stderr.write(process.stderr)
    megabytes, seconds = map(float, process.stdout.split()[-2:])
    return megabytes, seconds


def _reason(process, mixture):
    """Why an extraction failed: what it said last, which a killed one did not."""
    said = process.stderr.splitlines()
    if process.returncode < 0 or not said:
        return f"{mixture}: the extraction ended with code {process.returncode}"
    return said[-1].removeprefix("tse: error: ")


def main(arguments=None):
    """Measures recording after recording."""
    if not Path("/proc/self/status").exists():
        sys.exit("error: only Linux tells the peak of memory")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "enrollment"):
        parser.add_argument(name)
    parser.add_argument("mixtures", nargs="+")
    options = parser.parse_args(arguments)
    try:
        for path in (options.enrollment, *options.mixtures):
            read_start(path, 0)  # tells in one line what is wrong, before any work
        measure_all(options.model, options.enrollment, options.mixtures)
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")


def measure_all(model, enrollment, mixtures):
    """Prints the table, row by row.

    Arguments
    ---------
    model : str
        Folder of a model.
    enrollment : str
        Audio file.
    mixtures : list of str
        Audio files.
    """
    print("| recording | minutes | Hz | channels | peak above import (MiB) | RTF |")
    print("|---|---:|---:|---:|---:|---:|")
    for mixture in mixtures:
        audio = soundfile.info(mixture)
        megabytes, seconds = measure(model, enrollment, mixture)
        print(
            f"| {Path(mixture).name} | {audio.duration / 60:.1f} | {audio.samplerate} "
            f"| {audio.channels} | {megabytes:.0f} | {seconds / audio.duration:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
