"""Extraction of one talker from mixtures with a trained model."""

import os

import torch
from speechbrain.inference.interfaces import Pretrained

from speechbrain_peer.inference_inputs import (
    check_embeddings,
    check_enrollments,
    check_waveforms,
)
from speechbrain_peer.loading import HPARAMS_FILE, load_model
from speechbrain_peer.peer_learning import embed, extract
from speechbrain_peer.recordings import (
    check_output,
    read_recording,
    resample,
    write_recording,
)
from speechbrain_peer.signal import match_level


class TargetSpeechExtraction(Pretrained):
    """A ready-to-use target speech extractor.

    It returns, of a mixture of several talkers, the one whom an *enrollment*, a few
    seconds of that talker alone, tells. Estimates have the level that the talker has
    in the mixture; a silent mixture gives silence.

    Arguments
    ---------
    modules : mapping of str to torch.nn.Module
        The stages.
    hparams : dict
        Holds `sample_rate` in Hz.
    run_opts : dict, optional
        SpeechBrain's options, such as `{"device": "cuda:0"}`.
    freeze_params : bool
        Whether to forbid training of the stages.

    Example
    -------
    >>> from speechbrain_peer.nnet.filterbank import Decoder, Encoder
    >>> from speechbrain_peer.nnet.mask import MaskHead
    >>> from speechbrain_peer.nnet.td_speakerbeam import Separator, SpeakerEncoder
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
        super().__init__(modules, hparams, run_opts, freeze_params)

    @classmethod
    def from_hparams(
        cls,
        source,
        savedir=None,
        run_opts=None,
        trust=False,
        freeze_params=True,
        hparams_file=HPARAMS_FILE,
    ):
        """Loads an exported model.

        Arguments
        ---------
        source : str or pathlib.Path
            A folder, read in place, or a model of the Hugging Face Hub.
        savedir : str or pathlib.Path, optional
            Where a model of the Hub is put; by default the Hub's cache.
        run_opts : dict, optional
            SpeechBrain's options, such as `{"device": "cuda:0"}`.
        trust : bool
            Accepts a YAML that may run code. Without it, a YAML that does more than
            build networks of this package, SpeechBrain and PyTorch is refused.
        freeze_params : bool
            Whether to forbid training of the stages.
        hparams_file : str
            Name of the YAML.

        Returns
        -------
        TargetSpeechExtraction
        """
        modules, hparams = load_model(source, savedir, trust, hparams_file)
        return cls(modules, hparams, run_opts, freeze_params)

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
            "mixtures", mixtures, mixture_lens, self._device()
        )
        with self.inference_ctx:
            representation, _ = self.mods.encoder(mixtures, mixture_lens)
        return representation.transpose(1, 2)

    def encode_speaker(self, enrollments, enrollment_lens=None):
        """Embeds the talkers of enrollments.

        Arguments
        ---------
        enrollments : torch.Tensor
            (batch, time), at the model's sample rate.
        enrollment_lens : torch.Tensor, optional
            Relative lengths (batch,), in (0, 1].

        Returns
        -------
        torch.Tensor
            (batch, embedding).
        """
        enrollments, lens = check_waveforms(
            "enrollments", enrollments, enrollment_lens, self._device()
        )
        check_enrollments(enrollments, lens, self.hparams.sample_rate)
        with self.inference_ctx:
            return embed(self.mods, enrollments, lens)

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
            (batch, time), without a level: see `speechbrain_peer.signal.match_level`.
        """
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
        embeddings : torch.Tensor, optional
            In place of enrollments, (batch, embedding), from `encode_speaker`.

        Returns
        -------
        torch.Tensor
            Estimates, (batch, time), zero in the padding.
        """
        if (enrollments is None) == (embeddings is None):
            raise ValueError("Give either enrollments or embeddings")
        mixtures, mixture_lens = check_waveforms(
            "mixtures", mixtures, mixture_lens, self._device()
        )
        if embeddings is None:
            embeddings = self.encode_speaker(enrollments, enrollment_lens)
        embeddings = check_embeddings(embeddings, len(mixtures), self._device())
        with self.inference_ctx:
            estimates = extract(self.mods, mixtures, embeddings, mixture_lens)
        return match_level(estimates.float(), mixtures, mixture_lens)

    def forward(self, *args, **kwargs):
        """Same as `extract_batch`."""
        return self.extract_batch(*args, **kwargs)

    def extract_file(
        self, mixture_path, enrollment_paths=None, embedding=None, output_path=None
    ):
        """Extracts one talker from an audio file.

        Files may have any rate and number of channels; channels are averaged.

        Arguments
        ---------
        mixture_path : str or pathlib.Path
            The mixture.
        enrollment_paths : str, pathlib.Path or list of these, optional
            Speech of the talker. The embeddings of several files are averaged.
        embedding : torch.Tensor, optional
            In place of enrollments, (embedding,) or (1, embedding).
        output_path : str or pathlib.Path, optional
            Where to write the estimate, as `recordings.write_recording` does: never
            clipped, in the mixture's encoding where possible.

        Returns
        -------
        torch.Tensor or str or pathlib.Path
            The estimate, (time,), on the CPU, of the mixture file's length and rate;
            with `output_path`, that path.

        Raises
        ------
        AudioError
            If a file cannot be read, or the output would replace an input.
        """
        if (enrollment_paths is None) == (embedding is None):
            raise ValueError("Give either enrollment_paths or embedding")
        enrollment_paths = _as_list(enrollment_paths)
        if output_path is not None:
            check_output(output_path, [mixture_path, *enrollment_paths])
        mixture = read_recording(mixture_path)
        if embedding is None:
            embedding = self._embed_files(enrollment_paths)
        estimate = self._extract_recording(mixture, embedding)
        if output_path is None:
            return torch.from_numpy(estimate.samples)
        write_recording(output_path, estimate)
        return output_path

    def _extract_recording(self, mixture, embedding):
        """A Recording of the mixture's length and rate."""
        samples, rate, _ = mixture
        model_rate = self.hparams.sample_rate
        waveform = torch.from_numpy(resample(samples, rate, model_rate))
        embeddings = embedding.reshape(1, -1)
        estimates = self.extract_batch(waveform[None], embeddings=embeddings)
        estimate = resample(estimates[0].detach().cpu().numpy(), model_rate, rate)
        return mixture._replace(samples=estimate[: len(samples)])

    def _embed_files(self, paths):
        """Mean embedding of enrollment files, (1, embedding)."""
        if not paths:
            raise ValueError("enrollment_paths is empty")
        return torch.stack([self._embed_file(path) for path in paths]).mean(0)

    def _embed_file(self, path):
        samples, rate, _ = read_recording(path)
        waveform = torch.from_numpy(resample(samples, rate, self.hparams.sample_rate))
        try:
            return self.encode_speaker(waveform[None])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _device(self):
        # Not self.device, which does not follow .to().
        return next(self.mods.parameters()).device


def _as_list(paths):
    """One path, several or None, as a list."""
    if paths is None:
        return []
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
