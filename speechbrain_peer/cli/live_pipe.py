"""Live extraction between programs: raw samples in, raw samples out."""

import sys
from contextlib import nullcontext

import numpy as np

from speechbrain_peer.inference.writing import record_blocks
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.pcm import decode_pcm, encode_pcm, frame_size

CHUNK = 1 << 16
"""Bytes that are read at most at once; fewer where fewer are there."""


def extract_pipe(model, options):
    """Extracts from standard input to standard output until the input ends.

    As many samples come out as go in, each as soon as it is complete.

    Arguments
    ---------
    model : speechbrain_peer.TargetSpeechExtraction
        What extracts.
    options : argparse.Namespace
        The command's.

    Raises
    ------
    DataError
        If the input ends within a sample, or holds some that are not finite.
    """
    voice = model.encode_speaker_files(options.enrollment)
    stream = model.stream(voice=voice, rate=options.rate)
    format, channels, clipped = options.format, options.channels, 0
    recording = nullcontext()
    if options.record:
        recording = record_blocks(options.record, stream.rate, channels)
    with recording as record:
        blocks = _blocks(sys.stdin.buffer, format, channels)
        for outputs in _outputs(stream, blocks):
            if record is not None:
                record(outputs.T)
            clipped += np.count_nonzero(np.abs(outputs) > 1)
            sys.stdout.buffer.write(encode_pcm(outputs, format))
            sys.stdout.buffer.flush()
    if clipped and format == "s16le":
        told = f"{clipped} samples exceeded full scale and were clipped"
        print(f"tse: {told}; --format f32le keeps them", file=sys.stderr)


def _blocks(file, format, channels):
    """Yields the samples as they come, (channels, time)."""
    size, rest = frame_size(format, channels), b""
    while data := file.read1(CHUNK):
        data = rest + data
        whole = len(data) - len(data) % size
        rest = data[whole:]
        yield decode_pcm(data[:whole], format, channels)
    if rest:
        raise DataError(
            f"standard input: ends within a sample; are they {format} of {channels} "
            "channel(s)?"
        )


def _outputs(stream, blocks):
    for block in blocks:
        yield stream.push(block).numpy()
    rest = stream.flush().numpy()
    if rest.ndim == 2:  # an input without samples has no rest
        yield rest
