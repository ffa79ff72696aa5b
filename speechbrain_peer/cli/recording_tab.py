"""The page's tab for recordings: hear and see what is extracted of one."""

import tempfile
from pathlib import Path

import numpy as np
import soundfile

from speechbrain_peer.cli.page_example import make_example
from speechbrain_peer.cli.page_files import without_folders
from speechbrain_peer.evaluation.figures import extraction_figure
from speechbrain_peer.inference.presence import present_share
from speechbrain_peer.inference.recordings import BLOCK, read_start, resample_blocks
from speechbrain_peer.peer_learning.predictors import can_lend

LONGEST_DRAWN = 60.0
"""Seconds of a recording that are drawn: of more, nothing could be seen."""

_INTRODUCTION = """\
Give a recording of several talkers, and a few seconds of one of them alone: this
person's speech is extracted."""


def build_recording_tab(gradio, shown, single, together, folder):
    """Fills the tab that is being made.

    Arguments
    ---------
    gradio : module
    shown : speechbrain_peer.cli.page_files.ShownFiles
        What keeps the recordings.
    single : speechbrain_peer.TargetSpeechExtraction
        What extracts from one recording.
    together : speechbrain_peer.TargetSpeechExtraction
        What extracts from several of one moment; they are not asked for where it
        cannot lend.
    folder : pathlib.Path
        Where to keep an example.
    """

    def extract(mixture, others, voice, more, request: gradio.Request):
        voices = [path for path in (voice, *(more or ())) if path is not None]
        others = others or ()
        try:
            if mixture is None:
                raise ValueError("The recording of several talkers is missing")
            if not voices:
                raise ValueError("The recording of the voice is missing")
            # Beside the upload, where gradio serves files.
            output_folder = tempfile.mkdtemp(dir=Path(mixture).parent)
            output = Path(output_folder, f"{Path(mixture).stem}_extracted.wav")
            model = together if others else single
            told, *drawn = extract_and_draw(model, [mixture, *others], voices, output)
            shown.show(request.session_hash, "extracted", [output])
            return output, without_folders(told, *others), *drawn
        except (ValueError, OSError) as error:
            message = without_folders(str(error), mixture, *others, *voices)
            # It stays until it is read.
            raise gradio.Error(message, duration=None, print_exception=False) from error

    def show_given(mixture, others, voice, more, request: gradio.Request):
        paths = (mixture, voice, *(others or ()), *(more or ()))
        shown.show(request.session_hash, "given", filter(None, paths))

    def audio(label):
        return gradio.Audio(label=label, type="filepath", buttons=["download"])

    def files(label, visible=True):
        return gradio.File(
            label=label,
            file_count="multiple",
            file_types=["audio"],
            height=120,
            visible=visible,
        )

    lends = can_lend(together.mods)
    gradio.Markdown(_INTRODUCTION)
    with gradio.Row():
        with gradio.Column():
            mixture = audio("Recording of several talkers")
            others = files("More recordings of the same moment (optional)", lends)
        with gradio.Column():
            voice = audio("Voice of one of them, alone")
            more = files("More recordings of this voice (optional)")
    inputs = [mixture, others, voice, more]
    with gradio.Row():
        button = gradio.Button("Extract", variant="primary")
        try:
            example = make_example(folder, again=lends)
        except (ImportError, RuntimeError):
            pass  # eSpeak NG is an optional extra
        else:
            # Made voices are hard for a network that has heard people only.
            gradio.Button("Take the example (made voices)").click(
                lambda: (*example, None), None, inputs, show_progress="hidden"
            )
    outputs = [
        gradio.Audio(label="Extracted", interactive=False, buttons=["download"]),
        gradio.Markdown(),
        gradio.Plot(format="png", show_label=False),  # it would hide the axis
        gradio.Markdown(),
    ]
    button.click(extract, inputs, outputs)
    for component in inputs:
        component.change(show_given, inputs, None, show_progress="hidden")


def extract_and_draw(model, mixture_paths, voice_paths, output_path):
    """Extracts, and tells in words and in a picture what came out.

    Arguments
    ---------
    model : speechbrain_peer.inference.interface.TargetSpeechExtraction
        What extracts.
    mixture_paths : list of (str or pathlib.Path)
        Recording of several talkers, and others of the same moment.
    voice_paths : str, pathlib.Path or list of these
        One of them alone.
    output_path : str or pathlib.Path
        The file to write.

    Returns
    -------
    told : str
        What the match score says, for how long the voice was there, and where the
        other recordings lie in time.
    figure : matplotlib.figure.Figure
        Spectrograms of mixture and estimate.
    caption : str
        What the picture does not show; may be empty.

    Raises
    ------
    ValueError, OSError
        As `TargetSpeechExtraction.extract_file`.
    """
    _, match, *presence, alignment = model.extract_file(
        mixture_paths,
        voice_paths,
        output_path=output_path,
        return_match=True,
        return_presence=model.tells_presence,
        return_alignment=True,
    )
    threshold = model.mods.match_scorer.threshold if model.tells_match else None
    told = [describe_match(match, threshold), *map(describe_presence, presence)]
    told += map(str, alignment)
    most = model.hparams.sample_rate
    (mixture, drawn_rate, rate), (estimate, *_) = (
        _start(path, most) for path in (mixture_paths[0], output_path)
    )
    figure = extraction_figure(mixture, estimate, drawn_rate)
    return "\n\n".join(told), figure, _caption(output_path, drawn_rate, rate)


def describe_match(match, threshold):
    """Tells in words what a match score means.

    Arguments
    ---------
    match : float or None
        In [0, 1], or None from a model that has not been calibrated.
    threshold : float or None
        A lower one is to be doubted.

    Returns
    -------
    str

    Example
    -------
    >>> describe_match(0.93, threshold=0.5)
    'Match: 93 % - likely this voice'
    """
    if match is None:
        return "Match: unknown - this model tells no match score"
    percent = round(100 * match)
    if match < threshold:
        return f"Match: {percent} % - low: the voice may not be in this recording"
    return f"Match: {percent} % - likely this voice"


def describe_presence(presence):
    """Tells in words how long the voice is there.

    Arguments
    ---------
    presence : torch.Tensor
        Of every second, as `TargetSpeechExtraction.extract_file` gives it.

    Returns
    -------
    str

    Example
    -------
    >>> import torch
    >>> describe_presence(torch.tensor([True, False, False, False]))
    'Present: 25 % of the time'
    """
    return f"Present: {100 * present_share(presence):.0f} % of the time"


def _start(path, highest_rate):
    """The start of a file, (time,), channels averaged, its rate and the file's."""
    blocks, rate = read_start(path, LONGEST_DRAWN)
    drawn_rate = min(rate, highest_rate)
    blocks = resample_blocks(blocks, rate, drawn_rate)
    return np.concatenate(list(blocks))[:, 0], drawn_rate, rate


def _caption(path, drawn_rate, rate):
    """Tells what is not drawn, and what a player would clip."""
    sentences = []
    if drawn_rate < rate:
        sentences.append(
            f"The model works up to {drawn_rate / 2000:g} kHz: above, the recording is "
            "not heard, and nothing is extracted."
        )
    if soundfile.info(path).duration > LONGEST_DRAWN:
        sentences.append(f"Only the first {LONGEST_DRAWN:.0f} s are drawn.")
    peak = max(np.abs(block).max() for block in soundfile.blocks(path, BLOCK))
    if peak > 1:
        sentences.append(
            f"The extracted speech exceeds full scale by {20 * np.log10(peak):.1f} dB: "
            "the file keeps that, but a player clips it unless its volume is turned "
            "down."
        )
    return " ".join(sentences)
