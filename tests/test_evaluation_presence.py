"""Absent talkers in `tse evaluate`: levels, shares and the ROC, by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

from speechbrain_peer.data.manifests import read_manifest, write_manifest
from speechbrain_peer.evaluation.conditions import score_conditions
from speechbrain_peer.evaluation.metrics import level_db
from speechbrain_peer.evaluation.presence import presence_markdown, summarize_presence
from speechbrain_peer.evaluation.trials import absent_target, read_trials, vary

RATE = 8000


def scores(levels, matches=None, target_levels=None):
    """Of trials, as `score_trials` returns them."""
    matches = matches or [math.nan] * len(levels)
    target_levels = target_levels or [0.0] * len(levels)
    rows = zip(levels, matches, target_levels, strict=True)
    return [
        {"level": a, "match": b, "target_level": c, "judge": math.nan}
        for a, b, c in rows
    ]


def test_shares_and_median_by_hand():
    present = scores([-3.0, -1.0, -12.0, -30.0], None, [0.5, 2.0, -9.9, -10.0])
    absent = scores([-45.0, -20.1, -19.9, -2.0, -60.0])
    summary = summarize_presence(present, absent)
    assert summary["attenuation"] == pytest.approx(20.1)
    assert summary["audible_percent"] == 40
    assert summary["lost_percent"] == 25
    assert (summary["present_items"], summary["absent_items"]) == (4, 5)
    assert summary["roc"].keys() == {"level"}  # this model tells no match
    assert summarize_presence(present, []) is None


def test_the_roc_counts_pairs():
    rng = np.random.default_rng(0)
    # Rounded, so that there are ties.
    of_present, of_absent = (
        np.round(rng.normal(mean, 1, 100), 1) for mean in (1.0, 0.0)
    )
    matches = rng.uniform(size=200)
    summary = summarize_presence(
        scores(of_present, list(matches[:100])), scores(of_absent, list(matches[100:]))
    )
    pairs = itertools.product(of_present, of_absent)
    area = np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs])
    assert summary["roc"]["level"]["area"] == pytest.approx(area)
    assert summary["roc"]["match"]["area"] == pytest.approx(0.5, abs=0.1)
    for percent, found in summary["roc"]["level"]["found_percent"].items():
        # The best of the thresholds that let no more of the absent through.
        best = max(
            100 * (of_present > threshold).mean()
            for threshold in of_absent
            if 100 * (of_absent > threshold).mean() <= int(percent)
        )
        assert found == pytest.approx(best)
    text = presence_markdown(summary)
    assert f"| output against mixture (dB) | {area:.3f} |" in text
    assert "| match score |" in text


def test_levels_of_silence_and_of_what_is_not_finite():
    noise = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    assert level_db(0.1 * noise, noise) == pytest.approx(-20)
    for nothing in (0 * noise, np.nan * noise):
        assert level_db(nothing, noise) == level_db(nothing, nothing) == -100
    assert level_db(noise, 0 * noise) == 100


class Knows:
    """Extracts nothing but a whisper for those who are not in the mixture."""

    tells_match = False

    def __init__(self, trials):
        self.absent = {trial.absent_enrollment.tobytes() for trial in trials}

    def encode_speaker(self, enrollment):
        gain = 0.01 if enrollment.numpy().tobytes() in self.absent else 0.8
        return torch.tensor([[gain]])

    def extract_batch(self, mixture, embeddings):
        return embeddings * mixture


def test_the_absent_are_those_of_the_manifest(prepared, tmp_path):
    manifest = prepared.manifests["test"]
    trials = read_trials(manifest, prepared.data_root, RATE)
    # Some enroll the present of other mixtures, too.
    own = {trial.enrollment.tobytes() for trial in trials}
    trials = [t for t in trials if t.absent_enrollment.tobytes() not in own] or trials
    found, left_out = score_conditions(Knows(trials), trials)
    assert not left_out
    summary = summarize_presence(found["as they are"], found["absent target"])
    assert summary["attenuation"] == pytest.approx(40, abs=1e-3)
    assert summary["audible_percent"] == 0
    # A manifest of before: they are drawn.
    rows = read_manifest(manifest)
    for row in rows.values():
        del row["absent_enrollment"], row["absent_enrollment_length"]
    write_manifest(tmp_path / "old.json", rows)
    old = read_trials(tmp_path / "old.json", prepared.data_root, RATE)
    speakers = {trial.enrollment.tobytes(): trial.speakers[0] for trial in old}
    for trial in vary(old, absent_target(old)):
        assert speakers[trial.enrollment.tobytes()] not in trial.speakers
