"""Training mixtures drawn anew in every epoch, from all sources of a subset."""

import math

import torch
from scipy.signal import resample_poly

from speechbrain_peer.data.peers import item_rng
from speechbrain_peer.data.training_items import TrainingItems
from speechbrain_peer.utils.audio import read_audio


def change_speed(samples, percent):
    """Plays faster or slower, which also moves the pitch: another voice.

    Arguments
    ---------
    samples : np.ndarray
        (time,).
    percent : int
        100 for the speed as it is, 110 for a tenth faster.

    Returns
    -------
    np.ndarray
        About time * 100 / percent samples of the same type.

    Example
    -------
    >>> import numpy as np
    >>> change_speed(np.zeros(8800, dtype="float32"), 110).shape
    (8000,)
    """
    if percent == 100:
        return samples
    return resample_poly(samples, 100, percent).astype(samples.dtype)


class DrawnItems(TrainingItems):
    """Items of mixtures that are drawn anew in every epoch (dynamic mixing).

    A manifest's rows only say how many items an epoch has, and of how many
    interferers. Every source may be a target, if its speaker has another utterance to
    enroll with, and keeps the level of its own mixture. Sources are changed in speed,
    target and enrollment alike, so that one person serves as several voices.

    Arguments
    ---------
    rows, chunk_samples, sample_rate, seed, peer_interferer
        As `TrainingItems`.
    speeds : list of int
        In percent; each is equally likely.
    """

    def __init__(
        self, rows, chunk_samples, sample_rate, seed, peer_interferer, speeds=(100,)
    ):
        super().__init__(rows, chunk_samples, sample_rate, seed, peer_interferer)
        self.speeds = speeds

    def read(self, item_id):
        """Draws and reads one item, as `TrainingItems.read` does."""
        rng = item_rng(self.seed, int(self.epoch), item_id)
        row = self.pool.draw_row(len(self.rows[item_id]["interferers"]), rng)
        speed = rng.choice(self.speeds)
        target = self._read_chunk(row["target"], speed, rng)
        yield self._mix(target, row["interferers"], rng)
        yield target
        enrollment = self.pool.draw_enrollment(row, rng)
        yield self._read_chunk(enrollment, speed, rng)
        yield self.speaker_indices[row["target"]["speaker"]]
        yield int(rng.integers(2))
        others = self.pool.draw_interferers(row, rng, self.peer_interferer)
        yield self._mix(target, others, rng)

    def _targets(self):
        return self.pool.targets

    def _mix(self, target, interferers, rng):
        mixture = target.clone()
        for interferer in interferers:
            speech = self._read_chunk(interferer, rng.choice(self.speeds), rng)
            speech = speech[: len(mixture)]
            mixture[: len(speech)] += speech
        return mixture

    def _read_chunk(self, source, speed, rng):
        """A chunk from a random place, after the change of speed."""
        frames = math.ceil(self.chunk_samples * speed / 100)
        start = int(rng.integers(max(0, source["length"] - frames) + 1))
        # What follows the speech is padding.
        frames = min(frames, source["length"] - start)
        samples = read_audio(source["path"], start, frames, self.sample_rate)
        return torch.from_numpy(change_speed(samples, speed)[: self.chunk_samples])
