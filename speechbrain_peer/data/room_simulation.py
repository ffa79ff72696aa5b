"""Rooms simulated ahead of training, by the image method of pyroomacoustics.

Kept free of torch and SpeechBrain: every process that simulates imports this file.
"""

import io
import json
import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.io import wavfile
from tqdm import tqdm

from speechbrain_peer.utils.files import DataError, remove_unfinished, whole_file
from speechbrain_peer.utils.processes import available_cpus, map_in_processes

RECORD = "rooms.json"  # the settings, in the folder of all rooms
DESCRIPTION = "room.json"  # in every room's folder, written last

# Metres, and rooms as people have them.
LEAST_SIZE, MOST_SIZE = (3.5, 3.5, 2.4), (9.0, 7.0, 3.5)
FROM_WALLS = 0.5
HEAD_HEIGHT = (1.1, 1.8)  # of one who sits, and of one who stands
APART = 0.5  # talkers from each other and from every microphone
FARTHEST = 3.0  # a talker from the middle of the microphones
DEVICE_DIAMETER = 0.04
DEVICE_HEIGHT = (0.7, 1.5)
TABLE_RADIUS, TABLE_HEIGHT = 0.7, 0.75
PHONES_APART = 0.2

SPEED_OF_SOUND = 343.0  # m/s, what pyroomacoustics reckons with
# Walls take at most 95 % of the energy, and images are left out that have lost 50 dB.
MOST_ABSORBED = 3.0  # -ln(1 - 0.95)
WEAKEST_IMAGE = 50
DB = 10 / math.log(10)  # dB of one neper of energy
TAIL = 1e-6  # of a response's energy, -60 dB, may be cut off


class Settings(NamedTuple):
    """What all rooms of a folder have in common."""

    n_rooms: int
    """How many."""
    n_talkers: int
    """Positions of talkers in every room."""
    n_microphones: int
    """Microphones in every room."""
    layout: str
    """"device": microphones on a circle of 4 cm; "table": phones apart on a table of
    1.4 m; "mixed": each with half of the rooms."""
    rt60: tuple
    """Least and most reverberation time in seconds."""
    sample_rate: int
    """In Hz."""
    seed: int
    """A room is a function of its number, of this seed and of the other settings
    except `n_rooms`."""


class Plan(NamedTuple):
    """Where everything stands in a room; positions in metres."""

    layout: str
    """"device" or "table"."""
    size: np.ndarray
    """Length, width, height."""
    microphones: np.ndarray
    """(microphones, 3)."""
    talkers: np.ndarray
    """(talkers, 3)."""


def make_rooms(folder, settings, n_processes=None):
    """Simulates rooms and writes their responses, unless they are there already.

    Every room is a folder of its own: `talker-0.wav` ... hold the responses from each
    talker's position (float32, one channel for each microphone, all on one time axis),
    `room.json` the size, the positions and the measured reverberation time. An
    interrupted run, started again, goes on and ends with the same files.

    Arguments
    ---------
    folder : str or Path
        For the rooms; absent, empty, or begun with the same settings.
    settings : Settings
        What rooms to make.
    n_processes : int, optional
        How many processes simulate; as many as CPUs and rooms are worth if None. 1
        simulates in this process.

    Returns
    -------
    size : int
        Bytes of all responses.

    Raises
    ------
    ImportError
        If the extra ``[rooms]`` is not installed.
    DataError
        If the folder holds anything else.
    """
    _import_pyroomacoustics()  # before a folder is made in vain
    folder = Path(folder)
    _record(folder, settings)
    remove_unfinished(folder)
    todo = [
        number
        for number in range(settings.n_rooms)
        if not Path(folder, room_name(number), DESCRIPTION).exists()
    ]
    # Starting a process takes as long as simulating some 3 rooms.
    n_processes = n_processes or min(available_cpus(), math.ceil(len(todo) / 3))
    if todo:
        make = partial(_make_room, folder=folder, settings=settings)
        done = map_in_processes(make, todo, n_processes)
        for _ in tqdm(done, total=len(todo), desc="Simulating", unit="room"):
            pass
    return sum(path.stat().st_size for path in folder.glob("*/*.wav"))


def room_name(number):
    """The folder of a room.

    Example
    -------
    >>> room_name(17)
    'room-000017'
    """
    return f"room-{number:06}"


def check_finished(folder):
    """Raises DataError if the simulation of a folder's rooms has been interrupted.

    Arguments
    ---------
    folder : str or Path
        Of rooms; measured ones, which no record tells of, are as they are.
    """
    record = Path(folder, RECORD)
    if not record.exists():
        return
    try:
        n_rooms = json.loads(record.read_text(encoding="utf-8"))["n_rooms"]
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{record}: is not what `tse rooms` writes; simulate the rooms again, or "
            "delete it where they are measured ones"
        ) from error
    done = len(list(Path(folder).glob(f"*/{DESCRIPTION}")))
    if done != n_rooms:
        raise DataError(
            f"{folder}: has {done} of {n_rooms} rooms, as their simulation has been "
            "interrupted; give the same `tse rooms` again, which goes on"
        )


def draw_plan(settings, number):
    """Draws where everything stands in a room.

    Arguments
    ---------
    settings : Settings
        See there.
    number : int
        Of the room.

    Returns
    -------
    Plan
        A function of the arguments.
    rt60 : float
        The reverberation time that is asked of the room, in seconds.
    """
    rng = np.random.default_rng([settings.seed, number])
    rt60 = rng.uniform(*settings.rt60)
    layout = settings.layout
    if layout == "mixed":
        layout = ("device", "table")[rng.integers(2)]
    plan = None
    while plan is None:  # Where too many stand in a small room, another one is drawn.
        size = rng.uniform(LEAST_SIZE, MOST_SIZE)
        plan = _place(layout, size, settings.n_microphones, settings.n_talkers, rng)
    return plan, rt60


def simulate(plan, rt60, sample_rate):
    """Simulates the responses of a room.

    Arguments
    ---------
    plan : Plan
        Where everything stands.
    rt60 : float
        The reverberation time to come near to, in seconds. Large rooms with walls that
        absorb 95 % still have more than the shortest.
    sample_rate : int
        In Hz.

    Returns
    -------
    responses : list of np.ndarray
        float32, (taps, microphones), one for each talker. All begin at the same time,
        shortly before the first direct sound of any arrives, and end where what is cut
        off has a millionth of the energy at every microphone.
    rt60 : float
        The reverberation time, measured between the first talker and microphone.
    """
    pyroomacoustics = _import_pyroomacoustics()
    measure = pyroomacoustics.experimental.measure_rt60

    def respond(absorbed, plan):
        """(talkers, microphones) responses where walls take `absorbed` nepers."""
        room = pyroomacoustics.ShoeBox(
            plan.size,
            fs=sample_rate,
            materials=pyroomacoustics.Material(-math.expm1(-absorbed)),
            max_order=math.ceil(WEAKEST_IMAGE / (DB * absorbed)),
        )
        room.add_microphone_array(plan.microphones.T)
        for talker in plan.talkers:
            room.add_source(talker)
        room.compute_rir()
        return list(zip(*room.rir, strict=True))

    # Sabine's formula is far off where rooms are not diffuse, so it is only the start.
    length, width, height = plan.size
    surface = 2 * (length * width + length * height + width * height)
    absorbed = 24 * math.log(10) / SPEED_OF_SOUND * plan.size.prod() / (surface * rt60)
    one_pair = plan._replace(microphones=plan.microphones[:1], talkers=plan.talkers[:1])
    for _ in range(2):
        absorbed = min(absorbed, MOST_ABSORBED)
        ((response,),) = respond(absorbed, one_pair)
        absorbed *= measure(response, sample_rate, decay_db=30) / rt60
    responses = respond(min(absorbed, MOST_ABSORBED), plan)
    measured = measure(responses[0][0], sample_rate, decay_db=30)

    gaps = plan.talkers[:, None] - plan.microphones
    nearest = np.linalg.norm(gaps, axis=-1).min()
    lead = int(nearest / SPEED_OF_SOUND * sample_rate)
    return [_trimmed(channels, lead) for channels in responses], measured


def _place(layout, size, n_microphones, n_talkers, rng):
    """Places microphones and talkers, or gives up with None."""
    if layout == "device":
        least, most = (FROM_WALLS, FROM_WALLS), size[:2] - FROM_WALLS
        middle = np.append(rng.uniform(least, most), rng.uniform(*DEVICE_HEIGHT))
        microphones = middle + _circle(n_microphones, DEVICE_DIAMETER / 2, rng)
        around = APART
    else:
        around = TABLE_RADIUS + 0.2  # nobody sits on the table
        middle = np.append(rng.uniform(around, size[:2] - around), TABLE_HEIGHT)
        microphones = _spread(
            n_microphones,
            lambda: middle + np.append(rng.uniform(-1, 1, size=2), 0) * TABLE_RADIUS,
            lambda phone, others: (
                _distance(phone, middle) <= TABLE_RADIUS
                and all(_distance(phone, other) >= PHONES_APART for other in others)
            ),
        )

    def stand():
        floor = rng.uniform(FROM_WALLS, size[:2] - FROM_WALLS)
        return np.append(floor, rng.uniform(*HEAD_HEIGHT))

    def fits(talker, others):
        near = [*others, *microphones]
        return (
            around <= _distance(talker[:2], middle[:2]) <= FARTHEST
            and min(_distance(talker, other) for other in near) >= APART
        )

    if microphones is None:
        return None
    talkers = _spread(n_talkers, stand, fits)
    return None if talkers is None else Plan(layout, size, microphones, talkers)


def _spread(count, draw, fits):
    """Draws so many positions that fit beside each other, or gives up with None."""
    positions = []
    for _ in range(100 * count):
        position = draw()
        if fits(position, positions):
            positions.append(position)
        if len(positions) == count:
            return np.stack(positions)
    return None


def _circle(count, radius, rng):
    """Points evenly on a horizontal circle, turned anyhow; one is in its middle."""
    if count == 1:
        return np.zeros((1, 3))
    angles = 2 * np.pi * (rng.random() + np.arange(count) / count)
    circle = np.stack([np.cos(angles), np.sin(angles), np.zeros(count)], axis=1)
    return radius * circle


def _distance(position, other):
    return np.linalg.norm(position - other)


def _trimmed(channels, lead):
    """Makes (taps, microphones) of responses, without common lead-in and weak tail."""
    taps = max(map(len, channels))
    response = np.stack([np.pad(h, (0, taps - len(h))) for h in channels], axis=1)
    left = np.cumsum(np.square(response[::-1]), axis=0)[::-1]
    heard = (left > TAIL * left[0]).any(axis=1)
    return response[lead : heard.sum()].astype(np.float32)


def _make_room(number, folder, settings):
    """Simulates a room and writes its folder, the description last."""
    plan, rt60 = draw_plan(settings, number)
    responses, rt60 = simulate(plan, rt60, settings.sample_rate)
    room = Path(folder, room_name(number))
    for talker, response in enumerate(responses):
        wav = io.BytesIO()
        # Unlike libsndfile, this writes no time of day into the file.
        wavfile.write(wav, settings.sample_rate, response)
        with whole_file(room / f"talker-{talker}.wav") as temporary:
            temporary.write_bytes(wav.getbuffer())
    description = {
        "rt60": round(rt60, 3),
        "layout": plan.layout,
        "size": plan.size.round(3).tolist(),
        "microphones": plan.microphones.round(4).tolist(),
        "talkers": plan.talkers.round(3).tolist(),
    }
    with whole_file(room / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(description), encoding="utf-8")


def _record(folder, settings):
    """Writes the settings before any room; those of a folder begun are compared."""
    record = folder / RECORD
    text = json.dumps(settings._asdict(), indent=1) + "\n"
    if not record.exists():
        if folder.exists() and any(folder.iterdir()):
            raise DataError(
                f"{folder}: is not empty and holds no simulated rooms; give another "
                "folder"
            )
        with whole_file(record) as temporary:
            temporary.write_text(text, encoding="utf-8")
    elif record.read_text(encoding="utf-8") != text:
        raise DataError(
            f"{folder}: holds rooms of other settings ({RECORD} there); give the same "
            "ones, another folder, or delete this one"
        )


def _import_pyroomacoustics():
    try:
        import pyroomacoustics
        from pyroomacoustics import experimental  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "simulating rooms needs pyroomacoustics: "
            'pip install "speechbrain-peer[rooms]"'
        ) from error
    # Several threads add up in any order, and other processes need their cores.
    pyroomacoustics.constants.set("num_threads", 1)
    return pyroomacoustics
