"""The cue of every frame: what it finds, padding, precision, and no look ahead."""

import pytest
import torch
from torch.nn import functional as F

from speechbrain_peer.nnet.tf_map import TfMap, unit_frames
from speechbrain_peer.nnet.voice import Frames


def magnitudes(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) ** 3


def a_voice(batch=2, frames=40, seed=1):
    return unit_frames(
        magnitudes(batch, frames, 33, seed=seed), torch.ones(batch, frames)
    )


@pytest.mark.parametrize("temperature", [1.0, 20.0])
@pytest.mark.parametrize("learned", [False, True])
def test_the_map_is_what_its_definition_says(temperature, learned):
    mixture, voice = magnitudes(2, 50, 33), a_voice()
    found = TfMap(temperature, learned)(mixture, voice)
    for item in range(2):
        for frame in range(0, 50, 7):
            x = mixture[item, frame].double()
            enrollment = voice.features[item].double()
            cosines = torch.tensor([F.cosine_similarity(x, e, 0) for e in enrollment])
            mean = (temperature * cosines.double()).softmax(0) @ enrollment
            expected = mean * (x @ mean) / mean.square().sum()
            torch.testing.assert_close(
                found[item, frame].double(), expected, rtol=1e-5, atol=1e-6
            )


def test_a_hot_map_finds_the_one_frame_that_is_alike():
    voice = a_voice(1)
    mixture = 0.3 * voice.features[:, [7]]
    torch.testing.assert_close(TfMap(1000.0)(mixture, voice), mixture)


def test_padding_of_the_enrollment_does_not_matter():
    voice, mixture = a_voice(2), magnitudes(2, 50, 33)
    mask = (torch.arange(40) < torch.tensor([40, 11])[:, None]).float()
    padded = Frames(voice.features * mask[..., None], mask)
    alone = Frames(voice.features[1:, :11], mask[1:, :11])
    torch.testing.assert_close(
        TfMap()(mixture, padded)[1:], TfMap()(mixture[1:], alone), rtol=0, atol=1e-6
    )


def test_frames_stand_alone_and_keep_the_level_of_the_mixture():
    voice, mixture = a_voice(), magnitudes(2, 50, 33)
    whole = TfMap()(mixture, voice)
    torch.testing.assert_close(TfMap()(mixture[:, 20:21], voice), whole[:, 20:21])
    for level in (1e-4, 1e4):
        torch.testing.assert_close(TfMap()(level * mixture, voice), level * whole)


def test_silence_gives_silence():
    voice = unit_frames(torch.zeros(1, 5, 33), torch.ones(1, 5))
    assert not TfMap()(magnitudes(1, 4, 33), voice).any()
    assert not TfMap()(torch.zeros(1, 4, 33), a_voice(1)).any()


def test_bf16_around_it_changes_nothing():
    voice, mixture = a_voice(), magnitudes(2, 50, 33)
    with torch.autocast("cpu", torch.bfloat16):
        found = TfMap(20.0)(mixture, voice)
    assert torch.equal(found, TfMap(20.0)(mixture, voice))


def test_a_temperature_is_learned_where_it_should_be():
    tf_map = TfMap(20.0, learned=True)
    tf_map(magnitudes(2, 50, 33), a_voice()).square().sum().backward()
    assert tf_map.log_temperature.grad.abs().item() > 0
    assert not list(TfMap(20.0).parameters())
    with pytest.raises(ValueError, match="temperature 0: give a positive one"):
        TfMap(0)
