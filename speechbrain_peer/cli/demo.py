"""Serves a page to extract and listen in the browser, on this computer alone."""

from speechbrain_peer.inference import TargetSpeechExtraction
from speechbrain_peer.listening_page import build_page, import_gradio, launch_page
from speechbrain_peer.loading import DEFAULT_MODEL
from speechbrain_peer.runtime import keep_freed_memory


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add(
        "-m",
        "--model",
        default=DEFAULT_MODEL,
        help="folder of an exported model, a model of this package (default: "
        "%(default)s), or one of the Hugging Face Hub",
    )
    add("--device", default="cpu", help="such as cpu (default) or cuda:0")
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
