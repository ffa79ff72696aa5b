"""A start at twice the rate: the lower half of the band is as before."""

import logging

import pytest
import torch
from rows import HPARAMS
from scipy.signal import resample_poly
from test_fine_tuning import build

from speechbrain_peer.nnet.filterbank import Decoder, Encoder
from speechbrain_peer.packaging.loading import load_model
from speechbrain_peer.peer_learning.exchange import embed, extract
from speechbrain_peer.training.fine_tuning import start_from
from speechbrain_peer.training.raised_rate import raise_rate, upper_band
from speechbrain_peer.utils.files import DataError

RATE = 16000


def band(low, high, seed):
    """A second of noise between two frequencies in Hz, (1, time)."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft(torch.randn(1, RATE, generator=generator))
    spectrum[:, :low] = spectrum[:, high:] = 0
    return torch.fft.irfft(spectrum)


def snr(estimate, reference):
    """In dB, without what is at the ends."""
    inner = slice(200, -200)
    error = (estimate - reference)[..., inner].square().sum()
    return float(10 * torch.log10(reference[..., inner].square().sum() / error))


@torch.no_grad()
@pytest.mark.parametrize(("low", "high", "least"), [(4200, 7800, 25), (100, 3600, -1)])
def test_the_upper_band_goes_through_its_filters(low, high, least):
    encoder, decoder = Encoder(32, 64, 32), Decoder(32, 64, 32)
    for stage in (encoder, decoder):
        stage.weight.copy_(upper_band(32, 64))
    signal = band(low, high, seed=0)
    through = decoder(encoder(signal)[0], RATE)[:, 0]
    assert snr(through, signal) > least
    if least < 0:
        assert through[..., 200:-200].square().sum() < 1e-3 * signal.square().sum()


@torch.no_grad()
def test_the_lower_band_is_extracted_as_by_the_model_of_half_the_rate(caplog):
    caplog.set_level(logging.INFO)
    modules = build((HPARAMS / "small_16k.yaml").read_text(encoding="utf-8")).eval()
    start_from(modules, "small-8k", RATE)
    assert "is for 8000 Hz; its filters are made twice as long" in caplog.text
    assert "other settings" not in caplog.text
    trained = load_model("small-8k")[0].eval()
    mixture, enrollment = band(100, 3400, seed=1), band(100, 3400, seed=2)
    estimate = extract(modules, mixture, embed(modules, enrollment))
    lower = [
        torch.from_numpy(resample_poly(signal.numpy(), 1, 2, axis=-1).copy())
        for signal in (mixture, enrollment, estimate)
    ]
    expected = extract(trained, lower[0], embed(trained, lower[1]))
    assert snr(lower[2], expected) > 20


def test_filters_that_do_not_fit_are_told(tmp_path):
    with pytest.raises(DataError, match=r"half the rate.*samples \(64, here 16\)"):
        start_from(build(exchange="none"), "small-8k", RATE)
    text = (HPARAMS / "base_16k.yaml").read_text(encoding="utf-8")
    with pytest.raises(DataError, match="learned filterbank"):
        start_from(build(text), "small-8k", RATE)


def test_other_shapes_are_left_to_be_told():
    theirs = {name: torch.ones(4, 8) for name in ("encoder.weight", "decoder.weight")}
    theirs["mask.weight"] = torch.ones(5, 3)
    ours = {name: torch.ones(4, 16) for name in theirs}
    raise_rate(theirs, ours, stride=8)
    assert theirs["mask.weight"].shape == (5, 3)
    assert theirs["encoder.weight"].shape == (4, 16)
