"""Serves applications: live streams over WebSocket, files and voices over HTTP."""

import os

from speechbrain_peer.cli.options import (
    add_model_options,
    choose_model,
    load_interface,
    positive_number,
    whole_number,
)

EXAMPLES = [
    "tse serve",
    "tse serve -m my-causal-model --host 0.0.0.0 --sessions 20",
]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN_VARIABLE = "TSE_TOKEN"


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add(
        "--host",
        default=LOOPBACK[0],
        help="address to serve at (default: %(default)s, this computer alone); at "
        "others every request needs the token in the environment variable "
        f"{TOKEN_VARIABLE}, or the one that is made and shown",
    )
    of_port = "default: %(default)s"
    add("--port", type=whole_number(1, 65535), default=8765, help=of_port)
    add(
        "--sessions",
        type=whole_number(1),
        default=4,
        help="live streams and files at once; more are refused (default: %(default)s; "
        "benchmark.serve measures how many a machine holds)",
    )
    add(
        "--minutes",
        type=positive_number,
        default=120.0,
        help="longest stream or file (default: %(default)g)",
    )
    add(
        "--megabytes",
        type=whole_number(1),
        default=200,
        help="largest file (default: %(default)s)",
    )
    add(
        "--threads",
        type=whole_number(1),
        default=1,
        help="that extract from streams, each from one at a time; files have one of "
        "their own (default: %(default)s)",
    )
    add_model_options(add)


def run(options):
    """Serves until it is interrupted."""
    import torch

    from speechbrain_peer.cli.limits import Limits
    from speechbrain_peer.cli.server import build_app, import_server

    uvicorn = import_server()  # before a model is loaded in vain
    token = os.environ.get(TOKEN_VARIABLE) or None  # an empty one is none
    if token is None and options.host not in LOOPBACK:
        import secrets

        token = secrets.token_urlsafe(24)
        print(f"token: {token}", flush=True)
    choose_model(options, live=True)
    model = load_interface(options)
    torch.set_num_threads(1)
    limits = Limits(
        sessions=options.sessions,
        seconds=60 * options.minutes,
        bytes=options.megabytes << 20,
    )
    app = build_app(model, limits, token, options.threads)
    print(f"http://{options.host}:{options.port} (Ctrl+C ends it)", flush=True)
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        ws_max_size=limits.message,
        log_level="warning",
        access_log=False,  # who asked for what is nobody's business
        timeout_graceful_shutdown=1,
    )
    return 0
