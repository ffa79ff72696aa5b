"""Live extraction from a microphone to a loudspeaker, with meters in the terminal."""

import contextlib
import sys
import time

import numpy as np
import torch

from speechbrain_peer.inference.live import check_causal
from speechbrain_peer.inference.recordings import resample_blocks
from speechbrain_peer.inference.writing import record_blocks
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.messages import one_line

METER_PERIOD = 0.2  # seconds
LOWEST_DB = -60.0
"""Where meters begin."""
BARS = 12


def import_sounddevice():
    """Imports sounddevice.

    Returns
    -------
    module

    Raises
    ------
    ImportError
        If it, or the library that it calls, is not installed; the message tells how to
        install it.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise ImportError(
            'Audio devices need sounddevice, pip install "speechbrain-peer[live]", and '
            f"on Linux PortAudio (libportaudio2): {error}"
        ) from error
    return sounddevice


def extract_devices(model, options):
    """Extracts from one device to another until Ctrl+C is pressed.

    Arguments
    ---------
    model : speechbrain_peer.TargetSpeechExtraction
        What extracts.
    options : argparse.Namespace
        The command's.

    Raises
    ------
    DataError
        If a device is not there or cannot be used in this way.
    """
    sounddevice = import_sounddevice()
    try:
        _extract(sounddevice, model, options)
    except sounddevice.PortAudioError as error:
        raise DataError(f"{one_line(str(error))}; see --list-devices") from error


def _extract(sounddevice, model, options):
    check_causal(model.mods)  # before anybody speaks in vain
    devices = _device(options.input), _device(options.output)
    rate = options.rate
    if rate is None:
        rate = round(
            sounddevice.query_devices(devices[0], "input")["default_samplerate"]
        )
    if options.enroll:
        voice = record_voice(sounddevice, model, devices[0], rate, options.enroll)
    else:
        voice = model.encode_speaker_files(options.enrollment)
    block = max(1, round(rate * options.block / 1000))
    stream = model.stream(voice=voice, rate=rate, block=block)
    # A block is heard while the one before is played.
    late = 1000 * (stream.latency + 2 * block) / rate
    print(
        f"tse: {rate} Hz, {late:.1f} ms late, besides what the devices need; Ctrl+C "
        "ends it",
        file=sys.stderr,
    )
    meters = Meters(rate, model.tells_presence)
    with contextlib.ExitStack() as stack:
        record = None
        if options.record:
            record = stack.enter_context(record_blocks(options.record, rate, 1))
        audio = sounddevice.Stream(
            samplerate=rate,
            blocksize=block,
            device=devices,
            channels=1,
            dtype="float32",
            latency=2 * block / rate,
        )
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        stack.enter_context(meters)
        stack.enter_context(audio)
        # What is played while the first block is heard.
        audio.write(np.zeros((block, 1), np.float32))
        while True:
            samples, overflowed = audio.read(block)
            started = time.perf_counter()
            output = stream.push(samples[:, 0].copy()).numpy()[:, None]
            seconds = time.perf_counter() - started
            underflowed = audio.write(output.clip(-1, 1))
            if record is not None:
                record(output)
            meters.add(samples, output, seconds, overflowed, underflowed)
            meters.show(stream.presence)


def record_voice(sounddevice, model, device, rate, seconds):
    """Lets a person enroll.

    Arguments
    ---------
    sounddevice : module
    model : speechbrain_peer.TargetSpeechExtraction
        What embeds.
    device : int, str or None
        The microphone.
    rate : int
        In Hz.
    seconds : float
        How long.

    Returns
    -------
    torch.Tensor or Frames
        The voice.
    """
    print(f"tse: speak now, alone, for {seconds:g} s", file=sys.stderr, flush=True)
    with sounddevice.InputStream(
        samplerate=rate, device=device, channels=1, dtype="float32"
    ) as audio:
        samples, _ = audio.read(round(seconds * rate))
    print("tse: thank you", file=sys.stderr, flush=True)
    blocks = resample_blocks([samples], rate, model.hparams.sample_rate)
    return model.encode_speaker(torch.from_numpy(np.concatenate(list(blocks)).T))


class Meters:
    """Levels, presence, load and under-runs: a line in the terminal, and a last word.

    Arguments
    ---------
    rate : int
        Of the samples, in Hz.
    tells_presence : bool
        Whether the model does.
    """

    def __init__(self, rate, tells_presence):
        self.rate, self.tells_presence = rate, tells_presence
        self.shows = sys.stderr.isatty()
        self.blocks = self.lost = self.missing = 0
        self.seconds = self.computing = self.longest = 0.0
        self._start()

    def _start(self):
        self._energies, self._samples, self._computing = np.zeros(2), 0, 0.0

    def __enter__(self):
        return self

    def add(self, samples, output, seconds, overflowed, underflowed):
        """Counts a block, (samples, 1), and how long its extraction took."""
        energies = [np.square(x, dtype=np.float64).sum() for x in (samples, output)]
        self._energies += energies
        self._samples += len(samples)
        self._computing += seconds
        self.blocks += 1
        self.seconds += len(samples) / self.rate
        self.computing += seconds
        self.longest = max(self.longest, seconds)
        self.lost += bool(overflowed)
        self.missing += bool(underflowed)

    def show(self, presence):
        """Draws the line, several times a second, where there is a terminal."""
        if not self.shows or self._samples < METER_PERIOD * self.rate:
            return
        levels = meter_levels(self._energies, self._samples)
        line = "  ".join(
            f"{name} {bar(level)} {level:4.0f} dB"
            for name, level in zip(("in", "out"), levels, strict=True)
        )
        if self.tells_presence:
            line += f"  {'present' if presence.any() else '-':7}"
        line += f"  load {self._computing * self.rate / self._samples:4.0%}"
        line += f"  under-runs {self.lost + self.missing}"
        print(f"\r{line}", end="", file=sys.stderr, flush=True)
        self._start()

    def __exit__(self, *error):
        """Tells how it went."""
        if self.shows:
            print(file=sys.stderr)
        if not self.blocks:
            return
        load = self.computing / self.seconds
        print(
            f"tse: {self.seconds:.1f} s, load {load:.0%}, slowest block "
            f"{1000 * self.longest:.1f} ms",
            file=sys.stderr,
        )
        if self.lost or self.missing:
            print(
                f"tse: under-runs: {self.lost} times input was lost, {self.missing} "
                "times there was nothing to play; a larger --block or a smaller model "
                "helps",
                file=sys.stderr,
            )


def meter_levels(energies, samples):
    """Levels in dB below full scale, of an energy each; `LOWEST_DB` at least.

    Example
    -------
    >>> meter_levels(np.array([25.0, 0.0]), samples=100).round(1).tolist()
    [-6.0, -60.0]
    """
    power = np.maximum(energies / samples, 10 ** (LOWEST_DB / 10))
    return 10 * np.log10(power)


def bar(level):
    """A level as a bar.

    Example
    -------
    >>> bar(-30.0)
    '######......'
    """
    full = round(BARS * (1 - level / LOWEST_DB))
    full = min(max(full, 0), BARS)
    return "#" * full + "." * (BARS - full)


def _device(text):
    """A device's number or name."""
    return int(text) if text is not None and text.isdigit() else text
