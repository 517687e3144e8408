"""Published datasets from miniature folders laid out as their metadata are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from pipeline.audio.datasets.published import datasets
from pipeline.audio.inputs import Collected, collect
from pipeline.errors import ManifestError
from pipeline.input_config import DatasetInput, Input, kinds_of
from pipeline.manifest import KINDS


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def listed(kind: str, root: Path, **keys: Any) -> Collected:
    return collect([TypeAdapter(Input).validate_python({"kind": kind, "root": root, **keys})])


def rows(found: Collected) -> list[tuple[str, str, str, str, int]]:
    return [(c.path, c.label, c.group, c.split, c.fold) for c in found.candidates]


def test_every_kind_has_a_dataset_with_its_facts() -> None:
    assert set(kinds_of(DatasetInput)) == set(datasets.names())
    for name in datasets.names():
        described = datasets.build(name)
        assert described.name == name and described.kind in KINDS and described.licence and described.citation


def test_a_root_without_the_metadata_says_which_file_is_missing(tmp_path: Path) -> None:
    for kind in kinds_of(DatasetInput):
        with pytest.raises(ManifestError):
            listed(kind, tmp_path)


def test_esc50(tmp_path: Path) -> None:
    write(
        tmp_path / "meta" / "esc50.csv",
        "filename,fold,target,category,esc10,src_file,take",
        "1-100032-A-0.wav,1,0,dog,True,100032,A",
        "2-100038-A-14.wav,2,14,chirping_birds,False,100038,A",
    )
    found = listed("esc50", tmp_path)
    assert rows(found) == [
        ("audio/1-100032-A-0.wav", "dog", "100032", "", 1),
        ("audio/2-100038-A-14.wav", "chirping_birds", "100038", "", 2),
    ]
    assert [c.licence for c in found.candidates] == ["CC-BY-3.0", "CC-BY-NC-3.0"]
    assert "Piczak" in found.candidates[0].credit
    assert [c.label for c in listed("esc50", tmp_path, label="target").candidates] == ["0", "14"]
    assert len(listed("esc50", tmp_path, subset="esc10").candidates) == 1
    with pytest.raises(ManifestError, match="no label column 'catgory'"):
        listed("esc50", tmp_path, label="catgory")


def test_a_path_in_metadata_cannot_leave_the_root(tmp_path: Path) -> None:
    write(
        tmp_path / "meta" / "esc50.csv",
        "filename,fold,target,category,esc10,src_file,take",
        "../../../etc/passwd,1,0,dog,True,100032,A",
    )
    with pytest.raises(ManifestError, match=r"a path with '\.\.'"):
        listed("esc50", tmp_path)


def test_fsd50k(tmp_path: Path) -> None:
    write(
        tmp_path / "FSD50K.ground_truth" / "dev.csv",
        "fname,labels,mids,split",
        '64760,"Electric_guitar,Guitar","/m/02sgy,/m/0342h",train',
        '16399,"Bark","/m/05tny_",val',
    )
    write(tmp_path / "FSD50K.ground_truth" / "eval.csv", "fname,labels,mids", '37199,"Bark","/m/05tny_"')
    by = "http://creativecommons.org/licenses/by/3.0/"
    clip = {"title": "t", "description": "d", "tags": [], "license": by, "uploader": "ann"}
    for part, names in (("dev", ("64760", "16399")), ("eval", ("37199",))):
        info = tmp_path / "FSD50K.metadata" / f"{part}_clips_info_FSD50K.json"
        write(info, json.dumps(dict.fromkeys(names, clip)))
    found = listed("fsd50k", tmp_path)
    assert rows(found) == [
        ("FSD50K.dev_audio/64760.wav", "Electric_guitar;Guitar", "ann", "train", -1),
        ("FSD50K.dev_audio/16399.wav", "Bark", "ann", "validation", -1),
    ]
    assert found.candidates[0].licence == by and found.candidates[0].credit == "ann (Freesound 64760)"
    assert [row["path"] for row in found.rejects] == ["FSD50K.eval_audio/37199.wav"]
    assert listed("fsd50k", tmp_path, label="mids").candidates[0].label == "/m/02sgy;/m/0342h"
    write(tmp_path / "FSD50K.metadata" / "dev_clips_info_FSD50K.json", json.dumps({"64760": clip}))
    with pytest.raises(ManifestError, match="clip 16399"):
        listed("fsd50k", tmp_path)


def test_urbansound8k(tmp_path: Path) -> None:
    write(
        tmp_path / "metadata" / "UrbanSound8K.csv",
        "slice_file_name,fsID,start,end,salience,fold,classID,class",
        "100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark",
    )
    assert rows(listed("urbansound8k", tmp_path)) == [
        ("audio/fold5/100032-3-0-0.wav", "dog_bark", "100032", "", 5)
    ]
    assert listed("urbansound8k", tmp_path, label="salience").candidates[0].label == "1"


FMA = (
    ",album,artist,artist,set,set,track,track,track",
    ",title,id,name,split,subset,genre_top,license,title",
    "track_id,,,,,,,,",
    '2,"A, way",1,AWOL,training,small,Hip-Hop,"Attribution-NonCommercial\n 3.0",Food',
    "5,A,1,AWOL,test,small,Hip-Hop,CC,This World",
    "10,B,6,Kurt Vile,validation,medium,Pop,CC,Freeway",
    "140,C,54,Alec,training,large,,CC,Queen",
)


def test_fma(tmp_path: Path) -> None:
    write(tmp_path / "fma_metadata" / "tracks.csv", *FMA)
    small = listed("fma", tmp_path)
    assert rows(small) == [("fma_small/000/000002.mp3", "Hip-Hop", "artist 1", "train", -1)]
    assert small.candidates[0].licence == "Attribution-NonCommercial 3.0"
    assert small.candidates[0].credit == "AWOL: Food"
    assert [row["path"] for row in small.rejects] == ["fma_small/000/000005.mp3"]
    large = listed("fma", tmp_path, subset="large")
    assert [(c.path, c.split) for c in large.candidates] == [
        ("fma_large/000/000002.mp3", "train"),
        ("fma_large/000/000010.mp3", "validation"),
        ("fma_large/000/000140.mp3", "train"),
    ]
    write(tmp_path / "fma_metadata" / "tracks.csv", *FMA[1:])
    with pytest.raises(ManifestError, match="table of tracks"):
        listed("fma", tmp_path)


def test_magnatagatune(tmp_path: Path) -> None:
    write(
        tmp_path / "annotations_final.csv",
        '"clip_id"\t"no voice"\t"singer"\t"sitar"\t"mp3_path"',
        '"2"\t"0"\t"1"\t"1"\t"f/american_bach-01-loesst-0-29.mp3"',
        '"6"\t"0"\t"0"\t"1"\t"0/american_bach-02-other-30-59.mp3"',
        '"7"\t"1"\t"0"\t"0"\t"c/american_bach-02-other-59-88.mp3"',
    )
    found = listed("magnatagatune", tmp_path, splits={"test": "validation"})
    assert rows(found) == [
        ("f/american_bach-01-loesst-0-29.mp3", "singer;sitar", "american_bach-01-loesst", "validation", -1),
        ("0/american_bach-02-other-30-59.mp3", "sitar", "american_bach-02-other", "train", -1),
        ("c/american_bach-02-other-59-88.mp3", "no voice", "american_bach-02-other", "validation", -1),
    ]
    (tmp_path / "mp3" / "0").mkdir(parents=True)
    assert listed("magnatagatune", tmp_path).candidates[0].path == "mp3/0/american_bach-02-other-30-59.mp3"


def test_openmic2018(tmp_path: Path) -> None:
    write(
        tmp_path / "openmic-2018-aggregated-labels.csv",
        "sample_key,instrument,relevance,num_responses",
        "000046_3840,clarinet,0.17105,3",
        "000046_3840,flute,0.5,3",
        "000135_483840,voice,1.0,3",
    )
    write(
        tmp_path / "openmic-2018-metadata.csv",
        "track_id,artist_id,artist_name,sample_key,start_time,license_title",
        "46,9,Ann,000046_3840,0.08,Attribution 3.0",
        "135,58,Bob,000135_483840,10.08,",
    )
    write(tmp_path / "partitions" / "split01_train.csv", "000046_3840")
    write(tmp_path / "partitions" / "split01_test.csv", "000135_483840")
    found = listed("openmic2018", tmp_path)
    assert rows(found) == [("audio/000/000046_3840.ogg", "flute", "artist 9", "", -1)]
    # The voice was not looked for in this clip: neither yes nor no.
    assert dict(found.candidates[0].columns) == {
        "instruments": "flute", "clarinet": "0.17105", "flute": "0.5", "voice": "",
    }  # fmt: skip
    both = listed("openmic2018", tmp_path, splits={"test": "validation"})
    assert [c.licence for c in both.candidates] == ["Attribution 3.0", "CC-BY-4.0"]


def test_gtzan(tmp_path: Path) -> None:
    for name in (
        "blues/blues.00000.wav",
        "blues/blues.00001.wav",
        "jazz/jazz.00054.au",
        "rock/rock.00002.wav",
    ):
        write(tmp_path / "genres" / name, "x")
    write(tmp_path / "genres" / "bextract_single.mf", "x")
    plain = listed("gtzan", tmp_path)
    assert [(c.path, c.label, c.split) for c in plain.candidates] == [
        ("genres/blues/blues.00000.wav", "blues", ""),
        ("genres/blues/blues.00001.wav", "blues", ""),
        ("genres/jazz/jazz.00054.au", "jazz", ""),
        ("genres/rock/rock.00002.wav", "rock", ""),
    ]
    for name, line in (("train", "blues/blues.00000.wav"), ("valid", "rock/rock.00002.wav"), ("test", "")):
        write(tmp_path / "lists" / f"{name}_filtered.txt", line)
    filtered = listed("gtzan", tmp_path, lists=tmp_path / "lists")
    assert [(c.path, c.split) for c in filtered.candidates] == [
        ("genres/blues/blues.00000.wav", "train"),
        ("genres/rock/rock.00002.wav", "validation"),
    ]
    assert len(filtered.rejects) == 2
    write(tmp_path / "lists" / "test_filtered.txt", "blues/blues.00000.wav")
    with pytest.raises(ManifestError, match="in two of the lists"):
        listed("gtzan", tmp_path, lists=tmp_path / "lists")


def test_nsynth(tmp_path: Path) -> None:
    note = {
        "note": 1, "note_str": "keyboard_acoustic_004-060-025", "instrument": 327,
        "instrument_str": "keyboard_acoustic_004",
        "instrument_family": 4, "instrument_family_str": "keyboard", "instrument_source": 0,
        "instrument_source_str": "acoustic", "pitch": 60, "velocity": 25, "sample_rate": 16000,
        "qualities": [0, 1], "qualities_str": ["dark", "reverb"],
    }  # fmt: skip
    for part in ("train", "test"):
        write(
            tmp_path / f"nsynth-{part}" / "examples.json", json.dumps({"keyboard_acoustic_004-060-025": note})
        )
    found = listed("nsynth", tmp_path, label="qualities_str")
    place = "nsynth-train/audio/keyboard_acoustic_004-060-025.wav"
    assert rows(found) == [(place, "dark;reverb", "keyboard_acoustic_004", "train", -1)]
    assert dict(found.candidates[0].columns)["pitch"] == "60"
    assert len(listed("nsynth", tmp_path, subset="test", splits={"test": "train"}).candidates) == 1
    del note["pitch"]
    write(tmp_path / "nsynth-train" / "examples.json", json.dumps({"n": note}))
    with pytest.raises(ManifestError, match="lacks 'pitch'"):
        listed("nsynth", tmp_path)


def test_tess(tmp_path: Path) -> None:
    for name in (
        "OAF_angry/OAF_back_angry.wav",
        "YAF_pleasant_surprised/YAF_dog_ps.wav",
        "OA_bite_neutral.wav",
    ):
        write(tmp_path / name, "x")
    write(tmp_path / "readme.txt", "x")
    assert rows(listed("tess", tmp_path)) == [
        ("OA_bite_neutral.wav", "neutral", "bite", "", 0),
        ("OAF_angry/OAF_back_angry.wav", "angry", "back", "", 0),
        ("YAF_pleasant_surprised/YAF_dog_ps.wav", "pleasant_surprise", "dog", "", 1),
    ]
    assert {c.label for c in listed("tess", tmp_path, label="speaker").candidates} == {"OAF", "YAF"}


def test_tau_scenes(tmp_path: Path) -> None:
    names = [f"audio/airport-barcelona-{n}-0-a.wav" for n in range(3)]
    write(
        tmp_path / "meta.csv",
        "filename\tscene_label\tidentifier\tsource_label",
        *(f"{name}\tairport\tbarcelona-{n}\ta" for n, name in enumerate(names)),
    )
    setup = tmp_path / "evaluation_setup"
    write(setup / "fold1_train.csv", "filename\tscene_label", f"{names[0]}\tairport")
    write(setup / "fold1_evaluate.csv", "filename\tscene_label", f"{names[1]}\tairport")
    found = listed("tau_scenes", tmp_path)
    assert rows(found) == [
        (names[0], "airport", "barcelona-0", "train", -1),
        (names[1], "airport", "barcelona-1", "validation", -1),
    ]
    assert dict(found.candidates[0].columns) == {
        "scene_label": "airport",
        "source_label": "a",
        "city": "barcelona",
    }
    write(tmp_path / "split5.csv", "filename\tscene_label", f"{names[2]}\tairport")
    fewer = listed("tau_scenes", tmp_path, lists=tmp_path / "split5.csv")
    assert [(c.path, c.split) for c in fewer.candidates] == [(names[1], "validation"), (names[2], "train")]
    write(tmp_path / "split5.csv", "filename\tscene_label", f"{names[1]}\tairport")
    with pytest.raises(ManifestError, match="in both lists"):
        listed("tau_scenes", tmp_path, lists=tmp_path / "split5.csv")


def test_dear(tmp_path: Path) -> None:
    columns = [
        "id", "split", "environmentClass", "indoorOrOutdoor", "stationaryOrTransientNoise", "nTargets", "targetRT60",
        "targetDRR", *(f"targetSNR_{k}" for k in range(1, 31)), *(f"nTargetsActive_{k}" for k in range(1, 31)),
    ]  # fmt: skip
    noise_only = ["7", "test", "", "", "stationary", *[""] * 63]
    whole = ["3", "development", "Nature", "outdoor", "", "2", "0.4", "5.1", *["-3.5"] * 30, *["1"] * 30]
    write(tmp_path / "DEAR_metadata.csv", ",".join(columns), ",".join(whole), ",".join(noise_only))
    found = listed("dear", tmp_path, splits={"test": "validation"})
    assert rows(found) == [("files/3.wav", "Nature", "3", "", -1), ("files/7.wav", "", "7", "validation", -1)]
    assert dict(found.candidates[0].columns)["targetSNR_30"] == "-3.5"
    assert set(dict(found.candidates[1].columns)) == set(columns[2:])
    noise = listed("dear", tmp_path, label="stationaryOrTransientNoise", splits={"test": "validation"})
    assert noise.candidates[1].label == "stationary"


def test_speech_commands(tmp_path: Path) -> None:
    names = [
        f"{word}/{speaker}_nohash_0.wav"
        for word, speaker in (("yes", "0a7c2a8d"), ("no", "1b"), ("bed", "2c"))
    ]
    for name in (*names, "_background_noise_/pink_noise.wav"):
        write(tmp_path / name, "x")
    write(tmp_path / "validation_list.txt", names[1])
    write(tmp_path / "testing_list.txt", names[2])
    found = listed("speech_commands", tmp_path, splits={"test": "validation"})
    assert sorted(rows(found)) == [
        (names[2], "bed", "2c", "validation", -1),
        (names[1], "no", "1b", "validation", -1),
        (names[0], "yes", "0a7c2a8d", "train", -1),
    ]
    commands = listed("speech_commands", tmp_path, label="command", splits={"test": "validation"})
    assert sorted(c.label for c in commands.candidates) == ["no", "unknown", "yes"]
    write(tmp_path / "testing_list.txt", names[1])
    with pytest.raises(ManifestError, match="in both lists"):
        listed("speech_commands", tmp_path)
