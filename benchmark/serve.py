"""How many live streams a server holds, and how late their samples are.

    python -m benchmark.serve MODEL --streams 1 2 4 8 --seconds 20

starts `tse serve` on this computer, on as many cores as `--threads` says, and lets so
many clients stream noise to it at once, each a block every few milliseconds as a
microphone does. The time from when a block is sent until the last of the samples that
it completes are back is counted for every block. One stream more than the server has
sessions for is tried, too: it has to be refused. The clients compute as well: give them
another core, with `taskset` around the command and `--server_cores` for the server.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import time
import urllib.request

import numpy as np
import soundfile

from speechbrain_peer.packaging.loading import load_model
from speechbrain_peer.utils.files import DataError

PERCENTILES = (50, 95, 99)
WARM_UP = 1.0  # seconds that do not count
PATIENCE = 120  # seconds for the server to load the model


@contextlib.contextmanager
def serving(model, sessions, threads, port, cores):
    """Runs `tse serve` while the context lasts; gives its address."""
    command = [sys.executable, "-m", "speechbrain_peer.cli", "serve", "-m", model]
    command += ["--port", str(port), "--sessions", str(sessions)]
    command += ["--threads", str(threads), "--precision", "fp32"]
    if cores is not None:
        command = ["taskset", "-c", cores, *command]
    environment = {key: os.environ[key] for key in os.environ if key != "TSE_TOKEN"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        address = f"127.0.0.1:{port}"
        try:
            _wait_for(process, address)
            yield address
        finally:
            process.terminate()
            process.communicate()


def _wait_for(process, address):
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if process.poll() is not None:
            said = process.stderr.read().decode(errors="replace").splitlines()
            raise DataError(said[-1] if said else "the server ended")
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://{address}/", timeout=5).read()
        time.sleep(0.2)
    raise DataError(f"the server did not answer within {PATIENCE} s")


def enroll(address, rate):
    """Makes a voice of noise on the server; returns its name."""
    samples = np.random.default_rng(0).standard_normal(3 * rate) / 10
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    url = f"http://{address}/voices"
    request = urllib.request.Request(url, file.getvalue(), method="POST")
    with urllib.request.urlopen(request) as response:
        return json.load(response)["voice"]


async def stream(url, rate, block, seconds, seed):
    """One client.

    Arguments
    ---------
    url : str
        Of the WebSocket.
    rate : int
        In Hz.
    block : int
        Samples of a message.
    seconds : float
        How long, without the warm-up.
    seed : int
        Of the noise, and of when in a block's time it begins.

    Returns
    -------
    list of float or None
        Seconds from a block to its samples, for every block; None if it was refused.
    """
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed

    rng, period = np.random.default_rng(seed), block / rate
    noise = (3000 * rng.standard_normal(block)).astype("<i2").tobytes()
    sent, late = [], []
    try:
        async with connect(url, max_size=None) as socket:
            await socket.recv()  # the latency
            await asyncio.sleep(period * rng.random())
            n_blocks = round((seconds + WARM_UP) / period)

            async def send():
                begun = time.perf_counter()
                for index in range(n_blocks):
                    due = begun + index * period
                    await asyncio.sleep(max(0, due - time.perf_counter()))
                    sent.append(due)
                    await socket.send(noise)

            sending = asyncio.create_task(send())
            while len(late) < n_blocks:
                message = await socket.recv()
                # Every block is answered by one message, besides text.
                if isinstance(message, bytes):
                    late.append(time.perf_counter() - sent[len(late)])
            await sending
    except ConnectionClosed:
        return None
    return late[round(WARM_UP / period) :]


async def stream_many(url, count, *settings):
    """So many clients at once."""
    clients = (stream(url, *settings, seed) for seed in range(count))
    return await asyncio.gather(*clients)


def row(results, period):
    """A row of the table: what the clients of one round have seen."""
    count = len(results)
    taken = [late for late in results if late is not None]
    if not taken:
        return f"| {count} | {count} | " + " | ".join("-" * 4) + " |"
    late = np.concatenate(taken)
    cells = [f"{1000 * x:.1f}" for x in np.percentile(late, PERCENTILES)]
    in_time = np.mean(late <= period)
    cells.append(f"{100 * in_time:.2f}")
    return f"| {count} | {count - len(taken)} | " + " | ".join(cells) + " |"


def main(arguments=None):
    """Measures round after round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", help="folder of a causal model")
    add("--streams", type=int, nargs="+", default=[1, 2, 4, 8], help="at once, in turn")
    add("--seconds", type=float, default=20.0, help="of a round")
    add("--block", type=float, default=20.0, help="milliseconds of a message")
    add("--threads", type=int, default=1, help="of the server")
    add("--port", type=int, default=18766)
    add("--server_cores", help="such as 1, for taskset")
    options = parser.parse_args(arguments)
    try:
        measure(options)
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")


def measure(options):
    """Prints the table."""
    _, hparams = load_model(options.model)
    rate = hparams["sample_rate"]
    block = round(rate * options.block / 1000)
    sessions = max(options.streams)
    print(f"blocks of {options.block:g} ms at {rate} Hz, {options.threads} thread(s)\n")
    names = [f"p{percentile} (ms)" for percentile in PERCENTILES]
    print("| streams | refused | " + " | ".join(names) + " | in time (%) |")
    print("|---:" * 6 + "|")
    server = (options.model, sessions, options.threads, options.port)
    with serving(*server, options.server_cores) as address:
        url = f"ws://{address}/live?voice={enroll(address, rate)}&rate={rate}"
        for count in [*options.streams, sessions + 1]:
            settings = (rate, block, options.seconds)
            results = asyncio.run(stream_many(url, count, *settings))
            print(row(results, block / rate), flush=True)


if __name__ == "__main__":
    main()
