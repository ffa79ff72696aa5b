"""A subset is LibriMix's if its mixtures are, whatever its folder is called."""

import pytest

from speechbrain_peer.data.corpora import describe_data
from speechbrain_peer.data.librimix import find_metadata, read_metadata
from speechbrain_peer.data.manifests import read_manifest


def librimix_rows(folder, subset):
    """What a manifest of LibriMix holds, as far as its mixtures' names tell."""
    rows = {}
    for row in read_metadata(find_metadata(folder, subset)):
        target, *interferers = (
            {"path": f"s{k}/{name}", "speaker": name.split("-")[0], "utterance": name}
            for k, name in enumerate(row.mixture_id.split("_"), start=1)
        )
        row = {"mixture_id": row.mixture_id}
        row |= {"target": target, "interferers": interferers}
        rows[f"{row['mixture_id']}_s1"] = row
    return rows


@pytest.mark.parametrize("n_sources", [2, 3])
def test_the_public_tables_are_known(mini_librimix, n_sources):
    corpus = f"Libri{n_sources}Mix"
    folder = mini_librimix.parent / "librimix_metadata" / corpus
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    subsets = ("train-100", "dev", "test")
    manifests = {subset: librimix_rows(folder, subset) for subset in subsets}
    assert describe_data(manifests, 8000, "min", "first") == (
        f"{corpus} test, first speakers, 8000 Hz, min, clean; trained on {corpus} "
        "train-100."
    )
    # One mixture less is another test set.
    manifests["test"].popitem()
    sentence = describe_data(manifests, 16000, "max", "both")
    assert sentence.startswith(f"test (2999 mixtures of {n_sources} speakers, 40 ")
    assert f"both speakers, 16000 Hz, max, clean; trained on {corpus} " in sentence


def test_other_mixtures_are_counted(prepared):
    assert prepared.corpus == (
        "test (12 mixtures of 2 speakers, 4 speakers in all), first speakers, 8000 Hz, "
        "min, clean; trained on train-100 (12 mixtures of 2 speakers, 4 speakers in "
        "all)."
    )
    rows = read_manifest(prepared.manifests["dev"])
    assert describe_data({"dev": rows}, 8000, "min", "first") is None
    assert describe_data({"test": rows}, 8000, "min", "first").endswith("min, clean.")
