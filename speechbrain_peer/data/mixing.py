"""How training mixtures are drawn: the settings that a YAML gives."""

from speechbrain_peer.utils.files import DataError

BALANCES = ("utterances", "speakers")


class Mixing:
    """Settings of drawn mixtures (dynamic mixing).

    Arguments
    ---------
    n_interferers : list of int
        How many a mixture has; each number is equally likely.
    loudness : list of float
        The range in LUFS that a talker's loudness is drawn from, as LibriMix does.
    overlap : list of float
        The range of the share of talk that overlaps. 1: target and interferers talk
        all the time; 0: one after the other.
    speeds : list of int
        In percent, each equally likely. A changed speed moves the pitch too, so that
        one person serves as several voices; target and enrollment have the same.
    balance : str
        `utterances`: each is equally likely to be the target's; `speakers`: each
        speaker is equally likely, however much speech there is of them.
    items_per_epoch : int or None
        None: half as many as there are utterances, so that an epoch has about all of
        them, as targets and interferers.
    absent : float
        The share of items whose enrollment is of somebody who does not talk; their
        target is silence. For a loss that knows of level.
    noise_folder : str or None
        Any folder of noise, for mixtures and enrollments; None: no noise.
    snr : list of float
        The range in dB of the target above the noise.
    rooms_folder : str or None
        Rooms as `tse rooms` simulates them, or measured responses; None: no rooms.
    reverberant : float
        The share of items that are in a room, where there are rooms.
    target_sound : str
        What the target of an item in a room is: `early`, the direct sound with the
        reflections of the first 50 ms, or `direct`.

    Raises
    ------
    DataError
        If a setting cannot be.

    Example
    -------
    >>> Mixing(speeds=[90, 100, 110], overlap=[0.2, 1.0]).n_interferers
    [1]
    >>> Mixing(absent=2)
    Traceback (most recent call last):
    speechbrain_peer.utils.files.DataError: mixing: absent is 2, not from 0 to 1
    """

    def __init__(
        self,
        n_interferers=(1,),
        loudness=(-33.0, -25.0),
        overlap=(1.0, 1.0),
        speeds=(100,),
        balance="utterances",
        items_per_epoch=None,
        absent=0.0,
        noise_folder=None,
        snr=(0.0, 20.0),
        rooms_folder=None,
        reverberant=1.0,
        target_sound="early",
    ):
        self.n_interferers = _list_of_whole("n_interferers", n_interferers, 1, 5)
        self.speeds = _list_of_whole("speeds", speeds, 50, 200)
        self.items_per_epoch = items_per_epoch
        if items_per_epoch is not None:
            _list_of_whole("items_per_epoch", [items_per_epoch], 1, 10**9)
        self.loudness = _range("loudness", loudness, -80, 0)
        self.overlap = _range("overlap", overlap, 0, 1)
        self.snr = _range("snr", snr, -40, 80)
        self.balance = _one_of("balance", balance, BALANCES)
        self.target_sound = _one_of("target_sound", target_sound, ("early", "direct"))
        self.absent = _number("absent", absent, 0, 1)
        self.reverberant = _number("reverberant", reverberant, 0, 1)
        self.noise_folder, self.rooms_folder = noise_folder, rooms_folder


def _number(name, value, least, most):
    # A bool is an int, too.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"mixing: {name} is {value!r}, not a number")
    if not least <= value <= most:
        raise DataError(f"mixing: {name} is {value}, not from {least} to {most}")
    return value


def _list_of_whole(name, values, least, most):
    values = list(values) if isinstance(values, list | tuple) else []
    if not values or not all(type(value) is int for value in values):
        raise DataError(f"mixing: {name} is not a list of whole numbers, such as [1]")
    return [_number(name, value, least, most) for value in values]


def _range(name, values, least, most):
    if not isinstance(values, list | tuple) or len(values) != 2:
        raise DataError(
            f"mixing: {name} is {values!r}, not a range, such as [{least}, {most}]"
        )
    low, high = (_number(name, value, least, most) for value in values)
    if low > high:
        raise DataError(f"mixing: {name} is a range whose end {high} is before {low}")
    return low, high


def _one_of(name, value, choices):
    if value not in choices:
        raise DataError(f"mixing: {name} is {value!r}, not {' or '.join(choices)}")
    return value
