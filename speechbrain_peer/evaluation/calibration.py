"""Fits a model's match score on held-out speakers."""

from pathlib import Path

import torch
from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from speechbrain_peer.evaluation.trial_scores import (
    enroll,
    extract_trial,
    is_right,
    score_estimate,
)
from speechbrain_peer.evaluation.trials import (
    TooFewSpeakers,
    absent_target,
    read_trials,
    vary,
)
from speechbrain_peer.inference.interface import TargetSpeechExtraction
from speechbrain_peer.inference.match import JudgeScorer, MatchScorer, listen
from speechbrain_peer.nnet.voice import summarize_voice
from speechbrain_peer.packaging.export import add_scorers, check_replaceable
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.folders import restore_folder

logger = get_logger(__name__)

# More trials than these tell little more.
MOST_TRIALS = 300


@main_process_only
def calibrate(folder, manifest, data_root, device="cpu", trust=False, judge=None):
    """Adds a match score to an exported model.

    Every mixture is tried with the enrollment of its target, and with that of a
    speaker who is not in it. An estimate matches if its target is there, it is not
    silent and no interferer is closer to it. Where there are too few speakers, or all
    estimates match or none does, the model is left as it is, with a line in the log.

    Arguments
    ---------
    folder : str or pathlib.Path
        The model's folder; it is replaced as a whole.
    manifest : str or pathlib.Path
        A manifest of speakers that the model has not been trained on.
    data_root : str or pathlib.Path or None
        What `{data_root}` in the manifest stands for; None: see `find_data_root`.
    device : str or torch.device
        To extract on.
    trust : bool
        Builds whatever the model's YAML says. That runs any code it names.
    judge : speechbrain_peer.inference.judges.Judge, optional
        Adds its score as well.

    Raises
    ------
    DataError
        If the model is not a folder, or the manifest not of such mixtures.
    """
    restore_folder(folder)
    if not Path(folder).is_dir():
        raise DataError(
            f"{folder}: no such folder, and a model of the package or the Hub is not "
            "rewritten; give the folder of an exported model"
        )
    check_replaceable(folder)
    model = TargetSpeechExtraction.from_hparams(
        folder, run_opts={"device": device}, trust=trust
    )
    rate = model.hparams.sample_rate
    trials = read_trials(manifest, data_root, rate, MOST_TRIALS)
    try:
        absent = vary(trials, absent_target(trials))
    except TooFewSpeakers as error:
        logger.warning(f"No match score: {error}")
        return
    embeddings, matches, judged = [], [], []
    with tqdm(total=2 * len(trials), desc="calibrating the match score") as progress:
        for kind, present in ((trials, True), (absent, False)):
            for trial in kind:
                enrolled, estimate = extract_trial(model, trial)
                with torch.no_grad():
                    heard = listen(model.mods, estimate, None, rate)
                embeddings.append((summarize_voice(enrolled).cpu(), heard.cpu()))
                right = is_right(score_estimate(estimate[0].cpu().numpy(), trial))
                matches.append(float(present and right))
                if judge is not None:
                    mixture = torch.from_numpy(trial.mixture)
                    listening = enroll(judge, trial, model)
                    judged.append(listening.hear(estimate[0], mixture, rate))
                progress.update()
    if len(set(matches)) < 2:
        logger.warning("No match score: no estimate is of the enrolled talker")
        return
    matches = torch.tensor(matches)
    enrolled, estimated = map(torch.cat, zip(*embeddings, strict=True))
    scorer, judge_scorer = MatchScorer(enrolled.shape[1]), None
    scorer.fit(enrolled, estimated, matches)
    if judge is not None:
        heard = torch.stack(judged)
        judge_scorer = JudgeScorer(heard.shape[-1], judge.name, judge.mark)
        judge_scorer.fit(heard, matches, torch.arange(len(matches)) >= len(trials))
    add_scorers(folder, match_scorer=scorer, judge_scorer=judge_scorer)
