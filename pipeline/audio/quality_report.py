"""The data-quality report of a manifest: a row a clip, and counts a dataset."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd

from pipeline.audio import near_duplicates, quality

COLUMNS: dict[str, str] = {
    "clip_id": "str",
    "dataset": "str",
    "path": "str",
    "encoding": "str",  # libsndfile's format and subtype: WAV PCM_16
    "peak": "float32",
    "rms_dbfs": "float32",
    "clipped_share": "float32",
    "dc_offset": "float32",
    "silence_share": "float32",
    "bandwidth_hz": "float32",
    "bandwidth": "str",
    "was_rate_hz": "int32",
    "wrong_encoding": "str",
    "near_duplicate_of": "str",
    "issues": "str",
}
THRESHOLDS = {
    "clipping": f"more than {quality.CLIPPED_SHARE:g} of the samples at full scale beside another",
    "dc_offset": f"mean beyond {quality.OFFSET:g} of full scale",
    "silence": f"more than {quality.SILENT_SHARE:g} of the frames below {quality.SILENCE_DBFS:g} dBFS",
    "upsampled": "nothing above half of a usual lower sample rate",
    "lossy_lowpass": "nothing above where MP3 and AAC encoders cut",
    "narrow_band": f"nothing above another frequency from {quality.NARROW_HZ:g} Hz",
    "wrong_encoding": "the file's suffix names another format than its content",
    "near_duplicate": (
        f"at most {near_duplicates.MAX_BIT_ERRORS:g} of its fingerprint differ from an earlier clip's"
    ),
}


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return ``quality.parquet``: ``COLUMNS``, one row a clip, from the rows that ingest measured."""
    for row in rows:
        row["issues"] = " ".join(quality.issues(row))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def summary(found: pd.DataFrame, clips: pd.DataFrame, rejects: pd.DataFrame) -> dict[str, Any]:
    """Return ``quality.json``: thresholds, and counts in all and for each dataset."""
    datasets = {}
    for name in sorted({*clips["dataset"], *rejects["dataset"]}):
        mine, lost = clips[clips["dataset"] == name], rejects[rejects["dataset"] == name]
        measured = found[found["dataset"] == name]
        datasets[str(name)] = {
            "clips": len(mine),
            "hours": round(float(mine["duration_seconds"].sum()) / 3600, 4),
            "sample_rates_hz": _counts(mine["sample_rate_hz"]),
            "encodings": _counts(measured["encoding"]),
            "issues": issue_counts(measured),
            "rejects": _counts(lost["reason"]),
        }
    return {
        "thresholds": THRESHOLDS,
        "clips": len(clips),
        "issues": issue_counts(found),
        "rejects": _counts(rejects["reason"]),
        "datasets": datasets,
    }


def issue_counts(found: pd.DataFrame) -> dict[str, int]:
    """Return how many clips have each issue; issues that none has are left out."""
    counts = Counter(name for issues in found["issues"] for name in issues.split())
    return {name: counts[name] for name in quality.ISSUES if counts[name]}


def _counts(values: pd.Series) -> dict[str, int]:
    return {str(key): int(count) for key, count in values.value_counts().sort_index().items()}
