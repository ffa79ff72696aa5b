"""Voices of frames, wherever a voice goes; vectors are in the other tests."""

import io

import frames_model
import numpy as np
import pytest
import soundfile
import torch
from tiny_model import build as build_of_vectors

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.evaluation import calibration
from speechbrain_peer.evaluation.trials import Trial
from speechbrain_peer.inference import chunks
from speechbrain_peer.inference.match import MatchScorer, listen
from speechbrain_peer.nnet.voice import Frames, join_voices, repeat_voice
from speechbrain_peer.packaging.onnx import export_onnx
from speechbrain_peer.peer_learning.exchange import PeerLearning, embed

RATE, SIZE = 8000, frames_model.FRAME_SIZE


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def model():
    return frames_model.interface()


@pytest.fixture(scope="module")
def model_of_vectors():
    return TargetSpeechExtraction(build_of_vectors(), {"sample_rate": RATE})


def test_padded_enrollments_extract_what_they_extract_alone(model):
    """Whatever is in the padding; batches come out as one by one."""
    mixtures, enrollments = noise(3, 4000), noise(3, 6000, seed=1)
    lengths = [6000, 1500, 4003]
    lens = torch.tensor(lengths) / 6000
    voice = model.encode_speaker(enrollments, lens)
    assert isinstance(voice, Frames)
    assert not voice.features[voice.mask == 0].any() and voice.mask.min() == 0
    batch = model.extract_batch(mixtures, enrollments, enrollment_lens=lens)
    close(model.extract_batch(mixtures, embeddings=voice), batch)
    for index, length in enumerate(lengths):
        item = slice(index, index + 1)
        close(
            model.extract_batch(mixtures[item], enrollments[item, :length]),
            batch[item],
        )


def test_the_voice_decides(model):
    one, other = (
        model.extract_batch(noise(1, 4000), noise(1, 4000, seed=seed))
        for seed in (1, 2)
    )
    assert (one - other).abs().max() > 1e-4


def test_several_enrollments_are_one_voice_of_all_their_frames(model, tmp_path):
    paths = [tmp_path / "1.wav", tmp_path / "2.wav"]
    for seed, path in enumerate(paths):
        soundfile.write(path, noise(3000 + 500 * seed, seed=seed), RATE)
    voice = model.encode_speaker_files(paths)
    first, second = map(model.encode_speaker_files, paths)
    assert torch.equal(voice.features, torch.cat((first.features, second.features), 1))
    assert voice.mask.shape == voice.features.shape[:2] and voice.mask.all()
    # Padding that joining has put in the middle changes nothing.
    padded = model.encode_speaker(noise(1, 9000), torch.tensor([3000 / 9000]))
    enrolled = noise(1, 9000)[:, :3000]
    close(
        model.extract_batch(noise(1, 4000), embeddings=join_voices([padded, second])),
        model.extract_batch(
            noise(1, 4000),
            embeddings=join_voices([model.encode_speaker(enrolled), second]),
        ),
    )


def test_peers_share_the_voice_of_their_pair(model):
    """In training, at several recordings, and in another order."""
    enrollments = noise(2, 4000, seed=1)
    lens = torch.tensor([1.0, 0.5])
    voice = embed(model.mods, enrollments, lens)
    mixtures, targets = noise(4, 3000, seed=2), noise(2, 3000, seed=3)
    outputs = PeerLearning("itself")(model.mods, mixtures, voice, targets)
    alone = PeerLearning("itself")(
        model.mods, mixtures, repeat_voice(voice, 2), targets.repeat(2, 1)
    )
    close(outputs.estimate, alone.estimate)
    assert outputs.refined.shape == outputs.predicted.shape == (4, 1, 3000)
    peers = mixtures.unflatten(0, (2, 2)).movedim(0, 1)
    together = model.extract_together(peers, voice)
    one = model.extract_together(
        peers[1:], model.encode_speaker(enrollments[1:, :2000])
    )
    close(together[1:], one)


@pytest.mark.parametrize("causal", [False, True], ids=["chunks", "stream"])
def test_files_are_extracted_from_in_chunks(causal, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 1.5)
    monkeypatch.setattr(chunks, "OVERLAP", 0.5)
    monkeypatch.setattr(chunks, "FADE", 0.2)
    model = frames_model.interface(causal)
    mixture, enrollment = tmp_path / "mixture.wav", tmp_path / "enrollment.wav"
    soundfile.write(mixture, noise(4 * RATE, 2).numpy(), RATE, subtype="FLOAT")
    soundfile.write(enrollment, noise(RATE, seed=1).numpy(), RATE, subtype="FLOAT")
    voice = model.encode_speaker_files(enrollment)
    estimate = model.extract_file(mixture, enrollment, channels="each")
    assert torch.equal(
        estimate, model.extract_file(mixture, embeddings=voice, channels="each")
    )
    whole = model.extract_batch(noise(4 * RATE, 2).T, embeddings=repeat_voice(voice, 2))
    # A global norm hears its chunk only; a stream goes on.
    tolerance = 1e-5 if causal else 0.1 * whole.abs().max().item()
    torch.testing.assert_close(estimate, whole, rtol=0, atol=tolerance)


def test_the_match_compares_the_means_of_true_frames(model):
    voice = model.encode_speaker(noise(2, 4000), torch.tensor([1.0, 0.4]))
    alone = model.encode_speaker(noise(2, 4000)[1:, :1600])
    close(
        listen(model.mods, noise(2, 4000), torch.tensor([1.0, 0.4]), RATE)[1:],
        listen(model.mods, noise(2, 4000)[1:, :1600], None, RATE),
    )
    scorer = MatchScorer(SIZE)
    scorer.weight.copy_(torch.tensor([1.0, -1.0]))
    calibrated = TargetSpeechExtraction(
        {**model.mods, "match_scorer": scorer}, {"sample_rate": RATE}
    )
    estimates = noise(2, 3000, seed=4)
    scores = calibrated.match_score(estimates, voice)
    close(scores[1:], calibrated.match_score(estimates[1:], alone))
    same = calibrated.match_score(noise(2, 4000)[:1], Frames(*(x[:1] for x in voice)))
    assert same > scores[0]


def test_saved_voices_are_the_same_in_another_process(
    model, model_of_vectors, tmp_path
):
    enrollments, lens = noise(2, 4000), torch.tensor([1.0, 0.5])
    for maker, name in ((model, "frames"), (model_of_vectors, "vector")):
        voice = maker.encode_speaker(enrollments, lens)
        maker.save_voice(voice, tmp_path / name)
        loaded = maker.load_voice(tmp_path / name)
        assert type(loaded) is type(voice)
        for one, other in zip(loaded, voice, strict=True):
            assert torch.equal(one, other)


def test_files_that_are_no_voices_of_this_model_are_refused(
    model, model_of_vectors, tmp_path
):
    path = tmp_path / "anna.voice"
    voice = model.encode_speaker(noise(1, 4000))
    with pytest.raises(ValueError, match=r"anna\.voice: no such file"):
        model.load_voice(path)
    model.save_voice(voice, path)
    for other in (model_of_vectors, frames_model.interface(seed=8)):
        with pytest.raises(ValueError, match=r"anna\.voice: .*another model"):
            other.load_voice(path)
    maker = torch.load(path)["maker"]
    bad = torch.full_like(voice.features, torch.nan)
    for content, message in (
        (b"text", "cannot be read as a voice"),
        ([1, 2], "cannot be read as a voice"),
        ({"maker": maker, "features": voice.features}, "cannot be read as a voice"),
        ({"maker": maker, "features": bad, "mask": voice.mask}, "hold NaN"),
        ({"maker": maker, "embedding": torch.ones(1, SIZE)}, "knows a voice by frames"),
    ):
        stream = io.BytesIO()
        torch.save(content, stream)
        path.write_bytes(content if isinstance(content, bytes) else stream.getvalue())
        with pytest.raises(ValueError, match=rf"anna\.voice: .*{message}"):
            model.load_voice(path)


def frames(*shape):
    return Frames(torch.ones(shape), torch.ones(shape[:2]))


@pytest.mark.parametrize(
    ("voice", "message"),
    [
        (torch.ones(1, SIZE), "are a vector for each talker, .* by frames"),
        (frames(2, 5, SIZE), r"as many .* mixtures: .*\(1, 5, 16\), but have \(2, 5"),
        (frames(1, 5, SIZE + 1), r"\(1, 5, 16\), but have \(1, 5, 17\)"),
        (frames(5, SIZE), r"but have \(5, 16\)"),
        (frames(1, 0, SIZE), "at least one"),
        (Frames(torch.ones(1, 5, SIZE), torch.zeros(1, 5)), "at least one"),
        (Frames(torch.ones(1, 5, SIZE), torch.full((1, 5), 0.5)), "1 for true frames"),
        (Frames(torch.ones(1, 5, SIZE), torch.ones(1, 4)), r"padding, \(1, 5\)"),
        (Frames(torch.full((1, 5, SIZE), torch.inf), torch.ones(1, 5)), "infinite"),
        (Frames("text", torch.ones(1, 5)), "features of embeddings must be a tensor"),
    ],
)
def test_wrong_voices_are_explained(model, voice, message):
    with pytest.raises(ValueError, match=message):
        model.extract_batch(noise(1, 3000), embeddings=voice)


def test_frames_are_refused_where_a_vector_is_wanted(model_of_vectors):
    with pytest.raises(ValueError, match=r"are frames .* by a vector for each talker"):
        model_of_vectors.extract_batch(noise(1, 3000), embeddings=frames(1, 5, SIZE))


def test_what_is_in_the_padding_of_given_frames_is_not_heard(model):
    voice = model.encode_speaker(noise(1, 4000))
    padding = np.full((1, 7, SIZE), np.nan, np.float32)
    given = Frames(
        np.concatenate((voice.features, padding), 1),
        np.concatenate((voice.mask, np.zeros((1, 7))), 1),
    )
    close(
        model.extract_batch(noise(1, 4000), embeddings=given),
        model.extract_batch(noise(1, 4000), embeddings=voice),
    )


def test_in_the_shell_a_saved_voice_stands_for_the_enrollment(tmp_path, capsys):
    folder = frames_model.export(tmp_path / "model")
    here = tmp_path / "here"
    for name, seed in (("anna.wav", 1), ("mixture.wav", 2)):
        here.mkdir(exist_ok=True)
        soundfile.write(here / name, noise(RATE, seed=seed).numpy(), RATE)

    def extract(*arguments, code=0):
        common = ["-m", str(folder), "--trust", "--precision", "fp32"]
        names = [str(here / x) if "." in x else x for x in arguments]
        assert main(["extract", str(here / "mixture.wav"), *names, *common]) == code
        return capsys.readouterr().err

    extract("-e", "anna.wav", "--save-voice", "anna.voice", "-o", "1.wav")
    extract("--voice", "anna.voice", "-o", "2.wav")
    assert (here / "1.wav").read_bytes() == (here / "2.wav").read_bytes()
    for name in ("anna.wav", "mixture.wav"):
        told = extract("-e", "anna.wav", "--save-voice", name, code=1)
        assert f"{name}: is an input" in told
    told = extract("-e", "anna.wav", "--save-voice", "1.wav", "-o", "1.wav", code=1)
    assert "written twice" in told
    assert "cannot be read as a voice" in extract("--voice", "anna.wav", code=1)


def test_calibration_compares_means(tmp_path, monkeypatch):
    folder = frames_model.export(tmp_path / "model")
    trials = [
        Trial(
            id=name,
            speakers=(name, f"{name}'s interferer"),
            target=noise(RATE, seed=seed).numpy(),
            interferers=(1e-3 * noise(RATE, seed=10 + seed).numpy(),),
            noise=np.zeros(RATE, np.float32),
            enrollment=noise(RATE + 100 * seed, seed=20 + seed).numpy(),
        )
        for seed, name in enumerate("abcd")
    ]
    monkeypatch.setattr(calibration, "read_trials", lambda *arguments: trials)
    calibration.calibrate(folder, "dev.csv", None, trust=True)
    model = TargetSpeechExtraction.from_hparams(folder, trust=True)
    assert model.tells_match
    assert len(model.mods.match_scorer.center) == SIZE


def test_graphs_take_any_number_of_frames(tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    import onnxruntime

    folder = frames_model.export(tmp_path / "model")
    graphs = export_onnx(folder, tmp_path / "graphs", trust=True)
    encoder, extractor = (
        onnxruntime.InferenceSession(
            str(graphs / f"{name}.onnx"), providers=["CPUExecutionProvider"]
        )
        for name in ("speaker_encoder", "extractor")
    )
    model = TargetSpeechExtraction.from_hparams(folder, trust=True)
    mixture, enrollments = noise(2, 5003), [noise(2, 3000), noise(2, 4507, seed=1)]
    frames = [encoder.run(None, {"enrollment": x.numpy()})[0] for x in enrollments]
    joined = np.concatenate(frames, axis=1)
    (estimate,) = extractor.run(None, {"mixture": mixture.numpy(), "frames": joined})
    voice = join_voices([model.encode_speaker(x) for x in enrollments])
    close(torch.from_numpy(estimate), model.extract_batch(mixture, embeddings=voice))
    (shape,) = (x.shape for x in extractor.get_inputs() if x.name == "frames")
    assert shape == ["batch", "frames", SIZE]
