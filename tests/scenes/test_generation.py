"""The same seed gives the same bytes, an interrupted folder goes on, splits share nothing, bad input is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from pipeline import artifact, manifest
from pipeline.audio.tables import csv_rows
from pipeline.errors import ConfigError, ManifestError, MissingArtifactError
from pipeline.evaluation import dear_table
from pipeline.recipe import overridden
from pipeline.scenes import acoustics, generation, layout, material
from pipeline.scenes.measures import rt60_seconds
from pipeline.scenes.schedule import schedule
from pipeline.scenes_config import SceneRoomsConfig, ScenesConfig
from stages import scenes as stage
from stages.console import console
from tests.scenes import material_folder
from tests.scenes.material_folder import settings


def contents(folder: Path) -> dict[str, bytes]:
    """Return what of a folder depends on the seed alone: its sound, stems, records and table."""
    files = [*folder.glob("*/*.*"), folder / "DEAR_metadata.csv"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_same_seed_same_bytes_by_any_number_of_processes(scenes: Path, clips: Path, tmp_path: Path) -> None:
    again = stage.run(overridden(settings(clips, tmp_path, "scenes.workers=2")), console=console())
    assert again.name == scenes.name
    assert contents(again) == contents(scenes)


def test_another_seed_gives_other_sound(scenes: Path, clips: Path, tmp_path: Path) -> None:
    other = overridden(settings(clips, tmp_path, "scenes.seed=6", "scenes.tracks=4", "scenes.stems=false"))
    folder = stage.run(other, console=console())
    mine = {path.read_bytes() for path in (scenes / "files").glob("*.wav")}
    assert not mine & {path.read_bytes() for path in (folder / "files").glob("*.wav")}
    assert not (folder / "stems").exists()


def test_a_finished_folder_is_reused_and_a_torn_one_goes_on(
    scenes: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "scenes" / scenes.name
    shutil.copytree(scenes, folder)
    (folder / artifact.MARKER).unlink()
    (folder / "files" / "00001.wav").write_bytes(b"torn")
    (folder / "records" / "00002.json").write_text('{"id": ', encoding="utf-8")
    (folder / "files" / ".00003.wav.x.tmp").write_bytes(b"left by a killed process")
    made: list[int] = []
    render = generation.render
    monkeypatch.setattr(
        generation, "render", lambda slot, *rest: made.append(slot.number) or render(slot, *rest)
    )
    recipe = overridden(settings(clips, tmp_path))
    assert stage.run(recipe, console=console()) == folder
    assert made == [1, 2]
    assert contents(folder) == contents(scenes)
    assert not list(folder.glob("*/.*.tmp"))
    assert stage.run(recipe, console=console()) == folder and made == [1, 2]


def test_splits_share_no_speaker_recording_or_room(scenes: Path) -> None:
    parts = pd.read_parquet(scenes / "provenance.parquet")
    parts = parts[parts["dataset"] != "procedural"]
    sides = dict(list(parts.groupby("split")))
    assert set(sides) == {"development", "test"}
    for column in ("clip_id", "group"):
        assert not set(sides["development"][column]) & set(sides["test"][column])
    tracks = pd.read_parquet(scenes / "tracks.parquet")
    rooms = {split: set(rows["room_name"]) for split, rows in tracks.groupby("split")}
    assert not rooms["development"] & rooms["test"]
    sizes = {
        s: {tuple(v) for v in t[t["room_indoor"]]["room_size_metres"]} for s, t in tracks.groupby("split")
    }
    assert sizes["development"] and not sizes["development"] & sizes["test"]
    licences = pd.read_parquet(scenes / "licences.parquet")
    assert set(parts["clip_id"]) <= set(licences["clip_id"]) and (licences["licence"] == "CC0-1.0").all()


def test_the_reader_of_dear_reads_it(scenes: Path) -> None:
    tracks = dear_table.read(scenes)
    table = list(csv_rows(scenes / "DEAR_metadata.csv", ("id", "split")))
    assert tracks.seconds == 3 and list(tracks.ids) == [row["id"] for row in table]
    active = np.array([[row[f"nTargetsActive_{k}"] for k in (1, 2, 3)] for row in table])
    assert np.array_equal(np.isnan(tracks.active), active == "")
    assert set(tracks.cells["environmentClass"]) == {"", "rain", "door", "crowd"}
    tasks = {task.name.removeprefix("dear_"): task for task in dear_table.tasks(tracks)}
    assert tuple(tasks) == dear_table.TASKS
    assert len(tasks["speakers_active"].rows) == int((active != "").sum())
    whole = list(layout.columns(30))
    assert whole[:4] == ["id", "split", "environmentClass", "indoorOrOutdoor"]
    assert whole[-1] == "nTargetsActive_30" and len(whole) == 68


def test_shares_hold_in_each_split(clips: Path) -> None:
    config = ScenesConfig(tracks=300)
    found = manifest.read(clips)
    slots = schedule(config, material.gather(found, found, config))
    assert [slot.number for slot in slots] == list(range(300))
    for split, count in (("development", 200), ("test", 100)):
        mine = [slot for slot in slots if slot.split == split]
        assert len(mine) == count
        assert sum(slot.noise for slot in mine) == round(0.15 * count)
        assert sum(not slot.indoor for slot in mine) == 0.4 * count
        # Test has two speakers, so that three at once become two.
        assert max(slot.speakers for slot in mine) == (3 if split == "development" else 2)


def test_rooms_decay_as_long_as_asked() -> None:
    pytest.importorskip("pyroomacoustics")
    config = SceneRoomsConfig()
    ratios, distances, directs = [], [], []
    for number in range(6):
        where = acoustics.place(0, "test", number, True, config)
        generator = np.random.default_rng(number)
        microphone, sources = acoustics.positions(generator, where, 1, config)
        (made,) = acoustics.responses(generator, where, microphone, sources, config.image_order, 16_000)
        ratios.append(rt60_seconds(made.taps, 16_000, made.direct_sample) / where.rt60_seconds)
        direct = np.abs(made.taps[made.direct_sample - 1 : made.direct_sample + 2]).max()
        distances.append(np.linalg.norm(np.subtract(sources[0], microphone)))
        directs.append(direct)
    # 1 / distance up to the library's constant; between two samples a peak loses a third.
    spread = np.array(directs) * np.array(distances)
    assert spread.max() / spread.min() < 1.7
    assert np.median(ratios) == pytest.approx(1.0, abs=0.15) and max(ratios) < 1.6 and min(ratios) > 0.6


def test_a_clip_that_went_bad_is_left_out_and_named(clips: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(clips.parent, root)
    frame = pd.read_parquet(root / "manifest" / "clips.parquet")
    folder = material_folder.finish(root, frame)
    soundfile.write(root / "audio/speech/0-0.wav", np.zeros(44_100), 44_100)
    (root / "audio/speech/1-0.wav").write_bytes(b"RIFF of nothing")
    (root / "audio/background/rain-0-0.wav").unlink()
    more = ("scenes.tracks=8", "scenes.stems=false", "scenes.noise_share=0")
    made = stage.run(overridden(settings(folder, tmp_path, *more)), console=console())
    rejects = pd.read_parquet(made / "rejects.parquet")
    assert set(rejects["path"]) <= {"speech/0-0.wav", "speech/1-0.wav", "background/rain-0-0.wav"}
    used = pd.read_parquet(made / "provenance.parquet")["path"]
    assert not set(used) & {"speech/0-0.wav", "speech/1-0.wav", "background/rain-0-0.wav"}
    assert json.loads((made / artifact.MARKER).read_text())["summary"]["rejects"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "effects"}, "two speakers"),
        ({"group": "one"}, "two speakers"),
        ({"sample_rate_hz": 8_000}, "two speakers"),
    ],
)
def test_too_little_speech_is_told(
    clips: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    frame = manifest.read(clips).frame
    speech = frame["kind"] == "speech"
    for column, value in change.items():
        frame.loc[speech, column] = value
    found = manifest.read(material_folder.finish(tmp_path, frame))
    with pytest.raises(ManifestError, match=message):
        material.gather(found, found, ScenesConfig())


def test_backgrounds_of_one_split_are_left_out(clips: Path, tmp_path: Path) -> None:
    frame = manifest.read(clips).frame
    frame.loc[frame["label"] == "rain", "group"] = "one recording"
    folder = material_folder.finish(tmp_path, frame)
    found = manifest.read(folder)
    gathered = material.gather(found, found, ScenesConfig())
    assert set(gathered.backgrounds["test"]) == {"door", "crowd"}
    assert {row["reason"] for row in gathered.rejects} == {"one_split"} and len(gathered.rejects) == 8
    named = ScenesConfig(environments={"rain": "Nature"})
    with pytest.raises(ManifestError, match="environment with two recordings"):
        material.gather(found, found, named)


def test_a_manifest_that_is_not_there_is_told(tmp_path: Path) -> None:
    recipe = overridden(settings(tmp_path / "nowhere", tmp_path))
    with pytest.raises(MissingArtifactError):
        stage.run(recipe, console=console())


@pytest.mark.parametrize(
    "override",
    [
        "scenes.tracks=1", "scenes.seconds=0", "scenes.speakers=[0,0,0]", "scenes.snr_db=[5,-5]",
        "scenes.stationary_below_db=9", "scenes.rooms.height_metres=[0.5,1]", "scenes.rooms.rt60_seconds=[0,1]",
        "scenes.level_dbfs=[-10,3]", "scenes.unknown=1", "scenes.test_share=0.001",
    ],
)  # fmt: skip
def test_impossible_keys_are_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        overridden([override])
