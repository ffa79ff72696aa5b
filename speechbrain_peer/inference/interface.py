"""Extraction of one talker from mixtures with a trained model."""

import contextlib
import io
import os
from functools import partial

import numpy as np
import torch
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.autocast import AMPConfig, TorchAutocast
from speechbrain.utils.data_utils import split_path
from speechbrain.utils.fetching import fetch
from speechbrain.utils.logger import get_logger

from speechbrain_peer.inference.chunks import file_beside
from speechbrain_peer.inference.inputs import (
    as_tensor,
    check_embeddings,
    check_enrollments,
    check_waveforms,
)
from speechbrain_peer.inference.live import Stream
from speechbrain_peer.inference.match import listen
from speechbrain_peer.inference.presence import second_energies, tell_presence
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
from speechbrain_peer.nnet.voice import (
    Frames,
    features_of,
    join_voices,
    summarize_voice,
)
from speechbrain_peer.packaging.loading import (
    HPARAMS_FILE,
    fetch_model,
    level_of,
    load_model,
)
from speechbrain_peer.peer_learning.exchange import embed, extract, extract_together
from speechbrain_peer.utils.audio import AudioError
from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.signal import set_level

logger = get_logger(__name__)

# Seconds that are used of an enrollment file: more takes memory and tells little.
LONGEST_ENROLLMENT = 25.0


class TargetSpeechExtraction(Pretrained):
    """A ready-to-use target speech extractor.

    It returns, of a mixture of several talkers, the one whom an *enrollment*, a few
    seconds of that talker alone, tells. Estimates have the level that the talker has
    in the mixture; a silent mixture gives silence. A model with `level: network` is
    also silent where the talker is, and tells a presence.

    Arguments
    ---------
    modules : mapping of str to torch.nn.Module
        The stages.
    hparams : dict
        Holds `sample_rate` in Hz and may hold `level`; see `utils.signal.set_level`.
    run_opts : dict, optional
        SpeechBrain's options, such as `{"device": "cuda:0"}`.
    freeze_params : bool
        Whether to forbid training of the stages.

    Example
    -------
    >>> from speechbrain_peer.nnet.filterbank import Decoder, Encoder
    >>> from speechbrain_peer.nnet.mask import MaskHead
    >>> from speechbrain_peer.models.td_speakerbeam import Separator, SpeakerEncoder
    >>> modules = {
    ...     "encoder": Encoder(32, 16, 8),
    ...     "speaker_encoder": SpeakerEncoder(32, 16, 8, 8, 16, 3, embedding_size=8),
    ...     "separator": Separator(32, 8, 16, 3, 2, 2, "mul", embedding_size=8),
    ...     "mask_head": MaskHead(8, 32),
    ...     "decoder": Decoder(32, 16, 8),
    ... }
    >>> model = TargetSpeechExtraction(modules, {"sample_rate": 8000})
    >>> # A trained one: TargetSpeechExtraction.from_hparams(source="its folder")
    >>> mixtures, enrollments = torch.randn(2, 8000), torch.randn(2, 16000)
    >>> model.extract_batch(mixtures, enrollments).shape
    torch.Size([2, 8000])
    """

    HPARAMS_NEEDED = ("sample_rate",)
    MODULES_NEEDED = ("encoder", "speaker_encoder", "separator", "mask_head", "decoder")

    def __init__(self, modules, hparams, run_opts=None, freeze_params=True):
        # The base class declares MODULES_NEEDED but never looks.
        missing = [name for name in self.MODULES_NEEDED if name not in modules]
        if missing:
            raise ValueError(f"The model lacks the modules {', '.join(missing)}")
        self.level = level_of(hparams, "The model's hparams")
        super().__init__(modules, hparams, run_opts, freeze_params)

    def _apply(self, fn, recurse=True):
        """What `.to()` and its kind call; the base class would not follow."""
        super()._apply(fn, recurse)
        device = next(self.mods.parameters()).device
        self.device, self.device_type = str(device), device.type
        dtype = AMPConfig.from_name(self.precision).dtype
        self.inference_ctx = TorchAutocast(device_type=device.type, dtype=dtype)
        return self

    @classmethod
    def from_hparams(
        cls,
        source,
        hparams_file=HPARAMS_FILE,
        *,
        overrides=None,
        savedir=None,
        download_only=False,
        run_opts=None,
        trust=False,
        freeze_params=True,
        revision=None,
    ):
        """Loads an exported model.

        Arguments
        ---------
        source : str or pathlib.Path
            A folder, read in place, the name of a model that comes with the package,
            or a model of the Hugging Face Hub.
        hparams_file : str
            Name of the YAML.
        overrides : dict or str, optional
            Values, or YAML, for entries of the YAML in place of its own.
        savedir : str or pathlib.Path, optional
            Where a model of the Hub is put; by default the Hub's cache.
        download_only : bool
            Whether to get the model's files and no more.
        run_opts : dict, optional
            SpeechBrain's options, such as `{"device": "cuda:0"}`.
        trust : bool
            Accepts a YAML that may run code. Without it, a YAML that does more than
            build networks of this package, SpeechBrain and PyTorch is refused.
        freeze_params : bool
            Whether to forbid training of the stages.
        revision : str, optional
            Of a model of the Hub: a branch, a tag or a commit.

        Returns
        -------
        TargetSpeechExtraction or None
            None with `download_only`.
        """
        if download_only:
            fetch_model(source, savedir, hparams_file, revision)
            return None
        modules, hparams = load_model(
            source, savedir, trust, hparams_file, revision, overrides
        )
        return cls(modules, hparams, run_opts, freeze_params)

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

    def encode_batch(self, mixtures, mixture_lens=None):
        """Represents mixtures.

        Arguments
        ---------
        mixtures : torch.Tensor
            (batch, time), at the model's sample rate.
        mixture_lens : torch.Tensor, optional
            Relative lengths (batch,), in (0, 1].

        Returns
        -------
        torch.Tensor
            (batch, filters, frames).
        """
        mixtures, mixture_lens = check_waveforms(
            "mixtures", mixtures, mixture_lens, self.device
        )
        with self.inference_ctx:
            representation, _ = self.mods.encoder(mixtures, mixture_lens)
        return representation.transpose(1, 2)

    def encode_speaker(self, enrollments, enrollment_lens=None):
        """Makes the voices of talkers of their enrollments.

        Arguments
        ---------
        enrollments : torch.Tensor
            (batch, time), at the model's sample rate.
        enrollment_lens : torch.Tensor, optional
            Relative lengths (batch,), in (0, 1].

        Returns
        -------
        torch.Tensor or Frames
            A vector for each, (batch, embedding), or frames, as the model has it; see
            `speechbrain_peer.nnet.voice`.
        """
        enrollments, lens = check_waveforms(
            "enrollments", enrollments, enrollment_lens, self.device
        )
        check_enrollments(enrollments, lens, self.hparams.sample_rate)
        with self.inference_ctx:
            return embed(self.mods, enrollments, lens)

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

    def decode_batch(self, representation, length):
        """Synthesizes waveforms.

        Arguments
        ---------
        representation : torch.Tensor
            (batch, filters, frames).
        length : int
            Samples of the waveforms.

        Returns
        -------
        torch.Tensor
            (batch, time), as the network gives it: see `utils.signal.set_level`.
        """
        representation = as_tensor("representation", representation).to(self.device)
        with self.inference_ctx:
            waveforms = self.mods.decoder(representation.transpose(1, 2), length)
        return waveforms[:, 0]

    def extract_batch(
        self,
        mixtures,
        enrollments=None,
        mixture_lens=None,
        enrollment_lens=None,
        embeddings=None,
        return_presence=False,
    ):
        """Extracts one talker from each mixture.

        Arguments
        ---------
        mixtures : torch.Tensor
            (batch, time), at the model's sample rate.
        enrollments : torch.Tensor, optional
            Speech of the talkers, (batch, time).
        mixture_lens : torch.Tensor, optional
            Relative lengths (batch,), in (0, 1]: a padded mixture gives what it gives
            alone.
        enrollment_lens : torch.Tensor, optional
            Relative lengths (batch,), in (0, 1].
        embeddings : torch.Tensor or Frames, optional
            In place of enrollments, the voices that `encode_speaker` returns.
        return_presence : bool
            Whether to return the presence as well; see `tells_presence`.

        Returns
        -------
        estimates : torch.Tensor
            (batch, time), zero in the padding.
        presence : torch.Tensor
            With `return_presence`: whether the talker speaks in each second, bool,
            (batch, seconds). The last second may be shorter.

        Raises
        ------
        ValueError
            If an input cannot be used, or the model tells no presence.
        """
        self._check_presence(return_presence)
        if (enrollments is None) == (embeddings is None):
            raise ValueError("Give either enrollments or embeddings")
        mixtures, mixture_lens = check_waveforms(
            "mixtures", mixtures, mixture_lens, self.device
        )
        if embeddings is None:
            embeddings = self.encode_speaker(enrollments, enrollment_lens)
        embeddings = self._checked(embeddings, len(mixtures))
        with self.inference_ctx:
            estimates = extract(self.mods, mixtures, embeddings, mixture_lens)
        estimates = set_level(estimates.float(), mixtures, mixture_lens, self.level)
        if not return_presence:
            return estimates
        rate = self.hparams.sample_rate
        energies = (second_energies(x, rate) for x in (estimates, mixtures))
        return estimates, tell_presence(*energies)

    def extract_together(self, mixtures, embeddings, mixture_lens=None):
        """Extracts one talker from several recordings, which lend to each other.

        What a recording is lent is the mean of what the others have found. The talker
        has to be heard in all of them at the same time, to the sample.

        Arguments
        ---------
        mixtures : torch.Tensor
            (batch, recordings, time), at the model's sample rate.
        embeddings : torch.Tensor or Frames
            The voices that `encode_speaker` returns.
        mixture_lens : torch.Tensor, optional
            Relative lengths (batch,), in (0, 1].

        Returns
        -------
        torch.Tensor
            An estimate for each recording, (batch, recordings, time).

        Raises
        ------
        ValueError
            If an input cannot be used, or the model was trained without peer learning.
        """
        recordings = torch.as_tensor(mixtures)
        if recordings.ndim != 3:
            raise ValueError("mixtures must have shape (batch, recordings, time)")
        batch, n_recordings, _ = recordings.shape
        lens = mixture_lens
        if lens is not None:
            lens = torch.as_tensor(lens).repeat_interleave(n_recordings)
        flat, lens = check_waveforms(
            "mixtures", recordings.flatten(0, 1), lens, self.device
        )
        embeddings = self._checked(embeddings, batch)
        peers = flat.unflatten(0, (batch, n_recordings)).movedim(1, 0)
        with self.inference_ctx:
            of_items = None if lens is None else lens[::n_recordings]
            estimates = extract_together(self.mods, peers, embeddings, of_items)
        estimates = estimates.movedim(0, 1).flatten(0, 1).float()
        estimates = set_level(estimates, flat, lens, self.level)
        return estimates.unflatten(0, (batch, n_recordings))

    def stream(self, enrollments=None, voice=None, rate=None, block=None):
        """Begins live extraction, from samples that come bit by bit.

        Arguments
        ---------
        enrollments : torch.Tensor, optional
            Speech of the talker at the model's sample rate, (1, time); or (rows, time),
            of one for each row of what will be pushed.
        voice : torch.Tensor or Frames, optional
            In place of enrollments, from `encode_speaker` or `encode_speaker_files`.
        rate : int, optional
            Of the samples to come, in Hz; by default the model's.
        block : int, optional
            Samples of every push, as many of which then come out; by default a push
            takes any number and gives what is complete.

        Returns
        -------
        speechbrain_peer.inference.live.Stream

        Raises
        ------
        ValueError
            If the model looks ahead (one that is trained with `--causal True` does
            not), or an argument cannot be used.
        """
        if (enrollments is None) == (voice is None):
            raise ValueError("Give either enrollments or voice")
        if voice is None:
            voice = self.encode_speaker(enrollments)
        return Stream(self, voice, rate, block)

    @property
    def tells_presence(self):
        """Whether the model tells where the talker speaks: it has `level: network`.

        The talker is present in a second where the estimate is louder than 20 dB below
        the mixture.
        """
        return self.level == "network"

    def _check_presence(self, wanted):
        if wanted and not self.tells_presence:
            raise ValueError(
                "The model tells no presence: it gives something at any time; train "
                "one with `level: network`"
            )

    @property
    def tells_match(self):
        """Whether the model has been calibrated to tell a match score."""
        return "match_scorer" in self.mods

    def match_score(self, estimates, embeddings, lens=None):
        """Tells how likely each estimate is the enrolled talker.

        It is low where the talker is not in the mixture, or another was taken. Of an
        estimate of more than 12 s the loudest 12 s tell.

        Arguments
        ---------
        estimates : torch.Tensor
            (batch, time), from `extract_batch`.
        embeddings : torch.Tensor or Frames
            The voices that `encode_speaker` returns.
        lens : torch.Tensor, optional
            Relative lengths of the estimates (batch,), in (0, 1].

        Returns
        -------
        torch.Tensor
            (batch,), in [0, 1]: 1 is sure; a silent estimate has 0.

        Raises
        ------
        ValueError
            If the model has not been calibrated, or the embeddings are not one for
            each estimate, of another size, or not finite.
        """
        if not self.tells_match:
            raise ValueError(
                "The model tells no match score: calibrate it (`tse calibrate`)"
            )
        estimates, lens = check_waveforms("estimates", estimates, lens, self.device)
        embeddings = self._checked(embeddings, len(estimates), "estimates")
        with self.inference_ctx:
            heard = listen(self.mods, estimates, lens, self.hparams.sample_rate)
            scores = self.mods.match_scorer(summarize_voice(embeddings), heard)
        return scores * estimates.any(1)

    def forward(self, *args, **kwargs):
        """Same as `extract_batch`."""
        return self.extract_batch(*args, **kwargs)

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
    ):
        """Extracts one talker from an audio file, or from several of one moment.

        Files may have any rate and number of channels. They may last for hours: beyond
        12 s the network runs on chunks that overlap, and what is written to
        `output_path` is never whole in memory, but meanwhile in a temporary file beside
        it.

        Arguments
        ---------
        mixture_path : str, pathlib.Path, Recording or list of these
            The mixture. Several recordings of one moment, such as those of several
            phones, lend to each other and give one estimate, on the first one's time
            line: see `inference.together`.
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

        Returns
        -------
        estimate : torch.Tensor or str or pathlib.Path
            The estimate, (time,), or (channels, time) from each, on the CPU, of the
            mixture file's length and rate; with `output_path`, that path.
        match : float or None
            With `return_match`: in [0, 1], of up to 12 s where the estimate is
            loudest; None from a model that has not been calibrated.
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
        if (enrollment_paths is None) == (embeddings is None):
            raise ValueError("Give either enrollment_paths or embeddings")
        mixtures = _as_list(mixture_path)
        enrollment_paths = _as_list(enrollment_paths)
        inputs = [getattr(x, "path", x) for x in (*mixtures, *enrollment_paths)]
        outputs = [path for path in (output_path, residual_path) if path is not None]
        for path in outputs:
            check_output(path, inputs)
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
            if residual_path is not None:
                write_blocks(
                    residual_path,
                    lambda: subtract_blocks(heard(mixture, channels), blocks()),
                    encodings[residual_path],
                )
            if output_path is not None:
                write_blocks(output_path, blocks, encodings[output_path])
                result = output_path
            else:
                result = torch.from_numpy(np.concatenate(list(blocks())).T)
                result = result if channels == "each" else result[0]
            if estimate.interrupted:
                seconds = estimate.samples / rate
                logger.warning(f"{outputs[0]}: holds the first {seconds:.0f} s")
                raise KeyboardInterrupt
            told = []
            if return_match:
                told.append(self._match(estimate, embeddings))
            if return_presence:
                presence = torch.from_numpy(estimate.presence().T)
                told.append(presence if channels == "each" else presence[0])
            if return_alignment:
                told.append(alignment)
            return (result, *told) if told else result

    def _match(self, estimate, embeddings):
        if not self.tells_match:
            return None
        loudest = torch.from_numpy(estimate.loudest().copy())
        return self.match_score(loudest[None], embeddings).item()

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

    def _checked(self, embeddings, count, name="mixtures"):
        weight = next(self.mods.parameters())
        return check_embeddings(
            embeddings, count, self.mods.speaker_encoder, weight, name
        )


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
