"""Serves a page to extract and listen in the browser, on this computer alone."""

import threading

from speechbrain_peer.cli.options import (
    add_model_options,
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
    from speechbrain_peer.cli.listening_page import (
        build_page,
        import_gradio,
        launch_page,
    )

    import_gradio()  # before a model is loaded in vain
    page = build_page(load_interface(options))
    print(f"{launch_page(page, options.port)} (Ctrl+C ends it)", flush=True)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)
