"""From a row of the plan to its waveform: a pure function of the row and the files it names."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from pipeline.audio import decode, scene, textures
from pipeline.audio.plan import CLEAN, MIX, SAMPLE_RATE_HZ, TEXTURE
from pipeline.audio.windows import fit, frame_count
from pipeline.config import ViewsConfig
from pipeline.errors import AudioError, ManifestError
from pipeline.manifest import Manifest

CACHE_BYTES = 256 << 20


class ClipReader:
    """Decodes windows of a manifest's clips, at 44,100 Hz, and keeps those used last.

    Args:
        manifest: where the clips are.
        window_seconds: length of every window.
        peak_floor: a window whose peak is below is silence.
        cache_bytes: decoded sound kept at most.
    """

    def __init__(
        self, manifest: Manifest, window_seconds: float, peak_floor: float, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.window_seconds, self.peak_floor, self.cache_bytes = window_seconds, peak_floor, cache_bytes
        self.samples = frame_count(window_seconds, SAMPLE_RATE_HZ)
        frame = manifest.frame
        self._clips = {
            clip: (manifest.roots[root], path, int(rate))
            for clip, root, path, rate in zip(
                frame["clip_id"], frame["root"], frame["path"], frame["sample_rate_hz"], strict=True
            )
        }
        self._cache: OrderedDict[tuple[str, float], np.ndarray] = OrderedDict()
        self._cached_bytes = 0

    def path(self, clip_id: str) -> Path:
        """Return the file of a clip."""
        return self._clip(clip_id)[0]

    def window(self, clip_id: str, start_seconds: float) -> Float32[np.ndarray, " samples"]:
        """Return one window, padded with zeros where the clip ends; do not write to it.

        Raises:
            AudioError: the file cannot be used, is not the one the manifest saw, or the window is silent.
            ManifestError: the manifest has no such clip.
        """
        key = (clip_id, start_seconds)
        found = self._cache.get(key)
        if found is None:
            found = self._decoded(clip_id, start_seconds)
            self._cache[key] = found
            self._cached_bytes += found.nbytes
            while self._cached_bytes > self.cache_bytes and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        else:
            self._cache.move_to_end(key)
        return fit(found, self.samples)

    def _decoded(self, clip_id: str, start_seconds: float) -> np.ndarray:
        path, rate = self._clip(clip_id)
        start = frame_count(start_seconds, rate)
        native, found_rate = decode.read(path, start, frame_count(self.window_seconds, rate))
        if found_rate != rate:
            raise decode.rejection("changed", path, f"{found_rate} Hz, the manifest says {rate} Hz")
        if max(float(native.max()), -float(native.min())) < self.peak_floor:
            raise decode.rejection("silent", path, f"from {start_seconds:.3f} s")
        return decode.resample(native, rate, SAMPLE_RATE_HZ)[: self.samples]

    def _clip(self, clip_id: str) -> tuple[Path, int]:
        if clip_id not in self._clips:
            raise ManifestError(f"the manifest has no clip {clip_id}", run="make manifest, then make embed")
        root, path, rate = self._clips[clip_id]
        return root / path, rate


class Renderer:
    """Makes the waveform of any row of a plan."""

    def __init__(self, reader: ClipReader, views: ViewsConfig) -> None:
        self.reader, self.views = reader, views

    def render(self, row: Mapping[str, Any]) -> Float32[np.ndarray, " samples"]:
        """Return the row's waveform: float32 (samples,) at 44,100 Hz.

        Args:
            row: ``view``, ``view_seed`` and ``sources`` of ``pipeline.audio.plan.build``.

        Raises:
            AudioError: a source cannot be used; ``reason`` says why.
        """
        windows = [self.reader.window(clip, start) for clip, start in json.loads(row["sources"])]
        if row["view"] == CLEAN:
            return windows[0]
        if row["view"] == MIX:
            return scene.mix(windows, int(row["view_seed"]), self.views, SAMPLE_RATE_HZ)
        if row["view"] == TEXTURE:
            clean = windows[0] if windows else None
            seed, samples = int(row["view_seed"]), self.reader.samples
            return textures.texture(seed, samples, SAMPLE_RATE_HZ, self.views, clean)
        raise ManifestError("unknown view", expected="clean, mix or texture", got=row["view"])

    def attempt(
        self, row: Mapping[str, Any]
    ) -> tuple[Float32[np.ndarray, " samples"] | None, dict[str, Any] | None]:
        """Return the waveform and None, or None and why not: a row for ``rejects.parquet``."""
        try:
            return self.render(row), None
        except AudioError as error:
            path = decode.displayed(self.reader.path(row["clip_id"])) if row["clip_id"] else ""
            problem = " ".join(str(error).split())
            found = {"row": int(row["row"]), "clip_id": row["clip_id"], "path": path}
            return None, {**found, "reason": error.reason, "problem": problem}
