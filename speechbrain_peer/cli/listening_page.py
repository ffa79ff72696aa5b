"""A page in the browser: give a recording and a voice, hear and see what is extracted.

It is made with gradio, an optional extra, which is imported only when a page is built.
"""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from speechbrain_peer.cli.access import LARGEST_UPLOAD, LocalOnly
from speechbrain_peer.cli.page_example import make_example
from speechbrain_peer.cli.page_files import ShownFiles, temporary_files_inside
from speechbrain_peer.evaluation.figures import extraction_figure
from speechbrain_peer.inference.presence import present_share
from speechbrain_peer.inference.recordings import BLOCK, read_start, resample_blocks

LONGEST_DRAWN = 60.0
"""Seconds of a recording that are drawn: of more, nothing could be seen."""

# The match score counts both outcomes alike: from here on, a match is the likelier.
_LIKELY_PERCENT = 50

_INTRODUCTION = """\
# Target speech extraction
Give a recording of several talkers, and a few seconds of one of them alone: this
person's speech is extracted. Nothing leaves this computer; recordings are deleted when
they are replaced, and when this page is closed.

Model **{name}**, {rate} Hz: it hears and gives sound up to {band:g} kHz."""


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


@contextmanager
def serve_page(model, name, port=None):
    """Serves the page to this computer alone.

    Arguments
    ---------
    model : speechbrain_peer.inference.interface.TargetSpeechExtraction
        What extracts.
    name : str
        The model's.
    port : int, optional
        By default the first free one from 7860.

    Yields
    ------
    address : str
        For the browser, until the context ends; nothing is left on the disk then.

    Raises
    ------
    OSError
        If the port is taken.
    """
    from starlette.middleware import Middleware

    with temporary_files_inside() as folder:
        page = build_page(model, name, folder)
        try:
            _, address, _ = page.launch(
                server_name="127.0.0.1",
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                footer_links=[],
                run_history=False,  # the browser would keep the recordings
                max_file_size=LARGEST_UPLOAD,
                app_kwargs={"middleware": [Middleware(LocalOnly)]},
            )
            yield address
        finally:
            page.close(verbose=False)


def build_page(model, name, folder):
    """Builds the page.

    Arguments
    ---------
    model : speechbrain_peer.inference.interface.TargetSpeechExtraction
        What extracts.
    name : str
        The model's.
    folder : pathlib.Path
        Where to keep an example.

    Returns
    -------
    gradio.Blocks
    """
    gradio = import_gradio()
    shown, rate = ShownFiles(), model.hparams.sample_rate

    def extract(mixture, voice, more, request: gradio.Request):
        voices = [path for path in (voice, *(more or ())) if path is not None]
        try:
            if mixture is None:
                raise ValueError("The recording of several talkers is missing")
            if not voices:
                raise ValueError("The recording of the voice is missing")
            # Beside the upload, where gradio serves files.
            output_folder = tempfile.mkdtemp(dir=Path(mixture).parent)
            output = Path(output_folder, f"{Path(mixture).stem}_extracted.wav")
            told = extract_and_draw(model, mixture, voices, output)
            shown.show(request.session_hash, "extracted", [output])
            return output, *told
        except (ValueError, OSError) as error:
            message = _without_folders(str(error), mixture, *voices)
            # It stays until it is read.
            raise gradio.Error(message, duration=None, print_exception=False) from error

    def show_given(mixture, voice, more, request: gradio.Request):
        paths = (mixture, voice, *(more or ()))
        shown.show(request.session_hash, "given", filter(None, paths))

    def close(request: gradio.Request):
        shown.close(request.session_hash)

    def audio(label):
        return gradio.Audio(label=label, type="filepath", buttons=["download"])

    with gradio.Blocks(
        title="Target speech extraction", analytics_enabled=False
    ) as page:
        introduction = _INTRODUCTION.format(name=name, rate=rate, band=rate / 2000)
        gradio.Markdown(introduction)
        with gradio.Row():
            mixture = audio("Recording of several talkers")
            with gradio.Column():
                voice = audio("Voice of one of them, alone")
                more = gradio.File(
                    label="More recordings of this voice (optional)",
                    file_count="multiple",
                    file_types=["audio"],
                    height=120,
                )
        inputs = [mixture, voice, more]
        with gradio.Row():
            button = gradio.Button("Extract", variant="primary")
            try:
                example = make_example(folder)
            except (ImportError, RuntimeError):
                pass  # eSpeak NG is an optional extra
            else:
                # Made voices are hard for a network that has heard people only.
                gradio.Button("Take the example (two made voices)").click(
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
        page.unload(close)
    return page


def extract_and_draw(model, mixture_path, voice_paths, output_path):
    """Extracts, and tells in words and in a picture what came out.

    Arguments
    ---------
    model : speechbrain_peer.inference.interface.TargetSpeechExtraction
        What extracts.
    mixture_path : str or pathlib.Path
        Recording of several talkers.
    voice_paths : str, pathlib.Path or list of these
        One of them alone.
    output_path : str or pathlib.Path
        The file to write.

    Returns
    -------
    told : str
        What the match score says, and for how long the voice was there.
    figure : matplotlib.figure.Figure
        Spectrograms of mixture and estimate.
    caption : str
        What the picture does not show; may be empty.

    Raises
    ------
    ValueError, OSError
        As `TargetSpeechExtraction.extract_file`.
    """
    _, match, *presence = model.extract_file(
        mixture_path,
        voice_paths,
        output_path=output_path,
        return_match=True,
        return_presence=model.tells_presence,
    )
    told = [describe_match(match), *map(describe_presence, presence)]
    most = model.hparams.sample_rate
    (mixture, drawn_rate, rate), (estimate, *_) = (
        _start(path, most) for path in (mixture_path, output_path)
    )
    figure = extraction_figure(mixture, estimate, drawn_rate)
    return "\n\n".join(told), figure, _caption(output_path, drawn_rate, rate)


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


def _without_folders(message, *paths):
    """Names files as the user does, without the folders they were uploaded to."""
    for path in filter(None, paths):
        message = message.replace(path, Path(path).name)
    return message
