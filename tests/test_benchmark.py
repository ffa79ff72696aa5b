"""The benchmark command from end to end, and that it compares like with like."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from rows import HPARAMS

from benchmark import parts, recordings
from benchmark.bsrnn import build_bsrnn, build_plain
from benchmark.measure import precisions_on
from benchmark.report import Table
from benchmark.separators import (
    OurSeparator,
    build_asteroid,
    compare_separators,
)
from benchmark.sizes import QUICK
from speechbrain_peer.packaging.public_checkpoints import speakerbeam_names
from speechbrain_peer.peer_learning.exchange import embed, extract

COMMAND = [sys.executable, "-m", "benchmark", "--quick"]
SEPARATORS = {"Asteroid", "SpeechBrain", "ours"}


def run(*arguments):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_command_measures_everything(prepared, tmp_path):
    output = tmp_path / "with space"
    manifest = ("--manifest", prepared.manifests["train-100"])
    data = (*manifest, "--data_root", prepared.data_root)
    done = run("--threads", 1, 2, "--repeats", 2, "--output", output, *data)
    assert done.returncode == 0, done.stderr

    report = json.loads((output / "benchmark.json").read_text(encoding="utf-8"))
    precisions = precisions_on("cpu")
    assert ("left out" in report["settings"]["bf16"]) == ("bf16" not in precisions)
    titles = [table["title"] for table in report["tables"]]
    on_one = [title.endswith(", 1 thread") for title in titles]
    # The loader is measured once.
    assert sum(on_one) == len(on_one) // 2 + 1
    assert all(title.endswith(", 2 threads") for title in titles[sum(on_one) :])
    tables = [table["rows"] for table in report["tables"]][: sum(on_one)]
    separators, *limits = tables[:-4]
    training, loader, extraction, bsrnn = tables[-4:]
    assert list(bsrnn)[:2] == ["plain PyTorch", "ours"]
    assert separators.keys() == {
        f"{name}, {precision}" for name in SEPARATORS for precision in precisions
    }
    assert len(limits) == len(precisions)
    for rows in limits:
        limit, *parts, ours = (row["forward [s]"]["median"] for row in rows.values())
        assert limit == pytest.approx(sum(parts)) and 0 < limit < ours
    assert list(training) == ["TD-SpeakerBeam", "TD-SpeakerBeam + PL"]
    assert list(extraction) == ["TD-SpeakerBeam", "TD-SpeakerBeam + PL, as exported"]
    assert list(loader)[len(precisions) :] == ["loader, 0 workers", "loader, 2 workers"]
    ours = separators["ours, fp32"]
    assert [len(cell["values"]) for cell in ours.values()][:2] == [2, 2]
    measured = (training, loader, extraction, bsrnn)
    for row in (ours, *(row for table in measured for row in table.values())):
        assert all(cell["median"] > 0 for cell in row.values())

    markdown = (output / "benchmark.md").read_text(encoding="utf-8")
    assert markdown.strip() == done.stdout.replace("\n\n\n", "\n\n").strip()


def test_an_absent_toolkit_leaves_its_cells_empty(monkeypatch):
    for name in ("asteroid", "asteroid.masknn"):
        monkeypatch.setitem(sys.modules, name, None)
    table = compare_separators(QUICK, repeats=1, device="cpu", threads=1)
    lines = table.markdown().splitlines()
    assert "| Asteroid, fp32 | - | - | - |" in lines
    assert any("pip install" in line for line in lines)
    assert table.median("ours, fp32", "forward [s]") > 0
    assert table.ratio("ours, fp32", "forward [s]") is None


def test_a_wrong_manifest_ends_in_one_line(tmp_path):
    done = run("--repeats", 1, "--manifest", tmp_path / "none.json")
    assert done.returncode == 1
    assert "none.json" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="measures on Linux only")
def test_recordings_that_cannot_be_measured_end_in_one_line(tmp_path, capsys):
    speech, absent = str(tmp_path / "speech.wav"), str(tmp_path / "absent.wav")
    soundfile.write(speech, 0.1 * np.random.default_rng(0).standard_normal(8000), 8000)
    for arguments, message in (
        (("small-8k", speech, speech, absent), "absent.wav: no such file"),
        (("small-8k", absent, speech), "absent.wav: no such file"),
        (("no model", speech, speech), "error: no model: no such folder"),
    ):
        with pytest.raises(SystemExit) as ended:
            recordings.main(arguments)
        assert message in ended.value.code and "\n" not in ended.value.code
    assert not capsys.readouterr().err


def test_the_parts_of_a_step_are_the_step(tmp_path, capsys):
    text = (HPARAMS / "demo.yaml").read_text(encoding="utf-8")
    (tmp_path / "short.yaml").write_text(
        re.sub(r"chunk_seconds: [\d.]+", "chunk_seconds: 0.2", text), encoding="utf-8"
    )
    arguments = [tmp_path / "short.yaml", "--threads", 1, "--repeats", 1]
    parts.main(list(map(str, arguments)))
    phases, operators = capsys.readouterr().out.split("### ")[1:]
    assert phases.startswith("short, fp32, by phase")
    for table, n_rows in ((phases, 7), (operators, 2 + parts.MOST)):
        cells = [line.split(" | ") for line in table.splitlines()[4:] if line]
        whole, *shares = (float(cell[2].rstrip(" |")) for cell in cells)
        assert whole == 100 and len(shares) == n_rows - 1
        assert sum(shares) == pytest.approx(100, abs=2)


def test_ratios_are_to_the_first_row():
    table = Table("Times", ["a [s]", "b [s]"])
    table.add("absent", "a [s]", [])
    assert table.ratio("absent", "a [s]") is None
    table = Table("Times", ["a [s]", "b [s]"])
    table.add("slow", "a [s]", [3.0, 1.0, 8.0])
    table.add("fast", "a [s]", [1.5])
    table.add("fast", "b [s]", [1.5])
    assert table.ratio("fast", "a [s]") == 2.0
    assert table.ratio("fast", "b [s]") is None


def test_asteroid_and_ours_compute_the_same():
    pytest.importorskip("asteroid", reason="Asteroid is not installed")
    torch.manual_seed(0)
    theirs, ours = build_asteroid(QUICK), OurSeparator(QUICK)
    source = theirs.state_dict()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, parameter in ours.named_parameters():
            stage = "separator." if name.startswith("tcn.") else ""
            keys = speakerbeam_names(stage + name)
            tensor = torch.cat([source[key] for key in keys])
            if name.endswith("depth_weight"):
                tensor = tensor[:, 0].T
            parameter.copy_(tensor.reshape(parameter.shape))
        representation = torch.randn(2, QUICK.n_filters, QUICK.frames)
        expected = theirs(representation)
        outputs = ours(representation.mT.contiguous())
    torch.testing.assert_close(outputs.mT, expected, atol=1e-5, rtol=1e-4)


def test_plain_bsrnn_and_ours_compute_the_same():
    torch.manual_seed(0)
    (model,) = QUICK.bsrnn.values()
    ours, plain = build_bsrnn(model), build_plain(model)
    with torch.no_grad():
        copy_bsrnn(ours["separator"], ours["mask_head"], plain)
        mixtures, enrollments = torch.randn(2, 4001), torch.randn(2, 3000)
        expected, estimates = (
            extract(stages, mixtures, embed(stages, enrollments))
            for stages in (ours, plain)
        )
    torch.testing.assert_close(estimates, expected, atol=1e-5, rtol=1e-4)


def copy_bsrnn(separator, mask_head, plain):
    """Copies our parameters into those of the plain version."""
    for linears, sequences, position in (
        (separator.split, plain["separator"].split, 1),
        (mask_head.widen, plain["mask_head"].masks, 0),
        (mask_head.mask, plain["mask_head"].masks, 2),
    ):
        weights = [weight for group in linears.weights for weight in group]
        biases = [bias for group in linears.biases for bias in group]
        for weight, bias, sequence in zip(weights, biases, sequences, strict=True):
            layer = sequence[position]
            layer.weight.copy_(weight.view_as(layer.weight))
            layer.bias.copy_(bias)
    plain = plain["separator"]
    for index, block in enumerate(separator.blocks):
        for theirs, lstm, linear in (
            (plain.over_time[index], block.over_time, block.time_linear),
            (plain.over_bands[index], block.over_bands, block.band_linear),
        ):
            theirs.linear.load_state_dict(linear.state_dict())
            for way, suffix in enumerate(("", "_reverse")):
                for name, tensor in (
                    ("weight_ih", lstm.weight_ih),
                    ("weight_hh", lstm.weight_hh),
                    ("bias_ih", lstm.bias),
                    ("bias_hh", torch.zeros_like(lstm.bias)),
                ):
                    getattr(theirs.lstm, f"{name}_l0{suffix}").copy_(tensor[way])
