"""What training enrolls with: the settings that a YAML gives."""

from speechbrain_peer.data.settings import Settings
from speechbrain_peer.utils.signal import SHORTEST_ENROLLMENT


class Enrolling:
    """Settings of the enrollments of training items, listed and drawn.

    Every draw is a function of (seed, epoch, item), from a stream of its own: mixtures
    and targets are those of a training without these settings.

    Arguments
    ---------
    seconds : list of float or None
        The range that the length of an enrollment is drawn from; an utterance that is
        shorter is taken whole. None: as long as a chunk of the mixtures, at most.
    own_estimates : float
        The share of items that are not enrolled with a recording, but with what the
        network itself extracts of it from a mixture.

    Raises
    ------
    DataError
        If a setting cannot be.

    Example
    -------
    >>> Enrolling(seconds=[1, 8], own_estimates=0.2).seconds
    (1, 8)
    >>> Enrolling(seconds=8)
    Traceback (most recent call last):
    speechbrain_peer.utils.files.DataError: enrolling: seconds is 8, not a range, ...
    """

    def __init__(self, seconds=None, own_estimates=0.0):
        settings = Settings("enrolling")
        self.seconds = seconds
        if seconds is not None:
            self.seconds = settings.spread("seconds", seconds, SHORTEST_ENROLLMENT, 60)
        self.own_estimates = settings.number("own_estimates", own_estimates, 0, 1)

    def cut(self, cut, chunk_samples, sample_rate, rng):
        """Cuts an enrollment, at a length that is drawn if there is a range.

        Arguments
        ---------
        cut : callable
            Takes the most samples and a generator, and draws a piece.
        chunk_samples : int
            The most of them where no length is drawn.
        sample_rate : int
            In Hz.
        rng : np.random.Generator
            That of the item, which draws on as if no length were drawn.

        Returns
        -------
        object
            What `cut` returns.
        """
        piece = cut(chunk_samples, rng)
        if self.seconds is None:
            return piece
        (own,) = rng.spawn(1)
        return cut(round(own.uniform(*self.seconds) * sample_rate), own)
