"""The random draws: enrollments and the interferers of the second peer.

Every draw is a function of (seed, epoch, item), so it is the same with any number of
workers, on every rank and after a resume.
"""

import zlib

import numpy as np

from speechbrain_peer.utils.files import DataError

QUIETER = 10.0
"""dB by which the interferers of easier peers are below those of the first."""


def gain_of_peers(peer_interferer):
    """What the interferers of further peers are multiplied by.

    Example
    -------
    >>> gain_of_peers("any"), round(gain_of_peers("quieter"), 3)
    (1.0, 0.316)
    """
    return 10 ** (-QUIETER / 20) if peer_interferer == "quieter" else 1.0


def item_rng(seed, epoch, item_id):
    """Makes the random generator of one item in one epoch.

    Arguments
    ---------
    seed : int
        The seed of the experiment, 0 or more.
    epoch : int
        0 or more; epoch 0 is that of draws made once, at preparation.
    item_id : str
        The item's ID in its manifest.

    Returns
    -------
    rng : np.random.Generator
        Equal for equal arguments, in every process.

    Example
    -------
    >>> item_rng(1234, 5, "a_b_s1").random() == item_rng(1234, 5, "a_b_s1").random()
    True
    """
    return np.random.default_rng([seed, epoch, zlib.crc32(item_id.encode())])


class SourcePool:
    """All sources of a subset, each as scaled in its own mixture, by speaker.

    Arguments
    ---------
    rows : dict
        A manifest, as `read_manifest` returns it or as the `data` of a
        DynamicItemDataset.
    voices : SpeakerVoices or None
        Of all speakers, for confusable interferers.

    Example
    -------
    >>> def source(utterance):
    ...     speaker = utterance.split("-")[0]
    ...     return {"path": utterance, "speaker": speaker, "utterance": utterance}
    >>> rows = {
    ...     "ann-1_bob-1_s1": {
    ...         "target": source("ann-1"),
    ...         "interferers": [source("bob-1")],
    ...     },
    ...     "ann-2_cid-1_s1": {
    ...         "target": source("ann-2"),
    ...         "interferers": [source("cid-1")],
    ...     },
    ... }
    >>> pool = SourcePool(rows)
    >>> rng = item_rng(seed=1, epoch=1, item_id="ann-1_bob-1_s1")
    >>> pool.draw_enrollment(rows["ann-1_bob-1_s1"], rng)["utterance"]
    'ann-2'
    >>> (interferers,) = pool.draw_peers(rows["ann-1_bob-1_s1"], rng)
    >>> [interferer["speaker"] for interferer in interferers]
    ['cid']
    """

    def __init__(self, rows, voices=None):
        self.voices = voices
        by_path = {
            source["path"]: source
            for row in rows.values()
            for source in (row["target"], *row["interferers"])
        }
        # Sorted, so that a draw does not depend on the order of the rows.
        self.sources = [by_path[path] for path in sorted(by_path)]
        self.utterances = {}
        for source in self.sources:
            utterances = self.utterances.setdefault(source["speaker"], {})
            utterances.setdefault(source["utterance"], []).append(source)

    def draw_enrollment(self, row, rng):
        """Draws an enrollment: another utterance of the target's speaker.

        Arguments
        ---------
        row : dict
            A row of the manifest.
        rng : np.random.Generator
            See `item_rng`.

        Returns
        -------
        source : dict
            {path, speaker, utterance, length}; each of the speaker's other
            utterances is equally likely, and then each file that holds it.
        """
        return self._draw_other_utterance(row["target"], rng)

    def draw_peers(self, row, rng, n_peers=2, peer_interferer="any"):
        """Draws the interferers of the row's peers after the first, which is the row.

        Arguments
        ---------
        row : dict
            A row of the manifest.
        rng : np.random.Generator
            See `item_rng`.
        n_peers : int
            How many peers there are, the first included.
        peer_interferer : str
            "any": sources of speakers that are not in the row, nor in another peer;
            "same": another utterance of each interferer's speaker; "quieter": as "any",
            and the caller makes them quieter by `QUIETER`; "confusable": as "any", of
            the nearest voices to the target's; see `SpeakerVoices.nearest`.

        Yields
        ------
        list of dict
            Sources of one peer: as many as the row has interferers, all of different
            speakers. What the caller draws in between does not repeat a draw.
        """
        present = _speakers_of(row)
        for _ in range(n_peers - 1):
            if peer_interferer == "same":
                yield [self._draw_other_utterance(x, rng) for x in row["interferers"]]
                continue
            count = len(row["interferers"])
            if peer_interferer == "confusable":
                near = self.voices.nearest(row["target"]["speaker"], present)
                drawn = self._draw_of(near, count, rng)
            else:
                drawn = self._draw_other_speakers(count, present, rng)
            present |= {source["speaker"] for source in drawn}
            yield drawn

    def draw_absent(self, row, rng):
        """Draws an utterance of somebody who is not in the row.

        Arguments
        ---------
        row : dict
            A row of the manifest.
        rng : np.random.Generator
            See `item_rng`.

        Returns
        -------
        source : dict or None
            {path, speaker, utterance, length}; None if all speakers are in it.
        """
        present = _speakers_of(row)
        if self.utterances.keys() <= present:
            return None
        return self._draw_other_speakers(1, present, rng)[0]

    def _draw_other_utterance(self, source, rng):
        utterances = self.utterances[source["speaker"]]
        others = [name for name in utterances if name != source["utterance"]]
        if not others:
            raise DataError(_single_utterance_message([source["speaker"]]))
        return self._draw_file(utterances, others, rng)

    def _draw_of(self, speakers, count, rng):
        """Draws sources of so many of some speakers."""
        chosen = (speakers[k] for k in rng.permutation(len(speakers))[:count])
        of_each = (self.utterances[speaker] for speaker in chosen)
        return [self._draw_file(names, list(names), rng) for names in of_each]

    @staticmethod
    def _draw_file(utterances, names, rng):
        """Draws a source of one of some utterances."""
        files = utterances[names[rng.integers(len(names))]]
        return files[rng.integers(len(files))]

    def _draw_other_speakers(self, count, present, rng):
        """Draws sources of as many speakers, none of whom is present."""
        if len(self.utterances.keys() - present) < count:
            raise DataError(
                f"no {count} speakers other than {', '.join(sorted(present))} are "
                "left to draw interferers of; add speakers or use peer_interferer: same"
            )
        present, drawn = set(present), []
        while len(drawn) < count:
            # Few sources are of the speakers present, so few draws are rejected.
            source = self.sources[rng.integers(len(self.sources))]
            if source["speaker"] not in present:
                drawn.append(source)
                present.add(source["speaker"])
        return drawn


def _speakers_of(row):
    return {source["speaker"] for source in (row["target"], *row["interferers"])}


def check_pool(rows, peers="off", peer_interferer="any", n_peers=2):
    """Raises DataError if a draw would fail for some row.

    Arguments
    ---------
    rows : dict
        The manifest of a subset.
    peers : str
        "off" checks the enrollments only, "listed" and "drawn" the interferers too.
    peer_interferer : str
        See `SourcePool.draw_peers`.
    n_peers : int
        How many peers an item has.
    """
    utterances = SourcePool(rows).utterances
    redrawn = [row["target"] for row in rows.values()]
    if peers != "off" and peer_interferer == "same":
        redrawn += [source for row in rows.values() for source in row["interferers"]]
    speakers = {source["speaker"] for source in redrawn}
    single = sorted(name for name in speakers if len(utterances[name]) == 1)
    if single:
        raise DataError(_single_utterance_message(single))
    # Peers have one target, and different interferers each.
    needed = 1 + n_peers * max(len(row["interferers"]) for row in rows.values())
    if peers != "off" and peer_interferer != "same" and len(utterances) < needed:
        raise DataError(
            f"{n_peers} peers need {needed} speakers, the data has {len(utterances)}; "
            "add speakers, or use peer_interferer: same or peers: off"
        )


def draw_listed_peers(rows, seed, peer_interferer="any", n_peers=2):
    """Draws the interferers of every row's further peers once (`peers: listed`).

    Arguments
    ---------
    rows : dict
        The manifest of a training subset.
    seed : int
        The list is a function of it and of the data.
    peer_interferer : str
        "any" or "same"; see `SourcePool.draw_peers`.
    n_peers : int
        How many peers an item has.

    Returns
    -------
    peers : dict
        {ID: a list of sources for each peer after the first}, which `write_manifest`
        stores.
    """
    pool = SourcePool(rows)
    return {
        item_id: list(
            pool.draw_peers(row, item_rng(seed, 0, item_id), n_peers, peer_interferer)
        )
        for item_id, row in rows.items()
    }


def _single_utterance_message(speakers):
    return (
        f"speakers with a single utterance: {', '.join(speakers)}; another utterance "
        "of theirs is needed (as enrollment, or with peer_interferer: same as second "
        "interferer): add recordings of them, or remove their mixtures"
    )
