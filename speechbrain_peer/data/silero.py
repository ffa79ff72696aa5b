"""Where somebody talks, by the voice activity detector Silero (the extra ``[vad]``).

PyTorch and the detector are imported when it is used.
"""

from functools import cache

import numpy as np
import soxr

RATE = 16000
WINDOW = 512
"""Samples that the detector looks at at once."""
PROBABILITY = 0.5


@cache
def load_detector():
    """Loads the detector, once in a process.

    Returns
    -------
    callable
        Of a window (samples,) and its rate: the probability of speech.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    try:
        import silero_vad
    except ImportError as error:
        raise ImportError(
            "the detector silero needs the package silero-vad: pip install "
            '"speechbrain-peer[vad]"'
        ) from error
    import torch

    torch.set_num_threads(1)
    return silero_vad.load_silero_vad()


def active_frames(blocks, rate, n_frames, frame_seconds):
    """Tells in which frames somebody talks.

    Arguments
    ---------
    blocks : iterable of np.ndarray
        A recording of one channel, one after the other, float32, (samples,).
    rate : int
        In Hz.
    n_frames : int
        How many frames to tell of.
    frame_seconds : float
        Length of one.

    Returns
    -------
    np.ndarray
        bool, (frames,).
    """
    import torch

    detector = load_detector()
    detector.reset_states()
    with torch.inference_mode():
        probabilities = [
            detector(torch.from_numpy(window), RATE).item()
            for window in _windows(blocks, rate)
        ]
    middles = (np.arange(n_frames) + 0.5) * frame_seconds
    places = np.minimum(middles * RATE // WINDOW, len(probabilities) - 1)
    return np.array(probabilities)[places.astype(int)] > PROBABILITY


def _windows(blocks, rate):
    """Windows at the detector's rate, the last one padded."""
    resampler = soxr.ResampleStream(rate, RATE, 1, "float32")
    held = np.zeros(0, "float32")
    for block in blocks:
        held = np.concatenate((held, resampler.resample_chunk(block)))
        whole = len(held) // WINDOW * WINDOW
        yield from held[:whole].reshape(-1, WINDOW)
        held = held[whole:]
    held = np.concatenate((held, resampler.resample_chunk(held[:0], last=True)))
    padded = np.pad(held, (0, -len(held) % WINDOW))
    yield from padded.reshape(-1, WINDOW)
