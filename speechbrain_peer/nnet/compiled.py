"""Plain PyTorch functions that are compiled on GPUs.

There `torch.compile` fuses what the C kernels fuse on CPUs, the passes over memory
between the products.
"""

import functools

import torch
from speechbrain.utils.logger import get_logger

from speechbrain_peer.nnet.kernels import are_turned_off

logger = get_logger(__name__)


class CompiledOnGpus:
    """A function of tensors that is compiled at its first call on a GPU.

    One compilation serves all sizes of its inputs and all whole numbers. Parameters of
    other shapes, another precision, training or not, and a batch of a single item are
    further cases, of which PyTorch keeps eight; more run as they are, with its warning.

    Where compiling fails, as without Triton, the function runs as it is from then on,
    after one line in the log; with `TSE_NO_KERNELS=1` in the environment, always.
    Within what is compiled or exported as a whole it is a part like others.

    Arguments
    ---------
    function : callable
        Its first argument, a tensor, tells the device.

    Example
    -------
    >>> doubled = CompiledOnGpus(lambda x: 2 * x)
    >>> doubled(torch.ones(3))
    tensor([2., 2., 2.])
    """

    def __init__(self, function):
        self.function, self.failed = function, False

    def __call__(self, x, *arguments):
        """Calls the function."""
        plain = self.failed or torch.compiler.is_compiling() or are_turned_off()
        if plain or not is_on_gpu(x):
            return self.function(x, *arguments)
        try:
            return self._compiled(x, *arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            # What is wrong with the arguments is raised here.
            outputs = self.function(x, *arguments)
            reason = str(getattr(error, "inner_exception", error)).strip()
            reason = reason.partition("\n")[0]
            logger.warning_once(f"Running without compiled functions ({reason})")
            self.failed = True
            return outputs

    @functools.cached_property
    def _compiled(self):
        # Not before it is used, as the compiler takes a second to import.
        return torch.compile(self.function, dynamic=True)


def is_on_gpu(x):
    """Whether it is on a GPU of a kind that `torch.compile` has Triton for."""
    return x.device.type == "cuda"
