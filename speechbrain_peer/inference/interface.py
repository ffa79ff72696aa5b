"""Extraction of one talker from mixtures with a trained model."""

import torch
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.autocast import AMPConfig, TorchAutocast

from speechbrain_peer.inference.inputs import (
    as_tensor,
    check_embeddings,
    check_enrollments,
    check_waveforms,
)
from speechbrain_peer.inference.live import Stream
from speechbrain_peer.inference.match import listen
from speechbrain_peer.inference.of_files import OfFiles
from speechbrain_peer.inference.presence import second_energies, tell_presence
from speechbrain_peer.nnet.voice import summarize_voice
from speechbrain_peer.packaging.loading import (
    HPARAMS_FILE,
    fetch_model,
    level_of,
    load_model,
)
from speechbrain_peer.peer_learning.exchange import embed, extract, extract_together
from speechbrain_peer.utils.signal import set_level


class TargetSpeechExtraction(OfFiles, Pretrained):
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
        if fn(torch.zeros(1)).dtype != torch.float32:
            raise ValueError(
                "The weights stay float32; for faster arithmetic load the model with "
                'run_opts={"precision": "bf16"}'
            )
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

    def _checked(self, embeddings, count, name="mixtures"):
        weight = next(self.mods.parameters())
        return check_embeddings(
            embeddings, count, self.mods.speaker_encoder, weight, name
        )
