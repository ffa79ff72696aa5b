"""Fig. 4: curves over epochs, means over the seeds of a system."""

import csv
import statistics
import textwrap

from matplotlib.figure import Figure

from speechbrain_peer.evaluation.figures import BRANCHES, draw_columns
from speechbrain_peer.peer_learning.curves import COLUMNS
from speechbrain_peer.peer_learning.exchange import has_predictors
from speechbrain_peer.training.curves import CURVES_FILE
from speechbrain_peer.utils.files import DataError

VALUES = ("step", "train_loss", "valid_loss", "valid_si_snr", *COLUMNS)
PANELS_IN_A_ROW = 2
CHARACTERS_IN_A_LINE = 72


def mean_curves(system):
    """Reads the curves of a system's runs.

    Arguments
    ---------
    system : System

    Returns
    -------
    list of dict
        One for each epoch that all of its runs with a `curves.csv` have reached:
        `epoch`, `runs`, how many these are, and the mean of each of `VALUES`, None
        where one run has no value.

    Raises
    ------
    DataError
        If a file cannot be read.
    """
    paths = [run.folder / CURVES_FILE for run in system.runs]
    tables = [_read(path) for path in paths if path.exists()]
    # Epochs that not all have reached would make the mean jump.
    return [
        {"epoch": epoch, "runs": len(rows)}
        | {name: _mean(row.get(name) for row in rows) for name in VALUES}
        for epoch, rows in enumerate(zip(*tables, strict=False), start=1)
    ]


def peers_figure(groups, curves):
    """Draws the branches of both peers, a panel for each system with predictors.

    Arguments
    ---------
    groups : list of Group
    curves : dict
        What `mean_curves` has returned, by label of the group and name of the system.

    Returns
    -------
    matplotlib.figure.Figure or None
        None if there is no such system.
    """
    panels = {
        f"{group.label}: {system.name}": curves[group.label, system.name]
        for group in groups
        for system in group.systems
        if has_predictors(system.first.exchange) and curves[group.label, system.name]
    }
    figure, axes = _panels(panels)
    for panel, (title, rows) in zip(axes, panels.items(), strict=False):
        draw_columns(panel, rows, BRANCHES)
        panel.set(title=_title(title, rows), ylabel="SI-SNR (dB)")
    return figure


def validation_figure(groups, curves):
    """Draws SI-SNR of the validation of all systems, a panel for each group.

    Over optimizer steps, as epochs of pairs and of single mixtures differ in length,
    or over epochs where the steps are not known.

    Arguments
    ---------
    groups : list of Group
    curves : dict
        As for `peers_figure`.

    Returns
    -------
    matplotlib.figure.Figure or None
        None if there is no curve.
    """
    labels = dict.fromkeys(label for (label, _), rows in curves.items() if rows)
    panels = {group.label: group for group in groups if group.label in labels}
    figure, axes = _panels(panels)
    for panel, (label, group) in zip(axes, panels.items(), strict=False):
        of_group = [curves[label, system.name] for system in group.systems]
        stepless = any(row["step"] is None for rows in of_group for row in rows)
        for index, (system, rows) in enumerate(
            zip(group.systems, of_group, strict=True)
        ):
            name = _title(system.name, rows)
            column = ("valid_si_snr", name, f"C{index % 10}", "-")
            draw_columns(panel, rows, [column], "epoch" if stepless else "step")
        # Names are too long to stand beside each other.
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize="small")
        panel.set(title=f"{label}: {group.budget}", ylabel="validation SI-SNR (dB)")
    return figure


def _panels(titles):
    """A figure with so many panels, or None and no panels."""
    if not titles:
        return None, []
    in_a_row = min(len(titles), PANELS_IN_A_ROW)
    n_rows = -(-len(titles) // in_a_row)
    size = (7 * in_a_row, 5 * n_rows)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = list(figure.subplots(n_rows, in_a_row, squeeze=False).flat)
    for panel in panels[len(titles) :]:
        panel.remove()
    return figure, panels


def _title(name, rows):
    n_runs = rows[0]["runs"] if rows else 1
    title = name if n_runs == 1 else f"{name}, mean of {n_runs} runs"
    return textwrap.fill(title, CHARACTERS_IN_A_LINE)


def _read(path):
    """Numbers by column, one dict for each epoch; None where a cell is blank."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [
                {name: float(cell) if cell else None for name, cell in row.items()}
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as curves: {error}") from error


def _mean(values):
    values = list(values)
    return None if None in values else statistics.fmean(values)
