"""Scores of known signals, signals without a score, and the scoring processes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechbrain_peer.evaluation import metrics
from speechbrain_peer.evaluation.metrics import score_item, si_sdr, why_no_pesq
from speechbrain_peer.evaluation.scoring import ScoringPool

RATE = 8000


def tones(seconds=2.0):
    """Two orthogonal zero-mean signals of equal energy."""
    time = np.arange(int(RATE * seconds)) / RATE
    return np.sin(2 * np.pi * np.outer([440, 1000], time))


def voices(seed=0, seconds=2.0):
    """Noise in syllable-like bursts: two talkers that PESQ and STOI accept."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(RATE * seconds)) / RATE
    bursts = np.stack([np.sin(2 * np.pi * rate * time) ** 2 for rate in (2, 3)])
    return 0.1 * bursts * rng.standard_normal((2, time.size))


@pytest.mark.parametrize("decibels", [-12.0, 0.0, 30.0])
@pytest.mark.parametrize("scale", [1.0, -3.0, 1e-9])
def test_si_sdr_of_orthogonal_noise_is_its_level(decibels, scale):
    target, noise = tones()
    estimate = scale * (target + 10 ** (-decibels / 20) * noise)
    assert si_sdr(estimate, target) == pytest.approx(decibels, abs=1e-6)
    assert si_sdr(estimate + 0.3 * scale, target) == pytest.approx(decibels, abs=1e-6)


def test_sdr_forgives_a_short_filter_and_si_sdr_does_not():
    target, interferer = voices()
    late = np.concatenate([np.zeros(20), target[:-20]])
    scores = score_item(late, target, target + interferer, [interferer], RATE)
    assert scores["sdr"] > 20
    assert scores["si_sdr"] < 0


def test_improvements_are_differences_to_the_mixture():
    target, interferer = voices()
    mixture = target + interferer
    scores = score_item(target + 0.1 * interferer, target, mixture, [interferer], RATE)
    assert scores["si_sdri"] == pytest.approx(20, abs=0.5)
    for name in ("si_sdr", "sdr"):
        assert scores[f"{name}i"] == scores[name] - scores[f"mixture_{name}"]
    assert scores["mixture_stoi"] < scores["stoi"] <= 1


def test_a_mixture_need_not_be_scored():
    target, interferer = voices()
    signals = target + 0.1 * interferer, target, target + interferer, [interferer]
    scores = score_item(*signals, RATE)
    alone = score_item(*signals[:2], None, [interferer], RATE)
    assert alone.keys() == {*metrics.METRICS, "wrong_speaker", "silent"}
    assert alone == {name: scores[name] for name in alone}


def test_wrong_speaker_is_closer_to_any_interferer():
    target, first = voices(seed=0)
    second, _ = voices(seed=1)
    mixture = target + first + second

    def wrong(estimate):
        scores = score_item(estimate, target, mixture, [first, second], RATE)
        return scores["wrong_speaker"]

    assert wrong(second + 0.5 * target) is True
    assert wrong(first + 0.5 * target) is True
    assert wrong(target + 0.5 * second) is False


@pytest.mark.skipif(metrics.pesq is None, reason="the package pesq is not installed")
@pytest.mark.parametrize(("rate", "perfect"), [(8000, 4.549), (16000, 4.644)])
def test_pesq_follows_the_sample_rate(rate, perfect):
    target, noise = voices(seconds=4)
    mixture = target + noise
    scores = score_item(target, target, mixture, [noise], rate)
    # The highest values of the narrow and of the wide band.
    assert scores["pesq"] == pytest.approx(perfect, abs=1e-3)
    assert scores["mixture_pesq"] < 3.5


def test_pesq_has_no_value_at_other_rates():
    target, noise = voices()
    scores = score_item(target, target, target + noise, [noise], 11025)
    assert math.isnan(scores["pesq"])
    assert math.isfinite(scores["stoi"])
    assert "11025" in why_no_pesq(11025)


def test_missing_pesq_is_no_error():
    code = (
        "import sys; sys.modules['pesq'] = None; import json, numpy as np\n"
        "from speechbrain_peer.evaluation.metrics import score_item, why_no_pesq\n"
        "a, b = np.random.default_rng(0).standard_normal((2, 8000))\n"
        "pesq = score_item(a, a, a + b, [b], 8000)['pesq']\n"
        "print(json.dumps([str(pesq), why_no_pesq(8000)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        text=True,
        cwd=Path(metrics.__file__).parents[2],
    )
    value, reason = json.loads(done.stdout)
    assert value == "nan"
    assert "compiler" in reason


@pytest.mark.parametrize(
    "odd", [np.zeros, np.ones, lambda n: np.full(n, np.nan)], ids=["0", "1", "nan"]
)
def test_a_degenerate_estimate_has_no_score(odd):
    target, noise = voices()
    scores = score_item(odd(target.size), target, target + noise, [noise], RATE)
    for name in ("si_sdr", "sdr", "pesq", "stoi", "si_sdri", "sdri"):
        assert math.isnan(scores[name])
    assert math.isfinite(scores["mixture_si_sdr"])
    assert scores["wrong_speaker"] is False
    assert scores["silent"] is True


def test_an_output_beside_a_silent_target_is_somebody_elses():
    target, noise = voices()
    scores = score_item(noise, 0 * target, noise, [noise], RATE)
    assert math.isnan(scores["si_sdr"])
    assert (scores["wrong_speaker"], scores["silent"]) == (True, False)


@pytest.mark.parametrize("samples", [0, 1, 100, 513, 1500])
def test_short_items_lack_values_but_raise_nothing(samples):
    target, noise = voices()[:, :samples]
    scores = score_item(target, target, target + noise, [noise], RATE)
    assert math.isnan(scores["pesq"])
    assert math.isnan(scores["stoi"])
    assert math.isnan(scores["sdr"]) == (samples <= 512)


def test_faint_and_perfect_estimates_have_finite_ratios():
    target, noise = voices()
    perfect = score_item(2 * target, target, target + noise, [noise], RATE)
    assert perfect["si_sdr"] == pytest.approx(100)
    assert perfect["sdr"] == pytest.approx(100)
    faint = score_item(1e-30 * target, target, target + noise, [noise], RATE)
    assert faint["si_sdr"] == pytest.approx(100)
    single = target.astype(np.float32)
    assert si_sdr(single, single) == pytest.approx(100)


def test_signals_of_different_length_are_refused():
    target, noise = voices()
    with pytest.raises(ValueError, match="Cut padding"):
        score_item(target[:-1], target, target + noise, [noise], RATE)


def test_real_speech_scores_as_its_mixture_improves():
    folder = os.environ.get("MINI_LIBRIMIX")
    if not folder:
        pytest.skip("MINI_LIBRIMIX names no folder with real speech")
    speakers = sorted((Path(folder) / "LibriSpeech" / "test-clean").iterdir())
    files = [min(speaker.rglob("*.flac")) for speaker in speakers[:2]]
    target, interferer = (soundfile.read(file, frames=32000)[0] for file in files)
    better, worse = (
        score_item(
            target + level * interferer,
            target,
            target + interferer,
            [interferer],
            16000,
        )
        for level in (0.1, 0.5)
    )
    for name in metrics.METRICS:
        if metrics.pesq or name != "pesq":
            assert better[name] > worse[name] > worse[f"mixture_{name}"]


def submit_items(pool, count):
    for seed in range(count):
        target, noise = voices(seed)
        pool.submit(
            f"item {seed}", target + 0.1 * noise, target, target + noise, [noise]
        )


def test_processes_score_as_this_one_does_in_the_order_of_submission():
    # More items than the backlog holds.
    with ScoringPool(n_processes=1, sample_rate=RATE) as pool:
        submit_items(pool, 7)
        beside = pool.results()
    with ScoringPool(n_processes=0, sample_rate=RATE) as pool:
        submit_items(pool, 7)
        inline = pool.results()
    assert list(beside) == list(inline) == [f"item {seed}" for seed in range(7)]
    for item_id in inline:
        assert beside[item_id] == pytest.approx(inline[item_id])


@pytest.mark.parametrize("n_processes", [0, 1])
def test_a_failure_names_its_item(n_processes):
    target, noise = voices()
    with (
        pytest.raises(RuntimeError, match=r"item 2.*Cut padding"),
        ScoringPool(n_processes, RATE) as pool,
    ):
        submit_items(pool, 2)
        pool.submit("item 2", target[:-1], target, target + noise, [noise])
        pool.results()


def test_two_items_of_one_name_are_refused():
    with ScoringPool(0, RATE) as pool:
        submit_items(pool, 1)
        with pytest.raises(ValueError, match="item 0"):
            submit_items(pool, 1)


def test_scoring_processes_do_not_load_torch():
    code = (
        "import sys; from speechbrain_peer.evaluation import scoring\n"
        "scoring._keep_torch_out()\n"
        "import speechbrain_peer.evaluation.metrics; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        text=True,
        cwd=Path(metrics.__file__).parents[2],
    )
    assert done.stdout.strip() == "False"
