"""The microphones of a room, against each other and together."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_model import build, export

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.data.rooms import RoomFolder
from speechbrain_peer.evaluation.metrics import si_sdr
from speechbrain_peer.evaluation.microphones import (
    BEST,
    LENT,
    MEAN,
    MVDR,
    PEERS,
    TOGETHER,
    evaluate,
    extract_all_ways,
    hear,
)
from speechbrain_peer.evaluation.trials import read_trials
from speechbrain_peer.inference.beamforming import beamform
from speechbrain_peer.peer_learning.predictors import without_predictors
from speechbrain_peer.utils.files import DataError

RATE = 8000


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Two rooms with three places and three microphones, without walls."""
    folder = tmp_path_factory.mktemp("rooms")
    rng = np.random.default_rng(0)
    for room in range(2):
        (folder / f"room-{room}").mkdir()
        for talker in range(3):
            response = np.zeros((600, 3))
            taps = rng.integers(5, 25, size=3)
            response[taps, range(3)] = rng.uniform(0.5, 1, 3)
            response[taps + 8, range(3)] = 0.2
            # Late, and no part of the target.
            response[taps + 500, range(3)] = 0.2
            path = folder / f"room-{room}/talker-{talker}.wav"
            soundfile.write(path, response, RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def trials(prepared):
    return read_trials(prepared.manifests["test"], prepared.data_root, RATE)


def test_a_trial_in_a_room_is_heard_by_all_microphones(rooms, trials):
    trial = trials[0]
    heard = hear(trial, RoomFolder(rooms, RATE))
    assert heard.mixtures.shape == heard.targets.shape == (3, len(trial.target))
    rest = heard.mixtures - heard.targets - heard.interferers[0]
    # What is left is the late reflection.
    ratio = np.square(rest).sum(1) / np.square(heard.targets).sum(1)
    assert (ratio > 1e-3).all()
    assert (ratio < 0.3).all()
    again = hear(trial, RoomFolder(rooms, RATE))
    assert np.array_equal(again.mixtures, heard.mixtures)
    others = hear(trial, RoomFolder(rooms, RATE), seed=5)
    assert not np.array_equal(others.mixtures, heard.mixtures)


def two_talkers(seconds, seed=0):
    """What two microphones hear of a talker and of another."""
    rng = np.random.default_rng(seed)
    talker, other = rng.standard_normal((2, seconds * RATE))
    talker *= np.repeat(rng.integers(0, 2, 10 * seconds), RATE // 10)
    other *= np.repeat(rng.integers(0, 2, 10 * seconds), RATE // 10)
    return tuple(np.stack((x, np.roll(x, k))) for x, k in ((talker, 3), (other, -2)))


def gains(estimates, mixtures, targets):
    return [
        si_sdr(estimate, target) - si_sdr(mixture, target)
        for estimate, mixture, target in zip(estimates, mixtures, targets, strict=True)
    ]


def test_the_beamformer_hears_the_talker_where_each_microphone_is():
    targets, others = two_talkers(6, seed=1)
    mixtures = targets + others
    beams = beamform(np.float32(mixtures), np.float32(targets), RATE, range(2))
    assert beams.dtype == np.float32
    assert min(gains(beams, mixtures, targets)) > 15


def test_the_beamformer_takes_away_what_rings():
    """More than Souden's filter of the same masks does, which sees a frame alone."""
    from torchaudio.transforms import PSD, SoudenMVDR

    window = torch.hann_window(1024, dtype=torch.double)
    frames = {"n_fft": 1024, "hop_length": 256, "window": window}
    for seed in range(3):
        targets, others = two_talkers(6, seed)
        late = np.stack((np.roll(others[0], 900), np.roll(others[0], 1100)))
        mixtures = targets + others + late / 2
        beam = beamform(np.float32(mixtures), np.float32(targets), RATE)
        heard, found = (
            torch.stft(torch.from_numpy(x), **frames, return_complex=True)
            for x in (mixtures, targets)
        )
        energy, rest = found.abs() ** 2, (heard - found).abs() ** 2
        mask = (energy / (energy + rest).clamp(min=1e-12)).prod(0).sqrt()
        talker, rest = (PSD()(heard, share) for share in (mask, 1 - mask))
        plain = SoudenMVDR()(heard, talker, rest, 0)
        plain = torch.istft(plain, **frames, length=6 * RATE).numpy()
        ours, theirs = (
            gains(one, mixtures[:1], targets[:1])[0] for one in (beam, plain[None])
        )
        assert ours > theirs + 0.2


def test_a_model_without_peers_is_measured_without_lending(rooms, trials):
    model = TargetSpeechExtraction(without_predictors(build()), {"sample_rate": RATE})
    heard = hear(trials[0], RoomFolder(rooms, RATE))
    alone, together = extract_all_ways(model, heard.mixtures, trials[0].enrollment)
    assert alone.shape == heard.mixtures.shape
    assert set(together) == {(k, way) for k in (2, 3) for way in (MEAN, MVDR)}
    assert all(x.shape == alone[0].shape for x in together.values())


def test_rooms_with_one_microphone_are_refused(rooms, trials, tmp_path):
    for path in rooms.rglob("*.wav"):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        response, _ = soundfile.read(path)
        soundfile.write(tmp_path / path.relative_to(rooms), response[:, 0], RATE)
    model = TargetSpeechExtraction(build(), {"sample_rate": RATE})
    with pytest.raises(DataError, match="rooms with one microphone"):
        evaluate(model, trials, tmp_path, n_processes=0)


def test_the_command(rooms, prepared, tmp_path, capsys):
    export(tmp_path / "model")
    rows = json.loads(Path(prepared.manifests["test"]).read_text())
    rows = dict(list(rows.items())[:3])
    test = tmp_path / "test.json"
    test.write_text(json.dumps(rows))
    paths = [str(path) for path in (tmp_path / "model", test)]
    options = ["--data_root", prepared.data_root, "--microphones", rooms]
    options += ["-o", tmp_path / "out"]
    assert main(["evaluate", *paths, *map(str, options)]) == 0
    out = tmp_path / "out"
    result = json.loads((out / "microphones.json").read_text())
    assert result["n_items"] == 3
    ways = result["ways"]
    assert ways.keys() == {
        *(f"microphone {k} alone" for k in (1, 2, 3)),
        *(BEST, MEAN, MVDR, LENT, PEERS, TOGETHER),
    }
    together = (BEST, MEAN, MVDR, LENT, PEERS, TOGETHER)
    assert all(set(ways[way]) == {"2", "3"} for way in together)
    first = ways["microphone 1 alone"]["1"]["si_sdri"][0]
    assert ways[BEST]["2"]["si_sdri"][0] >= first
    with open(out / "microphones.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * (3 + 2 * 6)
    text = (out / "microphones.md").read_text()
    assert text in capsys.readouterr().out
    assert f"| {PEERS} |  | " in text
