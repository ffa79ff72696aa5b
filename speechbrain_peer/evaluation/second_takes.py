"""What a second recording of the same target is worth, and ways to use it.

A take is another mixture of a trial's target with another interferer, as peers are in
training. Recordings of several microphones differ from it by delays and colours.
"""

from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_peer.data.peers import item_rng
from speechbrain_peer.evaluation.metrics import si_sdr
from speechbrain_peer.evaluation.trial_scores import mean_over_speakers
from speechbrain_peer.evaluation.trials import TooFewSpeakers
from speechbrain_peer.nnet.voice import repeat_voice
from speechbrain_peer.peer_learning.exchange import extract_together, mean_of_others
from speechbrain_peer.peer_learning.predictors import can_lend
from speechbrain_peer.peer_learning.quality import extract_by_quality
from speechbrain_peer.utils.signal import set_level

NAME = "second_takes"  # of the files with the tables
TAKES = (2, 3, 4)

# Ways that need no lending, and those that do.
ALONE = (
    "one take alone",
    "best take alone (oracle)",
    "mean of mixtures",
    "mean of estimates",
)
LENDING = (
    "lent its own",
    "lent the others' mean",
    "lent the mean of all",
    "lent the best (oracle)",
    "lent the others' mean, mean of estimates",
    "lent by agreement and quality, one estimate",
)


def draw_takes(trials, n_takes, seed=0):
    """Draws further mixtures of every trial's target.

    Arguments
    ---------
    trials : list of Trial
        Whose interferers may be drawn.
    n_takes : int
        How many mixtures of a target, the trial's own included.
    seed : int
        Seeds the draws, together with the trial's ID; more takes go on with fewer.

    Yields
    ------
    trial : Trial
    mixtures : np.ndarray
        float32, (takes, time), the trial's own first.

    Raises
    ------
    TooFewSpeakers
        If there are no interferers of so many speakers.
    """
    for trial in trials:
        rng = item_rng(seed, 0, trial.id)
        present, mixtures = set(trial.speakers), [trial.mixture]
        for k in rng.permutation(len(trials)):
            if len(mixtures) == n_takes:
                break
            other = trials[k]
            if other.speakers[1] in present:
                continue
            present.add(other.speakers[1])
            speech = np.resize(other.interferers[0], len(trial.target))
            mixtures.append(trial.target + speech + trial.noise)
        if len(mixtures) < n_takes:
            raise TooFewSpeakers(
                f"{n_takes} takes of mixture {trial.id} need as many interferers of "
                "different speakers"
            )
        yield trial, np.stack(mixtures)


@torch.inference_mode()
def score_takes(model, trial, mixtures):
    """SI-SDR improvement over the first mixture, in dB, of every way.

    Arguments
    ---------
    model : TargetSpeechExtraction
    trial : Trial
    mixtures : np.ndarray
        (takes, time).

    Returns
    -------
    dict
        By the names of `ALONE` and, if the model can lend, `LENDING`.
    """
    takes = torch.from_numpy(mixtures).to(model.device)
    embedding = model.encode_speaker(torch.from_numpy(trial.enrollment)[None])
    alone = model.extract_batch(takes, embeddings=repeat_voice(embedding, len(takes)))
    of_mean = model.extract_batch(takes.mean(0)[None], embeddings=embedding)
    improvement = partial(_improvement, trial, mixtures[0])
    qualities = [improvement(estimate) for estimate in alone]
    first, best, of_mean = qualities[0], max(qualities), improvement(of_mean[0])
    values = [first, best, of_mean, improvement(alone.mean(0))]
    scores = dict(zip(ALONE, values, strict=True))
    if not can_lend(model.mods):
        return scores

    def lent(lend_from):
        estimates = extract_together(
            model.mods, takes[:, None], embedding, lend_from=lend_from
        )
        return set_level(estimates[:, 0].float(), takes, None, model.level)

    chosen = int(np.argmax(qualities))
    others = lent(mean_of_others)
    values = [
        improvement(lent(lambda own: own)[0]),
        improvement(others[0]),
        improvement(lent(lambda own: own.mean(0).expand_as(own))[0]),
        improvement(lent(lambda own: own[chosen].expand_as(own))[0]),
        improvement(others.mean(0)),
        improvement(extract_by_quality(model.mods, takes, embedding)),
    ]
    return scores | dict(zip(LENDING, values, strict=True))


def evaluate(model, trials, seed=0):
    """Scores 2, 3 and 4 takes of every target.

    Arguments
    ---------
    model : TargetSpeechExtraction
    trials : list of Trial
    seed : int
        Of the takes.

    Returns
    -------
    dict
        `takes`: {number: {way: {"si_sdri", "standard_error"}}}, and `left_out`: why
        there are no more takes, or None.
    """
    takes, left_out = {}, None
    for count in TAKES:
        try:
            drawn = list(draw_takes(trials, count, seed))
        except TooFewSpeakers as error:
            left_out = str(error)
            break
        scores, speakers = [], []
        for trial, mixtures in tqdm(drawn, desc=f"{count} takes", leave=False):
            scores.append(score_takes(model, trial, mixtures))
            speakers.append(trial.speakers[0])
        takes[count] = {
            way: _summary([score[way] for score in scores], speakers)
            for way in scores[0]
        }
    return {"items": len(trials), "takes": takes, "left_out": left_out}


def markdown(result):
    """The table, of mean and standard error over speakers."""
    takes = result["takes"]
    header = " | ".join(f"{count} takes" for count in takes)
    lines = [
        f"SI-SDRi over the first take (dB, ± standard error over speakers), "
        f"{result['items']} targets:",
        "",
        f"| | {header} |",
        "|---" + "|---:" * len(takes) + "|",
    ]
    for way in next(iter(takes.values()), {}):
        cells = (
            f"{row[way]['si_sdri']:.2f} ± {row[way]['standard_error']:.2f}"
            for row in takes.values()
        )
        lines.append(f"| {way} | {' | '.join(cells)} |")
    if result["left_out"]:
        lines.append(f"\nLeft out: {result['left_out']}.")
    return "\n".join(lines)


def _improvement(trial, mixture, estimate):
    estimate = estimate.cpu().numpy()
    return si_sdr(estimate, trial.target) - si_sdr(mixture, trial.target)


def _summary(values, speakers):
    mean, error = mean_over_speakers(values, speakers)
    return {"si_sdri": mean, "standard_error": error}
