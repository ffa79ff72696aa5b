"""The voices of a training's speakers, as the model of the package hears them."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_peer.data.manifests import read_manifest
from speechbrain_peer.data.peers import SourcePool
from speechbrain_peer.data.speaker_voices import (
    read_speaker_voices,
    write_speaker_voices,
)
from speechbrain_peer.nnet.voice import summarize_voice
from speechbrain_peer.packaging.loading import load_model
from speechbrain_peer.peer_learning.exchange import embed
from speechbrain_peer.utils.any_audio import read_at_rate
from speechbrain_peer.utils.modules import mark_of

MODEL = "small-8k"
MOST_UTTERANCES = 4
"""Of a speaker; their mean is the voice."""


def embed_speakers(manifest, data_root):
    """Embeds the speakers of listed mixtures once; the voices are kept beside the list.

    Arguments
    ---------
    manifest : str or Path
        That of the training subset; the voices go to <its name>_voices.npz.
    data_root : str
        What `{data_root}` in the manifest stands for.

    Returns
    -------
    SpeakerVoices
        Of all who are a target or an interferer.
    """
    chosen = {
        speaker: [utterances[name][0] for name in sorted(utterances)[:MOST_UTTERANCES]]
        for speaker, utterances in SourcePool(
            read_manifest(manifest, data_root)
        ).utterances.items()
    }
    modules, hparams = load_model(MODEL)
    modules.eval()
    rate = hparams["sample_rate"]
    path = Path(manifest).with_name(f"{Path(manifest).stem}_voices.npz")
    mark = _mark(chosen, modules, rate)
    voices = read_speaker_voices(path, mark)
    if voices is None:
        bar = tqdm(chosen.values(), desc="voices of the training speakers")
        vectors = [
            np.mean([_embed(modules, source, rate) for source in sources], axis=0)
            for sources in bar
        ]
        write_speaker_voices(path, list(chosen), vectors, mark)
        # As they are kept, which is rounded.
        voices = read_speaker_voices(path, mark)
    return voices


@torch.no_grad()
def _embed(modules, source, sample_rate):
    """The voice in a source, (size,)."""
    speech = read_at_rate(source["path"], 0, source["length"], sample_rate)
    voice = embed(modules, torch.from_numpy(speech)[None])
    return summarize_voice(voice)[0].numpy()


def _mark(chosen, modules, sample_rate):
    """Of the model and the utterances, wherever these lie."""
    names = [
        (speaker, source["utterance"], source["length"])
        for speaker, sources in chosen.items()
        for source in sources
    ]
    mark = hashlib.sha256(repr(names).encode())
    mark.update(mark_of(modules, sample_rate).encode())
    return mark.hexdigest()
