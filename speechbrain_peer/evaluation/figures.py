"""Figures: spectrograms of a run's examples and of an extraction, training curves.

They are drawn on `matplotlib.figure.Figure`, which needs no display and leaves
pyplot's global state alone.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann

from speechbrain_peer.evaluation.metrics import si_sdr

_WINDOW_SECONDS, _HOP_SECONDS = 0.032, 0.008
_DYNAMIC_RANGE_DB = 70
# A mixture below it is silent, and drawn dark.
_SILENCE_DB = -100

BRANCHES = (
    ("better_mask", "mask, better peer", "C0", "-"),
    ("worse_mask", "mask, worse peer", "C0", "--"),
    ("better_predictor", "p, better peer", "C1", "-"),
    ("worse_predictor", "p, worse peer", "C1", "--"),
    ("refined", "r, both peers", "C2", "-"),
    ("valid_si_snr", "mask, validation", "black", "-"),
)
_LOSSES = (
    ("train_loss", "training", "C0", "-"),
    ("valid_loss", "validation", "black", "-"),
)


def spectrogram_figure(examples, sample_rate):
    """Draws one row for each item: mixture, target and estimate.

    Arguments
    ---------
    examples : dict
        For each item's ID a dict of the signals `mixture`, `target` and
        `estimate`, each (time,).
    sample_rate : int
        In Hz.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(figsize=(12, 2.6 * len(examples)), dpi=120, layout="constrained")
    rows = figure.subfigures(len(examples), squeeze=False)[:, 0]
    for row, (item_id, signals) in zip(rows, examples.items(), strict=True):
        row.suptitle(item_id, fontsize="medium", fontweight="bold")
        titled = {
            _title(kind, signals): signals[kind]
            for kind in ("mixture", "target", "estimate")
        }
        _draw_row(row, titled, sample_rate)
    return figure


def extraction_figure(mixture, estimate, sample_rate):
    """Draws a mixture and what is extracted from it.

    Arguments
    ---------
    mixture : np.ndarray
        (time,).
    estimate : np.ndarray
        (time,).
    sample_rate : int
        In Hz.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(figsize=(10, 3.2), dpi=150, layout="constrained")
    _draw_row(figure, {"mixture": mixture, "extracted": estimate}, sample_rate)
    return figure


def curves_figure(rows):
    """Draws SI-SNR of the peers, and losses with the branches' agreement.

    Arguments
    ---------
    rows : list of dict
        One for each epoch; columns that no row has a value for are left out.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(figsize=(12, 5), dpi=120, layout="constrained")
    peers, losses = figure.subplots(1, 2)
    draw_columns(peers, rows, BRANCHES)
    peers.set(title="Training items, mean over an epoch", ylabel="SI-SNR (dB)")
    draw_columns(losses, rows, _LOSSES)
    losses.set(title="Loss and agreement", ylabel="loss (lower is better)")
    _draw_agreement(losses, rows)
    return figure


def draw_columns(panel, rows, columns, along="epoch"):
    """Draws columns over the epochs, but those without a value.

    Arguments
    ---------
    panel : matplotlib.axes.Axes
    rows : list of dict
        One for each epoch, as in `curves_figure`.
    columns : iterable of tuple
        Name, label, color and line style of each, such as `BRANCHES`.
    along : str
        The column to draw them over, `epoch` or `step`.
    """
    for name, label, color, style in columns:
        values = _column(rows, name)
        if not np.isnan(values).all():
            places = _column(rows, along)
            panel.plot(places, values, style, color=color, label=label, marker=".")
    panel.set_xlabel(along)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel.grid(alpha=0.3)
    if panel.lines:
        # Below the panel, where no curve can run into it.
        panel.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize="small"
        )


def _draw_row(row, signals, sample_rate):
    """Draws signals by their titles; levels are below the first one's peak."""
    spectrograms = [_decibels(signal, sample_rate) for signal in signals.values()]
    full_level = max(spectrograms[0].max(), _SILENCE_DB)
    panels = row.subplots(1, len(signals), sharex=True, sharey=True)
    for panel, decibels, (title, signal) in zip(
        panels, spectrograms, signals.items(), strict=True
    ):
        image = panel.imshow(
            decibels - full_level,
            vmin=-_DYNAMIC_RANGE_DB,
            vmax=0,
            cmap="magma",
            origin="lower",
            aspect="auto",
            extent=(0, signal.size / sample_rate, 0, sample_rate / 2000),
        )
        panel.set(title=title, xlabel="time (s)")
    panels[0].set_ylabel("frequency (kHz)")
    row.colorbar(image, ax=panels, label="level (dB)", pad=0.01)


def _title(kind, signals):
    if kind == "target":
        return kind
    ratio = si_sdr(signals[kind], signals["target"])
    return f"{kind}, " + ("no SI-SDR" if np.isnan(ratio) else f"SI-SDR {ratio:.1f} dB")


def _decibels(signal, sample_rate):
    """Spectrogram (frequencies, frames) in dB; silence is -200 dB."""
    stft = ShortTimeFFT(
        hann(round(_WINDOW_SECONDS * sample_rate), sym=False),
        hop=round(_HOP_SECONDS * sample_rate),
        fs=sample_rate,
    )
    # The transform needs at least half a window.
    missing = max(0, stft.m_num - signal.size)
    magnitude = np.abs(stft.stft(np.pad(np.asarray(signal, float), (0, missing))))
    return 20 * np.log10(np.maximum(magnitude, 1e-10))


def _draw_agreement(panel, rows):
    agreement = 100 * _column(rows, "agreement")
    if np.isnan(agreement).all():
        return
    percent = panel.twinx()
    percent.plot(_column(rows, "epoch"), agreement, ":", color="C3", marker=".")
    percent.set_ylim(0, 100)
    percent.set_ylabel("both branches prefer the same peer (%)", color="C3")
    percent.tick_params(axis="y", colors="C3")


def _column(rows, name):
    """Values of one column (epochs,); NaN where it is blank."""
    cells = (row.get(name) for row in rows)
    return np.array([np.nan if cell in (None, "") else float(cell) for cell in cells])
