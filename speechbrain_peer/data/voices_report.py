"""What preparation has found in own recordings: a page and a picture."""

from collections import Counter
from typing import NamedTuple

from matplotlib.figure import Figure

from speechbrain_peer.utils.files import whole_file
from speechbrain_peer.utils.messages import printable

PAGE, PICTURE = "report.md", "report.png"
RARE = 0.05
"""Files of a rate that fewer have are listed: they may be there by mistake."""


class Found(NamedTuple):
    """What there is to report."""

    name: str
    """Of the corpus."""
    files: list
    """Of `voices.VoiceFile`."""
    scanned: list
    """Of `scan.Scanned`, one for each."""
    problems: dict
    """{file: why it cannot be used}."""
    others: Counter
    """Files that are no recordings, by suffix."""
    sample_rate: int
    """That is asked for, in Hz."""


def write_report(folder, found, speech=None, mixtures=None):
    """Writes `report.md` and `report.png`.

    Arguments
    ---------
    folder : str or Path
        Where to.
    found : Found
        What has been found.
    speech : dict, optional
        {subset: list of Utterance}, once speakers are split.
    mixtures : dict, optional
        {subset: list of FixedMixture}.

    Returns
    -------
    Path
        The page.
    """
    minutes, lengths = _minutes(found), _lengths(found)
    with whole_file(folder / PICTURE) as temporary:
        _draw(minutes, lengths).savefig(temporary, format="png")
    parts = [
        _overview(found, minutes, lengths),
        _subsets(speech, mixtures or {}) if speech else [],
        _rates(found),
        _left_out(found),
        _problems(found.problems),
        _remarks(found, minutes),
    ]
    text = "\n".join("\n".join([*part, ""]) for part in parts if part)
    with whole_file(folder / PAGE) as temporary:
        temporary.write_text(printable(text), encoding="utf-8")
    return folder / PAGE


def _usable(found):
    for file, scanned in zip(found.files, found.scanned, strict=True):
        if not scanned.problem:
            yield file, scanned


def _minutes(found):
    """{speaker: minutes of each segment}."""
    minutes = {}
    for file, scanned in _usable(found):
        for number, _, length, _ in scanned.segments:
            speaker = file.spans[number].speaker
            minutes.setdefault(speaker, []).append(length / scanned.rate / 60)
    return minutes


def _lengths(found):
    """Seconds of each segment."""
    return [
        length / scanned.rate
        for _, scanned in _usable(found)
        for _, _, length, _ in scanned.segments
    ]


def _overview(found, minutes, lengths):
    n_files = len(found.files)
    total = sum(scanned.seconds for _, scanned in _usable(found)) / 60
    return [
        f"# {found.name}",
        "",
        f"{n_files} recordings have been looked at; {len(found.problems)} files cannot "
        f"be used. The others have {total:.1f} minutes, of which "
        f"{sum(lengths) / 60:.1f} are speech: {len(lengths)} utterances of "
        f"{len(minutes)} speakers. Channels of a recording are averaged.",
        "",
        f"![Minutes of speakers and lengths of utterances]({PICTURE})",
    ]


def _subsets(speech, mixtures):
    rows = []
    for subset, utterances in speech.items():
        seconds = sum(row.length / row.rate for row in utterances)
        speakers = len({row.speaker for row in utterances})
        fixed = len(mixtures[subset]) if subset in mixtures else "drawn in training"
        rows.append((subset, speakers, len(utterances), f"{seconds / 60:.1f}", fixed))
    header = ("subset", "speakers", "utterances", "minutes", "mixtures")
    return ["## Subsets", "", *_table(header, rows)]


def _rates(found):
    files, seconds = Counter(), Counter()
    for _, scanned in _usable(found):
        kind = scanned.rate, scanned.channels
        files[kind] += 1
        seconds[kind] += scanned.seconds
    rows = [(*kind, files[kind], f"{seconds[kind] / 60:.1f}") for kind in sorted(files)]
    header = ("rate (Hz)", "channels", "recordings", "minutes")
    return ["## Rates and channels", "", *_table(header, rows)] if rows else []


def _left_out(found):
    count, seconds = Counter(), Counter()
    for _, scanned in _usable(found):
        for reason, (number, length) in scanned.left.items():
            count[reason] += number
            seconds[reason] += length
    rows = [(x, count[x], f"{seconds[x] / 60:.1f}") for x in sorted(count)]
    if not rows:
        return []
    header = ("what is left out of usable recordings", "how often", "minutes")
    return ["## Left out", "", *_table(header, rows)]


def _problems(problems):
    if not problems:
        return []
    rows = sorted(problems.items())
    return ["## Files that cannot be used", "", *_table(("file", "why"), rows)]


def _remarks(found, minutes):
    usable = list(_usable(found))
    rates = Counter(scanned.rate for _, scanned in usable)
    others = ", ".join(f"{n} {suffix}" for suffix, n in sorted(found.others.items()))
    remarks = {
        "These hold no usable speech": [
            file.name for file, scanned in usable if not scanned.segments
        ],
        "Few recordings have the rate of these; they are used": [
            f"{file.name} ({scanned.rate} Hz)"
            for file, scanned in usable
            if rates[scanned.rate] < RARE * len(usable)
        ],
        f"The rate of these is below {found.sample_rate} Hz, so that high frequencies "
        "are missing; they are used": [
            file.name for file, scanned in usable if scanned.rate < found.sample_rate
        ],
        "The channels of these cancel each other, so the loudest is taken": [
            file.name for file, scanned in usable if scanned.cancelling
        ],
        "These are decoded by ffmpeg": [
            file.name for file, scanned in usable if scanned.decoded
        ],
        "Speakers with a single utterance, who are interferers only": sorted(
            speaker for speaker, parts in minutes.items() if len(parts) == 1
        ),
        "Not looked at, as they are no recordings": [others] if others else [],
    }
    lines = [
        line
        for title, names in remarks.items()
        if names
        for line in (f"{title}:", "", *(f"- {name}" for name in names), "")
    ]
    return ["## Remarks", "", *lines[:-1]] if lines else []


def _table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(_cell, line))} |" for line in lines]


def _cell(value):
    return " ".join(str(value).split()).replace("|", "\\|")


def _draw(minutes, lengths):
    figure = Figure(figsize=(10, 3.5), dpi=120, layout="constrained")
    speakers, utterances = figure.subplots(1, 2)
    speakers.hist([sum(parts) for parts in minutes.values()], bins=30)
    speakers.set(xlabel="minutes of a speaker", ylabel="speakers")
    utterances.hist(lengths, bins=40, color="C1")
    utterances.set(xlabel="length of an utterance (s)", ylabel="utterances")
    for panel in (speakers, utterances):
        panel.grid(alpha=0.3)
    return figure
