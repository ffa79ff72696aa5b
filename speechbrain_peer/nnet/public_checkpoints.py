"""Loads checkpoints of public implementations into our stages, strictly, by name."""

import torch

from speechbrain_peer.nnet.filterbank import Decoder, Encoder
from speechbrain_peer.nnet.mask import MaskHead
from speechbrain_peer.nnet.td_speakerbeam import Separator, SpeakerEncoder


def load_speakerbeam(path):
    """Builds TD-SpeakerBeam from a checkpoint in the public SpeakerBeam format.

    Arguments
    ---------
    path : str or Path
        A file with `model_args` and `state_dict`, as Asteroid writes them.

    Returns
    -------
    torch.nn.ModuleDict
        The stages, with the checkpoint's weights.

    Raises
    ------
    ValueError
        If the file is no such checkpoint, or its names and shapes differ from those
        of the model; the message lists them.
    """
    checkpoint = load_asteroid_file(path)
    modules = _build_speakerbeam(checkpoint["model_args"], path)
    _fill(modules, checkpoint["state_dict"], path)
    return modules


def _build_speakerbeam(args, path):
    """The stages that the checkpoint's arguments describe."""
    absent = sorted(_ARGUMENTS - set(args))
    if absent:
        raise ValueError(
            f"{path} is no TD-SpeakerBeam: its model_args lack {', '.join(absent)}"
        )
    for key, value in {"skip_chan": args["bn_chan"], "mask_act": "relu"}.items():
        if args.get(key, value) != value:
            raise ValueError(f"{path}: {key} {args[key]}, only {value} is supported")
    filters = {key: args[key] for key in ("n_filters", "kernel_size", "stride")}
    # The file counts all channels an adapted connection's embedding has; the
    # auxiliary network makes one for the residual and one for the skip connection.
    shared = {
        "channels": args["bn_chan"],
        "hidden_channels": args["hid_chan"],
        "n_blocks": args["n_blocks"],
        "embedding_size": args["adapt_enroll_dim"],
    }
    return torch.nn.ModuleDict(
        {
            "encoder": Encoder(**filters),
            "speaker_encoder": SpeakerEncoder(**filters, **shared),
            "separator": Separator(
                n_filters=args["n_filters"],
                n_repeats=args["n_repeats"],
                adapted_block=args["i_adapt_layer"],
                adaptation=args["adapt_layer_type"],
                **shared,
            ),
            "mask_head": MaskHead(args["bn_chan"], args["n_filters"]),
            "decoder": Decoder(**filters),
        }
    )


@torch.no_grad()
def _fill(modules, source, path):
    """Copies the public tensors into our parameters; all of them, or it raises."""
    unexpected = set(source)
    missing, misshapen = [], []
    for name, parameter in modules.named_parameters():
        keys = speakerbeam_names(name)
        unexpected.difference_update(keys)
        for key, part in zip(keys, parameter.chunk(len(keys)), strict=True):
            if key not in source:
                missing.append(key)
                continue
            tensor = _as_ours(name, source[key])
            if tensor.shape != part.shape:
                misshapen.append(f"{key} {tuple(source[key].shape)}")
                continue
            part.copy_(tensor)
    if missing or unexpected or misshapen:
        raise ValueError(
            f"{path} is no TD-SpeakerBeam of its own arguments; missing: "
            f"{', '.join(missing) or '-'}; unexpected: "
            f"{', '.join(sorted(unexpected)) or '-'}; of another shape: "
            f"{', '.join(misshapen) or '-'}"
        )


_ARGUMENTS = {
    "n_filters",
    "kernel_size",
    "stride",
    "bn_chan",
    "hid_chan",
    "n_blocks",
    "n_repeats",
    "adapt_enroll_dim",
    "adapt_layer_type",
    "i_adapt_layer",
}
_STAGES = {
    "encoder.weight": "encoder.filterbank._filters",
    "decoder.weight": "decoder.filterbank._filters",
    "mask_head.slope": "masker.mask_net.0.weight",
    "mask_head.linear.": "masker.mask_net.1.",
    "separator.tcn.": "masker.",
    "separator.adaptation.transforms.": "masker.adapt_layer.transform.",
    "speaker_encoder.encoder.weight": "auxiliary.1.filterbank._filters",
    "speaker_encoder.tcn.": "auxiliary.2.",
    "speaker_encoder.slope": "auxiliary.2.mask_net.0.weight",
    "speaker_encoder.linear.": "auxiliary.2.mask_net.1.",
}
_TCN = {
    "gamma": "bottleneck.0.gamma",
    "beta": "bottleneck.0.beta",
    "bottleneck.": "bottleneck.1.",
    "blocks.": "TCN.",
}
_BLOCK = {
    "in_proj.": "shared_block.0.",
    "in_slope": "shared_block.1.weight",
    "in_gamma": "shared_block.2.gamma",
    "in_beta": "shared_block.2.beta",
    "depth_": "shared_block.3.",
    "out_slope": "shared_block.4.weight",
    "out_gamma": "shared_block.5.gamma",
    "out_beta": "shared_block.5.beta",
}


def speakerbeam_names(name):
    """The public names of the tensors that make one of our parameters.

    Example
    -------
    >>> speakerbeam_names("separator.tcn.blocks.3.depth_bias")
    ['masker.TCN.3.shared_block.3.bias']
    >>> speakerbeam_names("speaker_encoder.tcn.blocks.0.out_proj.bias")
    ['auxiliary.2.TCN.0.res_conv.bias', 'auxiliary.2.TCN.0.skip_conv.bias']
    """
    stage, rest = _translate(name, _STAGES)
    if ".tcn." not in name:
        return [stage + rest]
    part, rest = _translate(rest, _TCN)
    if not part.startswith("TCN."):
        return [stage + part + rest]
    index, rest = rest.split(".", 1)
    prefix = f"{stage}{part}{index}."
    if rest.startswith("out_proj."):
        kind = rest.removeprefix("out_proj.")
        return [f"{prefix}{connection}_conv.{kind}" for connection in ("res", "skip")]
    part, rest = _translate(rest, _BLOCK)
    return [prefix + part + rest]


def _translate(name, table):
    """The public counterpart of the name's head, and the name's remaining tail."""
    head = next(head for head in table if name.startswith(head))
    return table[head], name.removeprefix(head)


def _as_ours(name, tensor):
    """Depthwise filters are (taps, channels) here, pointwise ones plain matrices."""
    if tensor.dim() == 3:
        tensor = tensor.flatten(1)
    return tensor.T if name.endswith("depth_weight") else tensor


def load_asteroid_file(path):
    """Reads a checkpoint as Asteroid writes it, without running code.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    dict
        With `model_args` and `state_dict`.

    Raises
    ------
    ValueError
        If the file is absent, unreadable or of another format.
    """
    # Asteroid stores the versions it ran with, PyTorch's as an object of this class.
    with torch.serialization.safe_globals([torch.torch_version.TorchVersion]):
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # its bytes decide what the unpickler raises
            raise ValueError(
                f"{path} cannot be read as a checkpoint: {type(error).__name__} {error}"
            ) from error
    if not isinstance(checkpoint, dict) or not {"model_args", "state_dict"} <= set(
        checkpoint
    ):
        raise ValueError(
            f"{path} has no model_args and state_dict: not Asteroid's format"
        )
    return checkpoint
