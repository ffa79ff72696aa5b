"""What a model is tried on: the items of a manifest, and variations of them.

A variation is a function of a trial and a random generator.
"""

import math
from typing import NamedTuple

import numpy as np
import soundfile

from speechbrain_peer.data.manifests import find_data_root, read_manifest
from speechbrain_peer.data.peers import item_rng
from speechbrain_peer.inference.recordings import resample_blocks
from speechbrain_peer.utils.audio import read_audio
from speechbrain_peer.utils.files import DataError


class TooFewSpeakers(DataError):
    """A variation that these trials cannot give."""


class Trial(NamedTuple):
    """One mixture and whom to extract from it; signals are float32, (time,)."""

    id: str
    speakers: tuple
    """Of the target and of each interferer."""
    target: np.ndarray
    interferers: tuple
    """As they are in the mixture, each as long as the target."""
    noise: np.ndarray
    """What else is in the mixture, as long as the target."""
    enrollment: np.ndarray
    absent_enrollment: np.ndarray | None = None
    """Of somebody who is not in the mixture, where the manifest has one."""
    utterance: str = ""
    """Name of what the target says."""

    @property
    def mixture(self):
        """What the model hears."""
        return self.target + sum(self.interferers) + self.noise


def read_trials(manifest, data_root, sample_rate, most=None):
    """Reads the trials of a validation or test set.

    Arguments
    ---------
    manifest : str or Path
        The manifest that preparation has written.
    data_root : str or Path or None
        What `{data_root}` in the manifest stands for; None: see `find_data_root`.
    sample_rate : int
        Hz; files at other rates are resampled.
    most : int or None
        How many items to take of more, at equal distances.

    Returns
    -------
    list of Trial

    Raises
    ------
    DataError
        If it is not the manifest of such a set, or a row's signals cannot be a trial.
    """

    def read(path, length=-1):
        samples, rate = read_audio(path, frames=length), soundfile.info(path).samplerate
        blocks = resample_blocks([samples[:, None]], rate, sample_rate)
        return np.concatenate(list(blocks))[:, 0]

    trials = []
    data_root = data_root or find_data_root(manifest)
    rows = list(read_manifest(manifest, data_root).items())
    _check_rows(manifest, rows)
    for item_id, row in rows[:: math.ceil(len(rows) / (most or len(rows)))]:
        target = read(row["target"]["path"])
        noise = read(row["noise"]) if "noise" in row else np.zeros_like(target)
        absent = None
        if "absent_enrollment" in row:
            absent = read(row["absent_enrollment"], row["absent_enrollment_length"])
        trials.append(
            Trial(
                id=item_id,
                speakers=tuple(
                    source["speaker"] for source in (row["target"], *row["interferers"])
                ),
                target=target,
                interferers=tuple(
                    read(source["path"]) for source in row["interferers"]
                ),
                noise=noise,
                enrollment=read(row["enrollment"], row["enrollment_length"]),
                absent_enrollment=absent,
                utterance=row["target"]["utterance"],
            )
        )
        _check_trial(manifest, trials[-1])
    return trials


def _check_rows(manifest, rows):
    """Training manifests look alike, but enroll nobody: that is drawn every epoch."""
    needed = {"enrollment", "enrollment_length"}
    if not rows or any(not needed.issubset(row) for _, row in rows):
        raise DataError(
            f"{manifest}: has no enrollments; give the manifest of a dev or test set"
        )


def _check_trial(manifest, trial):
    """Here, where its name is known, and before hours of others are scored."""
    if not trial.interferers:
        raise DataError(f"{manifest}: {trial.id}: has no interferers")
    lengths = [len(x) for x in (trial.target, *trial.interferers, trial.noise)]
    if len(set(lengths)) > 1:
        raise DataError(
            f"{manifest}: {trial.id}: its target, interferers and noise have "
            f"{', '.join(map(str, lengths))} samples; make files of one length"
        )
    if not trial.enrollment.any():
        raise DataError(f"{manifest}: {trial.id}: its enrollment is silent")


def vary(trials, variation, seed=0):
    """Applies a variation to every trial.

    Arguments
    ---------
    trials : list of Trial
        What `read_trials` returns.
    variation : callable
        Makes a trial of (trial, rng).
    seed : int
        Seeds the draws, together with the trial's ID.

    Returns
    -------
    list of Trial
    """
    return [variation(trial, item_rng(seed, 0, trial.id)) for trial in trials]


def partial_overlap(share):
    """Lets the interferers begin later, so that a share of the target is alone.

    Arguments
    ---------
    share : float
        The share of the target that overlaps; 0: one talks after the other.

    Returns
    -------
    callable

    Example
    -------
    >>> ones = np.ones(4, dtype="float32")
    >>> trial = Trial("a", ("ann", "bob"), ones, (2 * ones,), 0 * ones, ones)
    >>> partial_overlap(0.5)(trial, None).mixture.tolist()
    [1.0, 1.0, 3.0, 3.0, 2.0, 2.0]
    """

    def variation(trial, rng):
        del rng
        shift = round((1 - share) * len(trial.target))
        return trial._replace(
            target=np.pad(trial.target, (0, shift)),
            interferers=tuple(np.pad(x, (shift, 0)) for x in trial.interferers),
            noise=np.pad(trial.noise, (0, shift), mode="wrap"),
        )

    return variation


def third_talker(trials):
    """Adds an interferer of another mixture, of a speaker who is not in this one.

    Arguments
    ---------
    trials : list of Trial
        Whose interferers may be drawn.

    Returns
    -------
    callable

    Raises
    ------
    TooFewSpeakers
        When it is applied, if all interferers are in the mixture.
    """

    def variation(trial, rng):
        others = [x for x in trials if x.speakers[1] not in trial.speakers]
        if not others:
            raise TooFewSpeakers(f"no interferer is absent from mixture {trial.id}")
        other = others[rng.integers(len(others))]
        speech = np.resize(other.interferers[0], len(trial.target))
        return trial._replace(
            speakers=(*trial.speakers, other.speakers[1]),
            interferers=(*trial.interferers, speech),
        )

    return variation


def pink_noise(snr_db):
    """Adds noise whose power falls by 3 dB an octave.

    Arguments
    ---------
    snr_db : float
        Level of the target above the noise.

    Returns
    -------
    callable
    """

    def variation(trial, rng):
        length = len(trial.target)
        spectrum = np.fft.rfft(rng.standard_normal(length))
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
        noise = np.fft.irfft(spectrum, length)
        power = np.square(trial.target).mean() / 10 ** (snr_db / 10)
        noise *= np.sqrt(power / np.square(noise).mean())
        return trial._replace(noise=trial.noise + noise.astype(np.float32))

    return variation


def absent_target(trials):
    """Enrolls somebody who is not in the mixture: whom the manifest says, or one drawn.

    Arguments
    ---------
    trials : list of Trial
        Whose enrollments may be drawn.

    Returns
    -------
    callable

    Raises
    ------
    TooFewSpeakers
        When it is applied, if it has to be drawn and all targets are in the mixture.
    """

    def variation(trial, rng):
        if trial.absent_enrollment is not None:
            return trial._replace(enrollment=trial.absent_enrollment)
        others = [x for x in trials if x.speakers[0] not in trial.speakers]
        if not others:
            raise TooFewSpeakers(f"no target speaker is absent from mixture {trial.id}")
        return trial._replace(enrollment=others[rng.integers(len(others))].enrollment)

    return variation
