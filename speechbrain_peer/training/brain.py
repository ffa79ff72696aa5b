"""A Brain that skips what is not finite, and counts over all ranks and resumes."""

import math
import time

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_peer.training.averaging import AVERAGES, WeightAverages
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.totals import EpochTotals

logger = get_logger(__name__)


class SafeBrain(sb.Brain):
    """SpeechBrain's Brain, which skips steps that are not finite and keeps totals.

    A step whose loss or gradients are not finite changes nothing, on any rank: no
    weight, no state of the optimizer and no buffer, such as the running statistics of
    a batch norm. After more than `nonfinite_patience` of them in an epoch the training
    ends.

    With `averaged_steps`, running averages of the weights are kept beside them: those
    are what validation and test compute with, and what is exported.

    A training that was resumed after its last step (`optimizer_step_limit`) and
    validation has nothing left to do, where the base class begins one more epoch.

    Arguments
    ---------
    *args, **kwargs
        As for `speechbrain.Brain`; `hparams` has an `epoch_counter` with a stopper, and
        `averaged_steps`, None where nothing is averaged.

    Raises
    ------
    DataError
        If the training has averaged its weights so far, and would no more.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.skip_nonfinite_grads = True
        # Of one stage: seconds, and in training loss, batches and skipped_steps.
        self.totals = EpochTotals()
        self.checkpointer.add_recoverable("totals", self.totals)
        self.averages = None
        checkpoint = self.checkpointer.find_checkpoint()
        if self.hparams.averaged_steps:
            steps = self.hparams.averaged_steps
            self.averages = WeightAverages(self.modules, steps)
            self.checkpointer.add_recoverable(AVERAGES, self.averages)
        elif checkpoint and AVERAGES in checkpoint.paramfiles:
            raise DataError(
                f"{checkpoint.path}: holds averages of the weights, which would be "
                "lost; give the averaged_steps of that training"
            )

    def on_fit_start(self):
        """Initializes and resumes; a finished training is not gone on with."""
        super().on_fit_start()
        # A checkpoint from within an epoch still wants its validation.
        if self._optimizer_step_limit_exceeded and not self.step:
            self.hparams.epoch_counter.should_stop = True

    def on_stage_start(self, stage, epoch=None):
        """Starts the clock."""
        self.started = time.monotonic()
        self._keep_buffers()

    def end_totals(self):
        """Ends the totals of a stage; all ranks must call this.

        Returns
        -------
        collections.Counter
            Sums over all ranks: of a training `loss`, `batches` and `skipped_steps`,
            and `seconds`, without those between a kill and the resume.
        """
        self._stop_clock()
        totals = self.totals.of_all()
        self.totals.reset()
        return totals

    @property
    def evaluated(self):
        """The modules that are evaluated and exported, a `torch.nn.ModuleDict`."""
        return self.averages.module if self.averages else self.modules

    def weights_are_finite(self):
        """Tells whether all weights and buffers are finite, and their averages."""
        return all(
            bool(torch.isfinite(weight).all())
            for modules in {self.modules, self.evaluated}
            for weight in modules.state_dict().values()
        )

    def fit_batch(self, batch):
        """Trains on a batch and counts its loss.

        Arguments
        ---------
        batch : PaddedBatch
            With `id`, to name the items whose loss is not finite.

        Returns
        -------
        torch.Tensor
            The loss, detached, on the CPU.
        """
        loss = super().fit_batch(batch)
        if torch.isfinite(loss):
            self.totals.add(loss=float(loss), batches=1)
        else:
            logger.warning(
                f"The loss is not finite with one of: {', '.join(batch.id)}",
                main_process_only=False,
            )
        return loss

    def check_loss_isfinite(self, loss):
        """Lets all gradients tell of a loss that is not finite.

        Arguments
        ---------
        loss : torch.Tensor
            Before `backward`.
        """
        # Gradients are averaged over the ranks, so that all of them skip the step.
        if not torch.isfinite(loss):
            loss.register_hook(lambda gradient: gradient * math.nan)

    def check_gradients(self):
        """Empties all gradients if one is not finite, so that no optimizer moves."""
        gradients = [p.grad for p in self.modules.parameters() if p.grad is not None]
        # If their norm is finite, so are they all; that it tells ten times as fast.
        self.gradients_are_finite = bool(
            torch.isfinite(torch.nn.utils.get_total_norm(gradients))
            or all(torch.isfinite(gradient).all() for gradient in gradients)
        )
        if not self.gradients_are_finite:
            self.zero_grad(set_to_none=True)

    def optimizers_step(self):
        """Takes a step, or skips and counts it.

        Raises
        ------
        DataError
            After more skipped steps in this epoch than `nonfinite_patience`.
        """
        # In fp16 the scaler checks the gradients, and skipping it lowers its scale.
        scale = self.scaler.get_scale()
        self.gradients_are_finite = True
        super().optimizers_step()
        if self.gradients_are_finite and self.scaler.get_scale() >= scale:
            self._keep_buffers()
            if self.averages:
                self.averages.update_parameters(self.modules)
            return
        for buffer, kept in zip(self.modules.buffers(), self.buffers, strict=True):
            buffer.copy_(kept)
        logger.warning(
            f"Step {self.optimizer_step} is skipped: loss or gradients are not finite"
        )
        # All ranks skip it: one of them counts.
        if if_main_process():
            self.totals.add(skipped_steps=1)
            self._check_patience()

    def _check_patience(self):
        if self.totals["skipped_steps"] > self.nonfinite_patience:
            raise DataError(
                f"more than {self.nonfinite_patience} steps of epoch "
                f"{self.hparams.epoch_counter.current} had a loss or gradients that "
                "are not finite: lower --lr, or mend the audio that the log names; the "
                "same command then goes on from the last checkpoint"
            )

    def _keep_buffers(self):
        self.buffers = [buffer.clone() for buffer in self.modules.buffers()]

    def _stop_clock(self):
        """Adds the seconds since it was started, and starts it anew."""
        now = time.monotonic()
        if if_main_process():
            self.totals.add(seconds=now - self.started)
        self.started = now

    def _should_save_intra_epoch_ckpt(self, *since):
        # Gradients that wait for others of their step are not saved.
        between = self.step % self.grad_accumulation_factor
        return not between and super()._should_save_intra_epoch_ckpt(*since)

    def _save_intra_epoch_ckpt(self):
        self._stop_clock()
        # Only the main process saves.
        for recoverable in self.checkpointer.recoverables.values():
            if isinstance(recoverable, EpochTotals):
                recoverable.gather()
        super()._save_intra_epoch_ckpt()
