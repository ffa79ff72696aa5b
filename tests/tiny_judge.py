"""Judges for tests: a tiny ECAPA of SpeechBrain, and a stand-in for Resemblyzer."""

import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_peer.inference.resemblyzer import VoiceEncoder

# As the Hub's spkrec-ecapa-voxceleb, which names the Hub for its weights.
ECAPA_YAML = """
pretrained_path: speechbrain/spkrec-ecapa-tiny
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 20
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: 20
    channels: [8, 8, 8, 8, 24]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 8
    res2net_scale: 2
    se_channels: 8
    lin_neurons: 6
classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: 6
    out_neurons: 3
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
        classifier: !ref <classifier>
    paths:
        embedding_model: !ref <pretrained_path>/embedding_model.ckpt
        classifier: !ref <pretrained_path>/classifier.ckpt
"""


def save_ecapa(folder, seed=0):
    """Writes a tiny ECAPA with random weights."""
    folder.mkdir(parents=True)
    (folder / "hyperparams.yaml").write_text(ECAPA_YAML)
    torch.manual_seed(seed)
    modules = load_hyperpyyaml(ECAPA_YAML)["modules"]
    for name in ("embedding_model", "classifier"):
        torch.save(modules[name].state_dict(), folder / f"{name}.ckpt")
    return folder


def save_resemblyzer(folder):
    """Writes a package with random weights that nobody can import."""
    package = folder / "resemblyzer"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('no librosa')")
    torch.manual_seed(0)
    state = VoiceEncoder().state_dict() | {"similarity_bias": torch.zeros(1)}
    content = {"step": 1, "model_state": state, "optimizer_state": {}}
    torch.save(content, package / "pretrained.pt")
    return package
