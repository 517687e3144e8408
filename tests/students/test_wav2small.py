"""Wav2Small and Wav2Tiny: published counts, the pooling written out, the card's file, the frontend's frame rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.artifact import file_digest
from pipeline.config import LogMelConfig, StudentConfig
from pipeline.students import build_student
from pipeline.students.initial import load_initial
from pipeline.students.wav2small import (
    WAV2SMALL_17K,
    WAV2SMALL_72K,
    WAV2SMALL_90K,
    WAV2TINY_15K,
    Wav2Small,
    Wav2SmallConfig,
)
from tests.golden import golden_vectors

MELS = 26
EMOTIONS = 7
FROZEN_TRANSFORM = 2 * 33 * 64


def facts(folder: str) -> dict[str, Any]:
    """Return the spec of a folder that holds facts and no taps."""
    path = golden_vectors.GOLDEN_DIR / folder / "spec.json"
    if not path.is_file():
        pytest.skip(f"golden folder {folder} is not at {golden_vectors.GOLDEN_DIR} (set GOLDEN_DIR)")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def parameters(config: Wav2SmallConfig, outputs: int) -> int:
    return sum(p.numel() for p in Wav2Small(config, MELS, num_classes=outputs).parameters())


def test_the_card_s_network_has_the_counted_parameters_and_multiply_accumulates() -> None:
    counted = facts("wav2small")["published"]["card_Wav2Small2_17K"]["counted_here"]
    outputs = 3
    assert parameters(WAV2SMALL_17K, outputs) == counted["trainable"]
    assert parameters(WAV2SMALL_17K, outputs) + FROZEN_TRANSFORM == counted["parameters_all"]
    frames = LogMelConfig(n_fft=64, window_length=64, hop_length=32, center=False).frames(160_000)
    with torch.device("meta"):
        network = Wav2Small(WAV2SMALL_17K, MELS, num_classes=outputs).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(torch.empty(1, 1, MELS, frames))
    products_of_pooled = 13 * 13 * 13
    without_transform = counted["macs_10s_conv_and_linear"] - counted["of_which_stft"]
    assert counter.get_total_flops() // 2 - products_of_pooled == without_transform


def test_the_others_have_the_published_counts_to_the_digits_that_are_printed() -> None:
    small = facts("wav2small")["published"]["paper_72K"]["parameters"]
    tiny = facts("wav2tiny")["published"]
    assert f"{round((parameters(WAV2SMALL_72K, 3) + FROZEN_TRANSFORM) / 1000)}K" == small
    assert f"{round(parameters(WAV2SMALL_90K, EMOTIONS) / 1000)}K" == "90K"
    assert "90K" in tiny["derived_from"]
    assert f"{round(parameters(WAV2TINY_15K, EMOTIONS) / 1000)}K" == tiny["parameters"]


def test_a_second_gives_250_tokens() -> None:
    config = LogMelConfig(n_fft=64, window_length=64, hop_length=32, center=False, mels=MELS, min_hz=0.0)
    lengths: list[int] = []
    network = Wav2Small(WAV2SMALL_72K, MELS).eval()
    network.vgg7.sof.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    with torch.no_grad():
        for seconds in (1, 3):
            network(torch.zeros(1, 1, MELS, config.frames(16_000 * seconds)))
    assert lengths == [250, 750]


def randomised(config: Wav2SmallConfig) -> Wav2Small:
    torch.manual_seed(1)
    network = Wav2Small(config, 9)
    with torch.no_grad():
        network(20 * torch.randn(8, 1, 9, 40) - 40)
    return network.eval()


def numbers(tensor: Any) -> np.ndarray:
    found: np.ndarray = tensor.detach().double().numpy()
    return found


@pytest.mark.parametrize("config", [WAV2SMALL_72K, WAV2TINY_15K, WAV2SMALL_17K])
def test_pooling_equals_its_formula_written_out_step_by_step(config: Wav2SmallConfig) -> None:
    network = randomised(config)
    maps: list[Tensor] = []
    network.get_submodule("vgg7.l7").register_forward_hook(lambda module, inputs, output: maps.append(output))
    clip = 20 * torch.randn(1, 1, 9, 13) - 40
    with torch.no_grad():
        got = numbers(network(clip))[0]
    (channels, steps, rows), x = maps[0].shape[1:], numbers(maps[0])[0]
    assert (steps, rows) == (7, 5)
    sof, lin = network.vgg7.sof, network.vgg7.lin
    if config.pooling == "correlation":
        weight, value = (
            np.einsum("oc,ctm->otm", numbers(one.weight)[:, :, 0, 0], x) + numbers(one.bias)[:, None, None]
            for one in (sof, lin)
        )
        matrix = np.zeros((channels, rows))
        for c in range(channels):
            for m in range(rows):
                share = np.exp(weight[c, :, m]) / np.exp(weight[c, :, m]).sum()
                matrix[c, m] = (share * value[c, :, m]).sum()
        want = np.concatenate([matrix, matrix @ matrix.T], axis=1).ravel()
    else:
        tokens = np.stack([x[:, t, :].ravel() for t in range(steps)])
        weight = tokens @ numbers(sof.weight).T + numbers(sof.bias)
        value = tokens
        if config.pooling == "tokens":
            value = tokens @ numbers(lin.weight).T + numbers(lin.bias)
        want = (np.exp(weight) / np.exp(weight).sum(axis=0) * value).sum(axis=0)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_the_card_s_file_is_taken_without_its_frozen_transform(tmp_path: Path) -> None:
    torch.manual_seed(2)
    published = Wav2Small(WAV2SMALL_17K, MELS, num_classes=3).state_dict()
    constants = {
        "vgg7.spectrogram_extractor.conv_real.weight": torch.zeros(33, 1, 64),
        "vgg7.spectrogram_extractor.conv_imag.weight": torch.zeros(33, 1, 64),
        "vgg7.logmel_extractor.melW": torch.zeros(33, 26),
        "vgg7.logmel_extractor.amin": torch.zeros(1),
    }
    torch.save(published | constants, tmp_path / "card.bin")
    config = StudentConfig(name="wav2small_17k", weights=tmp_path / "card.bin")
    trusted = config.model_copy(update={"trust_sha256": file_digest(tmp_path / "card.bin")})
    student = build_student(trusted, MELS)
    started = load_initial(student, trusted, MELS)
    assert started is not None
    for name, value in student.state_dict().items():
        assert torch.equal(value, published[name]), name
    assert any("melW is the frontend's" in note for note in started.notes)
    assert any(note.startswith("adv is no part") for note in started.notes)
