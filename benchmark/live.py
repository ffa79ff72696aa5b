"""Latency, real-time factor and memory of live extraction, block by block.

    python -m benchmark.live --models td_speakerbeam-small --seconds 20

Networks have random weights, as what is computed does not depend on them. Every row is
measured in a process of its own, on one thread. `latency` is the algorithm's: how much
later than its own sample an output is complete, besides the block, which has to be
heard, and the time that computing it takes. ONNX Runtime's rows need the extra
``[onnx]``; its peak of memory is that of the whole process, without PyTorch.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hyperpyyaml import dump_hyperpyyaml
from tqdm import tqdm

from benchmark.__main__ import describe
from benchmark.measure import precisions_on
from speechbrain_peer.packaging.export import build_stages, export_model, stage_hparams
from speechbrain_peer.utils.files import DataError

HPARAMS = Path(__file__).parents[1] / "hparams"
SMALL = {
    **{"n_filters": 256, "kernel_size": 32, "stride": 16, "channels": 64},
    **{"hidden_channels": 128, "n_blocks": 6, "n_repeats": 2, "embedding_size": 64},
}
MODELS = {
    "td_speakerbeam-small": ("td_speakerbeam_pl", SMALL),
    "td_speakerbeam-full": ("td_speakerbeam_pl", {}),
    "bsrnn-small": ("bsrnn_pl", {}),
    "bsrnn-base": ("bsrnn_pl", {"channels": 64, "n_blocks": 6}),
}
"""The YAML of each, and what is other there."""

BLOCKS = (10.0, 20.0, 32.0)  # milliseconds
COLUMNS = (
    *("block (ms)", "latency (ms)", "real-time factor", "p99 of a block (ms)"),
    *("first block (ms)", "peak of memory (MiB)"),
)


def make_model(name, folder):
    """Exports one of `MODELS`, causal, with random weights.

    Arguments
    ---------
    name : str
        Its name.
    folder : str or pathlib.Path
        To put it in, with the YAML that it is made of.

    Returns
    -------
    pathlib.Path
        The model's folder.
    """
    row, overrides = MODELS[name]
    overrides = {**overrides, "causal": True, "level": "network"}
    run = HPARAMS / f"{row}.yaml"
    stages, _ = build_stages(run, overrides)
    text = io.StringIO()
    dump_hyperpyyaml(stage_hparams(run, overrides=overrides), text)
    yaml = Path(folder, f"{name}.yaml")
    yaml.write_text(text.getvalue(), encoding="utf-8")
    return export_model(yaml, stages, Path(folder, name))


def cases(model, graphs, voice):
    """What is measured of a model, by name: the arguments of `benchmark.live_case`.

    Arguments
    ---------
    model : pathlib.Path
        Its folder.
    graphs : pathlib.Path or None
        Of its ONNX graphs.
    voice : str
        The shape of its voice.

    Returns
    -------
    dict
    """
    found = {
        f"PyTorch {precision}": ("torch", model, precision)
        for precision in precisions_on("cpu")
    }
    if graphs is not None:
        for name in ("stream.onnx", "stream.int8.onnx"):
            precision = "int8" if "int8" in name else "fp32"
            found[f"ONNX Runtime {precision}"] = ("onnx", graphs / name, voice)
    return found


def measure_case(kind, of_what, milliseconds, seconds, last):
    """Runs `benchmark.live_case` in a new process; gives what it prints."""
    arguments = map(str, (kind, of_what, milliseconds, seconds, last))
    process = subprocess.run(
        [sys.executable, "-m", "benchmark.live_case", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        said = process.stderr.splitlines()
        raise DataError(said[-1] if said else f"{of_what}: the measurement ended")
    return json.loads(process.stdout.splitlines()[-1])


def make_graphs(model, folder):
    """The model's ONNX graphs; None, and why, where there can be none.

    Arguments
    ---------
    model : pathlib.Path
        Its folder.
    folder : pathlib.Path
        To write to.

    Returns
    -------
    pathlib.Path or None
    """
    from speechbrain_peer.packaging.onnx import export_onnx

    try:
        return export_onnx(model, folder, int8=True)
    # Whatever tracing stumbles over: PyTorch has no one class for that.
    except Exception as error:
        print(f"{model.name}: no ONNX graphs ({str(error).splitlines()[0]})\n")
        return None


def voice_shape(model):
    """The shape of the voice of a 3 s enrollment, such as 128 or 300x129."""
    import torch

    from speechbrain_peer import TargetSpeechExtraction
    from speechbrain_peer.nnet.voice import features_of

    extractor = TargetSpeechExtraction.from_hparams(model)
    enrollment = 0.1 * torch.randn(1, 3 * extractor.hparams.sample_rate)
    voice = features_of(extractor.encode_speaker(enrollment))
    return "x".join(map(str, voice.shape[1:]))


def main(arguments=None):
    """Measures model after model."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.live", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=list(MODELS)[:1])
    add("--blocks", type=float, nargs="+", default=BLOCKS, help="milliseconds")
    add("--seconds", type=float, default=20.0, help="of a stream")
    add("--no-onnx", action="store_true", help="PyTorch alone")
    options = parser.parse_args(arguments)
    settings = describe("cpu", "every block of a stream")
    print(", ".join(f"{key}: {value}" for key, value in settings.items()))
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(name, folder)
            graphs = (
                None if options.no_onnx else make_graphs(model, Path(folder, "onnx"))
            )
            measure_model(name, cases(model, graphs, voice_shape(model)), options)


def measure_model(name, found, options):
    """Prints the table of a model."""
    lines = [f"| {name} | " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * 6 + "|"]
    turns = [(case, block) for case in found for block in options.blocks]
    for case, block in tqdm(turns, desc=name):
        kind, of_what, last = found[case]
        result = measure_case(kind, of_what, block, options.seconds, last)
        cells = [f"{result[key]:.1f}" for key in ("block", "latency")]
        cells.append(f"{result['factor']:.3f}")
        cells += [f"{result[key]:.1f}" for key in ("p99", "first")]
        memory = result["resident"]
        cells.append("-" if memory is None else f"{memory:.0f}")
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    print("\n" + "\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
