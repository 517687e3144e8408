"""Writes AudioSet packs as the field's own packing scripts do, from what their readers expect; no project code.

PANNs: ``waveform`` int16 = float x 32,767 clipped and truncated, cut or padded with zeros to a fixed length; a
missing clip leaves its row as HDF5 made it. PaSST and EfficientAT: ``mp3`` bytes, targets by ``numpy.packbits``.
"""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
import soundfile

CLASSES = 527
Clip = tuple[str, np.ndarray | None, list[int]]  # name with suffix, float waveform or None = missing, classes


def multi_hot(classes: list[int]) -> np.ndarray:
    target = np.zeros(CLASSES, dtype=bool)
    target[classes] = True
    return target


def to_int16(waveform: np.ndarray) -> np.ndarray:
    return (np.clip(waveform, -1, 1) * 32767.0).astype(np.int16)


def write_panns(path: Path, clips: list[Clip], rate_hz: int = 32_000, samples: int = 320_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("audio_name", shape=(len(clips),), dtype="S20")
        file.create_dataset("waveform", shape=(len(clips), samples), dtype=np.int16)
        file.create_dataset("target", shape=(len(clips), CLASSES), dtype=bool)
        file.attrs.create("sample_rate", data=rate_hz, dtype=np.int32)
        for row, (name, waveform, classes) in enumerate(clips):
            file["target"][row] = multi_hot(classes)
            if waveform is not None:
                file["audio_name"][row] = name.encode()
                fitted = np.concatenate((waveform, np.zeros(samples)))[:samples]
                file["waveform"][row] = to_int16(fitted)
    return path


def write_panns_index(path: Path, packs: dict[str, list[Clip]]) -> Path:
    """``packs``: path as the packer's machine had it, to its clips."""
    rows = [(place, number, clip) for place, clips in packs.items() for number, clip in enumerate(clips)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        names = [b"" if clip[1] is None else clip[0].encode() for _, _, clip in rows]
        file.create_dataset("audio_name", data=np.array(names, dtype="S20"))
        file.create_dataset("target", data=np.array([multi_hot(clip[2]) for _, _, clip in rows]))
        file.create_dataset(
            "hdf5_path", data=np.array([place.encode() for place, _, _ in rows], dtype="S200")
        )
        file.create_dataset("index_in_hdf5", data=np.array([number for _, number, _ in rows], dtype=np.int32))
    return path


def mp3_bytes(waveform: np.ndarray, rate_hz: int = 32_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate_hz, format="MP3", subtype="MPEG_LAYER_III")
    return buffer.getvalue()


def write_mp3(path: Path, clips: list[Clip], rate_hz: int = 32_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("audio_name", shape=(len(clips),), dtype="S20")
        file.create_dataset("mp3", shape=(len(clips),), dtype=h5py.special_dtype(vlen=np.dtype("uint8")))
        file.create_dataset("target", shape=(len(clips), (CLASSES + 7) // 8), dtype=np.uint8)
        for row, (name, waveform, classes) in enumerate(clips):
            file["target"][row] = np.packbits(multi_hot(classes), axis=-1)
            if waveform is not None:
                file["audio_name"][row] = name.encode()
                file["mp3"][row] = np.frombuffer(mp3_bytes(waveform, rate_hz), dtype=np.uint8)
    return path
