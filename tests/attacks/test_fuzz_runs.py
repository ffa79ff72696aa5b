"""Tables and figures of finished runs, spoiled, in the comparison."""

import json

import pytest
from finished_runs import write_run
from fuzzing import EXAMPLES, fuzz, reads, spoiled, spoiled_json, spoiled_table
from test_fuzz_models import spoiled_yaml

from recipes.LibriMix.comparison.report import write_report
from recipes.LibriMix.comparison.runs import find_runs
from recipes.LibriMix.comparison.systems import group_runs
from speechbrain_peer.training.curves import append_epoch

CURVES = """epoch,step,train_loss,valid_loss,valid_si_snr,lr,skipped_steps,seconds
1,50,-3.5,-4.5,4.5,0.001,0,12.5
2,100,-4.5,-5.5,5.5,0.001,0,13.5
"""
SCORES = """ID,si_sdr,si_sdri,pesq,stoi
1-0-0_2-0-0_s1,10.5,9.5,2.5,0.8
3-0-0_4-0-0_s1,11.5,8.5,2.5,0.8
"""
# Changes with which something has been found.
KNOWN = {
    "metrics.json": [
        (b'"run": {', b'"run": null, "x": {'),
        (b'"Made noise."', b"[]"),
        (b'"Made noise."', b"null"),
    ],
    "test_scores.csv": [
        (b"1-0-0_2-0-0_s1", b"x"),
        (b"9.5", b"nan"),
        (b"ID,", b"si_sdr,ID,ID,"),
    ],
    # More than csv takes; on Python 3.10 it takes no NUL either.
    "curves.csv": [(b"epoch", b"x" * 140_000), (b"epoch", b"\0")],
    "hyperparams.yaml": [
        (b"exchange: better", b"exchange: x"),
        (b"stride: 8", b"!x stride: 8"),
    ],
}


@pytest.fixture
def runs(tmp_path):
    """Two finished runs, so that one is compared with the other."""
    for name, exchange in (("spoiled", "better"), ("control", "none")):
        folder = tmp_path / "runs" / name
        write_run(folder, exchange=exchange)
        (folder / "curves.csv").write_text(CURVES, encoding="utf-8")
        (folder / "test_scores.csv").write_text(SCORES, encoding="utf-8")
    return tmp_path / "runs"


def strategy(name, content):
    """How to spoil a file of a run."""
    if name.endswith(".json"):
        return spoiled_json(content)
    if name.endswith(".csv"):
        return spoiled_table(content.decode()) | spoiled(content)
    return spoiled_yaml(content.decode()) | spoiled(content)


@EXAMPLES
@pytest.mark.parametrize(
    "name", ["metrics.json", "curves.csv", "test_scores.csv", "hyperparams.yaml"]
)
def test_comparison(examples, runs, tmp_path, monkeypatch, name):
    path = runs / "spoiled" / name
    # Figures take most of the time, and show what has been read.
    for figure in ("peers_figure", "validation_figure"):
        monkeypatch.setattr(
            f"recipes.LibriMix.comparison.report.{figure}", lambda *_: None
        )

    def compare():
        text = write_report(tmp_path / "report", group_runs(find_runs([runs])))
        assert "control" in text or "none" in text
        json.loads((tmp_path / "report/report.json").read_text(encoding="utf-8"))

    def attack(content):
        path.write_bytes(content)
        reads(path, compare, path.parent)

    good = path.read_bytes()
    known = [good.replace(*change) for change in KNOWN.get(name, ())]
    fuzz(examples, attack, strategy(name, good), known)


@EXAMPLES
def test_curves_of_a_training_that_goes_on(examples, tmp_path, monkeypatch):
    path = tmp_path / "curves.csv"
    monkeypatch.setattr("speechbrain_peer.training.curves.curves_figure", NoFigure)

    def attack(content):
        path.write_bytes(content)
        reads(path, lambda: append_epoch(tmp_path, 3, {"step": 1, "train_loss": 0.5}))

    known = [CURVES[5:].encode(), b"epoch\n1,2\n"]
    fuzz(examples, attack, strategy(path.name, CURVES.encode()), known)


class NoFigure:
    """In the place of one."""

    def __init__(self, rows):
        pass

    def savefig(self, path, format):
        """Writes nothing."""
