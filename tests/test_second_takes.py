"""Several recordings of one target, which lend to each other."""

import json

import numpy as np
import pytest
import torch
from tiny_model import build, export

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.evaluation import second_recordings, second_takes
from speechbrain_peer.evaluation.second_takes import ALONE, LENDING, draw_takes
from speechbrain_peer.evaluation.trials import TooFewSpeakers, Trial, read_trials
from speechbrain_peer.peer_learning.exchange import (
    PeerLearning,
    extract,
    extract_together,
)
from speechbrain_peer.peer_learning.predictors import (
    fold_predictors,
    without_predictors,
)

RATE = 8000


@pytest.fixture(scope="module")
def modules():
    return build().eval()


@pytest.fixture(scope="module")
def signals():
    torch.manual_seed(0)
    return torch.randn(3, 2, 4001), torch.randn(2, 16)


@pytest.fixture(scope="module")
def trials(prepared):
    return read_trials(prepared.manifests["test"], prepared.data_root, RATE)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(folder)
    return TargetSpeechExtraction.from_hparams(source=folder)


@torch.no_grad()
def test_at_inference_recordings_lend_as_in_training(modules, signals):
    mixtures, embeddings = signals
    targets = torch.randn(2, 4001)
    trained = PeerLearning("other")(
        modules, mixtures.flatten(0, 1), embeddings, targets
    ).estimate[:, 0]
    together = extract_together(modules, mixtures, embeddings)
    torch.testing.assert_close(together.flatten(0, 1), trained)


@torch.no_grad()
def test_folded_predictors_lend_alike(modules, signals):
    mixtures, embeddings = signals
    folded = fold_predictors(modules)
    torch.testing.assert_close(
        extract_together(folded, mixtures, embeddings),
        extract_together(modules, mixtures, embeddings),
        rtol=1e-4,
        atol=1e-5,
    )
    # Who is lent the own representation, or is alone, is not changed.
    alone = extract(folded, mixtures[0], embeddings)
    for recordings in (mixtures[:1], mixtures[:1].expand(3, -1, -1)):
        together = extract_together(folded, recordings, embeddings)
        torch.testing.assert_close(together[0], alone, rtol=1e-4, atol=1e-5)


def test_a_model_without_peers_cannot_lend(signals):
    plain = without_predictors(build())
    with pytest.raises(ValueError, match="trained without peer learning"):
        extract_together(plain, *signals)


def test_the_interface_takes_recordings_of_a_batch(model, signals):
    mixtures, embeddings = signals
    recordings = mixtures.movedim(0, 1)
    lens = [1.0, 0.5]
    together = model.extract_together(recordings, embeddings, lens)
    assert together.shape == recordings.shape
    alone = model.extract_together(recordings[1:, :, :2000], embeddings[1:])
    torch.testing.assert_close(together[1:, :, :2000], alone, rtol=1e-3, atol=1e-4)
    assert not together[1, :, 2001:].any()
    one = model.extract_together(recordings[:, :1], embeddings)[:, 0]
    expected = model.extract_batch(recordings[:, 0], embeddings=embeddings)
    torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="shape \\(batch, recordings, time\\)"):
        model.extract_together(mixtures[0], embeddings)


def test_takes_have_the_target_and_interferers_of_others(trials):
    for trial, mixtures in draw_takes(trials, 3):
        assert mixtures.shape == (3, len(trial.target))
        np.testing.assert_array_equal(mixtures[0], trial.mixture)
        speakers = []
        for mixture in mixtures[1:]:
            # Tones of 300, 500, 700 and 900 Hz.
            rest = np.abs(np.fft.rfft(mixture - trial.target, RATE))
            speakers.append(f"30{round((rest.argmax() - 300) / 200)}")
        assert len({*trial.speakers, *speakers}) == 4
    twice = [mixtures for _, mixtures in draw_takes(trials, 2)]
    for two, (_, three) in zip(twice, draw_takes(trials, 3), strict=True):
        np.testing.assert_array_equal(two, three[:2])
    with pytest.raises(TooFewSpeakers, match="4 takes of mixture"):
        list(draw_takes(trials, 4))


def test_ways_that_are_the_same_for_one_take(model, trials):
    trial = trials[0]
    scores = second_takes.score_takes(model, trial, trial.mixture[None])
    assert scores.keys() == {*ALONE, *LENDING}
    # All but the mean of nobody's.
    np.testing.assert_allclose(list(scores.values()), scores[ALONE[0]], atol=1e-3)


def test_the_command(model, prepared, tmp_path, capsys):
    export(tmp_path / "model")
    test = prepared.manifests["test"]
    arguments = ["evaluate", str(tmp_path / "model"), test, "--second-take"]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out/second_takes.json").read_text())
    assert set(result["takes"]) == {"2", "3"}
    assert "4 takes of mixture" in result["left_out"]
    for ways in result["takes"].values():
        assert ways.keys() == {*ALONE, *LENDING}
        oracle = ways["best take alone (oracle)"]["si_sdri"]
        assert oracle >= ways["one take alone"]["si_sdri"]
    text = (tmp_path / "out/second_takes.md").read_text()
    assert text in capsys.readouterr().out


def made_trials(n_speakers=5):
    """Noise of each speaker, one mixture of neighbours for each."""
    rng = np.random.default_rng(0)
    speech = rng.standard_normal((n_speakers, 3, RATE // 2)).astype(np.float32)
    return [
        Trial(
            id=f"item{k}",
            speakers=(f"s{k}", f"s{(k + 1) % n_speakers}"),
            target=speech[k, 0],
            interferers=(speech[(k + 1) % n_speakers, 1],),
            noise=np.zeros(RATE // 2, np.float32),
            enrollment=speech[k, 2],
        )
        for k in range(n_speakers)
    ]


def test_second_recordings_are_what_they_are_called():
    trials = made_trials()
    trial, takes = next(draw_takes(trials, 4))
    made = second_recordings.record(trial, takes, RATE)
    target, own, other = trial.target, trial.interferers[0], takes[1] - trial.target

    def rest(name, k):
        mixtures, targets = made[name]
        return mixtures[k] - targets[k]

    def close(signal, expected):
        np.testing.assert_allclose(signal, expected, atol=1e-5)

    for name, (mixtures, targets) in made.items():
        assert mixtures.dtype == targets.dtype == np.float32
        close(targets[0], target)
        if "louder" not in name:
            close(mixtures[0], trial.mixture)
    close(rest("another interferer, 6 dB lower", 1), 10**-0.3 * other)
    close(rest("the same interferer, 10 dB lower", 1), 10**-0.5 * own)
    close(rest("the same interferer, 10 dB louder", 0), 10**-0.5 * own)
    close(rest("the same interferer, 10 dB louder", 1), own)
    close(rest("the same interferer, 5 ms later", 1)[40:], own[:-40])
    moved = "target 0.25 ms later, interferer 5 ms"
    close(made[moved][1][1][2:], target[:-2])
    close(rest(moved, 1)[40:], own[:-40])
    assert len(made["another interferer in each of 3 more"][0]) == 4


def test_second_recordings_are_scored_in_all_ways(model, tmp_path):
    result = second_recordings.evaluate(model, made_trials())
    assert len(result["items"]) == 5 * len(result["recordings"])
    assert len(result["recordings"]) == 8
    same = {
        ways["first alone"][0]
        for second, ways in result["recordings"].items()
        if "louder" not in second
    }
    assert max(same) - min(same) < 1e-6  # of one first recording
    for row in result["items"]:
        assert row["best alone (oracle)"] >= row["first alone"]
    table = second_recordings.markdown(result)
    assert table.count("±") == 1 + 6 * 8
    plain = TargetSpeechExtraction.from_hparams("small-8k")
    with pytest.raises(ValueError, match="trained without peer learning"):
        second_recordings.evaluate(plain, made_trials())


def test_the_command_needs_enough_speakers(prepared, tmp_path, capsys):
    export(tmp_path / "model")
    test = prepared.manifests["test"]
    assert main(["evaluate", str(tmp_path / "model"), test, "--second-recording"]) == 1
    assert "4 takes of mixture" in capsys.readouterr().err
