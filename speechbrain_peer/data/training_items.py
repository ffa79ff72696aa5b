"""Training items of listed mixtures: peers that are cut at one place of the target.

Mixtures, target and a random enrollment.
"""

import torch

from speechbrain_peer.data.enrolling import Enrolling
from speechbrain_peer.data.peers import SourcePool, gain_of_peers, item_rng
from speechbrain_peer.utils.audio import read_audio


class EpochItems:
    """What all training items share: every draw is a function of (seed, epoch, item).

    Arguments
    ---------
    seed : int
        Seeds all draws of items.
    enrolling : Enrolling or None
        How items are enrolled.
    """

    def __init__(self, seed, enrolling=None):
        self.seed, self.enrolling = seed, enrolling or Enrolling()
        # In shared memory, so that running loader workers learn the epoch too.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __deepcopy__(self, memo):
        """Filtered views of a dataset, which are copies, learn the epoch too."""
        return self

    def set_epoch(self, epoch):
        """Tells all workers which epoch's items to draw."""
        self.epoch.fill_(epoch)

    def rng(self, name):
        """The generator of an item in this epoch."""
        return item_rng(self.seed, int(self.epoch), name)

    def rng_of_estimate(self, name):
        """The generator of the mixture that an item's enrollment is extracted from.

        None where the enrollment is a recording.
        """
        rng = self.rng(f"{name} own estimate")
        return rng if rng.random() < self.enrolling.own_estimates else None


class TrainingItems(EpochItems):
    """Draws and reads training items; every draw is a function of (seed, epoch, item).

    Arguments
    ---------
    rows : dict
        The manifest of the training subset.
    chunk_samples : int
        Longest mixture, and enrollment unless its length is drawn; what is shorter
        stays shorter.
    sample_rate : int
        Hz.
    seed : int
        Seeds all draws of items.
    n_peers : int
        Branches of an item: the listed mixture, and others with its target.
    peer_interferer : str
        `any`, `same`, `quieter` or `confusable`; see `SourcePool.draw_peers`.
    listed_peers : dict or None
        For each item the interferers of each further peer; None draws them anew in
        every epoch.
    enrolling : Enrolling or None
        How items are enrolled.
    voices : SpeakerVoices or None
        Of all speakers, for `peer_interferer: confusable`.
    """

    def __init__(
        self,
        rows,
        chunk_samples,
        sample_rate,
        seed,
        n_peers=1,
        peer_interferer="any",
        listed_peers=None,
        enrolling=None,
        voices=None,
    ):
        super().__init__(seed, enrolling)
        self.rows = rows
        self.chunk_samples, self.sample_rate = chunk_samples, sample_rate
        self.n_peers = n_peers
        self.peer_interferer, self.listed_peers = peer_interferer, listed_peers
        self.gain = gain_of_peers(peer_interferer)
        self.pool = SourcePool(rows, voices)
        self.mixtures = {
            source["path"]: row["mixture"]
            for row in rows.values()
            for source in (row["target"], *row["interferers"])
        }
        speakers = sorted({row["target"]["speaker"] for row in rows.values()})
        self.speaker_indices = {name: index for index, name in enumerate(speakers)}
        self.n_speakers = len(speakers)

    def read(self, item_id):
        """Draws and reads one item.

        Arguments
        ---------
        item_id : str
            ID in the manifest.

        Returns
        -------
        mixtures, targets : torch.Tensor
            (time, peers).
        enrollment : torch.Tensor
            (time,).
        speaker : int
            Index of the target speaker among the sorted names of all.
        coin : int
            Index of a random peer; see `exchange: anyway` and `coin`.
        enrollment_mixture : torch.Tensor
            (time,). What is to be extracted from it, with `enrollment`, enrolls the
            item; where it is silent, `enrollment` does itself.
        """
        row = self.rows[item_id]
        rng = self.rng(item_id)
        # Where the target talks, which in LibriMix's mode max is not everywhere.
        start = self._draw_start(row["target"], self.chunk_samples, rng)
        mixture = self._read(row["mixture"], start, self.chunk_samples)
        target = self._read(row["target"]["path"], start, self.chunk_samples)
        shared = target
        if "noise" in row:
            shared = target + self._read(row["noise"], start, self.chunk_samples)
        enrolled = self._draw_enrollment(row["target"], rng)
        coin = int(rng.integers(self.n_peers))
        mixtures = [mixture]
        for interferers in self._draw_peers(item_id, rng):
            mixtures.append(self._mix(shared, interferers, start, rng))
        targets = target[:, None].expand(-1, self.n_peers)
        speaker = self.speaker_indices[row["target"]["speaker"]]
        enrollment, enrollment_mixture = self._enroll(item_id, *enrolled)
        return (
            *(torch.stack(mixtures, dim=-1), targets, enrollment, speaker, coin),
            enrollment_mixture,
        )

    def _draw_enrollment(self, target, rng):
        """Another utterance of the target's speaker, and where it is cut."""
        source = self.pool.draw_enrollment({"target": target}, rng)

        def cut(samples, rng):
            start = self._draw_start(source, samples, rng)
            return start, min(samples, source["length"] - start)

        piece = self.enrolling.cut(cut, self.chunk_samples, self.sample_rate, rng)
        return source, *piece

    def _enroll(self, item_id, source, start, length):
        """The enrollment, and the mixture that it is extracted from, if any."""
        rng = self.rng_of_estimate(item_id)
        if rng is None:
            return self._read(source["path"], start, length), torch.zeros(1)
        # That which lists the source: both have one time axis.
        mixture = self._read(self.mixtures[source["path"]], start, length)
        other, *piece = self._draw_enrollment(source, rng)
        return self._read(other["path"], *piece), mixture

    def _draw_peers(self, item_id, rng):
        """The interferers of each further peer."""
        if self.listed_peers is not None:
            yield from self.listed_peers[item_id]
            return
        yield from self.pool.draw_peers(
            self.rows[item_id], rng, self.n_peers, self.peer_interferer
        )

    def _mix(self, shared, interferers, start, rng):
        """A peer, of what all peers share (target and noise) and its interferers."""
        mixture = shared.clone()
        if self.listed_peers is None:
            starts = [
                self._draw_start(interferer, self.chunk_samples, rng)
                for interferer in interferers
            ]
        else:
            # A listed mixture lines its sources up; where an interferer has ended by
            # then, its own end is taken.
            ends = [interferer["length"] - len(shared) for interferer in interferers]
            starts = [min(start, max(0, end)) for end in ends]
        for interferer, first in zip(interferers, starts, strict=True):
            speech = self._read_speech(interferer, first)[: len(mixture)]
            mixture[: len(speech)] += self.gain * speech
        return mixture

    def _draw_start(self, source, samples, rng):
        return int(rng.integers(max(0, source["length"] - samples) + 1))

    def _read_speech(self, source, start):
        """A chunk of a source, without the padding after its speech."""
        length = min(self.chunk_samples, source["length"] - start)
        return self._read(source["path"], start, length)

    def _read(self, path, start, length):
        return torch.from_numpy(read_audio(path, start, length, self.sample_rate))
