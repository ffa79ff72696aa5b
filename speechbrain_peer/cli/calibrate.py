"""Lets a model tell how well an estimate matches the enrolled voice."""

from speechbrain_peer.evaluation.calibration import calibrate


def add_arguments(parser):
    """Declares the options."""
    add = parser.add_argument
    add("model", help="folder of an exported model, which is written anew")
    add("manifest", help="of held-out speakers, such as manifests/.../dev.json")
    add("--data_root", default="", help="what {data_root} in the manifest stands for")
    add("--device", default="cpu", help="such as cpu (default) or cuda:0")


def run(options):
    """Calibrates."""
    calibrate(options.model, options.manifest, options.data_root, options.device)
    return 0
