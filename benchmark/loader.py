"""The training loader against what the model takes in."""

import time

from speechbrain.dataio.dataloader import make_dataloader
from tqdm import tqdm

from benchmark.model import WITH_PEERS
from benchmark.report import Table
from speechbrain_peer.data.dataset import training_set
from speechbrain_peer.utils.files import DataError

N_WORKERS = (0, 2)
MAX_ITEMS = 800


def load_pairs(manifest, data_root, sizes):
    """Makes the training set, before anything long runs, and tries it.

    Arguments
    ---------
    manifest : str or Path
        Of a training subset, from preparation.
    data_root : str
        What `{data_root}` in the manifest stands for.
    sizes : Sizes

    Returns
    -------
    DynamicItemDataset

    Raises
    ------
    DataError
        If it holds too few items, or the first one cannot be read.
    """
    dataset, _ = training_set(
        manifest, data_root, sizes.seconds, sizes.sample_rate, seed=0, peers="drawn"
    )
    if len(dataset) < sizes.n_mixtures:
        raise DataError(f"{manifest}: too few items, give at least {sizes.n_mixtures}")
    dataset[0]
    return dataset


def time_loader(dataset, sizes, training):
    """Measures reading, mixing and batching of pairs.

    Arguments
    ---------
    dataset : DynamicItemDataset
        From `load_pairs`.
    sizes : Sizes
    training : Table
        From `time_training`: what the model takes for a mixture.

    Returns
    -------
    Table
    """
    column = "time [ms per pair]"
    table = Table("Loading of pairs, drawn anew", [column])
    for needed, seconds in training.cells[WITH_PEERS].items():
        precision = needed.split()[0]
        pairs = [2000 * second for second in seconds]
        table.add(f"needed by the training step, {precision}", column, pairs)
    batch_size = sizes.n_mixtures // 2
    for n_workers in N_WORKERS:
        seconds = _seconds_per_item(dataset, batch_size, n_workers)
        table.add(f"loader, {n_workers} workers", column, [1000 * seconds])
    return table


def _seconds_per_item(dataset, batch_size, n_workers):
    loader = make_dataloader(
        dataset,
        batch_size=batch_size,
        num_workers=n_workers,
        shuffle=True,
        drop_last=True,
    )
    n_batches = min(MAX_ITEMS // batch_size, len(loader))
    batches = iter(loader)
    next(batches)  # workers have started
    started = time.perf_counter()
    for _ in tqdm(range(n_batches - 1), desc=f"loading, {n_workers} workers"):
        next(batches)
    return (time.perf_counter() - started) / ((n_batches - 1) * batch_size)
