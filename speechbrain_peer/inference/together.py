"""Extraction of one talker from several recordings of one moment, in bounded memory.

All recordings are brought on the first one's time line and go through the network in
step, chunk by chunk: first each alone, which tells the talker's delay from one to the
other, and whether they hold the same others. If so, they are microphones of a room, and
a beam makes one of them. Else they go through together, with what they lend each other,
and their estimates become one.
"""

from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.utils.logger import get_logger

from speechbrain_peer.inference.alignment import (
    CLEAR,
    Clock,
    compare_clocks,
    find_delay,
    on_the_time_line,
    read_at_rate,
    shift,
)
from speechbrain_peer.inference.beamforming import beamform, hold_the_same
from speechbrain_peer.inference.chunks import cross_fade, cut_chunks
from speechbrain_peer.inference.estimates import Estimate, extract_recording
from speechbrain_peer.inference.recordings import (
    BLOCK,
    Recording,
    resampled_length,
)
from speechbrain_peer.nnet.voice import features_of, repeat_voice
from speechbrain_peer.peer_learning.exchange import (
    check_lends,
    extract,
    extract_together,
)
from speechbrain_peer.peer_learning.quality import extract_by_quality
from speechbrain_peer.utils.signal import match_level, set_level

logger = get_logger(__name__)

# In seconds.
MOST_DELAY = 0.05  # of the talker between two microphones: 17 m of way
FADE = 0.02  # where a recording begins or ends
LEAST_IN_ROOM = 1.0  # of a recording, to tell whether it is a microphone of a room

PASSES = 2
"""How often microphones of a room and their beams lend to each other. On dev the second
time adds 0.2 dB to the beam, a third 0.1 with two microphones and nothing with four."""

# Estimates hold others, too: loud frequencies, where the talker is, count more.
WHITENING = 0.5
FINENESS = 8


class Alignment(NamedTuple):
    """Where a recording lies in time, against the first one."""

    name: str
    """The recording's path, with the channel where each is a recording of its own."""
    offset: float
    """Seconds after the beginning of the first recording at which it begins."""
    drift: float
    """By how many parts per million its clock is fast; 0 where that is not seen."""
    delay: float
    """Milliseconds by which it hears the talker later, median over chunks; NaN where
    the talker is never heard in both."""
    in_room: bool
    """Whether it holds the same others as the first in most chunks: then it is in the
    beam of a room, and else it lends."""

    def __str__(self):
        delay = "talker not heard in both"
        if np.isfinite(self.delay):
            delay = f"talker {round(self.delay, 2) + 0.0:+.2f} ms"  # no -0.00
        return (
            f"{self.name}: begins at {self.offset:+.3f} s, {delay}, "
            f"clock {self.drift:+.1f} ppm, {'in the beam' if self.in_room else 'lends'}"
        )


class ChunksTogether:
    """Extracts from chunks of recordings on one time line, one after the other.

    Arguments
    ---------
    modules : Mapping
        The stages of a model that can lend.
    embedding : torch.Tensor or Frames
        The voice, of (1, ...).
    sample_rate : int
        In Hz.
    bounds : list of (float, float)
        Where each recording begins and ends on the time line, in samples.
    level : str
        The model's; see `utils.signal.set_level`.
    """

    def __init__(self, modules, embedding, sample_rate, bounds, level="mixture"):
        self.modules, self.embedding, self.level = modules, embedding, level
        self.sample_rate, self.bounds = sample_rate, np.array(bounds)
        self.delays = [[] for _ in bounds]
        """Of every recording, in samples, from all chunks where they are clear."""
        self.in_room = [[] for _ in bounds]
        """Of every recording, whether it has been in the beam, from all chunks."""
        self._energies = np.zeros(3)

    def __call__(self, chunk, start=0):
        """The one estimate, (samples, 1), of (samples, recordings)."""
        mixtures = self._waveforms(chunk.T)
        raw = extract(self.modules, mixtures, self.embedding).float()
        alone = set_level(raw, mixtures, level=self.level)
        # The network's own scale, of the first recording so far. What it finds there
        # has at least a hundredth of the energy, or is none of it.
        energies = (float(x[0].double().square().sum()) for x in (raw, alone, mixtures))
        self._energies += list(energies)
        of_network, of_talker, of_all = self._energies
        of_talker = max(of_talker, of_all / 100)
        scale = np.sqrt(of_network / of_talker) if of_talker else 1.0
        return self.join(chunk, alone.cpu().numpy(), start, scale)

    def join(self, chunk, alone, start=0, scale=1.0):
        """The same, with the estimate of each recording alone, (recordings, samples).

        Recordings in which others talk over the talker lend to each other. Those that
        hold the same others as the first are microphones of one room: a beam makes one
        recording of them, which others may lend to. `scale` is that of the network,
        for what is no beam.
        """
        delays, signals = self.find_delays(alone), chunk.T
        present = self._present(start, len(chunk))
        room, inside = self._find_room(signals, alone, start)
        for found, told in zip(room.tolist(), self.in_room, strict=True):
            told.append(found)
        if room.sum() < 2:
            return self.lend(chunk, delays, start)
        beam, there = signals[0].copy(), present[room].min(axis=0)
        beam[inside] = self._beam(signals[room, inside], alone[room, inside])
        others = np.flatnonzero(~room & present.any(axis=1))
        if len(others):
            first = there * beam + (1 - there) * signals[0]
            chosen = [0, *others]
            signals = np.stack((first, *signals[others]))
            return self._lend(signals, np.array(delays)[chosen], present[chosen])
        beam, there = np.float32(scale * beam[:, None]), np.float32(there[:, None])
        if there.min() == 1:
            return beam
        return there * beam + (1 - there) * self.lend(chunk, delays, start)

    def lend(self, chunk, delays, start=0):
        """What recordings give that lend to each other, with delays that are known."""
        return self._lend(chunk.T, delays, self._present(start, len(chunk)))

    def _lend(self, signals, delays, present):
        estimate = extract_by_quality(
            self.modules,
            self._waveforms(line_up(signals, delays)),
            self.embedding,
            self._waveforms(present),
        )
        return estimate[:, None].cpu().numpy()

    def _beam(self, signals, alone):
        """What the first of the microphones of a room hears of the talker, (samples,).

        Each microphone and its own beam are two recordings of one target with other
        rests, which is what lending is for: they give the masks of the next beam.
        """
        rate, count = self.sample_rate, len(signals)
        voices = repeat_voice(self.embedding, count)
        found = alone
        for _ in range(PASSES):
            beams = beamform(signals, found, rate, range(count))
            pairs = self._waveforms(np.stack((signals, beams)))
            lent = extract_together(self.modules, pairs, voices).float().mean(0)
            # That of the beams, which are quieter than the talker: masks of louder
            # estimates let through more of the others, and lose 0.3 to 0.5 dB on dev.
            found = match_level(lent, pairs[1]).cpu().numpy()
        beam = torch.from_numpy(beamform(signals, found, rate))
        return match_level(beam, torch.from_numpy(signals[:1]))[0].numpy()

    def find_delays(self, alone):
        """Delays of a chunk; where the talker is not heard, those of the last one.

        Arguments
        ---------
        alone : np.ndarray
            The estimate of each recording alone, (recordings, samples).

        Returns
        -------
        list of float
            Samples by which each hears the talker later than the first.
        """
        most = round(MOST_DELAY * self.sample_rate)
        for k in range(1, len(alone)):
            pair = alone[0], alone[k]
            delay, clarity = find_delay(*pair, most, FINENESS, WHITENING)
            if clarity >= CLEAR:
                self.delays[k].append(delay)
        return [found[-1] if found else 0.0 for found in self.delays]

    def _find_room(self, signals, alone, start):
        """Which recordings are microphones of one room, and where all of those are."""
        count, length = signals.shape
        begins, ends = np.clip(self.bounds - start, 0, length).T.astype(int)
        long = ends - begins >= LEAST_IN_ROOM * self.sample_rate
        room = np.zeros(count, dtype=bool)
        # A beam is not silent where the talker is.
        if self.level == "network" or not long[0]:
            return room, slice(0)
        inside = slice(begins[long].max(), ends[long].min())
        if inside.stop > inside.start:
            parts = signals[long, inside], alone[long, inside]
            room[long] = hold_the_same(*parts, self.sample_rate)
        return room, inside

    def _present(self, start, length):
        """How far each recording is there, from 0 to 1, (recordings, samples)."""
        times = start + np.arange(length)
        inside = np.minimum(times - self.bounds[:, :1], self.bounds[:, 1:] - times)
        return np.clip(inside / (FADE * self.sample_rate), 0, 1)

    def _waveforms(self, signals):
        device = features_of(self.embedding).device
        return torch.from_numpy(np.float32(signals)).to(device)


def line_up(signals, delays):
    """Takes delays, in samples, away from signals, (recordings, time)."""
    return np.stack([shift(x, -late) for x, late in zip(signals, delays, strict=True)])


def open_all(mixtures, channels, stack):
    """Opens recordings to extract from.

    Arguments
    ---------
    mixtures : list of (str, pathlib.Path or Recording)
        What a caller has opened stays open.
    channels : str
        `mix`, `each` or `peers`; see `extract_recordings`.
    stack : contextlib.ExitStack
        Closes the others.

    Returns
    -------
    list of Recording

    Raises
    ------
    AudioError
        If one cannot be read.
    ValueError
        If there are none, or there is no such way to take their channels.
    """
    if channels not in ("mix", "each", "peers"):
        raise ValueError(f"channels '{channels}': choose mix, each or peers")
    if not mixtures:
        raise ValueError("mixture_path is empty")
    if channels == "each" and len(mixtures) > 1:
        raise ValueError(
            "Several recordings give one estimate: choose channels mix or peers, or "
            "extract from one recording after the other"
        )
    recordings = []
    for mixture in mixtures:
        if not isinstance(mixture, Recording):
            mixture = stack.enter_context(closing(Recording.open(mixture)))
        recordings.append(mixture)
    return recordings


def heard(recording, channels):
    """Yields blocks of what an estimate is of, (samples, channels); see `open_all`."""
    if channels == "peers":
        return (block[:, :1] for block in recording.blocks())
    return recording.blocks(1 if channels == "mix" else None)


def extract_recordings(
    modules,
    recordings,
    embedding,
    channels,
    sample_rate,
    file,
    level="mixture",
    keep_partial=False,
):
    """Extracts one talker from one recording, or from several of one moment.

    Arguments
    ---------
    modules : Mapping
        The stages.
    recordings : list of Recording
        From `open_all`. They may have any rates and lengths; the estimate is of what
        the first has.
    embedding : torch.Tensor or Frames
        The voice, of (1, ...).
    channels : str
        `mix`: the channels of a recording are averaged; `each`: of one recording, the
        talker is extracted from each; `peers`: each is a recording of its own.
    sample_rate : int
        Of the model, in Hz.
    file : binary file object
        Where to keep the estimate.
    level : str
        The model's; see `utils.signal.set_level`.
    keep_partial : bool
        Whether Ctrl+C ends it early with what is done; see `Estimate.fill`.

    Returns
    -------
    estimate : Estimate
        Of one channel, or of each.
    alignments : list of Alignment
        Of all recordings, or channels, that lend to the first.

    Raises
    ------
    DataError
        If recordings have nothing in common.
    ValueError
        If they are several, and the model was trained without peers.
    """
    first = recordings[0]
    count = sum(x.channels if channels == "peers" else 1 for x in recordings)
    where = sample_rate, file, level, keep_partial
    if count == 1 or channels == "each":
        n_channels = first.channels if channels == "each" else 1
        alone = extract_recording(modules, first, embedding, n_channels, *where)
        return alone, []
    check_lends(modules)
    return _extract_together(modules, recordings, embedding, channels, *where)


@torch.no_grad()
def _extract_together(
    modules, recordings, embedding, channels, sample_rate, file, level, keep_partial
):
    first = recordings[0]
    length = resampled_length(first.length, first.sample_rate, sample_rate)
    streams, bounds, aligned = [], [], []
    for recording in recordings:
        clock = Clock()
        if recording is not first:
            clock = compare_clocks(first, recording, sample_rate)
        start, rate = clock.offset * sample_rate, clock.rate_of(recording)
        n_channels = 1 if channels == "mix" else recording.channels
        blocks = read_at_rate(recording, n_channels, sample_rate, rate)
        streams.append(on_the_time_line(blocks, round(start), length))
        end = start + recording.length / rate * sample_rate
        bounds += [(start, end)] * n_channels
        aligned += [(name, *clock) for name in _names(recording, n_channels)]
        if clock.drift:
            logger.warning(
                f"{recording.path}: its clock is fast by {clock.drift:+.1f} ppm "
                f"against that of {first.path}; it is resampled to go with it"
            )
    extract_from = ChunksTogether(modules, embedding, sample_rate, bounds, level)
    estimate = Estimate(file, 1, sample_rate, level)
    together = _side_by_side(streams, length)
    found = cross_fade(together, length, sample_rate, extract_from)
    estimate.fill(((chunk[:, :1], piece) for chunk, piece in found), keep_partial)
    found = zip(aligned, extract_from.delays, extract_from.in_room, strict=True)
    alignments = [
        Alignment(
            *place,
            1000 * np.median(late) / sample_rate if late else np.nan,
            2 * sum(in_room) > len(in_room),
        )
        for place, late, in_room in found
    ]
    return estimate, alignments[1:]


def _names(recording, n_channels):
    if n_channels == 1:
        return [str(recording.path)]
    return [f"{recording.path}, channel {k}" for k in range(1, n_channels + 1)]


def _side_by_side(streams, length):
    """Yields (samples, all channels) of streams of one length."""
    bounds = [(k, min(k + BLOCK, length)) for k in range(0, length, BLOCK)]
    for blocks in zip(*(cut_chunks(x, bounds) for x in streams), strict=True):
        yield np.concatenate(blocks, axis=1)
