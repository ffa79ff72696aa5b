"""A page in the browser: give a recording and a voice, hear and see what is extracted.

It is made with gradio, an optional extra, which is imported only when a page is built.
"""

import tempfile
from pathlib import Path

import numpy as np
import soundfile

from speechbrain_peer.evaluation.figures import extraction_figure
from speechbrain_peer.inference.recordings import BLOCK, read_start

LONGEST_DRAWN = 60.0
"""Seconds of a recording that are drawn: of more, nothing could be seen."""

# The match score counts both outcomes alike: from here on, a match is the likelier.
_LIKELY_PERCENT = 50

# Recordings of people: files go when the page is closed, or after a day (seconds).
_DELETE_EVERY, _DELETE_AFTER = 3600, 86400

_INTRODUCTION = """\
# Target speech extraction
Give a recording of several talkers, and a few seconds of one of them alone: this
person's speech is extracted. Nothing leaves this computer."""


def import_gradio():
    """Imports gradio.

    Returns
    -------
    module

    Raises
    ------
    ValueError
        If it is not installed; the message tells how to install it.
    """
    try:
        import gradio
    except ImportError as error:
        raise ValueError(
            "gradio is not installed, and the listening page needs it: "
            'pip install "speechbrain-peer[page]"'
        ) from error
    return gradio


def build_page(model):
    """Builds the page.

    Arguments
    ---------
    model : speechbrain_peer.inference.interface.TargetSpeechExtraction
        What extracts.

    Returns
    -------
    gradio.Blocks
    """
    gradio = import_gradio()

    def extract(mixture, voice):
        try:
            if mixture is None:
                raise ValueError("The recording of several talkers is missing")
            if voice is None:
                raise ValueError("The recording of the voice is missing")
            # Beside the upload, where gradio serves files and deletes them.
            folder = tempfile.mkdtemp(dir=Path(mixture).parent)
            output = Path(folder, f"{Path(mixture).stem}_extracted.wav")
            return output, *extract_and_draw(model, mixture, voice, output)
        except (ValueError, OSError) as error:
            message = _without_folders(str(error), mixture, voice)
            # It stays until it is read.
            raise gradio.Error(message, duration=None, print_exception=False) from error

    def audio(label):
        return gradio.Audio(label=label, type="filepath", buttons=["download"])

    with gradio.Blocks(
        title="Target speech extraction",
        analytics_enabled=False,
        delete_cache=(_DELETE_EVERY, _DELETE_AFTER),
    ) as page:
        gradio.Markdown(_INTRODUCTION)
        with gradio.Row():
            inputs = [
                audio("Recording of several talkers"),
                audio("Voice of one of them, alone"),
            ]
        button = gradio.Button("Extract", variant="primary")
        outputs = [
            gradio.Audio(label="Extracted", interactive=False, buttons=["download"]),
            gradio.Markdown(),
            gradio.Plot(format="png", show_label=False),  # it would hide the axis
            gradio.Markdown(),
        ]
        button.click(extract, inputs, outputs)
    return page


def launch_page(page, port=None):
    """Serves the page to this computer alone, without waiting for its end.

    Arguments
    ---------
    page : gradio.Blocks
        From `build_page`.
    port : int, optional
        By default the first free one from 7860.

    Returns
    -------
    str
        The address.

    Raises
    ------
    OSError
        If the port is taken.
    """
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        run_history=False,  # the browser would keep the recordings
    )
    return address


def extract_and_draw(model, mixture_path, voice_path, output_path):
    """Extracts, and tells in words and in a picture what came out.

    Arguments
    ---------
    model : speechbrain_peer.inference.interface.TargetSpeechExtraction
        What extracts.
    mixture_path : str or pathlib.Path
        Recording of several talkers.
    voice_path : str or pathlib.Path
        One of them alone.
    output_path : str or pathlib.Path
        The file to write.

    Returns
    -------
    match : str
        What the match score says.
    figure : matplotlib.figure.Figure
        Spectrograms of mixture and estimate.
    caption : str
        What the picture does not show; may be empty.

    Raises
    ------
    ValueError, OSError
        As `TargetSpeechExtraction.extract_file`.
    """
    _, match = model.extract_file(
        mixture_path, voice_path, output_path=output_path, return_match=True
    )
    (mixture, sample_rate), (estimate, _) = map(_start, (mixture_path, output_path))
    figure = extraction_figure(mixture, estimate, sample_rate)
    return describe_match(match), figure, _caption(output_path)


def describe_match(match):
    """Tells in words what a match score means.

    Arguments
    ---------
    match : float or None
        In [0, 1], or None from a model that has not been calibrated.

    Returns
    -------
    str

    Example
    -------
    >>> describe_match(0.93)
    'Match: 93 % - likely this voice'
    """
    if match is None:
        return "Match: unknown - this model tells no match score"
    percent = round(100 * match)
    if percent < _LIKELY_PERCENT:
        return f"Match: {percent} % - low: the voice may not be in this recording"
    return f"Match: {percent} % - likely this voice"


def _start(path):
    """The start of a file, (time,), channels averaged, and its rate."""
    blocks, sample_rate = read_start(path, LONGEST_DRAWN)
    return np.concatenate(blocks)[:, 0], sample_rate


def _caption(path):
    """Tells what is not drawn, and what a player would clip."""
    sentences = []
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


def _without_folders(message, *paths):
    """Names files as the user does, without the folders they were uploaded to."""
    for path in filter(None, paths):
        message = message.replace(path, Path(path).name)
    return message
