"""Training items of mixtures that are drawn anew in every epoch (dynamic mixing)."""

from itertools import cycle

import numpy as np
import torch
from speechbrain.utils.logger import get_logger

from speechbrain_peer.data.mixing_metadata import MAX_AMPLITUDE
from speechbrain_peer.data.noise import at_snr
from speechbrain_peer.data.rooms import (
    direct,
    direct_taps,
    early,
    line_up,
    reverberate,
)
from speechbrain_peer.data.training_items import EpochItems
from speechbrain_peer.utils.any_audio import read_at_rate
from speechbrain_peer.utils.audio import AudioError
from speechbrain_peer.utils.files import DataError

logger = get_logger(__name__)

MOST_BROKEN = 100
"""Files that cannot be read, of those that one loader process has met in a training or
epoch, before it ends: more than an accident."""


class DrawnItems(EpochItems):
    """Draws and reads training items; every draw is a function of (seed, epoch, item).

    An item with a file that cannot be read is drawn anew, up to a limit, and the file
    is told.

    Arguments
    ---------
    drawer : SceneDrawer
        Draws scenes.
    seed : int
        Seeds all draws.
    """

    def __init__(self, drawer, seed):
        super().__init__(seed, drawer.enrolling)
        self.drawer = drawer
        self.renderer = Renderer(drawer.surroundings, drawer.sample_rate)
        self.n_speakers = drawer.pool.n_speakers
        self.broken = set()  # reasons, which name the files

    def read(self, item_id):
        """Draws and renders one item.

        Arguments
        ---------
        item_id : str
            Of the dataset.

        Returns
        -------
        mixtures, targets : torch.Tensor
            (time, branches).
        enrollment : torch.Tensor
            (time,).
        speaker : int
            Index of the enrolled speaker.
        coin : int
            Index of a random branch.
        enrollment_mixture : torch.Tensor
            (time,). What is to be extracted from it, with `enrollment`, enrolls the
            item; where it is silent, `enrollment` does itself.

        Raises
        ------
        DataError
            If too many files have turned out to be broken.
        """
        attempt = 0
        while True:
            # The first attempt is the item's own.
            name = f"{item_id} {attempt}" if attempt else item_id
            scene = self.drawer.draw(self.rng(name))
            try:
                mixtures, targets, enrollment = self.renderer.render(scene)
                enrollment_mixture = np.zeros(1, dtype=np.float32)
                rng = self.rng_of_estimate(name)
                if rng is not None:
                    around = self.drawer.draw_around(scene, rng)
                    heard, _, enrollment = self.renderer.render(around)
                    enrollment_mixture = heard[:, 0]
                break
            except AudioError as error:
                self._count(error)
                attempt += 1
        tensors = map(torch.from_numpy, (mixtures, targets, enrollment))
        return (
            *(*tensors, scene.speaker, scene.coin),
            torch.from_numpy(enrollment_mixture),
        )

    def _count(self, error):
        if str(error) in self.broken:
            return
        self.broken.add(str(error))
        if len(self.broken) > MOST_BROKEN:
            raise DataError(
                f"{error}; {len(self.broken)} files could not be read in this "
                "training: prepare the data again"
            ) from error
        logger.warning(f"{error}; items with it are drawn anew")


class Renderer:
    """Makes sound of scenes; nothing is random here.

    Arguments
    ---------
    surroundings : Surroundings
        Reads noise and rooms.
    sample_rate : int
        In Hz.
    """

    def __init__(self, surroundings, sample_rate):
        self.sample_rate = sample_rate
        self.noise, self.rooms = surroundings.noise, surroundings.rooms
        wanted = surroundings.mixing.target_sound
        self.cut = early if wanted == "early" else direct

    def render(self, scene):
        """Renders a scene.

        Arguments
        ---------
        scene : Scene

        Returns
        -------
        mixtures, targets : np.ndarray
            float32, (time, branches); targets of an absent person are silent.
        enrollment : np.ndarray
            float32, (time,).
        """
        target = self._read(scene.target, scene.samples)
        others = [
            [self._read(talk, scene.samples) for talk in talks]
            for talks in scene.interferers
        ]
        first, *rest = self._responses(scene.place, 1 + sum(map(len, others)))
        wanted = None if first is None else self.cut(first, self.sample_rate)
        # Peers have interferers of their own, or are the microphones of one scene.
        heard, targets = (
            np.tile(hear(target, response), len(others)) for response in (first, wanted)
        )
        responses = cycle(rest)
        mixtures = heard + np.concatenate(
            [sum(hear(talk, next(responses)) for talk in talks) for talks in others],
            axis=1,
        )
        if len(others) == 1 and mixtures.shape[1] > 1:
            # Lending between microphones needs the target at one time in all of them;
            # what is left, fractions of a sample, is what extraction leaves too.
            taps = direct_taps(first)
            delays = taps - taps[0]
            mixtures, targets = line_up(mixtures, delays), line_up(targets, delays)
        for branch, noise in enumerate(scene.noises):
            mixtures[:, branch] += self._noise(noise, heard[:, branch])
        peak = np.abs(mixtures).max()
        scale = np.float32(MAX_AMPLITUDE / max(peak, MAX_AMPLITUDE))
        targets = np.zeros_like(mixtures) if scene.absent else targets * scale
        return mixtures * scale, targets, self._enrollment(scene)

    def _enrollment(self, scene):
        speech = self._read(scene.enrollment, scene.enrollment.samples)
        (response,) = self._responses(scene.enrollment_place, 1)
        speech = hear(speech, response)[:, 0]
        if scene.enrollment_noise is not None:
            speech = speech + self._noise(scene.enrollment_noise, speech)
        return np.ascontiguousarray(speech)

    def _responses(self, place, n_talkers):
        """That of each talker; None where there is no room."""
        if place is None:
            return [None] * n_talkers
        return self.rooms.responses(place.placement, place.microphones)

    def _read(self, talk, samples):
        """A talk, where it is in a signal of so many samples."""
        speech = read_at_rate(
            talk.utterance.path, talk.start, talk.frames, self.sample_rate, talk.speed
        )[: talk.samples]
        signal = np.zeros(samples, dtype=np.float32)
        end = min(samples, talk.offset + len(speech))
        signal[talk.offset : end] = speech[: end - talk.offset] * np.float32(talk.gain)
        return signal

    def _noise(self, noise, speech):
        return at_snr(self.noise.read(noise.cut), speech, noise.snr)


def hear(speech, response):
    """A talker at microphones (time, microphones); without a room there is one."""
    return speech[:, None] if response is None else reverberate(speech, response)
