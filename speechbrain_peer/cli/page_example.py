"""An example for the listening page: made voices, if eSpeak NG is installed."""

from pathlib import Path

import numpy as np
import soundfile

from speechbrain_peer.data.espeak import open_espeak

# Voice, words in a minute, pitch; the network tells them apart.
TARGET = ("en-us+f5", 150, 60)
INTERFERERS = ("en-us+m5", 150, 40), ("en-us+m3", 165, 25)
TARGET_TEXT = (
    "The old harbour wakes up early: boats come in, and the market fills with people. "
    "Could you please open the window, and bring some bread on your way back home?"
)
INTERFERER_TEXTS = (
    "I have been told that the next train to the mountains leaves in a quarter of an "
    "hour. Could you please open the window, and bring some bread?",
    "Most of the shops along this street have been closed since the end of summer. My "
    "sister sold newspapers there, and knew every one of her customers by name.",
)
ENROLLMENT_TEXT = (
    "Good morning. I would like to read you a few sentences, so that you know what my "
    "voice sounds like."
)
LEVEL = 0.05


def make_example(folder, again=False):
    """Writes a recording of two talkers, and one of them alone.

    Arguments
    ---------
    folder : str or pathlib.Path
        Where to write.
    again : bool
        Whether to mix the same speech once more, with another talker, such as a talk
        under the voices of two interpreters.

    Returns
    -------
    mixture : str
        The file.
    others : list of str
        The mixture with another talker, if there is one.
    enrollment : str

    Raises
    ------
    ImportError, RuntimeError
        If eSpeak NG is not installed, or does not run here.
    """
    with open_espeak(seed=0) as espeak:
        target = espeak.speak(TARGET_TEXT, *TARGET)
        enrollment = espeak.speak(ENROLLMENT_TEXT, *TARGET)
        interferers = [
            espeak.speak(text, *voice)
            for text, voice in zip(INTERFERER_TEXTS, INTERFERERS, strict=True)
        ]
        rate = espeak.rate

    def write(name, samples):
        path = str(Path(folder, f"example, {name}.wav"))
        soundfile.write(path, samples, rate)
        return path

    def mix(interferer):
        mixture = np.zeros(max(len(target), len(interferer)))
        for speech in (target, interferer):
            mixture[: len(speech)] += LEVEL / np.sqrt(np.mean(speech**2)) * speech
        return mixture

    first, second = map(mix, interferers)
    others = [write("again, with another", second)] if again else []
    return write("two talkers", first), others, write("one alone", enrollment)
