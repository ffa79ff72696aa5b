"""From manifests to the items that the model sees.

A training item is a pair of peers cut at one place of the target: mixture, second
mixture, target and a random enrollment. Items of validation and test are whole
utterances with the enrollment that preparation fixed.
"""

import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_peer.data.audio import read_audio
from speechbrain_peer.data.manifests import read_manifest
from speechbrain_peer.data.peers import SourcePool, item_rng


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
        Of the draws.
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
        speakers = sorted({row["target"]["speaker"] for row in rows.values()})
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
        start = self._draw_start(row, rng)
        yield self._read(row["mixture"], start)
        target = self._read(row["target"]["path"], start)
        yield target
        enrollment = self.pool.draw_enrollment(row, rng)
        yield self._read(enrollment["path"], self._draw_start(enrollment, rng))
        yield self.speaker_indices[row["target"]["speaker"]]
        yield int(rng.integers(2))
        yield self._mix_peer(item_id, target, start, rng)

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
            speech = self._read(interferer["path"], first)[: len(mixture)]
            mixture[: len(speech)] += speech
        return mixture

    def _draw_start(self, source, rng):
        return int(rng.integers(max(0, source["length"] - self.chunk_samples) + 1))

    def _read(self, path, start):
        samples = read_audio(path, start, self.chunk_samples, self.sample_rate)
        return torch.from_numpy(samples)


def training_set(
    manifest,
    data_root,
    chunk_seconds,
    sample_rate,
    seed,
    peers="drawn",
    peer_interferer="any",
    listed_peers=None,
):
    """Makes the training set.

    Arguments
    ---------
    manifest : str or Path
        From preparation.
    data_root : str
        What `{data_root}` in the manifest stands for.
    chunk_seconds : float
        Longest mixture and enrollment.
    sample_rate : int
        Hz.
    seed : int
        Of the draws.
    peers : str
        `off`: single mixtures; `listed`: the pairs of `listed_peers`; `drawn`: pairs
        drawn anew in every epoch.
    peer_interferer : str
        `any` or `same`, for drawn peers.
    listed_peers : str, Path or None
        The file of listed peers.

    Returns
    -------
    dataset : DynamicItemDataset
        Items with `id`, `mixture_sig`, `target_sig`, `enrollment_sig`, `speaker`, and
        with peers `coin` and `peer_sig`.
    items : TrainingItems
        Its `set_epoch` starts an epoch.
    """
    rows = read_manifest(manifest, data_root)
    listed = read_manifest(listed_peers, data_root) if peers == "listed" else None
    chunk_samples = round(chunk_seconds * sample_rate)
    items = TrainingItems(
        rows, chunk_samples, sample_rate, seed, peer_interferer, listed
    )
    of_single = ["mixture_sig", "target_sig", "enrollment_sig", "speaker"]
    of_pair = [*of_single, "coin", "peer_sig"]
    dataset = DynamicItemDataset(rows)
    dataset.add_dynamic_item(items.read, takes="id", provides=of_pair)
    dataset.set_output_keys(["id", *(of_single if peers == "off" else of_pair)])
    return dataset, items


def evaluation_set(manifest, data_root, sample_rate):
    """Makes a validation or test set of whole utterances.

    Arguments
    ---------
    manifest : str or Path
        From preparation.
    data_root : str
        What `{data_root}` in the manifest stands for.
    sample_rate : int
        Hz.

    Returns
    -------
    DynamicItemDataset
        Items with `id`, `mixture_sig`, `target_sig`, `enrollment_sig` (time,); on
        request `interferer_sigs` (time, interferers).
    """
    dataset = DynamicItemDataset(read_manifest(manifest, data_root))

    def read(path):
        return torch.from_numpy(read_audio(path, sample_rate=sample_rate))

    def read_source(source):
        return read(source["path"])

    def read_sources(sources):
        return torch.stack([read_source(source) for source in sources], dim=-1)

    dataset.add_dynamic_item(read, takes="mixture", provides="mixture_sig")
    dataset.add_dynamic_item(read_source, takes="target", provides="target_sig")
    dataset.add_dynamic_item(read, takes="enrollment", provides="enrollment_sig")
    dataset.add_dynamic_item(
        read_sources, takes="interferers", provides="interferer_sigs"
    )
    dataset.set_output_keys(["id", "mixture_sig", "target_sig", "enrollment_sig"])
    return dataset
