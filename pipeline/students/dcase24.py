"""The baseline of DCASE 2024 Task 1, data-efficient low-complexity acoustic scene classification.

Schmid, Primus, Heittola, Mesaros, Martin Morato, Koutini, Widmer, "Data-Efficient Low-Complexity Acoustic
Scene Classification in the DCASE 2024 Challenge", DCASE Workshop 2024: CP-Mobile's blocks without global
response normalisation, two of them strided elsewhere.
"""

from __future__ import annotations

from pipeline.config import StudentConfig
from pipeline.students.cp_mobile import CpMobile, CpMobileConfig

DCASE24_BASELINE = CpMobileConfig(
    channels=(32, 56, 104),
    expansion=2.1,
    strides=((3, (1, 2)), (4, (2, 1))),
    response_norm=False,
)


def build_dcase24_baseline(config: StudentConfig, mels: int) -> CpMobile:
    """Return the baseline with 60K parameters (61,148 with ten classes); any number of mels."""
    return CpMobile(DCASE24_BASELINE, width=config.width, embedding_dim=config.embedding_dim)
