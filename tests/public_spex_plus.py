"""SpEx+ as its paper draws it, with the public implementation's names of tensors."""

import numpy as np
import torch
from torch.nn import functional as F

# The arguments of a checkpoint in the public format.
ARGS = {"L": 20, "N": 8, "X": 3, "R": 4, "B": 6, "H": 10, "P": 3, "norm": "gLN"}
# Samples of a frame.
SCALES = {"short": 20, "middle": 80, "long": 160}


def public_state(args, speakers=7):
    """Random tensors with the public names and shapes, written out from the paper."""
    filters, channels, hidden = args["N"], args["B"], args["H"]
    shapes = {}

    def layer(name, outputs, inputs, *taps, bias=True):
        shapes[f"{name}.weight"] = (outputs, inputs, *taps)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def block(name, inputs):
        layer(f"{name}.conv1x1", hidden, inputs, 1)
        layer(f"{name}.dconv", hidden, 1, 3)
        layer(f"{name}.sconv", channels, hidden, 1)
        for index in (1, 2):
            shapes[f"{name}.prelu{index}.weight"] = (1,)
            shapes[f"{name}.lnorm{index}.gamma"] = (hidden, 1)
            shapes[f"{name}.lnorm{index}.beta"] = (hidden, 1)

    def residual_block(name, inputs, outputs):
        layer(f"{name}.conv1", outputs, inputs, 1, bias=False)
        layer(f"{name}.conv2", outputs, outputs, 1, bias=False)
        for index in (1, 2):
            shapes[f"{name}.prelu{index}.weight"] = (1,)
            for kind in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{name}.batch_norm{index}.{kind}"] = (outputs,)
            shapes[f"{name}.batch_norm{index}.num_batches_tracked"] = ()
        if inputs != outputs:
            layer(f"{name}.conv_downsample", outputs, inputs, 1, bias=False)

    for index, (scale, taps) in enumerate(SCALES.items(), start=1):
        layer(f"encoder_1d_{scale}", filters, 1, taps)
        layer(f"mask{index}", filters, channels, 1)
        shapes[f"decoder_1d_{index}.weight"] = (filters, 1, taps)
        shapes[f"decoder_1d_{index}.bias"] = (1,)
    for norm, linear, outputs in (
        ("ln", "proj", channels),
        ("aux_enc3.0", "aux_enc3.1", 256),
    ):
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (3 * filters,)
        layer(linear, outputs, 3 * filters, 1)
    for repeat in range(1, args["R"] + 1):
        block(f"conv_block_{repeat}", channels + 256)
        for index in range(args["X"] - 1):
            block(f"conv_block_{repeat}_other.{index}", channels)
    for index, sizes in enumerate([(256, 256), (256, 512), (512, 512)], start=2):
        residual_block(f"aux_enc3.{index}", *sizes)
    layer("aux_enc3.5", 256, 512, 1)
    layer("pred_linear", speakers, 256)

    rng = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in shapes.items():
        inputs = max(int(np.prod(shape[1:])), 4)
        state[key] = torch.randn(shape, generator=rng) * inputs**-0.5
        if key.endswith("running_var"):
            state[key] = state[key].abs() + 0.5
        if key.endswith("tracked"):
            state[key] = torch.tensor(12)
    return state


class Reference:
    """The network as the paper draws it, channels first, of whole signals."""

    def __init__(self, state, args):
        self.state = {key: tensor.double() for key, tensor in state.items()}
        self.args = args

    def conv(self, name, x, **options):
        bias = self.state.get(f"{name}.bias")
        return F.conv1d(x, self.state[f"{name}.weight"], bias, **options)

    def channel_norm(self, name, x):
        weight, bias = (self.state[f"{name}.{kind}"] for kind in ("weight", "bias"))
        return F.layer_norm(x.mT, weight.shape, weight, bias).mT

    def global_norm(self, name, x):
        gamma, beta = (self.state[f"{name}.{kind}"][:, 0] for kind in ("gamma", "beta"))
        return F.group_norm(x, 1, gamma, beta, eps=1e-5)

    def prelu(self, name, x):
        return F.prelu(x, self.state[f"{name}.weight"])

    def encode(self, x):
        frames = (x.shape[-1] - 20) // 10 + 1
        x = F.pad(x.double()[:, None], (0, 160))
        convolved = [self.conv(f"encoder_1d_{scale}", x, stride=10) for scale in SCALES]
        return [F.relu(w[..., :frames]) for w in convolved]

    def block(self, name, x, dilation, *conditions):
        y = self.conv(f"{name}.conv1x1", torch.cat((x, *conditions), dim=1))
        y = self.global_norm(f"{name}.lnorm1", self.prelu(f"{name}.prelu1", y))
        groups = y.shape[1]
        options = {"padding": dilation, "dilation": dilation, "groups": groups}
        y = self.conv(f"{name}.dconv", y, **options)
        y = self.global_norm(f"{name}.lnorm2", self.prelu(f"{name}.prelu2", y))
        return x + self.conv(f"{name}.sconv", y)

    def residual_block(self, name, x):
        y = self.conv(f"{name}.conv1", x)
        y = self.prelu(f"{name}.prelu1", self.batch_norm(f"{name}.batch_norm1", y))
        y = self.batch_norm(f"{name}.batch_norm2", self.conv(f"{name}.conv2", y))
        if f"{name}.conv_downsample.weight" in self.state:
            x = self.conv(f"{name}.conv_downsample", x)
        return F.max_pool1d(self.prelu(f"{name}.prelu2", x + y), 3)

    def batch_norm(self, name, x):
        kinds = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.state[f"{name}.{kind}"] for kind in kinds))

    def embed(self, enrollments):
        x = self.channel_norm("aux_enc3.0", torch.cat(self.encode(enrollments), dim=1))
        x = self.conv("aux_enc3.1", x)
        for index in (2, 3, 4):
            x = self.residual_block(f"aux_enc3.{index}", x)
        return self.conv("aux_enc3.5", x).mean(-1)

    def extract(self, mixtures, embeddings):
        encoded = self.encode(mixtures)
        x = self.conv("proj", self.channel_norm("ln", torch.cat(encoded, dim=1)))
        a = embeddings[..., None].expand(-1, -1, x.shape[-1])
        for repeat in range(1, self.args["R"] + 1):
            x = self.block(f"conv_block_{repeat}", x, 1, a)
            for index in range(self.args["X"] - 1):
                name = f"conv_block_{repeat}_other.{index}"
                x = self.block(name, x, 2 ** (index + 1))
        estimates = []
        for index, w in enumerate(encoded, start=1):
            weight, bias = (
                self.state[f"decoder_1d_{index}.{kind}"] for kind in ("weight", "bias")
            )
            masked = w * F.relu(self.conv(f"mask{index}", x))
            decoded = F.conv_transpose1d(masked, weight, bias, stride=10)
            estimates.append(decoded[:, 0, : mixtures.shape[1]])
        return torch.stack(estimates, dim=1)
