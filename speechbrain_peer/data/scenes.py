"""Scenes: who talks when, how loud and where, in one training item.

All that is random is drawn here, as plain data, from one random generator: a scene is
a function of (seed, epoch, item). `speech_pool` draws whose speech it is, `drawn_items`
makes sound of it.
"""

import math
from typing import NamedTuple

from speechbrain_peer.data.enrolling import Enrolling
from speechbrain_peer.data.peers import gain_of_peers
from speechbrain_peer.data.speech_table import Utterance
from speechbrain_peer.data.surroundings import Noise, Place, Surroundings
from speechbrain_peer.utils.files import DataError


class Talk(NamedTuple):
    """A piece of speech in a scene."""

    utterance: Utterance
    start: int
    """Where it begins in the file, in samples of the file's rate."""
    frames: int
    """How long it is there."""
    speed: int
    """In percent."""
    gain: float
    offset: int
    """Where it begins in the scene, in samples of the scene's rate."""
    samples: int
    """How long it is there."""


class Scene(NamedTuple):
    """One training item, before it is rendered."""

    samples: int
    """Length of mixtures and target."""
    target: Talk
    interferers: tuple
    """For each branch a tuple of `Talk`; one only where all branches share them."""
    absent: bool
    """Whether the enrolled person is none of the talkers."""
    enrollment: Talk
    speaker: int
    """The enrolled person, among `SpeechPool.speakers`."""
    coin: int
    """A random branch; see `exchange: anyway` and `coin`."""
    place: Place | None
    enrollment_place: Place | None
    noises: tuple
    """One for each branch, or none."""
    enrollment_noise: Noise | None


class SceneDrawer:
    """Draws scenes.

    Arguments
    ---------
    pool : SpeechPool
        The utterances.
    mixing : Mixing
        The settings.
    chunk_samples : int
        Longest scene, and enrollment unless its length is drawn.
    sample_rate : int
        Of the scenes, in Hz.
    branches : int
        How many peers a scene has; 1: single mixtures.
    peers : str
        `drawn`: the target with other interferers in each branch; `microphones`: one
        scene, heard by as many microphones of a room.
    peer_interferer : str
        `any`: other speakers in every branch; `same`: other utterances of the same.
    enrolling : Enrolling or None
        How scenes are enrolled.

    Raises
    ------
    DataError
        If there are too few speakers, or noise or rooms cannot be read.
    """

    def __init__(
        self,
        pool,
        mixing,
        chunk_samples,
        sample_rate,
        branches=1,
        peers="drawn",
        peer_interferer="any",
        enrolling=None,
    ):
        self.pool, self.mixing = pool, mixing
        self.enrolling = enrolling or Enrolling()
        self.chunk_samples, self.sample_rate = chunk_samples, sample_rate
        self.branches, self.peer_interferer = branches, peer_interferer
        self.gain = gain_of_peers(peer_interferer)
        self.microphones = peers == "microphones"
        self.surroundings = Surroundings(
            mixing, sample_rate, "train", microphones=self.microphones
        )
        self._check()

    def _check(self):
        others = max(self.mixing.n_interferers)
        self.surroundings.check(1 + others)
        if self.peer_interferer != "same" and not self.microphones:
            others *= self.branches
        needed = 1 + others + (self.mixing.absent > 0)
        if self.pool.n_speakers < needed:
            raise DataError(
                f"{self.pool.tables[0].path}: {needed} speakers are needed for one "
                f"item, but there are {self.pool.n_speakers}; add speakers, or lower "
                "n_interferers"
            )

    def draw(self, rng):
        """Draws a scene.

        Arguments
        ---------
        rng : np.random.Generator
            See `peers.item_rng`.

        Returns
        -------
        Scene
        """
        mixing = self.mixing
        count = int(rng.choice(mixing.n_interferers))
        speed = int(rng.choice(mixing.speeds))
        overlap = rng.uniform(*mixing.overlap)
        target, enrollment, speaker = self.pool.draw_target(rng)
        # All talk for the same time, which overlaps by the share drawn.
        talk = self._cut(target, self.chunk_samples / (2 - overlap), speed, rng)
        samples = min(self.chunk_samples, round(talk.samples * (2 - overlap)))
        pause = samples - talk.samples
        first = bool(rng.integers(2))
        target = talk._replace(offset=0 if first else pause)

        def cut(utterance):
            speed = int(rng.choice(mixing.speeds))
            talk = self._cut(utterance, target.samples, speed, rng)
            return talk._replace(offset=pause if first else 0)

        present = {speaker}
        drawn = self.pool.draw_others(count, present, rng)
        interferers = [tuple(cut(utterance) for utterance, _ in drawn)]
        absent = bool(rng.random() < mixing.absent)
        if absent:
            ((enrollment, speaker),) = self.pool.draw_others(1, present, rng)
        enrollment = self._cut_enrollment(enrollment, speed, rng)
        # What is drawn from here on depends on the number of branches.
        while len(interferers) < self.branches and not self.microphones:
            if self.peer_interferer != "same":
                others = self.pool.draw_others(count, present, rng)
                utterances = [utterance for utterance, _ in others]
            else:
                utterances = [self.pool.draw_again(*one, rng) for one in drawn]
            talks = map(cut, utterances)
            talks = (talk._replace(gain=self.gain * talk.gain) for talk in talks)
            interferers.append(tuple(talks))
        return Scene(
            samples,
            target,
            tuple(interferers),
            absent,
            enrollment,
            speaker,
            int(rng.integers(self.branches)),
            **self.surroundings.draw(
                samples,
                1 + sum(map(len, interferers)),
                enrollment.samples,
                rng,
                self.branches,
            ),
        )

    def draw_around(self, scene, rng):
        """Draws a mixture that a scene's enrollment is the target of.

        What the network extracts from it can enroll the scene.

        Arguments
        ---------
        scene : Scene
            From `draw`.
        rng : np.random.Generator
            See `peers.item_rng`.

        Returns
        -------
        Scene
            With one branch, in which all talk from beginning to end; its enrollment is
            another utterance of the same person, if there is one.
        """
        target, speaker = scene.enrollment, scene.speaker
        others = self.pool.draw_others(
            int(rng.choice(self.mixing.n_interferers)), {speaker}, rng
        )
        interferers = tuple(
            self._cut(other, target.samples, int(rng.choice(self.mixing.speeds)), rng)
            for other, _ in others
        )
        enrollment = self._cut_enrollment(
            self.pool.draw_again(target.utterance, speaker, rng), target.speed, rng
        )
        return Scene(
            target.samples,
            target,
            (interferers,),
            absent=False,
            enrollment=enrollment,
            speaker=speaker,
            coin=0,
            **self.surroundings.draw(
                target.samples, 1 + len(interferers), enrollment.samples, rng
            ),
        )

    def _cut_enrollment(self, utterance, speed, rng):
        def cut(samples, rng):
            return self._cut(utterance, samples, speed, rng)

        return self.enrolling.cut(cut, self.chunk_samples, self.sample_rate, rng)

    def _cut(self, utterance, samples, speed, rng):
        """A piece of an utterance, of at most so many samples, as loud as drawn."""
        ratio = utterance.rate * speed / 100 / self.sample_rate
        frames = min(utterance.length, math.ceil(samples * ratio))
        start = int(rng.integers(utterance.length - frames + 1))
        wanted = rng.uniform(*self.mixing.loudness)
        gain = 1.0
        if not math.isnan(utterance.loudness):
            gain = 10 ** ((wanted - utterance.loudness) / 20)
        samples = max(1, min(int(samples), round(frames / ratio)))
        start += utterance.start
        return Talk(utterance, start, frames, speed, gain, offset=0, samples=samples)


def scene_of(row, surroundings, sample_rate, rng):
    """A listed mixture as a scene: what is drawn is where it is heard.

    Arguments
    ---------
    row : dict
        Of a manifest of dev or test.
    surroundings : Surroundings
    sample_rate : int
        Of the row's files, in Hz.
    rng : np.random.Generator
        See `peers.item_rng`.

    Returns
    -------
    Scene
    """

    def whole(path, length):
        utterance = Utterance(path, "", "", 0, length, sample_rate, math.nan)
        return Talk(utterance, 0, length, 100, 1.0, offset=0, samples=length)

    target, *others = (
        whole(source["path"], source["length"])
        for source in (row["target"], *row["interferers"])
    )
    enrollment = whole(row["enrollment"], row["enrollment_length"])
    return Scene(
        row["length"],
        target,
        (tuple(others),),
        absent=False,
        enrollment=enrollment,
        speaker=0,
        coin=0,
        **surroundings.draw(row["length"], 1 + len(others), enrollment.samples, rng),
    )
