"""The command `tse`: extraction, and what one does with models, from the shell."""

from speechbrain_peer.packaging.loading import DEFAULT_MODEL


def add_model_options(add):
    """Declares which model a command runs, and where; `add` is `add_argument`."""
    add(
        "-m",
        "--model",
        default=DEFAULT_MODEL,
        help="folder of an exported model, a model of this package (default: "
        "%(default)s), or one of the Hugging Face Hub",
    )
    add("--device", default="cpu", help="such as cpu (default) or cuda:0")
