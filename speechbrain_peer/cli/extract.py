"""Extracts one person's speech from recordings, files and whole folders."""

import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from speechbrain_peer.cli.options import (
    add_judge,
    add_model_options,
    existing_file,
    load_interface,
    load_judge,
)
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.messages import one_line, printable

EXAMPLES = [
    "tse extract meeting.wav -e anna.wav",
    "tse extract meeting.wav -e anna.wav -o anna_only.flac --residual others.flac",
    "tse extract day1/ day2/ talk.m4a -e anna_1.wav anna_2.wav -o anna/",
    "tse extract - -e anna.wav -o anna_only.wav",
    "tse extract phone1.wav phone2.wav --together -e anna.wav -o anna_only.wav",
    "tse extract meeting.wav -e anna.wav --save-voice anna.voice",
    "tse extract another.wav --voice anna.voice",
    "tse extract day1/ -e anna.wav -m my-model --judge resemblyzer --require-match",
]

PIPE = "-"
"""Stands for standard input and output."""

STANDARD_INPUT = "standard input"

MATCH_LEGEND = (
    "tse: the number after a file is the match, 0 to 1: how much the output sounds "
    "like the enrollment; below {threshold:.2f} the person may be absent. "
)
OWN_LEGEND = "It does not tell where another person was taken for this one: listen."
JUDGE_LEGEND = "Or another may have been taken for this one; {judge} judges."

NO_MATCH = 3
"""The exit code where an output is not the person by --require-match."""

MOST_NAMED = 10
"""Files of which a message gives the names."""


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add(
        "mixture",
        nargs="+",
        help="recordings and folders of them, in any format that libsndfile reads, or "
        "ffmpeg where it is installed (m4a, mp4, webm, ...); - reads WAV from standard "
        "input",
    )
    person = parser.add_mutually_exclusive_group(required=True).add_argument
    person(
        "-e",
        "--enrollment",
        nargs="+",
        metavar="FILE",
        type=existing_file,
        help="speech of that person alone, a few seconds; several files are joined",
    )
    person(
        "--voice",
        metavar="FILE",
        type=existing_file,
        help="that person's voice, which --save-voice has written for this model",
    )
    add(
        "--save-voice",
        metavar="FILE",
        type=Path,
        help="also write the voice that the enrollment gives, to be taken for it later",
    )
    add(
        "-o",
        "--output",
        help="file to write, or for several recordings the folder to fill; by default "
        "NAME_target.wav, or for a folder NAME_target/, in the current folder; - "
        "(default for -) writes WAV to standard output",
    )
    add(
        "--residual",
        metavar="FILE",
        help="also write everybody else, the recording minus the person's speech: a "
        "file, or for several recordings a folder",
    )
    add(
        "--keep-partial",
        action="store_true",
        help="after Ctrl+C, write what is done of the recording, which is its start",
    )
    add(
        "--channels",
        choices=("mix", "each", "peers"),
        default="mix",
        help="average the channels of a recording (default), extract from each, or "
        "take each for a recording of its own, as with --together",
    )
    add(
        "--together",
        action="store_true",
        help="the recordings are of one moment, such as those of several phones: they "
        "lend to each other and give one output, on the time line of the first",
    )
    add_judge(add, "let the match score be that of a judge")
    add(
        "--require-match",
        action="store_true",
        help="end with exit code 3 if an output is, by its match score, not that "
        "person; it is written all the same",
    )
    add_model_options(add)


def run(options):
    """Extracts from all that can be read."""
    from tqdm import tqdm

    if options.together and options.channels == "each":
        options.parser.error("--together gives one output: not with --channels each")
    if options.judge and options.voice:
        options.parser.error("--judge hears the enrollment: give -e, not --voice")
    enrollments = options.enrollment or [options.voice]
    jobs = plan(
        options.mixture,
        enrollments,
        options.output,
        options.residual,
        options.save_voice,
        options.together,
    )
    model, judge = load_interface(options), load_judge(options)
    scorer = _scorer(options, model, judge)
    if judge is not None:
        judge = judge.enroll_files(enrollments)
    if options.voice is None:
        voice = model.encode_speaker_files(enrollments)
    else:
        voice = model.load_voice(options.voice)
    if options.save_voice is not None:
        model.save_voice(voice, options.save_voice)
    told, failures, doubtful = False, 0, False
    # On terminals alone (None).
    disable = None if len(jobs) > 1 else True
    with tqdm(jobs, unit="file", disable=disable, leave=False) as bar:
        for job in bar:
            try:
                settings = options.channels, options.keep_partial, judge
                match, present, alignment = extract(model, voice, job, *settings)
            except (ValueError, OSError, MemoryError) as error:
                failures += 1
                tqdm.write(f"tse: error: {_reason(job, error)}", file=sys.stderr)
                continue
            for recording in alignment:
                tqdm.write(printable(f"tse: {recording}"), file=sys.stderr)
            if match is not None and not told:
                told = True
                tqdm.write(printable(match_legend(scorer)), file=sys.stderr)
            columns = [PIPE if job.output is None else printable(str(job.output))]
            if match is not None:
                columns.append(f"{match:.2f}")
            if present is not None:
                columns.append(f"present {present:.0%}")
            # A judge is asked to choose between these signs: then its own decides.
            nobody = present == 0 and judge is None
            if options.require_match and (match < scorer.threshold or nobody):
                doubtful = True
                doubt = f"tse: {columns[0]}: is not that person, by its match"
                tqdm.write(doubt, file=sys.stderr)
            tqdm.write(
                "\t".join(columns),
                # Audio is on standard output.
                file=sys.stderr if job.output is None else sys.stdout,
            )
    if failures and len(jobs) > 1:
        print(f"tse: {failures} of {len(jobs)} files failed", file=sys.stderr)
    if failures:
        return 1
    return NO_MATCH if doubtful else 0


def _scorer(options, model, judge):
    """What the match scores of this command come from; None if there are none."""
    if judge is not None:
        return judge.scorer_of(model)
    if model.tells_match:
        return model.mods.match_scorer
    if options.require_match:
        raise DataError(
            f"{options.model}: tells no match score, so that none can be required: "
            "`tse calibrate` makes one"
        )
    return None


def match_legend(scorer):
    """Tells people what a match score says.

    Arguments
    ---------
    scorer : torch.nn.Module
        The model's own, or a judge's.

    Returns
    -------
    str
    """
    legend = MATCH_LEGEND.format(threshold=scorer.threshold)
    judge = getattr(scorer, "judge", None)
    return legend + (JUDGE_LEGEND.format(judge=judge) if judge else OWN_LEGEND)


class Job(NamedTuple):
    """What is to be done with one recording, or several of one moment."""

    mixture: Path | None
    """The recording, the first of several; None for standard input."""
    output: Path | None
    """The file to write; None for standard output."""
    residual: Path | None
    """The file for everybody else; None if it is not wanted."""
    others: tuple = ()
    """Recordings that lend to the first."""


def plan(inputs, enrollments, output=None, residual=None, voice=None, together=False):
    """Finds the recordings, and chooses the files to write for each.

    Arguments
    ---------
    inputs : list of str
        Files, folders, which are searched with all folders in them, or `PIPE` alone.
    enrollments : list of (str or pathlib.Path)
        Files to keep.
    output : str, optional
        A file, a folder or `PIPE`, as `--help` tells.
    residual : str, optional
        A file or a folder.
    voice : pathlib.Path, optional
        One more file to write.
    together : bool
        Whether the recordings are of one moment and give one output.

    Returns
    -------
    list of Job

    Raises
    ------
    DataError
        If a folder holds no audio, or a file that would be written has no format's
        suffix, is an input, lies in a folder of recordings, or would be written twice.
    """
    folders = [Path(text).resolve() for text in inputs if os.path.isdir(text)]
    several = len(inputs) > 1 or bool(folders)
    if several and PIPE in (*inputs, *(() if together else (output, residual))):
        raise DataError(f"{PIPE}: a pipe is for one recording alone; give files")
    if together and folders:
        raise DataError(
            f"{folders[0]}: is a folder; --together takes the files of one moment"
        )
    others = tuple(map(Path, inputs[1:])) if together else ()
    if together:
        inputs, several = inputs[:1], False
    jobs = [
        Job(
            mixture,
            default if output is None else _place(output, name, several),
            None if residual is None else _place(residual, name, several),
            others,
        )
        for mixture, name, default in _find(inputs)
    ]
    _check_places(jobs, folders, enrollments, voice)
    return jobs


def extract(model, voice, job, channels, keep_partial=False, judge=None):
    """Extracts from one recording.

    Arguments
    ---------
    model : speechbrain_peer.TargetSpeechExtraction
        What extracts.
    voice : torch.Tensor or Frames
        The person's.
    job : Job
        Files to read and write.
    channels : str
        `mix`, `each` or `peers`.
    keep_partial : bool
        Whether Ctrl+C leaves what is done in the files.
    judge : speechbrain_peer.inference.judges.EnrolledJudge, optional
        Who tells the match score in place of the model.

    Returns
    -------
    match : float or None
        The match score; None from a model that tells none.
    present : float or None
        Share of the seconds in which the person speaks, in any channel; None from a
        model that does not tell.
    alignment : list of speechbrain_peer.inference.together.Alignment
        Of the other recordings.
    """
    from speechbrain_peer.inference.presence import present_share

    with _readable(job.mixture) as mixture, _writable(job.output) as output:
        _, match, *presence, alignment = model.extract_file(
            [mixture, *job.others],
            embeddings=voice,
            output_path=output,
            residual_path=job.residual,
            channels=channels,
            return_match=True,
            return_presence=model.tells_presence,
            return_alignment=True,
            keep_partial=keep_partial,
            judge=judge,
        )
    return match, present_share(*presence) if presence else None, alignment


def _find(inputs):
    """Yields each recording with its name in a folder to fill, and its default output.

    Of standard input, the recording and the default output are None.
    """
    for text in inputs:
        path = Path(text)
        if text == PIPE:
            yield None, Path("target.wav"), None
        elif os.path.isdir(text):
            folder = path.resolve().name
            for name in _audio_files(path):
                place = _with_written_suffix(name)
                yield (
                    path / name,
                    place if len(inputs) == 1 else folder / place,
                    f"{folder}_target" / place,
                )
        else:
            default = Path(f"{path.stem}_target.wav")
            yield path, _with_written_suffix(Path(path.name)), default


def _audio_files(folder):
    """The recordings in a folder, relative to it; tells which files are none."""
    from speechbrain_peer.utils.formats import is_audio

    names = sorted(
        Path(parent, name).relative_to(folder)
        for parent, _, names in os.walk(folder)
        for name in names
    )
    others = [name for name in names if not is_audio(name)]
    if len(others) == len(names):
        raise DataError(f"{folder}: holds no audio files")
    if others:
        print(
            one_line(f"tse: skipped as not audio: {_listed(others)}"), file=sys.stderr
        )
    return [name for name in names if is_audio(name)]


def _with_written_suffix(name):
    """The name itself, or with .wav after it where its format is only read."""
    from speechbrain_peer.inference.writing import output_suffixes

    written = name.suffix.lower() in output_suffixes()
    return name if written else name.with_name(f"{name.name}.wav")


def _place(given, name, several):
    """The file that -o or --residual stands for; None for a pipe."""
    if given == PIPE:
        return None
    fill = several or given.endswith(os.sep) or os.path.isdir(given)
    return Path(given, name) if fill else Path(given)


def _check_places(jobs, folders, enrollments, voice):
    """Refuses, before any work, files that could not be or must not be written."""
    from speechbrain_peer.inference.writing import check_output

    mixtures = [path for job in jobs for path in (job.mixture, *job.others) if path]
    read = {_identity(path) for path in (*mixtures, *enrollments)} - {None}
    written = set()
    outputs = [path for job in jobs for path in (job.output, job.residual) if path]
    for path in outputs:
        check_output(path, [])
    for path in [*outputs, *([] if voice is None else [voice])]:
        place = path.resolve()
        if any(place.is_relative_to(folder) for folder in folders):
            raise DataError(
                f"{path}: lies in the folder of recordings; choose another with -o"
            )
        if _identity(path) in read:
            raise DataError(f"{path}: is an input; give the output another name")
        if place in written:
            raise DataError(
                f"{path}: would be written twice; give recordings of one name one "
                "after the other"
            )
        written.add(place)


def _identity(path):
    """What one file has in common under all its names; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def _readable(path):
    """What `extract_file` reads; standard input is copied to the disk first."""
    from speechbrain_peer.inference.recordings import Recording
    from speechbrain_peer.utils.decoding import spool

    if path is not None:
        yield path
        return
    with spool(sys.stdin.buffer, STANDARD_INPUT) as file:
        yield Recording.open(STANDARD_INPUT, file)


@contextmanager
def _writable(path):
    """What `extract_file` writes; a WAV header is finished before it goes to a pipe."""
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "target.wav")
        yield path
        with open(path, "rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _reason(job, error):
    """An error in one line that names the recording."""
    name = STANDARD_INPUT if job.mixture is None else str(job.mixture)
    text = str(error) or type(error).__name__
    return one_line(text if name in text else f"{name}: {text}")


def _listed(names):
    """The first names of a list, and how many more there are."""
    text = ", ".join(map(str, names[:MOST_NAMED]))
    more = len(names) - MOST_NAMED
    return f"{text} and {more} more" if more > 0 else text
