"""From a mixture and a voice to that talker alone: batches, files, match score."""
