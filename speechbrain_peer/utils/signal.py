"""How good estimates are, with and without their level, and the level they get: the
computations on waveforms that training, testing and inference share."""

import torch

# Of an enrollment, in seconds: below there is no voice to recognize.
SHORTEST_ENROLLMENT = 0.1
EPS = 1e-8

LEVELS = ("mixture", "network")
"""Where the level of estimates comes from: the network has none of its own, and the
mixture's projection gives it; or the network is trained with its level."""

# Where an error is as good as none, against the energy of the target (-30 dB), and of
# the mixture if there is no target in it (-20 dB).
_SOFT_ACTIVE, _SOFT_ABSENT = 1e-3, 1e-2


def sample_mask(lens, length, like):
    """Marks the true samples of padded signals.

    Arguments
    ---------
    lens : torch.Tensor or None
        Relative lengths (batch,), in (0, 1]; None where nothing is padded.
    length : int
        Samples of the padded signals.
    like : torch.Tensor
        Its dtype and device are used.

    Returns
    -------
    torch.Tensor
        1 for true samples and 0 for padding, (batch, time), or (1, time).

    Example
    -------
    >>> sample_mask(torch.tensor([1.0, 0.5]), 4, torch.zeros(2, 4))
    tensor([[1., 1., 1., 1.],
            [1., 1., 0., 0.]])
    """
    if lens is None:
        return like.new_ones(1, length)
    samples = torch.round(lens.to(like.device) * length)
    positions = torch.arange(length, device=like.device)
    return (positions < samples[:, None]).to(like.dtype)


@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def si_snr(estimates, targets, lens=None):
    """Scale-invariant signal-to-noise ratio, in fp32, over the true samples.

    Both signals are made zero-mean. A silent target has no SI-SNR: the value
    stays finite and its gradient is zero-safe; `has_signal` tells.

    Arguments
    ---------
    estimates : torch.Tensor
        (..., batch, time).
    targets : torch.Tensor
        (..., batch, time), any shape that broadcasts with the estimates.
    lens : torch.Tensor or None
        Relative lengths (batch,).

    Returns
    -------
    torch.Tensor
        dB, higher is better, (..., batch).

    Example
    -------
    >>> target = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    >>> noise = torch.tensor([[1.0, 1.0, -1.0, -1.0]])  # orthogonal to it
    >>> si_snr(3 * (target + 0.1 * noise), target)
    tensor([20.0000])
    """
    estimates, targets = estimates.float(), targets.float()
    mask = sample_mask(lens, estimates.shape[-1], estimates)
    samples = mask.sum(-1, keepdim=True)

    def centred(signal):
        mean = (signal * mask).sum(-1, keepdim=True) / samples
        return (signal - mean) * mask

    estimates, targets = centred(estimates), centred(targets)
    projection = (estimates * targets).sum(-1, keepdim=True) * targets
    projection = projection / (targets.square().sum(-1, keepdim=True) + EPS)
    noise = estimates - projection
    ratio = (projection.square().sum(-1) + EPS) / (noise.square().sum(-1) + EPS)
    return 10 * torch.log10(ratio)


@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def level_snr(estimates, targets, mixtures, lens=None):
    """Signal-to-noise ratio of estimates with their level, in fp32, softly limited.

    The ratio of the target's energy to that of the error, which ends at 30 dB. Where
    the target is silent, because its talker is absent, it is the attenuation: the
    ratio of the mixture's energy to the estimate's, which ends at 20 dB. So both are
    decibels of one kind, whatever the level and length of the signals. Offsets count.

    Arguments
    ---------
    estimates : torch.Tensor
        (..., batch, time).
    targets : torch.Tensor
        (..., batch, time), any shape that broadcasts with the estimates.
    mixtures : torch.Tensor
        (..., batch, time), any shape that broadcasts with the estimates.
    lens : torch.Tensor or None
        Relative lengths (batch,).

    Returns
    -------
    torch.Tensor
        dB, higher is better, (..., batch).

    Example
    -------
    >>> mixture = torch.tensor([[2.0, 0.0, -2.0, 0.0]])
    >>> target = torch.tensor([[1.0, -1.0, -1.0, 1.0]])
    >>> level_snr(0.5 * target, target, mixture)
    tensor([6.0033])
    >>> level_snr(0.5 * mixture, 0 * target, mixture)
    tensor([5.8503])
    """
    mask = sample_mask(lens, estimates.shape[-1], estimates.float())

    def energy(signal):
        return (signal.float() * mask).square().sum(-1)

    active = has_signal(targets, lens)
    reference = torch.where(active, energy(targets), energy(mixtures))
    soft = torch.where(active, _SOFT_ACTIVE, _SOFT_ABSENT) * reference
    error = energy(targets.float() - estimates.float()) + soft
    return 10 * torch.log10((reference + EPS) / (error + EPS))


def has_signal(waveforms, lens=None):
    """Whether there is anything but silence in the true samples.

    Arguments
    ---------
    waveforms : torch.Tensor
        (..., batch, time).
    lens : torch.Tensor or None
        Relative lengths (batch,).

    Returns
    -------
    torch.Tensor
        bool, (..., batch).

    Example
    -------
    >>> has_signal(torch.tensor([[0.0, 0.0, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    tensor([ True, False])
    """
    return (waveforms * sample_mask(lens, waveforms.shape[-1], waveforms)).any(-1)


def check_level(level):
    """Returns a level that there is.

    Raises
    ------
    ValueError
        If it is none of `LEVELS`.

    Example
    -------
    >>> check_level("network")
    'network'
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r}: choose one of {', '.join(LEVELS)}")
    return level


def set_level(estimates, mixtures, lens=None, level="mixture"):
    """Gives estimates the level with which they leave the model.

    Arguments
    ---------
    estimates : torch.Tensor
        What the decoder gives, (batch, time).
    mixtures : torch.Tensor
        (batch, time).
    lens : torch.Tensor or None
        Relative lengths (batch,).
    level : str
        `mixture`: see `match_level`; `network`: they have it already.

    Returns
    -------
    torch.Tensor
        (batch, time), zero in the padding.

    Example
    -------
    >>> mixture = torch.tensor([[1.0, -1.0]])
    >>> (
    ...     set_level(7 * mixture, mixture),
    ...     set_level(7 * mixture, mixture, level="network"),
    ... )
    (tensor([[ 1., -1.]]), tensor([[ 7., -7.]]))
    """
    if check_level(level) == "mixture":
        return match_level(estimates, mixtures, lens)
    return estimates * sample_mask(lens, estimates.shape[-1], estimates)


def match_level(estimates, mixtures, lens=None):
    """Gives estimates the level they have in the mixture.

    A network trained with SI-SNR has no output scale. The factor
    <mixture, estimate> / <estimate, estimate>, one for a whole utterance, makes
    the estimate the mixture's projection on it.

    Arguments
    ---------
    estimates : torch.Tensor
        (batch, time).
    mixtures : torch.Tensor
        (batch, time).
    lens : torch.Tensor or None
        Relative lengths (batch,).

    Returns
    -------
    torch.Tensor
        (batch, time), zero where the estimate is silent and in the padding.

    Example
    -------
    >>> target = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    >>> interferer = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    >>> match_level(7 * target, target + interferer)
    tensor([[ 1., -1.,  1., -1.]])
    """
    estimates = estimates * sample_mask(lens, estimates.shape[-1], estimates)
    # Double precision: the sums run over minutes of samples.
    energy = estimates.double().square().sum(-1, keepdim=True)
    shared = (mixtures.double() * estimates.double()).sum(-1, keepdim=True)
    scale = torch.where(energy > 0, shared / energy.clamp(min=1e-30), 0.0)
    return estimates * scale.to(estimates.dtype)


def match_level_so_far(estimates, mixtures, sums):
    """`match_level` of streams: each sample gets the factor that all until it tell.

    Arguments
    ---------
    estimates : torch.Tensor
        The next samples, (batch, time).
    mixtures : torch.Tensor
        Theirs, (batch, time).
    sums : torch.Tensor
        <estimate, estimate> and <mixture, estimate> before them, in double precision,
        (2, batch, 1); zeros at the beginning.

    Returns
    -------
    estimates : torch.Tensor
        (batch, time).
    sums : torch.Tensor
        After them.

    Example
    -------
    >>> mixture, sums = torch.tensor([[1.0, -1.0]]), torch.zeros(2, 1, 1).double()
    >>> match_level_so_far(7 * mixture, mixture, sums)[0]
    tensor([[ 1., -1.]])
    """
    precise = estimates.double()
    products = torch.stack((precise * precise, precise * mixtures))
    totals = torch.cat((sums, products), dim=-1).cumsum(-1)
    energy, shared = totals[..., 1:]
    scale = torch.where(energy > 0, shared / energy.clamp(min=1e-30), 0.0)
    # A copy, as a view would keep all.
    return estimates * scale.to(estimates.dtype), totals[..., -1:].clone()
