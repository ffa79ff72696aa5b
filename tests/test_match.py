"""The match score: fitted on trials, kept in the model, told by Python and shell."""

import numpy as np
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.interfaces import foreign_class
from tiny_model import TRAINING_YAML, build, export

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.data.manifests import read_manifest, write_manifest
from speechbrain_peer.evaluation import calibration
from speechbrain_peer.evaluation.calibration import calibrate
from speechbrain_peer.evaluation.trials import Trial
from speechbrain_peer.inference.match import MatchScorer
from speechbrain_peer.packaging.export import add_scorers, export_model
from speechbrain_peer.training.fine_tuning import start_from

SIZE, RATE = 16, 8000


def voices(n_trials, seed):
    """Embeddings of enrollments and estimates; every other estimate matches."""
    generator = torch.Generator().manual_seed(seed)
    common = 3 * torch.ones(SIZE)  # all voices have much in common

    def draw():
        return torch.randn(n_trials, SIZE, generator=generator)

    enrolled, matches = draw(), torch.arange(n_trials) % 2
    voice = torch.where(matches[:, None].bool(), enrolled, draw())
    return (enrolled + common, voice + 0.3 * draw() + common), matches


@pytest.fixture
def scorer():
    scorer = MatchScorer(SIZE)
    embeddings, matches = voices(200, seed=0)
    scorer.fit(*embeddings, matches)
    return scorer


@pytest.fixture
def model(tmp_path, scorer):
    """The folder of a model with a match score."""
    export(tmp_path / "model")
    return add_scorers(tmp_path / "model", match_scorer=scorer)


def test_a_fitted_score_tells_matches_of_other_voices(scorer):
    embeddings, matches = voices(200, seed=1)
    scores = scorer(*embeddings)
    assert ((scores > 0.5) == matches.bool()).float().mean() > 0.97
    assert scores.min() >= 0 and scores.max() <= 1


def test_a_score_is_a_probability_where_voices_are_mistaken():
    """A third of the estimates are labelled at random: nothing is sure then."""
    embeddings, matches = voices(600, seed=2)
    matches[::3] = matches[::3].flip(0)[torch.randperm(200)]
    scorer = MatchScorer(SIZE)
    scorer.fit(*embeddings, matches)
    scores = scorer(*embeddings)
    sure = scores > 0.5
    assert abs(scores[sure].mean() - matches[sure].float().mean()) < 0.05


def test_both_kinds_of_trials_count_alike():
    embeddings, matches = voices(400, seed=3)
    few = (matches == 1) | (torch.arange(400) % 20 == 0)
    scorer = MatchScorer(SIZE)
    scorer.fit(*(x[few] for x in embeddings), matches[few])
    others, truth = voices(200, seed=4)
    assert ((scorer(*others) > 0.5) == truth.bool()).float().mean() > 0.95


def test_the_score_is_saved_with_the_model(model, scorer):
    loaded = TargetSpeechExtraction.from_hparams(model)
    assert loaded.tells_match
    for name, value in scorer.state_dict().items():
        assert torch.equal(loaded.mods.match_scorer.state_dict()[name], value)
    # Written once more, with the card it had.
    (model / "README.md").write_text("Meine Karte")
    add_scorers(model, match_scorer=scorer)
    assert (model / "README.md").read_text() == "Meine Karte"
    interface = foreign_class(
        source=str(model), pymodule_file="custom.py", classname="TargetSpeechExtraction"
    )
    assert interface.tells_match


def test_batch_padding_and_silence(model):
    loaded = TargetSpeechExtraction.from_hparams(model)
    generator = torch.Generator().manual_seed(0)
    mixtures = torch.randn(3, 4000, generator=generator)
    embeddings = torch.randn(3, SIZE, generator=generator)
    lens = torch.tensor([1.0, 0.5, 1.0])
    estimates = loaded.extract_batch(mixtures, embeddings=embeddings, mixture_lens=lens)
    estimates[2] = 0
    scores = loaded.match_score(estimates, embeddings, lens)
    alone = loaded.match_score(estimates[1:2, :2000], embeddings[1:2])
    torch.testing.assert_close(scores[1:2], alone, atol=1e-4, rtol=0)
    assert scores[2] == 0
    # Of the estimate's level it does not depend.
    louder = loaded.match_score(5 * estimates, embeddings, lens)
    torch.testing.assert_close(louder, scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (torch.full((2, SIZE), torch.nan), "embeddings hold NaN"),
        (torch.ones(1, SIZE), r"as estimates: .*\(2, 16\), but have \(1, 16\)"),
        (torch.ones(2, 3), r"\(2, 16\), but have \(2, 3\)"),
    ],
)
def test_wrong_embeddings_have_no_score(model, embeddings, message):
    loaded = TargetSpeechExtraction.from_hparams(model)
    estimates = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=message):
        loaded.match_score(estimates, embeddings)


def test_without_calibration_there_is_no_score():
    model = TargetSpeechExtraction(build(), {"sample_rate": RATE})
    waveform = torch.randn(1, 4000)
    assert not model.tells_match
    with pytest.raises(ValueError, match="tse calibrate"):
        model.match_score(waveform, torch.ones(1, SIZE))


def test_of_a_file_where_the_estimate_is_loudest(model, tmp_path, monkeypatch):
    loaded = TargetSpeechExtraction.from_hparams(model)
    speech = np.random.default_rng(0).standard_normal((30 * RATE, 2)) * 0.01
    speech[20 * RATE : 25 * RATE, 1] *= 20
    path = tmp_path / "long.wav"
    soundfile.write(path, speech, RATE, "FLOAT")
    embedding = torch.ones(SIZE)
    estimate, match = loaded.extract_file(
        path, embeddings=embedding, channels="each", return_match=True
    )
    assert estimate.shape == (2, 30 * RATE)
    assert 0 <= match <= 1
    heard = []
    monkeypatch.setattr(
        loaded, "match_score", lambda *x: heard.append(x) or torch.zeros(1)
    )
    loaded.extract_file(path, embeddings=embedding, channels="each", return_match=True)
    piece, _ = heard[0]
    assert piece.shape[1] <= 12 * RATE
    assert piece.std() > 5 * estimate[0].std()  # the loud channel and place


def speech_with_a_loud_part(seconds, loud):
    """(time,), of which the seconds from `loud` on are ten times as loud."""
    speech = np.random.default_rng(1).standard_normal(seconds * RATE) * 0.01
    speech[loud * RATE : (loud + 5) * RATE] *= 10
    return speech.astype(np.float32)


def test_a_long_file_has_the_score_of_its_batch(model, tmp_path):
    """Of both the same piece is heard, with as many channels as there are."""
    loaded = TargetSpeechExtraction.from_hparams(model)
    path = tmp_path / "long.wav"
    tracks = np.stack(
        [speech_with_a_loud_part(31, 3) * 0.1, speech_with_a_loud_part(31, 22)], axis=1
    )
    soundfile.write(path, tracks, RATE, "FLOAT")
    voice = torch.randn(1, SIZE, generator=torch.Generator().manual_seed(2))
    estimates, match = loaded.extract_file(
        path, embeddings=voice, channels="each", return_match=True
    )
    expected = loaded.match_score(estimates[1:], voice).item()
    assert abs(match - expected) < 1e-6
    assert abs(loaded.match_score(estimates[:1], voice).item() - expected) > 1e-4


def test_the_loudest_piece_of_an_estimate_is_heard(model):
    """In a batch, too, whatever the others' lengths are, and the padding's content."""
    loaded = TargetSpeechExtraction.from_hparams(model)
    voice = torch.randn(1, SIZE, generator=torch.Generator().manual_seed(2))
    seconds = (30, 17, 9)
    estimates = torch.full((3, 30 * RATE), torch.nan)
    for row, length in zip(estimates, seconds, strict=True):
        row[: length * RATE] = torch.from_numpy(speech_with_a_loud_part(length, 12))
    lens = torch.tensor(seconds) / 30
    scores = loaded.match_score(estimates, voice.expand(3, -1), lens)
    for row, length, score in zip(estimates, seconds, scores, strict=True):
        row = row[: length * RATE]
        windows = row.unfold(0, min(length, 12) * RATE, RATE)
        loudest = windows[windows.square().sum(1).argmax()]
        alone = loaded.match_score(loudest[None], voice)
        torch.testing.assert_close(alone[0], score, atol=1e-4, rtol=0)


def test_what_is_calibrated_is_what_is_asked(tmp_path, monkeypatch):
    """Of mixtures that are longer than the piece that is heard."""
    folder, heard = tmp_path / "model", []
    # Causal: a file has the estimate of a batch.
    text = TRAINING_YAML.replace("adaptation: mul", "adaptation: mul\n    causal: True")
    (tmp_path / "run.yaml").write_text(text)
    export_model(tmp_path / "run.yaml", load_hyperpyyaml(text)["modules"], folder)
    trials = [
        Trial(
            id=name,
            speakers=(name, f"{name}'s interferer"),
            target=speech_with_a_loud_part(20, 14),
            interferers=(1e-3 * speech_with_a_loud_part(20, 2)[::-1],),
            noise=np.zeros(20 * RATE, np.float32),
            enrollment=np.roll(speech_with_a_loud_part(3, 0), len(name)),
        )
        for name in ("a", "bb")
    ]
    monkeypatch.setattr(calibration, "read_trials", lambda *_: trials)
    monkeypatch.setattr(MatchScorer, "fit", lambda scorer, *given: heard.append(given))
    calibrate(folder, "manifest", "root")
    ((enrolled, estimated, matches),) = heard
    assert matches.tolist() == [1, 1, 0, 0]
    add_scorers(folder, match_scorer=MatchScorer(SIZE))
    loaded, asked = TargetSpeechExtraction.from_hparams(folder), []
    loaded.mods.match_scorer.register_forward_pre_hook(lambda _, x: asked.append(x[1]))
    path = tmp_path / "mixture.wav"
    for trial, voice in zip(trials, enrolled, strict=False):
        soundfile.write(path, trial.mixture, RATE, "FLOAT")
        loaded.extract_file(path, embeddings=voice, return_match=True)
    for voice, expected in zip(asked, estimated[:2], strict=True):
        torch.testing.assert_close(voice[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_file_has_the_score_of_a_batch(model, tmp_path, sign):
    """Also where the network's output is inverted, which SI-SNR does not see."""
    loaded = TargetSpeechExtraction.from_hparams(model)
    loaded.mods.decoder.weight.data *= sign
    speech = torch.randn(1, 3 * RATE, generator=torch.Generator().manual_seed(1)) * 0.1
    path = tmp_path / "mixture.wav"
    soundfile.write(path, speech[0].numpy(), RATE, "FLOAT")
    embedding = torch.randn(1, SIZE, generator=torch.Generator().manual_seed(2))
    _, match = loaded.extract_file(path, embeddings=embedding, return_match=True)
    estimates = loaded.extract_batch(speech, embeddings=embedding)
    expected = loaded.match_score(estimates, embedding).item()
    inverted = loaded.match_score(-estimates, embedding).item()
    assert abs(match - expected) < 1e-4 < abs(match - inverted)


def test_calibration_of_a_model_from_the_shell(tmp_path, prepared, capsys):
    folder = tmp_path / "model"
    export(folder)
    manifest = str(prepared.manifests["dev"])
    arguments = ["calibrate", str(folder), manifest, "--data_root", prepared.data_root]
    assert main(arguments) == 0
    assert TargetSpeechExtraction.from_hparams(folder).tells_match
    mixture, voice, output = (str(tmp_path / f"{name}.wav") for name in "mvo")
    noise = np.random.default_rng(0).standard_normal((2, RATE)) * 0.1
    for path, samples in zip((mixture, voice), noise, strict=True):
        soundfile.write(path, samples, RATE)
    capsys.readouterr()
    extract = ["extract", mixture, "-e", voice, "-m", str(folder), "-o", output]
    assert main(extract) == 0
    written, match = capsys.readouterr().out.split("\t")
    assert written == output
    assert 0 <= float(match.removeprefix("match ")) <= 1


@pytest.mark.parametrize("name", ["small-8k", "somebody/model"])
def test_only_a_folder_is_calibrated(name, prepared, capsys):
    assert main(["calibrate", name, str(prepared.manifests["dev"])]) == 1
    assert f"tse: error: {name}: no such folder" in capsys.readouterr().err


def test_too_few_speakers_leave_the_model_as_it_is(tmp_path, prepared):
    export(tmp_path / "model")
    rows = read_manifest(prepared.manifests["dev"])
    item_id, row = next(iter(rows.items()))
    del row["absent_enrollment"], row["absent_enrollment_length"]
    write_manifest(tmp_path / "one.json", {item_id: row})
    calibrate(tmp_path / "model", tmp_path / "one.json", prepared.data_root)
    assert not TargetSpeechExtraction.from_hparams(tmp_path / "model").tells_match


def test_a_model_with_a_score_can_be_fine_tuned(model):
    modules = build()
    start_from(modules, model, RATE)
