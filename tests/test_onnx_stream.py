"""The steps of causal models as a graph: what a stream in PyTorch gives, and what it
says of itself, so that programs without PyTorch can run it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_model import build, causal_yaml, export

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.models import bsrnn
from speechbrain_peer.nnet.stft import StftDecoder, StftEncoder
from speechbrain_peer.nnet.voice import features_of
from speechbrain_peer.packaging.onnx_stream import StreamStep, run_stream

PAGE = Path(__file__).parents[1] / "docs/how-to/live-onnx.md"


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_frames(window, hop):
    torch.manual_seed(0)
    bands = [(5, 2), (2, 4), (1, 15)]
    return torch.nn.ModuleDict(
        {
            "encoder": StftEncoder(window, hop),
            "speaker_encoder": bsrnn.SpeakerEncoder(window),
            "separator": bsrnn.Separator(window, bands, 6, 12, 2, causal=True),
            "mask_head": bsrnn.MaskHead(bands, 6, 24),
            "decoder": StftDecoder(window, hop),
        }
    )


@pytest.mark.parametrize("level", ["network", "mixture"])
@pytest.mark.parametrize(
    ("make", "beginning"),
    [
        (lambda: build(text=causal_yaml()), (8, 8, 0)),
        (lambda: of_frames(64, 32), (32, 0, 32)),
        (lambda: of_frames(64, 16), (16, 16, 32)),
    ],
    ids=["td_speakerbeam", "bsrnn", "bsrnn, overlap"],
)
@torch.no_grad()
def test_steps_of_one_shape_are_a_stream(make, beginning, level):
    modules = make()
    model = TargetSpeechExtraction(modules, {"sample_rate": 8000, "level": level})
    step = StreamStep(modules, level)
    assert step.beginning == beginning
    hop, first, drop = beginning
    mixtures = noise(2, first + 50 * hop)
    voice = model.encode_speaker(noise(2, 3000, seed=1))
    state, outputs = step.begin(mixtures[:, :first]), []
    for samples in mixtures[:, first:].split([hop, 4 * hop, 45 * hop], dim=1):
        shapes = [part.shape for part in state]
        estimates, *state = step(samples, features_of(voice), *state)
        assert [part.shape for part in state] == shapes
        assert estimates.shape == samples.shape
        outputs.append(estimates)
    outputs = torch.cat(outputs, dim=1)[:, drop:]
    expected = model.stream(voice=voice).push(mixtures)
    torch.testing.assert_close(outputs, expected[:, : outputs.shape[1]])


@pytest.fixture(scope="module")
def source(causal_graphs):
    return causal_graphs[0]


@pytest.fixture(scope="module")
def graphs(causal_graphs):
    return causal_graphs[1]


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("hops", [1, 5])
def test_the_graph_is_the_stream(graphs, source, hops):
    model = TargetSpeechExtraction.from_hparams(source)
    mixtures, voice = noise(2, 808), noise(2, 16, seed=1)
    outputs = run_stream(session(graphs / "stream.onnx"), mixtures, voice, 8 * hops)
    expected = model.stream(voice=voice).push(mixtures)
    assert outputs.shape == (2, 800)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-5)


def test_eight_bits_are_near(graphs):
    path = graphs / "stream.int8.onnx"
    said = session(path).get_modelmeta().custom_metadata_map
    whole = session(graphs / "stream.onnx").get_modelmeta().custom_metadata_map
    assert float(said.pop("int8_snr_db")) > 15
    assert said.items() >= whole.items()
    assert [whole[key] for key in ("hop", "first_samples", "drop_samples")] == [
        *("8", "8", "0")
    ]
    assert whole["sample_rate"] == "8000" and whole["level"] == "network"
    mixtures, voice = noise(1, 808), noise(1, 16, seed=1)
    exact, near = (
        run_stream(session(graphs / name), mixtures, voice, 80)
        for name in ("stream.onnx", "stream.int8.onnx")
    )
    assert 0 < (near - exact).norm() < 0.2 * exact.norm()


def test_eight_bits_are_for_streams(tmp_path, capsys):
    export(tmp_path / "model")
    arguments = ["export", str(tmp_path / "model"), "--int8"]
    with pytest.raises(SystemExit):
        main([*arguments, "-o", str(tmp_path / "other")])
    assert "--int8 is for --onnx" in capsys.readouterr().err
    pytest.importorskip("onnxruntime")
    assert main([*arguments, "--onnx", str(tmp_path / "graphs")]) == 1
    assert "looks ahead, so it has no graph of streams" in capsys.readouterr().err


def example(language, folder):
    """The page's program in a language, and files for it."""
    (code,) = re.findall(
        rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL
    )
    assert len(code.splitlines()) <= 40
    for name, seed, seconds in (("anna", 1, 2), ("meeting", 2, 1)):
        path = folder / f"{name}.wav"
        soundfile.write(path, noise(seconds * 8000, seed=seed).numpy(), 8000)
    return code


@pytest.fixture
def expected(source, tmp_path):
    """What the programs have to write, given their files."""

    def extract():
        model = TargetSpeechExtraction.from_hparams(source)
        voice = model.encode_speaker_files(tmp_path / "anna.wav")
        mixture, _ = soundfile.read(tmp_path / "meeting.wav", dtype="float32")
        return model.stream(voice=voice).push(torch.from_numpy(mixture)).numpy()

    return extract


def test_the_python_program_of_the_page(graphs, expected, tmp_path):
    code = example("python", tmp_path)
    (tmp_path / "graphs").symlink_to(graphs)
    code += "\nimport sys\nassert not {'torch', 'speechbrain'} & set(sys.modules)\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    outputs, rate = soundfile.read(tmp_path / "anna_only.wav")
    assert rate == 8000 and len(outputs) > 7900
    np.testing.assert_allclose(outputs, expected()[: len(outputs)], atol=1e-4)


def test_the_javascript_program_of_the_page(graphs, expected, tmp_path):
    """ONNX_WEB names a folder in which `npm install onnxruntime-web` has been run."""
    if shutil.which("node") is None or "ONNX_WEB" not in os.environ:
        pytest.skip("needs node, and ONNX_WEB for a folder with onnxruntime-web")
    code = example("javascript", tmp_path)
    (tmp_path / "graphs").symlink_to(graphs)
    modules = Path(os.environ["ONNX_WEB"]) / "node_modules"
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "live.mjs").write_text(code, encoding="utf-8")
    for name in ("anna", "meeting"):
        samples, _ = soundfile.read(tmp_path / f"{name}.wav", dtype="float32")
        samples.tofile(tmp_path / f"{name}.raw")
    subprocess.run(["node", "live.mjs"], cwd=tmp_path, check=True)
    outputs = np.fromfile(tmp_path / "anna_only.raw", np.float32)
    assert len(outputs) > 7900
    np.testing.assert_allclose(outputs, expected()[: len(outputs)], atol=1e-4)
