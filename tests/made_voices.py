"""Made speech: syllables of a pitch, in a little noise."""

import numpy as np
import soundfile


def speak(seconds, rate=16000, pitch=150.0, seed=0, noise=1e-3):
    """Syllables of 0.1 to 0.3 s with short gaps, (time,)."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.1 * np.sin(7 * time))) / rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 6))
    envelope = np.zeros(len(time))
    at = 0
    while at < len(time):
        length = round(rng.uniform(0.1, 0.3) * rate)
        syllable = np.hanning(length) * rng.uniform(0.3, 1.0)
        end = min(len(time), at + length)
        envelope[at:end] = syllable[: end - at]
        at = end + round(rng.uniform(0.0, 0.1) * rate)
    speech = 0.2 * tone * envelope + noise * rng.standard_normal(len(time))
    return speech.astype("float32")


def pause(seconds, rate=16000, noise=1e-3, seed=0):
    """Noise alone, (time,)."""
    rng = np.random.default_rng(seed)
    return (noise * rng.standard_normal(round(seconds * rate))).astype("float32")


def write(path, samples, rate=16000, **options):
    """Writes a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def write_voices(folder, n_speakers=9, n_files=3, seconds=1.5, rate=16000):
    """A folder with one for each speaker."""
    for speaker in range(n_speakers):
        for k in range(n_files):
            samples = speak(seconds, rate, 90 + 25 * speaker, seed=100 * speaker + k)
            write(folder / f"voice {speaker}" / f"{k}.wav", samples, rate)
    return folder
