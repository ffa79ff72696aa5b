"""Training items: pairs of peers cut at one place of the target.

Mixture, second mixture, target and a random enrollment.
"""

import torch

from speechbrain_peer.data.peers import SourcePool, item_rng
from speechbrain_peer.utils.audio import read_audio


class TrainingItems:
    """Draws and reads training items; every draw is a function of (seed, epoch, item).

    Arguments
    ---------
    rows : dict
        The manifest of the training subset.
    chunk_samples : int
        Longest mixture and enrollment; what is shorter stays shorter.
    sample_rate : int
        Hz.
    seed : int
        Seeds all draws of items.
    peer_interferer : str
        `any` or `same`, for drawn peers.
    listed_peers : dict or None
        For each item the interferers of its second peer; None draws them anew in
        every epoch.
    """

    def __init__(
        self, rows, chunk_samples, sample_rate, seed, peer_interferer, listed_peers=None
    ):
        self.rows = rows
        self.chunk_samples, self.sample_rate = chunk_samples, sample_rate
        self.seed = seed
        self.peer_interferer, self.listed_peers = peer_interferer, listed_peers
        self.pool = SourcePool(rows)
        speakers = sorted({target["speaker"] for target in self._targets()})
        self.speaker_indices = {name: index for index, name in enumerate(speakers)}
        # In shared memory, so that running loader workers learn the epoch too.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __deepcopy__(self, memo):
        """Filtered views of a dataset, which are copies, learn the epoch too."""
        return self

    def set_epoch(self, epoch):
        """Tells all workers which epoch's items to draw."""
        self.epoch.fill_(epoch)

    def read(self, item_id):
        """Draws and reads one item; what comes last is read only where it is used.

        Arguments
        ---------
        item_id : str
            ID in the manifest.

        Yields
        ------
        mixture, target, enrollment : torch.Tensor
            (time,); mixture and target are of equal length.
        speaker : int
            Index of the target speaker among the sorted names of all.
        coin : int
            0 or 1, the peer that lends with `exchange: anyway`.
        peer_mixture : torch.Tensor
            The second peer, as long as the first, (time,).
        """
        row = self.rows[item_id]
        rng = item_rng(self.seed, int(self.epoch), item_id)
        # Where the target talks, which in LibriMix's mode max is not everywhere.
        start = self._draw_start(row["target"], rng)
        yield self._read(row["mixture"], start, self.chunk_samples)
        target = self._read(row["target"]["path"], start, self.chunk_samples)
        yield target
        enrollment = self.pool.draw_enrollment(row, rng)
        yield self._read_speech(enrollment, self._draw_start(enrollment, rng))
        yield self.speaker_indices[row["target"]["speaker"]]
        yield int(rng.integers(2))
        yield self._mix_peer(item_id, target, start, rng)

    def _targets(self):
        """All sources that may be a target."""
        return [row["target"] for row in self.rows.values()]

    def _mix_peer(self, item_id, target, start, rng):
        mixture = target.clone()
        if self.listed_peers is None:
            row = self.rows[item_id]
            interferers = self.pool.draw_interferers(row, rng, self.peer_interferer)
            starts = [self._draw_start(interferer, rng) for interferer in interferers]
        else:
            # A listed mixture lines its sources up; where an interferer has ended by
            # then, its own end is taken.
            interferers = self.listed_peers[item_id]
            ends = [interferer["length"] - len(target) for interferer in interferers]
            starts = [min(start, max(0, end)) for end in ends]
        for interferer, first in zip(interferers, starts, strict=True):
            speech = self._read_speech(interferer, first)[: len(mixture)]
            mixture[: len(speech)] += speech
        return mixture

    def _draw_start(self, source, rng):
        return int(rng.integers(max(0, source["length"] - self.chunk_samples) + 1))

    def _read_speech(self, source, start):
        """A chunk of a source, without the padding after its speech."""
        length = min(self.chunk_samples, source["length"] - start)
        return self._read(source["path"], start, length)

    def _read(self, path, start, length):
        return torch.from_numpy(read_audio(path, start, length, self.sample_rate))
