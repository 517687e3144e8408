"""Device impulse response augmentation against what the authors' code gave."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.audio import impulse
from tests.golden import golden_vectors


@pytest.mark.parametrize("folder", golden_vectors.folders("augment"))
def test_device_impulse_response(folder: str, record_property: Callable[[str, Any], None]) -> None:
    spec, taps = golden_vectors.require(folder)
    said = re.fullmatch(r"waveform\((\d+),\s*([\d.]+),\s*(\d+)\)", spec["inputs"]["dir.x"])
    assert said is not None, spec["inputs"]["dir.x"]
    waves = golden_vectors.waveform(int(said[1]), float(said[2]), int(said[3]))
    found = np.stack(
        [impulse.convolve(wave.astype(np.float32), taps["dir.impulse_response"][0]) for wave in waves]
    )
    expected = taps["dir.output"]
    difference = np.abs(found - expected)
    allowed = spec["tolerance"]["atol"] + spec["tolerance"]["rtol"] * np.abs(expected)
    record_property("worst_deviation", float(difference.max()))
    golden_vectors.report(folder, "dir.output", float((difference / allowed).max()), 1.0)
    assert found.shape == expected.shape
    assert (difference <= allowed).all(), f"worst difference {difference.max():.3g}"
