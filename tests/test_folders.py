"""A folder is replaced in whole, whenever the process is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechbrain_peer.utils.folders import OLD_SECONDS, whole_folder, whole_one

# Kills itself before the n-th change of the file system, and counts them.
WRITER = """
import os, signal, sys
from speechbrain_peer.utils.folders import whole_folder

left = int(sys.argv[2])

def die(event, arguments):
    global left
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
with whole_folder(sys.argv[1]) as folder:
    for name in ("one", "two"):
        (folder / name).write_text("new")
"""


def write(folder, text):
    with whole_folder(folder) as temporary:
        for name in ("one", "two"):
            (temporary / name).write_text(text)


def contents(folder):
    """The one text that both of its files hold."""
    found = {path.name: path.read_text() for path in whole_one(folder).iterdir()}
    assert found.keys() == {"one", "two"}
    (text,) = set(found.values())
    return text


def write_and_die(folder, steps):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITER, str(folder), str(steps)]
    return subprocess.run(command, env=environment, check=False).returncode


@pytest.mark.parametrize("linked", [False, True])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_one(tmp_path, linked):
    folder = tmp_path / "model"
    if linked:
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere" / "real")
    seen = []
    for steps in range(100):
        write(folder, "old")
        code = write_and_die(folder, steps)
        seen.append(contents(folder))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert seen[0] == "old" and seen[-1] == "new"
    # Once there, it stays.
    assert sorted(seen, reverse=True) == seen
    assert len(seen) > 6
    write(folder, "next")
    assert contents(folder) == "next" and folder.is_symlink() == linked
    # What kills have left goes when nobody can be writing to it any more.
    real = Path(os.path.realpath(folder))
    left = [path for path in real.parent.iterdir() if path.name.startswith(".real")]
    left += [path for path in tmp_path.iterdir() if path.name.startswith(".model")]
    assert left
    for path in left:
        os.utime(path, (time.time() - 2 * OLD_SECONDS,) * 2)
    write(folder, "last")
    assert [path.name for path in real.parent.iterdir()] == [real.name]


def test_two_writers_at_once_leave_the_whole_of_one(tmp_path):
    folder = tmp_path / "model"
    with whole_folder(folder) as slow:
        (slow / "one").write_text("slow")
        write(folder, "fast")
        assert contents(folder) == "fast"
        (slow / "two").write_text("slow")
    assert contents(folder) == "slow"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_error_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    write(folder, "old")
    with pytest.raises(KeyError), whole_folder(folder) as temporary:
        (temporary / "one").write_text("new")
        raise KeyError
    rename = Path.rename

    def refuse(source, target):
        if ".unfinished-" in str(source):
            raise OSError("no")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no"):
        write(folder, "new")
    monkeypatch.undo()
    assert contents(folder) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_it_is_as_readable_as_any_new_folder(tmp_path):
    write(tmp_path / "new" / "model", "x")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "new/model").stat().st_mode == (
        tmp_path / "plain"
    ).stat().st_mode
