"""The files that an evaluation leaves."""

import csv
import io
import json
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
    files = {f"{name}.md": markdown, f"{name}.json": json.dumps(result, indent=1)}
    if rows:
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files[f"{name}.csv"] = table.getvalue().rstrip("\n")
    for file, content in files.items():
        with whole_file(Path(folder, file)) as temporary:
            temporary.write_text(f"{content}\n", encoding="utf-8")
