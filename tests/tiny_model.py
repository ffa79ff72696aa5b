"""A tiny TD-SpeakerBeam with peer learning, as the end of a training run has it."""

import torch
from hyperpyyaml import load_hyperpyyaml
from torch.nn import ModuleDict

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.packaging.export import export_model

SAMPLE_RATE = 8000

# With what surrounds the stages in a training YAML, and must stay behind.
TRAINING_YAML = """
seed: 7
__set_seed: !apply:speechbrain.utils.seed_everything [!ref <seed>]
output_folder: results
sample_rate: 8000
exchange: better
n_filters: 16
kernel_size: 16
stride: 8

encoder: !new:speechbrain_peer.nnet.filterbank.Encoder
    n_filters: !ref <n_filters>
    kernel_size: !ref <kernel_size>
    stride: !ref <stride>

speaker_encoder: !new:speechbrain_peer.models.td_speakerbeam.SpeakerEncoder
    n_filters: !ref <n_filters>
    kernel_size: !ref <kernel_size>
    stride: !ref <stride>
    channels: 8
    hidden_channels: 12
    n_blocks: 3
    embedding_size: 8

separator: !new:speechbrain_peer.models.td_speakerbeam.Separator
    n_filters: !ref <n_filters>
    channels: 8
    hidden_channels: 12
    n_blocks: 3
    n_repeats: 2
    adapted_block: 2
    adaptation: mul
    embedding_size: 8

predictor1: !new:speechbrain_peer.peer_learning.predictors.Predictor
    in_channels: 8
    out_channels: !ref <n_filters>

predictor2: !new:speechbrain_peer.peer_learning.predictors.Predictor
    in_channels: !ref <n_filters> * 2
    out_channels: !ref <n_filters>

mask_head: !new:speechbrain_peer.nnet.mask.MaskHead
    channels: 8
    n_filters: !ref <n_filters>
    refined_size: !ref <n_filters>

decoder: !new:speechbrain_peer.nnet.filterbank.Decoder
    n_filters: !ref <n_filters>
    kernel_size: !ref <kernel_size>
    stride: !ref <stride>

# A loss needs it, extraction does not.
speaker_classifier: !new:torch.nn.Linear
    in_features: 16
    out_features: 251

optimizer: !name:torch.optim.Adam
    lr: 0.001

modules:
    encoder: !ref <encoder>
    speaker_encoder: !ref <speaker_encoder>
    separator: !ref <separator>
    predictor1: !ref <predictor1>
    predictor2: !ref <predictor2>
    mask_head: !ref <mask_head>
    decoder: !ref <decoder>
    speaker_classifier: !ref <speaker_classifier>
"""


def causal_yaml(level="network", n_blocks=2):
    """The same for live use, with few blocks, as a step takes its time for each."""
    text = TRAINING_YAML
    for old, new in (
        ("sample_rate: 8000", f"sample_rate: 8000\nlevel: {level}"),
        ("n_blocks: 3", f"n_blocks: {n_blocks}"),
        ("n_repeats: 2", "n_repeats: 1"),
        ("adapted_block: 2", "adapted_block: 0\n    causal: True"),
    ):
        text = text.replace(old, new)
    return text


def build(seed=7, text=TRAINING_YAML):
    """The modules of a run, with random weights of their own for every seed."""
    return ModuleDict(load_hyperpyyaml(text, {"seed": seed})["modules"])


def write_run(folder):
    """Writes the YAML of a run; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "hyperparams.yaml"
    path.write_text(TRAINING_YAML, encoding="utf-8")
    return path


def export_causal(folder, level="network", gain=1.0, n_blocks=2):
    """Exports a causal model, whose output is so much louder."""
    text = causal_yaml(level, n_blocks)
    folder.parent.mkdir(parents=True, exist_ok=True)
    run = folder.with_name(f"{folder.name}.yaml")
    run.write_text(text, encoding="utf-8")
    modules = load_hyperpyyaml(text)["modules"]
    modules["decoder"].weight.data *= gain
    return export_model(run, modules, folder)


def export(folder, seed=7):
    """Exports to `folder`; returns the modules that are in it."""
    modules = build(seed)
    export_model(write_run(folder.parent / "run"), modules, folder)
    return modules


def load_identity(folder):
    """Exports and loads a model whose estimate is the mixture, but for its ends."""
    export(folder)
    model = TargetSpeechExtraction.from_hparams(folder)
    with torch.no_grad():
        model.mods.encoder.weight.copy_(torch.eye(16))
        model.mods.decoder.weight.copy_(0.5 * torch.eye(16))
        model.mods.mask_head.linear.weight.zero_()
        model.mods.mask_head.linear.bias.fill_(1.0)
    return model
