"""Target speech extraction with peer learning, for SpeechBrain."""

import importlib

__version__ = "0.1.0"


def __getattr__(name):
    # Imported when asked for: PyTorch and SpeechBrain take seconds.
    if name == "TargetSpeechExtraction":
        interface = importlib.import_module("speechbrain_peer.inference.interface")
        return interface.TargetSpeechExtraction
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
