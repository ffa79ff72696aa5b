"""The measurements of live extraction: what they count, and that they end."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tiny_model import export_causal

from benchmark import int8, live, live_case, serve
from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.evaluation.trial_scores import score_estimate
from speechbrain_peer.evaluation.trials import Trial
from speechbrain_peer.packaging.loading import load_model
from speechbrain_peer.packaging.onnx_graphs import open_graph


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(export_causal(tmp_path_factory.mktemp("models") / "model"))


def test_what_is_measured(monkeypatch):
    clock = iter([0.0, 0.5, 1.0, 1.002, 2.0, 2.004])
    monkeypatch.setattr(live_case.time, "perf_counter", lambda: next(clock))
    blocks = []
    measured = live_case.measure(blocks.append, block=80, rate=8000, seconds=0.02)
    assert [len(block) for block in blocks] == [80] * 3
    assert measured["block"] == 10 and measured["first"] == pytest.approx(500)
    assert measured["factor"] == pytest.approx(0.3)
    assert measured["p99"] == pytest.approx(3.98)


def test_a_case_of_pytorch(folder):
    measured, latency = live_case.torch_case(folder, 10.0, 0.1, "fp32")
    assert latency == {"latency": 1.0}
    assert 0 < measured["factor"]


def test_a_case_of_onnx_needs_no_pytorch(causal_graphs):
    code = """
import sys
from benchmark import live_case
print(live_case.onnx_case(*sys.argv[1:2], 10.0, 0.1, "16")[1])
assert not {"torch", "speechbrain", "speechbrain_peer"} & set(sys.modules)
"""
    command = [sys.executable, "-c", code, str(causal_graphs[1] / "stream.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "{'latency': 1.0}\n", done.stderr


def test_models_are_causal_and_differ_in_size(tmp_path):
    sizes = {}
    for name in ("td_speakerbeam-small", "bsrnn-small"):
        modules, hparams = load_model(live.make_model(name, tmp_path))
        assert hparams["level"] == "network"
        sizes[name] = sum(weight.numel() for weight in modules.parameters())
        model = TargetSpeechExtraction(modules, hparams)
        model.stream(np.random.default_rng(0).standard_normal((1, 8000)) / 10)
    assert 4e5 < sizes["td_speakerbeam-small"] < 8e5
    assert 8e5 < sizes["bsrnn-small"] < 2e6


def test_a_table_of_a_model(monkeypatch, capsys, tmp_path):
    keys = ("block", "latency", "factor", "p99", "first", "resident")
    result = dict(zip(keys, (10.0, 2.0, 0.1234, 1.5, 40.0, None), strict=True))

    def run(command, **_):
        assert command[2] == "benchmark.live_case"
        output = f"a warning\n{json.dumps(result)}\n"
        return subprocess.CompletedProcess(command, 0, output, "")

    monkeypatch.setattr(live.subprocess, "run", run)
    monkeypatch.setattr(live, "make_model", lambda name, folder: tmp_path)
    monkeypatch.setattr(live, "voice_shape", lambda model: "16")
    live.main(["--no-onnx", "--blocks", "10"])
    row = "| PyTorch fp32 | 10.0 | 2.0 | 0.123 | 1.5 | 40.0 | - |"
    assert row in capsys.readouterr().out.splitlines()


def test_the_load_of_a_server(folder, capsys):
    for name in ("fastapi", "uvicorn", "websockets"):
        pytest.importorskip(name)
    serve.main([folder, "--streams", "1", "2", "--seconds", "0.5", "--block", "100"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines[4:]]
    # One more than there are sessions is refused.
    assert [row[:2] for row in rows] == [["1", "0"], ["2", "0"], ["3", "1"]]
    for _, _, *percentiles, in_time in rows:
        assert 0 < float(percentiles[0]) <= float(percentiles[2])
        assert 0 <= float(in_time) <= 100


def test_a_server_that_cannot_start_is_told(tmp_path):
    with pytest.raises(SystemExit, match="no such folder"):
        serve.main([str(tmp_path / "nothing!")])


def test_what_eight_bits_cost(causal_graphs, tmp_path):
    model = TargetSpeechExtraction.from_hparams(causal_graphs[0])
    sessions = {
        name: open_graph(causal_graphs[1] / file)
        for name, file in (*int8.GRAPHS.items(), ("again", "stream.onnx"))
    }
    signals = np.random.default_rng(0).standard_normal((4, 4001)).astype(np.float32)
    trial = Trial(
        "a", ("1", "2"), signals[0], (signals[1],), 0 * signals[2], signals[3]
    )
    found = int8.score(model, sessions, [trial])
    voice = model.encode_speaker(signals[3:])
    mixture = np.pad(trial.mixture, (0, 1000))[None]
    whole = model.stream(voice=voice).push(mixture)[0, :4001].numpy()
    expected = score_estimate(whole, trial)["si_sdri"]
    assert found["fp32"] == found["again"] == pytest.approx([expected], abs=1e-3)
    assert found["int8"] != found["fp32"]
