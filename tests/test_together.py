"""Extraction of one talker from several recordings of one moment."""

import math

import numpy as np
import pytest
import soundfile
import test_model_bsrnn
import test_model_dpccn
import test_model_spex_plus
import torch
from rows import build_row
from scipy.signal import resample_poly
from test_alignment import speech_like
from tiny_model import build, export, load_identity

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.evaluation.metrics import si_sdr
from speechbrain_peer.inference import chunks, together
from speechbrain_peer.inference.alignment import shift
from speechbrain_peer.inference.beamforming import hold_the_same
from speechbrain_peer.inference.together import ChunksTogether
from speechbrain_peer.peer_learning.exchange import (
    embed,
    extract,
    extract_together,
    mean_of_others,
)
from speechbrain_peer.peer_learning.predictors import without_predictors
from speechbrain_peer.peer_learning.quality import (
    LEND,
    agree,
    estimated_snr,
    extract_by_quality,
    lend_by,
    mean_by,
)
from speechbrain_peer.utils.audio import AudioError
from speechbrain_peer.utils.files import DataError

RATE = 8000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(folder)
    return TargetSpeechExtraction.from_hparams(source=folder)


@pytest.fixture(scope="module")
def voice(model):
    torch.manual_seed(0)
    return model.encode_speaker(torch.randn(1, 8000))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def identity(tmp_path):
    """A model that lends, and whose estimate is the mixture, but for its ends."""
    return load_identity(tmp_path / "identity")


def write(path, samples, rate=RATE):
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def talk(seconds, seed=0):
    return np.float32(speech_like(seconds, seed))


def test_equal_recordings_lend_as_in_training():
    modules, embedding = build().eval(), torch.randn(1, 16)
    mixture = torch.from_numpy(talk(1))
    mixtures = mixture.expand(3, -1)
    together = extract_by_quality(modules, mixtures, embedding)
    expected = extract_together(modules, mixtures[:, None], embedding)[0, 0]
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)


BACKBONES = {
    "spex_plus_pl": test_model_spex_plus.TINY,
    "bsrnn_pl": test_model_bsrnn.TINY,
    "sdpccn": test_model_dpccn.TINY | {"exchange": "better"},
}


@torch.no_grad()
@pytest.mark.parametrize(("row", "sizes"), BACKBONES.items(), ids=BACKBONES)
def test_every_backbone_lends(here, row, sizes):
    modules = build_row(row, here / "results", **sizes)[0].eval()
    mixture = torch.from_numpy(talk(1))
    mixtures, voice = mixture.expand(2, -1), embed(modules, mixture[None])
    together = extract_by_quality(modules, mixtures, voice)
    expected = extract_together(modules, mixtures[:, None], voice)[0, 0]
    scale = expected.abs().max().item()
    torch.testing.assert_close(together, expected, rtol=1e-3, atol=1e-4 * scale)


@torch.no_grad()
def test_where_nobody_else_is_there_a_recording_is_alone():
    modules, embedding = build().eval(), torch.randn(1, 16)
    mixtures = torch.from_numpy(np.stack([talk(1), talk(1, seed=1)]))
    alone = extract(modules, mixtures[:1], embedding)[0]
    present = torch.tensor([[1.0], [0.0]]).expand(mixtures.shape)
    estimate = extract_by_quality(modules, mixtures, embedding, present)
    torch.testing.assert_close(estimate, alone, rtol=1e-4, atol=1e-5)
    silent = mixtures * present
    estimate = extract_by_quality(modules, silent, embedding)
    torch.testing.assert_close(estimate, alone, rtol=1e-4, atol=1e-5)
    assert not extract_by_quality(modules, 0 * mixtures, embedding).any()


@torch.no_grad()
def test_only_what_is_nearly_the_same_is_averaged(identity):
    torch.manual_seed(0)
    first, other = torch.randn(2, RATE)
    voice = identity.encode_speaker(first[None])
    middle = slice(16, -16)

    def together(cosine):
        second = cosine * first + (1 - cosine**2) ** 0.5 * other
        mixtures = torch.stack((first, second))
        return extract_by_quality(identity.mods, mixtures, voice)[middle], second

    estimate, _ = together(0.6)
    torch.testing.assert_close(estimate, first[middle], rtol=1e-3, atol=1e-3)
    estimate, second = together(0.95)
    mean = (first + second)[middle] / 2
    torch.testing.assert_close(estimate, mean, rtol=0, atol=0.05)


def test_a_better_recording_keeps_its_own():
    own, all_agree = torch.randn(3, 5, 4), torch.ones(3, 3)
    weights = torch.tensor([[100.0], [1.0], [1.0]])
    lent = lend_by(weights, own, all_agree)
    torch.testing.assert_close(lent[0], own[0], rtol=0, atol=0.1)
    torch.testing.assert_close(lent[1], own[0], rtol=0, atol=0.1)
    # Equal ones are lent what they do not have.
    equal = lend_by(torch.ones(3, 1), own, all_agree)
    torch.testing.assert_close(equal, mean_of_others(own))
    # And nothing from those who hear something else.
    torch.testing.assert_close(lend_by(torch.ones(3, 1), own, torch.eye(3)), own)


def test_recordings_agree_where_both_are_there():
    talker, other = (torch.from_numpy(talk(2, seed)) for seed in (0, 1))
    late = torch.arange(2 * RATE) >= RATE
    estimates = torch.stack((talker, 3 * talker * late, other))
    present = torch.ones_like(estimates)
    present[1] = late
    agreement = agree(estimates, present, LEND)
    assert agreement[0].tolist() == [1, 1, 0]
    assert torch.equal(agreement, agreement.T)


def test_quality_is_that_of_the_recordings():
    talker, rest = (torch.from_numpy(talk(2, seed)) for seed in (0, 1))
    rest = rest - (rest @ talker) / (talker @ talker) * talker
    rest = rest * talker.norm() / rest.norm()
    mixtures = torch.stack((talker + rest, 3 * (talker + 0.1 * rest), 0 * talker))
    snr = estimated_snr(5 * talker.expand(3, -1), mixtures)
    torch.testing.assert_close(snr, torch.tensor([1.0, 100.0, 0.0]), rtol=1e-3, atol=0)
    mean = mean_by(mixtures, snr[:, None].expand(mixtures.shape))
    # The level is the first one's.
    assert torch.cosine_similarity(mean, talker, dim=0) > 0.97
    assert mean.norm() == pytest.approx(mixtures[0].norm().item(), rel=0.05)


def test_one_recording_gives_what_it_gives_alone(model, voice, here):
    write("a.wav", talk(2))
    alone = model.extract_file("a.wav", embeddings=voice)
    listed = model.extract_file(["a.wav"], embeddings=voice)
    assert torch.equal(listed, alone)
    peers, alignment = model.extract_file(
        "a.wav", embeddings=voice, channels="peers", return_alignment=True
    )
    assert torch.equal(peers, alone)
    assert alignment == []


def test_recordings_of_all_kinds_are_brought_together(identity, here):
    moment = np.float32(speech_like(12, seed=2))
    # Another rate, another beginning, louder; two channels, shorter.
    write("a.wav", moment[: 9 * RATE])
    late = 2.0 * moment[round(1.5 * RATE) :]
    write("b.wav", resample_poly(late, 2, 1), 2 * RATE)
    write("c.wav", np.stack([moment[: 4 * RATE]] * 2, axis=1))
    embedding = torch.zeros(1, 16)
    estimate, alignment = identity.extract_file(
        ["a.wav", "b.wav", "c.wav"], embeddings=embedding, return_alignment=True
    )
    assert estimate.shape == (9 * RATE,)
    inside = slice(100, -100)
    np.testing.assert_allclose(
        estimate[inside], moment[: 9 * RATE][inside], atol=0.05 * moment.max()
    )
    names, offsets, drifts, delays, in_room = zip(*alignment, strict=True)
    assert names == ("b.wav", "c.wav") and not any(in_room)
    np.testing.assert_allclose(offsets, (1.5, 0), atol=1e-3)
    np.testing.assert_allclose(delays, (0, 0), atol=0.1)
    assert drifts == (0, 0)
    assert str(alignment[0]).startswith("b.wav: begins at +1.500 s, talker ")


@pytest.mark.parametrize("count", [2, 3, 8])
def test_channels_are_peers_and_the_first_one_counts(identity, here, count):
    moment = np.float32(speech_like(3, seed=2))
    late = np.linspace(5.5, -7.25, count - 1)
    levels = np.linspace(0.5, 3, count - 1)
    others = [a * shift(moment, d) for a, d in zip(levels, late, strict=True)]
    write("room.wav", np.stack((moment, *others), axis=1))
    estimate, alignment = identity.extract_file(
        "room.wav",
        embeddings=torch.zeros(1, 16),
        channels="peers",
        residual_path="rest.wav",
        return_alignment=True,
    )
    inside = slice(200, -200)
    scale = np.abs(moment).max()
    np.testing.assert_allclose(estimate[inside], moment[inside], atol=0.02 * scale)
    names = [f"room.wav, channel {k}" for k in range(2, count + 1)]
    assert [x.name for x in alignment] == names
    delays = [x.delay * RATE / 1000 for x in alignment]
    np.testing.assert_allclose(delays, late, atol=0.05)
    rest, _ = soundfile.read("rest.wav")
    assert rest.shape == moment.shape
    np.testing.assert_allclose(rest + estimate.numpy(), moment, atol=1e-4)


ANYWHERE = -math.inf, math.inf


@pytest.fixture
def in_a_room(monkeypatch):
    """Two microphones and a second take: what each hears of the talker and of others.

    Extracted together, a microphone and its beam give the talker.
    """
    talker, other, another = talk(4), talk(4, seed=3), talk(4, seed=5)
    targets = np.stack((talker, shift(talker, 4), talker))
    others = np.stack((other, shift(other, -7), another))

    def found(modules, pairs, voices):
        count = pairs.shape[1]
        return torch.from_numpy(np.float32(targets[:count])).expand(2, -1, -1)

    monkeypatch.setattr(together, "extract_together", found)
    return targets, others


def test_microphones_of_a_room_give_a_beam(model, voice, in_a_room):
    targets, others = (signals[:2] for signals in in_a_room)
    lending = ChunksTogether(model.mods, voice, RATE, [ANYWHERE] * 2)
    beam = lending.join((targets + others).T, targets)[:, 0]
    gain = si_sdr(beam, targets[0]) - si_sdr(targets[0] + others[0], targets[0])
    assert gain > 10
    np.testing.assert_allclose(lending.delays[1], 4, atol=0.2)


@pytest.mark.parametrize("level", ["mixture", "network"])
def test_takes_with_other_talkers_lend(model, voice, in_a_room, level):
    targets, others = (signals[::2] for signals in in_a_room)
    lending = ChunksTogether(model.mods, voice, RATE, [ANYWHERE] * 2, level)
    mixtures = (targets + others).T
    lent = lending.join(mixtures, targets)
    np.testing.assert_array_equal(lent, lending.lend(mixtures, [0.0, 0.0]))


def test_the_beam_of_a_room_lends_to_another_take(model, voice, in_a_room, monkeypatch):
    targets, others = in_a_room
    given = []

    def lend(modules, mixtures, embedding, present):
        given.append(mixtures)
        return mixtures[0]

    monkeypatch.setattr(together, "extract_by_quality", lend)
    lending = ChunksTogether(model.mods, voice, RATE, [ANYWHERE] * 3)
    beam = lending.join((targets + others).T, targets)[:, 0]
    [mixtures] = given
    assert mixtures.shape == (2, 4 * RATE)
    assert si_sdr(beam, targets[0]) > si_sdr(targets[0] + others[0], targets[0]) + 10
    np.testing.assert_allclose(mixtures[1], targets[2] + others[2], atol=0.05)


def test_a_model_that_is_silent_for_absent_talkers_makes_no_beam(
    model, voice, in_a_room
):
    targets, others = (signals[:2] for signals in in_a_room)
    lending = ChunksTogether(model.mods, voice, RATE, [ANYWHERE] * 2, "network")
    mixtures = (targets + others).T
    lent = lending.join(mixtures, targets)
    np.testing.assert_array_equal(
        lent, lending.lend(mixtures, [0, lending.delays[1][0]])
    )


@pytest.mark.parametrize("late", [0.0, 1.5])
def test_phones_that_begin_at_other_times_give_a_beam_where_both_are(
    identity, here, in_a_room, monkeypatch, late
):
    targets, others = (np.tile(signals[:2], 2) for signals in in_a_room)
    mixtures, begin = targets + others, round(late * RATE)

    def alone(modules, heard, voice):
        # At the network's scale, which is not that of the recordings.
        return torch.from_numpy(np.float32(30 * targets))

    def found(modules, pairs, voices):
        part = np.float32(targets[:, -pairs.shape[-1] :])
        return torch.from_numpy(part).expand(2, -1, -1)

    monkeypatch.setattr(together, "extract", alone)
    monkeypatch.setattr(together, "extract_together", found)
    monkeypatch.setattr(
        together, "extract_by_quality", lambda modules, heard, *_: 30 * heard[0]
    )
    write("a.wav", np.float32(mixtures[0]))
    write("b.wav", np.float32(mixtures[1, begin:]))
    estimate, [told] = identity.extract_file(
        ["a.wav", "b.wav"], embeddings=torch.zeros(1, 16), return_alignment=True
    )
    assert told.in_room and str(told).endswith("in the beam")
    both = slice(begin + 200, -200)
    gain = si_sdr(estimate.numpy()[both], targets[0, both])
    assert gain > si_sdr(mixtures[0, both], targets[0, both]) + 10
    if begin:
        before = slice(0, begin - 200)
        assert si_sdr(estimate.numpy()[before], mixtures[0, before]) > 40
        levels = [np.square(estimate.numpy()[part]).mean() for part in (before, both)]
        assert 0.2 < levels[0] / levels[1] < 5


def test_nothing_is_told_of_what_is_short_or_leaves_no_rest():
    noise = talk(4)
    both = np.stack((noise, shift(noise, 2)))
    assert hold_the_same(both, 0 * both, RATE).all()
    for mixtures, estimates in ((both[:, :500], 0), (both, both), (0 * both, 0)):
        told = hold_the_same(mixtures, mixtures * 0 + estimates, RATE)
        assert told.tolist() == [True, False]


def test_long_recordings_go_in_step_and_are_read_as_they_come(
    identity, here, monkeypatch
):
    monkeypatch.setattr(chunks, "CHUNK", 4.0)
    monkeypatch.setattr(chunks, "OVERLAP", 1.5)
    moment = np.float32(speech_like(30, seed=6))
    write("a.wav", moment)
    write("b.wav", shift(moment, 3.5)[RATE:])
    sizes = []
    original = ChunksTogether.__call__

    def called(self, chunk, start=0):
        sizes.append(chunk.shape)
        return original(self, chunk, start)

    monkeypatch.setattr(ChunksTogether, "__call__", called)
    path = identity.extract_file(
        ["a.wav", "b.wav"], embeddings=torch.zeros(1, 16), output_path="out.wav"
    )
    out, rate = soundfile.read(path)
    assert (out.shape, rate) == (moment.shape, RATE)
    inside = slice(100, -100)
    np.testing.assert_allclose(out[inside], moment[inside], atol=0.02 * moment.max())
    assert len(sizes) > 8
    assert max(sizes) <= (4 * RATE, 2)


def test_a_silent_recording_of_no_talker_does_no_harm(model, voice, here):
    moment = talk(3)
    quiet = moment.copy()
    quiet[RATE:] = 0
    write("a.wav", quiet)
    write("b.wav", moment)
    estimate = model.extract_file(["a.wav", "b.wav"], embeddings=voice)
    assert estimate.isfinite().all()


def test_what_cannot_be_done_is_told(model, voice, here):
    write("a.wav", talk(3))
    write("b.wav", talk(3, seed=1))
    write("c.wav", talk(3) + 0.1 * talk(3, seed=2))
    with pytest.raises(DataError, match=r"b.wav: has nothing in common with a.wav"):
        model.extract_file(["a.wav", "b.wav"], embeddings=voice)
    with pytest.raises(ValueError, match="choose channels mix or peers"):
        model.extract_file(["a.wav", "c.wav"], embeddings=voice, channels="each")
    with pytest.raises(ValueError, match="mix, each or peers"):
        model.extract_file(["a.wav", "c.wav"], embeddings=voice, channels="all")
    with pytest.raises(ValueError, match="is empty"):
        model.extract_file([], embeddings=voice)
    with pytest.raises(AudioError, match=r"c.wav: is an input"):
        model.extract_file(["a.wav", "c.wav"], embeddings=voice, output_path="c.wav")
    plain = TargetSpeechExtraction(without_predictors(build()), {"sample_rate": RATE})
    with pytest.raises(ValueError, match="trained without peer learning"):
        plain.extract_file(["a.wav", "c.wav"], embeddings=voice)
    assert plain.extract_file(["a.wav"], embeddings=voice).shape == (3 * RATE,)


def test_the_command_takes_recordings_together(model, voice, here, capsys):
    folder = str(here / "model")
    export(here / "model")
    moment = talk(4)
    write("anna.wav", talk(1, seed=9))
    write("a.wav", moment)
    write("b.wav", shift(moment, 2.5)[RATE // 2 :])
    write("room.wav", np.stack((moment, shift(moment, 1)), axis=1))

    def extract(*arguments):
        return main(["extract", *arguments, "-e", "anna.wav", "-m", folder])

    assert extract("a.wav", "b.wav", "--together", "-o", "out.wav") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["out.wav"]
    assert "tse: b.wav: begins at +0.500 s, talker " in err
    assert soundfile.info("out.wav").frames == len(moment)
    assert extract("room.wav", "--channels", "peers") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["room_target.wav"]
    assert "tse: room.wav, channel 2: begins at +0.000 s" in err
    # One output, though there are two recordings.
    assert extract("a.wav", "b.wav", "--together") == 0
    assert {path.name for path in here.glob("*_target.wav")} == {
        "a_target.wav",
        "room_target.wav",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.wav", "b.wav", "-o", "b.wav"], "b.wav: is an input"),
        (["a.wav", "-"], "a pipe is for one recording alone"),
        (["a.wav", "."], ": is a folder; --together takes the files of one moment"),
        (["a.wav", "none.wav"], "none.wav: "),
        (["a.wav", "b.wav"], "b.wav: has nothing in common with a.wav"),
    ],
)
def test_what_the_command_cannot_take_together(model, here, capsys, arguments, message):
    export(here / "model")
    for seed, name in enumerate(("a.wav", "b.wav", "anna.wav")):
        write(name, talk(1, seed))
    options = ["-e", "anna.wav", "-m", str(here / "model")]
    assert main(["extract", *arguments, "--together", *options]) == 1
    assert message in capsys.readouterr().err
    assert not (here / "a_target.wav").exists()
