"""How many training items a second the loader gives, and what a large table costs.

    python -m benchmark.data --output results/data

The speech is made noise: 400 FLAC files of 5 to 15 s at 16 kHz. Pairs of 3 s at 8 kHz.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from speechbrain.dataio.dataloader import make_dataloader
from tqdm import tqdm

from benchmark.measure import resident
from speechbrain_peer.data.dataset import drawn_set, training_set
from speechbrain_peer.data.manifests import write_manifest
from speechbrain_peer.data.mixing import Mixing
from speechbrain_peer.data.speech_table import (
    SpeechTable,
    Utterance,
    write_speech_table,
)
from speechbrain_peer.utils.files import whole_file

N_SPEAKERS, N_EACH, RATE = 40, 10, 16000
SECONDS, SAMPLE_RATE, SEED = 3.0, 8000, 1
MILLION = 1_000_000
COPIES = 4  # of the items of an epoch, so that workers start up unnoticed


def make_data(folder, n_each):
    """Writes made speech, mixtures of it, noise and rooms.

    Arguments
    ---------
    folder : Path
        An empty one.
    n_each : int
        Utterances of each speaker.

    Returns
    -------
    manifest, table : Path
    """
    rng = np.random.default_rng(0)
    utterances, rows = [], {}
    for k in tqdm(range(N_SPEAKERS * n_each), desc="Making speech", unit="file"):
        speaker = f"{k // n_each:02}"
        length = int(rng.uniform(5, 15) * RATE)
        speech = (0.05 * rng.standard_normal(length)).astype("float32")
        name = f"{speaker}-{k}"
        soundfile.write(folder / f"{name}.flac", speech, RATE)
        fields = str(folder / f"{name}.flac"), speaker, name, 0, length, RATE, -25.0
        utterances.append(Utterance(*fields))
        # As rendered ones are: 8 kHz, WAV.
        soundfile.write(folder / f"{name}.wav", speech[::2], SAMPLE_RATE)
        source = {"path": str(folder / f"{name}.wav"), "speaker": speaker}
        source |= {"utterance": name, "length": len(speech[::2])}
        rows[name] = {"mixture_id": name, "mixture": source["path"], "target": source}
        rows[name] |= {"length": source["length"], "duration": length / RATE}
    sources = [row["target"] for row in rows.values()]
    for k, row in enumerate(rows.values()):
        row["interferers"] = [sources[(k + n_each) % len(sources)]]
    for k in range(20):
        path = folder / f"noise/{k}.flac"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(10 * RATE), RATE)
    for k in range(10):
        for position in range(6):
            # Decays by 60 dB in 0.4 s, for four microphones.
            decay = 10 ** (-3 * np.arange(int(0.4 * SAMPLE_RATE)) / 0.4 / SAMPLE_RATE)
            tail = 0.05 * rng.standard_normal((len(decay), 4)) * decay[:, None]
            tail[20] += 1.0
            path = folder / f"rooms/{k}/{position}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, tail, SAMPLE_RATE, "FLOAT")
    write_manifest(folder / "train.json", rows)
    write_speech_table(folder / "train.arrow", utterances)
    return folder / "train.json", folder / "train.arrow"


def training_sets(folder, manifest, table):
    """The sets to measure, by name."""
    common = (SECONDS, SAMPLE_RATE, SEED)
    noise, rooms = str(folder / "noise"), str(folder / "rooms")

    def drawn(peers="drawn", n_peers=2, **mixing):
        return drawn_set(table, *common, Mixing(**mixing), peers, n_peers)[0]

    speeds = [90, 95, 100, 105, 110]
    return {
        "rendered": training_set(manifest, None, *common)[0],
        "drawn": drawn(),
        "drawn, five speeds": drawn(speeds=speeds),
        "with noise": drawn(noise_folder=noise),
        "in rooms": drawn(rooms_folder=rooms),
        "in rooms, with noise": drawn(rooms_folder=rooms, noise_folder=noise),
        "four microphones": drawn("microphones", 4, rooms_folder=rooms),
    }


def items_a_second(dataset, n_workers, epochs):
    """Reads the items of some epochs in batches of eight."""
    started, items = time.perf_counter(), 0
    loader = make_dataloader(
        torch.utils.data.ConcatDataset([dataset] * epochs),
        batch_size=8,
        num_workers=n_workers,
        drop_last=True,
        collate_fn=list,
    )
    for batch in loader:
        items += len(batch)
    return items / (time.perf_counter() - started)


def measure_table(folder, rows):
    """Opens a large table and draws from it.

    Arguments
    ---------
    folder : Path
    rows : int
        How many utterances it has.

    Returns
    -------
    dict
        Seconds, MiB and draws by what they are.
    """
    path = folder / "large.arrow"
    write_speech_table(
        path,
        (
            Utterance(
                f"/data/{k // 100:06}/{k:08}.flac",
                f"{k // 100:06}",
                f"{k:08}",
                *(0, 160000, RATE, math.nan),
            )
            for k in range(rows)
        ),
    )
    before, started = resident("VmRSS"), time.perf_counter()
    table = SpeechTable(path)
    opened, memory = time.perf_counter() - started, resident("VmRSS") - before
    rng, started = np.random.default_rng(0), time.perf_counter()
    for _ in range(10_000):
        index = int(rng.integers(len(table)))
        table.others(index, rng)
        _ = table[index]
    return {
        "file [MiB]": path.stat().st_size / 2**20,
        "opened in [s]": opened,
        "memory [MiB]": memory / 2**20,
        "draws a second": 10_000 / (time.perf_counter() - started),
    }


def main(arguments=None):
    """Measures, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", help="folder for data.md")
    parser.add_argument("--quick", action="store_true", help="little, to try it")
    options = parser.parse_args(arguments)
    n_each, epochs = (2, 1) if options.quick else (N_EACH, COPIES)
    lines = [
        "| items a second | " + " | ".join(f"{n} workers" for n in options.workers)
    ]
    lines = [f"{lines[0]} |", "|---" * (1 + len(options.workers)) + "|"]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = make_data(folder, n_each)
        for name, dataset in training_sets(folder, *made).items():
            rates = [items_a_second(dataset, n, epochs) for n in options.workers]
            lines.append(f"| {name} | " + " | ".join(f"{x:.0f}" for x in rates) + " |")
            print(lines[-1], flush=True)
        rows = 1000 if options.quick else MILLION
        lines += ["", f"| a table of {rows:,} utterances | |", "|---|---|"]
        for name, value in measure_table(folder, rows).items():
            lines.append(f"| {name} | {value:.3g} |")
    text = "\n".join(lines) + "\n"
    print(f"\n{text}")
    if options.output:
        with whole_file(Path(options.output, "data.md")) as path:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
