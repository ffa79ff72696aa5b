"""Serves a page to extract and listen in the browser, on this computer alone."""

import threading
from pathlib import Path

from speechbrain_peer.cli.options import (
    add_model_options,
    load_interface,
    whole_number,
)

EXAMPLES = ["tse demo", "tse demo --model my-model"]


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
    with serve_page(_load_models(options), options.port) as address:
        print(f"{address} (Ctrl+C ends it)", flush=True)
        threading.Event().wait()


def _load_models(options):
    """The one that is given, or of the package what fits each use of the page."""
    from speechbrain_peer.cli.listening_page import Named, PageModels
    from speechbrain_peer.packaging.catalogue import choose_bundled

    def load(source):
        path, options.model = Path(source), source
        name = path.resolve().name if path.is_dir() else source
        return Named(name, load_interface(options))

    if options.model is not None:
        return PageModels(*[load(options.model)] * 3)
    uses = {}, {"together": True}, {"live": True}
    chosen = [choose_bundled(**use).name for use in uses]
    loaded = {source: load(source) for source in set(chosen)}
    return PageModels(*(loaded[source] for source in chosen))
