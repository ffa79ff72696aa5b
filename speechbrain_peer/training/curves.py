"""What a training writes of its epochs: rows of a CSV file, and their figure."""

import csv
import math
from pathlib import Path

from speechbrain_peer.evaluation.figures import curves_figure
from speechbrain_peer.utils.files import DataError, whole_file

CURVES_FILE = "curves.csv"


def append_epoch(folder, epoch, row):
    """Adds one epoch to `curves.csv` and draws `curves.png` anew.

    Rows of this and of later epochs, left by a run that was resumed from an older
    checkpoint, are dropped.

    Arguments
    ---------
    folder : str or pathlib.Path
        Made where it does not exist.
    epoch : int
        From 1.
    row : dict
        Numbers by column name: those of `PeerCurves.means`, `train_loss`,
        `valid_loss`, `valid_si_snr` are drawn, others such as `lr` and `seconds`
        written only. None and what is not finite leave the cell blank.

    Raises
    ------
    DataError
        If what `curves.csv` holds are no curves.
    """
    table = Path(folder) / CURVES_FILE
    rows = [old for old in read_curves(table) if int(old["epoch"]) < epoch]
    rows.append({"epoch": epoch, **{name: _cell(row[name]) for name in row}})
    columns = list(dict.fromkeys(name for each in rows for name in each))
    with (
        whole_file(table) as path,
        open(path, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    with whole_file(table.with_suffix(".png")) as path:
        curves_figure(rows).savefig(path, format="png")


def read_curves(table):
    """Reads a run's `curves.csv`.

    Arguments
    ---------
    table : pathlib.Path
        It may be missing.

    Returns
    -------
    list of dict
        Of every epoch, cells by the names of columns.

    Raises
    ------
    DataError
        If what it holds are no curves.
    """
    if not table.exists():
        return []
    try:
        with open(table, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            int(row["epoch"]), [float(cell) for cell in row.values() if cell]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(
            f"{table}: cannot be read as curves ({error}); move it away to go on"
        ) from error
    return rows


def _cell(value):
    return "" if value is None or not math.isfinite(value) else value
