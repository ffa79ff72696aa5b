"""Tables I and II: scores of systems, beside the paper's."""

from typing import NamedTuple

# Of the rows of the paper: SI-SDR in dB and PESQ, by backbone and what is lent; None
# is training on single mixtures.
PAPER = {
    ("sDPCCN", None): (11.65, 2.74),
    ("TD-SpeakerBeam", None): (12.86, 2.75),
    ("SpEx+", None): (13.41, 2.94),
    ("TD-SpeakerBeam", "itself"): (12.84, 2.74),
    ("TD-SpeakerBeam", "anyway"): (12.89, 2.77),
    ("TD-SpeakerBeam", "better"): (13.94, 3.07),
}
PAPER_MIXTURE = (0.001, 1.603)
NO_FIGURE = (None, None)


class Score(NamedTuple):
    """A column."""

    name: str
    heading: str
    decimals: int


SCORES = (
    Score("si_sdr", "SI-SDR (dB)", 2),
    Score("si_sdri", "SI-SDRi (dB)", 2),
    Score("pesq", "PESQ", 2),
    Score("stoi", "STOI", 3),
    Score("wrong_speaker", "wrong speaker (%)", 1),
    Score("worse_than_mixture", "worse than mixture (%)", 1),
)
# Columns that have the paper's figure beside them.
IN_PAPER = ("si_sdr", "pesq")


def markdown_table(headings, rows):
    """Lays out a table.

    Arguments
    ---------
    headings : sequence of str
        The first column is aligned to the left, the others to the right.
    rows : iterable of sequence of str

    Returns
    -------
    str

    Example
    -------
    >>> print(markdown_table(["animal", "legs"], [["cat", "4"], ["hen", "2"]]))
    | animal | legs |
    |---|---:|
    | cat | 4 |
    | hen | 2 |
    """
    heading, *lines = (f"| {' | '.join(cells)} |" for cells in (headings, *rows))
    rule = "|---" + "|---:" * (len(headings) - 1) + "|"
    return "\n".join([heading, rule, *lines])


def score_tables(group):
    """Writes Table I, the systems, and Table II, what is lent, of one group.

    Arguments
    ---------
    group : Group

    Returns
    -------
    str
        Markdown; a table without a system is left out.
    """
    systems, ablation = [], []
    for system in group.systems:
        run = system.first
        if run.peers == "off" or run.exchange == "better":
            systems.append(system)
        if run.peers != "off":
            ablation.append(system)
    parts = [
        f"### {group.label}, {title}\n\n{_table(group, members)}"
        for title, members in (
            ("Table I: systems", systems),
            ("Table II: what peers lend each other", ablation),
        )
        if members
    ]
    return "\n\n".join([*parts, *_remarks(group)])


def score_entries(group):
    """The scores of one group for CSV and JSON.

    Arguments
    ---------
    group : Group

    Returns
    -------
    list of dict
        One for each system; `<score>_sd` is the standard deviation over the seeds.
    """
    entries = []
    for system in group.systems:
        run = system.first
        entry = {
            "system": system.name,
            "backbone": run.backbone,
            "peers": run.peers,
            "exchange": run.exchange,
            "seeds": [run.seed for run in system.runs],
            "folders": [str(run.folder) for run in system.runs],
            "tested_step": system.tested_step,
        }
        for score in SCORES:
            entry[score.name] = system.mean(score.name)
            entry[f"{score.name}_sd"] = system.spread(score.name)
        for name, figure in zip(IN_PAPER, _paper_figures(run), strict=True):
            entry[f"paper_{name}"] = figure
        entries.append(entry)
    return entries


def _paper_figures(run):
    if run.peers != "off":
        return PAPER.get((run.backbone, run.exchange), NO_FIGURE)
    has_row = run.exchange == "none"
    return PAPER.get((run.backbone, None), NO_FIGURE) if has_row else NO_FIGURE


def _table(group, systems):
    headings = ["system", "seeds"]
    for score in SCORES:
        headings += [score.heading, "paper"][: 1 + (score.name in IN_PAPER)]
    rows = [_mixture_row(group)]
    rows += [_system_row(system) for system in systems]
    return markdown_table([*headings, "step"], rows)


def _mixture_row(group):
    paper = dict(zip(IN_PAPER, PAPER_MIXTURE, strict=True))
    cells = ["mixture", ""]
    for score in SCORES:
        cells.append(number(group.mixture.get(score.name), score.decimals))
        cells += [str(paper[score.name])] if score.name in paper else []
    return [*cells, ""]


def _system_row(system):
    paper = dict(zip(IN_PAPER, _paper_figures(system.first), strict=True))
    cells = [system.name, str(len(system.runs))]
    for score in SCORES:
        cell = number(system.mean(score.name), score.decimals)
        if system.spread(score.name) is not None:
            cell += f" ± {system.spread(score.name):.{score.decimals}f}"
        cells.append(cell)
        if score.name in paper:
            cells.append("-" if paper[score.name] is None else str(paper[score.name]))
    return [*cells, number(system.tested_step, 0)]


def number(value, decimals):
    """A figure of a table; "-" stands for None."""
    return "-" if value is None else f"{value:.{decimals}f}"


def _remarks(group):
    """Paragraphs below the tables."""
    if group.is_the_papers:
        yield "paper: figures of the paper, on Libri2Mix as well."
    else:
        yield (
            "**paper: figures on the 3000 test mixtures of Libri2Mix, which are not "
            "comparable with those on this corpus.**"
        )
    yield (
        "step: optimizer steps of the checkpoint tested, which is the best on the "
        "validation set."
    )
    for system in group.systems:
        for run in system.runs:
            if run.silent:
                yield (
                    f"{system.name}, seed {run.seed}: {run.silent} of {run.items} "
                    "outputs are silent and left out of the means of SI-SDR, SI-SDRi, "
                    "PESQ and STOI."
                )
    if any(len(system.runs) > 1 for system in group.systems):
        yield "Means over seeds ± their standard deviation (n - 1)."
