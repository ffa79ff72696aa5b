"""What of finished runs is put together, and the tables of their scores."""

import pytest
from finished_runs import groups_below, write_run

from recipes.LibriMix.comparison.__main__ import main
from recipes.LibriMix.comparison.runs import find_runs
from recipes.LibriMix.comparison.tables import score_tables
from speechbrain_peer.utils.files import DataError

LIBRI2MIX = "Libri2Mix test, first speakers, 8000 Hz, min, clean; trained on x."


def names_below(folder):
    """Names of the systems, group by group."""
    return [[system.name for system in g.systems] for g in groups_below(folder)]


def table_rows(text):
    """Cells of the rows that begin with a system."""
    lines = [line for line in text.splitlines() if line.startswith("| TD-")]
    return [line.strip("| ").split(" | ") for line in lines]


def test_seeds_make_one_row_with_mean_and_spread(tmp_path):
    write_run(tmp_path / "better" / "1", 10.0, seed=1, experiment="one")
    write_run(tmp_path / "better" / "2", 12.0, seed=2, num_workers=4)
    write_run(tmp_path / "off" / "1", 9.0, seed=1, peers="off", exchange="none")
    [group] = groups_below(tmp_path)
    assert score_tables(group) == (
        """\
### A, Table I: systems

| system | seeds | SI-SDR (dB) | paper | SI-SDRi (dB) | PESQ | paper | STOI \
| wrong speaker (%) | worse than mixture (%) | step |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
| mixture |  | 1.00 | 0.001 | - | 1.50 | 1.603 | 0.700 | - | - |  |
| TD-SpeakerBeam | 1 | 9.00 | 12.86 | 8.00 | 2.50 | 2.75 | 0.800 | 25.0 | 50.0 | 90 |
| TD-SpeakerBeam + PL (exchange better, peers listed) | 2 | 11.00 ± 1.41 | 13.94 \
| 10.00 ± 1.41 | 2.50 ± 0.00 | 3.07 | 0.800 ± 0.000 | 25.0 ± 0.0 | 50.0 ± 0.0 | 90 |

### A, Table II: what peers lend each other

| system | seeds | SI-SDR (dB) | paper | SI-SDRi (dB) | PESQ | paper | STOI \
| wrong speaker (%) | worse than mixture (%) | step |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
| mixture |  | 1.00 | 0.001 | - | 1.50 | 1.603 | 0.700 | - | - |  |
| TD-SpeakerBeam + PL (exchange better, peers listed) | 2 | 11.00 ± 1.41 | 13.94 \
| 10.00 ± 1.41 | 2.50 ± 0.00 | 3.07 | 0.800 ± 0.000 | 25.0 ± 0.0 | 50.0 ± 0.0 | 90 |

**paper: figures on the 3000 test mixtures of Libri2Mix, which are not comparable \
with those on this corpus.**

step: optimizer steps of the checkpoint tested, which is the best on the validation \
set.

Means over seeds ± their standard deviation (n - 1)."""
    )


def test_the_ablation_is_in_order_beside_the_papers_figures(tmp_path):
    for exchange in ("better", "itself", "none", "anyway"):
        write_run(tmp_path / exchange, exchange=exchange, corpus=LIBRI2MIX, items=3000)
    write_run(tmp_path / "alone", peers="off", corpus=LIBRI2MIX, items=3000)
    text = score_tables(groups_below(tmp_path)[0])
    assert "not comparable" not in text
    rows = table_rows(text.partition("Table II")[2])
    assert [(row[0].partition("exchange ")[2], row[3], row[6]) for row in rows] == [
        ("none, peers listed)", "-", "-"),
        ("itself, peers listed)", "12.84", "2.74"),
        ("anyway, peers listed)", "12.89", "2.77"),
        ("better, peers listed)", "13.94", "3.07"),
    ]
    # Trained on single mixtures, predictors are none of the paper's rows.
    rows = table_rows(text.partition("Table II")[0])
    assert [row[3] for row in rows] == ["-", "13.94"]


def test_only_what_may_be_compared_is_put_together(tmp_path):
    write_run(tmp_path / "a", corpus="Voices.")
    write_run(tmp_path / "b", corpus="Voices.", n_steps=200, seed=8)
    write_run(tmp_path / "c", corpus="Noise.", seed=9)
    write_run(tmp_path / "d", corpus="Voices.", mixture=1.5, seed=10)
    write_run(tmp_path / "e", corpus="Voices.", seed=11)
    write_run(tmp_path / "f", corpus="Voices.", n_steps=None, seed=12)
    write_run(tmp_path / "g", corpus="Voices.", start_from="a", seed=13)
    groups = groups_below(tmp_path)
    assert [(g.label, g.corpus, g.budget) for g in groups] == [
        ("A", "Voices.", "100 steps"),
        ("B", "Voices.", "200 steps"),
        ("C", "Noise.", "100 steps"),
        ("D", "Voices.", "100 steps"),
        ("E", "Voices.", "at most 200 epochs"),
        ("F", "Voices.", "100 steps from trained weights"),
    ]
    assert [len(g.systems[0].runs) for g in groups] == [2, 1, 1, 1, 1, 1]


def test_a_run_without_an_option_has_its_default(tmp_path):
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", seed=2, peer_learning={"exchange_epochs": 5})
    write_run(tmp_path / "c", seed=3, peer_learning={"exchange_epochs": None})
    pl = "TD-SpeakerBeam + PL (exchange better, peers listed"
    epochs = "peer_learning.exchange_epochs"
    assert names_below(tmp_path) == [[f"{pl}, {epochs} 5)", f"{pl}, {epochs} None)"]]


def test_seeds_that_go_on_from_their_own_runs_are_one_system(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / str(seed), seed=seed, start_from=f"first/{seed}")
    write_run(tmp_path / "3", seed=1, start_from="other/1")
    [group] = groups_below(tmp_path)
    assert [[run.seed for run in system.runs] for system in group.systems] == [
        [1, 2],
        [1],
    ]


def test_silent_outputs_are_told_below_the_scores(tmp_path):
    write_run(tmp_path / "1", seed=1)
    write_run(tmp_path / "2", seed=2, silent=3)
    text = score_tables(groups_below(tmp_path)[0])
    assert "seed 2: 3 of 4 outputs are silent and left out of the means" in text
    assert "seed 1:" not in text


def test_debug_runs_stay_out(tmp_path):
    write_run(tmp_path / "1", seed=1)
    write_run(tmp_path / "2", seed=2, debug=True)
    assert [run.seed for run in find_runs([tmp_path])] == [1]
    with pytest.raises(DataError, match="--debug do not count"):
        find_runs([tmp_path / "2"])


def test_settings_that_differ_are_in_the_name(tmp_path):
    write_run(tmp_path / "a", lr=0.1, output_folder="here", seed=1)
    write_run(tmp_path / "b", lr=0.5, output_folder="there", seed=1)
    write_run(tmp_path / "c", lr=0.1, loss={"predictor_weight": 0.0}, seed=2)
    pl = "TD-SpeakerBeam + PL (exchange better, peers listed, lr"
    assert names_below(tmp_path) == [
        [
            f"{pl} 0.1, loss.predictor_weight 0.0)",
            f"{pl} 0.1, loss.predictor_weight 1.0)",
            f"{pl} 0.5, loss.predictor_weight 1.0)",
        ]
    ]


def test_options_of_objects_and_lists_that_differ_are_in_the_name(tmp_path):
    """Such as rooms and speeds: they are no seeds of one system."""
    rooms, plain = {"rooms_folder": "rooms"}, {"speeds": [100]}
    write_run(tmp_path / "a", mixing=rooms, bands=[[15, 3]], seed=1)
    write_run(tmp_path / "b", mixing=plain, bands=[[15, 3]], seed=2)
    write_run(tmp_path / "c", mixing=plain, bands=[[10, 6]], seed=3)
    ((a, b, c),) = names_below(tmp_path)
    assert "mixing.rooms_folder given" in a + b + c
    assert sum("bands ((10, 6),)" in name for name in (a, b, c)) == 1


def test_a_setting_that_an_older_run_lacks_is_no_difference(tmp_path):
    write_run(tmp_path / "old", seed=1)
    write_run(tmp_path / "new", seed=2)
    path = tmp_path / "new" / "hyperparams.yaml"
    path.write_text(f"{path.read_text()}causal: False\n", encoding="utf-8")
    assert len(groups_below(tmp_path)[0].systems[0].runs) == 2


def test_backbones_are_known_by_their_class(tmp_path):
    classes = {
        "a": "speechbrain_peer.models.spex_plus.Separator",
        "b": "speechbrain_peer.models.dpccn.Separator",
        "c": "mine.nnet.Mine",
        "d": "speechbrain_peer.models.sepformer.Separator",
    }
    for name, path in classes.items():
        write_run(tmp_path / name, peers="off", exchange="none")
        file = tmp_path / name / "hyperparams.yaml"
        text = file.read_text(encoding="utf-8")
        ours = "speechbrain_peer.models.td_speakerbeam.Separator"
        assert ours in text
        file.write_text(text.replace(ours, path), encoding="utf-8")
    assert names_below(tmp_path) == [["sDPCCN", "SpEx+", "SepFormer", "Mine"]]


def test_a_score_without_value_is_a_dash(tmp_path):
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", seed=2)
    path = tmp_path / "b" / "metrics.json"
    path.write_text(path.read_text().replace("2.5", "null"), encoding="utf-8")
    assert table_rows(score_tables(groups_below(tmp_path)[0]))[0][5] == "-"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "metrics.json").write_text("{"), "metrics.json: cannot be"),
        (lambda run: (run / "metrics.json").write_text("[]"), "metrics.json: is not"),
        (
            lambda run: (run / "metrics.json").write_text('{"items": 3}'),
            "metrics.json: has no corpus, means",
        ),
        (lambda run: (run / "hyperparams.yaml").unlink(), "hyperparams.yaml: cannot"),
        (
            lambda run: (run / "hyperparams.yaml").write_text("seed: 1\nmodules: {}"),
            "hyperparams.yaml: has no peers, exchange",
        ),
        (
            lambda run: (run / "curves.csv").write_text("epoch\none\n"),
            "curves.csv: cannot be read",
        ),
        (lambda run: run.rename(run.parent / "copy") and write_run(run), "same seed"),
        (lambda run: (run / "metrics.json").unlink(), "no finished run"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, spoil, message):
    write_run(tmp_path / "runs" / "one")
    spoil(tmp_path / "runs" / "one")
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "runs"), "--output", str(tmp_path / "out"), "--no_cost"])
    assert str(end.value).startswith("error: ") and message in str(end.value)
    assert str(tmp_path / "runs") in str(end.value)


def test_a_run_given_twice_counts_once(tmp_path):
    write_run(tmp_path / "one")
    runs = find_runs([tmp_path, tmp_path / "one", tmp_path / "one" / ".." / "one"])
    assert len(runs) == 1
    with pytest.raises(DataError, match="elsewhere: no finished run"):
        find_runs([tmp_path, tmp_path / "elsewhere"])
