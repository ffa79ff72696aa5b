"""A causal model's steps as an ONNX graph, with its state as inputs and outputs.

    stream.onnx    samples (batch, time), the voice, held, state_1, state_2 ...
                   -> estimate (batch, time), next_held, next_state_1, next_state_2 ...

A program gives the next samples and what the graph gave as state the time before. There
are `hop` samples or a multiple of it in every step, and as many estimates. The graph's
metadata tells the rest:

- A stream begins with states that are zeros, and with its first `first_samples` samples
  at the end of `held`, and of `late` where the graph has that; samples follow then.
- The first `drop_samples` estimates are of the time before the stream, to be dropped.
- An estimate is of the sample `first_samples + drop_samples` before the one that goes
  in at its place.

Levels are those of a live stream (`inference.live.Stream`).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.export import Dim

from speechbrain_peer.nnet.voice import Frames, features_of
from speechbrain_peer.packaging.onnx_graphs import (
    TOLERANCE,
    import_extra,
    made_noise,
    open_graph,
    save_graph,
    voice_axes,
    voice_name,
)
from speechbrain_peer.peer_learning import streams
from speechbrain_peer.peer_learning.exchange import embed, extract
from speechbrain_peer.utils.signal import match_level_so_far

MOST_HOPS = 1 << 16
"""In a step; any bound, but one is needed to trace."""


class Beginning(NamedTuple):
    """How a stream of the graph begins; see above."""

    hop: int
    """Samples that a step has a multiple of."""
    first_samples: int
    """Samples at the end of `held`."""
    drop_samples: int
    """Estimates to drop."""


class StreamStep(nn.Module):
    """What `stream.onnx` computes.

    Its states have one shape from the first step to the last, unlike those of
    `peer_learning.streams`, which begin without the samples before the first frame.

    Arguments
    ---------
    stages : torch.nn.ModuleDict
        Those of a causal model.
    level : str
        The model's; see `utils.signal.set_level`.
    """

    def __init__(self, stages, level):
        super().__init__()
        self.stages, self.level = stages, level
        self.beginning, state = self._settled()
        self._example, leaves = state, list(_leaves(state))
        # Flags that tell a stream that has frames from one that has none.
        self._flags = [leaf.dtype == torch.bool for leaf in leaves]
        self._kept = [leaf for leaf in leaves if leaf.dtype != torch.bool]
        self.state_names = ["held"]
        self.state_names += [f"state_{i}" for i in range(1, len(self._kept))]
        if level == "mixture":
            self.state_names += ["late", "sums"]
        self.input_names = ["samples", voice_name(stages), *self.state_names]
        self.output_names = ["estimate", *(f"next_{name}" for name in self.state_names)]

    def forward(self, samples, voice, *state):
        """(batch, time), voice and state to (batch, time) and the next state."""
        if voice.dim() == 3:
            voice = Frames(voice, torch.ones_like(voice[..., 0]))
        of_level, state = state[len(self._kept) :], list(state[: len(self._kept)])
        one = torch.ones_like(samples[:, 0]).bool()
        leaves = (one if flag else state.pop(0) for flag in self._flags)
        state = _with_leaves(self._example, leaves)
        estimates, state = streams.step(self.stages, samples, voice, state)
        leaves = zip(_leaves(state), self._flags, strict=True)
        after = [leaf for leaf, flag in leaves if not flag]
        if of_level:
            estimates, *of_level = self._set_level(estimates, samples, *of_level)
            after += of_level
        return estimates, *after

    def _set_level(self, estimates, samples, late, sums):
        """The estimates with their level, and the next `late` and `sums`."""
        heard, delay = torch.cat((late, samples), dim=1), late.shape[1]
        mixtures = heard[:, : heard.shape[1] - delay]
        sums, count = sums.transpose(0, 1).split((2, 1))
        # Those that are dropped count as nothing.
        places = count[0] + torch.arange(samples.shape[1], device=samples.device)
        true = places >= self.beginning.drop_samples
        estimates, sums = match_level_so_far(estimates * true, mixtures, sums)
        sums = torch.cat((sums, count + samples.shape[1])).transpose(0, 1)
        return estimates, heard[:, heard.shape[1] - delay :].clone(), sums

    def begin(self, samples):
        """The state of streams whose first samples are known.

        Arguments
        ---------
        samples : torch.Tensor
            The first `first_samples`, (batch, time).

        Returns
        -------
        list of torch.Tensor
            By `state_names`.
        """
        batch, first = samples.shape
        state = [leaf.new_zeros(batch, *leaf.shape[1:]) for leaf in self._kept]
        state[0][:, state[0].shape[1] - first :] = samples
        if self.level == "mixture":
            late = samples.new_zeros(batch, first + self.beginning.drop_samples)
            late[:, late.shape[1] - first :] = samples
            state += [late, samples.new_zeros(batch, 3, 1, dtype=torch.float64)]
        return state

    def _settled(self):
        """How a stream begins, and a state whose shapes stay."""
        schedule = streams.measure_schedule(self.stages)
        encoder, weight = self.stages["encoder"], next(self.stages.parameters())
        voice = embed(self.stages, weight.new_ones(1, schedule.first + 4000))
        state = streams.init_state(self.stages, 1)
        heard = weight.new_zeros(1, schedule.first + schedule.hop)
        _, state = streams.step(self.stages, heard, voice, state)
        held = next(_leaves(encoder.init_state(1))).shape[1]
        first = next(_leaves(state)).shape[1] - held
        hops = 1 + schedule.first // schedule.hop
        taken = hops * schedule.hop
        drop = taken - int(schedule.completed(first + taken))
        return Beginning(schedule.hop, first, drop), state


def _leaves(state):
    """Yields the tensors of a nested tuple."""
    if isinstance(state, torch.Tensor):
        yield state
    else:
        for part in state:
            yield from _leaves(part)


def _with_leaves(state, leaves):
    """A nested tuple with other tensors."""
    if isinstance(state, torch.Tensor):
        return next(leaves)
    return tuple(_with_leaves(part, leaves) for part in state)


@torch.no_grad()
def write_stream(path, stages, level, metadata):
    """Saves the graph of a causal model's steps, and compares it with PyTorch.

    Arguments
    ---------
    path : pathlib.Path
        The file to write.
    stages : torch.nn.ModuleDict
        The model's.
    level : str
        The model's.
    metadata : dict of str to str
        What all of the model's graphs say.

    Raises
    ------
    ValueError
        If a stream of steps is not what PyTorch makes of the whole.
    """
    network = StreamStep(stages, level)
    beginning = network.beginning
    first, hop = beginning.first_samples, beginning.hop
    metadata = metadata | {
        key: str(value) for key, value in beginning._asdict().items()
    }
    voice = features_of(embed(stages, made_noise(2, 4000)))
    state = network.begin(made_noise(2, first))
    batch, hops = Dim("batch"), Dim("hops", min=1, max=MOST_HOPS)
    of_voice, voice_names = voice_axes(voice, batch)
    axes = ({0: batch, 1: hop * hops}, of_voice, tuple({0: batch} for _ in state))
    names = [{0: "batch", 1: "time"}, voice_names, *(None for _ in state)]
    inputs = (made_noise(2, 3 * hop), voice, *state)
    save_graph(path, network, inputs, axes, names, metadata)
    session = open_graph(path)
    for rows, n_hops in ((1, 1), (3, 4)):
        mixtures = made_noise(rows, first + 48 * hop)
        voice = embed(stages, made_noise(rows, 4000))
        estimates = run_stream(session, mixtures, features_of(voice), n_hops * hop)
        expected = _whole(stages, level, mixtures, voice)[:, : estimates.shape[1]]
        difference = (estimates - expected).abs().max().item()
        if not difference <= TOLERANCE:  # also NaN
            raise ValueError(
                f"{path}: the estimate of ONNX Runtime's steps is {difference:.1e} "
                f"away from PyTorch's; up to {TOLERANCE:.0e} is allowed. The graph is "
                "not to be used."
            )


def _whole(stages, level, mixtures, voice):
    estimates = extract(stages, mixtures, voice)
    if level == "network":
        return estimates
    sums = mixtures.new_zeros(2, len(mixtures), 1, dtype=torch.float64)
    return match_level_so_far(estimates, mixtures, sums)[0]


def run_stream(session, mixtures, voice, step):
    """Extracts from whole mixtures with the graph, step by step.

    Arguments
    ---------
    session : onnxruntime.InferenceSession
        Of `stream.onnx`.
    mixtures : torch.Tensor
        (batch, time).
    voice : torch.Tensor
        Of (batch, ...).
    step : int
        Samples of a step, a multiple of the graph's `hop`.

    Returns
    -------
    torch.Tensor
        What whole steps complete, from the first sample on, (batch, time).
    """
    said = session.get_modelmeta().custom_metadata_map
    first, drop = int(said["first_samples"]), int(said["drop_samples"])
    kinds = {"tensor(float)": np.float32, "tensor(double)": np.float64}
    of_samples, of_voice, *of_state = session.get_inputs()
    samples = mixtures.numpy()
    state = {}
    for node in of_state:
        state[node.name] = np.zeros((len(samples), *node.shape[1:]), kinds[node.type])
        if node.name in ("held", "late") and first:
            state[node.name][:, -first:] = samples[:, :first]
    estimates = []
    for start in range(first, samples.shape[1] - step + 1, step):
        inputs = {
            of_samples.name: samples[:, start : start + step],
            of_voice.name: voice.numpy(),
        }
        estimate, *after = session.run(None, inputs | state)
        state = dict(zip(state, after, strict=True))
        estimates.append(estimate)
    return torch.from_numpy(np.concatenate(estimates, axis=1)[:, drop:])


@torch.no_grad()
def quantize_stream(path, quantized_path, stages):
    """Makes the graph one of 8-bit weights.

    Arguments
    ---------
    path : pathlib.Path
        `stream.onnx`.
    quantized_path : pathlib.Path
        The file to write. Its metadata also tell `int8_snr_db`: how far the energy of
        the estimate, of noise, is above that of the difference from fp32.
    stages : torch.nn.ModuleDict
        The model's.
    """
    onnx, quantization = map(import_extra, ("onnx", "onnxruntime.quantization"))
    prepare = import_extra("onnxruntime.quantization.shape_inference").quant_pre_process
    # Constants are folded first: products are quantized whose weights are known.
    prepare(str(path), str(quantized_path), skip_symbolic_shape=True)
    quantization.quantize_dynamic(str(quantized_path), str(quantized_path))
    whole = open_graph(path)
    said = whole.get_modelmeta().custom_metadata_map
    hop = int(said["hop"])
    voice = features_of(embed(stages, made_noise(1, 4000)))
    mixture = made_noise(1, 400 * hop)
    of_noise = (mixture, voice, 20 * hop)
    graph = onnx.load(quantized_path)
    _say(graph, said)
    onnx.save(graph, quantized_path)
    exact = run_stream(whole, *of_noise)
    quantized = open_graph(quantized_path)
    error = run_stream(quantized, *of_noise) - exact
    ratio = 10 * torch.log10(exact.square().sum() / error.square().sum()).item()
    _say(graph, {"int8_snr_db": f"{ratio:.1f}"})
    onnx.save(graph, quantized_path)


def _say(graph, metadata):
    for key, value in metadata.items():
        graph.metadata_props.add(key=key, value=value)
