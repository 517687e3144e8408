"""AudioSet packs: rows equal files, and nothing that a hostile HDF5 claims is believed."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile

from pipeline.audio import clip_source, decode, packs
from pipeline.errors import AudioError, Hdf5Error
from tests.audio import audioset_folder, pack_writer

RATE_HZ = audioset_folder.RATE_HZ


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``waveform.h5``, ``mp3.hdf`` and the same clips as files."""
    folder = tmp_path_factory.mktemp("packs")
    pack_writer.write_panns(folder / "waveform.h5", audioset_folder.clips("wav"), samples=4 * RATE_HZ)
    pack_writer.write_mp3(folder / "mp3.hdf", audioset_folder.clips("mp3"))
    for number, (_, waveform, _) in enumerate(audioset_folder.clips("wav")):
        if waveform is not None:
            soundfile.write(folder / f"{number}.wav", waveform.astype(np.float32), RATE_HZ, subtype="FLOAT")
            (folder / f"{number}.mp3").write_bytes(pack_writer.mp3_bytes(waveform))
    return folder


@pytest.mark.parametrize("row", [0, 1, 2, 4, 5])
@pytest.mark.parametrize(("pack", "suffix"), [("waveform.h5", "wav"), ("mp3.hdf", "mp3")])
def test_a_row_holds_the_samples_of_its_file(folder: Path, pack: str, suffix: str, row: int) -> None:
    packed, file = folder / f"{pack}#{row}", folder / f"{row}.{suffix}"
    assert clip_source.inspect(packed).digest == decode.inspect(file).digest
    for start, frames in ((0, None), (1_000, 7_000), (40_000, 10_000_000)):
        samples, rate = clip_source.read(packed, start, frames)
        expected, expected_rate = decode.read(file, start, frames)
        assert rate == expected_rate == RATE_HZ
        np.testing.assert_array_equal(samples, expected)
    assert clip_source.file_of(packed) == folder / pack


def test_samples_are_the_packed_integers_over_32767(folder: Path) -> None:
    with h5py.File(folder / "waveform.h5") as file:
        expected = file["waveform"][0].astype(np.float64) / 32_767
    samples, _ = clip_source.read(folder / "waveform.h5#0")
    np.testing.assert_allclose(samples, expected[: len(samples)], atol=1e-8)
    assert not expected[len(samples) :].any()


def test_what_panns_packer_loses_of_a_16_bit_file_is_below_a_step(tmp_path: Path) -> None:
    """It scales by 32,767 and truncates where a WAV is divided by 32,768 and rounded."""
    sound = np.random.default_rng(0).integers(-32_768, 32_768, 32_000)
    soundfile.write(tmp_path / "a.wav", sound.astype(np.int16), RATE_HZ)
    samples, _ = decode.read(tmp_path / "a.wav")
    pack_writer.write_panns(tmp_path / "a.h5", [("Yabcdefghijk.wav", samples, [])], samples=RATE_HZ)
    packed, _ = clip_source.read(tmp_path / "a.h5#0")
    assert 0 < np.abs(packed - samples).max() < 1.01 / 32_767


def test_tables_know_names_classes_and_what_is_missing(folder: Path) -> None:
    for name in ("waveform.h5", "mp3.hdf"):
        pack = packs.Pack(folder / name)
        rows = list(pack.table())
        pack.close()
        for number, (row, clip) in enumerate(zip(rows, audioset_folder.clips(pack.kind[:3]), strict=True)):
            assert row.classes == tuple(sorted(set(clip[2])))
            assert row.name == (
                "" if number == audioset_folder.MISSING else clip[0].replace("wav", row.name[-3:])
            )
    with pytest.raises(AudioError) as caught:
        clip_source.inspect(folder / f"waveform.h5#{audioset_folder.MISSING}")
    assert caught.value.reason == "no_samples"


@pytest.mark.parametrize(
    ("name", "reason"), [("waveform.h5#6", "bad_pack"), ("mp3.hdf#99", "bad_pack"), ("none.h5#0", "missing")]
)
def test_rows_that_are_not_there(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(AudioError) as caught:
        clip_source.read(folder / name)
    assert caught.value.reason == reason


def base(file: h5py.File, rows: int = 4) -> None:
    file["audio_name"] = np.array([b"Yabcdefghijk.wav"] * rows, dtype="S20")
    file["target"] = np.zeros((rows, 527), dtype=bool)
    file.attrs["sample_rate"] = np.int32(32_000)


def absurd_shape(file: h5py.File) -> None:
    file.create_dataset("waveform", shape=(1 << 27, 320_000), dtype="i2")


def absurd_rows(file: h5py.File) -> None:
    file.create_dataset("waveform", shape=(1 << 40, 32), dtype="i2", chunks=(1, 32))


def absurd_row(file: h5py.File) -> None:
    file.create_dataset("waveform", shape=(4, 1 << 36), dtype="i2", chunks=(1, 1 << 20))
    file["waveform"][0, :4] = 1


def external_link(file: h5py.File) -> None:
    file["waveform"] = h5py.ExternalLink("other.h5", "/waveform")


def soft_link(file: h5py.File) -> None:
    file["elsewhere"] = np.zeros((4, 32), dtype="i2")
    file["waveform"] = h5py.SoftLink("/elsewhere")


def soft_link_out(file: h5py.File) -> None:
    file["door"] = h5py.ExternalLink("other.h5", "/")
    file["waveform"] = h5py.SoftLink("/door/waveform")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(4, 32), dtype="i2")
    layout[:] = h5py.VirtualSource("other.h5", "waveform", shape=(4, 32))
    file.create_virtual_dataset("waveform", layout)


def external_storage(file: h5py.File) -> None:
    file.create_dataset("waveform", shape=(4, 32), dtype="i2", external=[("/etc/hostname", 0, 256)])


def bomb(file: h5py.File) -> None:
    file.create_dataset(
        "waveform", shape=(40_000, 32_000), dtype="i2", chunks=(50, 32_000), compression="gzip"
    )
    file["waveform"][:50] = np.zeros((50, 32_000), dtype="i2")


def huge_chunk(file: h5py.File) -> None:
    file.create_dataset("waveform", shape=(4, 1 << 26), dtype="i2", chunks=(1, 1 << 26), compression="gzip")


def unknown_filter(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((4, 32))
    plist.set_filter(40_001, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((4, 32))
    h5py.h5d.create(file.id, b"waveform", h5py.h5t.NATIVE_INT16, space, plist)


def wrong_type(file: h5py.File) -> None:
    file["waveform"] = np.zeros((4, 32), dtype="f4")


def wide_integers(file: h5py.File) -> None:
    file["waveform"] = np.zeros((4, 32), dtype="i8")


def wrong_rank(file: h5py.File) -> None:
    file["waveform"] = np.zeros((4, 2, 32), dtype="i2")


def a_group(file: h5py.File) -> None:
    file.create_group("waveform")


def neither(file: h5py.File) -> None:
    file["sound"] = np.zeros((4, 32), dtype="i2")


def no_rate(file: h5py.File) -> None:
    file["waveform"] = np.ones((4, 32), dtype="i2")
    del file.attrs["sample_rate"]


def rate_of_text(file: h5py.File) -> None:
    file["waveform"] = np.ones((4, 32), dtype="i2")
    file.attrs["sample_rate"] = "32000"


def mp3_of_text(file: h5py.File) -> None:
    file.create_dataset("mp3", shape=(4,), dtype=h5py.string_dtype())


def mp3_of_integers(file: h5py.File) -> None:
    file.create_dataset("mp3", shape=(4,), dtype=h5py.vlen_dtype(np.dtype("i8")))


def filtered_references(file: h5py.File) -> None:
    file.create_dataset(
        "mp3", shape=(4,), dtype=h5py.vlen_dtype(np.dtype("u1")), chunks=(4,), compression="gzip"
    )
    file["mp3"][0] = np.zeros(10, dtype="u1")


HOSTILE: dict[Callable[[h5py.File], None], str] = {
    absurd_shape: "none was ever written",
    absurd_rows: "rows",
    absurd_row: "would unpack|bytes",
    external_link: "an external link",
    soft_link: "a soft link",
    soft_link_out: "a soft link",
    virtual: "virtual",
    external_storage: "external files",
    bomb: "would unpack",
    huge_chunk: "chunks of",
    unknown_filter: "unknown filter",
    wrong_type: "wrong type",
    wide_integers: "wrong type",
    wrong_rank: "wrong shape",
    a_group: "no dataset",
    neither: "no AudioSet pack",
    no_rate: "attribute sample_rate is missing",
    rate_of_text: "no integer",
    mp3_of_text: "wrong type",
    mp3_of_integers: "wrong type",
    filtered_references: "packs the references",
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_hostile_packs_are_refused_before_anything_is_read(
    tmp_path: Path, make: Callable[[h5py.File], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pack.h5"
    with h5py.File(path, "w") as file:
        base(file)
        make(file)
    (tmp_path / "other.h5").write_bytes(b"")

    def refuse(*_: object) -> None:
        pytest.fail("a hostile dataset was read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", refuse)
    with pytest.raises(Hdf5Error, match=HOSTILE[make]):
        packs.Pack(path)


def test_files_that_are_no_pack_at_all(tmp_path: Path, folder: Path) -> None:
    whole = (folder / "waveform.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "folder.h5").mkdir()
    for name in ("cut.h5", "text.h5", "folder.h5", "none.h5"):
        with pytest.raises(Hdf5Error):
            packs.Pack(tmp_path / name)


def test_a_row_that_claims_gigabytes_is_refused_without_making_room(tmp_path: Path) -> None:
    path = pack_writer.write_mp3(tmp_path / "mp3.hdf", audioset_folder.clips("mp3"))
    with h5py.File(path) as file:
        offset = file["mp3"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset : offset + 4] = (4_000_000_000).to_bytes(4, "little")
    content[offset + 16 + 4 : offset + 16 + 12] = (1 << 60).to_bytes(8, "little")
    path.write_bytes(content)
    pack = packs.Pack(path)
    with pytest.raises(Hdf5Error, match="claims 4000000000 bytes"):
        pack.mp3(0)
    with pytest.raises(Hdf5Error, match="points outside the file"):
        pack.mp3(1)
    assert soundfile.info(io.BytesIO(pack.mp3(2))).samplerate == RATE_HZ
    pack.close()


def test_tables_of_another_length_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pack.h5"
    with h5py.File(path, "w") as file:
        base(file, rows=3)
        file["waveform"] = np.ones((4, 32), dtype="i2")
    pack = packs.Pack(path)
    with pytest.raises(Hdf5Error, match="another number of rows"):
        list(pack.table())
    pack.close()


def test_each_process_opens_its_own_and_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = packs.OpenPacks(maximum=1)
    first = opened.get(folder / "waveform.h5")
    assert opened.get(folder / "waveform.h5") is first
    monkeypatch.setattr("os.getpid", lambda: -1)
    again = opened.get(folder / "waveform.h5")
    assert again is not first
    opened.get(folder / "mp3.hdf")
    with pytest.raises(Hdf5Error):
        again.waveform(0)


@pytest.mark.parametrize("kind", ["waveform", "mp3"])
def test_damaged_packs_give_rows_or_one_clear_error(tmp_path: Path, kind: str) -> None:
    if kind == "mp3":
        whole = pack_writer.write_mp3(tmp_path / "a.h5", audioset_folder.clips("mp3", 0.1)).read_bytes()
    else:
        whole = pack_writer.write_panns(
            tmp_path / "a.h5", audioset_folder.clips("wav", 0.05), samples=3_200
        ).read_bytes()
    generator = np.random.default_rng(1)
    outcomes = {"whole": 0, "refused": 0}
    for number in range(150):
        damaged = bytearray(whole)
        # The structure lies in the first 12 kB, and most of what breaks is there.
        for place in generator.integers(0, min(12_000, len(whole)) if number % 2 else len(whole), 4):
            damaged[place] = generator.integers(0, 256)
        (tmp_path / "x.h5").write_bytes(damaged)
        try:
            pack = packs.Pack(tmp_path / "x.h5")
            try:
                list(pack.table())
                for row in range(min(pack.rows, 6)):
                    _ = pack.mp3(row) if pack.kind == "mp3" else pack.waveform(row)
            finally:
                pack.close()
            outcomes["whole"] += 1
        except Hdf5Error as error:
            assert str(error)
            outcomes["refused"] += 1
    assert outcomes["whole"] > 10 and outcomes["refused"] > 5
