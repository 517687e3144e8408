"""Roll, gain, masks and mixup under cached targets: what the published code does, by stage 2's own functions."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config import LogMelConfig, TrainConfig
from pipeline.data.augment import draw_gain, gain, roll_clips, spec_augment, time_roll
from pipeline.data.batch_augmentation import BatchAugmentation
from pipeline.data.mixing import Mix, mixed_loss, mixup
from pipeline.data_config import AUGMENTATIONS, AugmentConfig
from pipeline.frontends.log_mel import LogMel
from tests.golden.golden_vectors import folders, report, require, tensor, waveform

FOLDERS = folders("augment")


def offset(spec: dict[str, Any]) -> int:
    return int(spec.get("seed_offset", 0))


@pytest.mark.parametrize("folder", FOLDERS)
def test_roll(folder: str) -> None:
    spec, taps = require(folder)
    x = torch.from_numpy(waveform(513 + offset(spec), 0.3, 32_000))
    names = [name for name in taps if name.startswith("roll.")]
    assert names
    for name in names:
        shift = int(name.removeprefix("roll."))
        worst = float((roll_clips(x, torch.tensor([shift])) - torch.from_numpy(taps[name])).abs().max())
        report(folder, name, worst, 0.0)
        assert worst == 0
    # "an integer drawn uniformly in [-r, r] INCLUSIVE"
    reach = max(int(name.removeprefix("roll.")) for name in names)
    ramp = torch.arange(2 * reach + 1.0).view(1, 1, -1)
    drawn = {int(time_roll(ramp, 2, torch.Generator().manual_seed(seed))[0, 0, 0]) for seed in range(60)}
    assert {-place if place < reach else 2 * reach + 1 - place for place in drawn} == set(range(-2, 3))


@pytest.mark.parametrize("folder", FOLDERS)
def test_gain_is_that_of_the_waveform(folder: str) -> None:
    spec, _ = require(folder)
    assert "[-g, g-1]" in spec["gain"]["formula"]
    drawn = draw_gain(4_000, 3, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == set(range(-3, 3))
    x = torch.from_numpy(waveform(513 + offset(spec), 0.3, 32_000))
    for changes in ({}, {"log": "db", "power": 1.0}, {"log": "log10", "log_offset": 1e-3}):
        frontend = LogMelConfig(sample_rate_hz=32_000, **changes)
        log_mel = LogMel(frontend)
        for decibels in (-6.0, 5.0):
            wanted = log_mel(x * 10 ** (decibels / 20))
            got = gain(log_mel(x), torch.tensor([decibels]), frontend)
            scale = float(wanted.std())
            worst = float((got - wanted).abs().max()) / scale
            report(folder, f"gain {decibels:+g} dB, {frontend.log}", worst, 1e-3)
            assert worst < 1e-3


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_stated_fill_is_what_the_published_codes_write(folder: str) -> None:
    """They write 0 before ``(x + offset) / scale``: far above silence. Ours writes what the recipe states."""
    spec, _ = require(folder)
    said = " ".join(spec["spec_augment"].values())
    pairs = re.findall(r"\(x \+ ([\d.]+)\)/([\d.]+)", said)
    values = [float(v) for v in re.findall(r"masked cells are ([\d.]+) after normalisation", said)]
    assert len(pairs) == len(values) > 0
    for (shift, scale), value in zip(pairs, values, strict=True):
        mean, deviation = -float(shift), float(scale)
        for fill, wanted in ((0.0, value), ("mean", 0.0)):
            train = TrainConfig(freq_mask_rows=16, time_mask_frames=0, roll_frames=0)
            change = BatchAugmentation(train, AugmentConfig(mask_fill=fill), LogMelConfig(), mean, deviation)
            silent = torch.full((64, 16, 4), -11.5)
            after = (change(silent, step=0).log_mel - mean) / deviation
            hidden = after[(after - (-11.5 - mean) / deviation).abs() > 1e-3]
            assert len(hidden)
            assert float((hidden - wanted).abs().max()) < 0.01


@pytest.mark.parametrize("folder", FOLDERS)
def test_mixed_embeddings(folder: str) -> None:
    spec, taps = require(folder)
    teacher = tensor(523 + offset(spec), (8, 20))
    partners = torch.from_numpy(taps["mixup.permutation"]).long()
    got = mixup(teacher, partners, torch.from_numpy(taps["mixup.lambda"]))
    wanted = taps["mixup.teacher_embedding_mixed"]
    allowed = spec["tolerance"]
    worst = float(abs(got.numpy() - wanted).max())
    report(folder, "mixup.teacher_embedding_mixed", worst, allowed["atol"])
    np.testing.assert_allclose(got, wanted, rtol=allowed["rtol"], atol=allowed["atol"])


def cosine(embedding: Tensor, index: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    loss = (1 - torch.cosine_similarity(embedding, teacher)).mean()
    return loss, {"cosine": loss.detach()}


def entropy(embedding: Tensor, index: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    loss = torch.nn.functional.binary_cross_entropy_with_logits(embedding, teacher.sigmoid())
    return loss, {"bce": loss.detach()}


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
def test_cached_targets_are_mixed_as_losses(folder: str, share: float) -> None:
    """S-SONDO: ``lam*L(s, t_i) + (1-lam)*L(s, t_perm(i))``; EfficientAT: for BCE the same as mixed sigmoid targets."""
    spec, taps = require(folder)
    assert "lam*L(s, t_i) + (1-lam)*L(s, t_perm(i))" in spec["cached_teacher_targets"]["S-SONDO"]
    teacher, student = tensor(523 + offset(spec), (8, 20)), tensor(524 + offset(spec), (8, 20))
    partners = torch.from_numpy(taps["mixup.permutation"]).long()
    mix = Mix(partners, share)
    got, terms = mixed_loss(cosine, student, torch.arange(8), teacher, mix)
    by_hand = 0.0
    for clip in range(8):
        for row, weight in ((clip, share), (int(partners[clip]), 1 - share)):
            s, t = student[clip].double(), teacher[row].double()
            by_hand += weight * float(1 - (s @ t) / (s.norm() * t.norm())) / 8
    report(folder, f"mixed cosine loss, share {share:g}", abs(float(got) - by_hand), 1e-6)
    assert float(got) == pytest.approx(by_hand, abs=1e-6)
    assert float(terms["cosine"]) == pytest.approx(by_hand, abs=1e-6)
    got, _ = mixed_loss(entropy, student, torch.arange(8), teacher, mix)
    mixed = share * teacher.sigmoid() + (1 - share) * teacher[partners].sigmoid()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(student, mixed)
    assert float(got) == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_the_specification_forbids_is_forbidden_here(folder: str) -> None:
    spec, _ = require(folder)
    assert (
        "time cropping to another window, pitch or speed change" in spec["cached_teacher_targets"]["summary"]
    )
    for name in ("random_crop", "pitch_shift", "speed", "wave_mix"):
        assert AUGMENTATIONS[name].validity == "forbidden"
    for name in ("gain", "time_roll", "frequency_mask", "time_mask", "freq_mixstyle"):
        assert AUGMENTATIONS[name].validity == "exact"
    assert AUGMENTATIONS["mixup"].validity == "approximate"


@pytest.mark.parametrize("folder", FOLDERS)
def test_masks_of_the_published_widths(folder: str) -> None:
    spec, _ = require(folder)
    bands, spans = map(int, re.findall(r"freqm (\d+), timem (\d+), fill 0", spec["spec_augment"]["EAsT"])[0])
    x = torch.ones(64, 2 * bands, 2 * spans)
    masked = spec_augment(
        x, freq_mask_rows=bands, time_mask_frames=spans, fill=0.0, generator=torch.Generator().manual_seed(0)
    )
    hidden_rows = (masked == 0).all(dim=2).sum(dim=1)
    hidden_frames = (masked == 0).all(dim=1).sum(dim=1)
    assert bands // 2 < hidden_rows.max() <= bands
    assert spans // 2 < hidden_frames.max() <= spans
