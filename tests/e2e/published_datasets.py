"""Miniature folders of the datasets that the published systems learn from, where their recipes look for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from tests.audio.audioset_folder import write_class_labels

RATE_HZ = 16_000
CLIPS = 24


def sound(number: int, seconds: float) -> np.ndarray:
    """Return a tone in noise, different for every number."""
    rng = np.random.default_rng(number)
    time = np.arange(round(RATE_HZ * seconds)) / RATE_HZ
    tone = np.sin(2 * np.pi * (150 + 90 * (number % 7)) * time)
    return (0.2 * tone + 0.05 * rng.standard_normal(len(time))).astype(np.float32)


def write_sound(path: Path, number: int, seconds: float = 1.2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    form = {".mp3": "MP3", ".ogg": "OGG"}.get(path.suffix)
    soundfile.write(path, sound(number, seconds), RATE_HZ, format=form)


def write_table(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def audioset(data: Path) -> None:
    root = data / "audioset"
    write_class_labels(root)
    lists: dict[str, list[str]] = {"balanced_train": [], "unbalanced_train": [], "eval": []}
    for number in range(CLIPS):
        name = f"clip{number:07d}"
        write_sound(root / "clips" / f"Y{name}.flac", number)
        labels = ",".join({f"/m/0{number % 3:04x}", f"/m/0{number % 5:04x}"})
        lists[list(lists)[number % 3]].append(f'{name}, 30.000, 40.000, "{labels}"')
    for which, rows in lists.items():
        write_table(root / f"{which}_segments.csv", "# created", "# num", "# YTID, start, end, labels", *rows)


def internal(data: Path) -> None:
    for number in range(CLIPS):
        write_sound(data / "internal" / f"{number}.wav", 100 + number)
    rows = [f"{number}.wav,{'ab'[number % 2]},session{number // 3}" for number in range(CLIPS)]
    write_table(data / "internal.csv", "path,label,group", *rows)


def tau(data: Path) -> None:
    root = data / "TAU-urban-acoustic-scenes-2022-mobile-development"
    scenes, devices = ("airport", "bus", "metro"), ("a", "b", "s1")
    names = []
    for number in range(CLIPS):
        scene, device = scenes[number % 3], devices[number // 3 % 3]
        names.append((f"audio/{scene}-lyon-{number}-0-{device}.wav", scene, f"lyon-{number}", device))
        write_sound(root / names[-1][0], number, 1.0)
    header = "filename\tscene_label\tidentifier\tsource_label"
    write_table(root / "meta.csv", header, *("\t".join(row) for row in names))
    for which, part in (("train", names[:18]), ("evaluate", names[18:])):
        rows = (f"{row[0]}\t{row[1]}" for row in part)
        write_table(root / "evaluation_setup" / f"fold1_{which}.csv", "filename\tscene_label", *rows)
    rng = np.random.default_rng(0)
    for number in range(2):
        response = rng.standard_normal(400) * np.exp(-np.arange(400) / 40)
        path = data / "micirp" / f"microphone{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, (response / np.abs(response).max()).astype(np.float32), RATE_HZ)


def esc50(data: Path) -> None:
    root = data / "ESC-50-master"
    rows = []
    for number in range(CLIPS):
        name = f"{number % 5 + 1}-{1000 + number}-A-{number % 3}.wav"
        write_sound(root / "audio" / name, number)
        category = ("dog", "rain", "clock_tick")[number % 3]
        rows.append(f"{name},{number % 5 + 1},{number % 3},{category},True,{1000 + number},A")
    write_table(root / "meta" / "esc50.csv", "filename,fold,target,category,esc10,src_file,take", *rows)


def openmic(data: Path) -> None:
    root = data / "openmic-2018"
    keys = [f"{number:06d}_3840" for number in range(CLIPS)]
    instruments = ("flute", "voice", "drums")
    answers = [f"{key},{instruments[number % 3]},1.0,3" for number, key in enumerate(keys)]
    answers += [f"{key},{instruments[(number + 1) % 3]},0.9,3" for number, key in enumerate(keys[::2])]
    for number, key in enumerate(keys):
        write_sound(root / "audio" / key[:3] / f"{key}.ogg", number)
    write_table(
        root / "openmic-2018-aggregated-labels.csv", "sample_key,instrument,relevance,num_responses", *answers
    )
    facts = (
        f"{number},{number},Artist {number},{key},0.0,Attribution 3.0" for number, key in enumerate(keys)
    )
    header = "track_id,artist_id,artist_name,sample_key,start_time,license_title"
    write_table(root / "openmic-2018-metadata.csv", header, *facts)
    write_table(root / "partitions" / "split01_train.csv", *keys)
    write_table(root / "partitions" / "split01_test.csv", "999999_3840")


def magnatagatune(data: Path) -> None:
    root = data / "MagnaTagATune"
    rows = []
    for number in range(CLIPS):
        path = f"{number % 16:x}/artist{number}-album-01-song-0-29.mp3"
        write_sound(root / "mp3" / path, number)
        rows.append(f'"{number}"\t"{number % 2}"\t"{(number // 2) % 2}"\t"1"\t"{path}"')
    write_table(root / "annotations_final.csv", '"clip_id"\t"no voice"\t"singer"\t"sitar"\t"mp3_path"', *rows)


DATASETS: dict[str, tuple[Callable[[Path], None], ...]] = {
    "thesis_audioset": (audioset,),
    "thesis_internal": (internal,),
    "thesis_both": (audioset, internal),
    "ssondo": (audioset,),
    "good_teacher": (tau,),
    "embedding_compression": (esc50,),
    "embedding_compression_hcnn": (esc50,),
    "east": (openmic,),
    "east_magna": (magnatagatune,),
}
