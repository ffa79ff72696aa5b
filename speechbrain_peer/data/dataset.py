"""From manifests to the items that the model sees.

A training item is a pair of peers with a random enrollment. Items of validation and
test are whole utterances with the enrollment that preparation fixed.
"""

import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_peer.data.dynamic_mixing import DrawnItems
from speechbrain_peer.data.manifests import read_listed_peers, read_manifest
from speechbrain_peer.data.training_items import TrainingItems
from speechbrain_peer.utils.audio import read_audio
from speechbrain_peer.utils.files import DataError


def training_set(
    manifest,
    data_root,
    chunk_seconds,
    sample_rate,
    seed,
    peers="drawn",
    peer_interferer="any",
    listed_peers=None,
    mixtures="listed",
    speeds=(100,),
):
    """Makes the training set.

    Arguments
    ---------
    manifest : str or Path
        The manifest that preparation has written.
    data_root : str
        What `{data_root}` in the manifest stands for.
    chunk_seconds : float
        Longest mixture and enrollment.
    sample_rate : int
        Hz.
    seed : int
        Seeds all draws of items.
    peers : str
        `off`: single mixtures; `listed`: the pairs of `listed_peers`; `drawn`: pairs
        drawn anew in every epoch.
    peer_interferer : str
        `any` or `same`, for drawn peers.
    listed_peers : str, Path or None
        The file of listed peers.
    mixtures : str
        `listed`: those of the manifest; `drawn`: drawn anew in every epoch from all
        of its sources.
    speeds : list of int
        Speeds of the sources of drawn mixtures, in percent.

    Returns
    -------
    dataset : DynamicItemDataset
        Items with `id`, `mixture_sig`, `target_sig`, `enrollment_sig`, `speaker`, and
        with peers `coin` and `peer_sig`.
    items : TrainingItems
        Its `set_epoch` starts an epoch.

    Raises
    ------
    DataError
        If there are no such mixtures, or they have no such peers.
    """
    if mixtures not in ("listed", "drawn"):
        raise DataError(f"mixtures '{mixtures}': choose listed or drawn")
    rows = read_manifest(manifest, data_root)
    chunk_samples = round(chunk_seconds * sample_rate)
    common = (rows, chunk_samples, sample_rate, seed, peer_interferer)
    if mixtures == "drawn":
        if peers == "listed":
            raise DataError("drawn mixtures have no listed peers: give --peers drawn")
        items = DrawnItems(*common, speeds)
    else:
        listed = None
        if peers == "listed":
            listed = read_listed_peers(listed_peers, data_root)
        items = TrainingItems(*common, listed)
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
        The manifest that preparation has written.
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

    def read(path, length=-1):
        samples = read_audio(path, frames=length, sample_rate=sample_rate)
        return torch.from_numpy(samples)

    def read_source(source):
        return read(source["path"])

    def read_sources(sources):
        return torch.stack([read_source(source) for source in sources], dim=-1)

    dataset.add_dynamic_item(read, takes="mixture", provides="mixture_sig")
    dataset.add_dynamic_item(read_source, takes="target", provides="target_sig")
    dataset.add_dynamic_item(
        read, takes=["enrollment", "enrollment_length"], provides="enrollment_sig"
    )
    dataset.add_dynamic_item(
        read_sources, takes="interferers", provides="interferer_sigs"
    )
    dataset.set_output_keys(["id", "mixture_sig", "target_sig", "enrollment_sig"])
    return dataset
