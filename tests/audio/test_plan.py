"""The plan is a pure function that leaks nothing; a row's sound is what its row says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr

from pipeline.audio import plan, synthesis
from pipeline.audio.render import ClipReader, Renderer
from pipeline.config import EmbedConfig, ManifestConfig, ViewsConfig
from pipeline.errors import ConfigError, ManifestError
from pipeline.manifest import COLUMNS, Manifest
from tests.golden.golden_vectors import REPOSITORY

EMBED = EmbedConfig(views=ViewsConfig(mixes=300, textures=100, seed=3), shard_rows=128, seed=5)
LIMITS = ManifestConfig()


def clips(count: int = 300) -> pd.DataFrame:
    """Manifest rows without files: planning decodes nothing."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        rate = int(generator.choice([8_000, 44_100, 48_000]))
        frames = int(generator.integers(rate // 10, rate * 8))
        rows.append(
            {
                "clip_id": f"{number + 1:016x}", "root": "r", "path": f"{number}.wav", "source": "s",
                "dataset": f"set{number % 3}", "group": f"group{number // 5}",
                "kind": "speech" if number % 2 else "music",
                "split": "validation" if number // 5 % 7 == 0 else "train", "fold": -1, "label": "x",
                "licence": f"licence {number % 4}", "credit": "", "sample_rate_hz": rate, "channels": 1,
                "frames": frames, "duration_seconds": frames / rate,
            }
        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return plan.build(clips(), EMBED, LIMITS)


def test_equal_input_gives_an_equal_plan_in_another_process(rows: pd.DataFrame) -> None:
    again = plan.build(clips(), EMBED, LIMITS)
    pd.testing.assert_frame_equal(rows, again)
    code = (
        "from tests.audio.test_plan import *\n"
        "print(hash_of(plan.build(clips().sample(frac=1, random_state=1), EMBED, LIMITS)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env={"PYTHONHASHSEED": "7", "PATH": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == hash_of(rows)


def hash_of(frame: pd.DataFrame) -> str:
    return str(pd.util.hash_pandas_object(frame, index=False).sum())


def test_rows_are_shuffled_and_keys_are_unique(rows: pd.DataFrame) -> None:
    assert rows["row"].tolist() == list(range(len(rows)))
    assert rows["key"].is_unique
    assert tuple(rows.columns) == plan.COLUMNS
    counts = rows["view"].value_counts()
    assert counts["mix"] == 300 and counts["texture"] == 100 and counts["clean"] > 300
    shares = rows.groupby(rows["row"] // 128)["view"].value_counts(normalize=True).unstack().iloc[:-1]
    assert (shares["mix"] - counts["mix"] / len(rows)).abs().max() < 0.15
    other = plan.build(clips(), EMBED.model_copy(update={"seed": 6}), LIMITS)
    assert other["key"].tolist() != rows["key"].tolist()


def test_nothing_crosses_the_split(rows: pd.DataFrame) -> None:
    split_of = clips().set_index("clip_id")["split"]
    for row in rows.itertuples():
        assert {split_of[clip] for clip, _ in json.loads(row.sources)} <= {row.split}
    held = (rows["split"] == "validation").groupby(rows["view"]).mean()
    assert held["mix"] == pytest.approx(held["clean"], abs=0.01)
    assert held["texture"] == pytest.approx(held["clean"], abs=0.01)


def test_mixes_hold_one_to_three_different_windows_and_little_speech(rows: pd.DataFrame) -> None:
    mixes = [json.loads(s) for s in rows["sources"][rows["view"] == "mix"]]
    sizes = np.bincount([len(m) for m in mixes], minlength=4)[1:] / len(mixes)
    np.testing.assert_allclose(sizes, (0.2, 0.6, 0.2), atol=0.08)
    assert all(len({tuple(source) for source in m}) == len(m) for m in mixes)
    kind_of = clips().set_index("clip_id")["kind"]
    clean = rows[rows["view"] == "clean"]
    speech = (clean["kind"] == "speech").mean()
    drawn = np.mean([kind_of[clip] == "speech" for m in mixes for clip, _ in m])
    assert drawn == pytest.approx(0.35 * speech / (0.35 * speech + 1 - speech), abs=0.08)
    over = [len(json.loads(s)) for s in rows["sources"][rows["view"] == "texture"]]
    assert np.mean(over) == pytest.approx(0.25, abs=0.13) and max(over) == 1


def test_sources_are_windows_of_the_plan_in_the_same_shard(rows: pd.DataFrame) -> None:
    clean = rows[rows["view"] == "clean"]
    shard_of = {
        json.dumps(json.loads(s)[0]): r // 128 for s, r in zip(clean["sources"], clean["row"], strict=True)
    }
    train_mixes = rows[(rows["view"] == "mix") & (rows["split"] == "train")]
    same = [
        shard_of[json.dumps(source)] == row.row // 128
        for row in train_mixes.itertuples()
        for source in json.loads(row.sources)
    ]
    assert np.mean(same) > 0.9


def test_licences_of_a_mix_are_those_of_all_its_sources(rows: pd.DataFrame) -> None:
    known = clips().set_index("clip_id")
    for row in rows.itertuples():
        sources = [clip for clip, _ in json.loads(row.sources)]
        expected = sorted({known.loc[clip, "licence"] for clip in sources}) or ["CC0-1.0"]
        assert row.licence == " + ".join(expected)
        if row.view != "clean":
            assert (row.label, row.fold, row.dataset) == ("", -1, row.view)


def test_windows_of_a_clip_do_not_move_when_others_come(rows: pd.DataFrame) -> None:
    fewer = plan.build(clips().iloc[::2], EMBED, LIMITS)
    keys = set(rows["key"][rows["view"] == "clean"])
    assert set(fewer["key"][fewer["view"] == "clean"]) <= keys


def test_caps_hold_and_keep_a_stable_draw() -> None:
    none = EMBED.model_copy(update={"views": ViewsConfig()})
    whole = plan.build(clips(), none, LIMITS)
    capped = plan.build(clips(), none, ManifestConfig(caps={"set0": 40, "set1": 41}))
    counts = capped["dataset"].value_counts()
    assert (counts["set0"], counts["set1"]) == (40, 41)
    assert counts["set2"] == (whole["dataset"] == "set2").sum()
    smaller = plan.build(clips(), none, ManifestConfig(caps={"set0": 30, "set1": 41}))
    assert set(smaller["key"]) < set(capped["key"]) < set(whole["key"])


def test_a_key_names_the_sound_and_everything_that_shapes_it(rows: pd.DataFrame) -> None:
    views = EMBED.views.model_copy(update={"eq_gain_db": 6.0})
    other = plan.build(clips(), EMBED.model_copy(update={"views": views}), LIMITS)
    same = rows["key"] == other["key"]
    assert same[rows["view"] == "clean"].all() and not same[rows["view"] != "clean"].any()
    longer = plan.build(clips(), EMBED.model_copy(update={"window_seconds": 2.0}), LIMITS)
    assert not set(longer["key"]) & set(rows["key"])


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(ManifestError):
        plan.build(clips(9), EMBED, ManifestConfig(caps={"set0": 0, "set1": 0, "set2": 0}))
    speech = clips().query("kind == 'speech'")
    with pytest.raises(ConfigError, match="speech_weight"):
        plan.build(speech, EmbedConfig(views=ViewsConfig(mixes=2, speech_weight=0)), LIMITS)


def test_a_rows_sound_is_what_soundfile_and_soxr_give(tmp_path: Path) -> None:
    frame = synthesis.write_clips(tmp_path, 12).drop_duplicates("clip_id")
    built = plan.build(frame, EMBED, LIMITS)
    reader = ClipReader(Manifest(frame, {"synthetic": tmp_path}, "", tmp_path), EMBED.window_seconds, 1e-3)
    renderer = Renderer(reader, EMBED.views)
    path_of = frame.set_index("clip_id")["path"]
    for row in built[built["view"] == "clean"].to_dict("records"):
        samples, rate = soundfile.read(tmp_path / path_of[row["clip_id"]])
        start = int(row["start_seconds"] * rate + 0.5)
        part = samples[start : start + int(EMBED.window_seconds * rate + 0.5)]
        expected = np.zeros(101_376)
        resampled = soxr.resample(part, rate, 44_100)[:101_376]
        expected[: len(resampled)] = resampled
        found = renderer.render(row)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert found.dtype == np.float32


def test_a_row_renders_alike_whatever_was_rendered_before(tmp_path: Path) -> None:
    frame = synthesis.write_clips(tmp_path, 12).drop_duplicates("clip_id")
    built = plan.build(frame, EMBED, LIMITS).to_dict("records")[:40]
    found = Manifest(frame, {"synthetic": tmp_path}, "", tmp_path)

    def renderer(cache_bytes: int) -> Renderer:
        return Renderer(ClipReader(found, EMBED.window_seconds, 1e-3, cache_bytes), EMBED.views)

    cached, bare = renderer(1 << 28), renderer(0)
    forward = [cached.render(row) for row in built]
    backward = [bare.render(row) for row in built[::-1]][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))


def test_what_cannot_be_rendered_is_a_reject_with_its_file(tmp_path: Path) -> None:
    frame = synthesis.write_clips(tmp_path, 4).drop_duplicates("clip_id")
    built = plan.build(frame, EmbedConfig(), LIMITS)
    found = Manifest(frame, {"synthetic": tmp_path}, "", tmp_path)
    gone, other_rate, quiet = (tmp_path / path for path in frame["path"][:3])
    gone.unlink()
    soundfile.write(other_rate, np.ones(90_000) * 0.1, 22_050)
    samples, rate = soundfile.read(quiet)
    soundfile.write(quiet, samples * 1e-4, rate)
    renderer = Renderer(ClipReader(found, EmbedConfig().window_seconds, 1e-3), ViewsConfig())
    path_of = frame.set_index("clip_id")["path"]
    reasons = {}
    for row in built.to_dict("records"):
        wave, reject = renderer.attempt(row)
        assert (wave is None) != (reject is None)
        if reject is not None:
            assert reject["row"] == row["row"] and reject["path"].endswith(path_of[row["clip_id"]])
            reasons[path_of[row["clip_id"]]] = reject["reason"]
    assert reasons == {gone.name: "missing", other_rate.name: "changed", quiet.name: "silent"}
