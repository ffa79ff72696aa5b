"""A tiny model whose voice is frames of the enrollment."""

from hyperpyyaml import load_hyperpyyaml
from tiny_model import TRAINING_YAML
from torch import nn

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.nnet.filterbank import Encoder
from speechbrain_peer.nnet.tcn import TemporalConvNet
from speechbrain_peer.nnet.voice import Frames
from speechbrain_peer.packaging.export import export_model

FRAME_SIZE = 16


class SpeakerEncoder(nn.Module):
    """Rectified frames of a filterbank of its own."""

    def __init__(self, n_filters, kernel_size, stride):
        super().__init__()
        self.encoder = Encoder(n_filters, kernel_size, stride)
        self.frame_size = n_filters

    def forward(self, enrollments, enrollment_lens=None, mixture_encoder=None):
        frames, mask = self.encoder(enrollments, enrollment_lens)
        return Frames(frames.relu() * mask[..., None], mask)


class Separator(nn.Module):
    """Every frame of the mixture looks for what is like it in the enrollment."""

    def __init__(self, n_filters, causal=False):
        super().__init__()
        self.queries = nn.Linear(n_filters, n_filters)
        self.tcn = TemporalConvNet(n_filters, 8, 12, 8, 1, 1, causal)

    def _found(self, representation, voice):
        scores = self.queries(representation) @ voice.features.transpose(1, 2)
        scores = scores.masked_fill(voice.mask[:, None] == 0, -1e9)
        return 10 * scores.softmax(-1) @ voice.features

    def forward(self, representation, voice, frame_mask):
        found = self._found(representation, voice) * frame_mask[..., None]
        return self.tcn(representation * (0.1 + found), frame_mask)

    def init_state(self, batch):
        return self.tcn.init_state(batch)

    def step(self, representation, voice, state):
        found = self._found(representation, voice)
        return self.tcn.step(representation * (0.1 + found), state)


def training_yaml(causal=False):
    """`tiny_model.TRAINING_YAML` with these two stages."""
    text = TRAINING_YAML
    sizes = text[text.index("speaker_encoder: !new") : text.index("predictor1: !new")]
    own = f"""
speaker_encoder: !new:frames_model.SpeakerEncoder
    n_filters: {FRAME_SIZE}
    kernel_size: !ref <kernel_size>
    stride: !ref <stride>

separator: !new:frames_model.Separator
    n_filters: !ref <n_filters>
    causal: {causal}

"""
    classifier = text[text.index("# A loss needs it") : text.index("optimizer: ")]
    text = text.replace(sizes, own).replace(classifier, "")
    return text.replace("    speaker_classifier: !ref <speaker_classifier>\n", "")


def build(causal=False, seed=7):
    """The modules of a run, with random weights of their own for every seed."""
    hparams = load_hyperpyyaml(training_yaml(causal), {"seed": seed})
    return nn.ModuleDict(hparams["modules"])


def interface(causal=False, seed=7):
    """A model with its predictors."""
    return TargetSpeechExtraction(build(causal, seed), {"sample_rate": 8000})


def export(folder, causal=False):
    """Exports to `folder`, and returns it."""
    run = folder.with_name(f"{folder.name}.yaml")
    run.write_text(training_yaml(causal), encoding="utf-8")
    return export_model(run, build(causal), folder)
