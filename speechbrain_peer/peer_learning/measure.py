"""How good an estimate is: what is trained for, who is better, what is validated."""

import torch

from speechbrain_peer.utils.signal import check_level, has_signal, level_snr, si_snr


class Measure:
    """Quality of estimates in dB, higher is better; the loss is its negative.

    Arguments
    ---------
    level : str
        `mixture`: SI-SNR, of networks without a level of their own. An absent talker
        has none; such an item counts as 0 dB, whatever is extracted, and teaches
        nothing. `network`: see `utils.signal.level_snr`; of an absent talker the
        better estimate is the quieter one, against its own mixture.

    Raises
    ------
    ValueError
        If there is no such level.

    Example
    -------
    >>> mixtures, targets = torch.randn(2, 4, 8000), torch.randn(4, 8000)
    >>> Measure("network")(mixtures, targets, mixtures).shape
    torch.Size([2, 4])
    """

    def __init__(self, level="mixture"):
        self.level = check_level(level)

    def __call__(self, estimates, targets, mixtures, lens=None):
        """Measures.

        Arguments
        ---------
        estimates : torch.Tensor
            (..., batch, time).
        targets : torch.Tensor
            Zero where the talker is absent; any shape that broadcasts with the
            estimates, (..., batch, time).
        mixtures : torch.Tensor
            As the targets.
        lens : torch.Tensor or None
            Relative lengths (batch,).

        Returns
        -------
        torch.Tensor
            (..., batch).
        """
        if self.level == "network":
            return level_snr(estimates, targets, mixtures, lens)
        # Its gradient towards a target of zeros has no bound.
        return torch.where(
            has_signal(targets, lens), si_snr(estimates, targets, lens), 0
        )
