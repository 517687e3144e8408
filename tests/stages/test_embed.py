"""Stage 1 as a whole, with the tiny teacher on synthetic sound."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from rich.console import Console

from pipeline.config import Recipe
from pipeline.embedding import pool
from pipeline.errors import MissingArtifactError, WeightsError
from pipeline.frontends.log_mel import LogMel
from pipeline.store.reader import StoreReader
from pipeline.store.writer import StoreWriter
from pipeline.teachers.synthetic import TinyTeacher
from stages import embed, locations
from tests.stages.embed_corpus import prepared, small_recipe, store_content


def quiet() -> Console:
    return Console(file=Path(os.devnull).open("w"), width=200)


def printed(recipe: Recipe) -> str:
    console = Console(record=True, width=250, file=Path(os.devnull).open("w"))  # noqa: SIM115
    embed.run(recipe, console=console)
    return console.export_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A recipe and its store, embedded by two workers without interruption."""
    recipe = prepared(tmp_path_factory.mktemp("whole"), embed__workers=2)
    return recipe, embed.run(recipe, console=quiet())


def rows_of(reader: StoreReader, array: str) -> np.ndarray:
    shards = [reader.read_shard(i, arrays=(array,))[array] for i in range(len(reader.shard_sizes))]
    return np.concatenate(shards)


def test_arrays_hold_what_the_frontend_and_the_teacher_give(whole: tuple[Recipe, Path]) -> None:
    import soxr

    recipe, folder = whole
    reader = StoreReader(folder)
    spectrograms, embeddings = rows_of(reader, "spectrogram"), rows_of(reader, "embedding")
    clips = pd.read_parquet(locations.manifest_folder(recipe) / "clips.parquet").set_index("clip_id")
    root = Path(json.loads((locations.manifest_folder(recipe) / "roots.json").read_text())["synthetic"])
    teacher, frontend = TinyTeacher(), LogMel(recipe.embed.frontend)
    clean = reader.rows[reader.rows["view"] == "clean"]
    assert len(clean) >= 20 and (reader.rows["status"] == "ok").all()
    for row in clean.itertuples():
        samples, rate = soundfile.read(root / clips.loc[row.clip_id, "path"])
        first = round(row.start_seconds * rate)
        part = samples[first : first + round(recipe.embed.window_seconds * rate)]
        wave = np.zeros(101_376)
        wave[: round(len(part) * 44_100 / rate)] = soxr.resample(part, rate, 44_100)[:101_376]
        expected = teacher.embed(torch.from_numpy(wave[None]).float())["embedding"].numpy()[0]
        np.testing.assert_allclose(embeddings[row.row], expected, atol=1e-4)
        student_wave = np.zeros(36_780)
        resampled = soxr.resample(wave, 44_100, 16_000)[:36_780]
        student_wave[: len(resampled)] = resampled
        log_mel = frontend(torch.from_numpy(student_wave[None]).float()).numpy()[0]
        np.testing.assert_allclose(spectrograms[row.row], log_mel, atol=2e-2)


def test_a_finished_store_is_reused_without_any_process(
    whole: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = whole
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    monkeypatch.setattr(pool, "embed_shards", refuse)
    assert "reused" in printed(recipe)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def refuse(*_: object) -> None:
    raise AssertionError("something would have been embedded twice")


def test_one_worker_makes_the_same_bytes_as_two(whole: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe = prepared(tmp_path)
    assert store_content(embed.run(recipe, console=quiet())) == store_content(whole[1])


def test_another_frontend_adds_an_array_and_runs_no_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = prepared(tmp_path, clips=8, embed__views__mixes=4, embed__views__textures=2)
    folder = embed.run(recipe, console=quiet())
    before = store_content(folder)
    stamps = {p: p.stat().st_mtime_ns for p in (folder / "embedding").rglob("*") if p.is_file()}
    wider = small_recipe(tmp_path, embed__views__mixes=4, embed__views__textures=2, embed__frontend__mels=40)
    assert embed.run(wider, console=quiet()) == folder
    after = store_content(folder)
    assert {name: after[name] for name in before if name != "store.json"} == {
        name: content for name, content in before.items() if name != "store.json"
    }
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    added = StoreReader(folder, frontend=wider.embed.frontend).read_shard(0, arrays=("spectrogram",))
    assert added["spectrogram"].shape[1:] == (40, 115) and np.isfinite(added["spectrogram"]).all()
    monkeypatch.setattr(pool, "embed_shards", refuse)
    assert "reused" in printed(recipe) and "reused" in printed(wider)


def test_files_that_broke_since_are_rejected_and_the_run_goes_on(
    whole: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe = prepared(tmp_path)
    audio = sorted((tmp_path / "audio").iterdir())
    audio[0].unlink()
    audio[1].write_bytes(audio[1].read_bytes()[:300])
    audio[2].write_text("not a sound any more")
    audio[3].unlink()
    audio[3].mkdir()
    samples, rate = soundfile.read(audio[4])
    soundfile.write(audio[4], np.where(np.arange(len(samples)) == 50, np.nan, samples), rate, subtype="FLOAT")
    audio[5].unlink()
    os.mkfifo(audio[5])
    out = printed(recipe)
    reader = StoreReader(locations.store_folder(recipe))
    rejected = (reader.rows["status"] == "rejected").to_numpy()
    reasons = set(reader.rejects["reason"])
    assert reasons == {"missing", "truncated", "not_audio", "directory", "non_finite", "not_a_file"}
    assert f"{rejected.sum()} rejected" in out and "missing" in out
    assert set(reader.rejects["row"]) == set(np.flatnonzero(rejected))
    bad = {path.name for path in audio[:6]}
    clips = pd.read_parquet(locations.manifest_folder(recipe) / "clips.parquet")
    name_of = dict(zip(clips["clip_id"], clips["path"], strict=True))
    touched = [any(name_of[c] in bad for c, _ in json.loads(s)) for s in reader.rows["sources"]]
    assert rejected.tolist() == touched and 6 <= rejected.sum() < len(rejected)
    good = StoreReader(whole[1])
    for array in ("spectrogram", "embedding"):
        found, expected = rows_of(reader, array), rows_of(good, array)
        assert np.isnan(found[rejected]).all()
        assert np.array_equal(found[~rejected], expected[~rejected])


def test_eight_bit_spectrograms_report_what_they_lose(whole: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe = prepared(tmp_path, embed__spectrogram_dtype="uint8")
    out = printed(recipe)
    assert "loss of 8-bit spectrograms" in out
    reader, exact = StoreReader(locations.store_folder(recipe)), StoreReader(whole[1])
    told = reader.artifact.summary["uint8_loss"]
    first = slice(0, 8)
    error = (
        reader.read_shard(0)["spectrogram"][first].astype(np.float64)
        - exact.read_shard(0)["spectrogram"][first]
    )
    # The float16 store rounds too: up to 2**-8 at these values, below a code's step.
    assert told["rms_error"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=0.2)
    assert 35 < told["snr_db"] < 60 and told["largest_error"] < 0.1


def test_what_is_not_there_yet_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError) as caught:
        embed.run(small_recipe(tmp_path), console=quiet())
    assert "make manifest" in (caught.value.run or "")


def test_missing_weights_stop_before_any_work(tmp_path: Path) -> None:
    recipe = prepared(tmp_path, clips=4, embed__teacher__name="aisfx", paths__cache=tmp_path / "cache")
    with pytest.raises(WeightsError):
        embed.run(recipe, console=quiet())


def test_ranks_own_every_shard_once(whole: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe = prepared(tmp_path)
    specs = [spec for specs in embed.planned_arrays(recipe)[0] for spec in specs]
    with embed.created_store(recipe, specs) as writer:
        assert isinstance(writer, StoreWriter)
        shares = [writer.pending(None, rank, 3) for rank in range(3)]
    assert sorted(shard for share in shares for shard in share) == list(
        range(len(StoreReader(whole[1]).shard_sizes))
    )


@pytest.mark.exhaustive
def test_two_ranks_make_the_same_store_as_one(
    whole: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = prepared(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "are pending" in printed(recipe)
    monkeypatch.setenv("RANK", "1")
    assert "0 rejected" in printed(recipe)
    assert store_content(locations.store_folder(recipe)) == store_content(whole[1])


def when(condition: Callable[[], bool], action: Callable[[], None]) -> threading.Thread:
    """Run ``action`` once ``condition`` holds, or never after a minute."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if condition():
                action()
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_worker_that_dies_is_noticed_and_its_shard_made_again(
    whole: tuple[Recipe, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = prepared(tmp_path)
    folder = locations.store_folder(recipe)
    victims: list[int] = []

    def kill() -> None:
        victims.append(multiprocessing.active_children()[0].pid or 0)
        os.kill(victims[0], signal.SIGKILL)

    watcher = when(lambda: any((folder / "commits").rglob("*.json")), kill)
    embed.run(recipe, console=quiet())
    watcher.join()
    assert victims and "SIGKILL" in caplog.text
    assert store_content(folder) == store_content(whole[1])


@pytest.mark.exhaustive
def test_a_worker_that_always_dies_ends_the_run_clearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = prepared(tmp_path, clips=4, embed__views__mixes=0, embed__views__textures=0)
    monkeypatch.setattr(pool.worker, "main", die)
    with pytest.raises(pool.WorkerError) as caught:
        embed.run(recipe, console=quiet())
    assert caught.value.got == "exit status 7" and "--set embed.workers=1" in (caught.value.run or "")
    assert not multiprocessing.active_children()


def die(*_: object) -> None:
    os._exit(7)
