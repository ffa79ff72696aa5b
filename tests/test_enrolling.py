"""What training enrolls with: other lengths, and the network's own estimates."""

import numpy as np
import pytest
import soundfile
import torch
from conftest import CHUNK_SECONDS
from speechbrain.dataio.dataloader import make_dataloader
from test_dataset import epoch_items, holders, same_items
from tiny_model import build

from speechbrain_peer.data.dataset import OF_ESTIMATES, drawn_set
from speechbrain_peer.data.enrolling import Enrolling
from speechbrain_peer.data.mixing import Mixing
from speechbrain_peer.data.speech_table import Utterance, write_speech_table
from speechbrain_peer.peer_learning.exchange import embed, extract
from speechbrain_peer.training.enrolling import enroll_with_estimates
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.signal import set_level

RATE = 8000


@pytest.fixture
def make_drawn(corpus, tmp_path):
    """Makes a set of drawn items of the corpus: noisy tones of four speakers."""
    rows = []
    for path in sorted(corpus.librispeech_folder.glob("train-clean-100/**/*.flac")):
        speaker, frames = path.stem.split("-")[0], soundfile.info(path).frames
        rows.append(Utterance(str(path), speaker, path.stem, 0, frames, 16000, -20.0))
    write_speech_table(tmp_path / "train.arrow", rows)

    def make(enrolling=None, seed=1, peers="drawn", **mixing):
        settings = Mixing(items_per_epoch=24, **mixing)
        made = (tmp_path / "train.arrow", CHUNK_SECONDS, RATE, seed, settings, peers)
        return drawn_set(*made, enrolling=enrolling)

    return make


@pytest.fixture(params=["listed", "drawn"])
def make(request, make_set, make_drawn):
    """Makes a set of listed or of drawn items."""
    if request.param == "drawn":
        return make_drawn
    return lambda enrolling=None, seed=1: make_set(
        peers="drawn", enrolling=enrolling, seed=seed
    )


def without(key, items):
    return {
        name: {k: v for k, v in item.items() if k != key}
        for name, item in items.items()
    }


def pitch(signal):
    """Of the tone of a speaker of the corpus, in Hz, as it is drawn."""
    spectrum = np.abs(np.fft.rfft(np.asarray(signal) * np.hanning(len(signal)), RATE))
    return int(spectrum.argmax())


def test_by_default_enrollments_are_as_long_as_chunks(make):
    chunk = round(CHUNK_SECONDS * RATE)
    expected = epoch_items(*make(), epoch=2)
    assert same_items(epoch_items(*make(Enrolling()), epoch=2), expected)
    lengths = [len(item["enrollment_sig"]) for item in expected.values()]
    assert max(lengths) == chunk
    assert not any(OF_ESTIMATES in item for item in expected.values())


def test_lengths_are_drawn_and_all_else_stays(make):
    expected = epoch_items(*make(), epoch=2)
    wanted = Enrolling(seconds=[0.2, 1.0])
    found, later = (epoch_items(*make(wanted), epoch) for epoch in (2, 3))
    kept = "enrollment_sig"
    lengths = {len(item[kept]) for one in (found, later) for item in one.values()}
    assert 0.2 * RATE <= min(lengths) < 0.4 * RATE
    # Longer than chunks, as some utterances are.
    assert CHUNK_SECONDS * RATE < max(lengths) <= RATE
    assert len(lengths) > 12
    assert same_items(without(kept, found), without(kept, expected))
    for name, item in found.items():
        assert pitch(item[kept]) == pytest.approx(pitch(expected[name][kept]), abs=3)
    assert same_items(epoch_items(*make(wanted), epoch=2), found)
    assert not same_items(later, found)


def test_a_share_is_enrolled_with_what_a_mixture_holds(make):
    expected = epoch_items(*make(), epoch=1)
    found = epoch_items(*make(Enrolling(own_estimates=0.5)), epoch=1)
    own = {name for name, item in found.items() if item[OF_ESTIMATES].any()}
    assert 0.2 < len(own) / len(found) < 0.8
    other = epoch_items(*make(Enrolling(own_estimates=0.5), seed=2), epoch=1)
    assert own != {name for name, item in other.items() if item[OF_ESTIMATES].any()}
    for name, item in found.items():
        mixture, was = item.pop(OF_ESTIMATES), expected[name]
        if name not in own:
            assert len(mixture) == 1  # nothing to pad
            assert torch.equal(item["enrollment_sig"], was["enrollment_sig"])
            continue
        # The recording that would have enrolled the item is in the mixture ...
        recording = was["enrollment_sig"]
        assert len(mixture) == len(recording)
        rest = mixture - recording * (mixture @ recording) / (recording @ recording)
        assert 0.1 < rest.std() / recording.std() < 10
        # ... together with somebody else, and another one tells who is wanted.
        assert abs(pitch(rest) - pitch(recording)) > 50
        assert not torch.equal(item["enrollment_sig"], recording)
        assert pitch(item["enrollment_sig"]) == pytest.approx(pitch(recording), abs=3)
    kept = "enrollment_sig"
    assert same_items(without(kept, found), without(kept, expected))


def test_the_mixture_of_a_listed_item_is_listed_too(make_set):
    dataset, items = make_set(enrolling=Enrolling(own_estimates=1))
    mixtures = {row["mixture"] for row in dataset.data.values()}
    listed = [{"path": path} for path in mixtures]
    for name, item in epoch_items(dataset, items, epoch=1).items():
        (found,) = holders(item[OF_ESTIMATES], listed)
        assert found["path"] != dataset.data[name]["mixture"]


def test_drawn_mixtures_have_surroundings_and_the_absent_are_enrolled_too(
    make_drawn, tmp_path
):
    (tmp_path / "noise").mkdir()
    noise = np.random.default_rng(0).normal(size=RATE)
    soundfile.write(tmp_path / "noise/rain.wav", 0.1 * noise, RATE)
    options = {"absent": 0.5, "n_interferers": [1, 2]}
    made = (Enrolling(own_estimates=1), 1, "off")
    dataset, items = make_drawn(*made, **options)
    assert not all(item["target_sig"].any() for item in dataset)
    noisy = {"noise_folder": str(tmp_path / "noise"), "snr": [6, 6], **options}
    others, _ = make_drawn(*made, **noisy)
    for item, other in zip(dataset, others, strict=True):
        mixture, heard = item[OF_ESTIMATES], other[OF_ESTIMATES]
        assert mixture.any() and heard.shape == mixture.shape
        scene = items.drawer.draw(items.rng(item["id"]))
        rng = items.rng_of_estimate(item["id"])
        around = items.drawer.draw_around(scene, rng)
        assert around.target == scene.enrollment
        speakers = [talk.utterance.speaker for talk in around.interferers[0]]
        wanted = scene.enrollment.utterance
        assert wanted.speaker not in speakers
        assert len(set(speakers)) == len(speakers) in (1, 2)
        assert around.enrollment.utterance.speaker == wanted.speaker
        assert around.enrollment.utterance.utterance != wanted.utterance
        assert (heard - mixture).abs().max() > 1e-3


def test_workers_draw_the_same(make):
    dataset, items = make(Enrolling(seconds=[0.2, 0.8], own_estimates=0.5))
    items.set_epoch(2)
    loaders = (make_dataloader(dataset, batch_size=6, num_workers=n) for n in (0, 2))
    for one, other in zip(*loaders, strict=True):
        for key in ("enrollment_sig", OF_ESTIMATES):
            assert torch.equal(one[key].data, other[key].data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 3}, "enrolling: seconds is 3, not a range, such as"),
        ({"seconds": [0, 3]}, "enrolling: seconds is 0, not from 0.1 to 60"),
        ({"seconds": [3, 1]}, "end 1 is before 3"),
        ({"own_estimates": 20}, "own_estimates is 20, not from 0 to 1"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(DataError, match=message):
        Enrolling(**settings)


@pytest.fixture
def stages():
    stages = build()
    del stages["speaker_classifier"]
    return stages


@pytest.fixture
def batch():
    """Four items of different lengths; the second and the third have mixtures."""
    torch.manual_seed(0)
    lengths = torch.tensor([800, 1600, 400, 1200])
    recordings, lens = 0.1 * torch.randn(4, 1600), lengths / 1600
    mixture_lengths = torch.tensor([1, 2000, 900, 1])
    mixtures, mixture_lens = 0.1 * torch.randn(4, 2000), mixture_lengths / 2000
    for k in range(4):
        recordings[k, lengths[k] :] = 0
        mixtures[k, mixture_lengths[k] :] = 0
    mixtures[[0, 3]] = 0
    return (recordings, lens), (mixtures, mixture_lens)


@pytest.mark.parametrize("level", ["mixture", "network"])
def test_an_estimate_is_what_a_user_would_get(stages, batch, level):
    (recordings, _), (mixtures, _) = batch
    signals, new_lens = enroll_with_estimates(stages, *batch, level)
    lengths = [800, 2000, 900, 1200]
    assert torch.round(new_lens * signals.shape[1]).int().tolist() == lengths
    assert torch.equal(signals[0, :800], recordings[0, :800])
    stages.eval()
    for k, recorded in ((1, 1600), (2, 400)):
        mixture = mixtures[k : k + 1, : lengths[k]]
        with torch.no_grad():
            voice = embed(stages, recordings[k : k + 1, :recorded])
            expected = set_level(extract(stages, mixture, voice), mixture, level=level)
        torch.testing.assert_close(
            signals[k, : lengths[k]], expected[0], atol=1e-5, rtol=1e-4
        )
        assert not signals[k, lengths[k] :].any()


def test_without_mixtures_recordings_enroll(stages, batch):
    enrollments, (mixtures, lens) = batch
    found = enroll_with_estimates(stages, enrollments, (0 * mixtures, lens), "mixture")
    assert all(map(torch.equal, found, enrollments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_recordings_that_sound_alike(stages, batch, dtype):
    """None goes through the estimates, and none of the step's own is lost."""

    def gradients(enrollments=None):
        stages.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            enrollments = enrollments or enroll_with_estimates(
                stages, *batch, "mixture"
            )
            assert all(module.training for module in stages.modules())
            voices = embed(stages, *enrollments)
            extract(stages, batch[0][0], voices).square().sum().backward()
        return enrollments, [weight.grad.clone() for weight in stages.parameters()]

    enrollments, found = gradients()
    assert not enrollments[0].requires_grad
    _, expected = gradients(enrollments)
    assert all(map(torch.equal, found, expected))
    assert all(gradient.any() for gradient in found)
