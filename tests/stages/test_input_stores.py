"""From inputs to stores: packs of both kinds, and files of the same sound, embed to the same arrays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from rich.console import Console

from pipeline import manifest as manifests
from pipeline import recipe as recipes
from pipeline.audio import plan
from pipeline.config import Recipe
from pipeline.errors import ManifestError
from pipeline.store.reader import StoreReader
from stages import embed, manifest
from tests.audio import audioset_folder, pack_writer

ROW_COLUMNS = [
    "row", "key", "view", "view_seed", "clip_id", "sources", "start_seconds", "duration_seconds", "dataset", "group",
    "label", "split", "licence", "status",
]  # fmt: skip


def recipe(folder: Path, inputs: list[dict[str, Any]], **changes: Any) -> Recipe:
    keys = {
        "name": "packs", "paths.artifacts": folder / "artifacts", "manifest.inputs": inputs,
        "manifest.validation_share": 0.3, "embed.teacher.name": "tiny", "embed.teacher.batch_size": 8,
        "embed.views.mixes": 4, "embed.shard_rows": 8, "embed.chunk_rows": 8, "embed.workers": 1,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }  # fmt: skip
    return recipes.change(Recipe(), keys)


def console() -> Console:
    return Console(record=True, width=300, file=Path(os.devnull).open("w"))


def stored(made: Recipe) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    manifest.run(made, console=console())
    reader = StoreReader(embed.run(made, console=console()))
    arrays = {
        name: np.concatenate(
            [reader.read_shard(i, arrays=(name,))[name] for i in range(len(reader.shard_sizes))]
        )
        for name in ("spectrogram", "embedding")
    }
    return reader.rows, arrays


def write_files(folder: Path, kind: str) -> dict[str, Any]:
    """Write the clips as files with the lists beside them; returns the input."""
    clips = audioset_folder.clips("wav" if kind == "panns_hdf5" else "mp3")
    (folder / "clips").mkdir(parents=True)
    for name, waveform, _ in clips:
        if waveform is None:
            continue
        if kind == "panns_hdf5":
            soundfile.write(
                folder / "clips" / name, waveform.astype(np.float32), audioset_folder.RATE_HZ, subtype="FLOAT"
            )
        else:
            (folder / "clips" / name).write_bytes(pack_writer.mp3_bytes(waveform))
    audioset_folder.write_class_labels(folder)
    segments = audioset_folder.write_segments(folder / "balanced_train_segments.csv", clips)
    return {"kind": "audioset", "segments": [segments], "root": folder / "clips"}


def write_pack(folder: Path, kind: str) -> dict[str, Any]:
    """Write the clips as one pack; returns the input."""
    audioset_folder.write_class_labels(folder)
    if kind == "panns_hdf5":
        clips = audioset_folder.clips("wav")
        pack = pack_writer.write_panns(
            folder / "balanced_train.h5", clips, samples=4 * audioset_folder.RATE_HZ
        )
    else:
        pack = pack_writer.write_mp3(folder / "balanced_train_segments_mp3.hdf", audioset_folder.clips("mp3"))
    return {"kind": kind, "path": pack}


@pytest.mark.parametrize("kind", ["panns_hdf5", "mp3_hdf5"])
def test_a_pack_embeds_equal_to_its_files(tmp_path: Path, kind: str) -> None:
    from_files, arrays = stored(recipe(tmp_path / "f", [write_files(tmp_path / "files", kind)]))
    from_pack, packed = stored(recipe(tmp_path / "p", [write_pack(tmp_path / "packs", kind)]))
    pd.testing.assert_frame_equal(from_files[ROW_COLUMNS], from_pack[ROW_COLUMNS])
    assert (from_pack["status"] == "ok").all() and (from_pack["view"] == "clean").sum() >= 5
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, packed[name])
    np.testing.assert_array_equal(np.isfinite(packed["embedding"]), True)


def test_the_manifest_tells_what_is_missing_and_how_the_sound_is(tmp_path: Path) -> None:
    made = recipe(tmp_path, [write_pack(tmp_path / "packs", "mp3_hdf5")])
    screen = console()
    folder = manifest.run(made, console=screen)
    text = screen.export_text()
    assert "1 missing" in text and "worth a look" in text
    rejects = pd.read_parquet(folder / "rejects.parquet")
    assert list(rejects["reason"]) == ["missing"]
    quality = pd.read_parquet(folder / "quality.parquet")
    clips = manifests.read(folder).frame
    assert list(quality["clip_id"]) == list(clips["clip_id"])
    assert set(quality["encoding"]) == {"MP3 MPEG_LAYER_III"}
    report = json.loads((folder / "quality.json").read_text())
    assert report["datasets"]["audioset"]["clips"] == 5 and report["rejects"] == {"missing": 1}
    again = console()
    assert manifest.run(made, console=again) == folder and "reused" in again.export_text()


def test_a_changed_pack_is_read_again(tmp_path: Path) -> None:
    made = recipe(tmp_path, [write_pack(tmp_path / "packs", "mp3_hdf5")])
    manifest.run(made, console=console())
    path = made.manifest.inputs[0].path  # type: ignore[union-attr]
    os.utime(path, ns=(1, 1))
    screen = console()
    manifest.run(made, console=screen)
    assert "reused" not in screen.export_text()


def write_own(folder: Path, clips: int) -> dict[str, Any]:
    folder.mkdir(parents=True)
    rows = ["path,label,group,split,quality"]
    for number in range(clips):
        sound = np.random.default_rng(100 + number).uniform(-0.4, 0.4, 48_000)
        soundfile.write(folder / f"{number}.wav", sound, 16_000)
        rows.append(
            f"{number}.wav,room,talker{number % 3},{'validation' if number % 3 == 0 else 'train'},good"
        )
    (folder / "own.csv").write_text("\n".join(rows) + "\n")
    return {"kind": "csv", "dataset": "internal", "path": folder / "own.csv"}


def test_the_thesiss_three_training_sets(tmp_path: Path) -> None:
    """AudioSet only, internal only, both by weights: from the same inputs, in the shipped recipes' shape."""
    audioset = {**write_files(tmp_path / "audioset", "panns_hdf5"), "validation_share": 0.0}
    internal = write_own(tmp_path / "internal", 9)
    counts = {}
    for name, inputs, weights in (
        ("audioset", [audioset], {}),
        ("internal", [internal], {}),
        ("both", [audioset, internal], {"audioset": 1.0, "internal": 2.0}),
    ):
        made = recipe(tmp_path / name, inputs, manifest__weights=weights, embed__views__mixes=0)
        folder = manifest.run(made, console=console())
        rows = plan.build(manifests.read(folder).frame, made.embed, made.manifest)
        counts[name] = rows.groupby("dataset").size().to_dict()
        if name == "internal":
            labels = pd.read_parquet(folder / "labels.parquet")
            assert set(labels["column"]) == {"quality"} and set(labels["value"]) == {"good"}
            assert set(rows["group"][rows["split"] == "validation"]) == {"talker0"}
        if name == "audioset":
            assert set(rows["split"]) == {"train"}
    # The 9 own windows are twice as many as AudioSet may give.
    assert counts == {
        "audioset": {"audioset": 5},
        "internal": {"internal": 9},
        "both": {"audioset": 4, "internal": 9},
    }


@pytest.mark.parametrize("name", ["thesis_audioset", "thesis_internal", "thesis_both"])
def test_the_shipped_thesis_recipes_differ_in_their_data_alone(name: str) -> None:
    one, both = recipes.load(name), recipes.load("thesis_both")
    assert one.manifest.inputs and all(source in both.manifest.inputs for source in one.manifest.inputs)
    for section in ("embed", "student", "targets", "loss", "train", "export", "evaluate", "runs"):
        assert getattr(one, section) == getattr(both, section)


def test_an_escaping_row_stops_the_stage_before_any_artifact(tmp_path: Path) -> None:
    source = write_own(tmp_path / "own", 2)
    with source["path"].open("a") as file:
        file.write("../../etc/passwd,x,y,,z\n")
    made = recipe(tmp_path, [source])
    with pytest.raises(ManifestError, match=r"a path with '\.\.'"):
        manifest.run(made, console=console())
    assert not (tmp_path / "artifacts").exists()
