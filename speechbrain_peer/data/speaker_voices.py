"""The voices of speakers, as vectors: who is easily taken for whom."""

import zipfile
from itertools import islice

import numpy as np

from speechbrain_peer.utils.files import whole_file

NEAREST = 10
"""Of so many a confusable interferer is drawn."""


class SpeakerVoices:
    """Voices of speakers, to find those that are alike.

    Arguments
    ---------
    speakers : list of str
        Their names.
    vectors : np.ndarray
        A voice of each, (speakers, size); the nearer two are, the more they are alike.

    Example
    -------
    >>> vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.8]])
    >>> voices = SpeakerVoices(["ann", "bob", "cid", "dan"], vectors)
    >>> voices.nearest("ann", {"ann"})
    ['bob', 'dan', 'cid']
    >>> voices.nearest("ann", {"ann", "bob"}, count=1)
    ['dan']
    """

    def __init__(self, speakers, vectors):
        self.speakers, self._vectors = list(speakers), vectors
        self._numbers = {speaker: k for k, speaker in enumerate(self.speakers)}

    def nearest(self, speaker, present, count=NEAREST):
        """Finds the speakers whose voices are most like one.

        Arguments
        ---------
        speaker : str
            Whose voice.
        present : set of str
            Speakers that are left out.
        count : int
            The most to find.

        Returns
        -------
        list of str
            The nearest first.
        """
        own = self._vectors[self._numbers[speaker]]
        distances = np.linalg.norm(self._vectors - own, axis=1)
        others = (self.speakers[k] for k in np.argsort(distances, kind="stable"))
        return list(islice((name for name in others if name not in present), count))


def write_speaker_voices(path, speakers, vectors, mark):
    """Writes voices, in half precision.

    Arguments
    ---------
    path : str or Path
        The file, of numpy's `npz`.
    speakers : list of str
        Their names.
    vectors : np.ndarray
        (speakers, size).
    mark : str
        Of what has made them, and of what.
    """
    # By a file, as numpy would add a suffix to a name.
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        vectors = np.asarray(vectors, dtype=np.float16)
        np.savez(file, speakers=np.array(speakers), vectors=vectors, mark=mark)


def read_speaker_voices(path, mark):
    """Reads voices that `write_speaker_voices` has written; runs no code.

    Arguments
    ---------
    path : str or Path
        The file.
    mark : str
        With which it must have been written.

    Returns
    -------
    SpeakerVoices or None
        None if there are none, or others: make them.

    Example
    -------
    >>> path = getfixture("tmp_path") / "voices.npz"
    >>> write_speaker_voices(path, ["ann", "bob"], np.eye(2), "of 2024")
    >>> read_speaker_voices(path, "of 2024").speakers
    ['ann', 'bob']
    >>> read_speaker_voices(path, "of 2025")
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["mark"]) != mark:
                return None
            vectors = arrays["vectors"].astype(np.float32)
            return SpeakerVoices(arrays["speakers"].tolist(), vectors)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
