"""Who is drawn: utterances of one or several tables, and others of the same speakers.

How often each table is drawn, and each utterance or speaker of it, is settled here;
`scenes` puts together what is drawn.
"""

import numpy as np

from speechbrain_peer.data.speech_table import SpeechTable
from speechbrain_peer.utils.files import DataError


class SpeechPool:
    """Tables of utterances, of which one is drawn with its weight.

    Arguments
    ---------
    tables : dict
        {SpeechTable: weight}.
    balance : str
        See `Mixing`.

    Raises
    ------
    DataError
        If nobody can be a target, as all speakers have a single utterance.
    """

    def __init__(self, tables, balance="utterances"):
        self.tables, self.balance = list(tables), balance
        weights = np.array(list(tables.values()), dtype=float)
        self._bounds = np.cumsum(weights / weights.sum())
        counts = [len(table.speakers) for table in self.tables]
        self._firsts = np.cumsum([0, *counts])
        self.n_speakers = int(self._firsts[-1])
        # Two corpora's speakers of one name are two.
        self.speakers = [name for table in self.tables for name in table.speakers]
        singles = sum(len(table.single_speakers()) for table in self.tables)
        if singles == self.n_speakers:
            raise DataError(
                f"{self.tables[0].path}: no speaker has a second utterance to be "
                "enrolled with; add recordings"
            )

    def draw(self, rng):
        """Draws an utterance: the table's number and its index there."""
        corpus = 0
        if len(self.tables) > 1:
            corpus = int(np.searchsorted(self._bounds, rng.random(), "right"))
            corpus = min(corpus, len(self.tables) - 1)
        table = self.tables[corpus]
        if self.balance == "utterances":
            return corpus, int(rng.integers(len(table)))
        return corpus, self._of(table, int(rng.integers(len(table.speakers))), rng)

    def draw_target(self, rng):
        """Draws an utterance and another one of the same speaker.

        Arguments
        ---------
        rng : np.random.Generator
            See `peers.item_rng`.

        Returns
        -------
        target, enrollment : Utterance
        speaker : int
        """
        while True:
            corpus, index = self.draw(rng)
            table = self.tables[corpus]
            enrollment = table.others(index, rng)
            if enrollment is not None:
                speaker = self._speaker(corpus, index)
                return table[index], table[enrollment], speaker

    def draw_others(self, count, present, rng):
        """Draws utterances of other speakers.

        Arguments
        ---------
        count : int
            How many.
        present : set of int
            Speakers that are not drawn; those drawn are added.
        rng : np.random.Generator
            See `peers.item_rng`.

        Returns
        -------
        list of (Utterance, int)
            With the speakers, all different.
        """
        drawn = []
        while len(drawn) < count:
            # Few are present, so few draws are rejected.
            corpus, index = self.draw(rng)
            speaker = self._speaker(corpus, index)
            if speaker not in present:
                present.add(speaker)
                drawn.append((self.tables[corpus][index], speaker))
        return drawn

    def draw_again(self, utterance, speaker, rng):
        """Draws another utterance of a speaker; the same where there is no other."""
        corpus = int(np.searchsorted(self._firsts, speaker, "right")) - 1
        table = self.tables[corpus]
        index = self._of(table, speaker - int(self._firsts[corpus]), rng)
        if table[index].utterance == utterance.utterance:
            other = table.others(index, rng)
            index = index if other is None else other
        return table[index]

    def _speaker(self, corpus, index):
        return int(self._firsts[corpus]) + self.tables[corpus].speaker_of(index)

    @staticmethod
    def _of(table, speaker, rng):
        first, end = table.of_speaker(speaker)
        return int(rng.integers(first, end))


def open_pool(tables, balance):
    """Opens the tables that training items are drawn from.

    Arguments
    ---------
    tables : str, Path or dict
        A table, or {table: weight}.
    balance : str
        See `Mixing`.

    Returns
    -------
    SpeechPool
    """
    weights = tables if isinstance(tables, dict) else {tables: 1.0}
    opened = {SpeechTable(path): x for path, x in weights.items()}
    return SpeechPool(opened, balance)
