"""Serves a page to extract and listen in the browser, on this computer alone."""

import threading
from pathlib import Path

from speechbrain_peer.cli.options import (
    add_model_options,
    choose_model,
    load_interface,
    whole_number,
)

EXAMPLES = ["tse demo --model my-model"]


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add_model_options(add)
    add(
        "--port",
        type=whole_number(1, 65535),
        help="by default the first free one from 7860",
    )


def run(options):
    """Serves until it is interrupted."""
    from speechbrain_peer.cli.listening_page import import_gradio, serve_page

    import_gradio()  # before a model is loaded in vain
    choose_model(options)
    path = Path(options.model)
    name = path.resolve().name if path.is_dir() else options.model
    with serve_page(load_interface(options), name, options.port) as address:
        print(f"{address} (Ctrl+C ends it)", flush=True)
        threading.Event().wait()
