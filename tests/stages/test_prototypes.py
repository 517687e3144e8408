"""``ossicle prototypes``: from a folder of sounds to a file that learns, by the command itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import soundfile
import torch

from pipeline import recipe as recipes
from pipeline.config import LogMelConfig
from pipeline.errors import ConfigError, ManifestError, MissingArtifactError
from pipeline.frontends.log_mel import LogMel
from pipeline.prototypes import class_clips
from stages import prototypes
from stages.console import console
from stages.prototypes import Options

RATE_HZ = 16_000
PITCHES_HZ = {"low": 150.0, "middle": 700.0, "high": 3_000.0}
FEW = Options(shots=3, episodes=12, slots=2)


def sound(pitch_hz: float, seed: int) -> np.ndarray:
    """Return 0.8 s of a harmonic tone near ``pitch_hz`` in noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(0.8 * RATE_HZ)) / RATE_HZ
    pitch_hz *= 1.0 + 0.1 * rng.standard_normal()
    tone = sum(np.sin(2 * np.pi * k * pitch_hz * t) / k for k in (1, 2))
    return (0.1 * tone + 0.01 * rng.standard_normal(len(t))).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classes")
    for number, (name, pitch_hz) in enumerate(PITCHES_HZ.items()):
        (root / name).mkdir()
        for clip in range(8):
            soundfile.write(root / name / f"{clip}.wav", sound(pitch_hz, 100 * number + clip), RATE_HZ)
    (root / "low" / "broken.wav").write_bytes(b"no sound at all")
    (root / "low" / "notes.txt").write_text("not a sound")
    return root


def taught(folder: Path, to: Path, options: Options = FEW, model: str = "log-mel") -> dict[str, object]:
    recipe = recipes.load("demo", [f"paths.artifacts={to}"])
    written = prototypes.run(
        model, str(folder), recipe=recipe, options=options, console=console(), to=to / "bank"
    )
    record: dict[str, object] = json.loads((written / "prototypes.json").read_text(encoding="utf-8"))
    return record


@pytest.fixture(scope="module")
def bank(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    to = tmp_path_factory.mktemp("bank")
    return to / "bank", taught(folder, to)


def hear(path: Path, pitch_hz: float, seed: int, **state: np.ndarray) -> dict[str, np.ndarray]:
    log_mel = LogMel(LogMelConfig())(torch.from_numpy(sound(pitch_hz, seed))[None])[:, None].numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"log_mel": log_mel, **state}), strict=True))


def test_classes_without_an_encoder_are_taught_written_and_scored(
    bank: tuple[Path, dict[str, object]],
) -> None:
    folder, record = bank
    assert record["classes"] == ["high", "low", "middle"] and record["clips"] == 24
    rows = {row["encoder"]: row for row in record["rows"]}  # type: ignore[attr-defined]
    assert set(rows) == {"log_mel_fp32", "log_mel_int8"}
    for row in rows.values():
        assert row["few_shot"]["accuracy"] > 0.9 and row["few_shot"]["shots"] == 3
        assert row["few_shot"]["low"] <= row["few_shot"]["accuracy"] <= row["few_shot"]["high"]
        assert (folder / row["file"]).is_file() and row["rejection"]["auroc"] > 0.8
        assert row["encoder_bytes"] == 0 and row["dim"] == 128
    # Five slots (three classes, two free): four bytes a number, or one and a scale.
    assert rows["log_mel_fp32"]["bank_bytes"] == 5 * (4 * 128 + 4)
    assert rows["log_mel_int8"]["bank_bytes"] == 5 * (128 + 8)


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_the_written_file_hears_the_classes_and_learns_another(
    kind: str, bank: tuple[Path, dict[str, object]]
) -> None:
    path = bank[0] / f"prototypes_log_mel_{kind}.onnx"
    names = ["high", "low", "middle"]
    for name, pitch_hz in PITCHES_HZ.items():
        assert hear(path, pitch_hz, seed=999)["class"].tolist() == [names.index(name)]
    state: dict[str, np.ndarray] = {}
    for seed in range(5):
        found = hear(path, 6_500.0, seed=2_000 + seed, enrol=np.array([3]), **state)
        state = {key.removesuffix(".next"): value for key, value in found.items() if key.endswith(".next")}
    assert state["counts"].tolist() == [3.0, 3.0, 3.0, 5.0, 0.0]
    assert hear(path, 6_500.0, seed=3_000, **state)["class"].tolist() == [3]


def test_a_table_and_neighbours_give_what_a_folder_gives(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"path": str(path.relative_to(folder)), "kind": path.parent.name, "take": path.stem}
        for path in sorted(folder.rglob("*.wav")) if path.stem != "broken"
    ]  # fmt: skip
    table = folder / "clips.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    recipe = recipes.load("demo", [f"paths.artifacts={tmp_path}"])
    options = Options(shots=3, episodes=5, neighbours=3, slots=2)
    # Recordings named by the take: the same take of every class is on one side.
    written = prototypes.run(
        "log-mel", str(table), recipe=recipe, options=options, console=console(), label="kind", group="take"
    )
    assert written == tmp_path / "prototypes" / "log-mel-clips"
    record = json.loads((written / "prototypes.json").read_text(encoding="utf-8"))
    assert record["recordings"] == 8 and record["classes"] == ["high", "low", "middle"]
    assert record["rows"][0]["few_shot"]["accuracy"] > 0.8
    assert hear(written / "prototypes_log_mel_fp32.onnx", 150.0, seed=999)["class"].tolist() == [1]
    assert record["rows"][0]["bank_bytes"] == (9 + 2) * (4 * 128 + 4)


def test_what_cannot_be_is_one_clear_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too few clips to teach 9"):
        taught(folder, tmp_path, Options(shots=9))
    with pytest.raises(ConfigError, match="--metric"):
        taught(folder, tmp_path, Options(metric="manhattan"))
    with pytest.raises(ConfigError, match="--features"):
        taught(folder, tmp_path, Options(features="whitened"))
    with pytest.raises(ConfigError, match="--shots is too small"):
        taught(folder, tmp_path, Options(shots=0))
    with pytest.raises(ConfigError, match="no folder, table or task"):
        taught(Path("esc11"), tmp_path)
    with pytest.raises(ConfigError, match="needs its audio"):
        taught(Path("esc10"), tmp_path)
    with pytest.raises(ManifestError, match="no folder of classes"):
        class_clips.of_folder(folder / "low")
    with pytest.raises(MissingArtifactError):
        taught(folder, tmp_path, model="artifacts/run/nowhere-seed0-0123456789ab")
