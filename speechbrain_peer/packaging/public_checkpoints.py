"""Loads checkpoints of public implementations into our stages, strictly, by name."""

import torch


def load_public(path, modules):
    """Fills stages with a checkpoint of the public SpeakerBeam or SpEx+ code.

    Padded enrollments get other embeddings than from the public SpEx+: it sums over the
    padding, too.

    Arguments
    ---------
    path : str or Path
        A file with `model_args` and `state_dict`, as Asteroid writes them. Of SpEx+,
        `model_args` holds the arguments `L`, `N`, `X`, `R`, `B`, `H`, `P` and `norm`.
    modules : Mapping
        The stages of a YAML, of the checkpoint's sizes, without predictors. A
        `speaker_classifier` among them is left out.

    Returns
    -------
    modules : torch.nn.ModuleDict
        The stages, with the checkpoint's weights; of SpEx+ also its
        `speaker_classifier`.
    sample_rate : int or None
        In Hz, where the checkpoint tells it.

    Raises
    ------
    ValueError
        If the file is no such checkpoint, or its names, shapes or settings differ from
        those of the stages; the message lists them.
    """
    checkpoint = load_asteroid_file(path)
    args, state = checkpoint["model_args"], checkpoint["state_dict"]
    stages = {name: modules[name] for name in modules if name != "speaker_classifier"}
    # Only SpEx+ calls a kernel size so.
    if "L" in args:
        _check_present(args, set("LNXRBH") | {"norm"}, "SpEx+", path)
        fixed = {"P": 3, "norm": "gLN", "non_linear": "relu", "causal": False}
        # The public code takes half of the shortest frame as its stride.
        settings = {"stride": args["L"] // 2}
        names, model = spex_plus_names, "SpEx+"
        speakers, size = state.get("pred_linear.weight", torch.empty(1, 1)).shape
        stages["speaker_classifier"] = torch.nn.Linear(size, speakers)
    else:
        _check_present(args, _ARGUMENTS, "TD-SpeakerBeam", path)
        fixed = {"skip_chan": args["bn_chan"], "mask_act": "relu"}
        settings = {
            "stride": args["stride"],
            "adapted_block": args["i_adapt_layer"],
            "kind": args["adapt_layer_type"],
        }
        names, model = speakerbeam_names, "TD-SpeakerBeam"
    _check_fixed(args, fixed, path)
    stages = torch.nn.ModuleDict(stages)
    _check_settings(settings, stages, path)
    _fill(stages, state, names, model, path)
    return stages, args.get("sample_rate")


def _check_settings(settings, stages, path):
    """Settings that no weight shows, by the layers' attributes."""
    differences = [
        f"{key} is {value} there and {getattr(layer, key)} here"
        for stage in ("encoder", "separator")
        for layer in stages[stage].modules()
        for key, value in settings.items()
        if getattr(layer, key, value) != value
    ]
    if differences:
        raise ValueError(f"{path}: {'; '.join(dict.fromkeys(differences))}")


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
            f"{path} is no {model} of the YAML's sizes; missing: "
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
                f"{path} cannot be read as a checkpoint: it is damaged, or holds more "
                f"than tensors and plain values ({type(error).__name__})"
            ) from error
    if not isinstance(checkpoint, dict) or not {"model_args", "state_dict"} <= set(
        checkpoint
    ):
        raise ValueError(
            f"{path} has no model_args and state_dict: not Asteroid's format"
        )
    return checkpoint
