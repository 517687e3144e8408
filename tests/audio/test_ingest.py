"""From files to a manifest: deduplicated by sound, rejects with reasons, splits by group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.audio import sources
from pipeline.audio.ingest import ingest
from pipeline.manifest import validate
from pipeline.recipe import DATA_MANIFESTS


def write(path: Path, seed: int, seconds: float = 0.5, rate: int = 16_000, **options: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)
    soundfile.write(path, samples, rate, **options)


def look(folder: Path, workers: int = 1):  # type: ignore[no-untyped-def]
    candidates = list(sources.folder_candidates("folder", folder))
    return ingest(
        candidates, {"folder": folder}, min_seconds=0.05, validation_share=0.3, seed=0, workers=workers
    )


def test_a_folder_becomes_a_valid_manifest(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / "dog" / f"{i}.wav", i)
    write(tmp_path / "cat" / "same.wav", 3)
    integers, rate = soundfile.read(tmp_path / "dog" / "3.wav", dtype="int16")
    soundfile.write(tmp_path / "cat" / "copy.flac", integers, rate)
    (tmp_path / "cat" / "notes.txt").write_text("not sound")
    (tmp_path / ".hidden").write_text("x")
    found = look(tmp_path)
    validate(found.clips, {"folder": tmp_path})
    reasons = dict(zip(found.rejects["path"], found.rejects["reason"], strict=True))
    assert reasons["cat/notes.txt"] == "not_audio"
    # Of the three files with the same samples one is kept, whatever its format.
    assert sum(reason == "duplicate" for reason in reasons.values()) == 2
    assert ".hidden" not in reasons
    assert set(found.clips["label"]) == {"dog", "cat"}
    assert (found.clips["split"] == "validation").sum() == 3
    assert (found.clips["licence"] == "unknown").all()


def test_two_workers_find_what_one_finds(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / f"{i:02d}.wav", i % 9)
    alone, together = look(tmp_path), look(tmp_path, workers=2)
    assert alone.clips.equals(together.clips)
    assert alone.rejects.equals(together.rejects)


def test_equal_names_in_two_folders_stay_two_clips(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.wav", 1)
    write(tmp_path / "b" / "1.wav", 2)
    assert look(tmp_path).clips["clip_id"].nunique() == 2


@pytest.mark.parametrize(
    ("package", "path", "dataset", "group", "label"),
    [
        ("hydrogen-drumkits", "usr/share/hydrogen/data/drumkits/BJA_Pacific/BD_01.aiff", "hydrogen-drumkits",
         "BJA_Pacific", "kick"),
        ("hydrogen-drumkits", "usr/share/hydrogen/data/drumkits/VariBreaks/VP Hat 1 Op.flac", "hydrogen-drumkits",
         "VariBreaks", "hihat"),
        ("hydrogen-drumkits", "usr/share/hydrogen/data/drumkits/Millo_MultiLayered3/ft_02.flac", "hydrogen-drumkits",
         "Millo_MultiLayered3", "tom"),
        ("hydrogen-drumkits", "usr/share/hydrogen/data/drumkits/ForzeeStereo/CrashRide18Bell-0.wav",
         "hydrogen-drumkits", "ForzeeStereo", "cymbal"),
        ("hydrogen-drumkits", "usr/share/hydrogen/data/drumkits/Gimme A Hand 1.0/Cowbell-Med.wav",
         "hydrogen-drumkits", "Gimme A Hand 1.0", ""),
        ("sonic-pi-samples", "usr/share/sonic-pi/samples/tabla_ghe3.flac", "sonic-pi-samples", "tabla_ghe", "tabla"),
        ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps/animals/dog_desc_fr.ogg", "tuxpaint-names", "fr", ""),
        ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps/animals/dog.ogg", "tuxpaint-effects",
         "usr/share/tuxpaint/stamps/animals/dog.ogg", ""),
        ("ktuberling-data", "usr/share/ktuberling/sounds/sr@latin/eye.wav", "ktuberling", "sr", ""),
    ],
)  # fmt: skip
def test_sources_know_dataset_group_and_label(
    package: str, path: str, dataset: str, group: str, label: str, tmp_path: Path
) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    mine = [s for s in sources.read_sources(DATA_MANIFESTS) if s.package == package]
    (found,) = sources.package_candidates(package, tmp_path, mine)
    assert (found.dataset, found.group, found.label) == (dataset, group, label)
    assert found.licence
    assert found.credit
