"""A made corpus in LibriSpeech's layout, and the real speech where it is given."""

import csv
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
from filelock import FileLock

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before PyTorch is imported: tests run side by side, each on one core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from speechbrain.utils.importutils import LazyModule

# Hypothesis asks all modules where they are, which would import SpeechBrain's lazy ones
# with packages that are not there.
LazyModule.__file__ = None

# A script that tests start, not a module.
collect_ignore = ["attacks/first_step.py"]

# Of training items: the corpus has shorter and longer mixtures.
CHUNK_SECONDS = 0.6

# Parts of LibriSpeech, and the first digit of their speakers here.
PARTS = {"train-clean-100": 1, "dev-clean": 2, "test-clean": 3, "train-clean-360": 4}
USUAL_PARTS = ("train-clean-100", "dev-clean", "test-clean")


@pytest.fixture(scope="session", autouse=True)
def short_environment_log():
    """For `env.log` pip lists all packages, which takes seconds in every training."""
    from speechbrain.utils import logger

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "get_environment_description", lambda: "of a test")
        yield


class Corpus(NamedTuple):
    """A folder in LibriSpeech's layout and LibriMix metadata for it."""

    librispeech_folder: Path
    librimix_metadata: Path

    def metadata_file(self, part):
        """The path of one table."""
        return next(self.librimix_metadata.glob(f"*{part}.csv"))


def write_corpus(
    folder,
    n_sources=2,
    n_speakers=4,
    n_utterances=3,
    seconds=(0.4, 0.9),
    parts=USUAL_PARTS,
):
    """Writes noisy tones at 16 kHz, a pitch for each speaker.

    Each utterance is the first source of one mixture, with utterances of the next
    speakers.
    """
    rng = np.random.default_rng(0)
    corpus = Corpus(folder / "LibriSpeech", folder / f"Libri{n_sources}Mix")
    corpus.librimix_metadata.mkdir(parents=True)
    for part in parts:
        rows = []
        for speaker in range(n_speakers):
            for k in range(n_utterances):
                path = corpus.librispeech_folder / utterance_path(part, speaker, k)
                path.parent.mkdir(parents=True, exist_ok=True)
                time = np.arange(int(rng.uniform(*seconds) * 16000)) / 16000
                tone = 0.2 * np.sin(2 * np.pi * (300 + 200 * speaker) * time)
                speech = tone + 0.05 * rng.standard_normal(len(time))
                soundfile.write(path, speech, 16000)
                paths = [
                    utterance_path(
                        part, (speaker + j) % n_speakers, (k + j) % n_utterances
                    )
                    for j in range(n_sources)
                ]
                row = {"mixture_ID": "_".join(Path(path).stem for path in paths)}
                for j, path in enumerate(paths, start=1):
                    row[f"source_{j}_path"] = path
                    row[f"source_{j}_gain"] = rng.uniform(0.3, 1.5)
                rows.append(row)
        write_table(corpus.librimix_metadata / f"libri{n_sources}mix_{part}.csv", rows)
    return corpus


def utterance_path(part, speaker, k):
    """Where LibriSpeech has the k-th utterance of a part's speaker."""
    name = f"{PARTS[part]}0{speaker}"
    return f"{part}/{name}/7/{name}-7-{k:04d}.flac"


def read_table(path):
    """Reads a CSV table as a list of dicts."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_table(path, rows):
    """Writes a list of dicts as a CSV table."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Three parts of 4 speakers, 12 utterances and 12 mixtures each; only to read."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def own_corpus(corpus, tmp_path):
    """A copy of the corpus, to spoil."""
    return Corpus(
        shutil.copytree(corpus.librispeech_folder, tmp_path / "LibriSpeech"),
        shutil.copytree(corpus.librimix_metadata, tmp_path / "Libri2Mix"),
    )


@pytest.fixture(scope="session")
def prepared(corpus, tmp_path_factory):
    """The corpus after preparation with listed peers; only to read."""
    from speechbrain_peer.data.prepare import prepare_librimix

    return prepare_librimix(
        tmp_path_factory.mktemp("prepared"), **corpus._asdict(), peers="listed"
    )


@pytest.fixture
def make_set(prepared):
    """Makes a training set of the corpus and what starts its epochs."""
    from speechbrain_peer.data.dataset import training_set

    def make(manifest=prepared.manifests["train-100"], seed=1, **options):
        return training_set(
            manifest,
            prepared.data_root,
            CHUNK_SECONDS,
            8000,
            seed,
            listed_peers=prepared.peers,
            **options,
        )

    return make


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Makes a folder for all processes that test side by side; only to read."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made(name, make):
        folder, unfinished = root / name, root / f"unfinished_{name}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def causal_graphs(made_once):
    """A tiny causal model and its ONNX graphs; only to read."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    from tiny_model import export_causal

    from speechbrain_peer.packaging.onnx import export_onnx

    def make(folder):
        source = export_causal(folder / "model", n_blocks=1)
        export_onnx(source, folder / "graphs", int8=True)

    folder = made_once("causal", make)
    return folder / "model", folder / "graphs"


@pytest.fixture(scope="session")
def mini_librimix():
    """Real speech in LibriSpeech's layout."""
    return _given_folder("MINI_LIBRIMIX")


@pytest.fixture(scope="session")
def tse_reference():
    """What the public implementations compute."""
    return _given_folder("TSE_REFERENCE")


def _given_folder(variable):
    if variable not in os.environ:
        pytest.skip(f"the environment variable {variable} is not set")
    return Path(os.environ[variable])
