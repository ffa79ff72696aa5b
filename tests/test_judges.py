"""Judges: what they hear, how models are calibrated with them, what commands tell."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from made_voices import speak
from tiny_judge import save_ecapa, save_resemblyzer
from tiny_model import export

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.evaluation import conditions
from speechbrain_peer.evaluation.calibration import calibrate
from speechbrain_peer.inference.judges import load_judge
from speechbrain_peer.inference.match import JudgeScorer, MatchScorer, count_alike
from speechbrain_peer.packaging.export import add_scorers
from speechbrain_peer.utils.files import DataError

RATE, SIZE = 8000, 6


@pytest.fixture(scope="module")
def ecapa(tmp_path_factory):
    """The folder of a tiny one; only to read."""
    return save_ecapa(tmp_path_factory.mktemp("judges") / "ecapa")


@pytest.fixture(scope="module")
def judge(ecapa):
    return load_judge(ecapa)


@pytest.fixture
def model(tmp_path, judge):
    """The folder of a model with both scores, of which none is sure of anything."""
    export(tmp_path / "model")
    scorer = JudgeScorer(SIZE, judge.name, judge.mark)
    scorer.weight.copy_(torch.tensor([2.0, -1.0]))
    return add_scorers(
        tmp_path / "model", match_scorer=MatchScorer(16), judge_scorer=scorer
    )


def heard(n_trials, seed, doubt):
    """What a judge of 16 values hears: every third trial right, wrong, absent."""
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(n_trials, 16, generator=generator)

    voice, other, third = draw(), draw(), draw()
    kind = torch.arange(n_trials) % 3
    estimate = torch.where((kind == 0)[:, None], voice, other)
    rest = torch.where((kind == 1)[:, None], voice, third)
    noise = doubt * draw(), doubt * draw()
    trials = torch.stack((voice, estimate + noise[0], rest + noise[1]), dim=1) + 2.0
    return trials, (kind == 0).float(), (kind == 2).float()


def test_estimate_and_rest_tell_together():
    """Where the estimate says little, the rest says the same once more."""
    scorer = JudgeScorer(16, "somebody", "c0ffee")
    scorer.fit(*heard(300, seed=0, doubt=1.5))
    trials, matches, absent = heard(300, seed=1, doubt=1.5)
    scores, wrong = scorer(trials), (1 - matches) * (1 - absent)
    right = scores[matches.bool()]
    assert (right < scorer.threshold).float().mean() < 0.1
    told = (scores < scorer.threshold).float()
    alone = scorer.features(trials)[:, 0]
    alone_told = (alone < alone[matches.bool()].quantile(0.05)).float()
    assert told[wrong.bool()].mean() > alone_told[wrong.bool()].mean() + 0.05
    assert scores.min() >= 0 and scores.max() <= 1


def test_wrong_speakers_count_though_they_are_few():
    matches = torch.tensor([1.0] * 90 + [0.0] * 110)
    absent = torch.tensor([0.0] * 100 + [1.0] * 100)
    counts = count_alike(matches, absent)
    shares = counts[:90].sum(), counts[90:100].sum(), counts[100:].sum()
    assert [share.item() for share in shares] == pytest.approx([100, 50, 50])
    # Where there is none, the absent are all.
    counts = count_alike(matches[:90].clone(), absent[:90])
    assert counts.isfinite().all()
    counts = count_alike(matches, 1 - matches)
    assert counts[90:].sum().item() == pytest.approx(100)


def test_a_speaker_encoder_of_speechbrain_is_a_judge(judge, ecapa):
    """From a copy of its folder: the Hub that its YAML names is not asked."""
    assert (judge.name, judge.sample_rate) == ("ecapa", 16000)
    speech = torch.from_numpy(speak(2.0, RATE))
    embedding = judge.embed(speech, RATE)
    assert embedding.shape == (SIZE,)
    assert embedding.norm().item() == pytest.approx(1)
    encoder = load_judge(ecapa)
    assert torch.equal(encoder.embed(speech, RATE), embedding)
    assert encoder.mark == judge.mark
    # At its own rate nothing is resampled.
    fast = torch.from_numpy(speak(2.0, 16000))
    again = judge.encoder(fast[None])[0]
    similar = torch.nn.functional.cosine_similarity(judge.embed(fast, 16000), again, 0)
    assert similar.item() == pytest.approx(1)


def test_others_have_another_mark(tmp_path, judge):
    other = load_judge(save_ecapa(tmp_path / "ecapa", seed=1))
    assert other.mark != judge.mark


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "hyperparams.yaml").unlink(), "hyperparams.yaml"),
        (lambda folder: (folder / "hyperparams.yaml").write_text("a: 1"), "KeyError"),
        (lambda folder: (folder / "classifier.ckpt").write_bytes(b"x"), "Error: "),
    ],
)
def test_what_is_no_encoder_is_told_in_a_line(tmp_path, capsys, spoil, message, model):
    folder = save_ecapa(tmp_path / "spoiled")
    spoil(folder)
    write(tmp_path / "a.wav", speak(1.0, RATE))
    arguments = ["extract", "a.wav", "-e", "a.wav", "-m", model, "--judge", folder]
    assert main([str(x).replace("a.wav", str(tmp_path / "a.wav")) for x in arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tse: error: {folder}: is neither resemblyzer nor what")
    assert message in line


def test_resemblyzer_gives_weights_and_runs_no_code(tmp_path, monkeypatch):
    """Whatever it depends on need not be there; its own rules are kept to."""
    package = save_resemblyzer(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    judge = load_judge("resemblyzer")
    assert (judge.name, judge.sample_rate) == ("resemblyzer", 16000)
    speech = torch.from_numpy(speak(4.0, RATE))
    embedding = judge.embed(speech, RATE)
    assert embedding.shape == (256,)
    assert embedding.norm().item() == pytest.approx(1)
    # The level of a recording is no part of a voice.
    torch.testing.assert_close(judge.embed(0.01 * speech, RATE), embedding)
    # Shorter than a window.
    assert judge.embed(speech[:4000], RATE).isfinite().all()
    assert judge.embed(torch.zeros(8000), RATE).isfinite().all()
    flag = tmp_path / "run"
    torch.save({"model_state": Opens(flag)}, package / "pretrained.pt")
    with pytest.raises(DataError, match=r"pretrained\.pt: cannot be read as the"):
        load_judge("resemblyzer")
    assert not flag.exists()


class Opens:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_missing_package_is_told_with_its_cure(monkeypatch, capsys, tmp_path, model):
    monkeypatch.setattr(
        "speechbrain_peer.inference.resemblyzer.find_spec", lambda name: None
    )
    path = write(tmp_path / "a.wav", speak(1.0, RATE))
    arguments = ["extract", path, "-e", path, "-m", model, "--judge", "resemblyzer"]
    assert main(list(map(str, arguments))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install --no-deps resemblyzer" in line


def installed():
    """The judge with its true weights."""
    if find_spec("resemblyzer") is None:
        pytest.skip("needs its weights: pip install --no-deps resemblyzer")
    return load_judge("resemblyzer")


def test_it_computes_what_the_package_computes():
    """Values of `VoiceEncoder.embed_utterance` of Resemblyzer 0.1.4 at its level."""
    embedding = installed().embed(torch.from_numpy(speak(3.0)), 16000)
    largest, places = embedding.topk(6)
    assert places.tolist() == [207, 213, 154, 247, 89, 218]
    expected = torch.tensor([0.2679, 0.2284, 0.2260, 0.1999, 0.1873, 0.1823])
    torch.testing.assert_close(largest, expected, rtol=0, atol=1e-4)
    assert (embedding > 0).sum() == 118


def test_it_knows_voices_at_8_khz(mini_librimix):
    """Each of 12 unseen speakers by another sentence, clean, among all 12."""
    judge, embeddings = installed(), []
    speakers = sorted((mini_librimix / "LibriSpeech/test-open").iterdir())[:12]
    for speaker in speakers:
        files = sorted(speaker.rglob("*.ogg"))
        of_one = []
        for path in files[:2]:
            samples, rate = soundfile.read(path, dtype="float32")
            narrow = torch.from_numpy(soxr.resample(samples, rate, RATE))
            of_one.append(judge.embed(narrow, RATE))
        embeddings.append(torch.stack(of_one))
    first, second = torch.stack(embeddings).unbind(1)
    found = (first @ second.T).argmax(1)
    assert (found == torch.arange(12)).float().mean() > 0.8


def write(path, samples):
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return path


def test_a_file_has_the_score_of_a_batch(model, judge, tmp_path):
    """Of its loudest channel and piece, with the rest of the mixture there."""
    loaded = TargetSpeechExtraction.from_hparams(model)
    quiet, loud = speak(20.0, RATE, seed=1), speak(20.0, RATE, seed=2)
    speech = np.stack((0.1 * quiet, 0.3 * loud), axis=1)
    speech[15 * RATE :] *= 5
    mixture = write(tmp_path / "mixture.wav", speech)
    enrollment = write(tmp_path / "voice.wav", speak(2.0, RATE, pitch=200.0))
    enrolled = judge.enroll_files([enrollment], RATE)
    estimates, match = loaded.extract_file(
        mixture, enrollment, channels="each", return_match=True, judge=enrolled
    )
    expected = enrolled.match(loaded, estimates[1], torch.from_numpy(speech[:, 1]))
    assert match == pytest.approx(expected, abs=1e-5)
    assert enrolled.match(loaded, estimates[0], torch.from_numpy(speech[:, 0])) != match
    waveform = torch.from_numpy(speak(2.0, RATE, pitch=200.0))[None]
    torch.testing.assert_close(judge.enroll(waveform, RATE).embedding, enrolled[1])
    assert enrolled.match(loaded, torch.zeros(RATE), torch.ones(RATE)) == 0


def test_of_an_enrollment_only_the_model_s_band_is_heard(judge, tmp_path):
    """Estimates have no more, nor has what the score was fitted on."""
    rng = np.random.default_rng(0)
    wide = (0.1 * rng.standard_normal(32000)).astype(np.float32)
    soundfile.write(tmp_path / "wide.wav", wide, 16000, "FLOAT")
    narrow = torch.from_numpy(soxr.resample(wide, 16000, RATE))
    heard = judge.enroll_files([tmp_path / "wide.wav"], RATE).embedding
    close = {"rtol": 0, "atol": 1e-3}
    torch.testing.assert_close(heard, judge.embed(narrow, RATE), **close)
    assert (heard - judge.embed(torch.from_numpy(wide), 16000)).abs().max() > 0.05


def test_the_shortest_mixture_has_a_score(model, judge, tmp_path):
    loaded = TargetSpeechExtraction.from_hparams(model)
    mixture = write(tmp_path / "short.wav", speak(1.0, RATE)[:80])
    enrolled = judge.enroll(torch.from_numpy(speak(1.0, RATE))[None], RATE)
    enrollment = write(tmp_path / "voice.wav", speak(1.0, RATE))
    _, match = loaded.extract_file(
        mixture, enrollment, return_match=True, judge=enrolled
    )
    assert 0 < match < 1


def test_a_judge_unknown_to_the_model_is_refused(model, tmp_path, judge, capsys):
    stranger = save_ecapa(tmp_path / "stranger", seed=1)
    path = write(tmp_path / "a.wav", speak(1.0, RATE))
    loaded = TargetSpeechExtraction.from_hparams(model)
    enrolled = load_judge(stranger).enroll_files([path], RATE)
    message = "calibrated with the judge ecapa, and stranger knows nothing of it"
    with pytest.raises(ValueError, match=message):
        loaded.extract_file(path, path, judge=enrolled, return_match=True)
    for command in (["extract", path, "-e", path], ["evaluate", model, path]):
        arguments = [*command, "--judge", stranger]
        if command[0] == "extract":
            arguments += ["-m", model]
        assert main(list(map(str, arguments))) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    export(tmp_path / "plain")
    loaded = TargetSpeechExtraction.from_hparams(tmp_path / "plain")
    with pytest.raises(ValueError, match="calibrated with no judge"):
        judge.scorer_of(loaded)


def test_calibrated_and_asked_from_the_shell(tmp_path, prepared, ecapa, monkeypatch):
    only = [(conditions.UNCHANGED, lambda trial, rng: trial)]
    monkeypatch.setattr(conditions, "conditions", lambda trials: only)
    folder, out = tmp_path / "model", tmp_path / "out"
    export(folder)
    dev, test = (str(prepared.manifests[part]) for part in ("dev", "test"))
    assert main(["calibrate", str(folder), dev, "--judge", str(ecapa)]) == 0
    text = (folder / "hyperparams.yaml").read_text()
    assert "  judge: ecapa" in text
    assert str(ecapa) not in text
    assert (
        main(["evaluate", str(folder), test, "--judge", str(ecapa), "-o", str(out)])
        == 0
    )
    table = (out / "evaluation.md").read_text()
    result = json.loads((out / "evaluation.json").read_text())
    assert result["presence"]["roc"].keys() == {"level", "match", "judge"}
    assert "| match score of the judge |" in table
    scorer = TargetSpeechExtraction.from_hparams(folder).mods.judge_scorer
    assert result["judge"]["threshold"] == scorer.threshold
    assert f"A match score of the judge below {scorer.threshold:.2f}" in table
    wrong = result["wrong_speakers"]
    assert wrong["roc"].keys() == {"match", "judge"}
    assert wrong["wrongs"] == result["judge"]["wrongs"] > 0
    assert f"{wrong['wrongs']} outputs are of the wrong speaker" in table
    # Without the judge its score stays, fitted to the same network.
    assert main(["calibrate", str(folder), dev]) == 0
    again = TargetSpeechExtraction.from_hparams(folder).mods.judge_scorer
    assert torch.equal(again.weight, scorer.weight)
    assert (again.mark, again.threshold) == (scorer.mark, scorer.threshold)


def test_wrong_speakers_are_told_of_right_ones():
    def score(match, judge, wrong=False, silent=False):
        names = ("match", "judge", "wrong_speaker", "silent")
        return dict(zip(names, (match, judge, wrong, silent), strict=True))

    scores = [score(0.5 + k / 100, 0.5 + k / 100) for k in range(40)]
    scores += [score(0.7, 0.1, wrong=True), score(0.1, 0.2, wrong=True)]
    scores += [score(0.0, 0.0, silent=True)]
    summary = conditions.summarize_wrong_speakers(scores)
    assert (summary["rights"], summary["wrongs"]) == (40, 2)
    assert summary["roc"]["judge"]["found_percent"]["1"] == 100
    assert summary["roc"]["match"]["found_percent"]["5"] == 50
    assert conditions.summarize_wrong_speakers(scores[:40]) is None
    unknown = [{**x, "match": np.nan, "judge": np.nan} for x in scores]
    assert conditions.summarize_wrong_speakers(unknown) is None


@pytest.mark.parametrize(
    ("threshold", "asked", "code"),
    [(0.4, 0, 0), (0.6, 0, 3), (0.0, 1, 0), (1.0, 1, 3)],
)
def test_a_match_can_be_required(
    tmp_path, capsys, judge, ecapa, threshold, asked, code
):
    """By whoever tells it; what is written is the same."""
    export(tmp_path / "model")
    scorers = {
        "match_scorer": MatchScorer(16, threshold),
        "judge_scorer": JudgeScorer(SIZE, judge.name, judge.mark, threshold),
    }
    folder = add_scorers(tmp_path / "model", **scorers)
    path = write(tmp_path / "a.wav", speak(1.0, RATE))
    arguments = ["extract", path, "-e", path, "-m", folder, "-o", tmp_path / "out.wav"]
    arguments += ["--judge", ecapa] * asked
    assert main(list(map(str, arguments))) == 0
    written, _ = soundfile.read(tmp_path / "out.wav")
    legend = capsys.readouterr().err
    assert f"below {threshold:.2f}" in legend
    assert ("which ecapa does not" in legend) == bool(asked)
    assert main([*map(str, arguments), "--require-match"]) == code
    assert np.array_equal(soundfile.read(tmp_path / "out.wav")[0], written)
    told = capsys.readouterr().err.count("out.wav: is not that person, by its match")
    assert told == (code == 3)
    # What cannot be read is worse.
    assert main([*map(str, arguments[:1]), "none.wav", *map(str, arguments[2:-2])]) == 1


def test_what_cannot_be_asked(tmp_path, capsys):
    export(tmp_path / "model")
    path = write(tmp_path / "a.wav", speak(1.0, RATE))
    arguments = ["extract", path, "-e", path, "-m", tmp_path / "model"]
    assert main([*map(str, arguments), "--require-match"]) == 1
    assert "tells no match score, so that none can be" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["extract", str(path), "--voice", str(path), "--judge", "resemblyzer"])
    assert ended.value.code == 2
    assert "give -e, not --voice" in capsys.readouterr().err


def test_too_few_speakers_leave_the_model_as_it_is(tmp_path, prepared, judge):
    export(tmp_path / "model")
    before = (tmp_path / "model/hyperparams.yaml").read_text()
    text = Path(prepared.manifests["dev"]).read_text()
    rows = json.loads(text)
    item, row = next(iter(rows.items()))
    del row["absent_enrollment"], row["absent_enrollment_length"]
    (tmp_path / "one.json").write_text(json.dumps({item: row}))
    calibrate(
        tmp_path / "model", tmp_path / "one.json", prepared.data_root, judge=judge
    )
    assert (tmp_path / "model/hyperparams.yaml").read_text() == before
