"""What tests score: SI-SDR, SDR, PESQ, STOI, level and the wrong speaker.

Every metric is higher-is-better, and NaN where it has no value for an item
(a silent output, no speech for PESQ, too short for STOI): one odd item must
not end a test of thousands. A silent output is neither right nor the wrong
speaker: `judge` tells, here and wherever outputs are sorted. The signals are
NumPy arrays and nothing here needs torch, so that a scoring process starts fast.
"""

import math
import warnings

import numpy as np
import pystoi

# Its front door fails where torch is missing.
from fast_bss_eval import numpy as bss_eval

try:
    import pesq
except ImportError:
    pesq = None

METRICS = ("si_sdr", "sdr", "pesq", "stoi")

# A perfect estimate has an infinite ratio, which no mean survives.
_LIMIT_DB = 100.0
_SDR_FILTER = 512
_PESQ_MODES = {8000: "nb", 16000: "wb"}
# The C code of PESQ has room for 50 utterances and crashes beyond them.
_PESQ_MAX_SECONDS = 60


def score_item(estimate, target, mixture, interferers, sample_rate):
    """Scores one extracted utterance and, if given, its mixture.

    Arguments
    ---------
    estimate : np.ndarray
        The extracted speech, already scaled, (time,).
    target : np.ndarray
        The clean speech of the wanted talker, (time,).
    mixture : np.ndarray or None
        What the model heard, (time,).
    interferers : sequence of np.ndarray
        The clean speech of the other talkers, each (time,).
    sample_rate : int
        In Hz. PESQ is narrow band at 8000 and wide band at 16000, and has no
        value at other rates.

    Returns
    -------
    dict
        `si_sdr`, `sdr` (dB), `pesq`, `stoi` of the estimate, `wrong_speaker` and
        `silent`, as `judge` tells; with a mixture, the same metrics of it, named
        `mixture_si_sdr` and so on, and the improvements `si_sdri` and `sdri` (dB).

    Raises
    ------
    ValueError
        If the signals are not one-dimensional and of one length.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> target, interferer = rng.standard_normal((2, 8000))
    >>> mixture = target + interferer
    >>> estimate = target + 0.1 * interferer
    >>> scores = score_item(estimate, target, mixture, [interferer], 8000)
    >>> round(scores["si_sdri"]), scores["wrong_speaker"]
    (20, False)
    """
    heard = [] if mixture is None else [mixture]
    signals = [np.asarray(x, float) for x in (target, estimate, *interferers, *heard)]
    if signals[0].ndim != 1 or len({x.shape for x in signals}) > 1:
        shapes = ", ".join(str(x.shape) for x in signals)
        raise ValueError(
            "Target, estimate, interferers and mixture must have one shape (time,), "
            f"not {shapes}. Cut padding off before scoring."
        )
    target, estimate, *interferers = signals[: 2 + len(interferers)]
    scores = _quality(estimate, target, sample_rate)
    judged = judge(estimate, target, interferers)
    if mixture is None:
        return {**scores, **judged}
    before = _quality(signals[-1], target, sample_rate)
    return {
        **scores,
        **{f"mixture_{name}": value for name, value in before.items()},
        "si_sdri": scores["si_sdr"] - before["si_sdr"],
        "sdri": scores["sdr"] - before["sdr"],
        **judged,
    }


def judge(estimate, target, interferers):
    """Tells the wrong speaker and silence; an output that is neither is right.

    An output is of the wrong speaker if its SI-SDR against an interferer is higher
    than against the target; against a silent target it is lower than any. An output
    is silent if it holds no signal at all, or one that is not finite; it has no SI-SDR.

    Arguments
    ---------
    estimate : np.ndarray
        (time,)
    target : np.ndarray
        (time,)
    interferers : sequence of np.ndarray
        Each (time,).

    Returns
    -------
    dict
        `wrong_speaker` and `silent`, of which at most one is True.

    Example
    -------
    >>> target, interferer = np.random.default_rng(0).standard_normal((2, 8000))
    >>> judge(interferer + 0.5 * target, target, [interferer])
    {'wrong_speaker': True, 'silent': False}
    >>> judge(0 * target, target, [interferer])
    {'wrong_speaker': False, 'silent': True}
    """
    wanted = si_sdr(estimate, target)
    others = [si_sdr(estimate, interferer) for interferer in interferers]
    if math.isnan(wanted):
        wanted = -math.inf
    return {
        "wrong_speaker": any(other > wanted for other in others),
        "silent": not _has_signal(estimate),
    }


def si_sdr(estimate, target):
    """Scale-invariant signal-to-distortion ratio of zero-mean signals, in dB.

    Arguments
    ---------
    estimate : np.ndarray
        (time,)
    target : np.ndarray
        (time,)

    Returns
    -------
    float
        Within 100 dB of zero; NaN if either signal is constant or not finite.

    Example
    -------
    >>> time = np.arange(8000) / 8000
    >>> target, noise = np.sin(2 * np.pi * np.outer([440, 1000], time))
    >>> round(si_sdr(5 * (target + 0.1 * noise), target), 3)
    20.0
    """
    if not (_has_signal(estimate) and _has_signal(target)):
        return math.nan
    ratio = bss_eval.si_sdr(
        _full_scale(target), _full_scale(estimate), zero_mean=True, clamp_db=_LIMIT_DB
    )
    return float(ratio[0])


def level_db(signal, reference):
    """Level of a signal against another, by their energies.

    Arguments
    ---------
    signal : np.ndarray
        (time,)
    reference : np.ndarray
        (time,)

    Returns
    -------
    float
        dB, within 100 of zero; -100 of a signal that is silent or not finite.

    Example
    -------
    >>> level_db(np.full(10, 0.01), np.ones(10)), level_db(np.zeros(10), np.ones(10))
    (-40.0, -100.0)
    """
    energy, of_reference = (
        float(np.square(x, dtype=float).sum()) for x in (signal, reference)
    )
    if not 0 < energy < math.inf:
        return -_LIMIT_DB
    if not of_reference:
        return _LIMIT_DB
    decibels = 10 * math.log10(energy / of_reference)
    return min(max(decibels, -_LIMIT_DB), _LIMIT_DB)


def why_no_pesq(sample_rate):
    """One sentence on why PESQ cannot be had here, None if it can.

    Arguments
    ---------
    sample_rate : int
        In Hz.

    Returns
    -------
    str or None
    """
    if sample_rate not in _PESQ_MODES:
        return f"PESQ is defined at 8000 and 16000 Hz, not at {sample_rate} Hz."
    if pesq is None:
        return (
            "The package pesq is not installed: it is published as source, so it "
            "needs a C compiler and `pip install pesq`."
        )
    return None


def _quality(estimate, target, sample_rate):
    """The four metrics of one signal, as a dict of floats."""
    if not (_has_signal(estimate) and _has_signal(target)):
        return dict.fromkeys(METRICS, math.nan)
    return {
        "si_sdr": si_sdr(estimate, target),
        "sdr": _sdr(estimate, target),
        "pesq": _pesq(estimate, target, sample_rate),
        "stoi": _stoi(estimate, target, sample_rate),
    }


def _sdr(estimate, target):
    # A filter as long as the signal explains everything.
    if target.size <= _SDR_FILTER:
        return math.nan
    try:
        ratio = bss_eval.sdr(
            _full_scale(target),
            _full_scale(estimate),
            filter_length=_SDR_FILTER,
            clamp_db=_LIMIT_DB,
        )
    except np.linalg.LinAlgError:
        return math.nan
    return float(ratio[0])


def _pesq(estimate, target, sample_rate):
    too_long = target.size > _PESQ_MAX_SECONDS * sample_rate
    if why_no_pesq(sample_rate) or too_long:
        return math.nan
    try:
        return float(pesq.pesq(sample_rate, target, estimate, _PESQ_MODES[sample_rate]))
    # It fails to round a NaN where the level is below what float32 holds.
    except (pesq.PesqError, ValueError):
        return math.nan


def _stoi(estimate, target, sample_rate):
    with warnings.catch_warnings():
        # pystoi warns and returns 1e-5 where too little speech is left.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(target, estimate, sample_rate))
        # Shorter than a frame, pystoi fails with an AxisError.
        except (RuntimeWarning, np.exceptions.AxisError):
            return math.nan


def _has_signal(signal):
    return signal.size > 0 and np.isfinite(signal).all() and np.ptp(signal) > 0


def _full_scale(signal):
    """To a peak of one, as fast_bss_eval takes very quiet signals for silence.

    In double precision: in single, it does not clamp the ratio of a perfect estimate.
    """
    return (signal.astype(float) / np.abs(signal).max())[np.newaxis]
