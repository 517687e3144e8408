"""Weights come from a file or an address, verified, resumed, and converted into the cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from pipeline.config import TeacherConfig
from pipeline.errors import WeightsError
from pipeline.teachers import download, fetching, weights
from tests.teachers.checkpoint_table import enter, saved
from tests.teachers.file_server import Served, serving

STATE = {"w": torch.arange(5_000.0)}
CONTENT = saved(STATE)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("kind", ["path", "file", "http"])
def test_from_anywhere(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = enter(monkeypatch, sha256=DIGEST)
    path = tmp_path / "model 1.pt"
    path.write_bytes(CONTENT)
    seen: list[tuple[int, int | None]] = []
    with serving(Served(CONTENT)) as base:
        source = {"path": str(path), "file": path.as_uri(), "http": f"{base}/files/model%201.pt?raw=1"}[kind]
        found = fetching.fetch_from(
            "made", source, cache=tmp_path / "cache", progress=lambda *told: seen.append(told)
        )
    assert found.sha256 == DIGEST
    assert torch.equal(weights.load("made", TeacherConfig(), cache=tmp_path / "cache").state["w"], STATE["w"])
    assert weights.is_present(entry, tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert seen == ([(len(CONTENT), len(CONTENT))] if kind == "http" else [])
    folder = tmp_path / "cache" / "teachers" / "made"
    assert sorted(p.suffix for p in folder.iterdir()) == [".json", ".json", ".safetensors"]


def test_a_trusted_digest_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch)
    served = Served(CONTENT)
    with serving(served) as base:
        with pytest.raises(WeightsError, match="no digest is known") as caught:
            fetching.fetch_from("made", f"{base}/model.pt", cache=tmp_path)
        assert f"--trust-sha256 {DIGEST}" in str(caught.value)
        with pytest.raises(WeightsError, match="not there"):
            weights.load("made", TeacherConfig(), cache=tmp_path)
        fetching.fetch_from("made", f"{base}/model.pt", DIGEST, tmp_path)
    assert len(served.ranges) == 1, "what was already there was fetched again"
    loaded = weights.load("made", TeacherConfig(), cache=tmp_path)
    assert loaded.sha256 == DIGEST
    assert not (tmp_path / "teachers" / "made" / "incoming").exists()


def test_a_fetched_sibling_is_chosen_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.pt"
    path.write_bytes(CONTENT)
    enter(monkeypatch, "made_a", teacher="made")
    enter(monkeypatch, "made_b", teacher="made", sha256=DIGEST)
    fetching.fetch_from("made_b", str(path), cache=tmp_path)
    with pytest.raises(WeightsError, match="'made_a' are not there"):
        weights.load("made", TeacherConfig(), cache=tmp_path)
    assert weights.load("made", TeacherConfig(weights=Path("made_b")), cache=tmp_path).sha256 == DIGEST


def test_an_interrupted_download_goes_on(tmp_path: Path) -> None:
    served = Served(CONTENT, cut_after=[3_000, 5_000])
    with serving(served) as base:
        path = download.download(f"{base}/model.pt", tmp_path / "model.pt", max_bytes=1 << 30)
    assert path.read_bytes() == CONTENT
    assert served.ranges == [None, "bytes=3000-", "bytes=8000-"]


def test_a_file_that_changed_in_between_is_fetched_from_its_start(tmp_path: Path) -> None:
    served = Served(b"old" * 4_000, cut_after=[5_000, 0, 0, 0])
    target = tmp_path / "model.pt"
    with serving(served) as base:
        with pytest.raises(WeightsError, match="cannot fetch") as caught:
            download.download(f"{base}/model.pt", target, max_bytes=1 << 30)
        assert "4 tries" in str(caught.value)
        assert not target.exists()
        served.content, served.etag = CONTENT, '"two"'
        download.download(f"{base}/model.pt", target, max_bytes=1 << 30)
    assert served.ranges[-1] == "bytes=5000-"
    assert target.read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(tmp_path: Path) -> None:
    served = Served(CONTENT, cut_after=[6_000, 0, 0, 0])
    target = tmp_path / "model.pt"
    with serving(served) as base:
        with pytest.raises(WeightsError):
            download.download(f"{base}/model.pt", target, max_bytes=1 << 30)
        served.content = CONTENT[:4_000]
        assert (
            download.download(f"{base}/model.pt", target, max_bytes=1 << 30).read_bytes() == CONTENT[:4_000]
        )


def test_server_errors_are_tried_again_and_refusals_are_not(tmp_path: Path) -> None:
    served = Served(CONTENT, statuses=[503, 500])
    with serving(served) as base:
        download.download(f"{base}/model.pt", tmp_path / "model.pt", max_bytes=1 << 30)
        assert len(served.ranges) == 3
        served.statuses = [404]
        with pytest.raises(WeightsError, match="cannot fetch") as caught:
            download.download(f"{base}/other.pt", tmp_path / "other.pt", max_bytes=1 << 30)
    assert "HTTP 404" in str(caught.value)
    assert len(served.ranges) == 4


@pytest.mark.parametrize("with_length", [True, False])
def test_a_file_over_the_limit_is_refused(with_length: bool, tmp_path: Path) -> None:
    served = Served(bytes(3 << 20), with_length=with_length)
    with serving(served) as base, pytest.raises(WeightsError, match="cannot fetch") as caught:
        download.download(f"{base}/model.pt", tmp_path / "model.pt", max_bytes=1 << 20)
    assert "bytes at most" in str(caught.value)
    assert not (tmp_path / "model.pt").exists()
    assert not (tmp_path / "model.pt.part").exists()


def test_redirects_lead_to_http_alone(tmp_path: Path) -> None:
    with serving(Served(CONTENT)) as base, serving(Served(b"", redirect=f"{base}/model.pt")) as first:
        download.download(f"{first}/moved/model.pt", tmp_path / "model.pt", max_bytes=1 << 30)
    assert (tmp_path / "model.pt").read_bytes() == CONTENT
    for elsewhere in ("ftp://127.0.0.1/model.pt", "file:///etc/hostname"):
        with serving(Served(b"", redirect=elsewhere)) as base, pytest.raises(WeightsError) as caught:
            download.download(f"{base}/moved/x.pt", tmp_path / "x.pt", max_bytes=1 << 30)
        assert "redirect" in str(caught.value).lower()


@pytest.mark.parametrize("url", ["ftp://a/b.pt", "data:,x", "http://127.0.0.1:1/"])
def test_impossible_addresses(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch)
    with pytest.raises(WeightsError):
        fetching.fetch_from("made", url, cache=tmp_path)


def test_without_a_source_the_message_says_which_file_to_get(tmp_path: Path) -> None:
    entry = next(e for e in weights.CHECKPOINTS.values() if e.requirement is None)
    with pytest.raises(WeightsError, match="are not there") as caught:
        fetching.fetch(entry.name, tmp_path)
    said = str(caught.value)
    assert entry.published_name in said
    assert entry.published_at in said
    assert entry.licence in said
    assert f"ossicle fetch teacher {entry.name} --from" in said
