"""From a row of the plan to its waveform: a pure function of the row and the files it names."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from pipeline import manifest as manifests
from pipeline.audio import augmented, clip_source, decode, resampling, scene, textures
from pipeline.audio.augmented import AugmentedParameters
from pipeline.audio.augmented_plan import PARAMETERS
from pipeline.audio.impulse import ResponseFolder
from pipeline.audio.plan import AUGMENTED, CLEAN, MIX, SAMPLE_RATE_HZ, TEXTURE
from pipeline.audio.windows import fit, frame_count
from pipeline.config import EmbedConfig, ViewsConfig
from pipeline.errors import AudioError, ManifestError
from pipeline.manifest import Manifest

CACHE_BYTES = 256 << 20
# The plan's columns that a row's waveform, or its reject, depends on.
RENDERED_COLUMNS = ("row", "clip_id", "view", "view_seed", "sources", PARAMETERS)


def background_manifest(views: ViewsConfig) -> Manifest | None:
    """Return the manifest that backgrounds come from, or None where that is the recipe's own.

    Raises:
        MissingArtifactError: there is no finished manifest in ``views.background.manifest``.
    """
    asked = views.augmented and views.background.probability
    return manifests.read(views.background.manifest) if asked and views.background.manifest else None


def device_responses(views: ViewsConfig) -> ResponseFolder | None:
    """Return the impulse responses of devices, or None where no view is heard through one.

    Raises:
        ConfigError: the folder cannot be used.
    """
    asked = views.augmented and views.device.probability
    return ResponseFolder(views.device.folder) if asked and views.device.folder else None


class ClipReader:
    """Decodes windows of a manifest's clips, at 44,100 Hz, and keeps those used last.

    Args:
        manifest: where the clips are.
        window_seconds: length of every window.
        peak_floor: a window whose peak is below is silence.
        cache_bytes: decoded sound kept at most.
        others: a further manifest, of the backgrounds.
    """

    def __init__(
        self,
        manifest: Manifest,
        window_seconds: float,
        peak_floor: float,
        cache_bytes: int = CACHE_BYTES,
        others: Manifest | None = None,
    ) -> None:
        self.window_seconds, self.peak_floor, self.cache_bytes = window_seconds, peak_floor, cache_bytes
        self.samples = frame_count(window_seconds, SAMPLE_RATE_HZ)
        # Equal identifiers are equal sound, so it does not matter which manifest a clip is read by.
        self._clips = {**(_located(others) if others is not None else {}), **_located(manifest)}
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
        native, found_rate = clip_source.read(path, start, frame_count(self.window_seconds, rate))
        if found_rate != rate:
            raise decode.rejection("changed", path, f"{found_rate} Hz, the manifest says {rate} Hz")
        if max(float(native.max()), -float(native.min())) < self.peak_floor:
            raise decode.rejection("silent", path, f"from {start_seconds:.3f} s")
        return resampling.resample(native, rate, SAMPLE_RATE_HZ)[: self.samples]

    def _clip(self, clip_id: str) -> tuple[Path, int]:
        if clip_id not in self._clips:
            raise ManifestError(f"the manifest has no clip {clip_id}", run="make manifest, then make embed")
        root, path, rate = self._clips[clip_id]
        return root / path, rate


def _located(manifest: Manifest) -> dict[str, tuple[Path, str, int]]:
    frame = manifest.frame
    return {
        clip: (manifest.roots[root], path, int(rate))
        for clip, root, path, rate in zip(
            frame["clip_id"], frame["root"], frame["path"], frame["sample_rate_hz"], strict=True
        )
    }


class Renderer:
    """Makes the waveform of any row of a plan.

    Args:
        reader: of the clips.
        views: ranges of mixes and textures.
        devices: impulse responses of augmented views; None where no row was heard through a device.
    """

    def __init__(self, reader: ClipReader, views: ViewsConfig, devices: ResponseFolder | None = None) -> None:
        self.reader, self.views, self.devices = reader, views, devices

    @classmethod
    def of(cls, manifest: Manifest, embed: EmbedConfig, peak_floor: float) -> Renderer:
        """Return the renderer of a recipe's rows, with the backgrounds and devices that it names.

        Raises:
            MissingArtifactError: the background's manifest is not there.
            ConfigError: the folder of impulse responses cannot be used.
        """
        others, devices = background_manifest(embed.views), device_responses(embed.views)
        reader = ClipReader(manifest, embed.window_seconds, peak_floor, others=others)
        return cls(reader, embed.views, devices)

    def render(self, row: Mapping[str, Any]) -> Float32[np.ndarray, " samples"]:
        """Return the row's waveform: float32 (samples,) at 44,100 Hz.

        Args:
            row: ``view``, ``view_seed``, ``sources`` and, of augmented views, ``view_parameters`` of
                ``pipeline.audio.plan.build``.

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
        if row["view"] == AUGMENTED:
            parameters = AugmentedParameters.model_validate_json(row[PARAMETERS])
            given = self.devices.waveform if self.devices is not None else None
            return augmented.render(windows, parameters, SAMPLE_RATE_HZ, given)
        raise ManifestError("unknown view", expected="clean, mix, texture or augmented", got=row["view"])

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
