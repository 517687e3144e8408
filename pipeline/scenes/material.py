"""What scenes are made of: speakers and backgrounds of two manifests, shared out so that no split hears the other's."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.audio.pools import matches
from pipeline.errors import ManifestError
from pipeline.manifest import Manifest
from pipeline.scenes_config import ScenesConfig

DEVELOPMENT, TEST = "development", "test"
SPLITS = (DEVELOPMENT, TEST)
REJECT_COLUMNS = ("role", "dataset", "path", "reason", "problem")


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip that scenes may use; ``group`` is ``dataset/group``: its speaker or recording."""

    clip_id: str
    file: Path
    dataset: str
    path: str
    group: str
    licence: str
    credit: str
    sample_rate_hz: int
    frames: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.frames / self.sample_rate_hz


@dataclass
class Material:
    """Clips by split.

    Attributes:
        speakers: split to speaker to clips.
        backgrounds: split to environment class to recording to clips.
        rejects: ``REJECT_COLUMNS`` of each clip that is not used, and why.
    """

    speakers: dict[str, dict[str, list[Clip]]] = field(default_factory=dict)
    backgrounds: dict[str, dict[str, dict[str, list[Clip]]]] = field(default_factory=dict)
    rejects: list[dict[str, str]] = field(default_factory=list)


def gather(speech: Manifest, background: Manifest, config: ScenesConfig) -> Material:
    """Return what scenes may be made of.

    Raises:
        ManifestError: fewer than two speakers, or no environment with recordings for both splits.
    """
    material = Material()
    spoken = _clips(speech, speech.frame[matches(speech.frame, config.speech)], "speech", config, material)
    speakers: dict[str, list[Clip]] = defaultdict(list)
    for clip, _ in spoken:
        speakers[clip.group].append(clip)
    if len(speakers) < 2:
        raise ManifestError(
            "scenes want two speakers at least, one for each split",
            expected="speech of several groups (dataset and group of the manifest)",
            got=f"{len(speakers)} with usable clips; rejects: {_counted(material.rejects)}",
            run="--set scenes.speech_manifest=FOLDER, or widen scenes.speech",
        )
    test = held_out(speakers, config, "speaker")
    material.speakers = {
        split: {name: speakers[name] for name in sorted(speakers) if (name in test) == (split == TEST)}
        for split in SPLITS
    }
    chosen = background.frame[matches(background.frame, config.background)]
    heard = {clip.clip_id for clip, _ in spoken} | {clip.group for clip, _ in spoken}
    lying = _clips(background, chosen, "background", config, material, heard)
    _share_out(lying, config, material)
    return material


def held_out(names: Iterable[str], config: ScenesConfig, what: str) -> set[str]:
    """Return the names of the test split: a share of them drawn by seed, one at least, not all."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"{config.seed}/{what}/{name}".encode()).digest())
    if len(ordered) < 2:
        return set()
    count = min(max(round(len(ordered) * config.test_share), 1), len(ordered) - 1)
    return set(ordered[:count])


def _share_out(clips: list[tuple[Clip, str]], config: ScenesConfig, material: Material) -> None:
    """Split recordings environment by environment; environments that one split lacks are left out."""
    of_group: dict[str, Counter[str]] = defaultdict(Counter)
    for clip, environment in clips:
        of_group[clip.group][environment] += 1
    # A recording whose clips are of several classes (a drum kit) goes by the one it has most of.
    main: dict[str, list[str]] = defaultdict(list)
    for group, classes in of_group.items():
        main[min(classes, key=lambda name: (-classes[name], name))].append(group)
    test = {group for groups in main.values() for group in held_out(groups, config, "recording")}
    found: dict[str, dict[str, dict[str, list[Clip]]]] = {split: {} for split in SPLITS}
    for clip, environment in clips:
        place = found[TEST if clip.group in test else DEVELOPMENT]
        place.setdefault(environment, {}).setdefault(clip.group, []).append(clip)
    both = set(found[DEVELOPMENT]) & set(found[TEST])
    for clip, environment in clips:
        if environment not in both:
            problem = f"all recordings of {environment} are in one split"
            material.rejects.append(_reject("background", clip.dataset, clip.path, "one_split", problem))
    if not both:
        raise ManifestError(
            "scenes want an environment with two recordings at least, one for each split",
            expected="backgrounds of several groups with one label (or dataset)",
            got=f"{len(clips)} usable backgrounds; rejects: {_counted(material.rejects)}",
            run="--set scenes.background_manifest=FOLDER, or widen scenes.background",
        )
    material.backgrounds = {
        split: {name: dict(sorted(found[split][name].items())) for name in sorted(both)} for split in SPLITS
    }


def _clips(
    manifest: Manifest,
    frame: pd.DataFrame,
    role: str,
    config: ScenesConfig,
    material: Material,
    heard: set[str] | None = None,
) -> list[tuple[Clip, str]]:
    """Return the usable clips, each with its environment class; the others become rejects."""
    found = []
    for row in frame.sort_values(["dataset", "path"], kind="stable").to_dict("records"):
        clip = _clip(manifest, row)
        environment = _environment(row, config.environments) if role == "background" else ""
        reason, problem = "", ""
        if clip.sample_rate_hz < config.min_sample_rate_hz:
            reason, problem = "low_rate", f"{clip.sample_rate_hz} Hz, {config.min_sample_rate_hz} wanted"
        elif heard and (clip.clip_id in heard or clip.group in heard):
            reason, problem = "speech", "its recording is speech already"
        elif role == "background" and clip.seconds < config.min_background_seconds:
            reason = "too_short"
            problem = f"{clip.seconds:.2f} s, {config.min_background_seconds:g} wanted"
        elif role == "background" and not environment:
            reason, problem = "no_environment", "scenes.environments names neither its label nor its dataset"
        if reason:
            material.rejects.append(_reject(role, clip.dataset, clip.path, reason, problem))
        else:
            found.append((clip, environment))
    return found


def _environment(row: Mapping[Any, object], names: Mapping[str, str]) -> str:
    label, dataset = str(row["label"]), str(row["dataset"])
    if names:
        return names.get(label) or names.get(dataset) or ""
    return label or dataset


def _clip(manifest: Manifest, row: Mapping[Any, object]) -> Clip:
    return Clip(
        str(row["clip_id"]), manifest.roots[str(row["root"])] / str(row["path"]), str(row["dataset"]),
        str(row["path"]), f"{row['dataset']}/{row['group']}", str(row["licence"]), str(row["credit"]),
        int(str(row["sample_rate_hz"])), int(str(row["frames"])),
    )  # fmt: skip


def _reject(role: str, dataset: str, path: str, reason: str, problem: str) -> dict[str, str]:
    return dict(zip(REJECT_COLUMNS, (role, dataset, path, reason, problem), strict=True))


def _counted(rejects: list[dict[str, str]]) -> str:
    counts = Counter(reject["reason"] for reject in rejects)
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "none"
