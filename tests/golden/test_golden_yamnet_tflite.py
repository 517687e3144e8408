"""YAMNet's published int8 file, run as a TFLite teacher by its declaration alone, against the reference run."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.checkpoints.table import CHECKPOINTS
from pipeline.config import TeacherConfig
from pipeline.errors import MissingDependencyError
from pipeline.recipe import SHIPPED
from pipeline.teachers.registry import build_teacher
from tests.golden import golden_vectors as golden

FOLDERS = golden.folders("yamnet_tflite")
MODELS = Path(os.environ.get("YAMNET_DIR", golden.GOLDEN_DIR.parent / "data" / "yamnet"))

Golden = tuple[dict[str, Any], dict[str, np.ndarray]]


@pytest.fixture(scope="module", params=FOLDERS)
def vectors(request: pytest.FixtureRequest) -> Golden:
    return golden.require(request.param)


def snippet() -> dict[str, Any]:
    """The shipped lines of TOML."""
    return tomllib.loads((SHIPPED / "teachers" / "yamnet.toml").read_text())["embed"]["teacher"]


def teacher(options: dict[str, Any] | None = None) -> Any:
    found = sorted(MODELS.glob("*.tflite"))
    if not found:
        pytest.skip(f"YAMNet's file is not at {MODELS} (set YAMNET_DIR)")
    given = {**snippet(), "weights": found[0]}
    given["options"] = {**given["options"], **(options or {}), "checkpoint": None}
    try:
        return build_teacher(TeacherConfig.model_validate(given))
    except MissingDependencyError as error:
        pytest.skip(str(error))


def waveforms(spec: dict[str, Any]) -> torch.Tensor:
    given = spec["input"]["waveform"]
    rows = [
        golden.waveform(s, given["seconds"], given["sample_rate"], given["channels"])[0]
        for s in given["seeds"]
    ]
    return torch.from_numpy(np.stack(rows))


def allowed(spec: dict[str, Any], which: str) -> float:
    """Return the spec's tolerance of ``embedding`` or ``scores``, which it gives in words."""
    found = re.search(
        r"at most ([0-9.]+) in the embedding and ([0-9.]+) in the scores", spec["tolerance_note"]
    )
    assert found is not None, spec["tolerance_note"]
    return float(found[1 if which == "embedding" else 2])


def compare(got: np.ndarray, want: np.ndarray, limit: float, tap: str, record: Any) -> None:
    assert got.shape == want.shape
    worst = float(np.abs(got - want).max())
    record("worst_deviation", worst)
    golden.report("yamnet_tflite", tap, worst, limit)
    assert worst <= limit, f"{tap}: {worst}"


def test_the_file_is_the_one_in_the_table(vectors: Golden) -> None:
    spec, _ = vectors
    assert CHECKPOINTS["yamnet"].sha256 == spec["weights"]["sha256"]
    assert teacher().weights_sha256 == spec["weights"]["sha256"]
    assert teacher().licence == "Apache-2.0"


def test_embedding(vectors: Golden, record_property: Any) -> None:
    spec, taps = vectors
    made = teacher()
    assert (made.name, made.sample_rate_hz, made.window_samples) == ("yamnet", 16_000, 15_600)
    got = made.embed(waveforms(spec))["embedding"].numpy()
    compare(got, taps["embedding"], allowed(spec, "embedding"), "embedding", record_property)


def test_embedding_as_stored(vectors: Golden, record_property: Any) -> None:
    """The tensor by its number, and its codes recovered from what was dequantised: they are whole numbers."""
    spec, taps = vectors
    scale, zero = spec["config"]["embedding_quantisation"]
    got = teacher({"embedding": spec["config"]["embedding_tensor"]}).embed(waveforms(spec))["embedding"]
    codes = got.numpy() / scale + zero
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
    steps = allowed(spec, "embedding") / scale
    want = taps["embedding_int8"].reshape(codes.shape).astype(np.float64)
    compare(codes, want, steps + 1e-3, "embedding_int8", record_property)


def test_scores_are_the_logits_sigmoid(vectors: Golden, record_property: Any) -> None:
    spec, taps = vectors
    logits = teacher().embed(waveforms(spec), ["logits"])["logits"]
    want = taps["scores"].reshape(logits.shape)
    # The model's own sigmoid is an int8 one: half a step of 1/256 beside the kernels' difference.
    compare(torch.sigmoid(logits).numpy(), want, allowed(spec, "scores") + 1 / 256, "scores", record_property)


def test_the_inner_log_mel(vectors: Golden, record_property: Any) -> None:
    """A float tensor inside the graph: (time, mel), its mean over time as an embedding of 64."""
    spec, taps = vectors
    number = int(re.search(r"tensor (\d+)", spec["taps"]["log_mel"]["meaning"])[1])  # type: ignore[index]
    made = teacher({"embedding": number, "pool": "channels_last"})
    assert made.embedding_dim == spec["frontend"]["n_mels"]
    got = made.embed(waveforms(spec))["embedding"].numpy()
    want = taps["log_mel"].mean(axis=1)
    compare(got, want, 2e-5 * float(np.abs(want).max()) + 1e-5, "log_mel", record_property)


def test_longer_sound_is_heard_in_windows(vectors: Golden) -> None:
    spec, _ = vectors
    made, heard = teacher(), waveforms(spec)
    long = torch.cat([heard[:1], heard[1:2], heard[2:, :100]], dim=1)
    single = made.embed(heard[:2])["embedding"]
    hop = made.own.hop_samples or made.window_samples
    frames = made.embed(long, ["frames"])["frames"][0]
    assert len(frames) == 1 + (long.shape[1] - made.window_samples) // hop
    np.testing.assert_array_equal(frames[0], single[0])
    short = made.embed(heard[:1, :4_000])["embedding"]
    padded = torch.nn.functional.pad(heard[:1, :4_000], (0, made.window_samples - 4_000))
    np.testing.assert_array_equal(short, made.embed(padded)["embedding"])
