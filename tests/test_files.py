"""Files are whole or absent, whoever writes beside."""

import os
import stat

import pytest

from speechbrain_peer.utils import files
from speechbrain_peer.utils.files import whole_file


def test_two_writers_of_one_file_leave_one_or_the_other_whole(tmp_path):
    path = tmp_path / "out"
    with whole_file(path) as first:
        first.write_text("first" * 1000)
        with whole_file(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first" * 1000
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    """Nor taken away; without knowing the name nobody can put it there."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "known")
    other = tmp_path / "other"
    other.write_text("precious")
    link = tmp_path / ".unfinished-known"
    link.symlink_to(other)
    with pytest.raises(FileExistsError), whole_file(tmp_path / "out") as temporary:
        temporary.write_text("overwritten")
    assert other.read_text() == "precious" and link.is_symlink()
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        function = getattr(os, name)

        def record(*arguments, name=name, function=function):
            calls.append(name)
            return function(*arguments)

        monkeypatch.setattr(os, name, record)
    with whole_file(tmp_path / "out") as temporary:
        temporary.write_text("new")
    assert calls == ["fsync", "replace"]


def test_who_may_read_it_is_up_to_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "out") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"folder'$"), whole_file(tmp_path / "folder"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
