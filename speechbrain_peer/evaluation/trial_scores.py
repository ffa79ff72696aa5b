"""Scores of a model on trials."""

import math

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_peer.evaluation.metrics import judge, level_db, si_sdr


def score_trials(model, trials, title, judge=None):
    """Extracts from every trial and scores it.

    Arguments
    ---------
    model : speechbrain_peer.inference.interface.TargetSpeechExtraction
        A model of the trials' sample rate.
    trials : list of Trial
        See `speechbrain_peer.evaluation.trials`.
    title : str
        The title of the progress bar.
    judge : speechbrain_peer.inference.judges.Judge, optional
        With whom the model has been calibrated.

    Returns
    -------
    list of dict
        What `score_estimate` tells, `match`, which is NaN where the model tells no
        match score, and `judge`, the judge's, which is NaN without one.
    """
    scores = []
    for trial in tqdm(trials, desc=title, leave=False):
        embedding, estimate = extract_trial(model, trial)
        match = judged = math.nan
        if model.tells_match:
            match = model.match_score(estimate, embedding).item()
        if judge is not None:
            judged = enroll(judge, trial, model).match(
                model, estimate[0], torch.from_numpy(trial.mixture)
            )
        scores.append(
            {
                **score_estimate(estimate[0].cpu().numpy(), trial),
                "match": match,
                "judge": judged,
            }
        )
    return scores


def extract_trial(model, trial):
    """Embeds a trial's enrollment and extracts.

    Arguments
    ---------
    model : speechbrain_peer.inference.interface.TargetSpeechExtraction
        A model of the trial's sample rate.
    trial : Trial

    Returns
    -------
    embedding : torch.Tensor or Frames
        The voice, of (1, ...).
    estimate : torch.Tensor
        (1, time).
    """
    mixture, enrollment = (
        torch.from_numpy(signal)[None] for signal in (trial.mixture, trial.enrollment)
    )
    embedding = model.encode_speaker(enrollment)
    return embedding, model.extract_batch(mixture, embeddings=embedding)


def enroll(judge, trial, model):
    """Tells a judge whom a trial is to extract.

    Arguments
    ---------
    judge : speechbrain_peer.inference.judges.Judge
    trial : Trial
    model : speechbrain_peer.inference.interface.TargetSpeechExtraction
        Of the trial's sample rate.

    Returns
    -------
    speechbrain_peer.inference.judges.EnrolledJudge
    """
    enrollment = torch.from_numpy(trial.enrollment)[None]
    return judge.enroll(enrollment, model.hparams.sample_rate)


def score_estimate(estimate, trial):
    """SI-SDR and its improvement (dB, NaN for a silent estimate), whose it is, levels.

    Arguments
    ---------
    estimate : np.ndarray
        (time,).
    trial : Trial
        What it was extracted from.

    Returns
    -------
    dict
        `si_sdr`, `si_sdri`, `wrong_speaker` and `silent`, see `metrics.judge`; `level`
        against the mixture and `target_level` against the target (dB).
    """
    ours = si_sdr(estimate, trial.target)
    return {
        "si_sdr": ours,
        "si_sdri": ours - si_sdr(trial.mixture, trial.target),
        **judge(estimate, trial.target, trial.interferers),
        "level": level_db(estimate, trial.mixture),
        "target_level": level_db(estimate, trial.target),
    }


def is_right(score):
    """Whether an estimate is of the enrolled talker: not silent, nor somebody else.

    Arguments
    ---------
    score : dict
        What `score_estimate` returns for a trial whose target talks.

    Returns
    -------
    bool
    """
    return not (score["silent"] or score["wrong_speaker"])


def error_rates(present, absent, threshold=0.5, name="match"):
    """How often a match score is wrong.

    Arguments
    ---------
    present : list of dict
        Scores of trials whose target talks.
    absent : list of dict
        The scores of trials with somebody else's enrollment.
    threshold : float
        Below it an estimate is taken for none of the talker.
    name : str
        Of the score: `match`, the model's own, or `judge`.

    Returns
    -------
    dict
        Shares of: `missed`, right estimates below the threshold; `wrong_speaker`,
        estimates of an interferer above it; `absent`, the same of an absent target;
        `equal_error`, where the threshold is chosen so that right estimates and all
        others are as often wrong; `rights` and `wrongs`, how many were extracted;
        `threshold`. A silent estimate is none of these. A share of no estimates is
        None.

    Example
    -------
    >>> right = {"match": 0.9, "wrong_speaker": False, "silent": False}
    >>> wrong = right | {"wrong_speaker": True}
    >>> rates = error_rates([right, right, wrong], [{"match": 0.2}])
    >>> rates["missed"], rates["wrong_speaker"], rates["absent"]
    (0.0, 1.0, 0.0)
    >>> error_rates([right], [])["absent"] is None
    True
    """
    right = np.array([x[name] for x in present if is_right(x)])
    wrong = np.array([x[name] for x in present if x["wrong_speaker"]])
    absent = np.array([x[name] for x in absent])
    others = np.concatenate((wrong, absent))
    return {
        "missed": mean_or_none(right < threshold),
        "wrong_speaker": mean_or_none(wrong >= threshold),
        "absent": mean_or_none(absent >= threshold),
        "equal_error": _equal_error(right, others),
        "rights": len(right),
        "wrongs": len(wrong),
        "threshold": threshold,
    }


def mean_over_speakers(values, speakers):
    """Mean over items, and its standard error over speakers.

    Arguments
    ---------
    values : sequence of (float or bool)
        Those that are NaN, as of a silent estimate, are left out.
    speakers : sequence
        Whose each is.

    Returns
    -------
    mean : float
        NaN if there are none.
    error : float
        That of the speakers' means; 0 of one speaker.

    Example
    -------
    >>> mean_over_speakers([1.0, 2.0, 6.0, math.nan], ["ann", "ann", "bob", "bob"])
    (3.0, 2.25)
    """
    by_speaker = {}
    for value, speaker in zip(values, speakers, strict=True):
        if not math.isnan(value):
            by_speaker.setdefault(speaker, []).append(value)
    means = [np.mean(of_one) for of_one in by_speaker.values()]
    error = np.std(means, ddof=1) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    found = [value for of_one in by_speaker.values() for value in of_one]
    return float(np.mean(found)) if found else math.nan, float(error)


def mean_or_none(values):
    """Mean of the values that are not NaN; None, as in JSON, where there are none.

    Arguments
    ---------
    values : sequence of (float or bool)

    Returns
    -------
    float or None

    Example
    -------
    >>> mean_or_none([1.0, math.nan, 3.0]), mean_or_none([math.nan]), mean_or_none([])
    (2.0, None, None)
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _equal_error(right, others):
    """Error rate where both kinds are as often wrong; None if one is missing."""
    if not (len(right) and len(others)):
        return None
    candidates = np.unique(np.concatenate((right, others)))
    errors = [((right < t).mean(), (others >= t).mean()) for t in candidates]
    return float(min(max(pair) for pair in errors))
