"""Sound files to mono float32: soundfile decodes, and every failure has a stable reason.

Files are opened by descriptor after a look at what they are, so that a FIFO cannot hang, a device is not
touched and a name that is not UTF-8 opens like any other. Nothing is ever allocated from what a header
claims: samples are read in bounded blocks until the file ends.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import soundfile
from jaxtyping import Float32

from pipeline.audio import riff
from pipeline.errors import AudioError

BLOCK_VALUES = 1 << 20  # samples times channels decoded at once: 4 MiB
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
MAX_PEAK = 64.0  # +36 dBFS; integer samples stored as float are not sound that a teacher was trained on
LOST_SHARE = 0.01
MP3_DELAY_FRAMES = 2 * 1152  # codec delay: an MP3 header may count it

REASONS = {
    "missing": "there is no such file",
    "directory": "it is a folder",
    "not_a_file": "it is a pipe, socket or device",
    "symlink_loop": "its symbolic links form a loop",
    "bad_name": "its name cannot be a file's name",
    "unreadable": "the system does not let it be read",
    "empty": "it has no bytes",
    "not_audio": "its content is no sound format that libsndfile knows",
    "corrupt": "its content breaks its own format",
    "no_channels": "it has no channels",
    "too_many_channels": "it has more channels than can be decoded",
    "bad_rate": f"its sample rate is outside {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz",
    "header_lies": "its header announces sound and no sample follows",
    "no_samples": "it holds no sample",
    "truncated": "it ends before its header says",
    "non_finite": "it holds NaN or infinite samples",
    "out_of_range": f"its samples exceed {MAX_PEAK:g} times full scale",
    "too_short": "it is shorter than the shortest clip wanted",
    "silent": "its peak is below the floor",
    "changed": "it is not the file that the manifest was made from",
    "bad_pack": "its HDF5 pack cannot be used",
}


class Observer(Protocol):
    """Sees every block of samples that ``inspect`` reads, so that nothing is decoded twice."""

    def add(self, block: Float32[np.ndarray, " samples"], peak: float, rate_hz: int) -> None:
        """Take one mono block, its largest magnitude and its sample rate."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says. ``frames`` is a claim until the file was read; -1 = it does not say."""

    sample_rate_hz: int
    channels: int
    frames: int
    format: str
    subtype: str

    @property
    def duration_seconds(self) -> float:
        """Length that the header claims."""
        return self.frames / self.sample_rate_hz


@dataclass(frozen=True)
class Inspection:
    """What a file really holds, read to its end.

    Attributes:
        info: its header, with ``frames`` counted.
        digest: SHA-256 of the rate and the mono float32 samples; the first 16 hex digits are the ``clip_id``.
        peak: largest magnitude of the mono signal.
    """

    info: AudioInfo
    digest: str
    peak: float


def rejection(reason: str, path: os.PathLike[str] | str | bytes, detail: object = None) -> AudioError:
    """Return the error for ``path``; ``reason`` is a key of ``REASONS``."""
    return AudioError(reason, f"{displayed(path)}: {REASONS[reason]}", got=detail)


def displayed(path: os.PathLike[str] | str | bytes) -> str:
    """Return ``path`` as text that any UTF-8 file can hold; bytes that are not UTF-8 become ``\\xNN``."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return ascii(path)


def probe(path: os.PathLike[str] | str | bytes) -> AudioInfo:
    """Return what the header of ``path`` says, without reading the sound.

    Raises:
        AudioError: it is no file, cannot be read or is no sound; ``reason`` is a key of ``REASONS``.
    """
    with _opened(path) as (sound, _):
        return _info(sound)


def read(
    path: os.PathLike[str] | str | bytes,
    start: int = 0,
    frames: int | None = None,
    *,
    content: bytes | None = None,
) -> tuple[Float32[np.ndarray, " samples"], int]:
    """Return mono samples at the file's own rate, and that rate in Hz.

    Args:
        path: a sound file of any format of libsndfile (wav, flac, ogg, mp3, aiff, ...).
        start: first frame wanted; found by a seek.
        frames: how many; fewer come back where the file ends earlier. None = to the end.
        content: the sound file itself, where it is no file on disk; ``path`` then only names it.

    Returns:
        float32 (samples,), the mean of the channels, and the sample rate in Hz.

    Raises:
        AudioError: unusable; ``reason`` is a key of ``REASONS``.
    """
    with _opened(path, content) as (sound, declared):
        blocks = list(_blocks(sound, path, start, frames))
        got = sum(len(block) for block in blocks)
        wanted = declared - start if frames is None else min(frames, declared - start)
        if declared >= 0 and got < wanted:
            _refuse_loss(sound, path, wanted, got, from_start=start == 0)
        if not got:
            raise rejection("no_samples", path, f"from frame {start}")
        mono = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        _finite_peak(mono, path)
        return mono, sound.samplerate


def inspect(
    path: os.PathLike[str] | str | bytes,
    min_seconds: float = 0.0,
    observer: Observer | None = None,
    *,
    content: bytes | None = None,
) -> Inspection:
    """Read ``path`` (or ``content``, which it names) to its end in bounded memory and return what it holds.

    Raises:
        AudioError: unusable, or shorter than ``min_seconds``; ``reason`` is a key of ``REASONS``.
    """
    with _opened(path, content) as (sound, declared):
        found = hashlib.sha256(f"{sound.samplerate} Hz\n".encode())
        frames, peak = 0, 0.0
        for block in _blocks(sound, path, 0, None):
            found.update(np.ascontiguousarray(block, dtype="<f4").data)
            frames += len(block)
            block_peak = _finite_peak(block, path)
            peak = max(peak, block_peak)
            if observer is not None:
                observer.add(block, block_peak, sound.samplerate)
        if frames < declared:
            _refuse_loss(sound, path, declared, frames, from_start=True)
        if not frames:
            raise rejection("no_samples", path)
        if frames < min_seconds * sound.samplerate:
            raise rejection("too_short", path, f"{frames / sound.samplerate:.4f} s, {min_seconds:g} s wanted")
        told = _info(sound)
        info = AudioInfo(told.sample_rate_hz, told.channels, frames, told.format, told.subtype)
        return Inspection(info, found.hexdigest(), peak)


def inspect_samples(
    samples: Float32[np.ndarray, " samples"],
    rate_hz: int,
    path: os.PathLike[str] | str | bytes,
    min_seconds: float = 0.0,
    observer: Observer | None = None,
) -> Inspection:
    """Return of mono samples what ``inspect`` returns of a file that holds them as float32.

    Raises:
        AudioError: unusable, or shorter than ``min_seconds``; ``reason`` is a key of ``REASONS``.
    """
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise rejection("bad_rate", path, f"{rate_hz} Hz")
    checked(samples, path, "anywhere")
    if len(samples) < min_seconds * rate_hz:
        raise rejection("too_short", path, f"{len(samples) / rate_hz:.4f} s, {min_seconds:g} s wanted")
    peak = _finite_peak(samples, path)
    if observer is not None:
        observer.add(samples, peak, rate_hz)
    found = hashlib.sha256(f"{rate_hz} Hz\n".encode())
    found.update(np.ascontiguousarray(samples, dtype="<f4").data)
    return Inspection(AudioInfo(rate_hz, 1, len(samples), "HDF5", "PCM_16"), found.hexdigest(), peak)


def checked(
    samples: Float32[np.ndarray, " samples"], path: os.PathLike[str] | str | bytes, detail: str
) -> Float32[np.ndarray, " samples"]:
    """Return ``samples``, refused where there are none or one is not finite."""
    if not len(samples):
        raise rejection("no_samples", path, detail)
    _finite_peak(samples, path)
    return samples


def decoded_digest(path: os.PathLike[str] | str | bytes) -> str:
    """Return the SHA-256 (64 hex) of the rate and the decoded mono samples: equal sound, equal digest."""
    return inspect(path).digest


@contextmanager
def _opened(
    path: os.PathLike[str] | str | bytes, content: bytes | None = None
) -> Iterator[tuple[soundfile.SoundFile, int]]:
    """Open a regular file, or bytes, as sound and give it with the frames it declares (-1 = it does not say)."""
    if content is not None:
        with _sound_in(content, path) as sound:
            yield sound, sound.frames if 0 <= sound.frames < 1 << 48 else -1
        return
    descriptor = _descriptor(path)
    try:
        size = os.fstat(descriptor).st_size
        if size == 0:
            raise rejection("empty", path)
        try:
            sound = soundfile.SoundFile(descriptor, closefd=False)
        except (soundfile.LibsndfileError, TypeError, ValueError) as error:
            raise _not_opened(descriptor, path, str(error)) from error
        with sound:
            if not MIN_RATE_HZ <= sound.samplerate <= MAX_RATE_HZ:
                raise rejection("bad_rate", path, f"{sound.samplerate} Hz")
            declared = riff.declared_frames(descriptor, size)
            if declared is None:
                declared = sound.frames if 0 <= sound.frames < 1 << 48 else -1
            yield sound, declared
    finally:
        os.close(descriptor)


def _sound_in(content: bytes, path: os.PathLike[str] | str | bytes) -> soundfile.SoundFile:
    if not content:
        raise rejection("empty", path)
    try:
        sound = soundfile.SoundFile(io.BytesIO(content))
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        raise rejection(_open_failure(str(error)), path, str(error)) from error
    if not MIN_RATE_HZ <= sound.samplerate <= MAX_RATE_HZ:
        sound.close()
        raise rejection("bad_rate", path, f"{sound.samplerate} Hz")
    return sound


def _descriptor(path: os.PathLike[str] | str | bytes) -> int:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - pathlib refuses bytes names
        # Non-blocking: the name may have become a FIFO since it was looked at.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) if stat.S_ISREG(mode) else -1
    except ValueError as error:
        raise rejection("bad_name", path, error) from error
    except OSError as error:
        reasons = {errno.ELOOP: "symlink_loop", errno.ENOENT: "missing", errno.ENOTDIR: "missing"}
        reasons |= {errno.ENAMETOOLONG: "bad_name", errno.ENXIO: "not_a_file"}
        raise rejection(reasons.get(error.errno or 0, "unreadable"), path, error.strerror) from error
    if descriptor < 0:
        raise rejection("directory" if stat.S_ISDIR(mode) else "not_a_file", path)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise rejection("not_a_file", path)
    return descriptor


def _not_opened(descriptor: int, path: os.PathLike[str] | str | bytes, message: str) -> AudioError:
    header = riff.read_header(descriptor)
    if header is not None and header.channels == 0:
        return rejection("no_channels", path)
    if header is not None and not MIN_RATE_HZ <= header.sample_rate_hz <= MAX_RATE_HZ:
        return rejection("bad_rate", path, f"{header.sample_rate_hz} Hz")
    reason = _open_failure(message)
    return rejection(reason, path, message if reason == "corrupt" else None)


def _open_failure(message: str) -> str:
    for words, reason in (
        ("Channel count is zero", "no_channels"),
        ("Too many channels", "too_many_channels"),
        ("Format not recognised", "not_audio"),
        ("File does not exist or is not a regular file", "not_audio"),
    ):
        if words in message:
            return reason
    return "corrupt"


def _blocks(
    sound: soundfile.SoundFile, path: os.PathLike[str] | str | bytes, start: int, frames: int | None
) -> Iterator[Float32[np.ndarray, " samples"]]:
    """Yield mono blocks of ``frames`` frames from ``start``, or of all there are."""
    block_frames = max(1, BLOCK_VALUES // sound.channels)
    left = frames
    try:
        if start > sound.frames >= 0:
            return
        if start:
            sound.seek(start)
        while left is None or left > 0:
            wanted = block_frames if left is None else min(block_frames, left)
            block = sound.read(wanted, dtype="float32", always_2d=True)
            if len(block) == 0:
                return
            yield _mono(block)
            if left is not None:
                left -= len(block)
    except soundfile.LibsndfileError as error:
        raise rejection("corrupt", path, error) from error


def _mono(block: Float32[np.ndarray, "frames channels"]) -> Float32[np.ndarray, " frames"]:
    mono = block[:, 0].copy()
    # Column by column: numpy's mean over so short an axis is ten times slower.
    with np.errstate(invalid="ignore", over="ignore"):
        for channel in range(1, block.shape[1]):
            mono += block[:, channel]
    if block.shape[1] > 1:
        mono /= np.float32(block.shape[1])
    return mono


def _finite_peak(mono: Float32[np.ndarray, " samples"], path: os.PathLike[str] | str | bytes) -> float:
    # max and min carry NaN and infinity along, so two passes check everything.
    peak = max(float(mono.max()), -float(mono.min()))
    if not np.isfinite(peak):
        raise rejection("non_finite", path)
    if peak > MAX_PEAK:
        raise rejection("out_of_range", path, f"peak {peak:g}")
    return peak


def _refuse_loss(
    sound: soundfile.SoundFile,
    path: os.PathLike[str] | str | bytes,
    wanted: int,
    got: int,
    *,
    from_start: bool,
) -> None:
    """Raise unless what is missing is within what encoders get wrong: 1 %, or an MP3's codec delay."""
    if got == 0 and from_start:
        raise rejection("header_lies", path, f"0 of {wanted} frames")
    slack = wanted * LOST_SHARE + (MP3_DELAY_FRAMES if sound.format == "MP3" else 0)
    if wanted - got > slack:
        raise rejection("truncated", path, f"{got} of {wanted} frames")


def _info(sound: soundfile.SoundFile) -> AudioInfo:
    frames = sound.frames if 0 <= sound.frames < 1 << 48 else -1
    return AudioInfo(sound.samplerate, sound.channels, frames, sound.format, sound.subtype)
