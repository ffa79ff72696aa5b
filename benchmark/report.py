"""Tables of medians, as Markdown and JSON."""

import json
import statistics
from pathlib import Path

from speechbrain_peer.utils.files import whole_file


class Table:
    """Measurements, of which less is better, by row and column.

    Arguments
    ---------
    title : str
    columns : sequence of str
        With the unit, such as `forward [s]`.
    ratios : bool
        Whether to show how many times better than the first row a cell is.

    Example
    -------
    >>> table = Table("Boiling", ["time [s]"])
    >>> table.add("kettle", "time [s]", [4.0, 2.0, 3.0])
    >>> table.add("microwave", "time [s]", [1.5])
    >>> table.add("sun", "time [s]", [])
    >>> print(table.markdown())
    ### Boiling
    <BLANKLINE>
    | | time [s] |
    |---|---|
    | kettle | 3.00 (1.00x) |
    | microwave | 1.50 (2.00x) |
    | sun | - |
    """

    def __init__(self, title, columns, ratios=True):
        self.title, self.columns, self.ratios = title, list(columns), ratios
        self.cells, self.notes = {}, []

    def add(self, row, column, values):
        """Adds the values of all repeats; none where it could not be measured."""
        self.cells.setdefault(row, {})[column] = list(values)

    def median(self, row, column):
        """The median of a cell, or None."""
        values = self.cells[row].get(column)
        return statistics.median(values) if values else None

    def ratio(self, row, column):
        """How many times better than the first row, or None."""
        reference = self.median(next(iter(self.cells)), column)
        value = self.median(row, column)
        return reference / value if reference and value else None

    def markdown(self):
        """Title, table and notes."""
        lines = [f"### {self.title}", ""]
        lines.append(f"| | {' | '.join(self.columns)} |")
        lines.append("|---" * (1 + len(self.columns)) + "|")
        for row in self.cells:
            cells = (self._cell(row, column) for column in self.columns)
            lines.append(f"| {row} | {' | '.join(cells)} |")
        return "\n".join(lines + [f"\n{note}" for note in self.notes])

    def _cell(self, row, column):
        median, ratio = self.median(row, column), self.ratio(row, column)
        if median is None:
            return "-"
        shown = self.ratios and ratio is not None
        return f"{median:#.3g}" + (f" ({ratio:.2f}x)" if shown else "")

    def entries(self):
        """For JSON: medians, ratios and the values of all repeats."""
        rows = {
            row: {
                column: {
                    "median": self.median(row, column),
                    "ratio": self.ratio(row, column),
                    "values": values,
                }
                for column, values in cells.items()
            }
            for row, cells in self.cells.items()
        }
        return {"title": self.title, "rows": rows, "notes": self.notes}


def write_report(folder, settings, tables):
    """Writes `benchmark.json` and `benchmark.md`.

    Arguments
    ---------
    folder : str or Path
    settings : dict
        What was run where: text or numbers.
    tables : list of Table
    """
    entries = {"settings": settings, "tables": [table.entries() for table in tables]}
    with whole_file(Path(folder, "benchmark.json")) as path:
        path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    texts = [headline(settings), *(table.markdown() for table in tables)]
    with whole_file(Path(folder, "benchmark.md")) as path:
        path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def headline(settings):
    """The settings in one line, and how to read the tables."""
    line = ", ".join(f"{key} {value}" for key, value in settings.items())
    return (
        f"{line}.\n\nMedians; (2.00x) means twice as fast, or half as large, as the "
        "first row of the table."
    )
