"""Models and checkpoints of others, spoiled."""

import shutil

import numpy as np
import pytest
import soundfile
import torch
from fuzzing import EXAMPLES, fuzz, reads, spoiled
from hypothesis import strategies as st
from tiny_model import build, export, write_run

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.inference.match import MatchScorer
from speechbrain_peer.packaging.export import add_scorers, build_stages
from speechbrain_peer.packaging.loading import load_card, load_model
from speechbrain_peer.packaging.safe_yaml import read_yaml
from speechbrain_peer.training.checkpoints import SafeCheckpointer
from speechbrain_peer.training.fine_tuning import read_trained
from speechbrain_peer.utils.files import DataError

PIECES = st.sampled_from(
    """!new:torch.nn.Linear !name:torch.nn.ReLU !apply:os.system !ref <encoder> <a[b]>
    <n_filters>*2 !copy !tuple (1,2) !include:x !!int !!float !!set !!binary !!omap
    & * &a *a << : - ? | > { } [ ] , # ' " % @ ` ~ null .inf .nan 1e999 0x1 0o9 1_0
    2001-01-01 -1 0 1.5 9999999999999999 --- ... %YAML encoder: modules: sample_rate:
    \t \ufeff \0""".split(" ")
)


@st.composite
def spoiled_yaml(draw, text):
    """A YAML in bytes, some of its words replaced by what YAML knows."""
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        words = lines[place].split(" ")
        index = draw(st.integers(0, len(words) - 1))
        new = " ".join(draw(st.lists(PIECES, max_size=3)))
        words[index] = draw(st.sampled_from([new, f"{words[index]} {new}"]))
        lines[place] = " ".join(words)
    return "\n".join(lines).encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An exported model with a match score; only to read."""
    folder = tmp_path_factory.mktemp("model") / "model"
    export(folder)
    scorer = MatchScorer(embedding_size=8)
    scorer.weight += 1
    add_scorers(folder, match_scorer=scorer)
    return folder


def use(folder):
    """Loads a model; one that can be loaded extracts, or tells what is wrong."""
    extract = TargetSpeechExtraction.from_hparams(folder)
    signals = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 1, 4000)))
    try:
        estimate = extract.extract_batch(*signals.float())
    # Layers of other sizes than those beside them.
    except (RuntimeError, TypeError, AttributeError, IndexError, KeyError):
        return
    assert estimate.shape == (1, 4000)


@EXAMPLES
def test_hyperparams_of_models(examples, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    path = folder / "hyperparams.yaml"
    good = path.read_text(encoding="utf-8")

    def attack(content):
        path.write_bytes(content)
        reads(path, lambda: use(folder), folder)

    fuzz(examples, attack, spoiled_yaml(good) | spoiled(good.encode()))


@EXAMPLES
def test_hyperparams_of_runs(examples, tmp_path):
    path = write_run(tmp_path)
    good = path.read_text(encoding="utf-8")

    def attack(content):
        path.write_bytes(content)
        if reads(path, lambda: read_yaml(path)):
            reads(path, lambda: build_stages(path))

    known = [f"!!set\n{good}".encode()]
    fuzz(examples, attack, spoiled_yaml(good) | spoiled(good.encode()), known)


@EXAMPLES
@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_weights(examples, model, tmp_path, old):
    folder = shutil.copytree(model, tmp_path / "model")
    path = folder / "weights.ckpt"
    weights = torch.load(path, weights_only=True)
    torch.save(weights, path, _use_new_zipfile_serialization=not old)
    good = path.read_bytes()

    def attack(content):
        path.write_bytes(content)
        reads(path, lambda: load_model(folder))

    # Nearly all of it is names, sizes and places; the end is the zip's directory.
    changes = st.one_of(
        spoiled(good[:3000]).map(lambda start: start + good[3000:]),
        spoiled(good[-3000:]).map(lambda end: good[:-3000] + end),
        spoiled(good),
    )
    fuzz(examples, attack, changes)


@EXAMPLES
def test_public_checkpoints(examples, tmp_path):
    path = tmp_path / "public.pth"
    torch.save({"model_args": {"L": 16}, "state_dict": build().state_dict()}, path)
    good = path.read_bytes()

    def attack(content):
        path.write_bytes(content)
        reads(path, lambda: read_trained(path, build()))

    fuzz(examples, attack, spoiled(good))


@EXAMPLES
def test_cards(examples, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    path = folder / "README.md"

    def attack(content):
        path.write_bytes(content)
        reads(path, lambda: load_card(folder))

    fuzz(examples, attack, st.binary(max_size=200))


@EXAMPLES
@pytest.mark.parametrize("name", ["CKPT.yaml", "encoder.ckpt", "counter.ckpt"])
def test_a_spoiled_newest_checkpoint_falls_back(examples, tmp_path, name):
    """Or is read; never half of it."""
    checkpointer = SafeCheckpointer(tmp_path, dict(build().items()))
    checkpointer.add_recoverable("counter", Counter())
    for _ in range(2):
        checkpointer.save_checkpoint(meta={"valid_loss": -1.0})
    path = checkpointer.find_checkpoint().path / name
    good = path.read_bytes()

    def attack(content):
        path.write_bytes(content)
        fresh = SafeCheckpointer(tmp_path, dict(build(seed=8).items()))
        fresh.add_recoverable("counter", Counter())
        try:
            assert fresh.recover_if_possible(min_key="valid_loss")
        except DataError as error:
            assert str(path.parent) in str(error)

    known = [good.replace(b"unixtime: ", b"unixtime: 1 "), good.replace(b"-1.0", b"x")]
    fuzz(examples, attack, spoiled(good), known)


class Counter(torch.nn.Module):
    """A recoverable of plain values."""

    def state_dict(self, *args, **kwargs):
        """Of numbers."""
        return {"epoch": 3}

    def load_state_dict(self, state, strict=True):
        """Takes whole numbers only."""
        if not isinstance(state["epoch"], int):
            raise TypeError(state)


@EXAMPLES
def test_enrollments_and_mixtures(examples, model, tmp_path):
    """Of spoiled audio, what is extracted is finite."""
    extract = TargetSpeechExtraction.from_hparams(model)
    path, output = tmp_path / "recording.wav", tmp_path / "output.wav"
    soundfile.write(path, np.random.default_rng(0).normal(size=900), 8000, "FLOAT")
    good = path.read_bytes()

    def attack(content):
        path.write_bytes(content)
        if reads(path, lambda: extract.extract_file(path, path, output_path=output)):
            assert np.isfinite(soundfile.read(output)[0]).all()

    fuzz(examples, attack, spoiled(good))
