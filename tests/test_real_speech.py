"""The way from speech to an extracted talker, on the real speech of tests/data."""

from pathlib import Path

import numpy as np
import pytest
import torch

from speechbrain_peer import TargetSpeechExtraction
from speechbrain_peer.data.dataset import evaluation_set
from speechbrain_peer.data.prepare import prepare_librimix
from speechbrain_peer.evaluation.metrics import judge, si_sdr

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """The items of both targets of every mixture, by ID."""
    prepared = prepare_librimix(
        tmp_path_factory.mktemp("real"),
        librispeech_folder=DATA / "LibriSpeech",
        librimix_metadata=DATA / "Libri2Mix",
        subsets=["test"],
        targets="both",
    )
    dataset = evaluation_set(prepared.manifests["test"], prepared.data_root, 8000)
    dataset.set_output_keys([*dataset.pipeline.output_mapping, "interferer_sigs"])
    return {item["id"]: item for item in dataset}


def test_real_speech_is_rendered(items):
    assert len(items) == 6
    for item in items.values():
        assert 2 * 8000 < len(item["mixture_sig"]) < 3 * 8000
        both = item["target_sig"] + item["interferer_sigs"][:, 0]
        # The files hold 16 bits.
        np.testing.assert_allclose(item["mixture_sig"], both, atol=2**-15)
        assert item["enrollment_sig"].std() > 0.01


def test_who_is_enrolled_is_extracted(items):
    """On speakers that the model has not been trained on, both ways round."""
    model = TargetSpeechExtraction.from_hparams("small-8k")
    for item_id, item in items.items():
        mixture_id, k = item_id.rsplit("_s", 1)
        other = items[f"{mixture_id}_s{3 - int(k)}"]
        mixture, target, interferer = (
            signal.numpy()
            for signal in (item["mixture_sig"], item["target_sig"], other["target_sig"])
        )
        estimate, swapped = (
            model.extract_batch(torch.from_numpy(mixture)[None], enrollment[None])[0]
            for enrollment in (item["enrollment_sig"], other["enrollment_sig"])
        )
        improvement = si_sdr(estimate.numpy(), target) - si_sdr(mixture, target)
        assert improvement > 3
        assert judge(swapped.numpy(), target, [interferer])["wrong_speaker"]


def test_bf16_extracts_as_well_as_fp32(items):
    """Why `tse extract` takes it where the processor computes it."""
    changes = []
    models = [
        TargetSpeechExtraction.from_hparams(
            "small-8k", run_opts={"precision": precision}
        )
        for precision in ("fp32", "bf16")
    ]
    for item in items.values():
        mixture, enrollment = item["mixture_sig"][None], item["enrollment_sig"][None]
        exact, rounded = (
            si_sdr(
                model.extract_batch(mixture, enrollment)[0].numpy(),
                item["target_sig"].numpy(),
            )
            for model in models
        )
        changes.append(rounded - exact)
    assert any(changes) and np.abs(np.mean(changes)) < 0.05
