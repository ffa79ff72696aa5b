"""The report over finished runs: differences, curves, files and costs."""

import csv
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch
from finished_runs import groups_below, write_run

from recipes.LibriMix.comparison import costs
from recipes.LibriMix.comparison.__main__ import main
from recipes.LibriMix.comparison.differences import difference_table, differences
from recipes.LibriMix.comparison.epochs import (
    mean_curves,
    peers_figure,
    validation_figure,
)
from recipes.LibriMix.comparison.report import write_report
from speechbrain_peer.peer_learning.exchange import EXCHANGES
from speechbrain_peer.utils.files import DataError

RESULTS = Path(__file__).parents[1] / "recipes/LibriMix/results"
CURVES = "epoch,train_loss,valid_loss,valid_si_snr,better_mask,better_predictor"


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_scores(folder, seed, exchange, shift, last="", **other):
    """A run whose scores differ by `shift`, in dB by target speaker."""
    write_run(folder, seed=seed, exchange=exchange, peers="drawn", **other)
    rows = ["ID,si_sdri"]
    for k, (target, other) in enumerate([("7", "8"), ("7", "9"), ("8", "9")]):
        name = f"{other}-1-{k}_{target}-2-{k}_s2"  # the target is the second source
        rows.append(f"{name},{seed + k + shift[target]}")
    rows.append(f"9-1-1_7-1-1_s1,{last}")
    (folder / "test_scores.csv").write_text("\n".join(rows) + "\n")


def test_differences_are_paired_and_their_error_is_over_speakers(tmp_path):
    write_scores(tmp_path / "n1", 1, "none", {"7": 0, "8": 0})
    write_scores(tmp_path / "n2", 2, "none", {"7": 0, "8": 0})
    write_scores(tmp_path / "b1", 1, "better", {"7": 1.0, "8": -2.0})
    write_scores(tmp_path / "b2", 2, "better", {"7": 2.0, "8": -1.0})
    write_scores(tmp_path / "b3", 3, "better", {"7": 9.0, "8": 9.0})
    write_scores(tmp_path / "i1", 1, "itself", {"7": 1.0, "8": -2.0})
    [group] = groups_below(tmp_path)
    better = differences(group)[1]
    assert "better" in better.system and "none" in better.control
    assert better.seeds == [1, 2] and better.speakers == 2
    assert better.speakers_ahead == 1
    np.testing.assert_allclose(better.si_sdri, (1 + 1 - 2 + 2 + 2 - 1) / 6)
    # Means 1.5 and -1.5 of two speakers.
    np.testing.assert_allclose(better.standard_error, 1.5)
    assert [(row.effect, row.seeds, row.si_sdri) for row in differences(group)][2] == (
        "lending",
        [1],
        0.0,
    )
    assert all(row.silent == len(row.seeds) for row in differences(group))


def test_every_exchange_is_compared_with_those_that_lend_less(tmp_path):
    for exchange in EXCHANGES:
        write_scores(tmp_path / exchange, 1, exchange, {"7": 0, "8": 0})
    [group] = groups_below(tmp_path)
    systems = [system.first.exchange for system in group.systems]
    assert sorted(systems) == sorted(EXCHANGES)
    effects = [row.effect for row in differences(group)]
    assert effects == ["the method"] * 5 + ["lending"] * 4


def test_what_a_run_adds_is_compared_if_it_is_one_thing(tmp_path):
    shift, confusable = {"7": 0, "8": 0}, {"peer_interferer": "confusable"}
    taught = {"loss": {"mutual_weight": 0.1}}
    write_scores(tmp_path / "none", 1, "none", shift)
    write_scores(tmp_path / "better", 1, "better", shift)
    write_scores(tmp_path / "confusable", 1, "none", shift, **confusable)
    write_scores(tmp_path / "both", 1, "better", shift, **confusable)
    write_scores(tmp_path / "taught", 1, "none", shift, **taught)
    write_scores(tmp_path / "two", 1, "none", shift, **taught, **confusable)
    [group] = groups_below(tmp_path)
    found = [(row.effect, *_names(row)) for row in differences(group)]
    assert sorted(found) == [
        ("mutual learning", "none confusable taught", "none confusable"),
        ("mutual learning", "none taught", "none"),
        ("the method", "better", "none"),
        ("the method", "better confusable", "none confusable"),
        ("the peers' interferers", "better confusable", "better"),
        ("the peers' interferers", "none confusable", "none"),
        ("the peers' interferers", "none confusable taught", "none taught"),
    ]


def _names(row):
    """What makes the two systems of a difference, in a few words."""
    words = {"exchange none": "none", "exchange better": "better"}
    words |= {"interferer confusable": "confusable", "mutual_weight 0.1": "taught"}
    return [
        " ".join(word for part, word in words.items() if part in name)
        for name in (row.system, row.control)
    ]


def test_an_item_where_one_output_is_silent_is_left_out_and_told(tmp_path):
    write_scores(tmp_path / "none", 1, "none", {"7": 0, "8": 0}, last=1.0)
    write_scores(tmp_path / "better", 1, "better", {"7": 1.0, "8": 1.0})
    [difference] = differences(groups_below(tmp_path)[0])
    assert (difference.silent, difference.si_sdri) == (1, 1.0)
    table = difference_table([difference])
    assert table.endswith("as one of the two is silent and has no score: 1.")
    scores = tmp_path / "better" / "test_scores.csv"
    scores.write_text(scores.read_text().rpartition("9-1-1")[0])
    with pytest.raises(DataError, match="tested on other items"):
        differences(groups_below(tmp_path)[0])


@pytest.fixture
def with_curves(tmp_path):
    """Two seeds with peer learning and one run without, all with curves."""
    folders = [tmp_path / "runs" / name for name in ("a", "b", "off")]
    for seed, folder in enumerate(folders[:2]):
        write_run(folder, seed=seed)
    write_run(folders[2], peers="off", exchange="none")
    rows = (
        "1,-1,2,-2,4,2\n2,-2,1,-1,5,3\n3,-3,0,0,6,4\n",
        "1,-3,4,-4,6,4\n2,-4,3,-3,7,\n",
        "1,-3,5,-5,6,\n",
    )
    for folder, text in zip(folders, rows, strict=True):
        (folder / "curves.csv").write_text(f"{CURVES}\n{text}", encoding="utf-8")
    return tmp_path / "runs"


def test_curves_are_means_over_the_epochs_of_all_seeds(with_curves):
    group = groups_below(with_curves)[0]
    single, learned = group.systems
    first, second = mean_curves(learned)
    assert (first["epoch"], first["runs"]) == (1, 2)
    assert (first["train_loss"], first["valid_si_snr"]) == (-2, -3)
    assert (first["better_mask"], first["better_predictor"]) == (5, 3)
    assert (second["better_mask"], second["better_predictor"]) == (6, None)
    assert [row["valid_si_snr"] for row in mean_curves(single)] == [-5]


def test_figures_have_the_panels_and_lines_of_the_runs(with_curves):
    write_run(with_curves / "other", corpus="Others, without curves.")
    groups = groups_below(with_curves)
    curves = {(g.label, s.name): mean_curves(s) for g in groups for s in g.systems}
    [panel] = peers_figure(groups, curves).axes
    assert panel.get_title().startswith("A: TD-SpeakerBeam + PL")
    assert panel.get_title().endswith("mean of 2 runs")
    lines = {line.get_label(): line.get_ydata().tolist() for line in panel.lines}
    assert lines["mask, better peer"] == [5, 6]
    [panel] = validation_figure(groups, curves).axes
    assert [line.get_ydata().tolist() for line in panel.lines] == [[-5], [-3, -2]]
    assert panel.get_legend().texts[0].get_text() == "TD-SpeakerBeam"
    empty = {key: [] for key in curves}
    assert peers_figure(groups, empty) is validation_figure(groups, empty) is None


def test_csv_and_json_hold_what_the_tables_show(with_curves, tmp_path):
    output = tmp_path / "with space"
    text = write_report(output, groups_below(with_curves))
    assert (output / "report.md").read_text(encoding="utf-8") == text
    rows = read_csv(output / "scores.csv")
    assert [row["seeds"] for row in rows] == ["7", "0; 1"]
    assert [row["si_sdr_sd"] for row in rows] == ["", "0.0"]
    rows = read_csv(output / "curves.csv")
    assert [(row["epoch"], row["better_mask"]) for row in rows][1:] == [
        ("1", "5.0"),
        ("2", "6.0"),
    ]
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    [group] = report["groups"]
    assert group["corpus"] == "Made noise." and not group["comparable_with_paper"]
    assert group["systems"][1]["paper_si_sdr"] == 13.94
    assert "costs" not in report and not (output / "costs.csv").exists()
    for name in ("peers.png", "validation.png"):
        assert f"]({name})" in text and (output / name).stat().st_size > 1000


@pytest.fixture
def short(monkeypatch):
    """Measures on short signals, few times."""
    monkeypatch.setattr(costs, "SECONDS", 1.0)
    monkeypatch.setattr(costs, "ENROLLMENT_SECONDS", 0.5)
    monkeypatch.setattr(costs, "REPEATS", 1)


def test_costs_are_those_counted_by_hand(short):
    stages = tiny_model.build()
    stages["encoder"].requires_grad_(False)
    entry = costs.measure_model(stages, tiny_model.SAMPLE_RATE, "tiny")
    everything = sum(weight.numel() for weight in stages.parameters())
    assert entry["trained_parameters"] == everything
    assert entry["trainable_parameters"] == everything - 16 * 16
    # Folded, the predictors are gone and C becomes 8 x 8, with a map of what is lent,
    # which one recording does not use; nor is the classifier there.
    unfolded = 16 * 251 + 251 + (8 + 1) * 16 + (32 + 1) * 16 + (16 + 1) * 8
    assert entry["exported_parameters"] == everything - unfolded + (2 * 8 + 1) * 8

    blocks = 6 * (8 * 12 + 12 * (8 + 8))
    backbone = 16 * 16 + 16 * 8 + blocks + 8 * 16 + 16 * 16
    peers = 8 * 16 + 32 * 16 + 16 * 8
    frames = (8000 - 16) // 8 + 1
    assert entry["trained_macs_per_second"] == frames * (backbone + peers)
    assert entry["exported_macs_per_second"] == frames * (backbone + 8 * 8)
    frames = (4000 - 16) // 8 + 1
    enrollment = frames * (16 * 16 + 16 * 8 + blocks / 2) + 8 * 16
    assert entry["enrollment_macs_per_second"] == enrollment / 0.5
    assert 0 < entry["exported_real_time_factor"] < 10


def test_attention_is_counted_where_kernels_are_fused():
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.rand(1, 10, 8)

    def attend():
        layer(x, x, x, need_weights=False)

    projections, products = 4 * 10 * 8 * 8, 2 * 10 * 10 * 8
    assert costs.count_macs(attend) == projections + products
    assert torch.backends.mha.get_fastpath_enabled()


def test_models_are_measured_once_and_yamls_call_nothing(short, tmp_path):
    write_run(tmp_path / "better", seed=1)
    write_run(tmp_path / "anyway", exchange="anyway", seed=1)
    write_run(tmp_path / "large", n_filters=32, corpus="Other.", seed=1)
    write_run(tmp_path / "off", peers="off", exchange="none", seed=1)
    for folder in tmp_path.iterdir():
        path = folder / "hyperparams.yaml"
        text = path.read_text(encoding="utf-8")
        called = f"called: !apply:pathlib.Path.mkdir [!new:pathlib.Path [{folder}/x]]\n"
        path.write_text(text + called, encoding="utf-8")

    entries = costs.measure_costs(groups_below(tmp_path))
    assert [(entry["model"], len(entry["systems"])) for entry in entries] == [
        ("TD-SpeakerBeam", 1),
        ("TD-SpeakerBeam + PL", 2),
        ("TD-SpeakerBeam + PL", 1),
    ]
    assert not list(tmp_path.glob("*/x"))


def test_a_model_that_is_refused_is_a_row_with_its_reason(short, tmp_path):
    write_run(tmp_path / "run")
    path = tmp_path / "run" / "hyperparams.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("torch.nn.Linear", "os.system"), encoding="utf-8")
    table = costs.cost_table(costs.measure_costs(groups_below(tmp_path)))
    assert "| TD-SpeakerBeam + PL | - | - " in table
    assert "not measured: " in table and "!new:os.system is not allowed" in table


def test_runs_of_this_repository_make_a_report(short, tmp_path, capsys):
    main([*map(str, RESULTS.glob("small_*")), "--output", str(tmp_path)])
    assert capsys.readouterr().out == (tmp_path / "report.md").read_text() + "\n"
    models = json.loads((tmp_path / "report.json").read_text())["costs"]["models"]
    for model in models:
        run = Path(model["hparams_file"]).with_name("metrics.json")
        recorded = json.loads(run.read_text(encoding="utf-8"))["run"]["parameters"]
        assert model["trained_parameters"] == recorded
    rows = {row["system"]: row for row in read_csv(tmp_path / "scores.csv")}
    better = rows["TD-SpeakerBeam + PL (exchange better, peers drawn)"]
    control = rows["TD-SpeakerBeam (exchange none, peers drawn)"]
    n_controls = len(list(RESULTS.glob("small_none/*/metrics.json")))
    assert len(control["seeds"].split("; ")) == n_controls
    # Seeds are added to the repository's runs, so that their mean is no fixed figure.
    seeds = [
        json.loads(path.read_text(encoding="utf-8"))["means"]["si_sdr"]
        for path in RESULTS.glob("small_better/*/metrics.json")
    ]
    assert len(better["seeds"].split("; ")) == len(seeds)
    assert float(better["si_sdr"]) == pytest.approx(statistics.fmean(seeds))
    curves = [
        float(row["valid_si_snr"])
        for row in read_csv(tmp_path / "curves.csv")
        if row["system"] == better["system"]
    ]
    assert statistics.fmean(curves[-5:]) > curves[0]
