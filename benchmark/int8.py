"""What 8-bit weights cost a causal model on speech, in dB of SI-SDR.

    python -m benchmark.int8 MODEL MANIFEST --most 100

extracts with the graphs `stream.onnx` and `stream.int8.onnx`, which it makes, from
mixtures of a test set. Both are told the same voice, by PyTorch.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.evaluation.trial_scores import (
    mean_over_speakers,
    score_estimate,
)
from speechbrain_peer.evaluation.trials import read_trials
from speechbrain_peer.nnet.voice import features_of
from speechbrain_peer.packaging.onnx import INT8_STREAM_FILE, STREAM_FILE, export_onnx
from speechbrain_peer.packaging.onnx_graphs import open_graph
from speechbrain_peer.packaging.onnx_stream import run_stream

GRAPHS = {"fp32": STREAM_FILE, "int8": INT8_STREAM_FILE}
STEP_SECONDS = 0.02


@torch.inference_mode()
def score(model, sessions, trials):
    """SI-SDR improvement (dB) of each session's estimate of every trial.

    Arguments
    ---------
    model : TargetSpeechExtraction
        Of the graphs.
    sessions : dict
        Of `stream.onnx` and the like, by name.
    trials : list of Trial

    Returns
    -------
    dict
        Lists by the names of the sessions.
    """
    found = {name: [] for name in sessions}
    for trial in tqdm(trials, desc="Extracting"):
        enrollment = torch.from_numpy(trial.enrollment)[None]
        voice = features_of(model.encode_speaker(enrollment))
        for name, session in sessions.items():
            hop = int(session.get_modelmeta().custom_metadata_map["hop"])
            step = hop * max(1, round(STEP_SECONDS * model.hparams.sample_rate / hop))
            mixture = torch.from_numpy(trial.mixture)[None]
            # What steps leave over at the end, and what is late, is heard out.
            heard = torch.nn.functional.pad(mixture, (0, step + 4 * hop))
            estimate = run_stream(session, heard, voice, step)[0, : mixture.shape[1]]
            found[name].append(score_estimate(estimate.numpy(), trial)["si_sdri"])
    return found


def main(arguments=None):
    """Prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.int8", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("model", help="folder of a causal model")
    add("manifest", help="of a test set")
    add("--most", type=int, default=100, help="mixtures, of more")
    options = parser.parse_args(arguments)
    model = TargetSpeechExtraction.from_hparams(options.model)
    rate = model.hparams.sample_rate
    trials = read_trials(options.manifest, None, rate, options.most)
    with tempfile.TemporaryDirectory() as folder:
        graphs = export_onnx(options.model, Path(folder, "graphs"), int8=True)
        sizes = {
            name: Path(graphs, file).stat().st_size / 1e6
            for name, file in GRAPHS.items()
        }
        sessions = {name: open_graph(graphs / file) for name, file in GRAPHS.items()}
        found = score(model, sessions, trials)
    print(f"{len(trials)} mixtures\n\n| graph | MB | SI-SDRi (dB) |\n|---|---:|---:|")
    for name, values in found.items():
        print(f"| {name} | {sizes[name]:.2f} | {np.mean(values):.2f} |")
    lost = np.subtract(found["fp32"], found["int8"])
    mean, error = mean_over_speakers(lost, [trial.speakers[0] for trial in trials])
    print(f"\n8 bits lose {mean:.2f} ± {error:.2f} dB (paired, over speakers)")


if __name__ == "__main__":
    main()
