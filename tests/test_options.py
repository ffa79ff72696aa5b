"""Options of a training are checked before any work, each complaint in one line."""

import sys
from pathlib import Path

import pytest
import torch
from rows import HPARAMS
from ruamel.yaml import YAML

from speechbrain_peer.training import options
from speechbrain_peer.training.options import (
    OPTIONS,
    SIZES,
    load_hparams,
    read_options,
)
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.runtime import computes_bf16, fastest_precision

ROW = str(HPARAMS / "td_speakerbeam_pl.yaml")


def read(*arguments, yaml=ROW):
    """The checked options of a row on the CPU."""
    return read_options([yaml, "--device=cpu", *arguments])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--batch_size=0"], "batch_size must be a whole number of at least 1, not 0"),
        (["--batch_size=2.5"], "batch_size must be a whole number .*, not 2.5"),
        (["--n_epochs=True"], "n_epochs must be a whole number .*, not True"),
        (["--lr=0"], "lr must be a number above 0, not 0"),
        (["--lr", "fast"], "lr must be a number above 0, not fast"),
        (["--lr=.nan"], "lr must be a number above 0, not nan"),
        (["--max_grad_norm", "-1"], "max_grad_norm must be a number above 0, not -1"),
        (["--n_steps=-5"], "n_steps must be a whole number .* or null, not -5"),
        (["--n_scoring_processes=-1"], "n_scoring_processes must be .*least 0"),
        (["--seed=-1"], "seed must be"),
        (["--mixing", "[90"], r"--mixing \[90: is not a value as YAML has them"),
        (["--peers=some"], "peers must be one of off, listed, drawn, .*, not some"),
        (["--peer_interferer=quieter", "--peers=off"], "--peers off no peer has"),
        (["--peer_interferer=quieter", "--peers=microphones"], "microphones no peer"),
        (["--peer_interferer=confusable", "--peers=listed"], "listed --peers drawn"),
        (["--peer_interferer=confusable", "--mixtures=drawn"], "give --mixtures list"),
        (["--n_peers=1"], "n_peers must be a whole number of at least 2, not 1"),
        (["--precision=int8"], "argument --precision: invalid choice: 'int8'"),
        (["--precision=fp16"], "precision fp16 is for GPUs"),
        (["--eval_precision=fp16"], "precision fp16 is for GPUs"),
        (["--use_tensorboard=yes"], "use_tensorboard must be True or False, not yes"),
        (["--use_tensorboard"], "--use_tensorboard: give a value"),
        (["--grad_accumulation_factor=0"], "grad_accumulation_factor must be"),
        (["--debug_batches=x"], "argument --debug_batches: invalid int value: 'x'"),
        (["--n_filters=0"], "n_filters must be a whole number of at least 1, not 0"),
        (["--n_filters=[1]"], "n_filters must be a whole number"),
        (["--causal=1"], "causal must be True or False, not 1"),
        (["--n_epoch=3"], "--n_epoch: .* has no such option; did you mean --n_epochs?"),
        (["--max_grad=3"], "--max_grad: .* has no such option"),  # no abbreviations
        (["--lr=1", "--lr", "2"], "--lr is given twice"),
        (["--debug", "--debug"], "--debug is given twice"),
        (["more.yaml"], "more.yaml: is no option"),
        (["--output_folder=!ref <nothing>"], 'The reference "nothing" is not valid'),
        (["--batch_size=0", "--lr=0"], "batch_size must be .*; lr must be"),
    ],
)
def test_wrong_options_are_told_in_one_line(arguments, complaint):
    with pytest.raises(DataError, match=complaint) as error:
        read(*arguments)
    assert "\n" not in str(error.value)


def test_right_options_are_taken():
    corpus = "LibriSpeech: own mixtures = 16 kHz # (all)"
    found = read(
        *("--corpus", corpus, "--lr", "1e-4", "--n_steps=null", "--peers=off"),
        *(
            "--exchange",
            "none",
            "--mixing",
            "{speeds:",
            "[90, 110]}",
            "--experiment=007",
        ),
        *("--optimizer", "{betas: [0.5, 0.9]}", "--data_folder=/data/a b"),
        *("--export_folder", "!ref <output_folder>/exported", "--precision=bf16"),
        *("--debug", "--ckpt_interval_steps=5", "--ckpt_interval_minutes=0"),
    )
    settings = found.settings
    assert settings["corpus"] == corpus
    assert settings["lr"] == 1e-4
    assert settings["n_steps"] is None
    assert (settings["peers"], settings["exchange"]) == ("off", "none")
    assert settings["mixing"] == {"speeds": [90, 110]}
    assert settings["output_folder"] == "results/007/1234"
    assert settings["export_folder"] == "results/007/1234/exported"
    assert settings["data_folder"] == "/data/a b"
    assert found.run_opts.debug
    assert found.run_opts.ckpt_interval_steps == 5
    # A run option that the YAML has is in the run's own YAML, too.
    assert "precision" not in found.run_opts.overridden_args
    assert YAML().load(found.overrides)["precision"] == "bf16"


def test_options_are_built_as_they_were_checked(tmp_path):
    tiny = ["--n_filters=8", "--channels=4", "--hidden_channels=4", "--n_blocks=2"]
    corpus = "a: b"
    found = read(*tiny, f"--results_folder={tmp_path}", "--corpus", corpus, "--lr=1e-4")
    hparams = load_hparams(found)
    assert hparams["corpus"] == corpus
    assert hparams["optimizer"].keywords == {"lr": 1e-4, "fused": True}


def test_prepared_data_may_be_several():
    row = str(HPARAMS / "own_data.yaml")
    settings = read("--prepared", "[[A, 3], [B/c, 1.5]]", yaml=row).settings
    assert settings["prepared"] == [["A", 3], ["B/c", 1.5]]
    # Text is a folder, whatever it looks like.
    assert read("--prepared=3", yaml=row).settings["prepared"] == "3"


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--loss={foo: 1}", "Invalid argument to class .*PeerLoss: .*'foo'"),
        ("--loss={mutual_weight: -1}", "loss: mutual_weight is -1, not from 0 to 1000"),
        ("--adaptation=foo", "adaptation 'foo': choose one of mul"),
        (
            "--optimizer=!name:no.where",
            "There is no such .* no.where; is the folder of",
        ),
    ],
)
def test_what_cannot_be_built_is_told_in_one_line(tmp_path, option, complaint):
    with pytest.raises(DataError, match=complaint) as error:
        load_hparams(read(f"--results_folder={tmp_path}", option))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file"),
        ("", "holds no options"),
        ("- a\n- b\n", "holds no options"),
        ("a: b: c\n", "mapping values are not allowed here"),
        ("a: [1\n", "expected ',' or ']'"),
        ("a: 1\na: 2\n", 'found duplicate key "a"'),
        ("a: !PLACEHOLDER\n", "'a' is a !PLACEHOLDER and must be replaced"),
        (b"\xff\xfe\x00", "can't decode"),
    ],
)
def test_a_wrong_yaml_is_told_in_one_line(tmp_path, content, complaint):
    path = tmp_path / "row.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=complaint) as error:
        read(yaml=str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_no_arguments_are_told_in_one_line():
    with pytest.raises(DataError, match=r"required: param_file$"):
        read_options([])


def test_another_models_yaml_may_use_the_same_names_otherwise(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("window: hann\nhop: 0.5\nlayers: [1, 2]\nnet: !new:torch.nn.ReLU\n")
    assert read("--hop=1", yaml=str(path)).settings["hop"] == 1
    with pytest.raises(DataError, match="hop must be a number, not fast"):
        read("--hop=fast", yaml=str(path))
    with pytest.raises(DataError, match="layers must be a list, each a whole number"):
        read("--layers=3", yaml=str(path))


def test_a_device_that_is_not_there_is_told():
    with pytest.raises(DataError, match="nothing: PyTorch has no such device"):
        read_options([ROW, "--device=nothing"])


def test_tensorboard_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(DataError, match="pip install tensorboard"):
        read("--use_tensorboard=True")


def test_slow_bf16_is_told_in_one_line(monkeypatch, caplog):
    monkeypatch.setattr(options, "computes_bf16", lambda device: False)
    read()
    assert caplog.messages == []
    read("--precision=bf16")
    assert caplog.messages == [
        "This CPU has no instructions for bf16: fp32 is several times faster"
    ]


def test_bf16_needs_instructions(monkeypatch):
    has = {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert not computes_bf16("cpu")
    assert computes_bf16("cuda:0")
    assert fastest_precision("cpu") == fastest_precision("cuda:0") == "fp32"
    has["avx512_bf16"] = True
    assert computes_bf16("cpu")
    assert fastest_precision("cpu") == "bf16"
    # Where PyTorch does not tell, nothing is refused and nothing taken for granted.
    has["architecture"] = "aarch64"
    assert computes_bf16("cpu")
    assert fastest_precision("cpu") == "fp32"
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert computes_bf16("cpu")
    assert fastest_precision("cpu") == "fp32"


def test_every_plain_entry_is_declared():
    # Of one kind of layer, whose constructor checks it.
    declared = {*OPTIONS, *SIZES, "adapted_block", "adaptation", "causal"}
    declared |= {"bands", "cue", "temperature", "learned_temperature"}
    for path in HPARAMS.glob("*.yaml"):
        entries = YAML(typ="rt").load(Path(path).read_text(encoding="utf-8"))
        plain = {
            name
            for name, value in entries.items()
            if not isinstance(value, dict) and not name.startswith("__")
        }
        plain -= {"optimizer", "lr_scheduler", "curves", "loggers", "loss"}
        assert plain <= declared, path.name
