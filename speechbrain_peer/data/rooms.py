"""Rooms: measured or simulated responses, and speech as microphones hear it in them.

A response is an array (taps, microphones) from one talker's position, on one time axis
for all microphones, so that the delays between them are those of the room.
"""

from bisect import bisect
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import soxr
from scipy.signal import oaconvolve
from tqdm import tqdm

from speechbrain_peer.data.checks import refuse_rows
from speechbrain_peer.data.room_simulation import check_finished
from speechbrain_peer.utils.any_audio import read_channels, read_header
from speechbrain_peer.utils.audio import AudioError
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.formats import find_sounds

EARLY = 0.05
"""Seconds after the direct sound in which reflections help understanding speech."""

DIRECT = 0.0015
"""Seconds that the direct sound lasts; its filter's ripple, but no reflection."""


LONGEST = 10
"""Seconds of a response; what is longer is music, say, and no response."""


class Placement(NamedTuple):
    """Talkers that have been drawn into a room."""

    room: str
    """The room's folder, relative to the folder of all."""
    talkers: tuple
    """The file of each talker's response in it, all different."""


class RoomFolder:
    """Rooms, simulated by `tse rooms` or measured.

    A folder that holds audio files is a room. Each of them is the response from one
    talker's position, with one channel for each microphone. Files that lie directly in
    the given folder are each a room of its own.

    Arguments
    ---------
    folder : str or Path
        Holds the rooms, at any depth.
    sample_rate : int
        In Hz; responses of another rate are resampled when they are read.

    Raises
    ------
    DataError
        If there are none, files cannot be read or are longer than `LONGEST`, or those
        of a room differ in their number of channels; lists the files.

    Example
    -------
    >>> from speechbrain_peer.utils.audio import write_audio
    >>> folder = getfixture("tmp_path")
    >>> for talker in ("window", "door", "desk"):
    ...     (folder / "office").mkdir(exist_ok=True)
    ...     write_audio(folder / f"office/{talker}.wav", np.eye(800)[40], 8000)
    >>> rooms = RoomFolder(folder, sample_rate=8000)
    >>> placement = rooms.draw(n_talkers=2, rng=np.random.default_rng(0))
    >>> placement
    Placement(room='office', talkers=('door.wav', 'window.wav'))
    >>> [response.shape for response in rooms.responses(placement)]
    [(800, 1), (800, 1)]
    """

    def __init__(self, folder, sample_rate):
        self.folder, self.sample_rate = Path(folder), sample_rate
        if not self.folder.is_dir():
            raise DataError(f"{folder}: no such folder; make rooms with `tse rooms`")
        check_finished(self.folder)
        names = find_sounds(self.folder)
        if not names:
            raise DataError(f"{folder}: holds no responses; make them with `tse rooms`")
        self._channels = _count_channels(self.folder, names)
        rooms = {}
        for name in names:
            room, file = PurePosixPath(name).parent.as_posix(), name.split("/")[-1]
            # What lies in the folder itself is not of one room.
            rooms.setdefault((room, file if room == "." else ""), []).append(file)
        # Those with most talkers come first.
        self._rooms = sorted(
            ((room, tuple(files)) for (room, _), files in rooms.items()),
            key=lambda room: (-len(room[1]), room),
        )
        self._falling = [-len(files) for _, files in self._rooms]
        self.most_talkers = -self._falling[0]

    def draw(self, n_talkers, rng):
        """Draws a room, each equally likely, and places of talkers in it.

        A source of noise can be one of them.

        Arguments
        ---------
        n_talkers : int
            How many; all get different places.
        rng : np.random.Generator
            The draw is a function of it and of the names of all files.

        Returns
        -------
        Placement

        Raises
        ------
        DataError
            If no room has so many places.
        """
        large_enough = bisect(self._falling, -n_talkers)
        if not large_enough:
            raise DataError(
                f"{self.folder}: no room has responses from {n_talkers} positions, at "
                f"most {self.most_talkers}; a room is a folder with one file for each "
                "position"
            )
        room, files = self._rooms[rng.integers(large_enough)]
        drawn = rng.choice(len(files), n_talkers, replace=False)
        return Placement(room, tuple(files[place] for place in drawn))

    def n_microphones(self, placement):
        """Tells how many microphones a drawn room has.

        Arguments
        ---------
        placement : Placement
            What `draw` returns.

        Returns
        -------
        int
        """
        name = PurePosixPath(placement.room, placement.talkers[0])
        return self._channels[name.as_posix()]

    def responses(self, placement, microphones=None):
        """Reads the responses of a drawn room.

        Each is scaled to unit energy at the first microphone: there a talker keeps the
        power of the dry speech, near or far: exactly if the speech were white, within
        about 1 dB as it is. What other microphones hear keeps its ratio to that.

        Arguments
        ---------
        placement : Placement
            What `draw` returns.
        microphones : sequence of int, optional
            Which ones, by number from 0, and in which order; all if None.

        Returns
        -------
        list of np.ndarray
            float32, (taps, microphones), one for each talker.

        Raises
        ------
        AudioError
            If a file cannot be used, or is silent at the first of the microphones.
        """
        room = self.folder / placement.room
        chosen = slice(None) if microphones is None else list(microphones)
        return [self._response(room / name, chosen) for name in placement.talkers]

    def _response(self, path, microphones):
        samples, rate = read_channels(path)
        response = samples[:, microphones]
        if rate != self.sample_rate:
            response = soxr.resample(response, rate, self.sample_rate)
        energy = np.square(response[:, 0]).sum()
        if not energy:
            raise AudioError(f"{path}: is silent at a microphone; remove or replace it")
        return response / np.sqrt(energy)


def reverberate(speech, response):
    """Computes what the microphones of a room hear of a talker.

    The direct sound reaches the first microphone without delay, so that the speech
    there lines up with the dry one; other microphones hear it as much sooner or later
    as in the room.

    Arguments
    ---------
    speech : np.ndarray
        (time,).
    response : np.ndarray
        (taps, microphones).

    Returns
    -------
    np.ndarray
        (time, microphones), of the speech's type; what sounds on after the end is cut.

    Example
    -------
    >>> speech = np.array([1.0, 2.0, 3.0, 4.0])
    >>> later_and_softer = np.array([[0, 0], [1, 0], [0, 0.5]])
    >>> reverberate(speech, later_and_softer).round(6)
    array([[1. , 0. ],
           [2. , 0.5],
           [3. , 1. ],
           [4. , 1.5]])
    """
    start = direct_taps(response)[0]
    heard = oaconvolve(speech[:, None], response, axes=0)
    return heard[start : start + len(speech)].astype(speech.dtype)


def line_up(heard, delays):
    """Takes delays between microphones away.

    Arguments
    ---------
    heard : np.ndarray
        (time, microphones).
    delays : sequence of int
        Of each microphone in samples; may be negative.

    Returns
    -------
    np.ndarray
        Of the same shape; zero where nothing has been heard.

    Example
    -------
    >>> line_up(np.array([[1, 0, 2], [2, 1, 3], [3, 2, 4]]), [0, 1, -1]).T
    array([[1, 2, 3],
           [1, 2, 0],
           [0, 2, 3]])
    """
    there = np.arange(len(heard))[:, None] + np.asarray(delays)
    inside = (there >= 0) & (there < len(heard))
    samples = np.take_along_axis(heard, there.clip(0, len(heard) - 1), axis=0)
    return np.where(inside, samples, 0)


def early(response, sample_rate, seconds=EARLY):
    """Cuts off late reverberation: a target that is not expected to be dry.

    Arguments
    ---------
    response : np.ndarray
        (taps, microphones).
    sample_rate : int
        In Hz.
    seconds : float
        What is kept after the direct sound, at each microphone.

    Returns
    -------
    np.ndarray
        (fewer taps, microphones); what is left out is zero.

    Example
    -------
    >>> early(np.array([[0.0], [1.0], [0.4], [0.2], [0.1]]), 1000, seconds=0.002).T
    array([[0. , 1. , 0.4]])
    """
    ends = direct_taps(response) + round(seconds * sample_rate)
    response = response[: ends.max()]
    return np.where(np.arange(len(response))[:, None] < ends, response, 0)


def direct(response, sample_rate):
    """Leaves nothing but the direct sound: a dry target, as each microphone hears it.

    Arguments
    ---------
    response : np.ndarray
        (taps, microphones).
    sample_rate : int
        In Hz.

    Returns
    -------
    np.ndarray
        (fewer taps, microphones); zero from 1.5 ms after the direct sound.
    """
    return early(response, sample_rate, DIRECT)


def direct_taps(response):
    """Finds the direct sound: the first peak of half the height of the highest.

    Arguments
    ---------
    response : np.ndarray
        (taps, microphones).

    Returns
    -------
    np.ndarray
        Its tap at each microphone.

    Example
    -------
    >>> direct_taps(np.array([[0.0], [0.1], [0.6], [0.8], [0.2], [0.9]]))
    array([3])
    """
    height = np.abs(response)
    rises = height >= 0.5 * height.max(axis=0)
    first = rises.argmax(axis=0)
    microphones = np.arange(response.shape[1])
    following = np.minimum(first + 1, len(response) - 1)
    higher = height[following, microphones] > height[first, microphones]
    return np.where(higher, following, first)


def _count_channels(folder, names):
    """How many channels each file has; those of a room have as many."""
    counts, of_room, problems = {}, {}, []
    for name in tqdm(names, desc="Checking rooms", unit="file", delay=2):
        room = PurePosixPath(name).parent
        try:
            length, sample_rate, counts[name] = read_header(folder / name)
        except AudioError as error:
            problems.append(str(error))
            continue
        expected = of_room.setdefault(room, counts[name])
        if expected != counts[name] and room.parts:
            problems.append(
                f"{folder / name}: has {counts[name]} channels, others of its room "
                f"{expected}"
            )
        elif length > LONGEST * sample_rate:
            problems.append(
                f"{folder / name}: lasts {length / sample_rate:.1f} s, but responses "
                f"at most {LONGEST} s"
            )
    refuse_rows(folder, problems, "replace or remove them", what="files")
    return counts
