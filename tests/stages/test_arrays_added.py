"""Two teachers and two frontends in one store, added in separate runs; stage 2 refuses what does not fit."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from pipeline import recipe as recipes
from pipeline.config import Recipe, TeacherConfig
from pipeline.errors import DigestMismatchError, MissingArtifactError, OssicleError
from pipeline.recipe import Run
from pipeline.store.combination import Combination
from pipeline.store.reader import StoreReader
from pipeline.store.schema import asked_digest, frontend_digest, read_meta
from pipeline.store.verification import verify
from pipeline.teachers.synthetic import TinyTeacher
from pipeline.training.job import Job, run_job
from stages import distill, embed, locations
from tests.stages import in_process
from tests.stages.embed_corpus import prepared, store_content

SHORT = {
    "train.steps": 4, "train.batch_size": 8, "train.validate_every": 4, "train.warmup_steps": 1,
    "targets.components": 6,
}  # fmt: skip


def quiet() -> Console:
    return Console(file=io.StringIO())


def seeded(recipe: Recipe, seed: int, **changes: Any) -> Recipe:
    return recipes.change(recipe, {"embed.teacher.options": {"seed": seed}, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("added")
    return recipes.change(prepared(folder, embed__views__mixes=8, embed__views__textures=4), SHORT)


@pytest.fixture(scope="module")
def runs(base: Recipe) -> list[tuple[Counter[str], dict[str, bytes]]]:
    """Embed in three runs; what each heard, and the store after it."""
    done = []
    with pytest.MonkeyPatch.context() as patch:
        heard = in_process.counted(patch)
        for recipe in (
            base,
            seeded(base, 1, **{"embed.teacher.outputs": ("embedding", "logits", "frames", "layer.0"),
                               "embed.teacher.logits_top_k": 2, "embed.teacher.frame_rate_hz": 2.0}),
            seeded(base, 1, **{"embed.frontend.mels": 40}),
        ):  # fmt: skip
            heard.clear()
            folder = embed.run(recipe, console=quiet())
            done.append((Counter(heard), store_content(Path(folder))))
    return done


def test_nothing_is_heard_twice(base: Recipe, runs: list[tuple[Counter[str], dict[str, bytes]]]) -> None:
    rows = len(StoreReader(locations.store_folder(base)).rows)
    assert rows > 30
    first, second, third = (heard for heard, _ in runs)
    assert first == {"seed 0": rows, "64 mels": rows}
    # One row more each: the outputs' widths are found by hearing silence once.
    assert second["seed 1"] - rows in (1, 2)
    assert set(second) == {"seed 1"}
    assert third == {"40 mels": rows}
    for (_, before), (_, after) in itertools.pairwise(runs):
        kept = {name: content for name, content in before.items() if name != "store.json"}
        assert {name: after[name] for name in kept} == kept


def test_keys_are_aligned(base: Recipe, runs: object) -> None:
    """Row by row, every array is of the same sound: each teacher hears what the other one's row was made of."""
    place = locations.store_folder(base)
    meta = read_meta(place)
    assert sorted(spec.kind for spec in meta.arrays) == [
        "embedding", "embedding", "frames", "layer", "logits", "spectrogram", "spectrogram",
    ]  # fmt: skip
    assert verify(place).sound
    one, two = (TinyTeacher(seed) for seed in (0, 1))
    reader = StoreReader(place, teacher=one.digest())
    other = StoreReader(place, teacher=two.digest())
    first = np.concatenate(
        [reader.read_shard(s, ("embedding",))["embedding"] for s in range(reader.meta.shards)]
    )
    second = np.concatenate(
        [other.read_shard(s, ("embedding",))["embedding"] for s in range(reader.meta.shards)]
    )
    # Both are projections of one 32-number summary; the layer's 16 means are half of it.
    layer = next(spec for spec in meta.arrays if spec.kind == "layer")
    means = np.concatenate([reader.read_array(layer, s) for s in range(reader.meta.shards)])
    both = np.concatenate([first, second], axis=1) @ np.linalg.pinv(
        np.concatenate([one.projection.numpy(), two.projection.numpy()], axis=1)
    )
    np.testing.assert_allclose(both[:, :16], means, atol=1e-3)
    frames = next(spec for spec in meta.arrays if spec.kind == "frames")
    pooled = np.concatenate([reader.read_array(frames, s) for s in range(reader.meta.shards)])
    assert pooled.shape[1:] == (5, 16) and frames.config["frame_rate_hz"] == 2.0
    correlation = np.corrcoef(pooled.mean(axis=1).ravel(), means.ravel())[0, 1]
    assert correlation > 0.95


def test_stage_2_finds_the_recipes_own_teacher(base: Recipe, runs: object) -> None:
    for seed, recipe in enumerate((base, seeded(base, 1))):
        assert locations.run_inputs(Run("r", 0, recipe))["teacher"] == TinyTeacher(seed).digest()


def test_another_spelling_of_the_same_teacher_is_learnt_by_embed_alone(
    base: Recipe, runs: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = in_process.counted(monkeypatch)
    before = store_content(Path(locations.store_folder(base)))
    spelled = seeded(base, 0)
    with pytest.raises(DigestMismatchError, match="other weights, options"):
        locations.run_inputs(Run("r", 0, spelled))
    embed.run(spelled, console=quiet())
    assert heard.total() == 0
    assert locations.run_inputs(Run("r", 0, spelled))["teacher"] == TinyTeacher(0).digest()
    after = store_content(Path(locations.store_folder(base)))
    assert {name for name in after if after[name] != before.get(name)} == {"store.json"}


def test_another_frontend_teacher_or_weights_is_refused(base: Recipe, runs: object, tmp_path: Path) -> None:
    def refused(changes: dict[str, Any]) -> OssicleError:
        with pytest.raises(DigestMismatchError) as caught:
            distill.run(recipes.change(base, changes), console=quiet())
        assert "embed" in (caught.value.run or "")
        return caught.value

    wide = recipes.change(base, {"embed.frontend.mels": 48}).embed.frontend
    error = refused({"embed.frontend.mels": 48})
    assert frontend_digest(wide) in str(error)
    assert frontend_digest(base.embed.frontend) in str(error)
    error = refused({"embed.teacher.options": {"seed": 2}})
    assert asked_digest(TeacherConfig(name="tiny", options={"seed": 2})) in str(error)
    assert TinyTeacher(0).digest() in str(error) and TinyTeacher(1).digest() in str(error)
    (tmp_path / "other.pt").write_bytes(b"other weights")
    error = refused({"embed.teacher.weights": tmp_path / "other.pt"})
    assert "other weights" in error.problem and TinyTeacher(0).digest() in str(error)
    with pytest.raises(MissingArtifactError, match="no weights file"):
        distill.run(recipes.change(base, {"embed.teacher.weights": tmp_path / "gone.pt"}), console=quiet())
    with pytest.raises(MissingArtifactError, match="no embedding of aisfx"):
        distill.run(recipes.change(base, {"embed.teacher.name": "aisfx"}), console=quiet())
    with pytest.raises(DigestMismatchError, match=r"no embedding array for tiny:layer\.3"):
        distill.run(recipes.change(base, {"targets.teachers": ["tiny:layer.3"]}), console=quiet())


@pytest.mark.parametrize(
    ("targets", "width"),
    [
        ({"transform": "whiten", "components": 6}, 12 + 6),
        ({"transform": "pca", "components": 20, "teacher_weights": [1, 2, 3]}, 20 + 20 + 16),
        ({"transform": "none"}, 24 + 24 + 16),
    ],
)
def test_teachers_are_fused_from_the_store_alone(
    base: Recipe, runs: object, targets: dict[str, Any], width: int, tmp_path: Path
) -> None:
    names = [TinyTeacher(0).digest(), TinyTeacher(1).digest(), "tiny:layer.0"]
    changes = {f"targets.{key}": value for key, value in {**targets, "teachers": names}.items()}
    (job,) = distill.jobs_of(recipes.change(base, changes))
    done = run_job(Job.from_json(job.to_json()))
    assert done.summary["targets"]["teacher_dim"] == 64
    assert done.summary["targets"]["target_dim"] == width
    assert [done.inputs[f"teacher.{n}"][:12] for n in range(2)] == [name[:12] for name in names[:2]]
    assert len(set(done.inputs.values())) == 6


def test_an_ensemble_is_the_weighted_mean(base: Recipe, runs: object) -> None:
    place = locations.store_folder(base)
    digests = (TinyTeacher(0).digest(), TinyTeacher(1).digest())
    mean = StoreReader(place, teacher=Combination(digests, "mean", (1.0, 3.0)))
    parts = [StoreReader(place, teacher=one).read_shard(0, ("embedding",))["embedding"] for one in digests]
    found = torch.from_numpy(mean.read_shard(0, ("embedding",))["embedding"])
    wanted = 0.25 * torch.from_numpy(parts[0]) + 0.75 * torch.from_numpy(parts[1])
    torch.testing.assert_close(found, wanted)
    assert mean.embedding.licence == "CC0-1.0" and mean.widths == (24,)
