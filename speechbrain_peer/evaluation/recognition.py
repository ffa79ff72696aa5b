"""Speech recognition by SpeechBrain's models."""

import torch
from speechbrain.inference.ASR import EncoderDecoderASR

from speechbrain_peer.utils.files import DataError
from speechbrain_peer.utils.messages import one_line


class Recogniser:
    """Tells the words of signals, by an `EncoderDecoderASR` of SpeechBrain.

    Arguments
    ---------
    source : str
        A folder, or a model of the Hugging Face Hub. Its YAML is run and may do
        anything: trust its author.
    device : str
        Such as "cuda:0".

    Raises
    ------
    DataError
        If there is no such model.
    """

    def __init__(self, source, device="cpu"):
        try:
            self.model = EncoderDecoderASR.from_hparams(
                source, run_opts={"device": device}
            )
            # The base class declares what is needed, but never looks.
            missing = set(self.model.MODULES_NEEDED) - set(self.model.mods)
            if missing:
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        # Whatever the Hub's client, the YAML and the layers that it names raise.
        except Exception as error:
            raise DataError(
                f"{source}: cannot be loaded as SpeechBrain's EncoderDecoderASR "
                f"({type(error).__name__}: {one_line(error)})"
            ) from error
        self.name = str(source)
        self.sample_rate = self.model.audio_normalizer.sample_rate

    def __call__(self, signals, sample_rate):
        """Tells the words of signals.

        Arguments
        ---------
        signals : np.ndarray
            Of one length, float32, (batch, time).
        sample_rate : int
            Theirs in Hz; they are resampled to the model's.

        Returns
        -------
        list of str
        """
        normalize = self.model.audio_normalizer
        channels = torch.from_numpy(signals)[..., None]
        heard = torch.stack([normalize(signal, sample_rate) for signal in channels])
        words, _ = self.model.transcribe_batch(heard, torch.ones(len(heard)))
        return words
