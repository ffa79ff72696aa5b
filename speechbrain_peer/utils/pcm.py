"""Raw audio as programs pass it on: samples one after the other, without a header."""

import numpy as np

FORMATS = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
"""Types of a sample by their names, those of ffmpeg."""

FULL_SCALE = 1 << 15
"""What 1 is in 16 bits."""


def frame_size(format, channels):
    """Bytes of the samples of all channels at one moment.

    Example
    -------
    >>> frame_size("s16le", channels=2)
    4
    """
    return FORMATS[format].itemsize * channels


def decode_pcm(data, format, channels=1):
    """Makes samples of bytes.

    Arguments
    ---------
    data : bytes
        Of whole frames, whose channels are interleaved.
    format : str
        One of `FORMATS`.
    channels : int
        How many.

    Returns
    -------
    np.ndarray
        float32, full scale at 1, (channels, time).

    Example
    -------
    >>> decode_pcm(bytes([0, 64, 0, 128]), "s16le")
    array([[ 0.5, -1. ]], dtype=float32)
    """
    samples = np.frombuffer(data, FORMATS[format]).reshape(-1, channels).T
    scale = FULL_SCALE if format == "s16le" else 1
    return samples.astype(np.float32) / np.float32(scale)


def encode_pcm(samples, format):
    """Makes bytes of samples; 16 bits clip what is beyond full scale.

    Arguments
    ---------
    samples : np.ndarray
        (channels, time).
    format : str
        One of `FORMATS`.

    Returns
    -------
    bytes

    Example
    -------
    >>> list(encode_pcm(np.array([[0.5, -3.0]]), "s16le"))
    [0, 64, 0, 128]
    """
    if format == "s16le":
        samples = np.rint(samples * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1)
    return samples.T.astype(FORMATS[format]).tobytes()
