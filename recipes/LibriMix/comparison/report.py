"""The report: Markdown, CSV, JSON and figures."""

import csv
import json
from pathlib import Path

from recipes.LibriMix.comparison.costs import cost_table
from recipes.LibriMix.comparison.differences import difference_table, differences
from recipes.LibriMix.comparison.epochs import (
    mean_curves,
    peers_figure,
    validation_figure,
)
from recipes.LibriMix.comparison.tables import score_entries, score_tables
from speechbrain_peer.utils.files import whole_file

EPOCHS = (
    "In an epoch every target is trained on once; how many steps that takes depends on "
    "the batch size. Means over seeds go as far as all of them went."
)


DIFFERENCES = (
    "Differences are of the same items and seeds. Their standard error is that of the "
    "mean over target speakers: more items of a speaker, or more seeds, do not make up "
    "for few speakers."
)


def write_report(folder, groups, costs=None):
    """Writes all parts.

    `report.md`, `report.json`, `scores.csv`, and, where there is what they show,
    `costs.csv`, `curves.csv`, `peers.png` and `validation.png`.

    Arguments
    ---------
    folder : str or pathlib.Path
        Made where it does not exist.
    groups : list of Group
        What is compared.
    costs : tuple or None
        Of Table III: a dict of what was measured where, and the list from
        `costs.measure_costs`.

    Returns
    -------
    str
        The text of `report.md`.
    """
    folder = Path(folder)
    curves = {
        (group.label, system.name): mean_curves(system)
        for group in groups
        for system in group.systems
    }
    changes = {group.label: differences(group) for group in groups}
    parts = [part for group in groups for part in _group_parts(group, changes)]
    if costs is not None:
        parts += _cost_parts(*costs)
    parts += _write_curves(folder, groups, curves)
    text = "\n\n".join(parts) + "\n"
    _write_text(folder / "report.md", text)

    entries = [(group, score_entries(group)) for group in groups]
    as_json = {
        "groups": [
            {
                **_about(group),
                "mixture": group.mixture,
                "systems": systems,
                "differences": [row._asdict() for row in changes[group.label]],
            }
            for group, systems in entries
        ]
    }
    rows = [_about(group) | entry for group, systems in entries for entry in systems]
    _write_csv(folder / "scores.csv", rows)
    if costs is not None:
        as_json["costs"] = {"settings": costs[0], "models": costs[1]}
        _write_csv(folder / "costs.csv", costs[1])
    content = json.dumps(as_json, indent=1, ensure_ascii=False, allow_nan=False)
    _write_text(folder / "report.json", content + "\n")
    return text


def _about(group):
    return {
        "group": group.label,
        "corpus": group.corpus,
        "items": group.items,
        "training": group.budget,
        "comparable_with_paper": group.is_the_papers,
    }


def _group_parts(group, changes):
    yield f"## {group.label}: training of {group.budget}"
    yield f"Tested on {group.items} mixtures: {group.corpus}"
    yield score_tables(group)
    if rows := changes[group.label]:
        yield f"### {group.label}: what peer learning and lending change"
        yield difference_table(rows)
        yield DIFFERENCES


def _cost_parts(settings, entries):
    yield "## Table III: cost"
    yield cost_table(entries)
    yield ", ".join(f"{key} {value}" for key, value in settings.items()) + "."


def _write_curves(folder, groups, curves):
    """Writes table and figures; returns the paragraphs that show them."""
    rows = [
        {"group": label, "system": system, **row}
        for (label, system), epochs in curves.items()
        for row in epochs
    ]
    if not rows:
        return []
    _write_csv(folder / "curves.csv", rows)
    parts = ["## Fig. 4: over epochs", EPOCHS]
    for name, what, figure in (
        ("peers", "The training items' peers", peers_figure(groups, curves)),
        ("validation", "Validation", validation_figure(groups, curves)),
    ):
        if figure is not None:
            with whole_file(folder / f"{name}.png") as path:
                figure.savefig(path, format="png")
            parts.append(f"![{what}]({name}.png)")
    return parts


def _write_csv(path, rows):
    """Writes rows with all of their columns; lists are put in one cell."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (
        whole_file(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value):
    return "; ".join(map(str, value)) if isinstance(value, list) else value


def _write_text(path, text):
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
