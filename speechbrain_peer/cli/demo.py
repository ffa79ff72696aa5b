"""Serves a page to extract and listen in the browser, on this computer alone."""

from speechbrain_peer.cli import add_model_options
from speechbrain_peer.cli.listening_page import build_page, import_gradio, launch_page
from speechbrain_peer.inference.interface import TargetSpeechExtraction
from speechbrain_peer.utils.runtime import keep_freed_memory


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add_model_options(add)
    add("--port", type=int, help="by default the first free one from 7860")


def run(options):
    """Serves until it is interrupted."""
    import_gradio()  # before a model is loaded in vain
    keep_freed_memory()
    model = TargetSpeechExtraction.from_hparams(
        source=options.model, run_opts={"device": options.device}
    )
    page = build_page(model)
    print(f"{launch_page(page, options.port)} (Ctrl+C ends it)", flush=True)
    page.block_thread()
    return 0
