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
"""

import importlib
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from speechbrain_peer.nnet.voice import Frames, features_of
from speechbrain_peer.packaging.loading import level_of, load_model
from speechbrain_peer.peer_learning.exchange import embed, extract
from speechbrain_peer.utils.files import whole_file
from speechbrain_peer.utils.signal import SHORTEST_ENROLLMENT, set_level

SPEAKER_ENCODER_FILE = "speaker_encoder.onnx"
EXTRACTOR_FILE = "extractor.onnx"

OPSET = 20
TOLERANCE = 1e-4
"""How far ONNX Runtime's outputs may be from PyTorch's, absolute."""

NOISE_LEVEL = 0.1  # of the signals to compare on, as loud as speech


def voice_name(stages):
    """What the graphs call the voice of a model with these stages."""
    return "frames" if hasattr(stages["speaker_encoder"], "frame_size") else "embedding"


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
        self.input_names, self.output_name = ["enrollment"], voice_name(stages)

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
        self.input_names, self.output_name = ["mixture", voice_name(stages)], "estimate"

    def forward(self, mixture, voice):
        """(batch, time) and (batch, E), or (batch, frames, F), to (batch, time)."""
        if voice.dim() == 3:
            voice = Frames(voice, torch.ones_like(voice[..., 0]))
        estimate = extract(self.stages, mixture, voice)
        return set_level(estimate, mixture, level=self.level)


@torch.no_grad()
def export_onnx(source, folder, trust=False):
    """Writes an exported model as two ONNX graphs, and compares them with PyTorch.

    Arguments
    ---------
    source : str or pathlib.Path
        An exported model, as `TargetSpeechExtraction.from_hparams` loads it.
    folder : str or pathlib.Path
        The folder to write; older graphs are replaced once the new ones are checked.
    trust : bool
        Builds whatever the model's YAML says. That runs any code it names.

    Returns
    -------
    pathlib.Path
        The folder, with `speaker_encoder.onnx` and `extractor.onnx`.

    Raises
    ------
    ImportError
        If the extra is not installed.
    ValueError
        If ONNX Runtime's outputs are not PyTorch's.

    Example
    -------
    >>> model = "results/td_speakerbeam_pl/1234/model"
    >>> export_onnx(model, "onnx")  # doctest: +SKIP
    PosixPath('onnx')
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _import_extra(name)
    stages, hparams = load_model(source, trust=trust)
    stages.eval()
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
    to_compare = _noise(1, shortest), _noise(3, sample_rate + 3)
    folder = Path(folder)
    with (
        whole_file(folder / SPEAKER_ENCODER_FILE) as speaker_path,
        whole_file(folder / EXTRACTOR_FILE) as extractor_path,
    ):
        enrollment = _noise(2, sample_rate)
        _write(speaker_path, speaker_network, (enrollment,), shortest, metadata)
        for noise in to_compare:
            check_onnx(speaker_path, speaker_network, (noise,))
        inputs = (_noise(2, sample_rate), speaker_network(enrollment))
        _write(extractor_path, extractor, inputs, shortest, metadata)
        for noise in to_compare:
            voice = speaker_network(noise)
            for mixture in (noise, torch.zeros_like(noise)):
                check_onnx(extractor_path, extractor, (mixture, voice))
    return folder


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
    runtime = _import_extra("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [graph_input.name for graph_input in session.get_inputs()]
    arrays = [tensor.numpy() for tensor in inputs]
    (output,) = session.run(None, dict(zip(names, arrays, strict=True)))
    expected = network(*inputs)
    difference = (torch.from_numpy(output) - expected).abs().max().item()
    if not difference <= TOLERANCE:  # also NaN
        raise ValueError(
            f"{path}: ONNX Runtime's {network.output_name} is {difference:.1e} away "
            f"from PyTorch's on an input of shape {tuple(inputs[0].shape)}; up to "
            f"{TOLERANCE:.0e} is allowed. The graph is not to be used."
        )


def _write(path, network, inputs, shortest, metadata):
    """Traces a network, whose first input is a waveform, and saves its graph."""
    batch, time = Dim("batch"), Dim.DYNAMIC(min=shortest)
    axes, names = [{0: batch, 1: time}], [{0: "batch", 1: "time"}]
    for voice in inputs[1:]:
        of_frames = voice.dim() == 3
        axes.append({0: batch, 1: Dim.DYNAMIC} if of_frames else {0: batch})
        names.append({1: "frames"} if of_frames else None)
    # `len(tensor)` would be taken for a constant, `tensor.shape[0]` is not.
    program = torch.export.export(network, inputs, dynamic_shapes=axes, strict=False)
    # Optimizing is left to ONNX Runtime: the optimizer of onnxscript (0.7) takes the
    # 1e-8 that norms add to the variance for 0, and silence comes out as NaN.
    graph = torch.onnx.export(
        program,
        input_names=network.input_names,
        output_names=[network.output_name],
        dynamic_shapes=names,
        opset_version=OPSET,
        optimize=False,
        verbose=False,
    )
    # Every node holds lines of source code and the paths of their files.
    _import_extra("onnx_ir.passes.common").ClearMetadataAndDocStringPass()(graph.model)
    graph.model.metadata_props.update(metadata)
    graph.save(path, external_data=False)


def _noise(batch, length):
    generator = torch.Generator().manual_seed(length)
    return NOISE_LEVEL * torch.randn(batch, length, generator=generator)


def _import_extra(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} is not installed, and an export to ONNX needs it: "
            'pip install "speechbrain-peer[onnx]"'
        ) from error
