"""The compiled kernels: built once, kept safely, and done without where they fail."""

import ctypes
import os
import shutil
import stat
import subprocess
import sys

import pytest
import torch

from speechbrain_peer.nnet import kernels

LOAD = """
import torch
from speechbrain_peer.nnet.kernels import load_kernels
print("loaded" if load_kernels("conv_block", torch.float32) else "plain")
"""
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler"
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where libraries are kept during this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TSE_NO_KERNELS", raising=False)
    return tmp_path / "cache" / "speechbrain_peer"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Puts a script in the compiler's place; gives the file that counts its builds."""

    def make(build='exec "$REAL_CC" "$@"'):
        real = shutil.which(os.environ.get("CC", "cc"))
        (tmp_path / "bin").mkdir()
        script, calls = tmp_path / "bin" / "cc", tmp_path / "calls"
        script.write_text(
            '#!/bin/sh\n[ "$1" = --version ] && echo fake && exit\n'
            f'echo >> "{calls}"\nfor output; do :; done\n{build}\n'
        )
        script.chmod(0o755)
        calls.touch()
        monkeypatch.setenv("REAL_CC", real or "")
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        return calls

    return make


def load():
    """As a new process does."""
    return kernels.load_kernels.__wrapped__("conv_block", torch.float32)


def builds(calls):
    return len(calls.read_text())


@needs_compiler
def test_they_are_built_once_for_this_user_alone(cache, compiler):
    calls = compiler()
    old = os.umask(0)
    try:
        assert load() is not None
    finally:
        os.umask(old)
    n_builds = builds(calls)
    assert n_builds > 0
    assert load() is not None
    assert builds(calls) == n_builds
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert [path.suffix for path in cache.iterdir()] == [".so"]


@needs_compiler
@pytest.mark.parametrize("content", [b"", b"garbage", b"\x7fELF"])
def test_a_damaged_library_is_built_again(cache, content, tmp_path, monkeypatch):
    load()
    (kept,) = cache.iterdir()
    # Elsewhere: a process that has loaded a path once does not look at it again.
    damaged = tmp_path / "other" / "speechbrain_peer" / kept.name
    damaged.parent.mkdir(mode=0o700, parents=True)
    damaged.write_bytes(content)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert load() is not None
    assert damaged.stat().st_size == kept.stat().st_size


@needs_compiler
@pytest.mark.parametrize("change", ["version", "processor", "flags"])
def test_another_compiler_or_processor_has_its_own(cache, monkeypatch, change):
    assert load() is not None
    if change == "version":
        run = kernels._run
        old = subprocess.CompletedProcess([], 0, "version 1", "")
        monkeypatch.setattr(
            kernels, "_run", lambda x: old if "--version" in x else run(x)
        )
    elif change == "processor":
        monkeypatch.setattr(kernels, "_processor", lambda: "another one")
    else:
        monkeypatch.setattr(kernels, "_FLAGS", [*kernels._FLAGS, "-DOTHER"])
    assert load() is not None
    assert len(list(cache.iterdir())) == 2


@needs_compiler
@pytest.mark.parametrize("place", ["writable by others", "a link", "a file", "no room"])
def test_where_others_may_write_nothing_is_kept_or_taken(cache, place):
    cache.parent.mkdir()
    if place == "writable by others":
        cache.mkdir()
        cache.chmod(0o777)
    elif place == "a link":
        (cache.parent / "other").mkdir()
        cache.symlink_to(cache.parent / "other")
    elif place == "a file":
        cache.touch()
    else:
        cache.parent.rmdir()
        cache.parent.touch()
    assert load() is not None
    assert not list(cache.parent.rglob("*.so"))


@needs_compiler
def test_what_somebody_else_owns_is_not_trusted(cache, monkeypatch):
    load()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    path = kernels._cache_path(kernels.Path(kernels.__file__), "cc", [])
    assert path is None


BAD_COMPILERS = {
    "writes nothing": "exit 0",
    "writes garbage": 'echo garbage > "$output"',
    "writes an empty file": ': > "$output"',
    "fails": "echo no such flag >&2; exit 1",
    "makes another library": 'echo "int x;" | "$REAL_CC" -shared -xc - -o "$output"',
}


@needs_compiler
@pytest.mark.parametrize("build", BAD_COMPILERS.values(), ids=BAD_COMPILERS)
def test_a_compiler_that_does_not_work_costs_one_line(cache, compiler, caplog, build):
    compiler(build)
    assert load() is None
    (line,) = (record.getMessage() for record in caplog.records)
    assert "without the fast kernels" in line and "\n" not in line


@needs_compiler
def test_libraries_that_may_not_run_cost_one_line(cache, caplog, monkeypatch):
    def refuse(path):
        raise OSError(f"{path}: failed to map segment from shared object")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert load() is None
    (line,) = (record.getMessage() for record in caplog.records)
    assert "failed to map segment" in line


@needs_compiler
@pytest.mark.parametrize("noexec", ["both", "temporary", "cache"])
def test_folders_that_nothing_runs_from(tmp_path, noexec):
    """On a mount with `noexec`, in a name space of its own."""
    mounted, plain = tmp_path / "mounted", tmp_path / "plain"
    mounted.mkdir(), plain.mkdir()
    mount = f"mount -t tmpfs -o noexec tmpfs {mounted}"
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*inside, mount], capture_output=True).returncode
    ):
        pytest.skip("no mounts in a name space of one's own here")
    folders = {"TMPDIR": plain, "XDG_CACHE_HOME": plain / "cache"}
    if noexec != "cache":
        folders["TMPDIR"] = mounted
    if noexec != "temporary":
        folders["XDG_CACHE_HOME"] = mounted
    environment = {**os.environ, **{key: str(path) for key, path in folders.items()}}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    ran = subprocess.run(
        [*inside, f'{mount} && exec "$0" -c "$1"', sys.executable, LOAD],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["plain" if noexec == "both" else "loaded"]
    lines = [line for line in ran.stderr.splitlines() if "fast kernels" in line]
    assert len(lines) == (noexec == "both")
    assert "Traceback" not in ran.stderr


def test_they_can_be_turned_off(cache, caplog, monkeypatch):
    monkeypatch.setenv("TSE_NO_KERNELS", "1")
    assert load() is None
    assert not cache.exists() and not caplog.records
