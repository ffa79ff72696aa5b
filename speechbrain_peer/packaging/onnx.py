"""Exported models as ONNX graphs, for ONNX Runtime and programs without Python.

There are two graphs, as the speaker network runs once for many mixtures; batch and time
are dynamic. They need what the optional extra ``[onnx]`` brings, to be made only:

    speaker_encoder.onnx    enrollment (batch, time) -> embedding (batch, E)
    extractor.onnx          mixture (batch, time), embedding (batch, E)
                            -> estimate (batch, time), with its level

Where the voice is frames, they are `frames` (batch, frames, F), of any number, in place
of `embedding`: those of several enrollments are put one after the other.

Waveforms are fp32, full scale at 1, at the rate that the graphs' metadata names, and of
no less than the samples named there. Nothing is padded: all of a batch have one length.
The metadata also names the level: that in the mixture, or the network's own.

Causal models have a third one, for live streams: see `packaging.onnx_stream`.
"""

import contextlib
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from speechbrain_peer.nnet.voice import Frames, features_of
from speechbrain_peer.packaging.loading import level_of, load_model
from speechbrain_peer.packaging.onnx_graphs import (
    TOLERANCE,
    import_extra,
    made_noise,
    open_graph,
    save_graph,
    voice_axes,
    voice_name,
)
from speechbrain_peer.packaging.onnx_stream import quantize_stream, write_stream
from speechbrain_peer.peer_learning import streams
from speechbrain_peer.peer_learning.exchange import embed, extract
from speechbrain_peer.utils.files import DataError, whole_file
from speechbrain_peer.utils.signal import SHORTEST_ENROLLMENT, set_level

SPEAKER_ENCODER_FILE = "speaker_encoder.onnx"
EXTRACTOR_FILE = "extractor.onnx"
STREAM_FILE = "stream.onnx"
INT8_STREAM_FILE = "stream.int8.onnx"


class SpeakerNetwork(nn.Module):
    """What `speaker_encoder.onnx` computes.

    Arguments
    ---------
    stages : torch.nn.ModuleDict
        The model's.
    """

    def __init__(self, stages):
        super().__init__()
        self.stages = stages
        self.input_names, self.output_names = ["enrollment"], [voice_name(stages)]

    def forward(self, enrollment):
        """(batch, time) to (batch, E), or (batch, frames, F)."""
        return features_of(embed(self.stages, enrollment))


class Extractor(nn.Module):
    """What `extractor.onnx` computes.

    Arguments
    ---------
    stages : torch.nn.ModuleDict
        The model's.
    level : str
        The model's; see `utils.signal.set_level`.
    """

    def __init__(self, stages, level):
        super().__init__()
        self.stages, self.level = stages, level
        self.input_names = ["mixture", voice_name(stages)]
        self.output_names = ["estimate"]

    def forward(self, mixture, voice):
        """(batch, time) and (batch, E), or (batch, frames, F), to (batch, time)."""
        if voice.dim() == 3:
            voice = Frames(voice, torch.ones_like(voice[..., 0]))
        estimate = extract(self.stages, mixture, voice)
        return set_level(estimate, mixture, level=self.level)


@torch.no_grad()
def export_onnx(source, folder, trust=False, int8=False):
    """Writes an exported model as ONNX graphs, and compares them with PyTorch.

    Arguments
    ---------
    source : str or pathlib.Path
        An exported model, as `TargetSpeechExtraction.from_hparams` loads it.
    folder : str or pathlib.Path
        The folder to write; older graphs are replaced once the new ones are checked.
    trust : bool
        Builds whatever the model's YAML says. That runs any code it names.
    int8 : bool
        Whether to write the graph of streams with 8-bit weights as well,
        `stream.int8.onnx`.

    Returns
    -------
    pathlib.Path
        The folder, with `speaker_encoder.onnx` and `extractor.onnx`, and of a causal
        model also `stream.onnx`.

    Raises
    ------
    ImportError
        If the extra is not installed.
    ValueError
        If ONNX Runtime's outputs are not PyTorch's, or a model that looks ahead has no
        graph of streams to quantize.

    Example
    -------
    >>> model = "results/td_speakerbeam_pl/1234/model"
    >>> export_onnx(model, "onnx")  # doctest: +SKIP
    PosixPath('onnx')
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(name)
    stages, hparams = load_model(source, trust=trust)
    stages.eval()
    causal = streams.init_state(stages, batch=1) is not None
    if int8 and not causal:
        raise DataError(
            f"{source}: looks ahead, so it has no graph of streams to make int8"
        )
    sample_rate, level = hparams["sample_rate"], level_of(hparams, source)
    shortest = round(SHORTEST_ENROLLMENT * sample_rate)
    metadata = {
        "sample_rate": str(sample_rate),
        "shortest_samples": str(shortest),
        "level": level,
        "description": (
            "Target speech extraction: speaker_encoder.onnx embeds the speaker of an "
            "enrollment, extractor.onnx extracts that speaker from a mixture."
        ),
    }
    speaker_network, extractor = SpeakerNetwork(stages), Extractor(stages, level)
    # Of another batch size and length than the graphs are made with.
    to_compare = made_noise(1, shortest), made_noise(3, sample_rate + 3)
    folder = Path(folder)
    with contextlib.ExitStack() as stack:
        speaker_path, extractor_path = (
            stack.enter_context(whole_file(folder / name))
            for name in (SPEAKER_ENCODER_FILE, EXTRACTOR_FILE)
        )
        enrollment = made_noise(2, sample_rate)
        _write(speaker_path, speaker_network, (enrollment,), shortest, metadata)
        for noise in to_compare:
            check_onnx(speaker_path, speaker_network, (noise,))
        inputs = (made_noise(2, sample_rate), speaker_network(enrollment))
        _write(extractor_path, extractor, inputs, shortest, metadata)
        for noise in to_compare:
            voice = speaker_network(noise)
            for mixture in (noise, torch.zeros_like(noise)):
                check_onnx(extractor_path, extractor, (mixture, voice))
        if causal:
            stream_path = stack.enter_context(whole_file(folder / STREAM_FILE))
            write_stream(stream_path, stages, level, metadata)
            if int8:
                path = stack.enter_context(whole_file(folder / INT8_STREAM_FILE))
                quantize_stream(stream_path, path, stages)
    # Of another model, or an older state of this one.
    for name, written in ((STREAM_FILE, causal), (INT8_STREAM_FILE, int8)):
        if not written:
            (folder / name).unlink(missing_ok=True)
    return folder


def describe_graphs(folder):
    """A line for each graph in a folder: its size, and what 8 bits cost.

    Arguments
    ---------
    folder : pathlib.Path
        From `export_onnx`.

    Returns
    -------
    str
    """
    lines = []
    for name in (SPEAKER_ENCODER_FILE, EXTRACTOR_FILE, STREAM_FILE, INT8_STREAM_FILE):
        path = folder / name
        if path.exists():
            lines.append(f"{path}\t{path.stat().st_size / 1e6:.2f} MB")
            said = open_graph(path).get_modelmeta().custom_metadata_map
            if "int8_snr_db" in said:
                lines[-1] += f"\t{said['int8_snr_db']} dB above the difference to fp32"
    return "\n".join(lines)


@torch.no_grad()
def check_onnx(path, network, inputs):
    """Compares a graph in ONNX Runtime with the network in PyTorch.

    Arguments
    ---------
    path : str or pathlib.Path
        The graph.
    network : SpeakerNetwork or Extractor
        What it was made of.
    inputs : tuple of torch.Tensor
        The network's.

    Raises
    ------
    ValueError
        If outputs differ by more than `TOLERANCE`.
    """
    session = open_graph(path)
    names = [graph_input.name for graph_input in session.get_inputs()]
    arrays = [tensor.numpy() for tensor in inputs]
    (output,) = session.run(None, dict(zip(names, arrays, strict=True)))
    expected = network(*inputs)
    difference = (torch.from_numpy(output) - expected).abs().max().item()
    if not difference <= TOLERANCE:  # also NaN
        raise ValueError(
            f"{path}: ONNX Runtime's {network.output_names[0]} is {difference:.1e} "
            f"away from PyTorch's on an input of shape {tuple(inputs[0].shape)}; up to "
            f"{TOLERANCE:.0e} is allowed. The graph is not to be used."
        )


def _write(path, network, inputs, shortest, metadata):
    """Saves the graph of a network whose first input is a waveform."""
    batch, time = Dim("batch"), Dim.DYNAMIC(min=shortest)
    axes, names = [{0: batch, 1: time}], [{0: "batch", 1: "time"}]
    for voice in inputs[1:]:
        axis, name = voice_axes(voice, batch)
        axes.append(axis)
        names.append(name)
    save_graph(path, network, inputs, axes, names, metadata)
