"""ONNX graphs: PyTorch's outputs at any length and batch size, and what they say."""

import sys
from functools import partial

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from tiny_model import SAMPLE_RATE, TRAINING_YAML

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.packaging.export import export_model
from speechbrain_peer.packaging.onnx import (
    Extractor,
    SpeakerNetwork,
    check_onnx,
    export_onnx,
)
from speechbrain_peer.packaging.onnx_graphs import OPSET

SHORTEST = 800  # samples
NAMES = ("speaker_encoder.onnx", "extractor.onnx")
STREAM_NAMES = ("stream.onnx", "stream.int8.onnx")


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def export_small(folder, n_blocks=2, seed=7):
    """Exports the tiny model with fewer blocks, as tracing takes its time for each."""
    text = TRAINING_YAML
    for old, new in (
        ("seed: 7\n", f"seed: {seed}\n"),
        ("n_blocks: 3", f"n_blocks: {n_blocks}"),
        ("n_repeats: 2", "n_repeats: 1"),
        ("adapted_block: 2", "adapted_block: 0"),
    ):
        assert old in text
        text = text.replace(old, new)
    run = folder.with_name(f"{folder.name}.yaml")
    run.write_text(text, encoding="utf-8")
    return export_model(run, load_hyperpyyaml(text)["modules"], folder)


def need_extra():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)


class Exported:
    """A model in PyTorch and in ONNX Runtime."""

    def __init__(self, source, folder, level):
        import onnxruntime

        self.folder, self.level = folder, level
        self.model = TargetSpeechExtraction.from_hparams(source)
        self.sessions = [
            onnxruntime.InferenceSession(
                str(self.folder / name), providers=["CPUExecutionProvider"]
            )
            for name in NAMES
        ]

    def embed(self, enrollments):
        (output,) = self.sessions[0].run(
            ["embedding"], {"enrollment": enrollments.numpy()}
        )
        return torch.from_numpy(output)

    def extract(self, mixtures, embeddings):
        (output,) = self.sessions[1].run(
            ["estimate"],
            {"mixture": mixtures.numpy(), "embedding": embeddings.numpy()},
        )
        return torch.from_numpy(output)


@pytest.fixture(scope="module", params=["offline", "causal"])
def exported(request, made_once):
    need_extra()
    if request.param == "causal":
        return Exported(*request.getfixturevalue("causal_graphs"), "network")

    def make(folder):
        graphs = folder / "süße Graphen"
        graphs.mkdir(parents=True)
        for name in STREAM_NAMES:
            (graphs / name).write_bytes(b"of another model")
        export_onnx(export_small(folder / "model"), graphs)

    folder = made_once("offline", make)
    return Exported(folder / "model", folder / "süße Graphen", "mixture")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [SHORTEST, 801, 5003])
def test_outputs_are_those_of_pytorch(length, batch, exported):
    """Enrollments of another length than the mixtures, and estimates at their level."""
    mixtures, enrollments = noise(batch, length), noise(batch, length + 700, seed=1)
    embeddings = exported.embed(enrollments)
    expected = exported.model.encode_speaker(enrollments)
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        exported.extract(mixtures, embeddings),
        exported.model.extract_batch(mixtures, enrollments),
        rtol=0,
        atol=1e-5,
    )


def test_the_speaker_matters(exported):
    one, other = (exported.embed(noise(1, 4000, seed=seed)) for seed in (1, 2))
    mixture = noise(1, 4000)
    difference = exported.extract(mixture, one) - exported.extract(mixture, other)
    assert difference.abs().max() > 5e-5


def test_a_silent_mixture_gives_silence(exported):
    embeddings = exported.embed(noise(2, 4000, seed=1))
    assert not exported.extract(torch.zeros(2, 3000), embeddings).any()


def test_graphs_say_how_to_use_them(exported):
    import onnx

    for name, session in zip(NAMES, exported.sessions, strict=True):
        metadata = session.get_modelmeta().custom_metadata_map
        assert metadata.pop("sample_rate") == str(SAMPLE_RATE)
        assert metadata.pop("shortest_samples") == str(SHORTEST)
        assert metadata.pop("level") == exported.level
        assert "Target speech extraction" in metadata.pop("description")
        assert not metadata
        *_, waveform = sorted(session.get_inputs(), key=lambda node: node.name)
        assert waveform.shape == ["batch", "time"]
        graph = onnx.load(exported.folder / name)
        assert [(opset.domain, opset.version) for opset in graph.opset_import] == [
            ("", OPSET)
        ]
        # Nobody learns where and from which lines of code it was made.
        assert b"speechbrain_peer" not in graph.SerializeToString()
    written = {path.name for path in exported.folder.iterdir()}
    causal = exported.level == "network"
    assert written == {*NAMES, *(STREAM_NAMES if causal else ())}


def test_graphs_of_another_model_are_refused(exported, tmp_path):
    other = TargetSpeechExtraction.from_hparams(
        export_small(tmp_path / "model", seed=8)
    )
    speech, embedding = noise(1, 4000), noise(1, 16, seed=1)
    for name, network, inputs in (
        (NAMES[0], SpeakerNetwork, (speech,)),
        (NAMES[1], partial(Extractor, level=exported.level), (speech, embedding)),
    ):
        path = exported.folder / name
        check_onnx(path, network(exported.model.mods), inputs)
        with pytest.raises(ValueError, match=rf"{name}: .* \(1, 4000\).* not to be"):
            check_onnx(path, network(other.mods), inputs)


def test_a_graph_that_differs_is_not_left_behind(tmp_path, monkeypatch):
    need_extra()
    monkeypatch.setattr("speechbrain_peer.packaging.onnx.TOLERANCE", -1.0)
    source = export_small(tmp_path / "model", n_blocks=1)
    with pytest.raises(ValueError, match="not to be used"):
        export_onnx(source, tmp_path / "graphs")
    assert not any((tmp_path / "graphs").iterdir())


def test_without_the_extra_it_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'onnx.* "speechbrain-peer\[onnx\]"'):
        export_onnx(export_small(tmp_path / "model"), tmp_path)
