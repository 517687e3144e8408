"""The card says what the artifacts say, a package is the same bytes on any day, nothing is lost to it; pushing."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import onnx
import pytest
from rich.console import Console

from pipeline import artifact
from pipeline.deploy.package.licences import hub_licence, is_non_commercial, legal_text
from pipeline.errors import ConfigError, MissingArtifactError, MissingDependencyError, OssicleError
from pipeline.students.saved import read_description
from stages import package
from tests.package import made_run


def call(run: Path, **options: Any) -> tuple[Path, str]:
    text = io.StringIO()
    target = package.run(str(run), console=Console(file=text, width=200), **options)
    return target, text.getvalue()


def table(card: str, section: str) -> list[dict[str, str]]:
    """Return the rows of a section's first table by heading."""
    part = card.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


def test_the_card_holds_the_artifacts_figures(trained: Path, packed: Path) -> None:
    card = (packed / "README.md").read_text()
    saved, run = read_description(trained), artifact.read(trained)
    assert f"({saved.parameters:,} parameters)" in card
    for fact in (run.digest, '"steps": 321', made_run.TEACHER.citation, made_run.TEACHER.licence):
        assert fact in card
    scores = {row["numbers"]: row for row in table(card, "Results")}
    assert scores["fp32"]["score, % [95 %]"] == "71.2 [64.0, 78.0]"
    assert scores["s8s8"]["score, % [95 %]"].startswith("70.8 ")
    assert scores["fp32"]["teacher, %"] == "84.3"
    assert scores["fp32"]["kept, %"] == f"{100 * made_run.SCORE / made_run.TEACHER_SCORE:.1f}"
    assert scores["fp32"]["overlap with the teacher"] == "0.568"
    assert scores["fp32"]["task"] == r"Drum class \| by kit"
    costs = {row["file"]: row for row in table(card, "Cost")}
    assert costs["`student_s8s8.onnx`"]["x86 p50 ms"] == "0.43"
    assert costs["`student_s8s8.onnx`"]["cortex-a76 M instructions"] == "1.23"
    assert costs["`student_fp32.onnx`"]["MACs in int8"] == "-"
    assert costs["`student_s8s8.onnx`"]["MACs in int8"] == "97 %"


def test_data_is_listed_with_rows_and_licences(packed: Path) -> None:
    rows = {row["dataset"]: row for row in table((packed / "README.md").read_text(), "Data")}
    assert set(rows) == set(made_run.DATASETS)
    assert rows["mix"]["licence"] == "CC-BY-SA-3.0, CC0-1.0"
    # 24 rows in threes, every fourth for validation; row 3 (bells) is silent.
    assert [rows["bells"][name] for name in ("training windows", "validation", "unusable")] == ["6", "1", "1"]
    assert sum(int(row["training windows"]) + int(row["validation"]) for row in rows.values()) == 23
    licences = (packed / "LICENSES.md").read_text()
    assert "deep_ear: CC BY-NC 4.0" in licences
    assert "/by-nc/4.0/" in licences
    assert "/publicdomain/zero/1.0/" in licences


def test_non_commercial_is_said_loudly_and_not_refused(trained: Path, packed: Path, tmp_path: Path) -> None:
    _, printed = call(trained, to=tmp_path / "model")
    assert "NON-COMMERCIAL: made from teacher (CC BY-NC 4.0)" in printed
    card = (packed / "README.md").read_text()
    assert "**NON-COMMERCIAL.**" in card
    head = made_run.front_matter(card)
    assert head["license"] == "cc-by-nc-4.0"
    assert {"non-commercial", "int8", "onnx"} <= set(head["tags"])
    assert head["metrics"] == ["accuracy"]


def test_a_hub_reads_the_front_matter(packed: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard((packed / "README.md").read_text()).data
    assert data.license == "cc-by-nc-4.0"
    assert data.pipeline_tag == "feature-extraction"
    values = {(r.metric_name, r.metric_value) for r in data.eval_results}
    assert values == {("k-NN, fp32, %", 71.25), ("k-NN, s8s8, %", 70.83)}


def test_constants_are_those_of_the_files(trained: Path, packed: Path) -> None:
    saved = read_description(trained)
    constants = json.loads((packed / "frontend.json").read_text())
    assert constants["frontend"] == saved.frontend.model_dump(mode="json")
    assert constants["normalisation"]["mean"] == saved.mean
    assert constants["window_samples"] == 7_360
    assert constants["window_frames"] == 24
    assert constants["embedding_dim"] == saved.embedding_dim
    assert constants["ship"] == "student_s8s8.onnx"
    shape = onnx.load(str(packed / constants["ship"])).graph.output[0].type.tensor_type.shape
    assert shape.dim[1].dim_value == saved.embedding_dim
    header = (packed / "c" / "ossicle_model.h").read_text()
    assert f"#define OSSICLE_EMBEDDING_DIM {saved.embedding_dim}\n" in header
    assert "#define OSSICLE_WINDOW_SAMPLES 7360\n" in header


def test_every_file_is_summed(packed: Path) -> None:
    lines = (packed / "SHA256SUMS").read_text().splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    present = {p.relative_to(packed).as_posix(): p for p in packed.rglob("*") if p.is_file()}
    assert set(listed) == set(present) - {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256(present[name].read_bytes()).hexdigest() == digest
    code = Path(__file__).parents[2] / "LICENSE"
    assert (packed / "LICENSE-CODE").read_text() == code.read_text()


def test_archives_are_the_same_bytes_and_the_same_files(trained: Path, packed: Path, tmp_path: Path) -> None:
    folder = {p.relative_to(packed).as_posix(): p.read_bytes() for p in packed.rglob("*") if p.is_file()}
    for ending in (".zip", ".tar.gz"):
        first, _ = call(trained, to=tmp_path / f"a{ending}")
        second, _ = call(trained.parents[1] / "export" / "distilled-seed0-89ab", to=tmp_path / f"b{ending}")
        assert first.read_bytes() == second.read_bytes()
        name = package.gather(package.run_records.find(str(trained))).name
        if ending == ".zip":
            with zipfile.ZipFile(first) as archive:
                held = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        else:
            with tarfile.open(first) as archive:
                held = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
                assert {entry.mtime for entry in archive} == {0}
        assert held == {f"{name}/{path}": content for path, content in folder.items()}


def test_a_folder_of_other_files_is_not_replaced(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    call(trained, to=target)
    call(trained, to=target)
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds other files") as caught:
        call(trained, to=target)
    assert "thesis.tex" in str(caught.value)
    assert (target / "thesis.tex").is_file()
    with pytest.raises(ConfigError, match="folder or an archive"):
        call(trained, to=tmp_path / "model.tar.bz2")


def test_what_was_not_measured_is_said(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    for kind in ("run", "store", "export"):
        root.mkdir(exist_ok=True)
        (root / kind).symlink_to(trained.parents[1] / kind)
    target, printed = call(root / "run" / trained.name, to=tmp_path / "model", licence="MIT")
    card = (target / "README.md").read_text()
    assert "No evaluation names this run" in printed
    assert "No benchmark names student_fp32.onnx, student_s8s8.onnx" in card
    assert "Not evaluated." in card
    head = made_run.front_matter(card)
    assert head["license"] == "mit"
    assert "metrics" not in head


def test_an_int8_file_that_costs_more_is_not_shipped(trained: Path, tmp_path: Path) -> None:
    root, made = tmp_path / "artifacts", trained.parents[1]
    root.mkdir()
    for kind in ("run", "store", "export"):
        (root / kind).symlink_to(made / kind)
    made_run.write_costs(root, made / "export" / "distilled-seed0-89ab", float_factor=0.8)
    target, printed = call(root / "run" / trained.name, to=tmp_path / "model")
    assert "ship student_fp32.onnx" in printed
    assert "no C program without ONNX Runtime: it holds int8" in printed
    assert not (target / "c99").exists()
    assert json.loads((target / "frontend.json").read_text())["ship"] == "student_fp32.onnx"
    card = (target / "README.md").read_text()
    assert "cortex-a76: 1.25 x float32's" in card
    assert "c99" not in card


def test_what_is_missing_has_a_name(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="no run is at"):
        call(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="is no run"):
        call(trained.parents[1] / "store" / "windows-0123")
    root = tmp_path / "artifacts"
    root.mkdir()
    (root / "run").symlink_to(trained.parents[1] / "run")
    with pytest.raises(MissingArtifactError, match="not exported yet"):
        call(root / "run" / trained.name)
    (root / "export").symlink_to(trained.parents[1] / "export")
    with pytest.raises(MissingArtifactError, match="store that the run learnt from is not here"):
        call(root / "run" / trained.name)
    store = trained.parents[1] / "store" / "windows-0123"
    target, _ = call(root / "run" / trained.name, store=str(store), to=tmp_path / "model")
    assert (target / "README.md").is_file()


@pytest.mark.parametrize(
    ("text", "name", "forbids"),
    [
        ("CC BY 4.0", "cc-by-4.0", False), ("CC-BY-NC-SA-4.0", "cc-by-nc-sa-4.0", True),
        ("CC BY-NC 4.0 International", "cc-by-nc-4.0", True), ("Apache-2.0", "apache-2.0", False),
        ("GPL-2.0-or-later", "gpl-2.0", False), ("research use only", "other", True),
        ("Non-commercial, see the site", "other", True), ("GPL-3.0 or CC-BY-3.0", "other", False),
        ("MIT", "mit", False), ("CC0-1.0", "cc0-1.0", False), ("INCITS", "other", False),
    ],
)  # fmt: skip
def test_licences(text: str, name: str, forbids: bool) -> None:
    assert hub_licence(text) == name
    assert is_non_commercial(text) is forbids
    assert (legal_text(text) is not None) is name.startswith("cc")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """A client of the real one's signatures that keeps what it is given."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    api = mock.create_autospec(huggingface_hub.HfApi, instance=True)
    seen: dict[str, Any] = {}

    def upload(*, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        seen["files"] = {p.relative_to(folder_path).as_posix() for p in folder_path.rglob("*") if p.is_file()}
        return SimpleNamespace(commit_url=f"address of {repo_id}")

    api.upload_folder.side_effect = upload
    api.seen = seen
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: api if token == "secret" else None)
    monkeypatch.setenv("HF_TOKEN", "secret")
    return api


def test_the_package_is_uploaded_whole(trained: Path, packed: Path, client: Any, tmp_path: Path) -> None:
    _, printed = call(trained, to=tmp_path / "model.zip", push="me/ear", private=True)
    client.create_repo.assert_called_once_with("me/ear", private=True, exist_ok=True)
    assert client.upload_folder.call_count == 1
    assert client.seen["files"] == {
        p.relative_to(packed).as_posix() for p in packed.rglob("*") if p.is_file()
    }
    assert "pushed to address of me/ear" in printed
    assert "secret" not in printed


def test_without_token_name_or_client_nothing_is_written(
    trained: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    for name in ("ear", "me/", "../me/ear", "me/ear/more"):
        with pytest.raises(ConfigError, match="no name of a repository"):
            call(trained, to=target, push=name)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="needs a token"):
        call(trained, to=target, push="me/ear")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="huggingface_hub") as caught:
        call(trained, to=target, push="me/ear")
    assert "ossicle[hub]" in str(caught.value)
    assert not target.exists()
    assert not client.upload_folder.called


def test_a_refusal_is_one_line(trained: Path, client: Any, tmp_path: Path) -> None:
    client.create_repo.side_effect = ConnectionError("the network is down")
    with pytest.raises(OssicleError, match="did not take the package") as caught:
        call(trained, to=tmp_path / "model", push="me/ear")
    assert "the network is down" in str(caught.value)
