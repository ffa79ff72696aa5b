#!/usr/bin/env python3
"""Trains, tests and exports target speech extraction, with or without peer learning.

    python train.py hparams/td_speakerbeam_pl.yaml --data_folder /data/Libri2Mix
    python train.py hparams/td_speakerbeam_pl.yaml \\
        --librispeech_folder /data/LibriSpeech \\
        --librimix_metadata /data/LibriMix/metadata/Libri2Mix

To read the code, first scroll to the bottom to see the main code: data, training,
export, test. It knows no architecture: the stages come from the YAML, and
`speechbrain_peer.peer_learning.exchange` strings them together.
"""

import math
import sys

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, run_on_main

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.data.dataset import (
    drawn_set,
    evaluation_set,
    surrounded_set,
    training_set,
)
from speechbrain_peer.evaluation.calibration import calibrate
from speechbrain_peer.evaluation.reports import save_examples, write_scores
from speechbrain_peer.evaluation.scoring import ScoringPool
from speechbrain_peer.packaging.export import check_replaceable, export_model
from speechbrain_peer.peer_learning.exchange import embed, extract
from speechbrain_peer.training.brain import SafeBrain
from speechbrain_peer.training.curves import append_epoch
from speechbrain_peer.training.enrolling import enroll_with_estimates
from speechbrain_peer.training.fine_tuning import start_from, start_level
from speechbrain_peer.training.launch import init_ranks, locked, rank_and_ranks
from speechbrain_peer.training.options import load_hparams, read_options
from speechbrain_peer.training.speaker_voices import embed_speakers
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.messages import hide_warnings_of_others, one_line
from speechbrain_peer.utils.runtime import keep_freed_memory
from speechbrain_peer.utils.signal import sample_mask, set_level, si_snr


class PeerBrain(SafeBrain):
    """Trains on pairs of peers (or single mixtures) and tests on single mixtures."""

    def compute_forward(self, batch, stage):
        """Runs both peers through the shared weights, or one mixture at evaluation."""
        batch = batch.to(self.device)
        mixtures, lens = batch.mixture_sig
        enrollments = batch.enrollment_sig
        if stage != sb.Stage.TRAIN:
            embeddings = embed(self.evaluated, *enrollments)
            return extract(self.evaluated, mixtures, embeddings, lens)

        if self.hparams.enrolling.own_estimates:
            enrollments = enroll_with_estimates(
                self.evaluated,
                enrollments,
                batch.enrollment_mixture_sig,
                self.hparams.level,
            )
        embeddings = embed(self.modules, *enrollments)

        # One or more branches, peers with the same target, as one stacked batch.
        mixtures = mixtures.movedim(-1, 0).flatten(0, 1)
        targets = batch.target_sig.data.movedim(-1, 0)
        coin = torch.as_tensor(batch.coin).to(self.device)
        # W, e and p of each branch; the better branch lends its p to the others (what
        # is lent is `exchange`); r, mask and estimate of each branch.
        epoch = self.hparams.epoch_counter.current
        return self.hparams.peer_learning(
            self.modules, mixtures, embeddings, targets, lens, coin, epoch
        )

    def compute_objectives(self, predictions, batch, stage):
        """The negative measure; at evaluation of what is extracted."""
        targets, lens = batch.target_sig
        if stage == sb.Stage.TRAIN:
            targets = targets.movedim(-1, 0)
            loss, self.si_snrs = self.hparams.loss(
                predictions, targets, lens, batch.speaker
            )
            return loss
        if stage == sb.Stage.TEST:
            self.submit_scores(predictions, batch)
        mixtures = batch.mixture_sig.data
        losses = -self.hparams.measure(predictions, targets, mixtures, lens)
        si_snrs = si_snr(predictions, targets, lens)
        sums = {"loss": losses.double().sum(), "si_snr": si_snrs.double().sum()}
        self.totals.add(items=len(losses), **sums)
        return losses.mean()

    def fit_batch(self, batch):
        """Trains on a batch; what is not finite is left out of the curves."""
        loss = super().fit_batch(batch)
        if torch.isfinite(loss):
            self.hparams.curves.update(*self.si_snrs)
        return loss

    def on_stage_start(self, stage, epoch=None):
        """Starts the clock, the epoch's draws, and at the test the scoring."""
        super().on_stage_start(stage, epoch)
        if stage == sb.Stage.TRAIN:
            self.hparams.training_items.set_epoch(epoch)
        if stage == sb.Stage.TEST:
            self.examples = {}
            processes = self.hparams.n_scoring_processes if if_main_process() else 0
            self.scoring = ScoringPool(processes, self.hparams.sample_rate)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs; after validation also schedules, draws the curves and saves."""
        if stage == sb.Stage.TRAIN:
            totals = self.end_totals()
            self.train_stats = {
                "loss": totals["loss"] / (totals["batches"] or math.nan),
                "seconds": totals["seconds"],
                "skipped_steps": int(totals["skipped_steps"]),
            }
            # Here, as a resumed epoch goes on with its sums.
            self.curve_means = self.hparams.curves.means()
            self.hparams.curves.reset()
        elif stage == sb.Stage.VALID:
            # The mean over the items of all ranks, not of the batches' means.
            totals = self.end_totals()
            valid_loss = totals["loss"] / totals["items"]
            if not (math.isfinite(valid_loss) and self.weights_are_finite()):
                valid_loss = math.inf
            valid_si_snr = totals["si_snr"] / totals["items"]
            self.end_epoch(valid_loss, valid_si_snr, totals["seconds"], epoch)
        elif if_main_process():
            self.report_test()

    def end_epoch(self, valid_loss, valid_si_snr, seconds, epoch):
        """Ends an epoch: learning rate, early stopping, logs, curves, checkpoint."""
        self.hparams.epoch_counter.update_metric(valid_loss)
        lr, next_lr = self.hparams.lr_scheduler([self.optimizer], epoch, valid_loss)
        sb.nnet.schedulers.update_learning_rate(self.optimizer, next_lr)
        row = {
            "step": self.optimizer_step,
            "train_loss": self.train_stats["loss"],
            "valid_loss": valid_loss,
            "valid_si_snr": valid_si_snr,
            "lr": lr,
            "skipped_steps": self.train_stats["skipped_steps"],
            "seconds": self.train_stats["seconds"] + seconds,
            **self.curve_means,
        }
        for logger in self.hparams.loggers:
            logger.log_stats(
                {"epoch": epoch, "lr": lr},
                train_stats=self.train_stats,
                valid_stats={"loss": valid_loss, "si_snr": valid_si_snr},
            )
        run_on_main(append_epoch, args=(self.hparams.output_folder, epoch, row))
        # The best epoch is one of those with this key.
        meta = {"valid_loss": valid_loss} if math.isfinite(valid_loss) else {}
        self.checkpointer.save_and_keep_only(meta=meta, min_keys=["valid_loss"])

    def submit_scores(self, estimates, batch):
        """Hands the batch's utterances, at their true lengths, to the scoring."""
        if not if_main_process():
            return
        mixtures, lens = batch.mixture_sig
        estimates = set_level(estimates, mixtures, lens, self.hparams.level)
        estimates = estimates.cpu().numpy()
        lengths = sample_mask(lens, mixtures.shape[1], mixtures).sum(1).int().tolist()
        for index, (item_id, length) in enumerate(zip(batch.id, lengths, strict=True)):
            signals = {
                "mixture": mixtures[index, :length].cpu().numpy(),
                "target": batch.target_sig.data[index, :length].cpu().numpy(),
                "estimate": estimates[index, :length],
            }
            interferers = batch.interferer_sigs.data[index, :length].T.cpu().numpy()
            self.scoring.submit(item_id, interferers=list(interferers), **signals)
            if len(self.examples) < self.hparams.n_examples:
                self.examples[item_id] = signals

    def report_test(self):
        """Writes scores, means, table and examples, and shows the table."""
        with self.scoring:
            scores = self.scoring.results()
        folder, rate = self.hparams.output_folder, self.hparams.sample_rate
        run = {
            "seed": self.hparams.seed,
            "peers": self.hparams.peers,
            "exchange": self.hparams.exchange,
            "optimizer_steps": self.optimizer_step,
            "parameters": sum(p.numel() for p in self.modules.parameters()),
        }
        corpus = self.hparams.corpus
        if self.debug:
            run["debug"] = True
            corpus = f"A few batches (--debug) of {corpus}"
        print(write_scores(folder, scores, rate, corpus, run))
        save_examples(f"{folder}/examples", self.examples, rate)
        print(f"Figures: {folder}/curves.png, {folder}/examples/examples.png")


def make_datasets(hparams, prepared, batches_in_a_step):
    """Makes the training, validation and test set."""
    rate = hparams["sample_rate"]
    manifest = prepared.manifests[hparams["train_subset"]]
    cut = (hparams["chunk_seconds"], rate, hparams["seed"])
    names = "peers", "n_peers", "peer_interferer", "enrolling"
    settings = {key: hparams[key] for key in names}
    if hparams["mixtures"] == "drawn":
        if hparams["mixing"].absent and hparams["level"] == "mixture":
            raise DataError("absent talkers teach nothing so: give --level network")
        if hparams.get("condition") == "both" and not hparams["mixing"].noise_folder:
            raise DataError(
                "condition: both with drawn mixtures needs noise to draw: give "
                '--mixing "{noise_folder: FOLDER}"'
            )
        train, hparams["training_items"] = drawn_set(
            manifest, *cut, hparams["mixing"], **settings
        )
    else:
        if settings["peer_interferer"] == "confusable":
            settings["voices"] = run_on_main(
                embed_speakers, args=(manifest, prepared.data_root)
            )
        train, hparams["training_items"] = training_set(
            manifest,
            prepared.data_root,
            *cut,
            **settings,
            listed_peers=prepared.peers,
        )
    rank, ranks = rank_and_ranks()
    share = len(train) // ranks
    if share < hparams["batch_size"]:
        of_ranks = f", {share} for each of {ranks} processes" if ranks > 1 else ""
        raise DataError(
            f"{hparams['train_subset']} has {len(train)} training items{of_ranks}, "
            f"less than a batch: give --batch_size {share} or less"
        )
    batches = share // hparams["batch_size"]
    if batches < batches_in_a_step:
        raise DataError(
            f"an epoch has {batches} batches, less than a step: give "
            f"--grad_accumulation_factor {batches} or less"
        )
    # Only a model that learns to classify them has this key.
    n_speakers = hparams["training_items"].n_speakers
    if hparams.get("n_speakers", n_speakers) != n_speakers:
        raise DataError(
            f"{hparams['train_subset']} has {n_speakers} speakers: give "
            f"--n_speakers {n_speakers}"
        )
    dev, test = (prepared.manifests[subset] for subset in ("dev", "test"))
    if hparams["mixtures"] == "drawn":
        drawn = hparams["mixing"], hparams.get("data_seed", 0)
        valid = surrounded_set(dev, prepared.data_root, rate, *drawn)
    else:
        valid = evaluation_set(dev, prepared.data_root, rate)
    test = evaluation_set(test, prepared.data_root, rate)
    test.set_output_keys([*test.pipeline.output_mapping, "interferer_sigs"])
    # Sorted, batches hold little padding. Each rank validates its share.
    valid = valid.filtered_sorted(sort_key="duration")
    valid.data_ids = valid.data_ids[rank::ranks]
    return train, valid, test


def extract_example(hparams, test):
    """Extracts a test mixture with the exported model, as its users do."""
    # Trusted: its classes are those that this run has built.
    model = TargetSpeechExtraction.from_hparams(
        source=hparams["export_folder"], trust=True
    )
    item = test.data[test.data_ids[0]]
    output = f"{hparams['output_folder']}/extracted.wav"
    model.extract_file(item["mixture"], item["enrollment"], output_path=output)
    print(f"Exported model: {hparams['export_folder']}\nExtracted with it: {output}")


def main(arguments):
    """Checks the options, then runs alone in the output folder; returns the Brain."""
    keep_freed_memory()
    hide_warnings_of_others()
    options = read_options(arguments)
    folder = options.settings["output_folder"]
    with locked(folder):
        try:
            return run(options)
        # Such as a full disk, which may be told without a file's name.
        except OSError as error:
            raise DataError(f"{folder}: {one_line(error)}") from error


def run(options):
    """Prepares the data, trains, exports and tests; returns the Brain."""
    run_opts = options.run_opts
    init_ranks(run_opts)
    hparams = load_hparams(options)
    # Before anything is changed in a folder that holds a training already.
    check_replaceable(hparams["export_folder"])
    modules = hparams["peer_learning"].stages(hparams["modules"])
    hparams["loss"].check(hparams["peers"], hparams["exchange"])
    hparams["checkpointer"].add_recoverables(modules)
    hparams["checkpointer"].check_fit(modules)
    has_best = hparams["checkpointer"].find_checkpoint(min_key="valid_loss")
    if run_opts.test_only and not has_best:
        raise DataError(f"{hparams['output_folder']} holds no checkpoint: train first")
    if run_opts.debug and hparams["checkpointer"].find_checkpoint():
        raise DataError(
            f"{hparams['output_folder']} holds a training, whose results --debug would "
            "replace: give another --experiment"
        )
    sb.create_experiment_directory(
        hparams["output_folder"], options.hparams_file, options.overrides
    )
    # An interrupted fine-tuning goes on from its own checkpoint.
    starts = hparams["start_from"] and not hparams["checkpointer"].find_checkpoint()
    if starts:
        start_from(modules, hparams["start_from"], hparams["sample_rate"])
    prepared = run_on_main(hparams["prepare"])
    hparams["corpus"] = hparams["corpus"] or prepared.corpus
    train, valid, test = make_datasets(
        hparams, prepared, run_opts.grad_accumulation_factor
    )
    if starts and hparams["level"] == "network":
        start_level(modules, valid)
    if hparams["use_tensorboard"] and if_main_process():
        from speechbrain.utils.train_logger import TensorboardLogger

        folder = f"{hparams['output_folder']}/tensorboard"
        hparams["loggers"].append(TensorboardLogger(folder))

    brain = PeerBrain(
        modules,
        hparams["optimizer"],
        hparams,
        run_opts,
        hparams["checkpointer"],
    )
    brain.fit(
        hparams["epoch_counter"],
        train,
        valid,
        train_loader_kwargs=hparams["train_dataloader_opts"],
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )

    # The best weights are exported before the test, which can take long.
    best = hparams["checkpointer"].recover_if_possible(min_key="valid_loss")
    if best is None:
        raise DataError(
            f"{hparams['output_folder']}: no epoch ended with a finite validation loss"
        )
    run_file = f"{hparams['output_folder']}/hyperparams.yaml"
    export_model(run_file, brain.evaluated, hparams["export_folder"])
    calibrate(
        hparams["export_folder"],
        prepared.manifests["dev"],
        prepared.data_root,
        brain.device,
        trust=True,
    )
    brain.evaluate(
        test, min_key="valid_loss", test_loader_kwargs=hparams["test_dataloader_opts"]
    )
    if if_main_process():
        extract_example(hparams, test)
    return brain


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DataError as error:
        sys.exit(f"Error: {one_line(error)}")
