"""``ossicle compare``: files of ours and of others on the same clips; figures against formulas written out here."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
from rich.console import Console

from pipeline import artifact
from pipeline.audio.resampling import resample
from pipeline.config import Recipe, canonical_json
from pipeline.errors import ConfigError, MissingArtifactError, OssicleError, WeightsError
from pipeline.evaluation.window_batch import SAMPLE_RATE_HZ, Windowing, clip_windows
from pipeline.measure import arm, latency, model_cost
from pipeline.store import schema
from pipeline.store.writer import StoreWriter
from stages import compare
from stages.compare_models import declared
from tests.compare import foreign_files
from tests.compare.side_by_side import FRONTEND, WINDOW_SECONDS, call, literal_overlap
from tests.evaluation import stored
from tests.evaluation.onnx_students import onnx_file


def test_two_files_stand_side_by_side(recipe: Recipe, ours: str, theirs: str, clips: Path) -> None:
    folder, record, printed = call(recipe, [ours, theirs], manifest=clips, group="who")
    first, second = (model["key"] for model in record["models"])
    assert [model["kind"] for model in record["models"]] == ["ONNX of ossicle", "ONNX"]
    scores = {(row["model"], row["probe"]): row["score"] for row in record["scores"]}
    assert len(scores) == 4
    for row in record["differences"]:
        assert (row["model"], row["reference"]) == (second, first)
        assert row["difference"] == pytest.approx(scores[second, row["probe"]] - scores[first, row["probe"]])
        assert row["low"] <= row["difference"] <= row["high"]
    assert f"{100 * scores[first, 'linear']:.1f} [" in printed
    # What the other's file gave, against the same clips in numpy.
    names = sorted(line.split(",")[0] for line in clips.read_text().splitlines()[1:])
    paths = [clips.parent / name for name in names]
    got = stored.vectors(folder.parents[1] / "embeddings", record["models"][1]["digest"], paths)
    windowing = Windowing(WINDOW_SECONDS, recipe.evaluate.max_windows_per_clip)
    for row in (0, len(names) - 1):
        windows = clip_windows(clips.parent / names[row], windowing)
        heard = [resample(window, SAMPLE_RATE_HZ, foreign_files.RATE_HZ) for window in windows]
        want = np.mean([foreign_files.filter_bank(window[:8_000]) for window in heard], axis=0)
        np.testing.assert_allclose(got[row], want, rtol=2e-5, atol=1e-6)


def test_costs_are_of_one_window(recipe: Recipe, theirs: str, tmp_path: Path, clips: Path) -> None:
    short = str(foreign_files.waveform_model(tmp_path / "short.onnx", samples=4_000, seed=1))
    _, record, printed = call(recipe, [theirs, short], manifest=clips)
    whole, halves = (record["costs"][model["key"]] for model in record["models"])
    assert whole["executed_macs"] == foreign_files.macs(8_000)
    assert (halves["executed_macs"], halves["passes"]) == (foreign_files.macs(4_000), 2)
    assert whole["parameters"] == foreign_files.CHANNELS * foreign_files.KERNEL
    assert whole["file_kb"] == Path(theirs).stat().st_size / 1024
    assert whole["x86"]["p50_ms"] > 0
    assert f"{2 * foreign_files.macs(4_000) / 1e6:.2f}" in printed
    assert "a window takes 2 passes of [1, 4000]" in printed


def test_the_page_needs_nothing_else(recipe: Recipe, ours: str, theirs: str, clips: Path) -> None:
    folder, record, _ = call(recipe, [ours, theirs], manifest=clips)
    page = (folder / compare.PAGE).read_text()
    assert set(re.findall(r"https?://[^\"' )<]+", page)) <= {"http://www.w3.org/1999/xlink"}
    assert not re.search(r"<(script|link|img|iframe)|src=|@import|url\((?!#)", page)
    assert "<svg" not in page  # the mean of a log-mel multiplies nothing: there is no axis for it
    for model in record["models"]:
        assert model["label"] in page
    assert f"{record['differences'][0]['difference'] * 100:+.1f}" in page


def test_nothing_is_computed_twice(
    recipe: Recipe, ours: str, theirs: str, tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record, _ = call(recipe, [ours, theirs], manifest=clips)
    again, _, printed = call(recipe, [ours, theirs], manifest=clips)
    assert again == folder
    assert "compare: reused" in printed

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("measured or heard again")

    monkeypatch.setattr(model_cost, "exact_costs", refuse)
    monkeypatch.setattr(model_cost, "time_here", refuse)
    monkeypatch.setattr("pipeline.evaluation.clip_vectors.batches", refuse)
    swapped, other, _ = call(recipe, [theirs, ours], manifest=clips)
    assert swapped != folder
    assert {row["probe"]: row["difference"] for row in other["differences"]} == {
        row["probe"]: pytest.approx(-row["difference"]) for row in record["differences"]
    }


def test_a_benchmarks_figures_are_taken_on_the_same_processor(
    recipe: Recipe, ours: str, theirs: str, tmp_path: Path
) -> None:
    shape = [1, 1, 16, FRONTEND.frames(8_000)]
    figures = {"file_kb": 1.5, "executed_macs": 77, "int8_mac_share": 0.0, "int8_mac_share_x86": 0.0}
    row = {
        "file_sha256": artifact.file_digest(Path(ours)), "input_shape": shape, **figures, "peak_activation_bytes": 9,
        "x86": {"p10_ms": 1.0, "p50_ms": 2.0, "p95_ms": 3.0, "runs": 10},
    }  # fmt: skip
    provenance = {"packages": {"onnxruntime": artifact.provenance()["packages"]["onnxruntime"]}}
    made = {"rows": [row], "machine": {"name": latency.processor()["name"]}, "provenance": provenance}
    artifact.write_json(tmp_path / "artifacts" / "benchmark" / "quick" / "benchmark.json", made)
    _, record, printed = call(recipe, [ours, theirs], tasks_wanted=False)
    taken, measured = (record["costs"][model["key"]] for model in record["models"])
    assert (taken["executed_macs"], taken["from"]) == (77, "benchmark quick")
    assert measured["from"] == "measured here"
    assert "compare: costs alone" in printed
    assert record["tasks"] == []


def test_arm_counts_are_asked_for(
    recipe: Recipe, ours: str, theirs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(path: Path, value: np.ndarray, cpu: str, **options: object) -> arm.ArmCount:
        if path == Path(theirs):
            raise OssicleError("the guest failed", got="no memory")
        return arm.ArmCount(cpu, 5_250_000, 0, 0, 0, 0, 0, 0.0, 5, {"equal": True})

    monkeypatch.setattr(arm, "count", counted)
    _, record, printed = call(recipe, [ours, theirs], tasks_wanted=False, arm=True)
    assert record["costs"][record["models"][0]["key"]]["arm"]["cortex-a76"]["instructions"] == 5_250_000
    assert "A76 M instructions" in printed
    assert "5.25" in printed
    assert "arm cortex-a76 not measured: the guest failed: no memory" in printed


def test_neighbours_on_a_store(recipe: Recipe, ours: str, theirs: str, tmp_path: Path) -> None:
    rows, frames = 40, 6
    generator = np.random.default_rng(3)
    log_mels = generator.normal(-5, 2, (rows, 16, frames)).astype(np.float16)
    embeddings = generator.standard_normal((rows, 8)).astype(np.float32)
    spectrogram = schema.spectrogram_spec(FRONTEND, frames)
    embedding = schema.embedding_spec("ear", "ab" * 32, 8)
    meta = schema.StoreMeta(
        name="tiny", manifest_digest="0" * 64, shard_rows=16, chunk_rows=8, arrays=(spectrogram, embedding)
    )
    splits = ["validation" if row % 2 else "train" for row in range(rows)]
    plan = pandas.DataFrame({"row": range(rows), "key": [f"{r:016x}" for r in range(rows)], "split": splits})
    with StoreWriter.create(tmp_path / "store", plan, meta) as writer:
        for shard in writer.pending():
            first, end = writer.meta.bounds(shard)
            arrays = {spectrogram.path: log_mels[first:end], embedding.path: embeddings[first:end]}
            writer.write_shard(shard, arrays, [])
        writer.finish(config={}, inputs={})
    _, record, printed = call(recipe, [ours, theirs], tasks_wanted=False, store=str(tmp_path / "store"))
    found = record["store"]
    assert (found["rows"], found["teacher"], found["split"]) == (20, "ear", "validation")
    spaces = [log_mels[1::2].astype(np.float32).mean(axis=2), embeddings[1::2]]
    assert found["overlap"] == {record["models"][0]["key"]: pytest.approx(literal_overlap(*spaces))}
    assert "no overlap on the store: a store holds log-mels, and it hears waveform" in printed
    with pytest.raises(ConfigError, match="no model can be compared on the store"):
        call(recipe, [theirs, theirs2(tmp_path)], tasks_wanted=False, store=str(tmp_path / "store"))


def theirs2(folder: Path) -> str:
    return str(foreign_files.waveform_model(folder / "another.onnx", seed=2))


def test_the_contract_is_told_by_a_table_or_beside_the_file(
    recipe: Recipe, ours: str, tmp_path: Path, clips: Path
) -> None:
    model = foreign_files.waveform_model(tmp_path / "two.onnx", outputs=2)
    table = tmp_path / "models.toml"
    table.write_text('["two.onnx"]\nembedding = "map"\npool = "channels_first"\nlicence = "MIT"\n')
    _, record, _ = call(recipe, [ours, str(model)], tasks_wanted=False, contract=table)
    assert record["models"][1]["licence"] == "MIT"
    (tmp_path / "two.toml").write_text('embedding = "vector"\nlicence = "ISC"\n')
    _, record, _ = call(recipe, [ours, str(model)], tasks_wanted=False)
    assert record["models"][1]["licence"] == "ISC"
    _, record, _ = call(recipe, [ours, str(model)], ["two.onnx:licence=Zlib"], tasks_wanted=False)
    assert record["models"][1]["licence"] == "Zlib"


def test_what_cannot_be_compared_has_a_name(recipe: Recipe, ours: str, theirs: str, tmp_path: Path) -> None:
    noise = tmp_path / "noise.onnx"
    noise.write_bytes(b"this is no graph" * 20)
    frontend = onnx_file(tmp_path / "flat.onnx", {"ossicle.frontend": canonical_json(FRONTEND)})
    _flatten_input(frontend)
    two = str(foreign_files.waveform_model(tmp_path / "two.onnx", outputs=2))
    copy = shutil.copy(ours, tmp_path / "copy.onnx")
    refused: list[tuple[list[str], list[str], type[OssicleError], str]] = [
        ([ours], [], ConfigError, "nothing to be compared with"),
        ([ours, str(noise)], [], WeightsError, "no ONNX model"),
        ([ours, str(frontend)], [], WeightsError, "gives no embedding of a log-mel"),
        ([ours, two], [], ConfigError, "has 2 outputs; which is the embedding"),
        ([ours, two], ["embedding=map"], ConfigError, "is no vector a window"),
        ([ours, two], ["embedding=vectro"], ConfigError, "has no tensor 'vectro'"),
        ([ours, theirs], ["sample_rate=16000"], ConfigError, "no option 'sample_rate'"),
        ([ours, theirs], ["pool"], ConfigError, "no option of a model"),
        ([ours, str(copy)], [], ConfigError, "named twice"),
        ([ours, "teacher:tinny"], [], OssicleError, "tiny"),
        ([ours, str(tmp_path / "no.onnx")], [], MissingArtifactError, "no model is at"),
    ]
    for references, options, kind, words in refused:
        with pytest.raises(kind) as caught:
            call(recipe, references, options, tasks_wanted=False)
        assert words in str(caught.value), references
    with pytest.raises(ConfigError, match="does not say what it hears") as caught:
        compare.run(
            recipe, [ours, theirs], console=Console(file=io.StringIO()), declared=declared([], None), tasks_wanted=False
        )  # fmt: skip
    assert "sound (batch, samples)" in str(caught.value)
    with pytest.raises(MissingArtifactError):
        call(recipe, [ours, theirs])


def _flatten_input(path: Path) -> None:
    """Give the file an input of another rank."""
    import onnx

    model = onnx.load(path)
    model.graph.node[0].input[0] = "picture"
    model.graph.node.insert(0, onnx.helper.make_node("Unsqueeze", ["log_mel", "first"], ["picture"]))
    model.graph.initializer.append(onnx.helper.make_tensor("first", onnx.TensorProto.INT64, [1], [1]))
    del model.graph.input[0].type.tensor_type.shape.dim[1]
    onnx.save(model, path)
