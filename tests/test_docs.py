"""The documentation: short, its links lead somewhere, its commands are real ones."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechbrain_peer.cli.__main__ import main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("recipes/*/*.md"),
    *ROOT.glob("docs/**/*.md"),
]
COMMANDS = (
    'pip install ".[pesq,demo]" && python recipes/LibriMix/train.py hparams/demo.yaml',
    'pip install ".[pesq,demo,rooms,serve,test]" && pytest',
)


def blocks(path, language):
    """The code blocks of a page."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(program):
    """What pages say after a program's name, and on which page."""
    for path in PAGES:
        for block in blocks(path, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                for command in re.split(r"&&|\|", line.partition("  #")[0]):
                    words = shlex.split(command)
                    if program in words:
                        yield words[words.index(program) + 1 :], path.name


def options(words):
    """The options among words, without their values."""
    return {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)}


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_readme_has_both_commands():
    lines = [line for block in blocks(README, "bash") for line in block.splitlines()]
    assert [line for line in lines if line in COMMANDS] == list(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [x.partition("#")[0] for x in links if not re.match(r"\w+:", x)]
    missing = [x for x in local if x and not (page.parent / x).exists()]
    assert missing == []


def test_every_row_is_documented():
    text = "".join(page.read_text("utf-8") for page in (ROOT / "docs").rglob("*.md"))
    rows = [f"hparams/{path.name}" for path in (ROOT / "hparams").glob("*.yaml")]
    assert [row for row in rows if row not in text] == []


def test_tests_that_are_named_exist():
    text = "".join(page.read_text("utf-8") for page in PAGES)
    named = set(re.findall(r"\btest_\w+\.py\b", text))
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert named - there == set()


def test_trainings_have_the_options_that_the_pages_give():
    found = list(commands("recipes/LibriMix/train.py"))
    assert len(found) > 10
    for (row, *words), page in found:
        keys = re.findall(r"^(\w+):", (ROOT / row).read_text("utf-8"), re.MULTILINE)
        unknown = options(words) - {f"--{key}" for key in keys}
        assert not unknown, (page, row)


def test_tse_has_the_options_that_the_pages_give(capsys):
    found = list(commands("tse"))
    assert len(found) > 10
    for (command, *words), page in found:
        with pytest.raises(SystemExit):
            main(["--help"] if command.startswith("-") else [command, "--help"])
        text = capsys.readouterr().out
        unknown = options(words) - set(re.findall(r"--?[a-z][\w-]*", text))
        assert not unknown, (page, command)


def test_python_is_python():
    for page in PAGES:
        for block in blocks(page, "python"):
            compile(block, str(page), "exec")


def test_the_readme_extracts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).standard_normal((2, 16000)) / 10
    for name, samples in zip(("meeting.wav", "anna.wav"), noise, strict=True):
        soundfile.write(name, samples, 16000)
    (code,) = blocks(README, "python")
    exec(code, {})
    in_python, _ = soundfile.read("anna_only.wav")
    Path("anna_only.wav").unlink()
    (lines,) = (x for x in blocks(README, "bash") if x.startswith("tse extract"))
    one, several = (shlex.split(line)[1:] for line in lines.splitlines())
    # As Python does; the command takes bf16 where the processor has it.
    assert main([*one, "--precision", "fp32"]) == 0
    in_the_shell, _ = soundfile.read("anna_only.wav")
    np.testing.assert_array_equal(in_the_shell, in_python)
    Path("anna_only.wav").unlink()
    for name, voice in zip(("german.wav", "french.wav"), noise, strict=True):
        soundfile.write(name, noise.sum(0) + voice, 16000)
    assert main(several) == 0
    assert soundfile.info("anna_only.wav").frames == 16000
