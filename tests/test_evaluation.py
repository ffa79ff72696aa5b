"""The conditions a model is tried under, and `tse evaluate`."""

import json
import math
import shutil

import numpy as np
import pytest
import soundfile
import torch
from tiny_model import build, export, write_run

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.data.manifests import read_manifest, write_manifest
from speechbrain_peer.evaluation import conditions
from speechbrain_peer.evaluation.calibration import calibrate
from speechbrain_peer.evaluation.long_files import compare_chunks, join_trials
from speechbrain_peer.evaluation.tables import write_tables
from speechbrain_peer.evaluation.trial_scores import error_rates, score_trials
from speechbrain_peer.evaluation.trials import (
    absent_target,
    partial_overlap,
    pink_noise,
    read_trials,
    third_talker,
    vary,
)
from speechbrain_peer.packaging.export import export_model
from speechbrain_peer.utils.files import DataError

RATE = 8000


@pytest.fixture
def trials(prepared):
    return read_trials(prepared.manifests["test"], prepared.data_root, RATE)


def test_a_trial_is_the_manifest_s_item(trials, prepared):
    assert len(trials) == 12
    for trial in trials:
        assert len(set(trial.speakers)) == 2
        assert trial.mixture.shape == trial.target.shape
        assert not trial.noise.any()
    slow = read_trials(prepared.manifests["test"], prepared.data_root, RATE // 2)
    assert len(slow[0].mixture) == math.ceil(len(trials[0].mixture) / 2)
    few = read_trials(prepared.manifests["test"], prepared.data_root, RATE, most=5)
    assert [trial.id for trial in few] == [trial.id for trial in trials[::3]]


def test_a_training_manifest_is_no_test_set(prepared, tmp_path):
    with pytest.raises(DataError, match=r"train-100\.json: has no .* dev or test"):
        read_trials(prepared.manifests["train-100"], prepared.data_root, RATE)
    write_manifest(tmp_path / "empty.json", {})
    with pytest.raises(DataError, match=r"empty\.json: holds no rows"):
        read_trials(tmp_path / "empty.json", prepared.data_root, RATE)


def test_rows_that_are_no_trial_are_told(prepared, tmp_path):
    rows = read_manifest(prepared.manifests["test"], prepared.data_root)
    item, row = next(iter(rows.items()))
    short, silent = tmp_path / "short.wav", tmp_path / "silent.wav"
    soundfile.write(short, np.ones(800), RATE)
    soundfile.write(silent, np.zeros(8000), RATE)
    alone = {**row, "interferers": []}
    uneven = {**row, "target": {**row["target"], "path": str(short)}}
    quiet = {**row, "enrollment": str(silent), "enrollment_length": 8000}
    path = tmp_path / "rows.json"
    for changed, told in (
        (alone, "has no interferers"),
        (uneven, "noise have 800, "),
        (quiet, "its enrollment is silent"),
    ):
        write_manifest(path, {item: changed})
        with pytest.raises(DataError, match=f"{item}: .*{told}"):
            read_trials(path, prepared.data_root, RATE)
    path.write_bytes(path.read_bytes().replace(b"silent", b"s\xe9lent"))
    with pytest.raises(DataError, match=r"rows\.json: is no manifest"):
        read_trials(path, None, RATE)


def test_trials_of_two_and_three_talkers_are_joined_apart(trials):
    more = list(vary(trials, third_talker(trials)))
    joined = join_trials([*trials, *more], 0.5, RATE)
    assert {len(trial.interferers) for trial in joined} == {1, 2}


def test_what_is_not_measured_is_null(tmp_path):
    """JSON knows no NaN."""
    row = {"item": "a", "pesq": math.nan}
    write_tables(tmp_path, "found", "|", {"pesq": [math.nan, 0.0]}, [row])
    assert json.loads((tmp_path / "found.json").read_text()) == {"pesq": [None, 0.0]}
    assert "NaN" not in (tmp_path / "found.json").read_text()
    assert (tmp_path / "found.csv").read_text() == "item,pesq\na,\n"


@pytest.mark.parametrize("share", [1.0, 0.25, 0.0])
def test_overlap(trials, share):
    for trial, before in zip(vary(trials, partial_overlap(share)), trials, strict=True):
        length = len(before.target)
        both = (trial.target != 0) & (trial.interferers[0] != 0)
        assert both.sum() == pytest.approx(share * length, abs=0.02 * length)
        assert np.array_equal(trial.target[:length], before.target)


def test_a_third_talker_is_a_third_speaker(trials):
    for trial in vary(trials, third_talker(trials)):
        assert len(set(trial.speakers)) == len(trial.interferers) + 1 == 3
        assert trial.mixture.shape == trial.interferers[1].shape


def test_noise_has_its_level_and_falls_with_frequency(trials):
    for trial in vary(trials, pink_noise(6)):
        ratio = np.square(trial.target).sum() / np.square(trial.noise).sum()
        assert 10 * np.log10(ratio) == pytest.approx(6, abs=0.01)
        power = np.square(np.abs(np.fft.rfft(trial.noise)))
        half = len(power) // 2
        assert power[1:half].sum() > 3 * power[half:].sum()


def test_the_absent_are_absent(trials):
    trials = [trial._replace(absent_enrollment=None) for trial in trials]  # to be drawn
    enrollments = {trial.enrollment.tobytes(): trial.speakers[0] for trial in trials}
    for trial in vary(trials, absent_target(trials)):
        assert enrollments[trial.enrollment.tobytes()] not in trial.speakers


def test_variations_are_drawn_by_seed(trials):
    first, again, other = (
        vary(trials, third_talker(trials), seed=seed) for seed in (0, 0, 1)
    )
    pairs = zip(first, again, strict=True)
    same = [np.array_equal(a.mixture, b.mixture) for a, b in pairs]
    assert all(same)
    assert any(a.speakers != b.speakers for a, b in zip(first, other, strict=True))


def test_error_rates():
    right = {"wrong_speaker": False, "silent": False}
    present = [{**right, "match": match} for match in (0.9, 0.8, 0.4)]
    present.append({**right, "match": 0.7, "wrong_speaker": True})
    present.append({**right, "match": 0.0, "silent": True})
    absent = [{"match": m} for m in (0.1, 0.2, 0.6, 0.3)]
    rates = error_rates(present, absent)
    assert rates["missed"] == pytest.approx(1 / 3)
    assert rates["wrong_speaker"] == 1
    assert rates["absent"] == 0.25
    assert (rates["rights"], rates["wrongs"]) == (3, 1)
    assert rates["equal_error"] == pytest.approx(1 / 3)


def test_rates_of_no_estimates_are_none():
    right, wrong = (
        {"match": 0.9, "wrong_speaker": w, "silent": False} for w in (False, True)
    )
    rates = error_rates([right], [{"match": 0.2}])
    assert (rates["missed"], rates["wrong_speaker"], rates["wrongs"]) == (0, None, 0)
    rates = error_rates([wrong], [])
    assert (rates["missed"], rates["absent"], rates["equal_error"]) == (None,) * 3


def test_joined_recordings_hold_one_target_and_add_up(trials):
    recordings = join_trials(trials, seconds=1.0, sample_rate=RATE)
    assert recordings
    for recording in recordings:
        assert len(recording.mixture) == RATE
        of_speaker = [x for x in trials if x.speakers[0] == recording.speakers[0]]
        whole = np.concatenate([trial.mixture for trial in of_speaker])
        start = round(float(recording.id.split(", ")[1][:-2]) * RATE)
        np.testing.assert_array_equal(recording.mixture, whole[start : start + RATE])


def test_chunks_are_compared_with_the_whole(tmp_path, trials):
    export(tmp_path / "model")
    model = TargetSpeechExtraction.from_hparams(tmp_path / "model")
    recordings = join_trials(trials, seconds=1.0, sample_rate=RATE)[:1]
    # Shorter than a chunk, they are extracted in one piece.
    (scores,) = compare_chunks(model, recordings)
    assert scores["agreement"] > 80
    assert scores["whole"] == pytest.approx(scores["chunks"], abs=1e-3)


class Mute:
    """Extracts silence, as a model does whose mask is zero."""

    tells_match = True

    def encode_speaker(self, enrollment):
        return enrollment[:, :4]

    def extract_batch(self, mixture, embeddings):
        return torch.zeros_like(mixture)

    def match_score(self, estimates, embeddings):
        return torch.zeros(len(estimates))


def test_silence_is_neither_right_nor_the_wrong_speaker(trials):
    scores = score_trials(Mute(), trials, "mute")
    for score in scores:
        assert (score["silent"], score["wrong_speaker"]) == (True, False)
        assert math.isnan(score["si_sdri"])
    summary = conditions.summarize(scores)
    assert summary["wrong_speaker_percent"] == 0
    assert summary["silent_percent"] == summary["worse_than_mixture_percent"] == 100
    rates = error_rates(scores, scores)
    assert (rates["rights"], rates["wrongs"], rates["absent"]) == (0, 0, 0)


def test_silence_is_no_match_to_calibrate_with(tmp_path, prepared, caplog):
    modules = build()
    torch.nn.init.zeros_(next(modules["decoder"].parameters()))
    export_model(write_run(tmp_path / "run"), modules, tmp_path / "model")
    calibrate(tmp_path / "model", prepared.manifests["dev"], prepared.data_root)
    assert "no estimate is of the enrolled talker" in caplog.text


def test_the_command_writes_tables(tmp_path, prepared, capsys, monkeypatch):
    """The data's folder is the one that preparation has written beside the manifest."""
    monkeypatch.setattr(conditions, "SECONDS", 1)
    torch.manual_seed(0)
    export(tmp_path / "model")
    assert main(["calibrate", str(tmp_path / "model"), prepared.manifests["dev"]]) == 0
    arguments = ["evaluate", str(tmp_path / "model"), prepared.manifests["test"]]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/evaluation.md").read_text()
    assert text in capsys.readouterr().out
    assert "| 50% overlap | 12 |" in text and "Equal error rate" in text
    result = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert result["conditions"]["as they are"]["items"] == 12
    assert result["match"]["rights"] + result["match"]["wrongs"] == 12
    assert result["presence"]["absent_items"] == 12
    assert result["presence"]["roc"].keys() == {"level", "match"}
    assert "12 mixtures with the enrollment of somebody absent" in text
    assert result["chunks"]["recordings"] > 1


def speakers_of(row):
    """The speakers in a row of a manifest."""
    return {source["speaker"] for source in (row["target"], *row["interferers"])}


def strict_json(text):
    """Reads JSON without what only Python takes for it."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_what_two_speakers_cannot_give_is_left_out(tmp_path, prepared, capsys):
    rows = read_manifest(prepared.manifests["test"])
    two = speakers_of(next(iter(rows.values())))
    rows = {item: row for item, row in rows.items() if speakers_of(row) == two}
    for row in rows.values():
        del row["absent_enrollment"], row["absent_enrollment_length"]
    write_manifest(tmp_path / "two.json", rows)
    export(tmp_path / "model")
    calibrate(tmp_path / "model", prepared.manifests["dev"], prepared.data_root)
    arguments = ["evaluate", tmp_path / "model", tmp_path / "two.json", "--output"]
    arguments += [tmp_path / "out", "--data_root", prepared.data_root]
    assert main(list(map(str, arguments))) == 0
    result = strict_json((tmp_path / "out/evaluation.json").read_text())
    assert result["left_out"].keys() == {"a third talker", "absent target"}
    assert len(result["conditions"]) == 8
    assert result["match"]["absent"] is None and result["presence"] is None
    text = capsys.readouterr().out
    assert "Left out: a third talker (no interferer is absent from mixture" in text
    assert " - of those with the enrollment of somebody absent" in text


def test_wrong_files_are_told(tmp_path, prepared, capsys):
    manifest = prepared.manifests["test"]
    (tmp_path / "taken").write_text("")
    shutil.copy(manifest, tmp_path / "alone.json")
    for arguments, message in (
        (["none", manifest], "none: no such folder"),
        (["small-8k", tmp_path / "no.json"], f"{tmp_path}/no.json: no such file"),
        (["small-8k", manifest, "--data_root", "no"], "no: no such folder"),
        (["small-8k", manifest, "-o", tmp_path / "taken"], "taken: is not a folder"),
        (["small-8k", tmp_path / "alone.json"], "alone.json: nothing beside it tells"),
    ):
        assert main(["evaluate", *map(str, arguments)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("tse: error: ") and message in line
