"""Loads checkpoints of public implementations into our stages, strictly, by name."""

import torch

from speechbrain_peer.models import spex_plus, td_speakerbeam
from speechbrain_peer.nnet.filterbank import Decoder, Encoder
from speechbrain_peer.nnet.mask import MaskHead


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
    _fill(modules, checkpoint["state_dict"], speakerbeam_names, "TD-SpeakerBeam", path)
    return modules


def load_spex_plus(path):
    """Builds SpEx+ from the tensors of the public SpEx+ implementation.

    Padded enrollments get other embeddings than there: it sums over the padding, too.

    Arguments
    ---------
    path : str or Path
        A file with `state_dict` and, under `model_args`, the arguments `L`, `N`, `X`,
        `R`, `B`, `H`, `P` and `norm` of the network.

    Returns
    -------
    torch.nn.ModuleDict
        The stages and `speaker_classifier`, with the checkpoint's weights.

    Raises
    ------
    ValueError
        If the file is no such checkpoint, or its names and shapes differ from those
        of the model; the message lists them.
    """
    checkpoint = load_asteroid_file(path)
    state = checkpoint["state_dict"]
    speakers = len(state.get("pred_linear.bias", (None,)))
    modules = _build_spex_plus(checkpoint["model_args"], speakers, path)
    _fill(modules, state, spex_plus_names, "SpEx+", path)
    return modules


def _build_speakerbeam(args, path):
    """The stages that the checkpoint's arguments describe."""
    _check_present(args, _ARGUMENTS, "TD-SpeakerBeam", path)
    _check_fixed(args, {"skip_chan": args["bn_chan"], "mask_act": "relu"}, path)
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
            "speaker_encoder": td_speakerbeam.SpeakerEncoder(**filters, **shared),
            "separator": td_speakerbeam.Separator(
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


def _build_spex_plus(args, speakers, path):
    """The same for SpEx+; what is not an argument, the public code has fixed."""
    _check_present(args, set("LNXRBH") | {"norm"}, "SpEx+", path)
    fixed = {"P": 3, "norm": "gLN", "non_linear": "relu", "causal": False}
    _check_fixed(args, fixed, path)
    filters = {
        "n_filters": args["N"],
        "kernel_sizes": (args["L"], 80, 160),
        "stride": args["L"] // 2,
    }
    n_all, embedding_size = 3 * args["N"], 256
    return torch.nn.ModuleDict(
        {
            "encoder": spex_plus.MultiScaleEncoder(**filters),
            "speaker_encoder": spex_plus.SpeakerEncoder(n_all, 256, embedding_size),
            "separator": spex_plus.Separator(
                n_filters=n_all,
                channels=args["B"],
                hidden_channels=args["H"],
                n_blocks=args["X"],
                n_repeats=args["R"],
                embedding_size=embedding_size,
            ),
            "mask_head": MaskHead(args["B"], n_all, prelu=False),
            "decoder": spex_plus.MultiScaleDecoder(**filters),
            "speaker_classifier": torch.nn.Linear(embedding_size, speakers),
        }
    )


def _check_present(args, needed, model, path):
    absent = sorted(needed - set(args))
    if absent:
        raise ValueError(
            f"{path} is no {model}: its model_args lack {', '.join(absent)}"
        )


def _check_fixed(args, fixed, path):
    for key, value in fixed.items():
        if args.get(key, value) != value:
            raise ValueError(f"{path}: {key} {args[key]}, only {value} is supported")


@torch.no_grad()
def _fill(modules, source, names, model, path):
    """Copies the public tensors into ours; all of them, or it raises."""
    unexpected = set(source)
    missing, misshapen = [], []
    for name, ours in modules.state_dict().items():
        keys = names(name)
        unexpected.difference_update(keys)
        parts = ours.chunk(len(keys)) if len(keys) > 1 else (ours,)
        for key, part in zip(keys, parts, strict=True):
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
            f"{path} is no {model} of its own arguments; missing: "
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


_SPEX_PLUS = {
    "encoder.scales.0.": "encoder_1d_short.",
    "encoder.scales.1.": "encoder_1d_middle.",
    "encoder.scales.2.": "encoder_1d_long.",
    "decoder.scales.0.": "decoder_1d_1.",
    "decoder.scales.1.": "decoder_1d_2.",
    "decoder.scales.2.": "decoder_1d_3.",
    "separator.norm.": "ln.",
    "separator.bottleneck.": "proj.",
    "speaker_encoder.norm.": "aux_enc3.0.",
    "speaker_encoder.bottleneck.": "aux_enc3.1.",
    "speaker_encoder.linear.": "aux_enc3.5.",
    "speaker_classifier.": "pred_linear.",
}
_SPEX_PLUS_MANY = {
    "encoder.bias": [
        f"encoder_1d_{scale}.bias" for scale in ("short", "middle", "long")
    ],
    "decoder.bias": [f"decoder_1d_{scale}.bias" for scale in (1, 2, 3)],
    "mask_head.linear.weight": [f"mask{scale}.weight" for scale in (1, 2, 3)],
    "mask_head.linear.bias": [f"mask{scale}.bias" for scale in (1, 2, 3)],
}
_SPEX_PLUS_BLOCK = {
    "in_proj.": "conv1x1.",
    "in_slope": "prelu1.weight",
    "in_gamma": "lnorm1.gamma",
    "in_beta": "lnorm1.beta",
    "depth_": "dconv.",
    "out_slope": "prelu2.weight",
    "out_gamma": "lnorm2.gamma",
    "out_beta": "lnorm2.beta",
    "out_proj.": "sconv.",
}
_SPEX_PLUS_SPEAKER_BLOCK = {
    "linear": "conv",
    "norm": "batch_norm",
    "slope1": "prelu1.weight",
    "slope2": "prelu2.weight",
    "shortcut.": "conv_downsample.",
}


def spex_plus_names(name):
    """The public names of the tensors that make one of our parameters or buffers.

    Example
    -------
    >>> spex_plus_names("separator.repeats.0.0.in_slope")
    ['conv_block_1.prelu1.weight']
    >>> spex_plus_names("separator.repeats.3.2.depth_bias")
    ['conv_block_4_other.1.dconv.bias']
    >>> spex_plus_names("speaker_encoder.blocks.0.norm2.running_var")
    ['aux_enc3.2.batch_norm2.running_var']
    """
    if name in _SPEX_PLUS_MANY:
        return _SPEX_PLUS_MANY[name]
    if name.startswith("separator.repeats."):
        repeat, block, rest = name.removeprefix("separator.repeats.").split(".", 2)
        # The block that gets the embedding is apart from the others.
        place = f"_other.{int(block) - 1}" if int(block) else ""
        part, rest = _translate(rest, _SPEX_PLUS_BLOCK)
        return [f"conv_block_{int(repeat) + 1}{place}.{part}{rest}"]
    if name.startswith("speaker_encoder.blocks."):
        block, rest = name.removeprefix("speaker_encoder.blocks.").split(".", 1)
        part, rest = _translate(rest, _SPEX_PLUS_SPEAKER_BLOCK)
        return [f"aux_enc3.{int(block) + 2}.{part}{rest}"]
    part, rest = _translate(name, _SPEX_PLUS)
    return [part + rest]


def _translate(name, table):
    """The public counterpart of the name's head, and the name's remaining tail."""
    head = next(head for head in table if name.startswith(head))
    return table[head], name.removeprefix(head)


def _as_ours(name, tensor):
    """Depthwise filters are (taps, channels) here, others matrices, norms' flat."""
    if tensor.dim() == 3:
        tensor = tensor.flatten(1)
    if name.endswith(("gamma", "beta")) and tensor.dim() == 2:
        tensor = tensor.squeeze(1)
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
