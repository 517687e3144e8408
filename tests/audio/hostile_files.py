"""More than 200 inputs that a folder of sound may hold and a decoder must survive, seeded and reproducible.

Each is made with what may become of it: the reasons that are right for it, and whether using it is.
"""

from __future__ import annotations

import io
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

USED = "used"
FORMATS = ("wav", "flac", "ogg", "mp3", "aiff", "au", "w64", "caf")
BROKEN = {"truncated", "corrupt", "not_audio", "header_lies", "no_samples"}


@dataclass(frozen=True)
class Hostile:
    """One input; ``outcomes`` are reasons, or ``USED`` where its sound may rightly be used."""

    path: Path
    outcomes: frozenset[str]


def wav(
    data: bytes,
    channels: int = 1,
    rate: int = 16_000,
    bits: int = 16,
    tag: int = 1,
    claim: int | None = None,
    fmt: bool = True,
    data_chunk: bool = True,
) -> bytes:
    """Return a WAVE file whose header says exactly this, true or not."""
    block = max(0, bits * channels // 8)
    claim = len(data) if claim is None else claim
    fields = (tag, channels, rate, rate * block % 2**32, block % 2**16, bits)
    body = b"WAVE"
    if fmt:
        body += struct.pack("<4sIHHIIHH", b"fmt ", 16, *fields)
    if data_chunk:
        body += struct.pack("<4sI", b"data", claim) + data
    return b"RIFF" + struct.pack("<I", (len(body) + max(0, claim - len(data))) % 2**32) + body


def sound(seconds: float = 0.5, rate: int = 16_000, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Return noise in 16-bit integers, (frames, channels)."""
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((round(seconds * rate), channels)) * 3_000).astype("<i2")


def encoded(form: str, samples: np.ndarray, rate: int = 16_000) -> bytes:
    """Return ``samples`` as a file of format ``form``."""
    target = io.BytesIO()
    subtype = {"ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}.get(form, "PCM_16")
    soundfile.write(target, samples, rate, format=form.upper(), subtype=subtype)
    return target.getvalue()


class _Folder:
    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, list[Hostile]()
        self._seed = 1_000

    def add(self, name: str, content: bytes, *outcomes: str) -> None:
        path = self.folder / name
        path.write_bytes(content)
        self.made.append(Hostile(path, frozenset(outcomes)))

    def note(self, path: Path, *outcomes: str) -> None:
        self.made.append(Hostile(path, frozenset(outcomes)))

    def sound(self, **options: float) -> np.ndarray:
        self._seed += 1  # every file its own sound, or the manifest would call it a duplicate
        return sound(seed=self._seed, **options)  # type: ignore[arg-type]


def write_all(folder: Path) -> list[Hostile]:
    """Write every hostile input into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    out = _Folder(folder)
    _contents(out)
    _cut_and_flipped(out)
    _headers(out)
    _samples(out)
    _special(out)
    return out.made


def _contents(out: _Folder) -> None:
    for suffix in ("wav", "flac", "ogg", "mp3"):
        out.add(f"empty.{suffix}", b"", "empty")
        strange = {
            "text": b"this is not a sound\n" * 40, "json": b'{"a": [1, 2, 3]}' * 9, "html": b"<html><body>404</body>",
            "zip": b"PK\x03\x04" + bytes(90), "png": b"\x89PNG\r\n\x1a\n" + bytes(90), "pdf": b"%PDF-1.7\n" + bytes(90),
            "zeros": bytes(4_096), "ones": b"\xff" * 4_096, "byte": b"\x00", "newline": b"\n",
            "noise": np.random.default_rng(5).bytes(9_000),
        }  # fmt: skip
        for name, content in strange.items():
            # An MP3 decoder looks for a frame anywhere, so random bytes may hold a millisecond of "sound".
            out.add(f"{name}.{suffix}", content, "not_audio", "corrupt", "too_short", "no_samples")
    for form in FORMATS:
        suffix = {"wav": "mp3", "mp3": "wav"}.get(form, "wav")
        out.add(f"really_{form}.{suffix}", encoded(form, out.sound()), USED)
    for magic in (
        b"RIFF",
        b"RIFF\x00\x00\x00\x00WAVE",
        b"fLaC",
        b"OggS",
        b"ID3\x03",
        b"FORM",
        b".snd",
        b"caff",
    ):
        name = "".join(chr(b) for b in magic if 97 <= b | 32 <= 122)
        out.add(f"only_magic_{name}{len(magic)}.wav", magic, *BROKEN)


def _cut_and_flipped(out: _Folder) -> None:
    for form in FORMATS:
        for share in (0.02, 0.25, 0.5, 0.9):
            content = encoded(form, out.sound(seconds=1.0))
            # Ogg, AIFF, AU, W64 and CAF are mended by libsndfile: what is there is played.
            out.add(f"cut_{share:g}.{form}", content[: int(len(content) * share)], *BROKEN, "too_short", USED)
    for form in ("flac", "ogg", "mp3", "wav"):
        for seed in range(6):
            content = bytearray(encoded(form, out.sound(seconds=1.0)))
            generator = np.random.default_rng([seed, 9])
            for position in generator.integers(len(content), size=4 + 30 * seed):
                content[position] ^= 1 << int(generator.integers(8))
            reasons = {*BROKEN, "no_channels", "too_many_channels", "bad_rate", "too_short"}
            out.add(f"flipped_{seed}.{form}", bytes(content), *reasons, USED)


def _headers(out: _Folder) -> None:
    def pcm(**options: float) -> bytes:
        return out.sound(**options).tobytes()

    out.add("channels_0.wav", wav(pcm(), channels=0), "no_channels")
    for channels in (2_000, 65_535):
        out.add(f"channels_{channels}.wav", wav(pcm(), channels=channels), "too_many_channels", "corrupt")
    for channels in (2, 3, 40, 200):
        many = out.sound(seconds=0.3, channels=channels)
        out.add(f"channels_{channels}.wav", wav(many.tobytes(), channels=channels), USED)
    for rate in (0, 1, 999, 768_001, 2**31 - 1, 2**31, 2**32 - 1):
        out.add(f"rate_{rate}.wav", wav(pcm(), rate=rate), "bad_rate")
    for rate in (4_000, 8_000, 11_025, 96_000, 192_000, 768_000):
        out.add(f"rate_{rate}.wav", wav(out.sound(seconds=0.5, rate=rate).tobytes(), rate=rate), USED)
    for bits in (0, 1, 7, 9, 12, 17, 48, 64, 65_535):
        reasons = {*BROKEN, "no_channels", "too_short", "out_of_range", "non_finite"}
        out.add(f"bits_{bits}.wav", wav(pcm(), bits=bits), *reasons, USED)
    for bits in (8, 24, 32):
        out.add(f"bits_{bits}.wav", wav(pcm(), bits=bits), USED)
    for tag in (0, 2, 6, 7, 17, 49, 85, 99, 0xFFFE, 0xFFFF):
        out.add(f"tag_{tag}.wav", wav(pcm(), tag=tag), *BROKEN, "too_short", USED)
    three_hours = 3 * 3_600 * 32_000
    out.add("three_hours_no_data.wav", wav(b"", claim=three_hours), "header_lies")
    out.add("three_hours_one_sample.wav", wav(pcm()[:2], claim=three_hours), "truncated")
    out.add("three_hours_half_second.wav", wav(pcm(), claim=three_hours), "truncated")
    out.add("length_left_open.wav", wav(pcm(), claim=0xFFFFFFFF), USED)
    out.add("length_zero.wav", wav(pcm(), claim=0), USED, "no_samples")
    out.add("odd_length.wav", wav(pcm()[:-1]), USED, "truncated")
    out.add("no_data_chunk.wav", wav(b"", data_chunk=False), *BROKEN)
    out.add("no_fmt_chunk.wav", wav(pcm(), fmt=False), *BROKEN)
    out.add("no_data.wav", wav(b""), "no_samples")
    out.add("chunk_of_4_gib.wav", wav(b"")[:36] + b"LIST\xff\xff\xff\xff" + pcm(), *BROKEN)
    for form, offset, content in (
        ("flac", 21, struct.pack(">BI", 0xF0, 3 * 3_600 * 16_000)),
        ("aiff", 22, struct.pack(">I", 3 * 3_600 * 16_000)),
        ("au", 8, struct.pack(">I", three_hours % 2**31)),
    ):
        told = bytearray(encoded(form, out.sound()))
        told[offset : offset + len(content)] = content
        out.add(f"three_hours_told.{form}", bytes(told), *BROKEN, USED)
        out.add(f"three_hours_told_short.{form}", bytes(told[:90]), *BROKEN, "too_short")


def _samples(out: _Folder) -> None:
    bad = {"nan": np.nan, "inf": np.inf, "minus_inf": -np.inf}
    for name, value in bad.items():
        for place, position in (("start", 0), ("middle", 3_000), ("end", -1)):
            samples = out.sound()[:, 0].astype("<f4") / 32_768
            samples[position] = value
            out.add(f"{name}_{place}.wav", wav(samples.tobytes(), bits=32, tag=3), "non_finite")
        stereo = (out.sound(channels=2) / 32_768).astype("<f4")
        stereo[100, 1] = value
        out.add(f"{name}_one_channel.wav", wav(stereo.tobytes(), channels=2, bits=32, tag=3), "non_finite")
    opposed = np.zeros((8_000, 2), "<f4")
    opposed[50] = np.inf, -np.inf
    out.add("inf_minus_inf.wav", wav(opposed.tobytes(), channels=2, bits=32, tag=3), "non_finite")
    out.add("all_nan.wav", wav(np.full(8_000, np.nan, "<f4").tobytes(), bits=32, tag=3), "non_finite")
    huge = out.sound()[:, 0].astype("<f8") * 1e300
    out.add("double_1e300.wav", wav(huge.astype("<f8").tobytes(), bits=64, tag=3), "non_finite")
    out.add("integers_as_float.wav", wav(out.sound().astype("<f4").tobytes(), bits=32, tag=3), "out_of_range")
    tiny = (out.sound()[:, 0] * 1e-44).astype("<f4")
    out.add("denormal.wav", wav(tiny.tobytes(), bits=32, tag=3), "silent", USED)
    out.add("digital_silence.wav", wav(bytes(16_000)), "silent", USED)
    out.add("constant.wav", wav(np.full(8_000, 9_000, "<i2").tobytes()), USED)
    for frames in (1, 2, 10):
        for form in ("wav", "flac", "ogg"):
            out.add(f"frames_{frames}.{form}", encoded(form, out.sound()[:frames]), "too_short", "no_samples")


def _special(out: _Folder) -> None:
    folder = out.folder
    target = folder / "good_target.wav"
    out.add("good_target.wav", encoded("wav", out.sound()), USED)
    (folder / "folder.wav").mkdir()
    out.note(folder / "folder.wav", "directory")
    os.mkfifo(folder / "fifo.wav")
    out.note(folder / "fifo.wav", "not_a_file")
    here = Path.cwd()
    os.chdir(folder)  # a socket's whole path may hold 107 bytes, less than pytest's folders take
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.wav")
    os.chdir(here)
    out.note(folder / "socket.wav", "not_a_file")
    links = {
        "loop.wav": ("loop.wav", "symlink_loop"), "dangling.wav": ("nowhere.wav", "missing"),
        "to_folder.wav": (".", "directory"), "to_zero.wav": ("/dev/zero", "not_a_file"),
        "to_null.wav": ("/dev/null", "not_a_file"), "to_file.wav": (target.name, USED),
        "through_file.wav": (f"{target.name}/x.wav", "missing"),
    }  # fmt: skip
    for name, (points_to, outcome) in links.items():
        (folder / name).symlink_to(points_to)
        out.note(folder / name, outcome)
    for number, name in enumerate(
        (b"caf\xe9.wav", b"\xff\xfe.wav", b"new\nline.wav", b" .wav", b"x" * 251 + b".wav")
    ):
        content = encoded("wav", out.sound())
        path = Path(os.fsdecode(bytes(folder) + b"/" + name))
        path.write_bytes(content + bytes(number))
        out.note(path, USED)
    out.add("no_permission.wav", encoded("wav", out.sound()), USED if os.geteuid() == 0 else "unreadable")
    (folder / "no_permission.wav").chmod(0)
