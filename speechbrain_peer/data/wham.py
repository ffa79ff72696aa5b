"""WHAM!'s noise, as LibriMix puts it into its mixtures.

Kept free of torch and SpeechBrain: every rendering process imports this file.
"""

import numpy as np

from speechbrain_peer.utils.any_audio import read_channels
from speechbrain_peer.utils.audio import AudioError


def read_noise(path, length, sample_rate):
    """Reads the noise of one mixture, sample for sample as the LibriMix script does.

    Arguments
    ---------
    path : str or Path
        A file of WHAM!'s noise; of several channels the first is taken.
    length : int
        Samples of the mixture's longest source. Noise that is shorter is repeated,
        with a cross-fade of half a second.
    sample_rate : int
        In Hz, which the file must have.

    Returns
    -------
    np.ndarray
        (length,); float32, or float64 where it is repeated.

    Raises
    ------
    AudioError
        If it cannot be read, has another rate, or is too short to be repeated.
    """
    samples, rate = read_channels(path, frames=length)
    if rate != sample_rate:
        raise AudioError(
            f"{path}: its sample rate is {rate} Hz, but {sample_rate} Hz is needed; "
            "give the folder wham_noise, not one of WHAM!'s mixtures"
        )
    noise = samples[:, 0]
    rising = np.hanning(sample_rate + 1)[: sample_rate // 2 + 1]
    overlap = len(rising)
    if len(noise) < length and len(noise) <= overlap:
        raise AudioError(
            f"{path}: has {len(noise)} samples, and {length} are needed; below half a "
            "second it cannot be repeated: get this file again"
        )
    extended = noise
    while len(extended) < length:
        seam = extended[-overlap:] * rising[::-1] + noise[:overlap] * rising
        extended = np.concatenate([extended[:-overlap], seam, noise[overlap:]])
    return extended[:length]
