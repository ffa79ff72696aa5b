"""From manifests to the items that the model sees.

A training item has one or more branches, peers of one target, and a random enrollment.
Items of validation and test are whole utterances with the enrollment that preparation
fixed.
"""

import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_peer.data.drawn_items import DrawnItems, Renderer
from speechbrain_peer.data.manifests import read_listed_peers, read_manifest
from speechbrain_peer.data.peers import item_rng
from speechbrain_peer.data.scenes import SceneDrawer, scene_of
from speechbrain_peer.data.speech_pool import open_pool
from speechbrain_peer.data.surroundings import Surroundings
from speechbrain_peer.data.training_items import TrainingItems
from speechbrain_peer.utils.audio import read_audio
from speechbrain_peer.utils.files import DataError

# What the items of a training set have beside their `id`.
TRAINING_KEYS = ["mixture_sig", "target_sig", "enrollment_sig", "speaker", "coin"]
# And where some are enrolled with the network's own estimates.
OF_ESTIMATES = "enrollment_mixture_sig"


def training_set(
    manifest,
    data_root,
    chunk_seconds,
    sample_rate,
    seed,
    peers="drawn",
    n_peers=2,
    peer_interferer="any",
    listed_peers=None,
    enrolling=None,
    voices=None,
):
    """Makes a training set of listed mixtures.

    Arguments
    ---------
    manifest : str or Path
        The manifest that preparation has written.
    data_root : str
        What `{data_root}` in the manifest stands for.
    chunk_seconds : float
        Longest mixture, and enrollment unless its length is drawn.
    sample_rate : int
        Hz.
    seed : int
        Seeds all draws of items.
    peers : str
        `off`: single mixtures; `listed`: the peers of `listed_peers`; `drawn`: peers
        drawn anew in every epoch.
    n_peers : int
        How many branches an item with peers has.
    peer_interferer : str
        `any`, `same`, `quieter` or `confusable`.
    listed_peers : str, Path or None
        The file of listed peers.
    enrolling : Enrolling or None
        How items are enrolled.
    voices : SpeakerVoices or None
        Of all speakers, for confusable interferers.

    Returns
    -------
    dataset : DynamicItemDataset
        Items with `id`, `mixture_sig` and `target_sig` (time, peers), `enrollment_sig`
        (time,), `speaker` and `coin`; where some are enrolled with own estimates, also
        `enrollment_mixture_sig` (time,).
    items : TrainingItems
        Its `set_epoch` starts an epoch.

    Raises
    ------
    DataError
        If there are no such peers.
    """
    rows = read_manifest(manifest, data_root)
    chunk_samples = round(chunk_seconds * sample_rate)
    branches = branches_of(peers, n_peers)
    listed = None
    if peers == "listed":
        listed = read_listed_peers(listed_peers, data_root)
    elif peers == "microphones":
        raise DataError("listed mixtures have one microphone: give --mixtures drawn")
    items = TrainingItems(
        rows,
        chunk_samples,
        sample_rate,
        seed,
        branches,
        peer_interferer,
        listed,
        enrolling,
        voices,
    )
    return _dataset(rows, items), items


def drawn_set(
    tables,
    chunk_seconds,
    sample_rate,
    seed,
    mixing,
    peers="drawn",
    n_peers=2,
    peer_interferer="any",
    enrolling=None,
):
    """Makes a training set of mixtures that are drawn anew in every epoch.

    Arguments
    ---------
    tables : str, Path or dict
        A table of utterances that preparation has written, or {table: weight}. Beside
        each stands where its data is.
    chunk_seconds : float
        Longest mixture, and enrollment unless its length is drawn.
    sample_rate : int
        Hz.
    seed : int
        Seeds all draws of items.
    mixing : Mixing
        How mixtures are drawn.
    peers : str
        `off`, `drawn`, or `microphones`: each branch is a microphone of one room.
    n_peers : int
        How many branches an item with peers has.
    peer_interferer : str
        `any` or `same`, for drawn peers.
    enrolling : Enrolling or None
        How items are enrolled.

    Returns
    -------
    dataset : DynamicItemDataset
        As `training_set`.
    items : DrawnItems
        Its `set_epoch` starts an epoch.

    Raises
    ------
    DataError
        If the tables, noise or rooms cannot be read, or there are too few speakers.
    """
    if peers == "listed":
        raise DataError("drawn mixtures have no listed peers: give --peers drawn")
    if peer_interferer == "confusable":
        raise DataError("confusable peers are of listed mixtures: give those")
    pool = open_pool(tables, mixing.balance)
    drawer = SceneDrawer(
        pool,
        mixing,
        round(chunk_seconds * sample_rate),
        sample_rate,
        branches_of(peers, n_peers),
        peers,
        peer_interferer,
        enrolling,
    )
    items = DrawnItems(drawer, seed)
    count = mixing.items_per_epoch or max(1, sum(map(len, pool.tables)) // 2)
    return _dataset({f"item_{k}": {} for k in range(count)}, items), items


def branches_of(peers, n_peers):
    """How many mixtures a training item has.

    Raises
    ------
    DataError
        If there are fewer than two peers.
    """
    if peers == "off":
        return 1
    if n_peers < 2:
        raise DataError(f"n_peers is {n_peers}: give 2 or more, or --peers off")
    return n_peers


def _dataset(rows, items):
    dataset = DynamicItemDataset(rows)
    provided = [*TRAINING_KEYS, OF_ESTIMATES]
    dataset.add_dynamic_item(items.read, takes="id", provides=provided)
    wanted = provided if items.enrolling.own_estimates else TRAINING_KEYS
    dataset.set_output_keys(["id", *wanted])
    return dataset


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


def surrounded_set(manifest, data_root, sample_rate, mixing, seed):
    """Makes a validation set that is heard in rooms and noise, as training is.

    Where each mixture of the manifest is heard, with which noise, is drawn once.

    Arguments
    ---------
    manifest : str or Path
        The manifest that preparation has written.
    data_root : str
        What `{data_root}` in the manifest stands for.
    sample_rate : int
        Hz.
    mixing : Mixing
        With the rooms and the noise of the training.
    seed : int
        Of the draws.

    Returns
    -------
    DynamicItemDataset
        That of `evaluation_set` where training has neither rooms nor noise; else items
        with the same keys but for `interferer_sigs`.

    Raises
    ------
    DataError
        If noise or rooms cannot be read, or a room has too few places.
    """
    surroundings = Surroundings(mixing, sample_rate, "dev")
    if not surroundings:
        return evaluation_set(manifest, data_root, sample_rate)
    rows = read_manifest(manifest, data_root)
    surroundings.check(max(1 + len(row["interferers"]) for row in rows.values()))
    renderer = Renderer(surroundings, sample_rate)

    def read(item_id):
        rng = item_rng(seed, 0, item_id)
        scene = scene_of(rows[item_id], surroundings, sample_rate, rng)
        mixtures, targets, enrollment = map(torch.from_numpy, renderer.render(scene))
        return mixtures[:, 0], targets[:, 0], enrollment

    dataset = DynamicItemDataset(rows)
    keys = ["mixture_sig", "target_sig", "enrollment_sig"]
    dataset.add_dynamic_item(read, takes="id", provides=keys)
    dataset.set_output_keys(["id", *keys])
    return dataset
