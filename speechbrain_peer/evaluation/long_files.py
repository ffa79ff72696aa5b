"""What cutting a long recording into chunks costs."""

import io
from collections import defaultdict

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_peer.evaluation.metrics import si_sdr
from speechbrain_peer.evaluation.trial_scores import extract_trial, score_estimate
from speechbrain_peer.evaluation.trials import Trial
from speechbrain_peer.inference.chunks import extract_chunks
from speechbrain_peer.inference.estimates import Estimate

SECONDS = 60


def join_trials(trials, seconds, sample_rate):
    """Joins mixtures with one target speaker to recordings of a given length.

    Arguments
    ---------
    trials : list of Trial
        Those of one target and with as many interferers are joined.
    seconds : float
        Length of a recording; what is left over is left out.
    sample_rate : int
        Hz.

    Returns
    -------
    list of Trial
        With the enrollment of their first one.
    """
    of_speaker = defaultdict(list)
    for trial in trials:
        of_speaker[trial.speakers[0], len(trial.interferers)].append(trial)
    length, recordings = round(seconds * sample_rate), []
    for (speaker, _), parts in of_speaker.items():
        tracks = [
            np.concatenate([signals[k] for signals in map(_tracks, parts)])
            for k in range(len(_tracks(parts[0])))
        ]
        for start in range(0, len(tracks[0]) - length + 1, length):
            target, noise, *interferers = (x[start : start + length] for x in tracks)
            recordings.append(
                Trial(
                    id=f"{speaker}, {start / sample_rate:.0f} s",
                    speakers=(speaker,),
                    target=target,
                    interferers=tuple(interferers),
                    noise=noise,
                    enrollment=parts[0].enrollment,
                )
            )
    return recordings


def compare_chunks(model, recordings):
    """Extracts from recordings in chunks and in one piece.

    Arguments
    ---------
    model : speechbrain_peer.inference.interface.TargetSpeechExtraction
        A model of the recordings' sample rate.
    recordings : list of Trial
        What `join_trials` returns.

    Returns
    -------
    list of dict
        `whole` and `chunks`: SI-SDR to the target; `agreement`: of the one to the
        other (dB).
    """
    scores = []
    for trial in tqdm(recordings, desc="whole and in chunks", leave=False):
        embedding, whole = extract_trial(model, trial)
        whole = whole[0].cpu().numpy()
        chunks = _in_chunks(model, trial.mixture, embedding)
        scores.append(
            {
                "whole": score_estimate(whole, trial)["si_sdr"],
                "chunks": score_estimate(chunks, trial)["si_sdr"],
                "agreement": si_sdr(chunks, whole),
            }
        )
    return scores


def _tracks(trial):
    return (trial.target, trial.noise, *trial.interferers)


@torch.no_grad()
def _in_chunks(model, mixture, embedding):
    rate = model.hparams.sample_rate
    estimate = Estimate(io.BytesIO(), 1, rate, model.level)
    for pieces in extract_chunks(
        model.mods, [mixture[:, None]], embedding, len(mixture), rate, channels=1
    ):
        estimate.append(*pieces)
    return np.concatenate(list(estimate.blocks()))[:, 0]
