"""What all ONNX graphs of models share: how they are traced, saved and opened."""

import importlib

import torch
from torch.export import Dim

OPSET = 20
TOLERANCE = 1e-4
"""How far ONNX Runtime's outputs may be from PyTorch's, absolute."""

NOISE_LEVEL = 0.1  # of the signals to compare on, as loud as speech


def save_graph(path, network, inputs, axes, names, metadata):
    """Traces a network and saves its graph.

    Arguments
    ---------
    path : str or pathlib.Path
        The file to write.
    network : torch.nn.Module
        With `input_names` and `output_names`.
    inputs : tuple
        To trace it with.
    axes : tuple
        The dynamic axes of every input, as `torch.export` takes them.
    names : list
        Their names, as `torch.onnx.export` takes them.
    metadata : dict of str to str
        For the graph.
    """
    # `len(tensor)` would be taken for a constant, `tensor.shape[0]` is not.
    program = torch.export.export(network, inputs, dynamic_shapes=axes, strict=False)
    # Optimizing is left to ONNX Runtime: the optimizer of onnxscript (0.7) takes the
    # 1e-8 that norms add to the variance for 0, and silence comes out as NaN.
    graph = torch.onnx.export(
        program,
        input_names=network.input_names,
        output_names=network.output_names,
        dynamic_shapes=names,
        opset_version=OPSET,
        optimize=False,
        verbose=False,
    )
    # Every node holds lines of source code and the paths of their files.
    import_extra("onnx_ir.passes.common").ClearMetadataAndDocStringPass()(graph.model)
    graph.model.metadata_props.update(metadata)
    graph.save(path, external_data=False)


def open_graph(path):
    """A session of ONNX Runtime on the CPU."""
    runtime = import_extra("onnxruntime")
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def voice_axes(voice, batch):
    """The dynamic axes of a voice as a tensor, and their names."""
    if voice.dim() == 3:
        return {0: batch, 1: Dim.DYNAMIC}, {1: "frames"}
    return {0: batch}, None


def made_noise(batch, length):
    """White noise to compare on, always the same, (batch, length)."""
    generator = torch.Generator().manual_seed(length)
    return NOISE_LEVEL * torch.randn(batch, length, generator=generator)


def import_extra(name):
    """Imports a package of the extra, or tells how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} is not installed, and an export to ONNX needs it: "
            'pip install "speechbrain-peer[onnx]"'
        ) from error


def voice_name(stages):
    """What the graphs call the voice of a model with these stages."""
    return "frames" if hasattr(stages["speaker_encoder"], "frame_size") else "embedding"
