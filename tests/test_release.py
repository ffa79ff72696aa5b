"""A finished run becomes a folder that we and SpeechBrain load, with a card."""

import json

import pytest
import tiny_model
import torch
from speechbrain.inference.interfaces import foreign_class
from tiny_model import build, export, write_run

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.evaluation.calibration import calibrate
from speechbrain_peer.inference.match import JudgeScorer, MatchScorer
from speechbrain_peer.nnet.filterbank import Encoder
from speechbrain_peer.packaging.export import add_scorers
from speechbrain_peer.peer_learning.exchange import embed, extract
from speechbrain_peer.training.checkpoints import SafeCheckpointer
from speechbrain_peer.training.fine_tuning import start_from
from speechbrain_peer.training.release import export_run
from speechbrain_peer.utils.files import DataError

METRICS = {"corpus": "Made noise.", "run": {"optimizer_steps": 12}}


@pytest.fixture
def run(tmp_path):
    """The folder of a run with two checkpoints, and the better one's stages."""
    folder = tmp_path / "results/süß"
    write_run(folder)
    better, worse = build(seed=1), build(seed=2)
    for loss, modules in ((-3.0, better), (1.0, worse)):
        checkpointer = SafeCheckpointer(folder / "save", dict(modules.items()))
        checkpointer.save_checkpoint(meta={"valid_loss": loss})
    (folder / "metrics.json").write_text(json.dumps(METRICS), encoding="utf-8")
    (folder / "metrics.md").write_text("| a | table |\n", encoding="utf-8")
    return folder, better


def estimates_of(modules, mixtures, enrollments):
    with torch.no_grad():
        return extract(modules, mixtures, embed(modules, enrollments))


def test_the_best_checkpoint_is_exported_with_a_card(run, tmp_path):
    run_folder, better = run
    (run_folder / "curves.csv").write_text("epoch,seconds\n1,3600\n2,1800\n")
    notes = "Made of noise."
    folder = export_run(run_folder, tmp_path / "model", "tiny", "cc-by-4.0", notes)
    model = TargetSpeechExtraction.from_hparams(source=folder)
    signals = torch.randn(2, 1, 4000)
    expected = estimates_of(better, *signals)
    torch.testing.assert_close(estimates_of(model.mods, *signals), expected)
    card = (folder / "README.md").read_text(encoding="utf-8")
    parameters = sum(p.numel() for p in model.mods.parameters())
    for text in (
        "license: cc-by-4.0",
        "# tiny",
        f"{parameters:,} parameters, 8000 Hz",
        '`exchange: "better"`, `seed: 7`, 12 steps, in 1.5 hours',
        "Made of noise.",
        "| a | table |",
    ):
        assert text in card, text
    (run_folder / "metrics.json").unlink()
    (run_folder / "metrics.md").unlink()
    (run_folder / "curves.csv").write_text("epoch,seconds\n1,soon\n")
    with pytest.raises(DataError, match="cannot be read as curves"):
        export_run(run_folder, folder, "again")
    (run_folder / "curves.csv").unlink()
    export_run(run_folder, folder, "again")  # replaces it
    assert "Not tested." in (folder / "README.md").read_text(encoding="utf-8")
    assert "# again" in (folder / "README.md").read_text(encoding="utf-8")


def test_speechbrain_loads_it_too(run, tmp_path):
    run_folder, better = run
    folder = export_run(run_folder, tmp_path / "model", "tiny")
    before = {path.name for path in folder.iterdir()}
    model = foreign_class(
        source=str(folder),
        pymodule_file="custom.py",
        classname="TargetSpeechExtraction",
        savedir=str(tmp_path / "cache"),
    )
    signals = torch.randn(2, 1, 4000)
    expected = estimates_of(better, *signals)
    torch.testing.assert_close(estimates_of(model.mods, *signals), expected)
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == before
    # What Python has left there does not stand in the way of the next export.
    (folder / "__pycache__").mkdir(exist_ok=True)
    export_run(run_folder, folder, "tiny")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files \(notes.txt\)"):
        export_run(run_folder, folder, "tiny")


def test_the_match_score_of_the_runs_own_export_is_kept(run):
    run_folder, _ = run
    own = export_run(run_folder, run_folder / "model", "tiny")
    scorer = MatchScorer(embedding_size=16)
    scorer.weight.copy_(torch.tensor([2.0, -3.0]))
    judge_scorer = JudgeScorer(6, "somebody", mark="c0ffee", threshold=0.25)
    add_scorers(own, match_scorer=scorer, judge_scorer=judge_scorer)
    for folder in (run_folder.parent / "elsewhere", own):
        export_run(run_folder, folder, "tiny")
        model = TargetSpeechExtraction.from_hparams(source=folder)
        assert torch.equal(model.mods.match_scorer.weight, scorer.weight)
        assert model.mods.judge_scorer.arguments == judge_scorer.arguments


def test_the_match_score_of_other_weights_is_left_out(run, tmp_path, caplog):
    """As of an export of before the training went on."""
    run_folder, _ = run
    export(run_folder / "model", seed=2)
    add_scorers(run_folder / "model", match_scorer=MatchScorer(embedding_size=16))
    folder = export_run(run_folder, tmp_path / "new", "tiny")
    assert not TargetSpeechExtraction.from_hparams(folder).tells_match
    assert "has other weights than the best checkpoint" in caplog.text


def test_a_damaged_export_is_no_obstacle(run, tmp_path, caplog):
    run_folder, _ = run
    export(run_folder / "model", seed=1)
    (run_folder / "model" / "weights.ckpt").write_bytes(b"x")
    export_run(run_folder, tmp_path / "new", "tiny")
    assert "No match score is taken over" in caplog.text


def test_the_match_score_is_looked_for_where_the_run_has_exported_to(run, tmp_path):
    run_folder, _ = run
    with open(run_folder / "hyperparams.yaml", "a", encoding="utf-8") as file:
        file.write(f"export_folder: {tmp_path / 'own'}\n")
    own = export_run(run_folder, tmp_path / "own", "tiny")
    scorer = MatchScorer(embedding_size=16)
    scorer.weight.copy_(torch.tensor([2.0, -3.0]))
    add_scorers(own, match_scorer=scorer)
    folder = export_run(run_folder, tmp_path / "new", "tiny")
    model = TargetSpeechExtraction.from_hparams(source=folder)
    assert torch.equal(model.mods.match_scorer.weight, scorer.weight)


def test_a_run_with_a_stage_of_ones_own_is_exported_if_trusted(
    run, tmp_path, monkeypatch, prepared
):
    class OwnEncoder(Encoder):
        pass

    monkeypatch.setattr(tiny_model, "OwnEncoder", OwnEncoder, raising=False)
    run_folder, better = run
    path = run_folder / "hyperparams.yaml"
    text = path.read_text(encoding="utf-8")
    own = text.replace(
        "speechbrain_peer.nnet.filterbank.Encoder", "tiny_model.OwnEncoder"
    )
    path.write_text(own, encoding="utf-8")
    with pytest.raises(DataError, match=r"OwnEncoder.*trust=True, or --trust on the"):
        export_run(run_folder, tmp_path / "model", "tiny")
    folder = export_run(run_folder, tmp_path / "model", "tiny", trust=True)
    for load in (calibrate_with(prepared), TargetSpeechExtraction.from_hparams):
        with pytest.raises(DataError, match="--trust on the command line"):
            load(folder)
        load(folder, trust=True)
    fresh = build(seed=3)
    with pytest.raises(DataError, match="--trust on the command line"):
        start_from(fresh, run_folder, 8000)
    start_from(fresh, run_folder, 8000, trust=True)
    assert torch.equal(fresh["encoder"].weight, better["encoder"].weight)


def calibrate_with(prepared):
    def run(folder, **options):
        calibrate(folder, prepared.manifests["dev"], prepared.data_root, **options)

    return run


def test_what_is_no_finished_run(run, tmp_path):
    with pytest.raises(DataError, match="is not the folder of a run"):
        export_run(tmp_path, tmp_path / "model", "x")
    write_run(tmp_path / "untrained")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        export_run(tmp_path / "untrained", tmp_path / "model", "x")
    assert not (tmp_path / "model").exists()
