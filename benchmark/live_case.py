"""One measurement of live extraction, in a process of its own; see `benchmark.live`.

    python -m benchmark.live_case torch MODEL MILLISECONDS SECONDS PRECISION
    python -m benchmark.live_case onnx GRAPH MILLISECONDS SECONDS VOICE

prints JSON. The second imports neither PyTorch nor this package, so that its memory is
that of a program without them. `VOICE` is the shape of the graph's voice, such as 128
or 300x129.
"""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np

ENROLLED = 3  # seconds


def torch_case(model, milliseconds, seconds, precision):
    """PyTorch: a stream of blocks."""
    import torch

    from speechbrain_peer import TargetSpeechExtraction
    from speechbrain_peer.utils.runtime import keep_freed_memory

    keep_freed_memory()
    options = {"precision": precision}
    extractor = TargetSpeechExtraction.from_hparams(model, run_opts=options)
    rate = extractor.hparams.sample_rate
    block = round(rate * milliseconds / 1000)
    voice = extractor.encode_speaker(0.1 * torch.randn(1, ENROLLED * rate))
    stream = extractor.stream(voice=voice, block=block)
    push = stream.push
    return measure(lambda samples: push(samples).numpy(), block, rate, seconds), {
        "latency": 1000 * stream.latency / rate
    }


def onnx_case(graph, milliseconds, seconds, voice):
    """ONNX Runtime: the graph of steps, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        graph, options, providers=["CPUExecutionProvider"]
    )
    said = session.get_modelmeta().custom_metadata_map
    rate, hop = int(said["sample_rate"]), int(said["hop"])
    block = max(1, round(rate * milliseconds / 1000 / hop)) * hop
    of_samples, of_voice, *of_state = session.get_inputs()
    types = {"tensor(float)": np.float32, "tensor(double)": np.float64}
    state = {
        node.name: np.zeros([1, *node.shape[1:]], types[node.type]) for node in of_state
    }
    rng = np.random.default_rng(0)
    enrolled = rng.random([1, *map(int, voice.split("x"))], np.float32)

    def push(samples):
        inputs = {of_samples.name: samples[None], of_voice.name: enrolled}
        estimate, *after = session.run(None, inputs | state)
        state.update(zip(state, after, strict=True))
        return estimate

    late = int(said["first_samples"]) + int(said["drop_samples"])
    latency = {"latency": 1000 * late / rate}
    return measure(push, block, rate, seconds), latency


def measure(push, block, rate, seconds):
    """Times blocks of noise, one after the other.

    Arguments
    ---------
    push : callable
        Takes the next samples, (time,).
    block : int
        Samples of a block.
    rate : int
        In Hz.
    seconds : float
        Of the stream.

    Returns
    -------
    dict
        `block`: milliseconds of a block; `first`: what the first one took, in ms;
        `factor`: the real-time factor of the others; `p99`: of their times, in ms.
    """
    rng = np.random.default_rng(0)
    taken = []
    for _ in range(1 + round(seconds * rate / block)):
        samples = (0.1 * rng.standard_normal(block)).astype(np.float32)
        started = time.perf_counter()
        push(samples)
        taken.append(time.perf_counter() - started)
    first, *taken = taken
    return {
        "block": 1000 * block / rate,
        "first": 1000 * first,
        "factor": float(np.mean(taken)) * rate / block,
        "p99": 1000 * float(np.percentile(taken, 99)),
    }


def resident():
    """MiB of resident memory at most; None where the system does not tell."""
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    found = re.search(r"VmHWM:\s*(\d+) kB", path.read_text(encoding="ascii"))
    return int(found[1]) / 1024


if __name__ == "__main__":
    kind, of_what, milliseconds, seconds, last = sys.argv[1:]
    case = {"torch": torch_case, "onnx": onnx_case}[kind]
    measured, latency = case(of_what, float(milliseconds), float(seconds), last)
    print(json.dumps({**measured, **latency, "resident": resident()}))
