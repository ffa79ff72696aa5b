"""Early stopping and learning rate for a loss that is below zero.

Both are SpeechBrain's, with its rule of what an improvement is made strict, and
safe to resume: a loss is better when it is lower than the best so far; equal is not
better, and neither is NaN.
"""

from speechbrain.nnet import schedulers
from speechbrain.utils import epoch_loop
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


@register_checkpoint_hooks
class EpochCounterWithStopper(epoch_loop.EpochCounterWithStopper):
    """Count epochs, and stop after some without a better validation metric.

    The base class compares with ``(1 - 1e-6) * best``, which a negative loss equal to
    the best (or a little worse) passes: training never stops on a flat one.

    Arguments
    ---------
    limit : int
        Largest number of epochs.
    limit_to_stop : int
        Stop after this many epochs without a better metric.
    limit_warmup : int
        Number of first epochs that are not looked at.
    direction : str
        "min" (a loss) or "max".

    Example
    -------
    >>> counter = EpochCounterWithStopper(
    ...     limit=100, limit_to_stop=3, limit_warmup=0, direction="min"
    ... )
    >>> for epoch in counter:
    ...     counter.update_metric(-7.0)
    >>> epoch
    4
    """

    # The base class marks these as its hooks but registers only those of its own
    # base, EpochCounter, which keep nothing but the number of the epoch.
    _save = epoch_loop.EpochCounterWithStopper._save
    _recover = epoch_loop.EpochCounterWithStopper._recover

    def update_metric(self, current_metric):
        """Take note of the metric of one validation.

        Arguments
        ---------
        current_metric : float
            Called once an epoch, before the checkpoint is saved.
        """
        if self.current <= self.limit_warmup:
            return
        metric = float(current_metric)
        if self.sign * metric < self.sign * self.best_score:
            self.best_limit = self.current
            self.best_score = metric
        epochs_without_improvement = self.current - self.best_limit
        self.should_stop = epochs_without_improvement >= self.limit_to_stop
        if self.should_stop:
            logger.info(
                f"Stopping: the best epoch was {self.best_limit}, "
                f"{epochs_without_improvement} epochs ago."
            )


class ReduceLROnPlateau(schedulers.ReduceLROnPlateau):
    """Reduce the learning rate after some epochs without a better loss.

    The base class takes an equal loss for a better one, reduces one epoch later than
    its ``patience`` says, and by default not before epoch 66.

    Arguments
    ---------
    lr_min : float
        Lowest learning rate.
    factor : float
        The learning rate is multiplied by this.
    patience : int
        Reduce after this many epochs without a better loss, and again after as many.

    Example
    -------
    >>> import torch
    >>> optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> scheduler = ReduceLROnPlateau(patience=2)
    >>> for epoch, loss in enumerate([-7.0, -7.0, -6.0], start=1):
    ...     old_lr, new_lr = scheduler([optimizer], epoch, loss)
    >>> old_lr, new_lr
    (1.0, 0.5)
    """

    def __init__(self, lr_min=1e-8, factor=0.5, patience=5):
        super().__init__(lr_min, factor, patience)
        self.anchor = float("inf")

    def __call__(self, optim_list, current_epoch, current_loss):
        """Take note of the loss of one validation.

        Arguments
        ---------
        optim_list : list of torch.optim.Optimizer
            The first one tells the current learning rate.
        current_epoch : int
            Not used; SpeechBrain's schedulers are called with it.
        current_loss : float
            Called once an epoch, before the checkpoint is saved.

        Returns
        -------
        current_lr : float
            The learning rate until now.
        next_lr : float
            The one to set, with ``sb.nnet.schedulers.update_learning_rate``.
        """
        del current_epoch
        loss = float(current_loss)
        self.losses.append(loss)
        if loss < self.anchor:
            self.anchor = loss
            self.patience_counter = 0
        else:
            self.patience_counter += 1
        current_lr = next_lr = optim_list[0].param_groups[0]["lr"]
        if self.patience_counter >= self.patience:
            next_lr = max(current_lr * self.factor, self.lr_min)
            self.patience_counter = 0
        return current_lr, next_lr


@register_checkpoint_hooks
class LinearDecay:
    """Hold the learning rate, and lower it to (almost) zero over the last epochs.

    The last part of a training of known length, at small steps, is worth more than as
    many epochs at full rate. It has no state: a resumed training goes on with it. Yet
    it may be among what is checkpointed, in place of a schedule that has one.

    Arguments
    ---------
    lr : float
        Until the decay begins.
    start : int
        The last epoch at this learning rate.
    end : int
        The last epoch of the training; the one after it would be trained at zero.

    Raises
    ------
    ValueError
        If the decay would begin after the end.

    Example
    -------
    >>> import torch
    >>> optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> decay = LinearDecay(lr=1.0, start=2, end=5)
    >>> [decay([optimizer], epoch, None)[1] for epoch in (1, 2, 3, 4)]
    [1.0, 0.75, 0.5, 0.25]
    """

    def __init__(self, lr, start, end):
        if start > end:
            raise ValueError(f"no decay from epoch {start} to the last, {end}")
        self.lr, self.start, self.end = lr, start, end

    def __call__(self, optim_list, current_epoch, current_loss):
        """Returns the learning rate of this epoch, and that of the next.

        Arguments
        ---------
        optim_list : list of torch.optim.Optimizer
            The first one tells the current learning rate.
        current_epoch : int
            From 1 on.
        current_loss : float
            Not used.

        Returns
        -------
        current_lr : float
            The learning rate until now.
        next_lr : float
            The one to set, with ``sb.nnet.schedulers.update_learning_rate``.
        """
        del current_loss
        left = (self.end - current_epoch) / (self.end + 1 - self.start)
        return optim_list[0].param_groups[0]["lr"], self.lr * min(1.0, left)

    @mark_as_saver
    def save(self, path):
        """Writes what it is, which nothing reads.

        Arguments
        ---------
        path : str or Path
            The file.
        """
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"{type(self).__name__}: {self.lr}, {self.start}, {self.end}\n")

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Does nothing, as there is no state.

        Arguments
        ---------
        path : str or Path
            The file.
        end_of_epoch : bool
            Not used.
        """
