"""Where somebody talks in a recording: segments of speech, of 1 to 20 seconds.

The rule, on frames of 20 ms and their levels in dB:

- The peak is the highest level that is held for 0.1 s. The noise floor is the level
  that a tenth of the frames stay below, but taken as at most 45 dB below the peak.
- A frame is active if it is above the floor by more than a fifth of the way to the
  peak. Where the peak is not 10 dB above the floor, nothing stands out, and none is.
- Active stretches shorter than 0.06 s are clicks. Pauses up to 0.5 s are bridged, and
  0.1 s are added at both ends.
- What is longer than 20 s is cut at its quietest place, what is shorter than 1 s left.

Kept free of torch and SpeechBrain: every scanning process imports this file.
"""

import numpy as np
from scipy.ndimage import median_filter, uniform_filter1d

FRAME_SECONDS = 0.02
PEAK_SECONDS = 0.1
FLOOR_PERCENTILE = 10
LEAST_RANGE_DB, MOST_RANGE_DB = 10.0, 45.0  # from the floor to the peak
THRESHOLD_SHARE = 0.2
CLICK_SECONDS = 0.06
PAUSE_SECONDS = 0.5
MARGIN_SECONDS = 0.1
SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 20.0
QUIET_SECONDS = 0.2  # a place to cut at

RULE = (
    *(FRAME_SECONDS, PEAK_SECONDS, FLOOR_PERCENTILE, LEAST_RANGE_DB, MOST_RANGE_DB),
    *(THRESHOLD_SHARE, CLICK_SECONDS, PAUSE_SECONDS, MARGIN_SECONDS),
    *(SHORTEST_SECONDS, LONGEST_SECONDS, QUIET_SECONDS),
)
"""What segments depend on: kept results of another rule are not used."""


def frame_powers(samples, frame):
    """Mean squares of frames.

    Arguments
    ---------
    samples : np.ndarray
        (time,) or (time, channels); a last frame that is not full counts as the part
        that it is.
    frame : int
        Samples of one.

    Returns
    -------
    np.ndarray
        (frames,) or (frames, channels), float64.

    Example
    -------
    >>> frame_powers(np.array([1.0, 1.0, 2.0]), 2).tolist()
    [1.0, 4.0]
    """
    starts = np.arange(0, len(samples), frame)
    sums = np.add.reduceat(np.square(samples, dtype=np.float64), starts, axis=0)
    counts = np.diff(np.append(starts, len(samples)))
    return (sums.T / counts).T


def decibels(powers):
    """Levels below full scale; digital silence is -200 dB."""
    return 10 * np.log10(np.maximum(powers, 1e-20))


def active_frames(levels):
    """Tells by their energy in which frames somebody talks.

    Arguments
    ---------
    levels : np.ndarray
        In dB, (frames,), of the whole recording.

    Returns
    -------
    np.ndarray
        bool, (frames,).

    Example
    -------
    >>> levels = np.array([-60.0] * 50 + [-20.0] * 50)
    >>> active_frames(levels).tolist() == [False] * 50 + [True] * 50
    True
    """
    # A median over twice as long: half of it is at least as loud.
    peak = median_filter(levels, 2 * _frames(PEAK_SECONDS) + 1, mode="nearest").max()
    floor = max(np.percentile(levels, FLOOR_PERCENTILE), peak - MOST_RANGE_DB)
    if peak - floor < LEAST_RANGE_DB:
        return np.zeros(len(levels), bool)
    return levels > floor + THRESHOLD_SHARE * (peak - floor)


def speech_segments(active, levels):
    """Joins active frames to segments of speech.

    Arguments
    ---------
    active : np.ndarray
        bool, (frames,); see `active_frames`.
    levels : np.ndarray
        In dB, (frames,): long segments are cut where they are quiet.

    Returns
    -------
    segments : list of tuple
        First frame and the one after the last, in order, none overlapping.
    too_short : list of tuple
        What is left as it is shorter than `SHORTEST_SECONDS`, alike.

    Example
    -------
    >>> active = np.repeat([False, True, False, True, False], [50, 60, 20, 60, 50])
    >>> speech_segments(active, np.zeros(240))
    ([(45, 195)], [])
    """
    runs = [run for run in _runs(active) if run[1] - run[0] >= _frames(CLICK_SECONDS)]
    joined = []
    for start, end in runs:
        if joined and start - joined[-1][1] <= _frames(PAUSE_SECONDS):
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    margin = _frames(MARGIN_SECONDS)
    quiet = uniform_filter1d(levels, _frames(QUIET_SECONDS), mode="nearest")
    pieces = [
        piece
        for start, end in joined
        for piece in _cut(max(0, start - margin), min(len(active), end + margin), quiet)
    ]
    least = _frames(SHORTEST_SECONDS)
    long_enough = [piece for piece in pieces if piece[1] - piece[0] >= least]
    too_short = [piece for piece in pieces if piece[1] - piece[0] < least]
    return long_enough, too_short


def _cut(start, end, quiet):
    """Cuts a stretch into pieces that are not too long, at quiet frames."""
    longest, shortest = _frames(LONGEST_SECONDS), _frames(SHORTEST_SECONDS)
    while end - start > longest:
        first = start + longest // 2
        last = min(start + longest, end - shortest)
        place = first + int(np.argmin(quiet[first : last + 1]))
        yield start, place
        start = place
    yield start, end


def _runs(active):
    """First frame and the one after the last of every stretch of active frames."""
    edges = np.flatnonzero(np.diff(np.pad(active.astype(np.int8), 1)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _frames(seconds):
    return round(seconds / FRAME_SECONDS)
