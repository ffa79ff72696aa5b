"""Where talkers are heard: rooms and noise, drawn for mixtures and enrollments."""

from typing import NamedTuple

from speechbrain_peer.data.noise import NoiseCut, NoiseFolder
from speechbrain_peer.data.rooms import Placement, RoomFolder
from speechbrain_peer.utils.files import DataError


class Place(NamedTuple):
    """A room's talkers and microphones."""

    placement: Placement
    """A position for the target, and those of all branches' interferers, who go round
    them in order: those of one branch have different ones."""
    microphones: tuple
    """One for each branch, or one for all."""


class Noise(NamedTuple):
    """A piece of noise in a scene."""

    cut: NoiseCut
    snr: float
    """Of the target above it, in dB."""


class Surroundings:
    """Draws rooms and noise.

    Arguments
    ---------
    mixing : Mixing
        The settings.
    sample_rate : int
        In Hz.
    subset : str
        `train`, `dev` or `test`, where a folder of noise has such parts.
    microphones : bool
        Whether branches are the microphones of one room.

    Raises
    ------
    DataError
        If noise or rooms cannot be read, or there are microphones but no rooms.
    """

    def __init__(self, mixing, sample_rate, subset, microphones=False):
        self.mixing, self.microphones = mixing, microphones
        self.noise = self.rooms = None
        if mixing.noise_folder:
            self.noise = NoiseFolder(mixing.noise_folder, sample_rate, subset)
            self.noise.check()
        if mixing.rooms_folder:
            self.rooms = RoomFolder(mixing.rooms_folder, sample_rate)
        elif microphones:
            raise DataError(
                "peers: microphones needs rooms: simulate them (tse rooms -o ROOMS) "
                "and give rooms_folder in mixing"
            )

    def __bool__(self):
        """Whether there are any."""
        return bool(self.noise or self.rooms)

    def check(self, n_talkers):
        """Raises DataError if no room has places for so many talkers of a mixture."""
        if self.rooms and self.rooms.most_talkers < n_talkers:
            raise DataError(
                f"{self.rooms.folder}: no room has responses from {n_talkers} "
                f"positions, at most {self.rooms.most_talkers}; lower n_interferers, "
                "or simulate rooms with more talkers"
            )

    def draw(self, samples, n_talkers, enrollment_samples, rng, branches=1):
        """Draws those of a scene and of its enrollment.

        Arguments
        ---------
        samples : int
            Of the mixtures.
        n_talkers : int
            In all branches together.
        enrollment_samples : int
            Of the enrollment.
        rng : np.random.Generator
            See `peers.item_rng`.
        branches : int
            How many mixtures there are.

        Returns
        -------
        dict
            What a `Scene` has of it, by name.
        """
        return {
            "place": self._draw_place(n_talkers, branches, rng),
            "enrollment_place": self._draw_place(1, 1, rng),
            "noises": tuple(self._draw_noises(samples, branches, rng)),
            "enrollment_noise": next(
                self._draw_noises(enrollment_samples, 1, rng), None
            ),
        }

    def _draw_place(self, n_talkers, branches, rng):
        """Where all are, and each branch's microphone; None: in no room."""
        if self.rooms is None:
            return None
        everywhere = self.microphones or rng.random() < self.mixing.reverberant
        if not everywhere:
            return None
        n_talkers = min(n_talkers, self.rooms.most_talkers)
        placement = self.rooms.draw(n_talkers, rng)
        microphones = rng.permutation(self.rooms.n_microphones(placement)).tolist()
        # Other peers are all heard by one: they differ by their interferers.
        count = branches if self.microphones else 1
        if len(microphones) < count:
            raise DataError(
                f"{self.rooms.folder}: {count} peers need as many microphones, but "
                f"{placement.room} has {len(microphones)}; lower n_peers, or simulate "
                "rooms with more"
            )
        return Place(placement, tuple(microphones[:count]))

    def _draw_noises(self, samples, count, rng):
        if self.noise is None:
            return
        for _ in range(count):
            snr = float(rng.uniform(*self.mixing.snr))
            yield Noise(self.noise.draw(samples, rng), snr)
