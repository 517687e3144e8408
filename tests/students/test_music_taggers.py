"""Short-chunk and Harmonic CNN beyond their golden vectors: filters written out, short maps, files, raw input."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline import recipe as recipes
from pipeline.artifact import file_digest
from pipeline.config import LogMelConfig, StudentConfig
from pipeline.errors import ConfigError
from pipeline.frontends.log_mel import LogMel
from pipeline.students import build_student, students
from pipeline.students.harmonic_cnn import HarmonicCnn, HarmonicFilters, max_pool, note_frequencies
from pipeline.students.initial import load_initial
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.options import check_frontend
from pipeline.students.short_chunk_cnn import ShortChunkCnnRes
from stages import preflight

SPECTRUM = LogMelConfig(bands="linear", log="db", log_offset=0.0, log_floor=1e-10, hop_length=256)


def spectrum(samples: int, batch: int = 2) -> torch.Tensor:
    wave = torch.randn(batch, samples, generator=torch.Generator().manual_seed(4)) * 0.1
    log_mel: torch.Tensor = LogMel(SPECTRUM)(wave)
    return log_mel[:, None]


def test_filters_equal_the_sum_over_bins_written_out() -> None:
    filters = HarmonicFilters(257, 16_000, harmonics=3, steps_a_semitone=1)
    with torch.no_grad():
        filters.bw_Q.fill_(1.7)
        got = filters(spectrum(600, batch=1))[0].numpy()
    power = 10 ** (spectrum(600, batch=1)[0, 0].double().numpy() / 10)
    notes = note_frequencies(16_000, 3, 1)
    assert got.shape == (3, len(notes), power.shape[1])
    for harmonic in (1, 3):
        for place in (0, len(notes) - 1):
            centre = harmonic * notes[place]
            width = (0.1079 * centre + 24.7) / 1.7
            bins = np.arange(257) * 16_000 / 512
            triangle = np.maximum(0, 1 - 2 * np.abs(bins - centre) / width)
            want = 10 * np.log10(np.maximum(triangle @ power, 1e-10))
            np.testing.assert_allclose(got[harmonic - 1, place], want, atol=2e-3)


def test_the_notes_are_the_published_ones_and_others_follow_the_rate() -> None:
    notes = note_frequencies(16_000, 6, 2)
    assert len(notes) == 128
    assert math.isclose(notes[0], 32.703, rel_tol=1e-4)
    assert math.isclose(notes[-1], 1318.51 * 2 ** (-1 / 24), rel_tol=1e-5)
    assert notes[-1] * 6 < 8_000
    assert len(note_frequencies(32_000, 6, 2)) == 128 + 24
    with pytest.raises(ConfigError, match="fewer harmonics"):
        note_frequencies(16_000, 300, 2)


def test_the_bandwidth_is_learnt() -> None:
    student = build_student(StudentConfig(name="harmonic_cnn", width=0.1), 257)
    student(spectrum(8_000)).square().mean().backward()
    gradient = student.get_parameter("hstft.bw_Q").grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs() > 0


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_a_pool_takes_the_maximum_of_what_there_is(frames: int) -> None:
    x = torch.rand(2, 3, 4, frames)
    want = F.max_pool2d(x, (2, 3)) if frames >= 3 else F.max_pool2d(x, (2, frames))
    assert torch.equal(max_pool(x, (2, 3)), want)


@pytest.mark.parametrize("name", ["harmonic_cnn", "shortchunk_cnn_res"])
def test_the_stored_level_reaches_the_network_unchanged(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_student(StudentConfig(name=name, width=0.1), 257).eval()
    log_mel = spectrum(6_000)
    with torch.no_grad():
        assert torch.equal(NormalisedStudent(backbone, -40.0, 20.0).eval()(log_mel), backbone(log_mel))


def test_harmonic_filters_run_in_float32_inside_autocast() -> None:
    filters = HarmonicFilters(257, 16_000, 6, 2)
    log_mel = spectrum(5_000)
    with torch.no_grad():
        want = filters(log_mel)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = filters(log_mel)
    assert torch.equal(got, want)


def test_published_files_are_taken_without_the_frontend_s_constants(tmp_path: Path) -> None:
    torch.manual_seed(0)
    window, bank = torch.hann_window(512), torch.zeros(257, 128)
    for name, published, constants, bins in (
        ("shortchunk_cnn_res", ShortChunkCnnRes(width=0.1, num_classes=50),
         {"spec.spectrogram.window": window, "spec.mel_scale.fb": bank}, 128),
        ("harmonic_cnn", HarmonicCnn(257, width=0.1, num_classes=50), {"hstft.spec.window": window}, 257),
    ):  # fmt: skip
        path = tmp_path / f"{name}.pth"
        state = published.state_dict()
        torch.save(constants | state, path)
        config = StudentConfig(name=name, width=0.1, weights=path, trust_sha256=file_digest(path))
        student = build_student(config, bins)
        started = load_initial(student, config, bins)
        assert started is not None
        assert all(torch.equal(value, state[entry]) for entry, value in student.state_dict().items())
        assert sum("is the frontend's" in note for note in started.notes) == len(constants)


def test_unknown_options_and_a_log_mel_before_the_filters_are_refused() -> None:
    with pytest.raises(ConfigError, match="harmonics"):
        build_student(StudentConfig(name="harmonic_cnn", options={"harmonic": 5}), 257)
    with pytest.raises(ConfigError, match="has filters of its own"):
        check_frontend(students.get("harmonic_cnn"), StudentConfig(name="harmonic_cnn"), LogMelConfig())
    check_frontend(students.get("cnn4"), StudentConfig(), SPECTRUM)
    recipe = recipes.overridden(["student.name=harmonic_cnn"])
    with pytest.raises(ConfigError, match=r"embed.frontend.bands = 'linear'"):
        preflight.check(recipe, "embed")
