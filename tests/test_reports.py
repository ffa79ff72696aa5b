"""The files that a test run leaves."""

import csv
import json
import math

import numpy as np
import pytest
import soundfile

from speechbrain_peer.evaluation import metrics
from speechbrain_peer.evaluation.reports import save_examples, write_scores


def item(si_sdr, mixture_si_sdr, pesq=2.0, wrong_speaker=False, silent=False):
    return {
        "si_sdr": si_sdr,
        "sdr": si_sdr + 0.5,
        "pesq": pesq,
        "stoi": 0.8,
        "mixture_si_sdr": mixture_si_sdr,
        "mixture_sdr": mixture_si_sdr + 0.25,
        "mixture_pesq": 1.5,
        "mixture_stoi": 0.7,
        "si_sdri": si_sdr - mixture_si_sdr,
        "sdri": si_sdr - mixture_si_sdr + 0.25,
        "wrong_speaker": wrong_speaker,
        "silent": silent,
    }


SCORES = {
    "a": item(10.0, 1.0),
    "b": item(6.0, -1.0, pesq=math.nan),
    "c": item(-8.0, 2.0, wrong_speaker=True),
    "d": item(math.nan, 2.0, silent=True),
}


def read(path):
    def refuse(literal):
        raise AssertionError(f"{literal} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "résultats of a run"


def test_means_skip_items_without_a_value_and_count_them(folder):
    write_scores(folder, SCORES, 8000, "Vier Stücke.", {"parameters": 7})
    report = read(folder / "metrics.json")
    assert report["items"] == 4
    assert report["means"]["si_sdr"] == pytest.approx(8 / 3)
    assert report["means"]["mixture_si_sdr"] == pytest.approx(1.0)
    assert report["items_without_value"]["si_sdr"] == 1
    assert report["items_without_value"]["pesq"] == 1
    assert report["items_without_value"]["mixture_si_sdr"] == 0
    assert report["wrong_speaker_percent"] == 25
    assert report["silent_percent"] == 25
    # The wrong speaker, and silence.
    assert report["worse_than_mixture_percent"] == 50
    assert report["corpus"] == "Vier Stücke."
    assert report["run"] == {"parameters": 7}


def test_table_shows_mixture_and_estimate(folder, monkeypatch):
    monkeypatch.setattr(metrics, "pesq", object())
    text = write_scores(folder, SCORES, 8000, "Four pieces.", {"parameters": 7})
    assert (folder / "metrics.md").read_text(encoding="utf-8") == text
    assert "| mixture | 1.00 | - | 1.25 | 1.50 | 0.700 | - | - |" in text
    assert "| estimate | 2.67 | 2.00 | 3.17 | 2.00 | 0.800 | 25.0 | 25.0 |" in text
    assert "Silent outputs are neither right nor the wrong speaker" in text
    assert "Four pieces." in text
    assert "parameters: 7" in text
    assert "si_sdr 1" in text
    assert "pesq 1" in text


def test_missing_pesq_is_a_dash_with_its_reason(folder, monkeypatch):
    monkeypatch.setattr(metrics, "pesq", None)
    target, noise = np.random.default_rng(0).standard_normal((2, 8000))
    scores = {"a": metrics.score_item(target, target, target + noise, [noise], 8000)}
    text = write_scores(folder, scores, 8000, "Noise.")
    estimate = next(line for line in text.splitlines() if "| estimate" in line)
    assert estimate.split(" | ")[4] == "-"
    assert text.count("compiler") == 1
    assert "without a value" not in text and "Silent outputs" not in text
    assert read(folder / "metrics.json")["means"]["pesq"] is None


def test_scores_of_each_item_are_in_the_csv(folder):
    write_scores(folder, SCORES, 8000, "Four pieces.")
    with open(folder / "test_scores.csv", newline="", encoding="utf-8") as file:
        rows = {row["ID"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(SCORES)
    assert float(rows["a"]["si_sdri"]) == 9.0
    assert rows["d"]["si_sdr"] == ""
    assert rows["c"]["wrong_speaker"] == "True"


def test_no_scores_is_an_error_that_keeps_the_old_report(folder):
    write_scores(folder, SCORES, 8000, "Four pieces.")
    with pytest.raises(ValueError, match="no test item"):
        write_scores(folder, {}, 8000, "None.")
    with pytest.raises(ValueError, match="JSON"):
        write_scores(folder, SCORES, 8000, "Four.", {"seconds": math.inf})
    assert read(folder / "metrics.json")["corpus"] == "Four pieces."
    assert len(list(folder.iterdir())) == 3


def test_examples_are_audio_and_one_figure(folder):
    rng = np.random.default_rng(0)
    target, noise = 0.1 * rng.standard_normal((2, 8000))
    quiet = {"mixture": target + noise, "target": target, "estimate": 0 * target}
    loud = {"mixture": 2 * noise, "target": target, "estimate": 20 * target}
    save_examples(folder, {"quiet": quiet, "s1/loud": loud}, 8000)

    def audio(name):
        samples, rate = soundfile.read(folder / f"{name}.wav")
        assert rate == 8000
        return samples

    assert audio("quiet_mixture") == pytest.approx(quiet["mixture"], abs=1e-4)
    # One factor for the whole item brings the loudest signal to full scale.
    estimate, target_file = audio("s1_loud_estimate"), audio("s1_loud_target")
    assert np.abs(estimate).max() == pytest.approx(1.0, abs=1e-3)
    assert estimate == pytest.approx(20 * target_file, abs=1e-3)
    png = (folder / "examples.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(list(folder.iterdir())) == 7


def test_a_very_short_example_is_drawn(folder):
    signal = np.sin(np.arange(10.0))
    save_examples(
        folder, {"a": dict.fromkeys(("mixture", "target", "estimate"), signal)}, 8000
    )
    assert (folder / "examples.png").exists()
