"""Extracts one person's speech from recordings, files and whole folders."""

import shutil
import sys
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

from speechbrain_peer.cli.extract_jobs import PIPE, plan
from speechbrain_peer.cli.options import (
    add_judge,
    add_model_options,
    choose_model,
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
    "tse extract german.wav french.wav --together -e anna.wav -o anna_only.wav",
    "tse extract phone1.wav phone2.wav --together -e anna.wav -o anna_only.wav",
    "tse extract meeting.wav -e anna.wav --save-voice anna.voice",
    "tse extract another.wav --voice anna.voice",
    "tse extract day1/ -e anna.wav -m my-model --judge resemblyzer --require-match",
]

STANDARD_INPUT = "standard input"

MATCH_LEGEND = (
    "tse: the number after a file is the match, 0 to 1: how much the output sounds "
    "like the enrollment; below {threshold:.2f} the person may be absent"
)
OWN_LEGEND = ". It does not tell where another person was taken for this one: listen."
JUDGE_LEGEND = ", or another taken for this one, which {judge} does not always tell."

NO_MATCH = 3
"""The exit code where an output is not the person by --require-match."""


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
        help="the recordings are of one moment and give one output, on the time line "
        "of the first: a talk under the voices of several interpreters, which lend to "
        "each other, or phones in a room, which become a beam",
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
    if options.model is None:
        from speechbrain_peer.inference.recordings import lowest_rate

        if jobs[0].mixture is None:  # alone, and its rate has to be known
            jobs = [jobs[0]._replace(mixture=_standard_input())]
        recordings = [x for job in jobs for x in (job.mixture, *job.others)]
        together = options.together or options.channels == "peers"
        choose_model(options, lowest_rate(recordings), together=together)
    model, judge = load_interface(options), load_judge(options)
    scorer = _scorer(options, model, judge)
    if judge is not None:
        judge = judge.enroll_files(enrollments, model.hparams.sample_rate)
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


@contextmanager
def _readable(mixture):
    """What `extract_file` reads."""
    if isinstance(mixture, Path):
        yield mixture
        return
    with closing(mixture or _standard_input()) as recording:
        yield recording


def _standard_input():
    """Standard input, copied to the disk first."""
    from speechbrain_peer.inference.recordings import Recording
    from speechbrain_peer.utils.decoding import spool

    file = spool(sys.stdin.buffer, STANDARD_INPUT)
    try:
        return Recording.open(STANDARD_INPUT, file)
    except BaseException:
        file.close()
        raise


@contextmanager
def _writable(path):
    """What `extract_file` writes; a WAV header is finished before it goes to a pipe."""
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "target.wav")
        try:
            yield path
        finally:
            # Also the beginning that `--keep-partial` leaves.
            if path.exists():
                with open(path, "rb") as file:
                    shutil.copyfileobj(file, sys.stdout.buffer)
                sys.stdout.buffer.flush()


def _reason(job, error):
    """An error in one line that names the recording."""
    name = str(job.mixture) if isinstance(job.mixture, Path) else STANDARD_INPUT
    text = str(error) or type(error).__name__
    return one_line(text if name in text else f"{name}: {text}")
