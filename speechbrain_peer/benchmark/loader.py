"""The training loader against what the model takes in."""

import time

from speechbrain.dataio.dataloader import make_dataloader
from tqdm import tqdm

from speechbrain_peer.benchmark.report import Table
from speechbrain_peer.data.dataset import training_set

N_WORKERS = (0, 2)
MAX_ITEMS = 800


def time_loader(manifest, data_root, sizes, training):
    """Measures reading, mixing and batching of pairs.

    Arguments
    ---------
    manifest : str or Path
        Of a training subset, from preparation.
    data_root : str
        What `{data_root}` in the manifest stands for.
    sizes : Sizes
    training : Table
        From `time_training`: what the model takes for a mixture.

    Returns
    -------
    Table
    """
    column = "time [ms per pair]"
    table = Table("Loading of pairs, drawn anew", [column])
    with_peers = list(training.cells)[-1]
    for needed, seconds in training.cells[with_peers].items():
        precision = needed.split()[0]
        pairs = [2000 * second for second in seconds]
        table.add(f"needed by the training step, {precision}", column, pairs)
    for n_workers in N_WORKERS:
        rate = 1000 * _seconds_per_item(manifest, data_root, sizes, n_workers)
        table.add(f"loader, {n_workers} workers", column, [rate])
    return table


def _seconds_per_item(manifest, data_root, sizes, n_workers):
    dataset, _ = training_set(
        manifest, data_root, sizes.seconds, sizes.sample_rate, seed=0, peers="drawn"
    )
    batch_size = sizes.n_mixtures // 2
    n_batches = min(MAX_ITEMS, len(dataset)) // batch_size
    batches = iter(
        make_dataloader(
            dataset,
            batch_size=batch_size,
            num_workers=n_workers,
            shuffle=True,
            drop_last=True,
        )
    )
    next(batches)  # workers have started
    started = time.perf_counter()
    for _ in tqdm(range(n_batches - 1), desc=f"loading, {n_workers} workers"):
        next(batches)
    return (time.perf_counter() - started) / ((n_batches - 1) * batch_size)
