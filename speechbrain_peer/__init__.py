"""Target speech extraction with peer learning, for SpeechBrain."""
