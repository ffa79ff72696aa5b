"""The interface, for SpeechBrain's foreign_class."""

from speechbrain_peer.inference import TargetSpeechExtraction  # noqa: F401
