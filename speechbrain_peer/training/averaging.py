"""Running averages of the weights: what a training validates, tests and exports.

At a constant learning rate the weights go on moving around a better place. Their
running average is nearer to it than any of them, and moves less from one epoch to the
next.
"""

import torch
from torch.optim.swa_utils import AveragedModel

AVERAGES = "averages"
"""The name of the averages among the recoverables of a training."""


class WeightAverages(AveragedModel):
    """PyTorch's averaged model, with an exponential average that starts short.

    After n steps it is over about the last n / 9 of them, until these are `steps`:
    random first weights are soon forgotten, and the averages of the first epochs lag
    little behind. Running statistics, such as a batch norm's, are averaged, too.

    A recoverable: a resumed training goes on with the exact averages.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        The stages as they are, not wrapped for several GPUs; they are copied.
    steps : int
        Over about how many steps; the weights of a step before count less and less, of
        `steps` steps before a third (1 / e) as much as the last.

    Example
    -------
    >>> modules = torch.nn.ModuleDict({"stage": torch.nn.Linear(1, 1, bias=False)})
    >>> averages = WeightAverages(modules, steps=2)
    >>> for weight in [1.0, 3.0, 5.0, 5.0]:
    ...     _ = modules["stage"].weight.data.fill_(weight)
    ...     averages.update_parameters(modules)
    >>> round(averages.module["stage"].weight.item(), 2)
    4.82
    """

    def __init__(self, modules, steps):
        super().__init__(modules, multi_avg_fn=self._average, use_buffers=True)
        self.steps = steps
        self.eval()

    @torch.no_grad()
    def _average(self, averages, weights, n_averaged):
        """Moves averages, of one type, a share of the way to the weights."""
        if averages[0].is_floating_point():
            share = max(1 / self.steps, 9 / (10 + int(n_averaged)))
            torch._foreach_lerp_(averages, weights, share)
        # Counters, masks and places are no numbers to average.
        else:
            torch._foreach_copy_(averages, weights)
