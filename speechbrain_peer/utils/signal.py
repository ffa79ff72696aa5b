"""SI-SNR and the level of estimates: the two computations on waveforms that
training, testing and inference share."""

import torch

# Of an enrollment, in seconds: below there is no voice to recognize.
SHORTEST_ENROLLMENT = 0.1
EPS = 1e-8


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
    stays finite and its gradient is zero-safe.

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
