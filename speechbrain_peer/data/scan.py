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
from speechbrain_peer.utils.any_audio import mix_down, read_at_rate
from speechbrain_peer.utils.audio import AudioError, check_samples, open_audio
from speechbrain_peer.utils.decoding import DECODED, decode
from speechbrain_peer.utils.files import whole_file
from speechbrain_peer.utils.processes import available_cpus, map_in_processes

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
    cancelling: bool = False
    """Whether the average of the channels loses what they hold; then the loudest is
    read, see `any_audio.mix_down`."""
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
            # What is wrong may be mended elsewhere, such as by installing ffmpeg.
            if not result.problem:
                keep(key, result._asdict())
    return [results[key] for key in keys]


def scan_file(file, folder, detector="energy"):
    """Looks into one recording.

    Arguments
    ---------
    file : VoiceFile
        The recording.
    folder : str
        What ffmpeg decodes is written to `DECODED_FOLDER` in it, as FLAC of one
        channel.
    detector : str
        "energy" or "silero".

    Returns
    -------
    Scanned
    """
    try:
        content = _decoded(file.path)
        if content is None:
            return _Recording(file.path).scan(file.spans, detector)
        with content:
            recording = _Recording(file.path, content)
            recording.decode(folder, file.name)
            return recording.scan(file.spans, detector)
    except AudioError as error:
        return Scanned(problem=str(error).removeprefix(f"{file.path}: "))


class _Recording:
    """A recording while it is scanned; what ffmpeg made of it is its content."""

    def __init__(self, path, content=None):
        self.path, self.content, self.decoded = path, content, None
        with open_audio(path, content) as audio:
            self.rate, self.channels = audio.samplerate, audio.channels
            self.promised = max(audio.frames, _promised_by_header(audio))
        if self.rate < LEAST_RATE:
            raise AudioError(
                f"{path}: its rate is {self.rate} Hz, too low for speech; give a "
                f"recording of {LEAST_RATE} Hz or more"
            )
        self.frame = round(FRAME_SECONDS * self.rate)

    def decode(self, folder, name):
        """Writes the content to a file."""
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        self.decoded = Path(folder, DECODED_FOLDER, f"{digest}.flac")
        # Encoded in memory, because libsndfile does not report a full disk.
        flac = io.BytesIO()
        options = {"format": "FLAC", "subtype": "PCM_16"}
        with soundfile.SoundFile(flac, "w", self.rate, 1, **options) as audio:
            for block in self._blocks():
                audio.write(mix_down(block))
        with whole_file(self.decoded) as temporary:
            temporary.write_bytes(flac.getbuffer())

    def scan(self, spans, detector):
        """Measures; see `Scanned`."""
        levels, length, cancelling = self._read_through()
        active = None
        if detector == "silero":
            active = silero.active_frames(
                (mix_down(block) for block in self._blocks()),
                self.rate,
                len(levels),
                self.frame / self.rate,
            )
        segments, left = [], {}
        for number, span in enumerate(spans):
            part = self._part(span, len(levels))
            talking = active_frames(levels[part]) if active is None else active[part]
            found, too_short = speech_segments(talking, levels[part])
            for start, stop in found:
                start = (part.start + start) * self.frame
                stop = min(length, (part.start + stop) * self.frame)
                segments.append((number, start, stop - start))
            for start, stop in too_short:
                _count(left, TOO_SHORT, (stop - start) * self.frame / self.rate)
            if not found and not too_short:
                _count(left, NO_SPEECH, len(talking) * self.frame / self.rate)
        return Scanned(
            rate=self.rate,
            channels=self.channels,
            seconds=length / self.rate,
            segments=self._with_loudness(segments, left),
            left=left,
            decoded=self.decoded and self.decoded.name,
            cancelling=cancelling,
        )

    def _blocks(self):
        """Yields (samples, channels), of whole frames but for the last one."""
        size = self.frame * max(1, BLOCK // (self.frame * self.channels))
        with open_audio(self.path, self.content) as audio:
            while len(block := audio.read(size, dtype="float32", always_2d=True)):
                yield block

    def _read_through(self):
        """Checks all samples: levels of frames, how many samples, cancelling."""
        powers, length, cancelling = [], 0, False
        for block in self._blocks():
            check_samples(self.path, block, length, self.rate)
            mono = mix_down(block)
            energy = np.square(mono).sum()
            cancelling |= bool(np.square(block.mean(axis=1)).sum() < energy / 2)
            powers.append(frame_powers(mono, self.frame))
            length += len(block)
        if not length:
            raise AudioError(f"{self.path}: has no samples; get or make it again")
        # A header of MP3 may be wrong by a frame.
        if length < self.promised - 0.1 * self.rate:
            raise AudioError(
                f"{self.path}: is cut short, its header tells of {self.promised} "
                f"samples and it has {length}; get or make it again"
            )
        levels = decibels(np.concatenate(powers))
        if levels.max() < SILENT_DB:
            raise AudioError(f"{self.path}: is silent; record it again or remove it")
        return levels, length, cancelling

    def _part(self, span, n_frames):
        """The frames of a span."""
        first = math.ceil(span.start * self.rate / self.frame)
        if first >= n_frames:
            raise AudioError(
                f"{self.path}: has {n_frames * self.frame / self.rate:.2f} s, but a "
                f"segment begins at {span.start:g} s; correct the table"
            )
        end = min(n_frames, span.end * self.rate / self.frame)
        return slice(first, max(first + 1, int(end)))

    def _with_loudness(self, segments, left):
        """Measures segments as they are read later, by seek."""
        meter, measured = _meter(self.rate), []
        for number, start, length in segments:
            # The rate stays, and channels are mixed down.
            samples = read_at_rate(self.decoded or self.path, start, length, self.rate)
            loudness = meter.integrated_loudness(samples)
            if loudness >= LEAST_LOUDNESS:
                measured.append((number, start, length, round(float(loudness), 3)))
            else:
                _count(left, NO_LOUDNESS, length / self.rate)
        return tuple(measured)


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
