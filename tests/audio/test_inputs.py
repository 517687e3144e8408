"""Inputs of a manifest: tables, AudioSet lists and packs; which paths are refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter

from pipeline.audio.inputs import Collected, collect
from pipeline.config import Recipe
from pipeline.errors import ConfigError, Hdf5Error, ManifestError
from pipeline.input_config import MODEL_OF_KIND, Input
from tests.audio import audioset_folder, pack_writer

IDS = audioset_folder.IDS


def listed(**keys: Any) -> Collected:
    return collect([TypeAdapter(Input).validate_python(keys)])


def table(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "My Clips.csv"
    path.write_text(text)
    return path


def test_a_table_gives_every_documented_column(tmp_path: Path) -> None:
    text = (
        "path,label,group,split,fold,kind,licence,credit,dataset,mood\n"
        "a/1.wav,dog;bark,rex,train,2,effects,CC0-1.0,Ann,zoo,calm\n"
        "b.wav,,,test,,,,,,\n"
        f"{tmp_path}/c.wav,cat,,,3,,,,,\n"
    )
    found = listed(
        kind="csv", path=table(tmp_path, text), content="ambience", licence="CC-BY-4.0", credit="Us"
    )
    first, last = found.candidates
    assert (first.path, first.label, first.group, first.split, first.fold) == (
        "a/1.wav", "dog;bark", "rex", "train", 2,
    )  # fmt: skip
    assert (first.kind, first.licence, first.credit, first.dataset) == ("effects", "CC0-1.0", "Ann", "zoo")
    assert first.columns == (("mood", "calm"),)
    assert (last.path, last.group, last.split, last.fold) == ("c.wav", "c.wav", "", 3)
    assert (last.kind, last.licence, last.credit, last.dataset) == ("ambience", "CC-BY-4.0", "Us", "my-clips")
    assert [(row["path"], row["reason"]) for row in found.rejects] == [("b.wav", "held_out")]
    assert found.roots == {"my-clips": tmp_path}


def test_parquet_says_what_csv_says(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"path": ["x.wav", "y.wav"], "tag": ["a", None], "fold": [1.0, np.nan], "speaker": [7, 8]}
    )
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    found = [
        listed(kind=kind, path=tmp_path / f"t.{kind}", label="tag", group="speaker").candidates
        for kind in ("csv", "parquet")
    ]
    strip = [[(c.path, c.label, c.group, c.dataset) for c in candidates] for candidates in found]
    assert strip[0] == strip[1] == [("x.wav", "a", "7", "t"), ("y.wav", "", "8", "t")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\n../secret.wav\n", r"a path with '\.\.'"),
        ("path\na/../../secret.wav\n", r"a path with '\.\.'"),
        ("path\n/etc/passwd\n", "absolute path outside the root"),
        ("path\nlink.wav\n", "a symbolic link leads out"),
        ("path\nlinked/x.wav\n", "a symbolic link leads out"),
        ("path,label\n,dog\n", "without a usable path"),
        ("file,label\na.wav,dog\n", "lacks the column 'path'"),
        ("path,label\na.wav\n", "a row of another length"),
        ("path,label\na.wav,dog,cat\n", "a row of another length"),
        ("path,label,label\na.wav,dog,cat\n", "a column twice"),
        ("path,kind\na.wav,noise\n", "unknown kind"),
        ("path,fold\na.wav,first\n", "a fold is no whole number"),
        ("path,fold\na.wav,inf\n", "a fold is no whole number"),
        ("path\n", "no clip was found"),
        ("", "lacks the column"),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.wav").write_bytes(b"x")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.wav").symlink_to(outside / "x.wav")
    (root / "linked").symlink_to(outside)
    with pytest.raises(ManifestError, match=message):
        listed(kind="csv", path=table(root, text))


def test_a_users_own_links_can_be_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.wav").write_bytes(b"x")
    path = table(tmp_path / "root", "path\nlink.wav\n")
    (path.parent / "link.wav").symlink_to(tmp_path / "elsewhere.wav")
    assert listed(kind="csv", path=path, follow_links=True).candidates[0].path == "link.wav"
    (path.parent / "link.wav").unlink()
    (path.parent / "inside.wav").write_bytes(b"x")
    (path.parent / "link.wav").symlink_to("inside.wav")
    assert listed(kind="csv", path=path).candidates[0].path == "link.wav"


@pytest.mark.parametrize("content", [b"path\n\xff\xfe.wav\n", b"PAR1 not really"])
def test_what_is_no_table(tmp_path: Path, content: bytes) -> None:
    for kind in ("csv", "parquet"):
        (tmp_path / "t").write_bytes(content)
        with pytest.raises(ManifestError):
            listed(kind=kind, path=tmp_path / "t")


def test_a_parquet_bomb_is_refused_by_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pd.DataFrame({"path": ["a" * 1000] * 1000}).to_parquet(tmp_path / "t.parquet")
    monkeypatch.setattr("pipeline.audio.tables.MAX_PARQUET_BYTES", 100)
    with pytest.raises(ManifestError, match="would unpack to"):
        listed(kind="parquet", path=tmp_path / "t.parquet")


def test_splits_are_the_recipes_to_use(tmp_path: Path) -> None:
    path = table(tmp_path, "path,split\na.wav,train\nb.wav,test\nc.wav,extra\n")
    found = listed(
        kind="csv", path=path, splits={"test": "validation", "train": "draw"}, validation_share=0.5
    )
    assert [(c.path, c.split) for c in found.candidates] == [
        ("a.wav", ""),
        ("b.wav", "validation"),
        ("c.wav", ""),
    ]
    assert found.validation_shares == {"my-clips": 0.5}
    with pytest.raises(ConfigError, match="no split 'tset'"):
        listed(kind="csv", path=path, splits={"tset": "omit"})


@pytest.fixture
def audioset(tmp_path: Path) -> dict[str, Any]:
    """Lists and a folder that names its clips by every habit; one clip is in no folder."""
    clips = audioset_folder.clips("wav")
    audioset_folder.write_class_labels(tmp_path)
    names = (
        f"balanced/Y{IDS[0]}.wav", f"balanced/{IDS[1]}.flac", f"more/deep/{IDS[2]}_32.000_42.000.mp3", None,
        f"Y{IDS[4]}_34000.wav", f"{IDS[5]}_35000_45000.ogg",
    )  # fmt: skip
    for name in names:
        if name is not None:
            (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "clips" / name).write_bytes(b"x")
    (tmp_path / "clips" / f"{IDS[0]}.txt").write_text("notes")
    segments = audioset_folder.write_segments(tmp_path / "balanced_train_segments.csv", clips)
    return {"kind": "audioset", "segments": [segments], "root": tmp_path / "clips"}


def test_segment_lists_find_clips_by_every_habit(audioset: dict[str, Any]) -> None:
    found = listed(**audioset)
    assert [c.group for c in found.candidates] == [name for n, name in enumerate(IDS) if n != 3]
    assert found.candidates[0].path == f"balanced/Y{IDS[0]}.wav"
    assert found.candidates[2].path == f"more/deep/{IDS[2]}_32.000_42.000.mp3"
    assert found.candidates[0].label == "/m/00000;/m/00001"
    assert all(c.dataset == "audioset" and c.split == "" for c in found.candidates)
    (missing,) = found.rejects
    assert (missing["path"], missing["reason"]) == (f"Y{IDS[3]}", "missing")


def test_labels_by_name_and_index(audioset: dict[str, Any]) -> None:
    assert listed(**audioset, label_as="name").candidates[0].label == "Speech;Male speech, man speaking"
    assert listed(**audioset, label_as="index").candidates[1].label == "1;88"


def test_the_evaluation_list_is_left_out_unless_asked_for(audioset: dict[str, Any], tmp_path: Path) -> None:
    path = audioset_folder.write_segments(tmp_path / "eval_segments.csv", audioset_folder.clips("wav"))
    held = listed(**{**audioset, "segments": [path]})
    assert not held.candidates and {row["reason"] for row in held.rejects} == {"held_out", "missing"}
    used = listed(**{**audioset, "segments": [path]}, splits={"eval": "validation"})
    assert {c.split for c in used.candidates} == {"validation"}


@pytest.mark.parametrize(
    "row",
    [
        '--4gqARaEJE, 30, x, "/m/00000"',
        'short, 30, 40, "/m/00000"',
        '../../etc/pa, 0, 10, "/m/00000"',
        "--4gqARaEJE, 30",
    ],
)
def test_rows_that_are_no_segment(audioset: dict[str, Any], row: str) -> None:
    with audioset["segments"][0].open("a") as file:
        file.write(row + "\n")
    with pytest.raises(ManifestError, match="row 10"):
        listed(**audioset)


def test_an_unknown_class_is_refused(audioset: dict[str, Any]) -> None:
    with audioset["segments"][0].open("a") as file:
        file.write('11charsLong, 30.000, 40.000, "/m/nothere"\n')
    with pytest.raises(ManifestError, match="does not list"):
        listed(**audioset)


def packed(folder: Path) -> Path:
    clips = audioset_folder.clips("wav", 0.1)
    audioset_folder.write_class_labels(folder)
    pack_writer.write_panns(folder / "waveforms" / "balanced_train.h5", clips[:2], samples=3_200)
    pack_writer.write_panns(
        folder / "waveforms" / "unbalanced" / "unbalanced_train_part00.h5", clips[2:], samples=3_200
    )
    packs = {
        "/home/someone/hdf5s/waveforms/balanced_train.h5": clips[:2],
        "C:\\packs\\unbalanced_train_part00.h5": clips[2:],
    }
    return pack_writer.write_panns_index(folder / "indexes" / "balanced_train.h5", packs)


def test_packs_index_and_lists_say_the_same(audioset: dict[str, Any], tmp_path: Path) -> None:
    index = packed(tmp_path / "packs")
    labels = tmp_path / "packs" / "class_labels_indices.csv"
    lists = listed(**audioset)
    by_folder = listed(kind="panns_hdf5", path=tmp_path / "packs", class_labels=labels)
    by_index = listed(kind="panns_hdf5", path=index, root=tmp_path / "packs", class_labels=labels)
    expected = [(c.group, c.label, c.licence) for c in lists.candidates]
    for found in (by_folder, by_index):
        assert [(c.group, c.label, c.licence) for c in found.candidates] == expected
        assert [row["reason"] for row in found.rejects] == ["missing"]
        assert found.candidates[0].path == "waveforms/balanced_train.h5#0"
        assert found.candidates[2].path == "waveforms/unbalanced/unbalanced_train_part00.h5#0"


def test_an_index_that_disagrees_with_its_packs_is_refused(tmp_path: Path) -> None:
    index = packed(tmp_path)
    pack_writer.write_panns(
        tmp_path / "waveforms" / "balanced_train.h5", audioset_folder.clips("wav", 0.1)[1::-1], samples=3_200
    )
    keys = {"kind": "panns_hdf5", "path": index, "label_as": "index"}
    with pytest.raises(ManifestError, match="disagree on row 0"):
        listed(**keys, root=tmp_path)
    with pytest.raises(ManifestError, match="lies 0 times below"):
        listed(**keys)


def test_targets_need_the_class_table_to_become_mids(tmp_path: Path) -> None:
    pack = pack_writer.write_mp3(tmp_path / "eval_segments_mp3.hdf", audioset_folder.clips("mp3", 0.1))
    with pytest.raises(ManifestError, match=r"class_labels_indices\.csv"):
        listed(kind="mp3_hdf5", path=pack)
    found = listed(kind="mp3_hdf5", path=pack, label_as="index", splits={"eval": "train"})
    assert [c.label for c in found.candidates] == ["0;1", "1;88", "2;175", "4;349", "5;436"]
    with pytest.raises(ManifestError, match="of the other layout"):
        listed(kind="panns_hdf5", path=pack)


def test_a_folder_of_packs_with_a_broken_one(tmp_path: Path) -> None:
    packed(tmp_path)
    (tmp_path / "waveforms" / "broken.h5").write_text("no HDF5")
    with pytest.raises(Hdf5Error, match="broken"):
        listed(kind="panns_hdf5", path=tmp_path)


def test_two_inputs_of_one_name_keep_two_roots(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "clips").mkdir(parents=True)
        (tmp_path / name / "clips" / "x.wav").write_bytes(b"x")
    adapter: TypeAdapter[Any] = TypeAdapter(Input)
    inputs = [adapter.validate_python({"kind": "folder", "root": tmp_path / n / "clips"}) for n in ("a", "b")]
    found = collect(inputs)
    assert found.roots == {"clips": tmp_path / "a" / "clips", "clips-2": tmp_path / "b" / "clips"}
    assert [(c.root, c.dataset) for c in found.candidates] == [("clips", "clips"), ("clips-2", "clips")]


def test_every_recipe_on_the_page_of_inputs_is_valid_and_every_kind_is_on_it() -> None:
    page = (Path(__file__).parents[2] / "docs" / "inputs.md").read_text()
    blocks = [block.split("```")[0] for block in page.split("```toml")[1:]]
    kinds = {
        source.kind
        for block in blocks
        for source in Recipe.model_validate(tomllib.loads(block)).manifest.inputs
    }
    assert kinds >= {"folder", "csv", "audioset", "panns_hdf5", "mp3_hdf5"}
    assert all(f'"{kind}"' in page or f"`{kind}`" in page for kind in MODEL_OF_KIND)
    assert len(blocks) >= 10
