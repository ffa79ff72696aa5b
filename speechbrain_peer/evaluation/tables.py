"""The files that an evaluation leaves."""

import json
from pathlib import Path

from speechbrain_peer.utils.files import whole_file


def write_tables(folder, name, markdown, result):
    """Writes tables, `<name>.md`, and all figures, `<name>.json`.

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
    """
    files = {f"{name}.md": markdown, f"{name}.json": json.dumps(result, indent=1)}
    for file, content in files.items():
        with whole_file(Path(folder, file)) as temporary:
            temporary.write_text(f"{content}\n", encoding="utf-8")
