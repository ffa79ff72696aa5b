"""Tables of utterances: what drawn mixtures are made of.

A table is an Arrow file (pyarrow), one row an utterance, sorted by speaker. It is
mapped into memory, not read: a million utterances open at once, and all workers of a
loader share them.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from speechbrain_peer.data.checks import check_file
from speechbrain_peer.data.manifests import DATA_ROOT, read_data_root
from speechbrain_peer.utils.files import DataError, whole_file

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("speaker", pa.dictionary(pa.int32(), pa.string())),
        ("utterance", pa.dictionary(pa.int32(), pa.string())),
        ("start", pa.int64()),
        ("length", pa.int64()),
        ("rate", pa.int32()),
        ("loudness", pa.float32()),
    ]
)
CURE = "prepare the data again"


class Utterance(NamedTuple):
    """A piece of speech of one talker."""

    path: str
    """The file; may begin with "{data_root}"."""
    speaker: str
    utterance: str
    """Its name. Several files may hold one utterance, as sources of mixtures do."""
    start: int
    """Where it begins in the file, in samples of the file's own rate."""
    length: int
    """In samples of the file's own rate."""
    rate: int
    """The file's, in Hz."""
    loudness: float
    """In LUFS; NaN: unknown, and mixtures keep the level that the file has."""


def write_speech_table(path, utterances):
    """Writes a table, whole or not at all.

    Arguments
    ---------
    path : str or Path
        The Arrow file.
    utterances : iterable of Utterance
        In any order.

    Raises
    ------
    DataError
        If there are none.
    """
    rows = sorted(utterances, key=lambda row: (*row[1:3], row.path, row.start))
    if not rows:
        raise DataError(f"{path}: there are no utterances to write")
    columns = (
        pa.array(column, field.type)
        for field, column in zip(SCHEMA, zip(*rows, strict=True), strict=True)
    )
    table = pa.table(list(columns), schema=SCHEMA)
    with (
        whole_file(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
    ):
        writer.write_table(table)


class SpeechTable:
    """A table of utterances, for drawing from: every draw takes constant time.

    Arguments
    ---------
    path : str or Path
        The Arrow file.
    data_root : str or Path, optional
        What "{data_root}" in its paths stands for; by default what is written beside
        the table, see `manifests.write_data_root`.

    Raises
    ------
    DataError
        If it cannot be read as one.

    Example
    -------
    >>> path = getfixture("tmp_path") / "train.arrow"
    >>> write_speech_table(
    ...     path,
    ...     [
    ...         Utterance("bob/1.flac", "bob", "bob-1", 0, 16000, 16000, -26.0),
    ...         Utterance("ann/2.flac", "ann", "ann-2", 0, 24000, 16000, -30.0),
    ...         Utterance("ann/1.flac", "ann", "ann-1", 0, 32000, 16000, -28.0),
    ...     ],
    ... )
    >>> table = SpeechTable(path)
    >>> len(table), table.speakers, table[1].path
    (3, ['ann', 'bob'], 'ann/2.flac')
    >>> table.others(0, np.random.default_rng(0))
    1
    """

    def __init__(self, path, data_root=None):
        self.path = Path(path)
        self.data_root = data_root or read_data_root(path)
        self._open()

    def _open(self):
        check_file(self.path, CURE)
        try:
            # The file stays mapped as long as the columns are there.
            table = pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()
            if table.schema != SCHEMA:
                raise pa.ArrowInvalid("it has other columns")
            # The indices of one dictionary, where the parts had several.
            table = table.unify_dictionaries().combine_chunks()
            table.validate()
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{self.path}: cannot be read as a table of utterances ({error}); "
                f"{CURE}"
            ) from error
        if not len(table):
            raise DataError(f"{self.path}: holds no utterances; {CURE}")
        self._columns = {name: table[name].chunk(0) for name in SCHEMA.names}
        speakers, utterances = (
            self._columns[name].indices.to_numpy() for name in ("speaker", "utterance")
        )
        # Sorted, so that those of a speaker, and of an utterance, stand together.
        changes = np.diff(speakers) != 0
        self._speaker_starts = _starts(changes)
        self._utterance_starts = _starts(changes | (np.diff(utterances) != 0))
        names = self._columns["speaker"].dictionary
        firsts = speakers[self._speaker_starts[:-1]]
        self.speakers = [names[int(index)].as_py() for index in firsts]

    def __reduce__(self):
        """Workers that are spawned map the file anew."""
        return SpeechTable, (self.path, self.data_root)

    def __len__(self):
        return len(self._columns["path"])

    def __getitem__(self, index):
        values = (self._columns[name][int(index)].as_py() for name in SCHEMA.names)
        row = Utterance(*values)
        if self.data_root is not None:
            root = str(self.data_root)
            row = row._replace(path=row.path.replace(DATA_ROOT, root, 1))
        return row

    def speaker_of(self, index):
        """The number of an utterance's speaker, among `speakers`."""
        return int(np.searchsorted(self._speaker_starts, index, "right")) - 1

    def of_speaker(self, speaker):
        """The first utterance of a speaker, by number, and the one after the last."""
        return tuple(int(x) for x in self._speaker_starts[speaker : speaker + 2])

    def others(self, index, rng):
        """Draws another utterance of the same speaker.

        Arguments
        ---------
        index : int
            Of an utterance in the table.
        rng : np.random.Generator
            See `peers.item_rng`.

        Returns
        -------
        int or None
            The index of another one, each equally likely; None if there is none.
        """
        first, end = self.of_speaker(self.speaker_of(index))
        run = int(np.searchsorted(self._utterance_starts, index, "right")) - 1
        same, after = (int(x) for x in self._utterance_starts[run : run + 2])
        count = (end - first) - (after - same)
        if count == 0:
            return None
        drawn = first + int(rng.integers(count))
        return drawn if drawn < same else drawn + after - same

    def single_speakers(self):
        """The speakers with one utterance only, who cannot be enrolled."""
        ends = np.searchsorted(self._utterance_starts, self._speaker_starts)
        return [self.speakers[k] for k in np.flatnonzero(np.diff(ends) == 1)]


def _starts(changes):
    """Where runs begin, given whether each row differs from the one before it."""
    return np.concatenate(([0], np.flatnonzero(changes) + 1, [len(changes) + 1]))
