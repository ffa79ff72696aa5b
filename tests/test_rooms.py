"""The house: imports go down the list of rooms, and YAMLs say common things alike."""

import ast
import re
from pathlib import Path

import pytest
from rows import HPARAMS

PACKAGE = Path(__file__).parents[1] / "speechbrain_peer"
# From the top down. A room imports its own files and those of the rooms below.
ROOMS = (
    *("cli", "training", "evaluation", "inference", "packaging", "peer_learning"),
    *("models", "nnet", "data", "utils"),
)


def imported(path):
    """The rooms whose files a file imports, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "speechbrain_peer" and rest.split(".")[0] in ROOMS:
                yield rest.split(".")[0], node.lineno


def test_every_folder_is_a_room():
    folders = {
        path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()
    }
    assert folders == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down(room):
    above = ROOMS[: ROOMS.index(room)]
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {other}"
        for path in sorted((PACKAGE / room).rglob("*.py"))
        for other, line in imported(path)
        if other in above
    ]
    assert wrong == []


# What makes one row another: its name, data, training, backbone and loss.
OF_THE_ROW = {
    *("experiment", "mixtures", "mixing", "peers", "exchange", "peer_learning", "loss"),
    *("sample_rate", "enrolling", "level", "averaged_steps"),
    *(
        "n_epochs",
        "decay_after",
        "batch_size",
        "valid_batch_size",
        "chunk_seconds",
        "lr",
        "precision",
    ),
    *("num_workers", "n_scoring_processes", "n_examples", "lr_scheduler"),
    *("epoch_counter", "modules", "recoverables"),
}
BACKBONE = re.compile(r"# Model.*?(?=\n# The method)", re.DOTALL)
OTHER_DATA = {
    "demo": {"corpus_folder", "prepared_folder", "corpus", "prepare"},
    "own_data": {"prepared", "train_subset", "prepare"},
}


def entries(path):
    """The text of every entry but the backbone's, by key."""
    text = BACKBONE.sub("", path.read_text(encoding="utf-8"))
    blocks = re.split(r"^(?=\w+:)", text, flags=re.MULTILINE)[1:]
    # What follows the blank line belongs to the next entry.
    return {block.partition(":")[0]: block.partition("\n\n")[0] for block in blocks}


def test_common_entries_are_the_same_text():
    texts = {}
    for path in sorted(HPARAMS.glob("*.yaml")):
        own = OF_THE_ROW | OTHER_DATA.get(path.stem, set())
        for key, text in entries(path).items():
            # A comment after an entry speaks of the next one.
            text = re.split(r"\n#", text)[0].rstrip()
            if key not in own:
                texts.setdefault(key, {}).setdefault(text, []).append(path.name)
    different = {key: files for key, files in texts.items() if len(files) > 1}
    del different["checkpointer"]  # without a plateau there is no state of the rate
    assert different == {}


@pytest.mark.parametrize("path", sorted(HPARAMS.glob("*.yaml")), ids=lambda p: p.name)
def test_a_row_says_things_once(path):
    """`exchange` in the method alone, stages in `modules` alone."""
    text = path.read_text(encoding="utf-8")
    assert len(re.findall(r"!ref <exchange>", text)) == 1
    modules = text.split("\nmodules:\n")[1].split("\n\n")[0]
    stages = re.findall(r"(\w+): !ref <\1>", modules)
    assert len(stages) >= 5
    assert all(text.count(f"!ref <{stage}>") == 1 for stage in stages)
    assert len(text.splitlines()) <= 175
