"""What the interface does with files: audio of any rate and length, and voices."""

import contextlib
import io
import os
from functools import partial

import numpy as np
import torch
from speechbrain.utils.data_utils import split_path
from speechbrain.utils.fetching import fetch
from speechbrain.utils.logger import get_logger

from speechbrain_peer.inference.estimates import file_beside
from speechbrain_peer.inference.inputs import as_tensor
from speechbrain_peer.inference.recordings import (
    Recording,
    read_start,
    resample_blocks,
    subtract_blocks,
)
from speechbrain_peer.inference.together import (
    extract_recordings,
    heard,
    open_all,
)
from speechbrain_peer.inference.voice_files import load_voice, save_voice
from speechbrain_peer.inference.writing import (
    check_output,
    choose_encoding,
    write_blocks,
)
from speechbrain_peer.nnet.voice import Frames, features_of, join_voices
from speechbrain_peer.utils.audio import AudioError
from speechbrain_peer.utils.files import DataError

logger = get_logger(__name__)

# Seconds that are used of an enrollment file: more takes memory and tells little.
LONGEST_ENROLLMENT = 25.0


class OfFiles:
    """The part of `TargetSpeechExtraction` that reads and writes files."""

    def load_audio(self, path, savedir=None):
        """Loads an audio file as `extract_file` hears it.

        Arguments
        ---------
        path : str or pathlib.Path
            A file of any rate and number of channels, or where SpeechBrain's `fetch`
            finds one: a URL, or a file of a model of the Hugging Face Hub.
        savedir : str or pathlib.Path, optional
            Where to put a file that is downloaded.

        Returns
        -------
        torch.Tensor
            (time,), the mean of the channels at the model's sample rate, on its device.

        Raises
        ------
        AudioError
            If the file cannot be read.
        """
        if not os.path.exists(path):
            path = _fetch_audio(path, savedir)
        with contextlib.closing(Recording.open(path)) as recording:
            waveform = self._waveform(recording.blocks(1), recording.sample_rate)
        return waveform[0].to(self.device)

    def encode_speaker_files(self, enrollment_paths):
        """Makes the voice of a talker of audio files, once for many mixtures.

        Arguments
        ---------
        enrollment_paths : str, pathlib.Path or list of these
            Speech of the talker, of which the first 25 s are used; channels are
            averaged. Of several files vectors are averaged, frames joined.

        Returns
        -------
        torch.Tensor or Frames
            Of (1, ...); see `encode_speaker`.
        """
        paths = _as_list(enrollment_paths)
        if not paths:
            raise ValueError("enrollment_paths is empty")
        return join_voices([self._embed_file(path) for path in paths])

    def save_voice(self, voice, path):
        """Writes a voice to a file, to be used with the same speaker encoder.

        Arguments
        ---------
        voice : torch.Tensor or Frames
            From `encode_speaker` or `encode_speaker_files`.
        path : str or pathlib.Path
            The file; an older one is replaced.
        """
        voice = self._checked(voice, len(features_of(voice)))
        save_voice(path, voice, self.mods, self.hparams.sample_rate)

    def load_voice(self, path):
        """Reads a voice from a file of `save_voice`.

        Arguments
        ---------
        path : str or pathlib.Path

        Returns
        -------
        torch.Tensor or Frames
            To be given as `embeddings`.

        Raises
        ------
        DataError
            If the file is no voice, or another model has made it.
        """
        voice = load_voice(path, self.mods, self.hparams.sample_rate)
        try:
            return self._checked(voice, len(features_of(voice)))
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error

    def extract_file(
        self,
        mixture_path,
        enrollment_paths=None,
        embeddings=None,
        output_path=None,
        residual_path=None,
        channels="mix",
        return_match=False,
        return_presence=False,
        return_alignment=False,
        keep_partial=False,
        judge=None,
    ):
        """Extracts one talker from an audio file, or from several of one moment.

        Files may have any rate and number of channels. They may last for hours: beyond
        12 s the network runs on chunks that overlap, and what is written to
        `output_path` is never whole in memory, but meanwhile in a temporary file beside
        it.

        Arguments
        ---------
        mixture_path : str, pathlib.Path, Recording or list of these
            The mixture. Several recordings of one moment, such as one talk under the
            voices of interpreters, lend to each other and give one estimate, on the
            first one's time line: see `inference.together`.
        enrollment_paths : str, pathlib.Path or list of these, optional
            Speech of the talker, of which the first 25 s are used; channels are
            averaged. Of several files vectors are averaged, frames joined.
        embeddings : torch.Tensor or Frames, optional
            In place of enrollments, the voice, of (1, ...); a vector may lack the 1.
        output_path : str or pathlib.Path, optional
            Where to write the estimate, as `writing.write_blocks` does: never
            clipped, in the mixture's encoding where possible.
        residual_path : str or pathlib.Path, optional
            Where to write everybody else: the mixture minus the estimate.
        channels : str
            `mix`: the mixture's channels are averaged; `each`: the talker is extracted
            from every channel; `peers`: every channel is a recording of its own, and
            the estimate is of the first.
        return_match : bool
            Whether to return a match score as well, see `match_score`.
        return_presence : bool
            Whether to return the presence as well, see `tells_presence`.
        return_alignment : bool
            Whether to return as well where recordings lie in time.
        keep_partial : bool
            Whether, after Ctrl+C, to write what is done, a whole file of the start,
            before `KeyboardInterrupt` goes on.
        judge : inference.judges.EnrolledJudge, optional
            Who tells the match score in place of the model.

        Returns
        -------
        estimate : torch.Tensor or str or pathlib.Path
            The estimate, (time,), or (channels, time) from each, on the CPU, of the
            mixture file's length and rate; with `output_path`, that path.
        match : float or None
            With `return_match`: in [0, 1], of up to 12 s where the estimate is
            loudest; None from a model that has not been calibrated. Below the
            `threshold` of the scorer, `mods.match_scorer` or `mods.judge_scorer`, it is
            to be doubted.
        presence : torch.Tensor
            With `return_presence`: whether the talker speaks in each second, bool,
            (seconds,), or (channels, seconds) from each channel.
        alignment : list of inference.together.Alignment
            With `return_alignment`: of every recording but the first.

        Raises
        ------
        AudioError
            If a file cannot be read, or the output would replace an input.
        DataError
            If recordings have nothing in common.
        ValueError
            If something else is wrong, or the model tells no presence.
        """
        self._check_presence(return_presence)
        if judge is not None:
            judge.judge.scorer_of(self)
        if (enrollment_paths is None) == (embeddings is None):
            raise ValueError("Give either enrollment_paths or embeddings")
        mixtures = _as_list(mixture_path)
        enrollment_paths = _as_list(enrollment_paths)
        inputs = [getattr(x, "path", x) for x in (*mixtures, *enrollment_paths)]
        outputs = [path for path in (output_path, residual_path) if path is not None]
        for path in outputs:
            check_output(path, inputs)
        if len({os.path.realpath(path) for path in outputs}) < len(outputs):
            raise AudioError(f"{output_path}: would be written twice")
        with contextlib.ExitStack() as stack:
            recordings = open_all(mixtures, channels, stack)
            mixture = recordings[0]
            n_channels = mixture.channels if channels == "each" else 1
            encodings = {
                path: choose_encoding(path, mixture, n_channels) for path in outputs
            }
            if embeddings is None:
                embeddings = self.encode_speaker_files(enrollment_paths)
            if not isinstance(embeddings, Frames):
                embeddings = torch.atleast_2d(as_tensor("embeddings", embeddings))
            embeddings = self._checked(embeddings, 1)
            file = file_beside(outputs[0]) if outputs else io.BytesIO()
            file = stack.enter_context(file)
            rate = self.hparams.sample_rate
            with self.inference_ctx:
                estimate, alignment = extract_recordings(
                    self.mods,
                    recordings,
                    embeddings,
                    channels,
                    rate,
                    file,
                    self.level,
                    keep_partial and bool(outputs),
                )
            blocks = partial(estimate.blocks_of, mixture)
            if output_path is not None:
                write_blocks(output_path, blocks, encodings[output_path])
                result = output_path
            else:
                result = torch.from_numpy(np.concatenate(list(blocks())).T)
                result = result if channels == "each" else result[0]
            if residual_path is not None:
                write_blocks(
                    residual_path,
                    lambda: subtract_blocks(heard(mixture, channels), blocks()),
                    encodings[residual_path],
                )
            if estimate.interrupted:
                seconds = estimate.samples / rate
                logger.warning(f"{outputs[0]}: holds the first {seconds:.0f} s")
                raise KeyboardInterrupt
            told = []
            if return_match:
                told.append(self._match(estimate, embeddings, judge, mixture, channels))
            if return_presence:
                presence = torch.from_numpy(estimate.presence().T)
                told.append(presence if channels == "each" else presence[0])
            if return_alignment:
                told.append(alignment)
            return (result, *told) if told else result

    def _match(self, estimate, embeddings, judge, mixture, channels):
        if judge is None and not self.tells_match:
            return None
        loudest = torch.from_numpy(estimate.loudest().copy())
        if judge is None:
            return self.match_score(loudest[None], embeddings).item()
        rates = mixture.sample_rate, self.hparams.sample_rate
        blocks = resample_blocks(heard(mixture, channels), *rates)
        there = torch.from_numpy(estimate.loudest(blocks).copy())
        return judge.match(self, loudest, there)

    def _embed_file(self, path):
        waveform = self._waveform(*read_start(path, LONGEST_ENROLLMENT))
        try:
            return self.encode_speaker(waveform)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _waveform(self, blocks, rate):
        """One channel at the model's rate, (1, time)."""
        blocks = resample_blocks(blocks, rate, self.hparams.sample_rate)
        return torch.from_numpy(np.concatenate(list(blocks)).T)


def _as_list(paths):
    """One path, several or None, as a list."""
    if paths is None:
        return []
    one = isinstance(paths, (str, os.PathLike, Recording))
    return [paths] if one else list(paths)


def _fetch_audio(path, savedir):
    source, name = split_path(str(path))
    try:
        return fetch(name, source=source, savedir=savedir)
    # Whatever the Hub's client raises, for an unknown name as for a lost network.
    except Exception as error:
        raise AudioError(
            f"{path}: no such file, nor can it be fetched: {error}"
        ) from error
