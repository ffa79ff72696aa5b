"""Commands that are killed at any moment, and given again."""

import random
import shutil
import signal

import pytest
from processes import (
    TRAIN,
    TSE,
    run_folder,
    strike,
    succeed,
    temporary_files,
    training,
    tree,
)
from tiny_model import export

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.packaging import safe_yaml
from speechbrain_peer.training.launch import locked

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def kill_again_and_again(kills, seconds, seed, command, check=lambda: None):
    """Gives a command again and again, and kills it at drawn moments, then no more.

    Arguments
    ---------
    kills : int
        How many, unless it comes to its end before.
    seconds : float
        That the command takes.
    seed : int
        Of the moments and the signals.
    command : list
        What to run.
    check : callable
        Called after each kill.

    Returns
    -------
    int
        How many kills have hit.
    """
    rng = random.Random(seed)
    for hits in range(kills):
        # A fourth of it on average, as what is done is not done again.
        moment, sign = rng.expovariate(4 / seconds), rng.choice(SIGNALS)
        if not strike(sign, moment, *command):
            kills = hits
            break
        check()
    succeed(*command)
    return kills


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """A training that was not killed: its place, what it left, and its seconds.

    The place is free again, as a run's own YAML tells where it is.
    """
    results = tmp_path_factory.mktemp("trainings") / "results"
    seconds = succeed(TRAIN, *training(corpus, results))
    expected = tree(results)
    shutil.rmtree(results)
    return results, expected, seconds


@pytest.mark.parametrize(
    ("kills", "seed"), [(6, 0), pytest.param(60, 1, marks=pytest.mark.slow)]
)
def test_a_killed_training_ends_as_one_that_was_not(corpus, whole, kills, seed):
    results, expected, seconds = whole
    while kills > 0:
        command = [TRAIN, *training(corpus, results)]
        kills -= kill_again_and_again(kills, seconds, seed, command)
        assert tree(results) == expected
        assert not temporary_files(results)
        TargetSpeechExtraction.from_hparams(run_folder(results) / "model")
        shutil.rmtree(results)
        seed += 100


@pytest.mark.parametrize(
    ("kills", "seed"), [(3, 0), pytest.param(20, 1, marks=pytest.mark.slow)]
)
def test_a_killed_preparation_goes_on(corpus, tmp_path, kills, seed):
    def prepare(folder):
        options = [f"--{name}={value}" for name, value in corpus._asdict().items()]
        return [TSE, "prepare", *options, "--peers=listed", "-o", folder]

    seconds = succeed(*prepare(tmp_path / "whole"))
    expected = tree(tmp_path / "whole")

    def check():
        """Audio is whole wherever it has its name."""
        for name, content in tree(tmp_path / "killed").items():
            if name.endswith(".wav"):
                assert content == expected[name]

    (tmp_path / "killed").mkdir()
    command = prepare(tmp_path / "killed")
    kill_again_and_again(kills, seconds, seed, command, check)
    check()
    assert tree(tmp_path / "killed") == expected
    assert not temporary_files(tmp_path / "killed")


@pytest.mark.parametrize(
    ("kills", "seed"), [(3, 0), pytest.param(20, 1, marks=pytest.mark.slow)]
)
def test_a_killed_extraction_leaves_whole_files(corpus, tmp_path, kills, seed):
    export(tmp_path / "model")
    recordings = corpus.librispeech_folder / "test-clean"
    enrollment = sorted(recordings.rglob("*.flac"))[0]

    def extract(folder):
        options = ["-m", tmp_path / "model", "-e", enrollment, "-o", folder]
        return [TSE, "extract", recordings, *options]

    seconds = succeed(*extract(tmp_path / "whole"))
    expected = tree(tmp_path / "whole")
    assert len(expected) == 12
    (tmp_path / "killed").mkdir()

    def check():
        files = tree(tmp_path / "killed")
        assert {name: expected.get(name) for name in files if ".unf" not in name} == {
            name: content for name, content in files.items() if ".unf" not in name
        }

    kill_again_and_again(kills, seconds, seed, extract(tmp_path / "killed"), check)
    check()
    assert expected.items() <= tree(tmp_path / "killed").items()


def test_what_kills_have_left_goes_with_the_next_start(tmp_path):
    (tmp_path / ".unfinished-0").touch()
    (tmp_path / ".model.unfinished-0").mkdir()
    (tmp_path / ".model.unfinished-0/weights.ckpt").touch()
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_ctrl_c_while_a_model_is_checked_is_no_refusal(tmp_path, monkeypatch):
    """It comes while a class's module is imported."""
    (tmp_path / "interrupting.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(safe_yaml, "ALLOWED", ("interrupting.",))
    with pytest.raises(KeyboardInterrupt):
        safe_yaml.check_yaml("x: !new:interrupting.Thing", "model.yaml")
