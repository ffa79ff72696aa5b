"""What is tested and trained on, told by the data and not by names of folders."""

import hashlib

from speechbrain_peer.data.peers import SourcePool

# SHA-256 of the sorted mixture_IDs, one a line, of the public tables of LibriMix.
LIBRIMIX = {
    ("Libri2Mix", "train-100"): (
        "266aa7a1e3f89f205597115e4d0c1b7cd6d5f5f2f06b1c709f2714ce5c5be774"
    ),
    ("Libri2Mix", "dev"): (
        "279641b204c77f895f11a0d2c2541f86613916f4e60b8984a28adb47ce6c49ed"
    ),
    ("Libri2Mix", "test"): (
        "1a86eb3ce28eb6903aae806e843ef76bc564cba0d228159eed3a11d279836455"
    ),
    ("Libri3Mix", "train-100"): (
        "1528440a145da195fd0414e14ddb4ba9763d9167bb7efa27090816489edc55d4"
    ),
    ("Libri3Mix", "dev"): (
        "7ada61b5cc80ae3065e5da4c6c155267796bd20d044a5f0bb300fd62f160d590"
    ),
    ("Libri3Mix", "test"): (
        "cda65039211300b312435489356eff6a97fd4ca862cf788a25ddb8b16b2533e1"
    ),
}


def describe_subset(subset, rows):
    """Names a subset.

    Arguments
    ---------
    subset : str
        Such as "test".
    rows : dict
        Its manifest.

    Returns
    -------
    str
        Such as "Libri2Mix test" where all mixtures are LibriMix's and none is absent,
        else how many mixtures and speakers there are.

    Example
    -------
    >>> source = {"path": "s1/ann-1_bob-1.wav", "speaker": "ann", "utterance": "ann-1"}
    >>> other = {"path": "s2/ann-1_bob-1.wav", "speaker": "bob", "utterance": "bob-1"}
    >>> row = {"mixture_id": "ann-1_bob-1", "target": source, "interferers": [other]}
    >>> describe_subset("test", {"ann-1_bob-1_s1": row})
    'test (1 mixtures of 2 speakers, 2 speakers in all)'
    """
    mixture_ids = sorted({row["mixture_id"] for row in rows.values()})
    digest = hashlib.sha256("\n".join(mixture_ids).encode()).hexdigest()
    for (corpus, name), known in LIBRIMIX.items():
        if (name, known) == (subset, digest):
            return f"{corpus} {subset}"
    n_sources = 1 + len(next(iter(rows.values()))["interferers"])
    return (
        f"{subset} ({len(mixture_ids)} mixtures of {n_sources} speakers, "
        f"{len(SourcePool(rows).utterances)} speakers in all)"
    )


def describe_speech(utterances):
    """Tells how much speech there is.

    Arguments
    ---------
    utterances : list of Utterance

    Returns
    -------
    str

    Example
    -------
    >>> from speechbrain_peer.data.speech_table import Utterance
    >>> describe_speech([Utterance("a.wav", "ann", "a", 0, 5760000, 16000, -25.0)])
    'mixtures drawn from 1 utterances of 1 speakers (0.10 hours)'
    """
    hours = sum(row.length / row.rate for row in utterances) / 3600
    speakers = len({row.speaker for row in utterances})
    return (
        f"mixtures drawn from {len(utterances)} utterances of {speakers} speakers "
        f"({hours:.2f} hours)"
    )


def describe_data(manifests, sample_rate, mode, targets, tables=(), condition="clean"):
    """One sentence, for tables, on what is tested and trained on.

    Arguments
    ---------
    manifests : dict
        {subset: rows}; the dev set is not told of.
    sample_rate : int
        In Hz.
    mode : str
        "min" or "max".
    targets : str
        "first" or "both".
    tables : dict
        {training subset: list of Utterance}, where mixtures are drawn.
    condition : str
        "clean", or "both": speech and noise.

    Returns
    -------
    str or None
        None without a test set.
    """
    names = {name: describe_subset(name, rows) for name, rows in manifests.items()}
    names |= {name: describe_speech(rows) for name, rows in dict(tables).items()}
    if "test" not in names:
        return None
    trained = " and ".join(name for key, name in names.items() if "train" in key)
    heard = {"clean": "clean", "both": "noisy"}[condition]
    sentence = f"{names['test']}, {targets} speakers, {sample_rate} Hz, {mode}, {heard}"
    return f"{sentence}; trained on {trained}." if trained else f"{sentence}."
