"""An example for the listening page: two made voices, if eSpeak NG is installed."""

from pathlib import Path

import numpy as np
import soundfile

from speechbrain_peer.data.espeak import open_espeak

# Voice, words in a minute, pitch; the network tells them apart.
TARGET, INTERFERER = ("en-us+f5", 150, 60), ("en-us+m5", 150, 40)
TARGET_TEXT = (
    "The old harbour wakes up early: boats come in, and the market fills with people. "
    "Could you please open the window, and bring some bread on your way back home?"
)
INTERFERER_TEXT = (
    "I have been told that the next train to the mountains leaves in a quarter of an "
    "hour. Could you please open the window, and bring some bread?"
)
ENROLLMENT_TEXT = (
    "Good morning. I would like to read you a few sentences, so that you know what my "
    "voice sounds like."
)
LEVEL = 0.05


def make_example(folder):
    """Writes a recording of two talkers, and one of them alone.

    Arguments
    ---------
    folder : str or pathlib.Path
        Where to write.

    Returns
    -------
    mixture, enrollment : str
        The files.

    Raises
    ------
    ImportError, RuntimeError
        If eSpeak NG is not installed, or does not run here.
    """
    with open_espeak(seed=0) as espeak:
        target, interferer, enrollment = (
            espeak.speak(text, *voice)
            for text, voice in (
                (TARGET_TEXT, TARGET),
                (INTERFERER_TEXT, INTERFERER),
                (ENROLLMENT_TEXT, TARGET),
            )
        )
        rate = espeak.rate
    mixture = np.zeros(max(len(target), len(interferer)))
    for speech in (target, interferer):
        mixture[: len(speech)] += LEVEL / np.sqrt(np.mean(speech**2)) * speech
    paths = []
    for name, samples in (("two talkers", mixture), ("one alone", enrollment)):
        paths.append(str(Path(folder, f"example, {name}.wav")))
        soundfile.write(paths[-1], samples, rate)
    return paths
