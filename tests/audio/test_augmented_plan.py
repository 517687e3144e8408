"""Which augmented views a plan has: none that leak, none that move others, none whose parts are not stored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr

from pipeline.audio import plan, synthesis
from pipeline.audio.augmented import AugmentedParameters
from pipeline.audio.impulse import ResponseFolder
from pipeline.audio.render import ClipReader, Renderer
from pipeline.config import EmbedConfig, ManifestConfig, ViewsConfig
from pipeline.errors import ConfigError
from pipeline.manifest import Manifest
from pipeline.view_config import FIRST_KEYS
from tests.audio.test_plan import LIMITS, clips

BACKGROUND = {"probability": 0.6, "snr_db": (-5.0, 20.0)}


def embed(**views: object) -> EmbedConfig:
    base = {"mixes": 30, "textures": 10, "seed": 3, "augmented": 1.5, "crop_probability": 0.5}
    return EmbedConfig(views=ViewsConfig(**{**base, **views}), shard_rows=128, seed=5)


def augmented_rows(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["view"] == "augmented"]


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return plan.build(clips(), embed(background=BACKGROUND, gain_db=(-6.0, 6.0)), LIMITS)


def test_a_plan_without_augmented_views_has_no_word_of_them() -> None:
    without = EmbedConfig(views=ViewsConfig(mixes=30, textures=10, seed=3), shard_rows=128, seed=5)
    built = plan.build(clips(), without, LIMITS)
    assert tuple(built.columns) == plan.COLUMNS
    assert set(without.views.content()) == FIRST_KEYS
    unused = ViewsConfig(mixes=30, textures=10, seed=3, crop_probability=0.4, room={"probability": 1.0})
    assert unused.content() == without.views.content()


def test_clean_windows_mixes_and_textures_keep_their_keys(rows: pd.DataFrame) -> None:
    without = EmbedConfig(views=ViewsConfig(seed=3), shard_rows=128, seed=5)
    clean = plan.build(clips(), without, LIMITS)
    assert set(clean["key"]) == set(rows["key"][rows["view"] == "clean"])
    assert rows["key"].is_unique
    assert (rows["view_parameters"] != "").equals(rows["view"] == "augmented")
    assert rows["row"].tolist() == list(range(len(rows)))


def test_each_view_is_one_of_its_clip(rows: pd.DataFrame) -> None:
    of_clip = clips().set_index("clip_id")
    made = augmented_rows(rows)
    clean = rows[rows["view"] == "clean"]
    assert len(made) == pytest.approx(1.5 * len(clean), rel=0.06)
    per_window = made.groupby("clip_id").size() / clean.groupby("clip_id").size()
    assert per_window.between(1, 2).all()
    for row in made.itertuples():
        clip = of_clip.loc[row.clip_id]
        for column in ("dataset", "group", "label", "fold", "split", "kind"):
            assert getattr(row, column) == clip[column]
        start = round(row.start_seconds * clip["sample_rate_hz"])
        window = int(101_376 / 44_100 * clip["sample_rate_hz"] + 0.5)
        assert 0 <= start <= max(clip["frames"] - window, 0)
        assert json.loads(row.sources)[0] == [row.clip_id, row.start_seconds]


def test_backgrounds_are_of_the_same_split_and_of_another_recording(rows: pd.DataFrame) -> None:
    of_clip = clips().set_index("clip_id")
    mixed = [(row, json.loads(row.sources)) for row in augmented_rows(rows).itertuples()]
    with_background = [(row, sources) for row, sources in mixed if len(sources) == 2]
    assert len(with_background) / len(mixed) == pytest.approx(0.6, abs=0.06)
    for row, (_, (under, _)) in with_background:
        other = of_clip.loc[under]
        assert other["split"] == row.split
        assert (other["dataset"], other["group"]) != (row.dataset, row.group)
        assert row.licence == " + ".join(sorted({of_clip.loc[row.clip_id, "licence"], other["licence"]}))
        assert -5.0 <= json.loads(row.view_parameters)["snr_db"] <= 20.0
    for row, sources in mixed:
        assert ("snr_db" in json.loads(row.view_parameters)) == (len(sources) == 2)


def test_speech_over_background_by_filters_and_a_dataset_that_is_background_alone() -> None:
    speech = {"foreground": {"kinds": ["speech"]}, "augmented": 1.0}
    config = embed(
        **speech, background={"probability": 1.0, "clips": {"datasets": ["set2"], "kinds": ["music"]}}
    )
    built = plan.build(clips(), config, ManifestConfig(caps={"set2": 0}))
    assert "set2" not in set(built["dataset"][built["view"] == "clean"])
    of_clip = clips().set_index("clip_id")
    made = augmented_rows(built)
    assert len(made) == (built["kind"][built["view"] == "clean"] == "speech").sum()
    for row in made.itertuples():
        clip, under = (of_clip.loc[source] for source, _ in json.loads(row.sources))
        assert clip["kind"] == "speech" and (under["dataset"], under["kind"]) == ("set2", "music")


def test_a_background_never_comes_from_another_fold_of_its_dataset() -> None:
    folded = clips().assign(fold=[number // 5 % 5 for number in range(300)], dataset="one", split="train")
    config = embed(background={"probability": 1.0}, augmented=1.0)
    built = plan.build(folded, config, LIMITS)
    fold_of, group_of = folded.set_index("clip_id")["fold"], folded.set_index("clip_id")["group"]
    for row in augmented_rows(built).itertuples():
        under = json.loads(row.sources)[1][0]
        assert fold_of[under] == row.fold and group_of[under] != row.group


def test_another_manifest_gives_backgrounds_but_no_recording_of_another_split() -> None:
    own, others = clips(), clips().assign(dataset="other", clip_id=[f"{n + 10_000:016x}" for n in range(300)])
    others.loc[:99, "clip_id"] = own["clip_id"][:100].to_numpy()
    others.loc[:99, "split"] = "train"
    config = embed(background={"probability": 1.0}, augmented=1.0)
    built = plan.build(own, config, LIMITS, others=others)
    split_of = own.set_index("clip_id")["split"]
    drawn = {json.loads(row.sources)[1][0]: row.split for row in augmented_rows(built).itertuples()}
    assert set(drawn) <= set(others["clip_id"])
    shared = set(drawn) & set(split_of.index)
    assert shared and all(split_of[clip] == drawn[clip] for clip in shared)


def test_a_background_that_cannot_be_is_refused() -> None:
    only_train = clips()["group"][clips()["split"] == "train"].iloc[0]
    labelled = clips().assign(label=np.where(clips()["group"] == only_train, "wanted", "x"))
    config = embed(background={"probability": 1.0, "clips": {"labels": ["wanted"]}})
    with pytest.raises(ConfigError, match="leaves no background for validation clip"):
        plan.build(labelled, config, LIMITS)


def test_views_of_a_clip_do_not_move_when_others_come_or_another_key_changes(rows: pd.DataFrame) -> None:
    alone = embed(gain_db=(-6.0, 6.0))
    whole = augmented_rows(plan.build(clips(), alone, LIMITS))
    fewer = augmented_rows(plan.build(clips().iloc[::2], alone, LIMITS))
    assert set(fewer["key"]) < set(whole["key"])
    more = augmented_rows(plan.build(clips(), embed(gain_db=(-6.0, 6.0), augmented=2.5), LIMITS))
    assert set(whole["key"]) < set(more["key"])

    def gains(made: pd.DataFrame) -> list[float]:
        return sorted(json.loads(text)["gain_db"] for text in made["view_parameters"])

    assert gains(augmented_rows(rows)) == gains(whole)


def test_what_is_rendered_is_what_the_row_says(tmp_path: Path) -> None:
    frame = synthesis.write_clips(tmp_path, 24).drop_duplicates("clip_id", ignore_index=True)
    (tmp_path / "devices").mkdir()
    soundfile.write(tmp_path / "devices" / "d.wav", np.array([0.0, 0.5, -0.2, 0.1]), 44_100)
    config = embed(
        augmented=2.0, crop_probability=1.0, gain_db=(-9.0, -3.0), background={"probability": 0.5},
        device={"probability": 0.5, "folder": tmp_path / "devices"},
    )  # fmt: skip
    devices = ResponseFolder(tmp_path / "devices")
    built = plan.build(frame, config, LIMITS, devices=devices.responses)
    reader = ClipReader(Manifest(frame, {"synthetic": tmp_path}, "", tmp_path), config.window_seconds, 1e-3)
    renderer = Renderer(reader, config.views, devices)
    path_of = frame.set_index("clip_id")["path"]
    checked = 0
    for row in augmented_rows(built).to_dict("records"):
        drawn = AugmentedParameters.model_validate_json(row["view_parameters"])
        if drawn.snr_db is not None:
            continue
        samples, rate = soundfile.read(tmp_path / path_of[row["clip_id"]])
        start = int(row["start_seconds"] * rate + 0.5)
        part = samples[start : start + int(config.window_seconds * rate + 0.5)]
        expected = np.zeros(101_376)
        resampled = soxr.resample(part, rate, 44_100)[:101_376]
        expected[: len(resampled)] = resampled
        if drawn.device is not None:
            expected = np.convolve(expected, [0.0, 0.5, -0.2, 0.1])[:101_376]
        expected *= 10 ** (drawn.gain_db / 20)
        wave, reject = renderer.attempt(row)
        if wave is None:
            assert reject is not None and reject["reason"] == "silent" and np.abs(part).max() < 1e-3
            continue
        np.testing.assert_allclose(wave, expected, atol=2e-5)
        checked += 1
    assert checked >= 8
