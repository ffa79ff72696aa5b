"""The files that an evaluation leaves."""

import csv
import io
import json
import math
from pathlib import Path

from speechbrain_peer.utils.files import whole_file


def write_tables(folder, name, markdown, result, rows=None):
    """Writes tables, `<name>.md`, all figures, `<name>.json`, and items, `<name>.csv`.

    Arguments
    ---------
    folder : str or pathlib.Path
        The folder to write into; it is made.
    name : str
        Of both files.
    markdown : str
        The tables.
    result : dict
        The figures, as JSON takes them.
    rows : list of dict, optional
        The scores of every item, with the same keys in each.
    """
    # JSON knows no NaN; see `_without_nan`.
    text = json.dumps(_without_nan(result), indent=1, allow_nan=False)
    files = {f"{name}.md": markdown, f"{name}.json": text}
    if rows:
        rows = _without_nan(rows)
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files[f"{name}.csv"] = table.getvalue().rstrip("\n")
    for file, content in files.items():
        with whole_file(Path(folder, file)) as temporary:
            temporary.write_text(f"{content}\n", encoding="utf-8")


def _without_nan(value):
    """None in place of what has not been measured, such as PESQ without its package."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
