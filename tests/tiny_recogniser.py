"""A tiny EncoderDecoderASR in SpeechBrain's layout, with random weights."""

import torch
from hyperpyyaml import load_hyperpyyaml
from sentencepiece import SentencePieceTrainer

SENTENCES = ("THE OLD FARMER SANG", "A TALL STRANGER HEARD THE FARMER'S SONG")
N_TOKENS = 24

YAML = f"""
sample_rate: 16000
features: !new:speechbrain.lobes.features.Fbank
    sample_rate: !ref <sample_rate>
    n_mels: 8
network: !new:speechbrain.nnet.RNN.GRU
    input_shape: [null, null, 8]
    hidden_size: 8
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    features: !ref <features>
    network: !ref <network>
embedding: !new:speechbrain.nnet.embedding.Embedding
    num_embeddings: {N_TOKENS}
    embedding_dim: 8
attention: !new:speechbrain.nnet.RNN.AttentionalRNNDecoder
    enc_dim: 8
    input_size: 8
    rnn_type: gru
    attn_type: location
    hidden_size: 8
    attn_dim: 8
    num_layers: 1
    channels: 2
    kernel_size: 3
linear: !new:speechbrain.nnet.linear.Linear
    input_size: 8
    n_neurons: {N_TOKENS}
decoder: !new:speechbrain.decoders.S2SRNNGreedySearcher
    embedding: !ref <embedding>
    decoder: !ref <attention>
    linear: !ref <linear>
    bos_index: 0
    eos_index: 0
    min_decode_ratio: 0.0
    max_decode_ratio: 0.1
network_and_all: !new:torch.nn.ModuleList
    - [!ref <network>, !ref <embedding>, !ref <attention>, !ref <linear>]
tokenizer: !new:sentencepiece.SentencePieceProcessor
modules:
    encoder: !ref <encoder>
    decoder: !ref <decoder>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        asr: !ref <network_and_all>
        tokenizer: !ref <tokenizer>
"""


def write_recogniser(folder):
    """Writes `hyperparams.yaml`, the weights and the tokenizer, trained here."""
    folder.mkdir(parents=True)
    (folder / "hyperparams.yaml").write_text(YAML, encoding="utf-8")
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=N_TOKENS,
        minloglevel=2,
    )
    (folder / "tokenizer.model").rename(folder / "tokenizer.ckpt")
    torch.manual_seed(0)
    hparams = load_hyperpyyaml(YAML)
    torch.save(hparams["network_and_all"].state_dict(), folder / "asr.ckpt")
    return folder
