"""Speech from eSpeak NG, through the C library that `espeakng-loader` brings.

eSpeak NG is GPL-3: it belongs to the optional extra ``[demo]`` and is loaded only when
`open_espeak` is called.
"""

import ctypes
import importlib
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

# Constants of eSpeak NG's speak_lib.h.
OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
PARAMETER_RATE, PARAMETER_VOLUME, PARAMETER_PITCH = 1, 2, 3
POSITION_CHARACTER = 1
CHARACTERS_UTF8 = 1
SYNTH_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)

# The default, 100, clips the louder voices.
VOLUME = 20


@contextmanager
def open_espeak(seed):
    """Opens a speech synthesizer whose output depends on nothing but its calls.

    Arguments
    ---------
    seed : int
        Seed of the noise in breathy voices.

    Yields
    ------
    Espeak
        The synthesizer; not for use in several threads.

    Raises
    ------
    ImportError
        If `espeakng-loader` is not installed.
    RuntimeError
        If the library cannot be loaded or started.
    """
    loader = _import_loader()
    with TemporaryDirectory() as folder:
        # What eSpeak NG says depends on what it said before. A copy of the library
        # is loaded afresh, so every corpus starts from the same state.
        try:
            library = ctypes.CDLL(shutil.copy(loader.get_library_path(), folder))
        except OSError as error:
            raise RuntimeError(
                f"eSpeak NG cannot be loaded from {folder} ({error}): set TMPDIR to a "
                "folder from which programs may run"
            ) from error
        # It cuts off data paths of more than about 150 characters.
        data = Path(folder) / "espeak-ng-data"
        data.symlink_to(loader.get_data_path())
        rate = library.espeak_Initialize(
            OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), INITIALIZE_DONT_EXIT
        )
        if rate <= 0:
            raise RuntimeError(f"eSpeak NG does not start with its data in {data}")
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        try:
            yield Espeak(library, rate)
        finally:
            library.espeak_Terminate()


class Espeak:
    """A started eSpeak NG library; made by `open_espeak`.

    Arguments
    ---------
    library : ctypes.CDLL
        The library, initialized for synchronous output.
    rate : int
        Its sample rate in Hz.
    """

    def __init__(self, library, rate):
        self.rate = rate
        self._library = library
        self._chunks = []
        # The library keeps a bare pointer: the callback must live as long as it does.
        self._callback = SYNTH_CALLBACK(self._collect)
        library.espeak_SetSynthCallback(self._callback)

    def speak(self, text, voice, words_per_minute, pitch):
        """Speaks a text.

        Arguments
        ---------
        text : str
            What to say.
        voice : str
            Language and variant, such as ``en-us+f3``.
        words_per_minute : int
            Speaking rate.
        pitch : int
            0 to 99; 50 is the voice's own pitch.

        Returns
        -------
        np.ndarray
            Waveform (time,), float32 within -1 and 1, at `rate`.

        Raises
        ------
        RuntimeError
            If there is no such voice or the synthesis fails.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"eSpeak NG has no voice {voice}")
        # A new voice resets the parameters.
        self._library.espeak_SetParameter(PARAMETER_VOLUME, VOLUME, 0)
        self._library.espeak_SetParameter(PARAMETER_RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(PARAMETER_PITCH, pitch, 0)
        self._chunks.clear()
        encoded = text.encode()
        status = self._library.espeak_Synth(
            encoded,
            ctypes.c_size_t(len(encoded) + 1),
            0,
            POSITION_CHARACTER,
            0,
            CHARACTERS_UTF8,
            None,
            None,
        )
        if status != 0:
            raise RuntimeError(f"eSpeak NG failed ({status}) on {text!r} as {voice}")
        samples = np.frombuffer(b"".join(self._chunks), dtype=np.int16)
        return samples.astype(np.float32) / 32768

    def _collect(self, samples, n_samples, events):
        if samples:
            self._chunks.append(ctypes.string_at(samples, 2 * n_samples))
        return 0  # go on


def _import_loader():
    """The package that brings the library, of the optional extra ``[demo]``."""
    try:
        return importlib.import_module("espeakng_loader")
    except ImportError as error:
        raise ImportError(
            "espeakng_loader is not installed, and the demo corpus needs it: "
            'pip install "speechbrain-peer[demo]"'
        ) from error
