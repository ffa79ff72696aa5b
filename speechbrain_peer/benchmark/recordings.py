"""Peak memory and speed of `tse extract` on recordings of any length.

    python -m speechbrain_peer.benchmark.recordings MODEL ENROLLMENT MIXTURE [...]

The peak of resident memory is counted above what the import takes. Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import soundfile

# Runs in a process of its own, where nothing else has been in memory.
_MEASURE = """
import sys, time
from speechbrain_peer.benchmark.measure import resident
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
    subprocess.CalledProcessError
        If the extraction fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["-e", enrollment, "-m", model, "-o", f"{folder}/estimate.wav"]
        process = subprocess.run(
            [sys.executable, "-c", _MEASURE, "extract", mixture, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    megabytes, seconds = map(float, process.stdout.split()[-2:])
    return megabytes, seconds


def main(arguments=None):
    """Measures recording after recording."""
    if not Path("/proc/self/status").exists():
        sys.exit("error: only Linux tells the peak of memory")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "enrollment"):
        parser.add_argument(name)
    parser.add_argument("mixtures", nargs="+")
    options = parser.parse_args(arguments)
    print("| recording | minutes | Hz | channels | peak above import (MiB) | RTF |")
    print("|---|---:|---:|---:|---:|---:|")
    for mixture in options.mixtures:
        audio = soundfile.info(mixture)
        megabytes, seconds = measure(options.model, options.enrollment, mixture)
        print(
            f"| {Path(mixture).name} | {audio.duration / 60:.1f} | {audio.samplerate} "
            f"| {audio.channels} | {megabytes:.0f} | {seconds / audio.duration:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
