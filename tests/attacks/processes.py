"""Commands in processes of their own, to be killed or left without space."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch

# For the server, see `Process`: what takes long to import.
import speechbrain_peer.data.prepare
import speechbrain_peer.evaluation.calibration
import speechbrain_peer.evaluation.reports
import speechbrain_peer.training.brain  # noqa: F401

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "recipes/LibriMix/train.py")
TSE = "speechbrain_peer.cli"
TIMEOUT = 300
# Names of what is there only while something is written.
TEMPORARY = ("unfinished", ".replaced", "+replaced")
# What tells of a clock, a process or a machine.
CHANGING = ("log.txt", "env.log", "train_log.txt", ".lock")

# Two epochs of four steps, each of which saves a checkpoint.
TINY = {
    "chunk_seconds": 0.5,
    "batch_size": 3,
    "valid_batch_size": 5,
    "n_epochs": 2,
    "num_workers": 0,
    "n_scoring_processes": 0,
    "n_examples": 1,
    "n_filters": 16,
    "channels": 8,
    "hidden_channels": 12,
    "n_blocks": 2,
    "n_repeats": 2,
    "ckpt_interval_minutes": 0,
    "ckpt_interval_steps": 1,
    "peers": "drawn",
}


def training(corpus, results, **overrides):
    """The arguments of a tiny training; it fills `run_folder(results)`."""
    settings = TINY | corpus._asdict() | {"results_folder": results} | overrides
    options = [f"--{name}={value}" for name, value in settings.items()]
    row = str(ROOT / "hparams/td_speakerbeam_pl.yaml")
    return [row, "--device=cpu", "--noprogressbar", *options]


def run_folder(results):
    """Where a training in `results` puts all but its data."""
    return Path(results, "td_speakerbeam_pl/1234")


class Process:
    """A command that runs in a process group of its own.

    It is forked from a server that has imported what takes long, and is otherwise what
    the shell starts: the main part of a script runs, and ends with its exit code.

    Arguments
    ---------
    *command : tuple
        Path of a script or name of a module, and its arguments.
    limit : int, optional
        Bytes that a file may have: one that grows beyond fails as on a full disk.
    """

    server = None

    def __init__(self, *command, limit=None):
        self.folder = tempfile.TemporaryDirectory()
        self.output = Path(self.folder.name, "output")
        arguments = ([*map(str, command)], self.output, limit)
        self.process = self._server().Process(target=_run, args=arguments)
        self.process.start()

    @classmethod
    def _server(cls):
        if cls.server is None:
            cls.server = multiprocessing.get_context("forkserver")
            cls.server.set_forkserver_preload([__name__])
            path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
            environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
            with mock.patch.dict(os.environ, environment):
                cls.server.Process(target=int).start()
        return cls.server

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.send(signal.SIGKILL)
        self.process.join()
        self.folder.cleanup()

    def wait(self, seconds=TIMEOUT):
        """The exit code, or minus the signal that ended it; None if it goes on."""
        self.process.join(seconds)
        return self.process.exitcode

    def send(self, sign):
        """Sends a signal to the process; SIGKILL to those that it has started, too."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.exitcode is None:
                os.kill(self.process.pid, sign)
            if sign == signal.SIGKILL:
                os.killpg(self.process.pid, sign)

    def text(self):
        """What it has printed, errors too."""
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""


def run(*command, limit=None):
    """Runs a command to its end; returns its exit code and what it has printed."""
    with Process(*command, limit=limit) as process:
        code = process.wait()
        assert code is not None, f"hangs: {command}\n{process.text()}"
        return code, process.text()


def succeed(*command):
    """Runs a command that has to succeed; returns the seconds it took."""
    started = time.monotonic()
    code, text = run(*command)
    assert code == 0, text
    return time.monotonic() - started


def strike(sign, seconds, *command):
    """Sends a signal to a command some time after its start.

    Returns
    -------
    bool
        Whether that ended it; False where it had come to its own end before.
    """
    with Process(*command) as process:
        if process.wait(seconds) is None:
            process.send(sign)
        code = process.wait()
        assert code is not None, f"{sign!r} does not end it: {process.text()}"
        # What comes of Ctrl+C is up to the command.
        ends = (0, -sign, 128 + sign)
        assert code in ends or sign == signal.SIGINT, process.text()
        return code != 0


def tree(folder):
    """What is in the files below a folder, by name, without checkpoints."""
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name not in CHANGING and "save" not in path.parts
    }


def temporary_files(folder):
    """What should have been removed."""
    return [
        path
        for path in Path(folder).rglob("*")
        if any(part in path.name for part in TEMPORARY)
    ]


def _content(path):
    """Comparable: zip files, as weights are in, tell when they were made."""
    if path.name == "weights.ckpt":
        weights = torch.load(path, weights_only=True)
        return {name: weight.tolist() for name, weight in weights.items()}
    if path.name == "curves.csv":
        rows = [line.split(",") for line in path.read_text().splitlines()]
        clock = rows[0].index("seconds")
        return [row[:clock] + row[clock + 1 :] for row in rows]
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.name == "hyperparams.yaml":
        return path.read_text().partition("\n")[2]  # the first line has the date
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(command, output, limit):
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = command
    if command[0].endswith(".py"):
        runpy.run_path(command[0], run_name="__main__")
    else:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
