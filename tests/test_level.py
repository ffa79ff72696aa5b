"""Models with a level of their own: nothing scales them, and they tell a presence."""

import numpy as np
import pytest
import soundfile
import torch
from tiny_model import SAMPLE_RATE, TRAINING_YAML, build

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.cli.recording_tab import extract_and_draw
from speechbrain_peer.packaging.export import export_model
from speechbrain_peer.packaging.loading import HPARAMS_FILE
from speechbrain_peer.peer_learning.exchange import extract
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.signal import match_level

EMBEDDING = torch.linspace(-1, 1, 16)


def export(folder, modules, level="network"):
    """Exports what a run with that level has trained."""
    run = folder.with_name("run.yaml")
    run.write_text(f"{TRAINING_YAML}\nlevel: {level}\n", encoding="utf-8")
    return export_model(run, modules, folder)


def passing(gain):
    """Modules whose estimate is the mixture, times a gain."""
    modules = build()
    with torch.no_grad():
        modules["encoder"].weight.copy_(torch.eye(16))
        modules["decoder"].weight.copy_(0.5 * gain * torch.eye(16))
        modules["mask_head"].linear.weight.zero_()
        modules["mask_head"].linear.bias.fill_(1.0)
    return modules


def untrained(causal=False):
    modules = build()
    for layer in modules["separator"].modules():
        if hasattr(layer, "causal"):
            layer.causal = causal
    hparams = {"sample_rate": SAMPLE_RATE, "level": "network"}
    return TargetSpeechExtraction(modules, hparams)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a model that passes the mixture on, 10 dB quieter."""
    return export(tmp_path_factory.mktemp("exported") / "model", passing(10**-0.5))


@pytest.fixture(scope="module")
def model(folder):
    return TargetSpeechExtraction.from_hparams(folder)


def noise(seconds, channels=1, rate=SAMPLE_RATE, seed=0):
    rng = np.random.default_rng(seed)
    return np.float32(0.1 * rng.standard_normal((round(seconds * rate), channels)))


def write(path, samples, rate=SAMPLE_RATE):
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def test_a_batch_is_what_the_network_gives():
    model = untrained()
    mixtures = torch.from_numpy(noise(1, 2).T.copy())
    embeddings, lens = EMBEDDING.expand(2, -1), torch.tensor([1.0, 0.5])
    for gain in (1.0, 0.1):
        given = gain * mixtures
        with torch.no_grad():
            expected = extract(model.mods, given, embeddings, lens)
        expected[1, 4000:] = 0
        estimates = model.extract_batch(given, embeddings=embeddings, mixture_lens=lens)
        assert torch.equal(estimates, expected)
        assert not torch.allclose(estimates, match_level(expected, given), rtol=0.1)


def test_the_level_stays_whatever_else_is_in_the_file(tmp_path):
    """With that of the mixture it would not: one factor for all of the file."""
    model = untrained(causal=True)
    begin = noise(20)
    later = np.concatenate((begin, 5 * noise(20, seed=1)))
    short, long = (
        model.extract_file(write(tmp_path / "x.wav", samples), embeddings=EMBEDDING)
        for samples in (begin, later)
    )
    with torch.no_grad():
        whole = extract(model.mods, torch.from_numpy(begin.T), EMBEDDING[None])[0]
    common = len(begin) - 16  # the last frame lacks what follows
    scale = whole.abs().max().item()
    for estimate in (short, long):
        torch.testing.assert_close(
            estimate[:common] / scale, whole[:common] / scale, rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 16000])
def test_chunks_are_joined_at_one_level(model, tmp_path, rate):
    """Also at another rate, where the samples are resampled there and back."""
    time = np.arange(40 * rate)[:, None] / rate
    tone = np.float32(0.2 * np.sin(2 * np.pi * 440 * time) * (0.1 + time / 40))
    path = write(tmp_path / "tone.wav", tone, rate)
    estimate = model.extract_file(path, embeddings=EMBEDDING).numpy()
    inner = slice(rate // 100, -rate // 100)
    np.testing.assert_allclose(
        estimate[inner], 10**-0.5 * tone[inner, 0], rtol=0, atol=1e-4
    )


def test_what_is_louder_than_a_file_holds_is_not_clipped(tmp_path):
    loud = export(tmp_path / "model", passing(100.0))
    model = TargetSpeechExtraction.from_hparams(loud)
    soundfile.write(tmp_path / "mixture.wav", noise(1), SAMPLE_RATE)
    output = tmp_path / "target.wav"
    model.extract_file(
        tmp_path / "mixture.wav", embeddings=EMBEDDING, output_path=output
    )
    (written, _), (mixture, _) = map(soundfile.read, (output, tmp_path / "mixture.wav"))
    np.testing.assert_allclose(written[8:-8], 100 * mixture[8:-8], rtol=1e-4)


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 16000])
def test_presence_is_told_for_every_second(model, tmp_path, rate):
    mixture = noise(14.5, channels=2, rate=rate)
    mixture[3 * rate : 5 * rate] = 0
    mixture[: 13 * rate, 1] = 0
    path = write(tmp_path / "mixture.wav", mixture, rate)
    _, presence = model.extract_file(
        path, embeddings=EMBEDDING, channels="each", return_presence=True
    )
    assert presence.dtype == torch.bool and presence.shape == (2, 15)
    expected = torch.ones(15, dtype=torch.bool)
    if rate == SAMPLE_RATE:  # else the resampler's filter rings into the silence
        expected[3:5] = False
        assert presence[1].tolist() == [False] * 13 + [True] * 2
    torch.testing.assert_close(presence[0, 5:], expected[5:])
    assert presence[0, :3].all()
    mixed, match, presence = model.extract_file(
        path, embeddings=EMBEDDING, return_match=True, return_presence=True
    )
    assert (
        presence.shape == (15,) and match is None and mixed.shape == mixture[:, 0].shape
    )


def test_presence_of_a_batch_is_that_of_files(model, tmp_path):
    mixtures = noise(3.5, channels=2)
    mixtures[SAMPLE_RATE : 2 * SAMPLE_RATE] = 0
    lens = torch.tensor([1.0, 2.5 / 3.5])
    estimates, presence = model.extract_batch(
        torch.from_numpy(mixtures.T.copy()),
        embeddings=EMBEDDING.expand(2, -1),
        mixture_lens=lens,
        return_presence=True,
    )
    assert estimates.shape == (2, len(mixtures))
    assert presence.tolist() == [[True, False, True, True], [True, False, True, False]]
    path = write(tmp_path / "first.wav", mixtures[:, 0])
    _, alone = model.extract_file(path, embeddings=EMBEDDING, return_presence=True)
    assert torch.equal(alone, presence[0])


@pytest.mark.parametrize(("decibels", "there"), [(-19.9, True), (-20.1, False)])
def test_presence_ends_20_db_below_the_mixture(decibels, there):
    hparams = {"sample_rate": SAMPLE_RATE, "level": "network"}
    model = TargetSpeechExtraction(passing(10 ** (decibels / 20)), hparams)
    mixture = torch.from_numpy(noise(1).T.copy())
    _, presence = model.extract_batch(
        mixture, embeddings=EMBEDDING[None], return_presence=True
    )
    assert presence.tolist() == [[there]]


def test_models_without_a_level_tell_no_presence(tmp_path):
    model = TargetSpeechExtraction(build(), {"sample_rate": SAMPLE_RATE})
    assert not model.tells_presence
    mixture = torch.from_numpy(noise(1).T.copy())
    with pytest.raises(ValueError, match=r"no presence: .* `level: network`"):
        model.extract_batch(mixture, embeddings=EMBEDDING[None], return_presence=True)
    path = write(tmp_path / "mixture.wav", noise(1))
    with pytest.raises(ValueError, match="no presence"):
        model.extract_file(path, embeddings=EMBEDDING, return_presence=True)


def test_the_level_is_in_the_models_yaml(folder, tmp_path):
    text = (folder / HPARAMS_FILE).read_text(encoding="utf-8")
    assert "\nlevel: network\n" in text
    for replacement, level in (("", "mixture"), ("level: mixture\n", "mixture")):
        own = export(tmp_path / "own", build())
        changed = text.replace("level: network\n", replacement)
        (own / HPARAMS_FILE).write_text(changed, encoding="utf-8")
        assert TargetSpeechExtraction.from_hparams(own).level == level
    changed = text.replace("level: network", "level: loud")
    (own / HPARAMS_FILE).write_text(changed, encoding="utf-8")
    with pytest.raises(DataError, match=r"hyperparams\.yaml: level 'loud': choose one"):
        TargetSpeechExtraction.from_hparams(own)
    with pytest.raises(DataError, match="level 'loud'"):
        export(tmp_path / "other", build(), level="loud")
    with pytest.raises(ValueError, match=r"level \[1\]"):
        hparams = {"sample_rate": SAMPLE_RATE, "level": [1]}
        TargetSpeechExtraction(build(), hparams)


def test_commands_and_page_tell_how_long_the_talker_is_there(
    model, folder, tmp_path, capsys
):
    mixture = noise(4)
    mixture[SAMPLE_RATE : 4 * SAMPLE_RATE] = 0
    paths = [
        write(tmp_path / f"{name}.wav", samples)
        for name, samples in (("mixture", mixture), ("voice", noise(2, seed=1)))
    ]
    output = tmp_path / "target.wav"
    arguments = ["extract", paths[0], "-e", paths[1], "-o", output, "-m", folder]
    assert main(list(map(str, arguments))) == 0
    assert capsys.readouterr().out == f"{output}\tpresent 25%\n"
    assert main(["info", str(folder)]) == 0
    assert "\nlevel        network\n" in capsys.readouterr().out
    told, *_ = extract_and_draw(model, paths[:1], paths[1], tmp_path / "drawn.wav")
    assert told.endswith("\n\nPresent: 25 % of the time")
