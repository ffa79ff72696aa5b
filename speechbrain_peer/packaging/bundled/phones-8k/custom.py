"""The interface, for SpeechBrain's foreign_class."""

from speechbrain_peer import TargetSpeechExtraction  # noqa: F401
