"""A damaged file of kept answers was a traceback where its zip header or its deflate stream was hit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.evaluation import npz_cache

ANSWERS = np.arange(48, dtype=np.int64).reshape(6, 8)


def test_any_damaged_byte_is_made_anew(tmp_path: Path) -> None:
    made = 0

    def make() -> np.ndarray:
        nonlocal made
        made += 1
        return ANSWERS

    def unpack(stored: Mapping[str, np.ndarray]) -> np.ndarray:
        return stored["answers"].reshape(6, 8)

    def answers() -> np.ndarray:
        return npz_cache.read_or_make(tmp_path, "0" * 64, make, lambda found: {"answers": found}, unpack)

    np.testing.assert_array_equal(answers(), ANSWERS)
    (path,) = tmp_path.glob("*.npz")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
        np.testing.assert_array_equal(answers(), ANSWERS)
    assert made > len(whole) // 4
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        np.testing.assert_array_equal(answers(), ANSWERS)
