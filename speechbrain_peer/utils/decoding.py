"""Recordings that come from elsewhere: a pipe, or ffmpeg for what libsndfile lacks.

They are kept in temporary files without a name, which are gone when they are closed,
even by a kill; `TMPDIR` tells where.
"""

import logging
import shutil
import subprocess
import tempfile

from speechbrain_peer.utils.audio import AudioError, check_regular

# Not SpeechBrain's: processes that scan recordings do without it.
logger = logging.getLogger(__name__)

DECODED = frozenset(
    ".3gp .aac .ac3 .amr .asf .avi .flv .m4a .m4b .m4v .mka .mkv .mov .mp4 .mts .ts "
    ".webm .wma .wmv".split()
)
"""Suffixes of files that ffmpeg decodes."""

# None of these reads other files or the network, as playlists would.
DEMUXERS = (
    "aac,ac3,aiff,amr,asf,au,avi,caf,flac,flv,matroska,mov,mp3,mpegts,ogg,w64,wav"
)

MOST_PIPED = 1 << 32
"""Bytes: a WAV header counts no further."""

MOST_DECODED = 1 << 35
"""Bytes: a day of stereo at 48 kHz, as 32-bit floating point."""

PIECE = 1 << 20


def spool(stream, name, most=MOST_PIPED):
    """Copies a stream to a temporary file.

    Arguments
    ---------
    stream : binary file object
        To be read to its end.
    name : str or pathlib.Path
        What messages call it.
    most : int
        Bytes it may have.

    Returns
    -------
    binary file object

    Raises
    ------
    AudioError
        If it has more.

    Example
    -------
    >>> import io
    >>> file = spool(io.BytesIO(b"RIFF"), "standard input")
    >>> file.seek(0), file.read()
    (0, b'RIFF')
    """
    file = tempfile.TemporaryFile()
    try:
        while piece := stream.read(PIECE):
            if file.tell() + len(piece) > most:
                raise AudioError(f"{name}: has more than {most >> 30} GiB; cut it")
            file.write(piece)
        file.flush()
    except BaseException as error:
        file.close()
        if isinstance(error, OSError) and error.errno is not None:
            # A full disk is reported without a file name.
            folder = tempfile.gettempdir()
            raise OSError(error.errno, error.strerror, folder) from error
        raise
    return file


def decode(path, seconds=None):
    """Decodes the first audio track of a file with ffmpeg.

    Arguments
    ---------
    path : str or pathlib.Path
        One of the formats `DECODED`.
    seconds : float, optional
        How much of it, from the start; by default all.

    Returns
    -------
    binary file object
        A temporary AU file of the same rate and channels, in floating point.

    Raises
    ------
    AudioError
        If ffmpeg is not installed, or cannot decode it.
    """
    check_regular(path)
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise AudioError(
            f"{path}: needs ffmpeg, which is not installed; install it, or convert the "
            "file to WAV or FLAC"
        )
    command = [ffmpeg, "-nostdin", "-v", "error"]
    command += ["-protocol_whitelist", "file", "-format_whitelist", DEMUXERS]
    # An AU file may be of any length, and need not tell it at its start.
    command += ["-i", f"file:{path}", "-map", "0:a:0", "-c:a", "pcm_f32be"]
    command += [] if seconds is None else ["-t", str(seconds)]
    command += ["-f", "au", "pipe:1"]
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
        ) as process,
    ):
        try:
            file = spool(process.stdout, path, MOST_DECODED)
        except BaseException:
            process.kill()
            raise
        failed = process.wait()
        complaints.seek(0)
        lines = complaints.read(PIECE).decode(errors="replace").splitlines()
        if failed:
            file.close()
            raise AudioError(
                f"{path}: ffmpeg cannot decode it ({lines[-1] if lines else failed}); "
                "convert it to WAV or FLAC, or get it again"
            )
        if lines:
            logger.warning(f"{path}: parts may be missing; ffmpeg says: {lines[-1]}")
        return file
