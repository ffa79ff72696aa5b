"""A page in the browser: one person's speech of a recording, or of a microphone.

It is made with gradio, an optional extra, which is imported only when a page is built.
"""

from contextlib import contextmanager
from typing import NamedTuple

from speechbrain_peer.cli.access import LARGEST_UPLOAD, LocalOnly
from speechbrain_peer.cli.live_tab import LiveTab
from speechbrain_peer.cli.page_files import ShownFiles, temporary_files_inside
from speechbrain_peer.cli.recording_tab import build_recording_tab
from speechbrain_peer.inference.interface import TargetSpeechExtraction

_INTRODUCTION = """\
# Target speech extraction
Of several talkers one is extracted, whose voice is known from a few seconds alone.
Nothing leaves this computer; recordings are deleted when they are replaced, and when
this page is closed.

{models}"""

_USES = {"single": "", "together": "for several recordings", "live": "for the live tab"}


class Named(NamedTuple):
    """A model, and what it is called."""

    name: str
    model: TargetSpeechExtraction


class PageModels(NamedTuple):
    """What extracts; all may be one."""

    single: Named
    """From one recording."""
    together: Named
    """From several of one moment; one that cannot lend takes none."""
    live: Named
    """From a microphone; one that looks ahead has a tab that tells what it takes."""


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
        import websockets  # noqa: F401  (the live tab's)
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed, and the listening page needs it: "
            'pip install "speechbrain-peer[page]"'
        ) from error
    return gradio


@contextmanager
def serve_page(models, port=None):
    """Serves the page to this computer alone.

    Arguments
    ---------
    models : PageModels
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
        live = LiveTab(models.live.model)
        page = build_page(models, folder, live)
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
                app_kwargs={
                    "middleware": [Middleware(LocalOnly)],
                    "routes": live.routes(),
                },
            )
            yield address
        finally:
            page.close(verbose=False)


def build_page(models, folder, live):
    """Builds the page.

    Arguments
    ---------
    models : PageModels
    folder : pathlib.Path
        Where to keep an example.
    live : speechbrain_peer.cli.live_tab.LiveTab
        The second tab.

    Returns
    -------
    gradio.Blocks
    """
    gradio = import_gradio()
    shown = ShownFiles()

    def close(request: gradio.Request):
        shown.close(request.session_hash)

    with gradio.Blocks(
        title="Target speech extraction", analytics_enabled=False
    ) as page:
        gradio.Markdown(_INTRODUCTION.format(models=describe(models)))
        with gradio.Tab("Recording"):
            single, together = models.single.model, models.together.model
            build_recording_tab(gradio, shown, single, together, folder)
        with gradio.Tab("Live"):
            live.build(gradio, shown, page)
        page.unload(close)
    return page


def describe(models):
    """Tells what extracts, and up to where it hears.

    Arguments
    ---------
    models : PageModels

    Returns
    -------
    str
        Markdown.
    """
    uses = {}
    for use, named in models._asdict().items():
        uses.setdefault(named, []).append(_USES[use])
    lines = []
    for (name, model), of in uses.items():
        use = "" if _USES["single"] in of else f" {' and '.join(of)}"
        rate = model.hparams.sample_rate
        lines.append(
            f"Model **{name}**{use}, {rate} Hz: it hears and gives sound up to "
            f"{rate / 2000:g} kHz."
        )
    return "  \n".join(lines)
