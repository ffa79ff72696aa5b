"""Files of others run no code, whichever way they come in.

Every file here would leave the file PWNED behind if anything of it were run.
"""

import json
import os
import shutil
import time

import numpy as np
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from tiny_model import TRAINING_YAML, build, export, write_run

from recipes.LibriMix.comparison.runs import find_runs
from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.evaluation.calibration import calibrate
from speechbrain_peer.packaging.export import build_stages
from speechbrain_peer.packaging.safe_yaml import MAX_BYTES, check_yaml, read_yaml
from speechbrain_peer.training.checkpoints import SafeCheckpointer
from speechbrain_peer.training.fine_tuning import read_trained
from speechbrain_peer.utils.files import DataError

YAML, WEIGHTS = "hyperparams.yaml", "weights.ckpt"
TOUCH = 'apply:os.system ["touch PWNED"]'

# As values of one entry of a mapping, in a line.
VALUES = {
    "call": f"!{TOUCH}",
    "call while references are resolved": "!applyref:os.system [touch PWNED]",
    "the same with keywords": "!applyref:os.system {command: touch PWNED}",
    "the same with both": "!applyref:os.system {_args: [touch PWNED], _kwargs: {}}",
    "include": "!include:other.yaml",
    "include of another folder": "!include:../other.yaml",
    "include with values": "!include:other.yaml {a: 1}",
    "object": "!new:subprocess.Popen [[touch, PWNED]]",
    "function": "!name:os.system [touch PWNED]",
    "module": "!module:antigravity",
    "module that calls": "!module:this",
    "placeholder": "!PLACEHOLDER",
    "python tag": f"!!python/object/{TOUCH}",
    "whole python tag": (
        "!<tag:yaml.org,2002:python/object/apply:os.system> [touch PWNED]"
    ),
    "python object": "!!python/object/new:os.system [touch PWNED]",
    "python name": "!!python/name:os.system",
    # HyperPyYAML parses text in parentheses with Python tags.
    "parentheses": f"(!!python/object/{TOUCH})",
    "quoted parentheses": f"'(!!python/object/{TOUCH})'",
    "escaped parentheses": r'"\x28!!python/object/apply:os.system [touch PWNED])"',
    "tuple": """!tuple "-!!python/object/apply:os.system ['touch PWNED']-" """,
    # Allowed packages lead to others, and have functions and other classes.
    "file from the internet": "!new:torch.hub.load [a, b]",
    "class by way of an allowed package": (
        "!new:torch.nn.functional.torch.utils.data.DataLoader {dataset: [1]}"
    ),
    "function by way of an allowed package": (
        "!new:torch.nn.functional.torch.hub.load [a, b]"
    ),
    "interface of SpeechBrain": "!new:speechbrain_peer.inference.interface.Pretrained",
    "class that makes folders": (
        "!new:speechbrain_peer.training.checkpoints.SafeCheckpointer [PWNED]"
    ),
    "class that unpickles": "!new:speechbrain.lobes.models.beats.BEATs {ckp_path: x}",
    "function that unpickles": "!name:torch.load",
    "own function": "!name:speechbrain_peer.packaging.export.export_model {folder: x}",
    "module of a module": "!name:speechbrain_peer.inference.of_files.os.system",
    "package of a similar name": "!new:speechbrain_peerless.Thing",
    "package": "!new:torch.nn",
    "class that is not there": "!new:torch.nn.Missing",
    "deep in a value": f"[1, {{y: !{TOUCH}}}]",
    "key": f"{{? (!!python/object/{TOUCH}) : 1}}",
    "copy": f"!copy <nested>\nnested: !{TOUCH}",
    "attribute": "!ref <layer.__class__>\nlayer: !new:torch.nn.ReLU",
    "method": "!ref <layer.apply>\nlayer: !new:torch.nn.ReLU",
    "two texts become one": (
        """!ref <a><b>\na: "(!!python/object/"\n"""
        """b: "apply:os.system ['touch PWNED'])\""""
    ),
    "text becomes one": (
        """!ref <c>\nc: "<a>)"\n"""
        """a: "(!!python/object/apply:os.system ['touch PWNED']\""""
    ),
    "empty text before parentheses": (
        """!ref <b>\ne: ''\n"""
        """b: "<e>(!!python/object/apply:os.system ['touch PWNED'])\""""
    ),
}
# As whole files.
FILES = {
    "directive for a tag": (
        "%TAG !e! tag:yaml.org,2002:python/\n---\nx: !e!name:os.system"
    ),
    "directive for classes": "%TAG ! !new:torch.nn.\n---\nx: !ReLU",
    "directive for calls": '%TAG ! !apply:os.\n---\nx: !system ["touch PWNED"]',
    "version": "%YAML 1.1\n---\nx: 1",
    "merged mapping": f"a: &a {{b: !{TOUCH}}}\nx:\n  <<: *a",
    "second document": f"a: 1\n---\nx: !{TOUCH}",
    "nothing": "",
    "list": f"- !{TOUCH}",
    "call as a whole": f"!{TOUCH}",
    "cut": f"x: [!{TOUCH}",
    "control character": f"x: \x01!{TOUCH}",
    "twice the same": f"x: 1\nx: !{TOUCH}",
    "not what its tag says": f"x: !!int y\ny: !{TOUCH}",
}
OTHER = f"x: !{TOUCH}\ny: !applyref:os.system [touch PWNED]\n"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A run with a checkpoint and scores, its export, and audio; only to read."""
    folder = tmp_path_factory.mktemp("given")
    write_run(folder / "run")
    with open(folder / "run" / YAML, "a", encoding="utf-8") as file:
        file.write("peers: listed\nbefore: 1\n")
    checkpointer = SafeCheckpointer(folder / "run/save", dict(build().items()))
    checkpointer.save_checkpoint(meta={"valid_loss": -3.0})
    means = ("si_sdr", "si_sdri", "pesq", "stoi")
    means = [*means, *(f"mixture_{name}" for name in means if name != "si_sdri")]
    metrics = {"corpus": "x", "items": 1, "means": dict.fromkeys(means, 1.0)}
    metrics |= {"wrong_speaker_percent": 0.0, "worse_than_mixture_percent": 0.0}
    metrics["run"] = {"optimizer_steps": 1}
    (folder / "run/metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (folder / "run/metrics.md").write_text("", encoding="utf-8")
    export(folder / "exported/model")
    shutil.move(folder / "exported/model", folder / "model")
    soundfile.write(
        folder / "noise.wav", np.random.default_rng(0).normal(size=4000), 8000
    )
    return folder


@pytest.fixture
def folder(given, tmp_path, monkeypatch):
    """A copy to spoil, as the working directory."""
    shutil.copytree(given, tmp_path, dirs_exist_ok=True)
    for place in (tmp_path, tmp_path / "model", tmp_path / "run"):
        (place / "other.yaml").write_text(OTHER, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob("PWNED"))


def command(*arguments):
    """Runs `tse`, which must not end in a traceback."""
    return main(list(map(str, arguments)))


EXTRACT = ("extract", "noise.wav", "-e", "noise.wav", "-o", "out.wav", "-m", "model")
OF_MODELS = {
    "from_hparams": lambda: TargetSpeechExtraction.from_hparams("model"),
    "start of a training": lambda: read_trained("model", build()),
    "calibrate": lambda: calibrate("model", "none.json", ""),
    "info": lambda: command("info", "model"),
    "extract": lambda: command(*EXTRACT),
}
OF_RUNS = {
    "export": lambda: command("export", "run", "-o", "new"),
    "start of a training": lambda: read_trained("run", build()),
    "comparison": lambda: find_runs(["run"]),
    "costs in the comparison": lambda: build_stages("run/hyperparams.yaml"),
}
OF_STAGES = {name: OF_RUNS[name] for name in ("export", "start of a training")}


def at_entries(entries, cases):
    """All cases at all entries, if long tests run; else each at one or two of them."""
    step = min(3, len(entries))
    parameters = [
        pytest.param(
            entry,
            case,
            id=f"{case_name}-{name}",
            marks=() if (i + j) % step == 0 else pytest.mark.slow,
        )
        for i, (case_name, case) in enumerate(cases.items())
        for j, (name, entry) in enumerate(entries.items())
    ]
    return pytest.mark.parametrize(("entry", "case"), parameters)


def fails(entry):
    """Whether it refuses, which it has to do in one line."""
    try:
        code = entry()
    except (ValueError, OSError) as error:
        assert "\n" not in str(error)
        return True
    return code == 1


@at_entries(OF_MODELS, VALUES)
def test_a_model_with_a_value_that_could_run_code_is_refused(folder, entry, case):
    with open(folder / "model" / YAML, "a", encoding="utf-8") as file:
        file.write(f"x: {case}\n")
    assert fails(entry)


@at_entries(OF_MODELS, FILES)
def test_a_file_that_is_no_model_is_refused(folder, entry, case):
    (folder / "model" / YAML).write_text(case, encoding="utf-8")
    assert fails(entry)


@at_entries(OF_RUNS, VALUES)
def test_of_a_run_only_the_stages_are_built(folder, entry, case):
    """As of `!apply:speechbrain.utils.seed_everything`, which every run has."""
    text = (folder / "run" / YAML).read_text(encoding="utf-8")
    text = text.replace("before: 1", f"before: {case}")
    (folder / "run" / YAML).write_text(text, encoding="utf-8")
    fails(entry)


@at_entries(OF_STAGES, VALUES)
def test_a_run_with_such_a_stage_is_refused(folder, entry, case):
    first, *entries = case.split("\n")
    text = (folder / "run" / YAML).read_text(encoding="utf-8")
    text = text.replace("    embedding_size: 8\n", f"    embedding_size: {first}\n")
    text += "".join(f"{line}\n" for line in entries)
    (folder / "run" / YAML).write_text(text, encoding="utf-8")
    assert fails(entry)


@at_entries(OF_RUNS, FILES)
def test_a_file_that_is_no_run_is_refused(folder, entry, case):
    (folder / "run" / YAML).write_text(case, encoding="utf-8")
    assert fails(entry)


class Call:
    """Pickled, a call."""

    def __reduce__(self):
        return os.system, ("touch PWNED",)


PICKLES = {
    "call": Call(),
    "call in a tensor's place": {"encoder.weight": Call()},
    "object": {"encoder.weight": np.random.default_rng(0)},
    "whole module": torch.nn.Linear(1, 1),
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
@at_entries(OF_MODELS, PICKLES)
def test_weights_of_a_model_are_data(folder, entry, case, old):
    path = folder / "model" / WEIGHTS
    torch.save(case, path, _use_new_zipfile_serialization=not old)
    assert fails(entry)


@pytest.mark.parametrize("pickled", PICKLES.values(), ids=PICKLES)
@pytest.mark.parametrize("entry", OF_STAGES.values(), ids=OF_STAGES)
def test_checkpoints_of_a_run_are_data(folder, entry, pickled):
    (path,) = folder.glob("run/save/CKPT*/encoder.ckpt")
    torch.save(pickled, path)
    assert fails(entry)


@pytest.mark.parametrize("pickled", PICKLES.values(), ids=PICKLES)
def test_public_checkpoints_are_data(folder, pickled):
    torch.save(pickled, folder / "public.pth")
    assert fails(lambda: read_trained("public.pth", build()))
    torch.save({"model_args": {"L": pickled}, "state_dict": {}}, folder / "public.pth")
    assert fails(lambda: read_trained("public.pth", build()))


@pytest.mark.parametrize("entry", OF_STAGES.values(), ids=OF_STAGES)
@pytest.mark.parametrize(
    "text",
    [
        f"valid_loss: !!python/object/{TOUCH}\n",
        "valid_loss: [\n",
        "valid_loss: -3.0\nunixtime: x\n",
        "- 1\n",
    ],
)
def test_descriptions_of_checkpoints_are_data(folder, entry, text):
    (path,) = folder.glob("run/save/CKPT*/CKPT.yaml")
    path.write_text(text, encoding="utf-8")
    fails(entry)


@pytest.mark.parametrize("name", [YAML, WEIGHTS])
def test_a_pipe_in_a_models_place_does_not_hang(folder, name):
    (folder / "model" / name).unlink()
    os.mkfifo(folder / "model" / name)
    assert all(fails(entry) for entry in OF_MODELS.values())


def test_a_pipe_in_a_runs_place_does_not_hang(folder):
    (folder / "run" / YAML).unlink()
    os.mkfifo(folder / "run" / YAML)
    assert all(fails(entry) for entry in OF_RUNS.values())


def laughs(levels=12, width=9):
    """Each level is `width` times the one below."""
    lines = ["a0: &a0 [lol]"]
    for level in range(1, levels):
        below = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} [{below}]")
    return "\n".join(lines)


BOMBS = {
    "aliases": laughs(),
    "references": "a0: [x]\n"
    + "".join(f"a{i}: [!ref <a{i - 1}>, !ref <a{i - 1}>]\n" for i in range(1, 40)),
    "merged aliases": laughs().replace("[", "{x: [").replace("]", "]}"),
    "contains itself": "a: &a [*a]",
    "refers to itself": "a: {b: !ref <a>}",
    "deep": "a: " + "[" * 40_000,
    "deep blocks": "- " * 40_000,
    "deep by aliases": "a0: &a0 [x]\n"
    + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 200)),
    "many": "a: [" + "x, " * 30_000 + "]",
    "large": "a: " + "x" * (MAX_BYTES + 1),
    "long number": "a: " + "1" * 50_000,
    "growing numbers": "a0: 9\n"
    + "".join(f"a{i}: !ref <a{i - 1}> * <a{i - 1}>\n" for i in range(1, 100)),
    "power": "a: !ref 9**9**9**9",
    "brackets": "a: <" + "<" * 50_000,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_small_file_that_grows_is_refused_soon(folder, text):
    (folder / "model" / YAML).write_text(text, encoding="utf-8")
    shutil.copy(folder / "model" / YAML, folder / "run")
    started = time.process_time()
    assert fails(lambda: TargetSpeechExtraction.from_hparams("model"))
    assert fails(lambda: find_runs(["run"]))
    assert time.process_time() - started < 20


def test_arithmetic_and_references_of_a_run_are_resolved(tmp_path):
    path = tmp_path / YAML
    path.write_text(
        "n: 8\nm: !ref 2 * <n> - 1\nh: !ref <n> // 3\nf: !ref <n> / 16\n"
        "deep: {a: {b: !ref <m>}}\nx: !ref <deep[a][b]>\nneg: !ref -<n>\n"
        "text: !ref <n>/x\nlost: !ref <o>\nloop: !ref <loop>\nobj: !ref <deep>\n"
    )
    entries = read_yaml(path)
    numbers = {key: entries[key] for key in ("m", "h", "f", "x", "neg")}
    assert numbers == {"m": 15, "h": 2, "f": 0.5, "x": 15, "neg": -8}
    assert entries["obj"] is entries["deep"]
    assert read_yaml(path, {"n": 10})["m"] == 19
    for key in ("text", "lost", "loop"):
        assert entries[key].tag.value == "!ref"


def test_a_run_of_any_recipe_is_read_as_hyperpyyaml_resolves_it(tmp_path):
    """Its stages, with the numbers in them."""
    path = write_run(tmp_path)
    stages, _ = build_stages(path)
    ours = {name: tuple(weight.shape) for name, weight in stages.state_dict().items()}
    built = torch.nn.ModuleDict(load_hyperpyyaml(TRAINING_YAML)["modules"])
    theirs = {name: tuple(weight.shape) for name, weight in built.state_dict().items()}
    assert ours == theirs


@pytest.mark.parametrize(
    ("text", "place"),
    [("a: 1\nb: [1", "line 2"), ("a: 1\nb: a: 2\n", "line 2"), ("a: \x01", "x.yaml")],
)
def test_what_is_no_yaml_is_told_in_one_line(tmp_path, text, place):
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_yaml(path)
    assert "\n" not in str(error.value)
    for words in (str(path), place, "is not valid YAML"):
        assert words in str(error.value)


def test_bytes_that_are_no_text_are_told(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(DataError, match=r"x\.yaml: is not a text in UTF-8"):
        read_yaml(tmp_path / "x.yaml")


def test_refusals_do_not_move_the_cursor():
    with pytest.raises(DataError) as error:
        check_yaml('a: !apply:%1B[31m "x"', "x.yaml")
    assert str(error.value).isprintable()


def test_the_least_visible_attack_is_real(tmp_path, monkeypatch):
    """Why text in parentheses is refused."""
    monkeypatch.chdir(tmp_path)
    load_hyperpyyaml("""x: (!!python/object/apply:os.system ["touch PWNED"])""")
    assert (tmp_path / "PWNED").exists()
