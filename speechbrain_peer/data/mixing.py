"""How training mixtures are drawn: the settings that a YAML gives."""

from speechbrain_peer.data.settings import Settings

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
        settings = Settings("mixing")
        self.n_interferers = settings.whole_numbers(
            "n_interferers", n_interferers, 1, 5
        )
        self.speeds = settings.whole_numbers("speeds", speeds, 50, 200)
        self.items_per_epoch = items_per_epoch
        if items_per_epoch is not None:
            settings.whole_numbers("items_per_epoch", [items_per_epoch], 1, 10**9)
        self.loudness = settings.spread("loudness", loudness, -80, 0)
        self.overlap = settings.spread("overlap", overlap, 0, 1)
        self.snr = settings.spread("snr", snr, -40, 80)
        self.balance = settings.one_of("balance", balance, BALANCES)
        self.target_sound = settings.one_of(
            "target_sound", target_sound, ("early", "direct")
        )
        self.absent = settings.number("absent", absent, 0, 1)
        self.reverberant = settings.number("reverberant", reverberant, 0, 1)
        self.noise_folder, self.rooms_folder = noise_folder, rooms_folder
