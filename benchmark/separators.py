"""The separators that are compared: mask networks, applied to what they mask.

Every one gets the mixture's representation in the layout it is written for. They do
the same work but for what `DIFFERENCES` says.
"""

import functools
from dataclasses import replace

import torch
from torch import nn
from tqdm import tqdm

from benchmark.measure import (
    compiling,
    peak_memory,
    precision_context,
    precisions_on,
    time_in_turns,
)
from benchmark.report import Table
from speechbrain_peer.nnet.mask import MaskHead
from speechbrain_peer.nnet.tcn import TemporalConvNet

N_MIXTURES = 2
# Processes; malloc does not place blocks alike in all, CUDA's allocator does.
MEMORY_REPEATS = {"cpu": 3, "cuda": 1}
# Just above 128 frames, which SpeechBrain's reflecting padding needs. What it leaves
# in malloc's hands, a twentieth of what the large one takes, is not counted there.
SMALL_SECONDS = 0.14
COLUMNS = ("forward + backward [s]", "forward [s]", "peak training memory [GiB]")
FIRST = "first forward + backward [s]"
FIRST_NOTE = (
    "The first forward and backward pass of ours compiles, unless PyTorch's cache has "
    "it from before; the first row's starts the GPU."
)
DIFFERENCES = (
    "Asteroid's TDConvNet and ours compute the same function. SpeechBrain's MaskNet "
    "has no skip connections and no biases, that is, a third fewer products."
)
INSTALL = "pip install 'speechbrain-peer[benchmark]' installs it."


class PeerSeparator(nn.Module):
    """A mask network of another toolkit, (batch, filters, frames) to the same."""

    def __init__(self, masker, source_dim):
        super().__init__()
        self.masker, self.source_dim = masker, source_dim

    def forward(self, representation):
        """Masks with the only source's mask."""
        mask = self.masker(representation).select(self.source_dim, 0)
        return mask * representation


class OurSeparator(nn.Module):
    """Ours without a speaker, (batch, frames, filters) to the same."""

    def __init__(self, sizes):
        super().__init__()
        channels = (sizes.channels, sizes.hidden_channels, sizes.channels)
        self.tcn = TemporalConvNet(
            sizes.n_filters, *channels, sizes.n_blocks, sizes.n_repeats
        )
        self.mask_head = MaskHead(sizes.channels, sizes.n_filters)

    def forward(self, representation):
        """Masks."""
        frame_mask = representation.new_ones(representation.shape[:2])
        e = self.tcn(representation, frame_mask)
        return self.mask_head(e, None, representation)


def build_asteroid(sizes):
    """Asteroid's."""
    from asteroid.masknn import TDConvNet

    masker = TDConvNet(
        in_chan=sizes.n_filters,
        n_src=1,
        n_blocks=sizes.n_blocks,
        n_repeats=sizes.n_repeats,
        bn_chan=sizes.channels,
        hid_chan=sizes.hidden_channels,
        skip_chan=sizes.channels,
        conv_kernel_size=3,
        norm_type="gLN",
        mask_act="relu",
    )
    return PeerSeparator(masker, source_dim=1)


def build_speechbrain(sizes):
    """SpeechBrain's."""
    from speechbrain.lobes.models.conv_tasnet import MaskNet

    masker = MaskNet(
        N=sizes.n_filters,
        B=sizes.channels,
        H=sizes.hidden_channels,
        P=3,
        X=sizes.n_blocks,
        R=sizes.n_repeats,
        C=1,
    )
    return PeerSeparator(masker, source_dim=0)


NOT_COMPILED = "ours, not compiled"
BUILDERS = {
    "Asteroid": build_asteroid,
    "SpeechBrain": build_speechbrain,
    "ours": OurSeparator,
    NOT_COMPILED: OurSeparator,
}


class SeparatorPasses:
    """Runs one separator on fixed noise.

    Arguments
    ---------
    name : str
        One of `BUILDERS`.
    precision : str
        `fp32` or `bf16`.
    device : str
        `cpu` or `cuda`.
    sizes : Sizes

    Raises
    ------
    ImportError
        If the toolkit is not installed.
    """

    def __init__(self, name, precision, device, sizes):
        self.precision, self.device = precision, device
        self.compiled = name != NOT_COMPILED
        self.separator = BUILDERS[name](sizes).to(device)
        shape = (N_MIXTURES, sizes.frames, sizes.n_filters)
        if isinstance(self.separator, PeerSeparator):
            shape = (N_MIXTURES, sizes.n_filters, sizes.frames)
        # In a whole model the encoder before it learns too.
        self.representation = torch.randn(shape, device=device, requires_grad=True)
        self.gradient = torch.randn(shape, device=device)

    def train(self):
        """Forward and backward."""
        self.separator.zero_grad(set_to_none=True)
        self.representation.grad = None
        self._forward().backward(self.gradient)

    @torch.inference_mode()
    def infer(self):
        """Forward."""
        self._forward()

    def _forward(self):
        with precision_context(self.precision, self.device), compiling(self.compiled):
            return self.separator(self.representation)


def make_training_pass(name, precision, device, sizes):
    """Forward and backward of one separator, for `peak_memory`."""
    return SeparatorPasses(name, precision, device, sizes).train


def compare_separators(sizes, repeats, device, threads, with_memory=True):
    """Measures all separators.

    Arguments
    ---------
    sizes : Sizes
    repeats : int
        Rounds that count.
    device : str
        `cpu` or `cuda`.
    threads : int
    with_memory : bool
        Whether to measure memory, too.

    Returns
    -------
    Table
    """
    title = f"Separators on {N_MIXTURES} mixtures of {sizes.seconds:g} s"
    table = Table(title, COLUMNS if with_memory else COLUMNS[:-1])
    table.notes.append(DIFFERENCES)
    passes = {}
    for name in BUILDERS:
        if name == NOT_COMPILED and device == "cpu":
            continue  # where nothing is compiled
        for precision in precisions_on(device):
            table.cells[f"{name}, {precision}"] = {}
        try:
            for precision in precisions_on(device):
                case = SeparatorPasses(name, precision, device, sizes)
                passes[name, precision] = case
        except ImportError as error:
            table.notes.append(f"{name}: {error}. {INSTALL}")

    def add_times(column, method, **rounds):
        cases = {
            ", ".join(system): getattr(case, method) for system, case in passes.items()
        }
        taken_by = time_in_turns(cases, device=device, title=column, **rounds)
        for row, seconds in taken_by.items():
            table.add(row, column, seconds)

    if device == "cuda":
        table.columns.append(FIRST)
        table.notes.append(FIRST_NOTE)
        add_times(FIRST, "train", repeats=1, warm_up=0)
    for column, method in zip(COLUMNS, ("train", "infer"), strict=False):
        add_times(column, method, repeats=repeats)

    if not with_memory:
        return table
    small = replace(sizes, seconds=SMALL_SECONDS)
    for system in tqdm(passes, desc=COLUMNS[-1]):
        make_case = functools.partial(make_training_pass, *system, device)
        peaks = [
            peak_memory(make_case, small, sizes, device, threads)
            for _ in range(min(repeats, MEMORY_REPEATS[device]))
        ]
        known = [peak for peak in peaks if peak is not None]
        table.add(", ".join(system), COLUMNS[-1], known)
    return table
