"""Miniatures of published datasets in their true layout, with metadata enough for every split and fold."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_sound(path: Path, kind: int, number: int, seconds: float = 0.6) -> None:
    """Write a tone of a pitch that ``kind`` decides, in noise that ``number`` decides."""
    generator = np.random.default_rng([kind, number])
    time = np.arange(round(RATE_HZ * seconds)) / RATE_HZ
    wave = 0.3 * np.sin(2 * np.pi * 250 * (1 + kind) * time) + 0.02 * generator.standard_normal(len(time))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave.astype(np.float32), RATE_HZ, format="OGG" if path.suffix == ".ogg" else None)


def esc50(root: Path) -> None:
    rows = [
        f"{f}-{s}-A-{c}.wav,{f},{c},class{c},False,{f}{s},A"
        for f in range(1, 6)
        for s in range(2)
        for c in (0, 1)
    ]
    write(root / "meta" / "esc50.csv", "filename,fold,target,category,esc10,src_file,take", *rows)


def urbansound8k(root: Path) -> None:
    rows = [f"{f}{c}-{c}-0-0.wav,{f}{c},0,4,1,{f},{c},class{c}" for f in range(1, 11) for c in (0, 1)]
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class"
    write(root / "metadata" / "UrbanSound8K.csv", header, *rows)


def fsd50k(root: Path) -> None:
    clip = {"license": "by", "uploader": "u"}
    names = {"dev": range(100, 112), "eval": range(200, 206)}
    for part, numbers in names.items():
        rows = []
        for n in numbers:
            labels = ("Guitar", "Guitar,Music", "Bark")[n % 3]
            split = f",{'val' if n % 4 == 3 else 'train'}" if part == "dev" else ""
            rows.append(f'{n},"{labels}","{labels}"{split}')
        header = "fname,labels,mids" + (",split" if part == "dev" else "")
        write(root / "FSD50K.ground_truth" / f"{part}.csv", header, *rows)
        info = {str(n): {**clip, "uploader": f"u{n}"} for n in numbers}
        write(root / "FSD50K.metadata" / f"{part}_clips_info_FSD50K.json", json.dumps(info))


def gtzan(root: Path) -> None:
    names = [f"{genre}/{genre}.{n:05d}.wav" for genre in ("blues", "rock") for n in range(12)]
    for name in names:
        write(root / "genres" / name, "x")
    for place, which in enumerate(("train", "valid", "test")):
        write(root / "lists" / f"{which}_filtered.txt", *names[place::4])


def nsynth(root: Path) -> None:
    for part, instruments in (("train", range(6)), ("valid", range(6, 9)), ("test", range(6, 9))):
        notes: dict[str, dict[str, object]] = {}
        for i in instruments:
            family = ("keyboard", "guitar", "bass")[i % 3]
            for pitch in (40, 60) if part != "test" else (45, 50):
                name = f"{family}_acoustic_{i:03d}-{pitch:03d}-025"
                notes[name] = {
                    "instrument_str": f"{family}_acoustic_{i:03d}", "instrument_family_str": family, "pitch": pitch,
                    "instrument_source_str": "acoustic", "velocity": 25, "qualities_str": [],
                }  # fmt: skip
        write(root / f"nsynth-{part}" / "examples.json", json.dumps(notes))


def magnatagatune(root: Path) -> None:
    rows = []
    for place, folder in enumerate("0123456789abcdef"):
        for n in range(2):
            sitar = (place + n) % 2
            rows.append(
                f'"{place}{n}"\t"{sitar}"\t"{1 - sitar}"\t"0"\t"{folder}/album-{place}-track{n}-0-29.mp3"'
            )
    write(root / "annotations_final.csv", '"clip_id"\t"sitar"\t"piano"\t"never"\t"mp3_path"', *rows)


def openmic2018(
    root: Path, instruments: tuple[str, ...] = ("cello", "flute", "voice"), sound: bool = False
) -> None:
    keys = [f"{n:06d}_{n}" for n in range(24)]
    labels, metadata = [], []
    for n, key in enumerate(keys):
        metadata.append(f"{n},{n // 2},Ann,{key},0.0,Attribution")
        for place, name in enumerate(instruments):
            if (n + place) % 4 != 3:
                labels.append(f"{key},{name},{0.9 if n % 2 == place % 2 else 0.1},3")
        if sound:
            write_sound(root / "audio" / key[:3] / f"{key}.ogg", n % 2, n)
    write(
        root / "openmic-2018-aggregated-labels.csv", "sample_key,instrument,relevance,num_responses", *labels
    )
    header = "track_id,artist_id,artist_name,sample_key,start_time,license_title"
    write(root / "openmic-2018-metadata.csv", header, *metadata)
    write(root / "partitions" / "split01_train.csv", *keys[:16])
    write(root / "partitions" / "split01_test.csv", *keys[16:])


def fma(root: Path) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["", "artist", "artist", "set", "set", "track", "track", "track"])
    writer.writerow(["", "id", "name", "split", "subset", "genre_top", "license", "title"])
    writer.writerow(["track_id", *[""] * 7])
    for n in range(24):
        split = ("training", "training", "validation", "test")[n // 6]
        subset = "small" if n % 6 else "large"
        writer.writerow([n, n, f"artist{n}", split, subset, ("Pop", "Rock")[n % 2], "CC", "t"])
    write(root / "fma_metadata" / "tracks.csv", buffer.getvalue().rstrip("\n"))


def tess(root: Path) -> None:
    for speaker in ("OAF", "YAF"):
        for word in ("back", "dog", "bite", "cab", "dab", "fail"):
            for emotion in ("angry", "sad", "ps"):
                write(root / f"{speaker}_{emotion}" / f"{speaker}_{word}_{emotion}.wav", "x")


def tau_scenes(root: Path, sound: bool = False) -> None:
    rows = []
    for n in range(32):
        scene = ("airport", "bus")[n % 2]
        device = ("a", "b", "s1")[n % 3] if n < 20 else ("a", "b", "s4", "s5")[n // 2 % 4]
        rows.append((f"audio/{scene}-lyon-{n}-0-{device}.wav", scene, f"lyon-{n}", device))
        if sound:
            write_sound(root / rows[-1][0], n % 2, n)
    write(
        root / "meta.csv",
        "filename\tscene_label\tidentifier\tsource_label",
        *("\t".join(row) for row in rows),
    )
    for which, part in (("train", rows[:20]), ("evaluate", rows[20:])):
        lines = (f"{row[0]}\t{row[1]}" for row in part)
        write(root / "evaluation_setup" / f"fold1_{which}.csv", "filename\tscene_label", *lines)


def speech_commands(root: Path) -> None:
    names = [f"{word}/{speaker:08x}_nohash_0.wav" for speaker in range(9) for word in ("yes", "no", "bed")]
    for name in (*names, "_background_noise_/pink_noise.wav"):
        write(root / name, "x")
    write(root / "validation_list.txt", *names[15:21])
    write(root / "testing_list.txt", *names[21:])


FOLDERS: dict[str, Callable[[Path], None]] = {
    "esc50": esc50, "urbansound8k": urbansound8k, "fsd50k": fsd50k, "gtzan": gtzan, "nsynth": nsynth,
    "magnatagatune": magnatagatune, "openmic2018": openmic2018, "fma": fma, "tess": tess, "tau_scenes": tau_scenes,
    "speech_commands": speech_commands,
}  # fmt: skip
