"""Reads recordings through once: what they are, where somebody talks, how loud it is.

Several processes do it, and what they find is kept in shards: interrupted, it goes on.
Kept free of torch and SpeechBrain: every scanning process imports this file.
"""

import hashlib
import io
import json
import math
import os
import re
import shutil
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyloudnorm
import soundfile
from tqdm import tqdm

from speechbrain_peer.data import silero
from speechbrain_peer.data.shards import keep_results, read_shards
from speechbrain_peer.data.speech_activity import (
    FRAME_SECONDS,
    RULE,
    SHORTEST_SECONDS,
    active_frames,
    decibels,
    frame_powers,
    speech_segments,
)
from speechbrain_peer.utils.audio import AudioError, check_samples, open_audio
from speechbrain_peer.utils.decoding import DECODED, decode
from speechbrain_peer.utils.files import whole_file
from speechbrain_peer.utils.processes import available_cpus, map_in_processes

DETECTORS = ("energy", "silero")
SHARDS_FOLDER, DECODED_FOLDER = "scan", "decoded"
SILENT_DB = -70.0
LEAST_RATE = 6000
"""Hz; below, speech is no more to be understood."""
LEAST_LOUDNESS = -70.0
"""LUFS; what is softer has no loudness after BS.1770."""
BLOCK = 1 << 18
"""Samples that are read at once, of all channels together."""
STREAMED = 0x7FFFF000
"""Bytes that programs write into a header if they cannot know better, or more."""

NO_SPEECH = "nothing stands out from the noise"
TOO_SHORT = f"speech shorter than {SHORTEST_SECONDS:g} s"
NO_LOUDNESS = f"softer than {LEAST_LOUDNESS:g} LUFS"


class Scanned(NamedTuple):
    """What a recording holds."""

    rate: int = 0
    """In Hz."""
    channels: int = 0
    seconds: float = 0.0
    segments: tuple = ()
    """(span, start, length, loudness) of each segment of speech: the number of the
    file's span, samples, samples and LUFS."""
    left: dict = {}  # noqa: RUF012 - never changed
    """{reason: (how many, seconds)} of what is left out."""
    decoded: str | None = None
    """A file of `DECODED_FOLDER` to read instead."""
    remark: str | None = None
    """What users should know of it."""
    problem: str | None = None
    """Why it cannot be used."""


def scan_files(files, folder, detector="energy", n_processes=None):
    """Looks into all recordings; what is wrong with one is told in its result.

    Arguments
    ---------
    files : list of VoiceFile
        See `voices.find_voices`.
    folder : str or Path
        Where shards and decoded files are written.
    detector : str
        "energy" (see `speech_activity`) or "silero".
    n_processes : int, optional
        As many as CPUs and work allow if None; 1: this one.

    Returns
    -------
    list of Scanned
        One for each file.
    """
    if detector == "silero":
        silero.load_detector()  # tells now if it is absent
    shards = Path(folder, SHARDS_FOLDER)
    known, keys = read_shards(shards), [_key(file, detector) for file in files]
    results = {key: Scanned(**known[key]) for key in keys if key in known}
    todo = {
        key: file
        for key, file in zip(keys, files, strict=True)
        if key not in results or not _is_there(results[key], folder)
    }
    measure = partial(scan_file, folder=str(folder), detector=detector)
    # Starting a process takes as long as scanning some 50 utterances.
    n_processes = n_processes or min(available_cpus(), math.ceil(len(todo) / 50)) or 1
    chunk = 16 if len(todo) > 2000 else 1
    scanned = map_in_processes(measure, list(todo.values()), n_processes, chunk)
    progress = tqdm(scanned, desc="Scanning", total=len(todo), unit="file")
    with keep_results(shards) as keep:
        for key, result in zip(todo, progress, strict=True):
            results[key] = result
            keep(key, result._asdict())
    return [results[key] for key in keys]


def scan_file(file, folder, detector="energy"):
    """Looks into one recording.

    Arguments
    ---------
    file : VoiceFile
        The recording.
    folder : str
        What soundfile does not read, or averaging would cancel, is written to
        `DECODED_FOLDER` in it, as FLAC of one channel.
    detector : str
        "energy" or "silero".

    Returns
    -------
    Scanned
    """
    try:
        with _Opened(file, folder) as opened:
            return opened.scan(file.spans, detector)
    except AudioError as error:
        return Scanned(problem=str(error).removeprefix(f"{file.path}: "))


class _Opened:
    """A recording while it is scanned."""

    def __init__(self, file, folder):
        self.path, self.remark, self.decoded = file.path, None, None
        name = hashlib.sha256(file.name.encode()).hexdigest()[:16]
        self.place = Path(folder, DECODED_FOLDER, f"{name}.flac")
        self.content = _decoded(file.path)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.content is not None:
            self.content.close()

    def scan(self, spans, detector):
        """Measures; writes another file to read where it has to."""
        self._read_through()
        levels = decibels(self.powers)
        if levels.max() < SILENT_DB:
            raise AudioError(f"{self.path}: is silent; record it again or remove it")
        if self.content is not None or self.channel is not None:
            self._write_decoded()
        active = None
        if detector == "silero":
            blocks = (self._mono(block) for block in self._blocks())
            active = silero.active_frames(
                blocks, self.rate, len(levels), self.frame / self.rate
            )
        segments, left = [], {}
        for number, span in enumerate(spans):
            self._find_speech(number, span, levels, active, segments, left)
        return Scanned(
            rate=self.rate,
            channels=self.channels,
            seconds=self.length / self.rate,
            segments=self._with_loudness(segments, left),
            left=left,
            decoded=self.decoded,
            remark=self.remark,
        )

    def _read_through(self):
        """Counts and checks the samples, and measures the power of frames."""
        powers, averages, self.length = [], [], 0
        for block in self._blocks():
            check_samples(self.path, block, self.length, self.rate)
            powers.append(frame_powers(block, self.frame))
            averages.append(frame_powers(block.mean(axis=1), self.frame))
            self.length += len(block)
        if not self.length:
            raise AudioError(f"{self.path}: has no samples; get or make it again")
        # A header of MP3 may be wrong by a frame.
        if self.length < self.promised - 0.1 * self.rate:
            raise AudioError(
                f"{self.path}: is cut short, its header tells of {self.promised} "
                f"samples and it has {self.length}; get or make it again"
            )
        powers, averages = np.concatenate(powers), np.concatenate(averages)
        self.channel = cancelled_channel(powers.mean(axis=0), averages.mean())
        self.powers = averages if self.channel is None else powers[:, self.channel]
        if self.channel is not None:
            self.remark = (
                f"its channels cancel each other, so the loudest, number "
                f"{self.channel + 1}, is taken instead of their average"
            )

    def _blocks(self):
        """Yields (samples, channels), of whole frames but for the last one."""
        with open_audio(self.path, self.content) as audio:
            self.rate, self.channels = audio.samplerate, audio.channels
            if self.rate < LEAST_RATE:
                raise AudioError(
                    f"{self.path}: its rate is {self.rate} Hz, too low for speech; "
                    f"give a recording of {LEAST_RATE} Hz or more"
                )
            self.promised = max(audio.frames, _promised_by_header(audio))
            self.frame = round(FRAME_SECONDS * self.rate)
            size = self.frame * max(1, BLOCK // (self.frame * self.channels))
            while len(block := audio.read(size, dtype="float32", always_2d=True)):
                yield block

    def _mono(self, block):
        return block.mean(axis=1) if self.channel is None else block[:, self.channel]

    def _write_decoded(self):
        # Encoded in memory, because libsndfile does not report a full disk.
        flac = io.BytesIO()
        options = {"format": "FLAC", "subtype": "PCM_16"}
        with soundfile.SoundFile(flac, "w", self.rate, 1, **options) as audio:
            for block in self._blocks():
                audio.write(self._mono(block))
        with whole_file(self.place) as temporary:
            temporary.write_bytes(flac.getbuffer())
        self.decoded = self.place.name

    def _find_speech(self, number, span, levels, active, segments, left):
        """Adds the segments of a span, and what is too short of it."""
        first = math.ceil(span.start * self.rate / self.frame)
        end = min(len(levels), span.end * self.rate / self.frame)
        if first >= end:
            raise AudioError(
                f"{self.path}: has {self.length / self.rate:.2f} s, but a segment "
                f"begins at {span.start:g} s; correct the table"
            )
        part = slice(first, int(end))
        talking = active_frames(levels[part]) if active is None else active[part]
        found, too_short = speech_segments(talking, levels[part])
        for start, stop in found:
            start = (first + start) * self.frame
            stop = min(self.length, (first + stop) * self.frame)
            segments.append((number, start, stop - start))
        for start, stop in too_short:
            _count(left, TOO_SHORT, (stop - start) * self.frame / self.rate)
        if not found and not too_short:
            _count(left, NO_SPEECH, len(talking) * self.frame / self.rate)

    def _with_loudness(self, segments, left):
        """Measures segments as they will be read, by seek."""
        meter, measured = _meter(self.rate), []
        with open_audio(self.place if self.decoded else self.path) as audio:
            for number, start, length in segments:
                audio.seek(start)
                samples = audio.read(length, dtype="float32", always_2d=True)
                if len(samples) < length:
                    raise AudioError(
                        f"{self.path}: cannot be read from {start / self.rate:.2f} s "
                        "on; convert it to WAV or FLAC"
                    )
                loudness = meter.integrated_loudness(samples.mean(axis=1))
                if loudness >= LEAST_LOUDNESS:
                    measured.append((number, start, length, round(float(loudness), 3)))
                else:
                    _count(left, NO_LOUDNESS, length / self.rate)
        return tuple(measured)


def cancelled_channel(powers, average):
    """Tells whether the average of channels loses what they hold.

    It does if it has less than half the power that unrelated channels would leave:
    then their phases are opposite.

    Arguments
    ---------
    powers : np.ndarray
        Mean square of each channel, (channels,).
    average : float
        Mean square of their average.

    Returns
    -------
    int or None
        The loudest channel, to be taken instead; None where the average serves.

    Example
    -------
    >>> cancelled_channel(np.array([1.0, 1.0]), average=0.5)
    >>> cancelled_channel(np.array([1.0, 1.2]), average=0.01)
    1
    """
    unrelated = powers.sum() / len(powers) ** 2
    return int(powers.argmax()) if average < 0.5 * unrelated else None


def _key(file, detector):
    """What a result belongs to: the file as it is now, and the rule."""
    try:
        status = os.stat(file.path)
        state = [status.st_size, status.st_mtime_ns]
    except OSError:
        state = None
    described = json.dumps(
        [file.name, file.spans, state, detector, RULE, Scanned._fields]
    )
    return hashlib.sha256(described.encode()).hexdigest()[:32]


def _is_there(scanned, folder):
    return not scanned.decoded or Path(folder, DECODED_FOLDER, scanned.decoded).exists()


def _decoded(path):
    """What ffmpeg makes of a file that soundfile does not read; else None."""
    if Path(path).suffix.lower() in DECODED:
        return decode(path)
    try:
        with open_audio(path):
            return None
    except AudioError as error:
        unknown = isinstance(error.__cause__, soundfile.SoundFileError)
        if not (unknown and shutil.which("ffmpeg")):
            raise
        try:
            return decode(path)
        except AudioError:
            raise error from None


def _promised_by_header(audio):
    """Samples that a header tells of where libsndfile corrects it silently."""
    for told in re.findall(
        r"^ *(?:data|SSND|Data Size) *: *(\d+) \(should be (\d+)\)",
        audio.extra_info,
        re.MULTILINE,
    ):
        told, there = map(int, told)
        if there < told < STREAMED:
            return round(audio.frames * told / there) if there else told
    return 0


@cache
def _meter(rate):
    return pyloudnorm.Meter(rate)


def _count(left, reason, seconds):
    count, before = left.get(reason, (0, 0.0))
    left[reason] = count + 1, before + seconds
