"""Training items that are enrolled with what the network itself has extracted."""

from speechbrain.utils.data_utils import batch_pad_right

from speechbrain_peer.peer_learning.exchange import embed, extract
from speechbrain_peer.utils.modules import evaluating
from speechbrain_peer.utils.signal import sample_mask, set_level


def enroll_with_estimates(modules, enrollments, mixtures, level):
    """Enrolls items with the estimates of other mixtures of their speakers.

    Estimates are those that a user would get: extracted as at evaluation, with their
    level. No gradient goes through them.

    Arguments
    ---------
    modules : Mapping
        The stages, in training or not, wrapped for several GPUs or not.
    enrollments : tuple of torch.Tensor
        Recordings (batch, time), and their relative lengths (batch,).
    mixtures : tuple of torch.Tensor
        From which that which enrolls the item is extracted, with its recording (batch,
        time), and their relative lengths (batch,). Where a mixture is silent, the
        recording enrolls the item.
    level : str
        See `utils.signal.set_level`.

    Returns
    -------
    enrollments : torch.Tensor
        (batch, time).
    enrollment_lens : torch.Tensor
        Relative lengths (batch,).
    """
    (recordings, recording_lens), (mixtures, lens) = enrollments, mixtures
    chosen = mixtures.any(dim=1)
    if not chosen.any():
        return recordings, recording_lens
    heard, heard_lens = mixtures[chosen], lens[chosen]
    with evaluating(modules) as stages:
        voices = embed(stages, recordings[chosen], recording_lens[chosen])
        estimates = extract(stages, heard, voices, heard_lens)
        estimates = set_level(estimates.float(), heard, heard_lens, level)
    estimates = iter(_without_padding(estimates, heard_lens))
    kept = _without_padding(recordings, recording_lens)
    signals, lens = batch_pad_right(
        [next(estimates) if own else kept[k] for k, own in enumerate(chosen.tolist())]
    )
    return signals, lens.to(signals.device)


def _without_padding(signals, lens):
    lengths = sample_mask(lens, signals.shape[1], signals).sum(1).int().tolist()
    return [signal[:n] for signal, n in zip(signals, lengths, strict=True)]
