"""Judges: networks that know speakers, and had no part in the extraction.

Asked whether an estimate is the enrolled talker, a model hears with the ears that may
have mistaken somebody else for them. A judge has its own: `resemblyzer`, whose weights
come with the Python package of this name, or a speaker encoder of SpeechBrain, such as
`speechbrain/spkrec-ecapa-voxceleb`. It also hears the rest of the mixture: there the
talker is, if another was extracted.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from speechbrain_peer.inference.match import loudest_slice
from speechbrain_peer.inference.of_files import LONGEST_ENROLLMENT
from speechbrain_peer.inference.recordings import read_start, resample_blocks
from speechbrain_peer.inference.resemblyzer import SAMPLE_RATE, load_resemblyzer
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.messages import one_line
from speechbrain_peer.utils.modules import mark_of

RESEMBLYZER = "resemblyzer"

LEAST_SECONDS = 0.1
"""What is shorter is padded: encoders look around them."""


def load_judge(name, device="cpu"):
    """Loads a judge.

    Arguments
    ---------
    name : str or pathlib.Path
        `resemblyzer`, or the folder or the name on the Hugging Face Hub of a speaker
        encoder that SpeechBrain's `EncoderClassifier` loads. Its YAML is run and may do
        anything: trust its author.
    device : str or torch.device
        To compute on.

    Returns
    -------
    Judge

    Raises
    ------
    ImportError
        If the package `resemblyzer` is not installed.
    DataError
        If the encoder cannot be loaded.
    """
    name = str(name)
    if name == RESEMBLYZER:
        encoder = load_resemblyzer().to(device)
        return Judge(name, encoder, SAMPLE_RATE, mark_of({name: encoder}, SAMPLE_RATE))
    encoder = _load_encoder(name, device)
    rate = encoder.audio_normalizer.sample_rate

    def embed(waveforms):
        return encoder.encode_batch(waveforms)[:, 0]

    # Others have the folder elsewhere.
    name = Path(name).name if Path(name).is_dir() else name
    return Judge(name, embed, rate, mark_of(encoder.mods, rate))


def _load_encoder(source, device):
    from speechbrain.inference.classifiers import EncoderClassifier

    try:
        encoder = EncoderClassifier.from_hparams(
            source,
            # A copy of a folder of the Hub names the Hub, where its weights are.
            overrides={"pretrained_path": source},
            overrides_must_match=False,
            run_opts={"device": str(device)},
        )
        # The base class declares what is needed, but never looks.
        missing = set(encoder.MODULES_NEEDED) - set(encoder.mods)
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        return encoder
    # Whatever a YAML, weights or the Hub's client raise.
    except Exception as error:
        raise DataError(
            f"{source}: is neither {RESEMBLYZER} nor what SpeechBrain's "
            f"EncoderClassifier loads ({type(error).__name__}: {one_line(error)})"
        ) from error


class Judge:
    """A network that knows speakers.

    Arguments
    ---------
    name : str
        What it is called, for people.
    encoder : callable
        Makes embeddings, (batch, embedding), of waveforms, (batch, time).
    sample_rate : int
        Of these, in Hz.
    mark : str
        What other weights would not have; see `utils.modules.mark_of`.
    """

    def __init__(self, name, encoder, sample_rate, mark):
        self.name, self.encoder = name, encoder
        self.sample_rate, self.mark = sample_rate, mark

    @torch.no_grad()
    def embed(self, waveform, rate):
        """Makes an embedding.

        Arguments
        ---------
        waveform : torch.Tensor
            (time,).
        rate : int
            Its sample rate, in Hz.

        Returns
        -------
        torch.Tensor
            (embedding,), of length 1, on the CPU.
        """
        samples = waveform.detach().cpu().float().numpy()[:, None]
        blocks = resample_blocks([samples], rate, self.sample_rate)
        samples = torch.from_numpy(np.concatenate(list(blocks))[:, 0])
        missing = round(LEAST_SECONDS * self.sample_rate) - len(samples)
        samples = F.pad(samples, (0, max(0, missing)))
        embedding = self.encoder(samples[None])[0]
        return F.normalize(embedding.float().cpu(), dim=0)

    def enroll(self, waveforms, rate):
        """Tells the judge whom to listen for.

        Arguments
        ---------
        waveforms : torch.Tensor
            Speech of the talker, (batch, time): one recording or several.
        rate : int
            Their sample rate, in Hz.

        Returns
        -------
        EnrolledJudge
        """
        return self._enrolled([self.embed(waveform, rate) for waveform in waveforms])

    def enroll_files(self, paths, rate):
        """Tells the judge whom to listen for, by audio files.

        Arguments
        ---------
        paths : list of (str or pathlib.Path)
            Speech of the talker, of which the first 25 s are used.
        rate : int
            The model's, in Hz: its estimates have no more of a voice than that band,
            and of the enrollment no more is heard.

        Returns
        -------
        EnrolledJudge
        """
        embeddings = []
        for path in paths:
            blocks = resample_blocks(*read_start(path, LONGEST_ENROLLMENT), rate)
            waveform = torch.from_numpy(np.concatenate(list(blocks))[:, 0])
            embeddings.append(self.embed(waveform, rate))
        return self._enrolled(embeddings)

    def scorer_of(self, model):
        """What a model's calibration with this judge has fitted.

        Arguments
        ---------
        model : speechbrain_peer.TargetSpeechExtraction

        Returns
        -------
        speechbrain_peer.inference.match.JudgeScorer

        Raises
        ------
        ValueError
            If there was none, or one with another judge.
        """
        scorer = model.mods["judge_scorer"] if "judge_scorer" in model.mods else None
        if scorer is None or scorer.mark != self.mark:
            known = "no judge" if scorer is None else f"the judge {scorer.judge}"
            raise ValueError(
                f"The model has been calibrated with {known}, and {self.name} "
                f"knows nothing of it: `tse calibrate --judge {self.name}`"
            )
        return scorer

    def _enrolled(self, embeddings):
        mean = F.normalize(torch.stack(embeddings).mean(0), dim=0)
        return EnrolledJudge(self, mean)


class EnrolledJudge(NamedTuple):
    """A judge who knows whom to listen for."""

    judge: Judge
    embedding: torch.Tensor
    """Of the enrollment, (embedding,), of length 1."""

    def hear(self, estimate, mixture, rate):
        """Listens to the loudest piece of an estimate, and to the rest there.

        Arguments
        ---------
        estimate : torch.Tensor
            (time,).
        mixture : torch.Tensor
            What it was extracted from, (time,).
        rate : int
            Their sample rate, in Hz.

        Returns
        -------
        torch.Tensor
            Embeddings of the enrollment, of the estimate and of the mixture without
            it, (3, embedding).
        """
        piece = loudest_slice(estimate, rate)
        estimate, mixture = estimate[piece].cpu(), mixture[piece].cpu()
        others = (self.judge.embed(x, rate) for x in (estimate, mixture - estimate))
        return torch.stack([self.embedding, *others])

    def match(self, model, estimate, mixture):
        """Tells how likely a model's estimate is the enrolled talker.

        Arguments
        ---------
        model : speechbrain_peer.TargetSpeechExtraction
            Calibrated with this judge.
        estimate : torch.Tensor
            (time,), at the model's rate.
        mixture : torch.Tensor
            What it was extracted from, (time,).

        Returns
        -------
        float
            In [0, 1]; a silent estimate has 0.

        Raises
        ------
        ValueError
            If the model has not been calibrated with this judge.
        """
        scorer = self.judge.scorer_of(model)
        if not estimate.any():
            return 0.0
        heard = self.hear(estimate, mixture, model.hparams.sample_rate)
        return scorer(heard[None].to(scorer.center)).item()
